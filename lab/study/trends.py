"""Which way an effect goes as something doubles: its slope over sizes, with an interval.

The slope is that of a straight line through the effects of all sizes over log2 of the size, each size counting alike. It is a linear contrast of
independent means whose spreads differ, so its interval is Welch's (1938, 1947): Student's t with the degrees of freedom of Satterthwaite (1946).
Of two sizes it is the interval of ``scipy.stats.ttest_ind(equal_var=False)``. It describes; what was claimed, and by which margin, is `effects`'.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from lab.study.effects import LEVEL, Effect


@dataclass(frozen=True)
class Trend:
    """How much an effect changes with each doubling.

    effects
        by size (parameters, workers, steps), which is above 0; all in one scale.

    Raises
    ------
    ValueError
        for less than two sizes, one that is no number above 0, and effects in several scales.
    """

    effects: Mapping[float, Effect]

    def __post_init__(self) -> None:
        if len(self.effects) < 2 or not all(0 < size < math.inf for size in self.effects):
            raise ValueError(f"sizes {list(self.effects)}: a trend needs two or more numbers above 0")
        if len({effect.scale for effect in self.effects.values()}) > 1:
            raise ValueError("effects in several scales have no common trend")

    @cached_property
    def _weights(self) -> dict[float, float]:
        """What the mean of each size counts in the slope."""
        at = {size: math.log2(size) for size in self.effects}
        middle = math.fsum(at.values()) / len(at)
        return {size: (x - middle) / math.fsum((y - middle) ** 2 for y in at.values()) for size, x in at.items()}

    @cached_property
    def slope(self) -> float:
        """With each doubling, on the line on which effects are judged; not finite where an effect is not."""
        return math.fsum(w * self.effects[size].middle for size, w in self._weights.items())

    @cached_property
    def interval(self) -> tuple[float, float] | None:
        """95 %, of the slope; None where a size has one pair, no spread, or a run that diverged."""
        from scipy.special import stdtrit

        if any(effect.line_interval is None or math.isnan(effect.spread) for effect in self.effects.values()):
            return None
        parts = [
            (w**2 * self.effects[size].spread ** 2 / len(self.effects[size].pairs), len(self.effects[size].pairs) - 1)
            for size, w in self._weights.items()
        ]
        variance = math.fsum(v for v, _ in parts)
        freedom = variance**2 / math.fsum(v**2 / n for v, n in parts)
        half = float(stdtrit(freedom, (1 + LEVEL) / 2)) * math.sqrt(variance)
        return self.slope - half, self.slope + half

    @property
    def direction(self) -> int:
        """1 where the effect rises for sure, −1 where it falls, 0 where the interval has 0 inside, or there is none."""
        low, high = self.interval or (-math.inf, math.inf)
        return 1 if low > 0 else -1 if high < 0 else 0

    @property
    def words(self) -> str:
        """``+1.2 % (0.8 … 1.6) with each doubling``."""
        some = next(iter(self.effects.values()))
        if any(map(any, (effect.num_diverged for effect in self.effects.values()))):
            return "no trend: a run diverged"
        if self.interval is None:
            return f"{some.words(self.slope)} with each doubling, no interval"
        low, high = self.interval
        digits = max(0, 1 - math.floor(math.log10((high - low) / 2)))
        if some.scale == "times":
            shown = [f"{math.exp(x):.{digits}f}" for x in (self.slope, low, high)]
            return f"{shown[0]}× ({shown[1]} … {shown[2]}) with each doubling"
        shown = [f"{x:+.{digits}f}".replace("-", "−") for x in (self.slope, low, high)]
        unit = " %" if some.scale == "percent" else f" {some.unit}".rstrip()
        return f"{shown[0]}{unit} ({shown[1]} … {shown[2]}) with each doubling"
