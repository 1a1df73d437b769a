"""Runs against each other: what each has reached with equal means, and which of them no other beats. Folds of columns."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TypeVar

import numpy as np

from lab.events import lower_is_better
from lab.methods.registry import round_steps
from lab.recipes.recipe import Recipe
from lab.runs.columns import Columns

K = TypeVar("K")


def looks(run: Columns, score: str = "loss") -> list[float]:
    """The validation loss at every evaluation of a run, or one of its scores."""
    return run.eval_loss if score == "loss" else [scores[score] for scores in run.scores]


def steps_to(run: Columns, level: float, score: str = "loss") -> float:
    """Local steps until the validation loss (or a score) first is at ``level`` or better, on straight lines between looks; ∞ if never."""
    sign = 1.0 if lower_is_better(score) else -1.0
    before: tuple[int, float] | None = None
    for step, value in zip(run.eval_step, looks(run, score), strict=True):
        if sign * value <= sign * level:
            if before is None:
                return float(step)
            return before[0] + (step - before[0]) * (before[1] - level) / (before[1] - value)
        before = step, value
    return float("inf")


def rounds_to(run: Columns, level: float, score: str = "loss") -> float:
    """The same in rounds of its method. Of a run that never is there, all of its rounds, which is too few: look out for them."""
    return min(steps_to(run, level, score), run.recipe.steps) / round_steps(run.recipe.method)


def spent_until(run: Columns, at_step: np.ndarray, level: float, score: str = "loss") -> float:
    """What a run had spent (``at_step``: after each of its steps, ``[steps]``) when it was there, or at its end."""
    step = min(steps_to(run, level, score), run.step[-1])
    return float(at_step[run.step.index(math.ceil(step))])


def at_the_end(run: Columns, score: str = "loss", share: float = 0.25) -> list[float]:
    """The last ``share`` of the looks of a run, at least one: more of it than the luck of its last batch."""
    found = looks(run, score)
    return found[-max(1, round(share * len(found))) :]


def apart(run: Columns) -> dict[int, float]:
    """By local step, how far the workers of a run were from their mean just before they were averaged: root mean squares over workers."""
    found = {e.step: [x for x in e.to_mean_W if x is not None] for e in run.drifted}
    return {step: (sum(x * x for x in known) / len(known)) ** 0.5 for step, known in found.items() if known}


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
