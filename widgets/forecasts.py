"""What a recipe will do, from a dry run, in the shape of what a run does."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from lab.costs.calendar import calendar
from lab.events import Event, Sent, Started, Stepped
from lab.recipes.recipe import Recipe
from lab.runs.trainer import Trainer


@dataclass(frozen=True)
class PlannedEvents:
    """The `Sent` events to come, and who will be up: ``up_TW``, bool ``[steps, workers]``."""

    started: Started
    sent: tuple[Sent, ...]
    up_TW: np.ndarray

    def events(self) -> list[Event]:
        """As if the run had taken place, without losses and without computing."""
        by_step: dict[int, list[Sent]] = {}
        for record in self.sent:
            by_step.setdefault(record.step, []).append(record)
        out: list[Event] = [self.started]
        for t, up_W in enumerate(self.up_TW, start=1):
            out += [Stepped(t, [0.0 if up else None for up in up_W], 1.0, 0.0), *by_step.get(t, [])]
        return out


def forecast(recipe: Recipe) -> PlannedEvents:
    """Steps that are alike are looked at once; the same recipe is asked for once only."""
    return _forecast(json.dumps(recipe.to_dict()))


@lru_cache(maxsize=8)
def _forecast(recipe: str) -> PlannedEvents:
    trainer = Trainer(Recipe.of(json.loads(recipe)), dry=True)
    return PlannedEvents(trainer.started(), tuple(calendar(trainer.built.dry_run())), trainer.built.roll_call.up_TW)
