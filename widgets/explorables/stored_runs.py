"""The small runs that explorables are drawn from, kept beside them: ``stored/<name>/<id>.jsonl.xz``, as `lab.runs.stored` writes them.

``python -m widgets.explorables.stored_runs`` trains what is not there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from importlib import import_module
from pathlib import Path
from typing import Any

import lab
from lab.events import Event
from lab.recipes.recipe import Recipe
from lab.runs.stored import Stored

FOLDER = Path(__file__).with_name("stored")
DIGITS = 5  # significant ones of every number that was measured
OURS = ("local_steps", "expert_traffic", "nested_ranks")  # modules with ``recipes()``


def events_of(name: str, recipe: Recipe) -> list[Event]:
    """What happened in a stored run. Raises Damaged where it is not there or cannot be read."""
    return Stored(FOLDER / name).events(recipe)


def record(name: str, recipes: Sequence[Recipe], folder: Path = FOLDER) -> int:
    """Train those of these recipes that are not stored yet; returns how many."""
    stored = Stored(folder / name)
    missing = [recipe for recipe in recipes if recipe not in stored]
    for recipe in missing:
        seen = list[Event]()
        lab.train(recipe, each=seen.append)
        stored.add(recipe, map(_short, seen))
    return len(missing)


def _short(event: Event) -> Event:
    """Measured numbers in few digits; counts, and what the run was asked to do, as they are."""
    if event.kind == "started":
        return event
    return replace(event, **{f.name: _rounded(getattr(event, f.name)) for f in fields(event)})


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}")
    if isinstance(value, list):
        return [_rounded(v) for v in value]
    if isinstance(value, dict):
        return {key: _rounded(v) for key, v in value.items()}
    return value


if __name__ == "__main__":
    for ours in OURS:
        recipes: list[Recipe] = import_module(f"widgets.explorables.{ours}").recipes()
        print(f"{ours}: {record(ours, recipes)} of {len(recipes)} runs trained")
