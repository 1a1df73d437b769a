"""Knobs: settings of a run that can be changed while it goes on. A change is an event, so that resume and replay repeat it.

=============  ================================================================================================
knob           value
=============  ================================================================================================
``lr``         a factor on the learning rates of the schedule
``sync_every`` local steps between two syncs, as the method writes them; of several periods, those that change
``down``       workers that are killed: a worker that is taken from the list comes back as after an outage
``network``    the network that views price on: training does not know of it
``paused``     whether the run waits
=============  ================================================================================================

Knobs are set between two local steps. A run in which none is set computes the same numbers as one without knobs.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from pydantic_core import to_jsonable_python

from lab.costs.network import NETWORKS, Network, network
from lab.engine.checkpoint import Part
from lab.ground.config import checked
from lab.ground.errors import RecipeError, one_of
from lab.methods.registry import Method, fixed_periods, name_of
from lab.recipes.recipe import Recipe

KnobSource = Callable[
    [int], Iterable[tuple[str, Any]]
]  # called before local step t: knobs to set and their values; may wait
STOP = "stop"  # a source yields (STOP, True) to end the run before step t
KNOBS = ("lr", "sync_every", "down", "network", "paused")


def at_start(recipe: Recipe, knob: str) -> Any:
    """Return the initial value of a knob."""
    return {"lr": 1.0, "sync_every": periods(recipe.method), "down": [], "network": None, "paused": False}[knob]


def validate_knob(recipe: Recipe, knob: str, value: Any, present: Mapping[str, Any]) -> Any:
    """Check a value for a knob and return it in full, as plain JSON; ``present``: those that were set.

    Raises
    ------
    RecipeError
        for an unknown knob, a value that is not allowed, or one that makes no sense with this method.
    """
    match knob:
        case "lr":
            if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < math.inf:
                raise RecipeError(
                    f"lr = {value!r}: give a factor on the learning rate, greater than 0 (1 changes nothing)"
                )
            return float(value)
        case "sync_every":
            return _validate_periods(recipe, value, present.get(knob, periods(recipe.method)))
        case "down":
            return _validate_workers(recipe, value)
        case "network":
            return network_fields(value)
        case "paused":
            return bool(value)
    raise RecipeError(one_of("knob", knob, KNOBS))


class Knobs(Part):
    """The knobs of one run: ``values`` of those that were set, and ``method`` with the periods that they give it."""

    def __init__(self, recipe: Recipe):
        self.recipe, self.method, self.values = recipe, recipe.method, dict[str, Any]()

    def set_knob(self, knob: str, value: Any) -> bool:
        """Set a knob before the next local step; returns False where it has this value already."""
        value = validate_knob(self.recipe, knob, value, self.values)
        if value == self.values.get(knob, at_start(self.recipe, knob)):
            return False
        if knob == "sync_every":
            self.method = with_periods(self.recipe.method, value)
        self.values[knob] = value
        return True

    def json(self) -> dict[str, Any]:
        return {"knobs": self.values}

    def load_json(self, values: dict[str, Any], step: int) -> None:
        for knob, value in values.get("knobs", {}).items():
            self.set_knob(knob, value)


def periods(method: Method) -> int | dict[str, int] | None:
    """The sync periods of a method as it writes them: one, one for each state, or none."""
    return dict(method.sync_every) if isinstance(method.sync_every, Mapping) else method.sync_every


def with_periods(method: Method, sync_every: int | Mapping[str, int]) -> Method:
    """The same method with other periods, checked by the method itself."""
    return checked(type(method), vars(method) | {"sync_every": sync_every}, "method")


def _validate_periods(recipe: Recipe, value: Any, now: Any) -> int | dict[str, int]:
    method, name = recipe.method, name_of(recipe.method)
    fixed = fixed_periods(method, recipe)
    if fixed is not None:
        raise RecipeError(fixed)
    if isinstance(now, dict):
        value = now | (dict(value) if isinstance(value, Mapping) else {"params": value})
    elif isinstance(value, Mapping):
        if set(value) != {"params"}:
            raise RecipeError(f"{name} has one period: give a number, or {{'params': {now}}}")
        value = value["params"]
    changed: Any = periods(with_periods(method, value))
    return changed  # type: ignore[no-any-return]


def _validate_workers(recipe: Recipe, value: Iterable[int]) -> list[int]:
    workers = sorted(set(value))
    for w in workers:
        if not isinstance(w, int) or isinstance(w, bool) or not 0 <= w < recipe.num_workers:
            raise RecipeError(f"there is no worker {w!r}: the workers are 0 … {recipe.num_workers - 1}")
    return workers


def named_network(value: Any) -> str | None:
    """The name of a network that is stored as `network_fields`, perhaps by an earlier version with fewer of them; None if it has none."""
    try:
        given = checked(Network, value, "network") if isinstance(value, dict) else None
    except RecipeError:
        return None
    return next((name for name, net in NETWORKS.items() if net == given), None)


def network_fields(value: str | Network | Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Return a network, given by name, object or fields, as a dictionary of its fields in plain JSON; None stays None."""
    if value is None:
        return None
    if isinstance(value, str):
        value = network(value)
    if not isinstance(value, Network):
        value = checked(Network, dict(value), "network")
    plain: dict[str, Any] = json.loads(json.dumps(to_jsonable_python(value)))
    return plain
