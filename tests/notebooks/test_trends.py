"""The slope of an effect over sizes: Welch's interval for two of them, the line by least squares for more, and how often it is right."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from lab.study.effects import Effect
from lab.study.trends import Trend


def effect(values: list[float], **options: object) -> Effect:
    return Effect(values, [0.0] * len(values), 0, **options)  # type: ignore[arg-type]


def test_of_two_sizes_it_is_welchs_interval() -> None:
    rng = np.random.default_rng(1)
    small, large = [*rng.normal(1, 1, 7)], [*rng.normal(2, 3, 12)]
    found = Trend({10.0: effect(small), 80.0: effect(large)})  # three doublings
    welch = stats.ttest_ind(large, small, equal_var=False).confidence_interval()
    assert found.slope == pytest.approx((np.mean(large) - np.mean(small)) / 3)
    assert found.interval == pytest.approx((welch.low / 3, welch.high / 3))


def test_the_slope_is_that_of_the_line_through_the_means() -> None:
    sizes, means = [1.0, 2.0, 8.0, 64.0], [0.0, 3.0, 1.0, 9.0]
    found = Trend({s: effect([m - 1, m, m + 1]) for s, m in zip(sizes, means, strict=True)})
    assert found.slope == pytest.approx(np.polyfit(np.log2(sizes), means, 1)[0])
    assert found.direction == 1
    # by hand: variance of a mean is 1/3, and the slope's is that over the sum of squares of log2 around its mean
    squares = sum((x - 2.5) ** 2 for x in (0, 1, 3, 6))
    assert found.interval is not None
    weights = [((x - 2.5) / squares) ** 2 / 3 for x in (0, 1, 3, 6)]
    freedom = sum(weights) ** 2 / sum(w**2 / 2 for w in weights)
    assert found.interval[1] - found.slope == pytest.approx(stats.t.ppf(0.975, freedom) * math.sqrt(1 / 3 / squares))


def test_it_covers_the_truth_as_often_as_it_says() -> None:
    """Sizes with spreads that differ sevenfold and few pairs; the true slope is 0.7."""
    rng = np.random.default_rng(0)
    sizes, spreads, pairs = (1, 2, 4, 8), (0.3, 0.5, 1.0, 2.0), (16, 12, 8, 8)
    inside = 0
    for _ in range(1000):
        found = Trend(
            {s: effect([*rng.normal(0.7 * math.log2(s), d, n)]) for s, d, n in zip(sizes, spreads, pairs, strict=True)}
        )
        low, high = found.interval  # type: ignore[misc]
        inside += low < 0.7 < high
    assert 0.93 < inside / 1000 < 0.97


def test_words() -> None:
    falling = {1: effect([2.0, 2.1, 1.9], unit="nats"), 4: effect([1.0, 1.2, 0.8], unit="nats")}
    assert Trend(falling).words == "−0.50 nats (−0.71 … −0.29) with each doubling"
    assert Trend(falling).direction == -1
    percent = {s: Effect([x * s for x in (1.0, 1.01, 1.02)], [1.0] * 3, 0, scale="percent") for s in (1, 2)}
    assert Trend(percent).words == "+101.0 % (+96.8 … +105.2) with each doubling"
    times = {s: Effect([s * x for x in (1.0, 1.1, 0.9)], [1.0] * 3, 1, scale="times") for s in (1, 2)}
    assert Trend(times).words == "2.00× (1.59 … 2.51) with each doubling"
    one = {1: effect([1.0]), 2: effect([2.0])}
    assert Trend(one).interval is None
    assert Trend(one).words == "+1.0 with each doubling, no interval"
    assert Trend(one).direction == 0
    lost = Trend({1: effect([1.0, math.inf, 2.0]), 2: effect([1.0, 2.0, 3.0])})
    assert (lost.interval, lost.words) == (None, "no trend: a run diverged")


@pytest.mark.parametrize(
    ("effects", "says"),
    [
        ({1: effect([1.0])}, "two or more"),
        ({0: effect([1.0]), 2: effect([1.0])}, "above 0"),
        ({math.nan: effect([1.0]), 2: effect([1.0])}, "above 0"),
        ({1: effect([1.0]), 2: Effect([1.0], [1.0], 0, scale="percent")}, "several scales"),
    ],
)
def test_what_has_no_trend(effects: dict[float, Effect], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Trend(effects)
