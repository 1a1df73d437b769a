"""A run once more as a simulation: what happened to its workers, whatever did, becomes the scenario of its recipe."""

from __future__ import annotations

from lab.events import Ended
from lab.recipes.recipe import Recipe
from lab.runs.folder import RunFolder


def as_it_was(run: RunFolder) -> Recipe:
    """The recipe of a run in which its workers come and go by themselves as they did there.

    Whoever trains it, in one process or several, has the same events and numbers; of a run in which other things were done by hand (a
    learning rate that was turned), all but those. A run that has not come to its end has as many steps as it has done.
    """
    recipe, events = run.recipe(), list(run.events())
    ended = [e.step for e in events if isinstance(e, Ended)]
    done = ended[-1] if ended and ended[-1] else recipe.steps
    return recipe.but(scenario=recipe.scenario.as_it_was(events, recipe.steps), steps=done)
