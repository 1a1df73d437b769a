"""Equal steps, bytes, seconds: by hand on runs that were made up."""

from __future__ import annotations

import math

import numpy as np
import pytest

from lab.events import Drifted, Evaluated, Started, Stepped
from lab.recipes.recipe import Recipe
from lab.runs.columns import Columns
from lab.study.claims import spread
from lab.study.compare import (
    apart,
    at_the_end,
    best_rate,
    front,
    loss_within,
    rounds_to,
    spent_until,
    steps_to,
    with_rate,
)


def run(looks: dict[int, float], down: int = 0, sync_every: int = 16) -> Columns:
    """A run of two workers and 40 steps that was looked at; the second is down for the first ``down`` steps. Accuracy: a tenth of the loss."""
    recipe = Recipe.of("diloco", ["steps=40", "num_workers=2", f"method.sync_every={sync_every}"])
    columns = Columns()
    columns.add(Started(1, recipe.to_dict(), 10, [10, 10], 64, None, 1.0, {}))
    for t in range(1, 41):
        columns.add(Stepped(t, [1.0, None if t <= down else 1.0], 1.0, 0.1))
        if t in looks:
            columns.add(Evaluated(t, looks[t], 0.0, {"accuracy": looks[t] / 10}))
    return columns


def test_steps_to_a_loss() -> None:
    """From 4 at step 10 to 3 at step 20: 3.5 lies at 15. What is there at the first look counts as of that look."""
    it = run({10: 4.0, 20: 3.0, 40: 3.2})
    assert steps_to(it, 3.5) == 15
    assert steps_to(it, 4.5) == 10
    assert steps_to(it, 3.0) == 20
    assert steps_to(it, 2.9) == math.inf


def test_steps_to_a_score_which_rises() -> None:
    """From 0.2 at step 10 to 0.4 at step 20: 0.25 lies at 12.5. A look between that is worse does not count."""
    it = run({10: 2.0, 20: 4.0, 30: 1.0, 40: 5.0})
    assert steps_to(it, 0.25, "accuracy") == 12.5
    assert steps_to(it, 0.1, "accuracy") == 10
    assert steps_to(it, 0.45, "accuracy") == 38.75
    assert steps_to(it, 0.51, "accuracy") == math.inf


def test_rounds_and_what_was_spent_until_then() -> None:
    """A round of ten steps, three bytes a step: 0.25 at step 12.5, so 1.25 rounds, and 39 bytes by step 13; what never is has all of them."""
    it, spent = run({10: 2.0, 20: 4.0, 40: 5.0}, sync_every=10), 3.0 * np.arange(1, 41)
    assert rounds_to(it, 0.25, "accuracy") == 1.25
    assert spent_until(it, spent, 0.25, "accuracy") == 39
    assert rounds_to(it, 0.9, "accuracy") == 4
    assert spent_until(it, spent, 0.9, "accuracy") == 120


def test_what_a_run_has_at_its_end() -> None:
    it = run({10: 2.0, 20: 4.0, 30: 1.0, 40: 5.0})
    assert at_the_end(it, share=0.5) == [1.0, 5.0]
    assert at_the_end(it, "accuracy", share=0.01) == [0.5]


def test_how_far_apart_workers_were() -> None:
    """Root mean squares over those that were up: of 3 and 4 it is √12.5, of 5 alone 5; where nobody was up there is nothing."""
    it = Columns.of(
        [
            Drifted(8, [3.0, 4.0], [None, None]),
            Drifted(16, [None, 5.0], [None] * 2),
            Drifted(24, [None] * 2, [None] * 2),
        ]
    )
    assert apart(it) == {8: pytest.approx(12.5**0.5), 16: 5.0}


def test_loss_within_a_budget() -> None:
    """7 bytes a step: 140 are spent after step 20; before the first look nothing is known."""
    it, spent = run({10: 4.0, 20: 3.0}), 7.0 * np.arange(1, 41)
    assert loss_within(it, spent, 140) == 3.0
    assert loss_within(it, spent, 139) == 4.0
    assert math.isnan(loss_within(it, spent, 69))


def test_front() -> None:
    """Cheap and bad, dear and good stay; what is dearer and no better goes; equals both stay."""
    points = {
        "good": (9, 1.0),
        "cheap": (1, 3.0),
        "twin": (1, 3.0),
        "beaten": (9, 1.5),
        "dear": (10, 1.0),
        "mid": (5, 2.0),
    }
    assert front(points) == ["cheap", "twin", "mid", "good"]
    assert front({}) == []


def test_best_rate() -> None:
    assert best_rate({0.1: 3.0, 0.2: 2.0, 0.4: 2.5}) == (0.2, True)
    assert best_rate({0.1: 3.0, 0.2: 2.0, 0.4: math.nan}) == (0.2, True)
    assert best_rate({0.1: 3.0, 0.2: 2.0}) == (0.2, False)
    with pytest.raises(ValueError, match="no learning rate"):
        best_rate({0.1: math.nan})


def test_tokens_are_those_of_workers_that_were_up() -> None:
    """64 tokens a step by two workers; one of them misses ten steps."""
    assert run({}, down=10).curves.tokens.values.tolist()[::39] == [32, 10 * 32 + 30 * 64]


def test_spread_in_words() -> None:
    assert spread([2.0, 2.5]) == "2.250 (2.000 … 2.500)"
    assert spread([0.124], 2, signed=True) == "+0.12"
    assert spread([math.inf, 2.0], 1) == "∞ (2.0 … ∞)"


def test_with_rate() -> None:
    """Both rates of MT-DAO; nothing else."""
    recipe = Recipe.of("mt_dao")
    twice = with_rate(recipe, 2)
    assert (twice.method.inner.lr, twice.method.warm.inner.lr) == (8e-3, 8e-3)
    assert with_rate(twice, 0.5) == recipe
    assert with_rate(Recipe.of("diloco"), 0.5).method.inner.lr == 1.5e-3
