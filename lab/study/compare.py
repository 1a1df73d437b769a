"""Runs against each other: what each has reached with equal means, and which of them no other beats. Folds of columns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

import numpy as np

from lab.recipes.recipe import Recipe
from lab.runs.columns import Columns

K = TypeVar("K")


def steps_to(run: Columns, loss: float) -> float:
    """Local steps until the validation loss first is at most ``loss``, on straight lines between looks; ∞ if never."""
    before: tuple[int, float] | None = None
    for step, value in zip(run.eval_step, run.eval_loss, strict=True):
        if value <= loss:
            if before is None:
                return float(step)
            return before[0] + (step - before[0]) * (before[1] - loss) / (before[1] - value)
        before = step, value
    return float("inf")


def loss_within(run: Columns, at_step: np.ndarray, budget: float) -> float:
    """The last validation loss that a run had when it had spent at most ``budget``; NaN where it had none yet.

    ``at_step``: what it had spent after each of its finished steps (bytes, seconds, tokens), ``[steps]``.
    """
    spent = dict(zip(run.step, at_step, strict=True))
    known = [x for step, x in zip(run.eval_step, run.eval_loss, strict=True) if spent[step] <= budget]
    return known[-1] if known else float("nan")


def front(points: Mapping[K, tuple[float, float]]) -> list[K]:
    """Those that no other beats: none has at most their cost and at most their loss, and less of one. By rising cost."""

    def beaten(a: tuple[float, float]) -> bool:
        return any(b[0] <= a[0] and b[1] <= a[1] and b != a for b in points.values())

    return sorted((k for k, p in points.items() if not beaten(p)), key=lambda k: points[k])


def best_rate(losses: Mapping[float, float]) -> tuple[float, bool]:
    """The learning rate with the lowest loss, and whether it lies inside of those tried, so that the sweep was wide enough."""
    finite = {rate: x for rate, x in losses.items() if np.isfinite(x)}
    if not finite:
        raise ValueError("no learning rate gave a loss")
    rate = min(finite, key=lambda r: finite[r])
    return rate, min(losses) < rate < max(losses)


def with_rate(recipe: Recipe, factor: float) -> Recipe:
    """The recipe with its inner learning rate, that of a warm phase too, times ``factor``."""
    method = recipe.to_dict()["method"]
    for part in (method, method.get("warm")):
        if part:
            part["inner"]["lr"] *= factor
    return recipe.but(method=method)
