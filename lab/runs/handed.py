"""Gradients of a loop that is somebody's own: what its ``backward`` has left at the parameters, handed to a method."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lab.engine.state import Loss, State
from lab.ground.errors import RecipeError
from lab.runs.adopted import Held

Losses = float | Tensor | Sequence[float | Tensor]  # of one worker, or one for each worker of this process


class Gradients:
    """`lab.engine.state.Grad` of an own loop: the gradients that its ``backward`` has left at the parameters."""

    def __init__(self, held: Sequence[Held], state: State, method: str):
        self.held, self.state, self.method = held, state, method
        self.params, self.rows = [h.param for h in held], [h.grad for h in held]
        self.addresses = [h.address for h in held]
        # Of the present step, by worker; NaN for those of other processes, and where it is not said.
        self.losses: list[float] = []
        self.left = 0  # calls that the present step may make
        self.versions: list[int] = []

    @torch.no_grad()
    def take_(self, loss: Losses | None) -> None:
        """Bring the gradients to where the method looks for them, and note the losses.

        Raises
        ------
        RecipeError
            where a parameter does not lie where it was put, or losses are not those of the workers here.
        """
        if [p.data_ptr() for p in self.params] != self.addresses:
            h = next(h for h in self.held if h.param.data_ptr() != h.address)
            raise RecipeError(
                f"the values of {h.name} (worker {h.worker}) were moved since the model was attached (by .to, .half or load_state_dict with "
                "assign=True): do that before lab.attach"
            )
        pairs = [(row, p.grad) for row, p in zip(self.rows, self.params, strict=True)]
        if none := [row for row, grad in pairs if grad is None]:
            torch._foreach_zero_(none)
        if apart := [(row, grad) for row, grad in pairs if grad is not None and grad is not row]:
            rows, grads = zip(*apart, strict=True)
            torch._foreach_copy_(rows, [x if x.layout is torch.strided else x.to_dense() for x in grads])
        self._note(loss)
        self.left, self.versions = 1, self._versions()

    def _note(self, loss: Losses | None) -> None:
        mine = self.state.fleet.mine
        self.losses = [math.nan] * self.state.fleet.num_workers
        if loss is None:
            return
        single = isinstance(loss, float | int) or (isinstance(loss, Tensor) and not loss.dim())
        each: list[Any] = [loss] if single else list(loss)  # type: ignore[arg-type]
        if len(each) != len(mine):
            raise RecipeError(
                f"step was given {len(each)} losses for the {len(mine)} workers of this process: one for each"
            )
        for w, x in zip(mine, each, strict=True):
            value = x.item() if isinstance(x, Tensor) else float(x)
            self.losses[w] = value if math.isfinite(value) else math.inf

    def __call__(self, s: State, loss: Loss | None = None) -> Tensor:
        if loss is not None:
            raise RecipeError(
                f"{self.method} trains a loss of its own, and the gradients of an own loop are there already: use lab.train"
            )
        if not self.left:
            raise RecipeError(
                f"{self.method} asks for gradients twice in a step, and an own loop gives them once: use lab.train"
            )
        if self._versions() != self.versions:
            raise RecipeError(
                f"{self.method} changes parameters before it asks for gradients, which an own loop has computed by then: use lab.train"
            )
        self.left -= 1
        return torch.tensor(self.losses, dtype=torch.float64, device="cpu")

    def at(self, t: int) -> Tensor:
        return self(self.state)

    def _versions(self) -> list[int]:
        return [x._version for x in self.state.fleet.params.blocks]
