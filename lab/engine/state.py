"""What a method works on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

from lab.engine.comm import Communicator
from lab.engine.fleet import Fleet, Stack
from lab.recipes.placement import Experts

if TYPE_CHECKING:
    from lab.methods.lora_factors import Adapters


@dataclass
class State:
    """All that a run has to remember, by name and place.

    ``local`` lives at the workers, stacked ``[H, P]`` (``params`` and the inner optimizer's states under torch's names,
    which appear with the first step). ``shared`` is agreed by the holders and kept once, ``[1, P]``.
    """

    fleet: Fleet
    schedule: Callable[[int], float] = lambda t: 1.0
    local: dict[str, Stack] = field(default_factory=dict)
    shared: dict[str, Stack] = field(default_factory=dict)
    optimizers: dict[str, torch.optim.Optimizer] = field(default_factory=dict)
    experts: Experts | None = None  # which worker holds which expert, if the model has experts
    adapters: Adapters | None = None  # which worker holds which rank segments, if the model has adapters
    samples_W: Sequence[int] | None = None  # examples of every worker; None in a dry run
    served: bool = (
        False  # a server keeps the model: what it is, is shared["params"], and the method itself hands it out
    )
    returned: Sequence[int] = ()  # who is back in this step
    received: Sequence[str] = ()  # the local states that they were sent
    facts: dict[str, Any] = field(default_factory=dict)  # small JSON values that the method has to remember

    @classmethod
    def of(
        cls,
        fleet: Fleet,
        schedule: Callable[[int], float] = lambda t: 1.0,
        experts: Experts | None = None,
        adapters: Adapters | None = None,
        samples_W: Sequence[int] | None = None,
    ) -> State:
        return cls(fleet, schedule, {"params": fleet.params}, experts=experts, adapters=adapters, samples_W=samples_W)

    @property
    def grads(self) -> Stack:
        return self.fleet.grads


Loss = Callable[[nn.Module, int, Tensor, Tensor], Tensor]  # of (module, worker, ids, targets)


class Grad(Protocol):
    """Fills the gradient of every worker that is up, of the model's own loss or of another one; returns losses ``[N]``."""

    def __call__(self, s: State, loss: Loss | None = None) -> Tensor: ...


class Method(Protocol):
    """The loop body of one paper: how each cell of the fleet moves, and which rows are averaged, when.

    A property ``averages`` may list the states of which it takes means (`lab.methods.averaged_states`).
    """

    def init(self, s: State) -> None:
        """Make optimizers and shared state. Nothing is sent."""

    def step(self, s: State, grad: Grad, comm: Communicator, t: int) -> Tensor:
        """Local step ``t`` (counted from 1) at every worker that is up; returns their losses ``[N]``."""
