"""What a method works on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from lab.comm import Communicator
from lab.experts.placement import Experts
from lab.fleet import Fleet, Stack


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

    @classmethod
    def of(
        cls, fleet: Fleet, schedule: Callable[[int], float] = lambda t: 1.0, experts: Experts | None = None
    ) -> State:
        return cls(fleet, schedule, local={"params": fleet.params}, experts=experts)

    @property
    def grads(self) -> Stack:
        return self.fleet.grads


Grad = Callable[[State], Tensor]


class Method(Protocol):
    """The loop body of one paper: how each cell of the fleet moves, and which rows are averaged, when."""

    def init(self, s: State) -> None:
        """Make optimizers and shared state. Nothing is sent."""

    def step(self, s: State, grad: Grad, comm: Communicator, t: int) -> Tensor:
        """Local step ``t`` (counted from 1) at every worker that is up; returns their losses ``[N]``."""
