"""What a method works on."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from types import MappingProxyType
from typing import Any, ParamSpec, Protocol, TypeVar

import torch
from torch import Tensor, nn

from lab.engine.fleet import Fleet
from lab.engine.stack import Stack
from lab.ground.errors import RecipeError, one_of


class Experts(Protocol):
    """Which worker holds which expert, for a method that moves them (`lab.recipes.placement.Experts`)."""

    @property
    def holders(self) -> Mapping[str, Sequence[int]]: ...
    def redraw_(self, t: int, round_steps: int) -> bool: ...
    def warmup(self, round_steps: int) -> int: ...


P = ParamSpec("P")
V = TypeVar("V")


class ByName(dict[str, V]):
    """Values by name. What is not there is named by a RecipeError that says what is: whoever writes a method reads it."""

    def __init__(self, what: str, values: Mapping[str, V] = MappingProxyType({})):
        super().__init__(values)
        self.what = what

    def __missing__(self, name: str) -> V:
        raise RecipeError(
            one_of(self.what, name, self) if self else f"{self.what} {name!r} is not there: make it in init(s)"
        )


@dataclass
class State:
    """The tensors of a run that a method reads and writes, by name.

    ``local`` lives at the workers, stacked ``[H, P]`` (``params`` and the inner optimizer's states under torch's names,
    which appear with the first step). ``shared`` is agreed by the holders and kept once, ``[1, P]``.
    """

    fleet: Fleet
    schedule: Callable[[int], float] = lambda t: 1.0
    local: dict[str, Stack] = field(default_factory=partial(ByName, "local state"))
    shared: dict[str, Stack] = field(default_factory=partial(ByName, "shared state"))
    optimizers: dict[str, torch.optim.Optimizer] = field(default_factory=partial(ByName, "optimizer"))
    experts: Experts | None = None  # which worker holds which expert, if the model has experts
    # Which worker holds which rank segments, if the model has adapters (`lab.methods.lora_factors.Adapters`).
    adapters: object = None
    private: object = None  # what the recipe asks for (`lab.methods.private.Private`)
    samples_W: Sequence[int] | None = None  # examples of every worker; None in a dry run
    # Where there are more clients than workers: which of them sits in the row of every worker, and how many there are, with how
    # many examples in all.
    clients_W: Sequence[int] = ()
    num_clients: int = 0
    num_samples: int = 0
    # Of a server: its own examples, inputs ``[C, n, *shape]`` and targets ``[C, n]``, class by class.
    labelled: tuple[Tensor, Tensor] | None = None
    groups: Mapping[str, Sequence[int]] = field(default_factory=dict)  # clients by group, where the recipe has groups
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
        local = ByName("local state", {"params": fleet.params})
        return cls(fleet, schedule, local, experts=experts, adapters=adapters, samples_W=samples_W, served=served)

    @property
    def grads(self) -> Stack:
        return self.fleet.grads

    @property
    def dry(self) -> bool:
        """Whether these are shapes without numbers, from which a dry run counts what would be sent."""
        return self.fleet.dry


def has_numbers(x: object) -> bool:
    """Whether this is more than shapes: not in a dry run, nor what was handed in where it is not (`World.gather_to_server`)."""
    match x:
        case Tensor():
            return not x.is_meta
        case Stack() | Fleet() | State():
            return not x.dry
        case Mapping():
            return all(map(has_numbers, x.values()))
    return True


def numeric(function: Callable[P, None]) -> Callable[P, None]:
    """For the part of a method that only moves numbers: done without gradients, and not at all where there are none to move.

    That is where any argument is without (`has_numbers`): in a dry run, and at processes that are not the server for what was
    handed in to it. So that nobody counts on a result, only a function that returns None may have it.

    Raises
    ------
    TypeError
        for another.
    """
    if function.__annotations__.get("return", "") not in (None, "None"):
        raise TypeError(f"{function.__name__}: a numeric function works in place and returns None")

    @functools.wraps(function)
    def call(*args: P.args, **options: P.kwargs) -> None:
        if all(map(has_numbers, (*args, *options.values()))):
            with torch.no_grad():
                function(*args, **options)

    return call


def number(value: float | None) -> Tensor:
    """One number for a worker to hand in, float64 ``[1]``; of one in another process (None) its shape."""
    elsewhere = torch.empty(1, dtype=torch.float64, device="meta")
    return elsewhere if value is None else torch.full_like(elsewhere, value, device="cpu")


Loss = Callable[[nn.Module, int, Tensor, Tensor], Tensor]  # of (module, worker, ids, targets)


class Grad(Protocol):
    """Fills the gradient of every worker that is up, of the model's own loss or of another one; returns losses ``[N]``."""

    def __call__(self, s: State, loss: Loss | None = None) -> Tensor: ...
