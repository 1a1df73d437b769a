"""Looking at runs of one's own: what is seen along a run of a recipe, without a folder."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from lab.engine.stack import Stack
from lab.events import Event
from lab.probes.metrics import Alignment, Averages, relative_change
from lab.probes.probe import Setup
from lab.recipes.recipe import Recipe
from lab.runs.trainer import Trainer

T = TypeVar("T")


def along(
    recipe: Recipe, look: Callable[[Setup], T], every: int = 32, each: Callable[[Event], None] = lambda event: None
) -> list[tuple[int, T]]:
    """What ``look`` sees after every ``every``-th local step of a run of the recipe, as pairs (local step, what it saw).

    ``each`` is called with every event, to show how far it is. Ready-made looks, in `lab.probes.metrics`: `drifts`,
    `gradient_norms`, `noise`, `activations`.
    """
    trainer = Trainer(recipe)
    seen: list[tuple[int, T]] = []
    for event in trainer.events():
        each(event)
        if event.kind == "stepped" and trainer.t % every == 0:
            seen.append((trainer.t, look(trainer.setup)))
    return seen


def rates_of_change(
    recipe: Recipe, every: int = 64, each: Callable[[Event], None] = lambda event: None
) -> dict[str, list[tuple[int, float]]]:
    """How far each state moves in ``every`` local steps, relative to its size, along a run of the recipe.

    Keeps a second copy of all local states. ``each`` is called with every event, to show how far it is.

    Returns
    -------
    by state, pairs (local step, ‖s_t − s_{t−every}‖ / ‖s_{t−every}‖).
    """
    before: dict[str, Stack] = {}
    out: dict[str, list[tuple[int, float]]] = {}

    def look(setup: Setup) -> None:
        for name, stack in setup.state.local.items():
            if name in before:
                out.setdefault(name, []).append((setup.comm.t, relative_change(stack, before[name])))
            before[name] = stack.clone()

    along(recipe, look, every, each)
    return out


def alignment(
    recipe: Recipe, momentum: str = "exp_avg", each: Callable[[Event], None] = lambda event: None
) -> list[Alignment]:
    """How well the workers of a recipe agree at every average of their parameters, along a run (see `lab.probes.metrics.Averages`)."""
    trainer = Trainer(recipe)
    watch = Averages(trainer.state, trainer.comm, momentum)
    trainer.comm.subscribe(watch.before_average)
    for event in trainer.events():
        each(event)
        if event.kind == "stepped":
            watch.after()
    return watch.seen
