"""A method on a small fleet, step by step: no text, no recipe, no events."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Self

from torch import Tensor

from lab.engine.comm import Communicator
from lab.engine.state import Grad, Loss, State
from lab.methods import Method


class Bench:
    """Drives a method as a run does, on whatever state it is given.

    Parameters
    ----------
    method, state
        what is driven, and on what; ``method.init`` is called here.
    grad
        fills the gradients of all workers; or
    batch
        of worker w in local step t: what ``module.loss`` takes, or the method's own loss after module and worker.
    comm
        who moves data and counts it; default: a communicator of the state's fleet.
    """

    def __init__(
        self,
        method: Method,
        state: State,
        grad: Grad | None = None,
        *,
        batch: Callable[[int, int], tuple[Any, ...]] | None = None,
        comm: Communicator | None = None,
    ):
        if (grad is None) == (batch is None):
            raise ValueError("give grad, or batch")
        self.method, self.state, self.batch = method, state, batch
        self.grad: Grad = grad if grad is not None else self._on_batches
        self.comm = Communicator(state.fleet) if comm is None else comm
        self.t = 0  # local steps that are done
        self.loss_W: Tensor | None = None  # of the last of them
        method.init(state)

    def step(self) -> Tensor:
        """One local step; the losses of all workers ``[N]``."""
        self.t = self.comm.t = self.t + 1
        self.loss_W = self.method.step(self.state, self.grad, self.comm, self.t)
        return self.loss_W

    def steps(self, num: int) -> Iterator[tuple[int, Tensor]]:
        """So many local steps; after each of them its number and the losses of all workers ``[N]``."""
        for _ in range(num):
            loss_W = self.step()
            yield self.t, loss_W

    def run(self, num: int) -> Self:
        """The same at once."""
        for _ in self.steps(num):
            pass
        return self

    def close(self) -> None:
        self.state.fleet.close()

    def _on_batches(self, s: State, loss: Loss | None = None) -> Tensor:
        assert self.batch is not None
        of, t = self.batch, self.t

        def backward(module: Any, worker: int) -> Tensor:
            batch = of(worker, t)
            own: Tensor = module.loss(*batch) if loss is None else loss(module, worker, *batch)
            return own

        return s.fleet.backward(backward)
