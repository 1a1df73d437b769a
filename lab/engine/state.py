"""What a method works on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from lab.engine.fleet import Fleet, Stack


class Experts(Protocol):
    """Which worker holds which expert, for a method that moves them (`lab.recipes.placement.Experts`)."""

    @property
    def holders(self) -> Mapping[str, Sequence[int]]: ...
    def redraw_(self, t: int, round_steps: int) -> bool: ...
    def warmup(self, round_steps: int) -> int: ...


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
    adapters: object = (
        None  # which worker holds which rank segments (`lab.methods.lora_factors.Adapters`), if the model has adapters
    )
    samples_W: Sequence[int] | None = None  # examples of every worker; None in a dry run
    # A server keeps the model: what it is, is shared["params"], and the method itself hands it out.
    served: bool = False
    returned: Sequence[int] = ()  # who is back in this step
    received: Sequence[str] = ()  # the local states that they were sent
    facts: dict[str, Any] = field(default_factory=dict)  # small JSON values that the method has to remember

    @classmethod
    def of(
        cls,
        fleet: Fleet,
        schedule: Callable[[int], float] = lambda t: 1.0,
        experts: Experts | None = None,
        adapters: object = None,
        samples_W: Sequence[int] | None = None,
        served: bool = False,
    ) -> State:
        local = {"params": fleet.params}
        return cls(fleet, schedule, local, experts=experts, adapters=adapters, samples_W=samples_W, served=served)

    @property
    def grads(self) -> Stack:
        return self.fleet.grads


Loss = Callable[[nn.Module, int, Tensor, Tensor], Tensor]  # of (module, worker, ids, targets)


class Grad(Protocol):
    """Fills the gradient of every worker that is up, of the model's own loss or of another one; returns losses ``[N]``."""

    def __call__(self, s: State, loss: Loss | None = None) -> Tensor: ...
