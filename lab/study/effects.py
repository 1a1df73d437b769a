"""Effects from paired seeds: a mean of paired differences, its interval, and whether it lies on the claimed side of a margin.

What is compared
    Two settings, run with the same seeds: same data in the same order, same start. What differs between the two runs of a seed is then the
    setting; what differs between seeds drops out of the difference.
The interval
    95 %, of the mean of the differences, by Student's t with n − 1 degrees of freedom (Student 1908), as ``scipy.stats.ttest_rel`` gives it.
The margin
    Which difference counts, said before the runs. It cuts the line in two: a claim *holds* where the whole interval lies on the claimed
    side, is *contradicted* where the whole interval lies on the other side, and is *inconclusive* where the interval has the margin
    inside. If the truth lies on the margin, one in twenty is decided all the same: half of them to each side.
Runs that diverged
    An infinite or NaN value is worse than every number (also where a run has nothing to show for another reason), and no t applies to it. The interval is then that of the median, between two of
    the ordered differences (the sign test turned round): it assumes nothing, and has 95 % from six pairs on. A pair of which both
    diverged says nothing and is left out.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, get_args

Better = Literal["lower", "higher"]
Says = Literal["better", "no worse", "equal"]
Scale = Literal["difference", "percent", "times"]

LEVEL = 0.95  # of an interval
POWER = 0.8  # how often as many pairs as are asked for would decide
MOST_PAIRS = 200  # beyond, seeds are not what is missing
SIGNS = 6  # pairs from which on signs alone can decide: 2 · 2⁻⁶ < 0.05 < 2 · 2⁻⁵
USUAL = 5  # pairs that a firm comparison begins with


@dataclass(frozen=True)
class Effect:
    """What a setting changes, over pairs of runs.

    treated, control
        one value a seed, in the same order: pair i is ``treated[i]`` and ``control[i]``. Losses, scores, seconds, distances.
    margin
        which difference counts, ≥ 0, in the scale: a difference, percent of the control, or a factor ≥ 1.
    says
        what is claimed of the treated: ``better`` by more than the margin, ``no worse`` than the control by more than the margin
        (non-inferiority), or ``equal`` up to the margin (equivalence: the interval lies inside ± margin).
    better
        which values are the good ones.
    scale
        ``difference``: treated − control. ``percent``: 100 (treated / control − 1). ``times``: treated / control, whose mean is the
        geometric one. The last two need values above 0.
    label, unit
        which of several effects of one claim this is; of what the difference is, such as ``s``.

    Raises
    ------
    ValueError
        for runs that are no pairs, a margin that is none, and values that the scale cannot take.
    """

    treated: tuple[float, ...]
    control: tuple[float, ...]
    margin: float
    says: Says = "better"
    better: Better = "lower"
    scale: Scale = "difference"
    label: str = ""
    unit: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "treated", tuple(map(float, self.treated)))
        object.__setattr__(self, "control", tuple(map(float, self.control)))
        for name, allowed in (("says", Says), ("better", Better), ("scale", Scale)):
            if getattr(self, name) not in get_args(allowed):
                raise ValueError(f"{name}={getattr(self, name)!r}: use one of {', '.join(get_args(allowed))}")
        if len(self.treated) != len(self.control) or not self.treated:
            raise ValueError(
                f"{len(self.treated)} treated and {len(self.control)} control runs are no pairs: give one of each for every seed"
            )
        least = 1 if self.scale == "times" else 0
        if not least <= self.margin < math.inf:
            raise ValueError(f"margin={self.margin}: say which {self.scale} counts, {least} or more")
        if self.scale != "difference" and min(x for x in (*self.treated, *self.control, 1.0) if not math.isnan(x)) <= 0:
            raise ValueError(f"scale={self.scale!r} needs values above 0: use 'difference'")

    # --- the numbers ---------------------------------------------------------------------------------------------------

    @cached_property
    def pairs(self) -> tuple[float, ...]:
        """What each pair says, on the line on which it is judged: a difference, percent, or the logarithm of a ratio.

        ±∞ where one of the two diverged; a pair of which both did is left out.
        """
        worst = math.inf if self.better == "lower" else -math.inf
        out = []
        for t, c in zip(self.treated, self.control, strict=True):
            if math.isfinite(t) and math.isfinite(c):
                ratio = t / c if self.scale != "difference" else 1.0
                out.append({"difference": t - c, "percent": 100 * (ratio - 1), "times": math.log(ratio)}[self.scale])
            elif math.isfinite(t) or math.isfinite(c):
                out.append(worst if math.isfinite(c) else -worst)
        return tuple(out)

    @cached_property
    def num_diverged(self) -> tuple[int, int]:
        """Of the treated runs, and of the control."""
        return sum(not math.isfinite(x) for x in self.treated), sum(not math.isfinite(x) for x in self.control)

    @cached_property
    def middle(self) -> float:
        """The mean of the pairs, the median where a run diverged; NaN where no pair is left."""
        if not self.pairs:
            return math.nan
        if all(map(math.isfinite, self.pairs)):
            return math.fsum(self.pairs) / len(self.pairs)
        ordered, half = sorted(self.pairs), len(self.pairs) // 2
        below, above = ordered[(len(ordered) - 1) // 2], ordered[half]
        return below if below == above else (below + above) / 2 if below + above == below + above else math.nan

    @cached_property
    def spread(self) -> float:
        """The standard deviation of the pairs (n − 1 below); NaN of one pair, or where a run diverged."""
        if len(self.pairs) < 2 or not all(map(math.isfinite, self.pairs)):
            return math.nan
        return math.sqrt(math.fsum((x - self.middle) ** 2 for x in self.pairs) / (len(self.pairs) - 1))

    @cached_property
    def line_interval(self) -> tuple[float, float] | None:
        """The 95 % interval on the line of `pairs`; None where there is none: one pair, no spread, too few pairs for signs."""
        from scipy.special import stdtrit
        from scipy.stats import binom

        n = len(self.pairs)
        if self.spread > 0 and self._has_spread:
            half = float(stdtrit(n - 1, (1 + LEVEL) / 2)) * self.spread / math.sqrt(n)
            return self.middle - half, self.middle + half
        if n < SIGNS or not self._diverged:
            return None
        ordered, outside = sorted(self.pairs), 0  # so many pairs lie outside at each end
        while 2 * float(binom.cdf(outside, n, 0.5)) <= 1 - LEVEL:
            outside += 1
        return ordered[outside - 1], ordered[-outside]

    @property
    def _diverged(self) -> bool:
        return any(map(math.isinf, self.pairs))

    @property
    def _has_spread(self) -> bool:
        """Whether the pairs differ by more than rounding."""
        finite = [abs(x) for x in (*self.treated, *self.control) if math.isfinite(x)]
        size = {"difference": max(finite, default=0.0), "percent": 100.0, "times": 1.0}[self.scale]
        return self.spread > 1e-12 * size

    @cached_property
    def claimed(self) -> tuple[float, float]:
        """Between which points of the line of `pairs` the effect lies if the claim is true."""
        m = math.log(self.margin) if self.scale == "times" else self.margin
        if self.says == "equal":
            return -m, m
        edge = -m if self.says == "better" else m
        return (-math.inf, edge) if self.better == "lower" else (-edge, math.inf)

    @cached_property
    def verdict(self) -> Literal["holds", "contradicted", "inconclusive"]:
        if self.line_interval is None:
            return "inconclusive"
        (low, high), (left, right) = self.line_interval, self.claimed
        if (left == -math.inf or left < low) and (right == math.inf or high < right):
            return "holds"
        return "contradicted" if high < left or low > right else "inconclusive"

    @cached_property
    def p(self) -> float:
        """The smallest share of errors at which this would be decided: below 0.05 where it is; 1 where there is no interval."""
        if self.line_interval is None:
            return 1.0
        left, right = self.claimed
        inside = [self._beyond(edge, sign) for edge, sign in ((left, 1), (right, -1)) if math.isfinite(edge)]
        outside = [self._beyond(edge, -sign) for edge, sign in ((left, 1), (right, -1)) if math.isfinite(edge)]
        return min(1.0, 2 * max(inside), 2 * min(outside))

    def _beyond(self, edge: float, sign: int) -> float:
        """How likely pairs as far beyond the edge as these are, upwards (1) or downwards (−1), if the truth lay on the edge."""
        from scipy.special import stdtr
        from scipy.stats import binom

        n = len(self.pairs)
        if self._diverged:
            return float(binom.cdf(sum(sign * (x - edge) <= 0 for x in self.pairs), n, 0.5))
        return float(stdtr(n - 1, -sign * (self.middle - edge) / (self.spread / math.sqrt(n))))

    # --- what would decide ---------------------------------------------------------------------------------------------

    @cached_property
    def num_pairs_to_decide(self) -> int | None:
        """How many pairs would decide four times in five, were the truth the mean seen and the spread the spread seen.

        By the noncentral t (power of the one-sided test at 2.5 %). None where that cannot be said (no spread known), or where it is
        more than 200.
        """
        if not self.spread > 0 or not self._has_spread:
            return None
        tried = range(2, MOST_PAIRS + 1)
        found = bisect_left(tried, POWER, key=self.power)  # more pairs decide more often
        return tried[found] if found < len(tried) else None

    def power(self, num_pairs: int) -> float:
        """How often so many pairs would decide to the side on which the mean lies, if mean and spread are as seen."""
        left, right = self.claimed
        edges = [edge for edge in (left, right) if math.isfinite(edge)]
        if left < self.middle < right:  # beyond each edge at once: at least so often
            return max(0.0, 1 - sum(1 - self._power(abs(self.middle - edge), num_pairs) for edge in edges))
        return self._power(min(abs(self.middle - edge) for edge in edges), num_pairs)

    def _power(self, distance: float, n: int) -> float:
        from scipy.special import nctdtr, stdtrit

        away = distance * math.sqrt(n) / self.spread
        if away > 30:  # certain, and beyond what the noncentral t is computed for
            return 1.0
        return 1 - float(nctdtr(n - 1, away, float(stdtrit(n - 1, (1 + LEVEL) / 2))))

    @cached_property
    def would_decide(self) -> str:
        """What an inconclusive effect lacks, in words; empty where it is decided."""
        if self.verdict != "inconclusive":
            return ""
        n = len(self.pairs)
        if not n:
            return "neither run of any pair gave a number: a setting in which one of them does"
        if self._diverged:
            few = f"they decide from {SIGNS} pairs on" if n < SIGNS else f"these {n} lie on both sides: more pairs"
            return f"where a run gave no number only signs count, and {few}"
        if n == 1:
            return f"one pair has no interval: {USUAL} pairs would give one"
        if not self._has_spread:
            return (
                f"all {n} differences are the same, so their spread is not known: values that are not rounded, "
                "or seeds that change something; where nothing is random, count (Claim.exact)"
            )
        more = "longer runs or a larger size, where the difference may leave the margin"
        if self.num_pairs_to_decide is None:
            return f"more than {MOST_PAIRS} pairs at this spread, so not seeds: {more}"
        pairs = f"about {self.num_pairs_to_decide} pairs, were mean and spread to stay ({n} here)"
        small = abs(self.middle) <= abs(min(self.claimed, key=abs)) and self.says == "better"
        return f"{pairs}, or {more}" if small else pairs

    # --- in words ------------------------------------------------------------------------------------------------------

    @property
    def what_counts(self) -> str:
        """The margin in words, as it was said before the runs."""
        other = "higher" if self.better == "lower" else "lower"
        if self.scale == "times":
            m = f"{self.margin:.3g}"
            if self.says == "equal":
                return f"within a factor of {m}"
            if self.says == "no worse":
                return f"less than {m} times {other}"
            return self.better if self.margin == 1 else f"more than {m} times {self.better}"
        m = f"{self.margin:g} %" if self.scale == "percent" else f"{self.margin:g} {self.unit}".strip()
        if self.says == "equal":
            return f"less than {m} apart"
        if self.says == "no worse":
            return f"less than {m} {other}" if self.margin else f"not {other}"
        return f"lower by more than {m}".replace("lower", self.better) if self.margin else self.better

    def of_line(self, x: float) -> float:
        """A point of the line of `pairs`, as it is shown: a difference, percent, or a ratio."""
        return math.exp(x) if self.scale == "times" else x

    def words(self, x: float) -> str:
        """A point of the line of `pairs` in words: ``+0.012``, ``−1.3 %``, ``12.4×``."""
        if math.isnan(x):
            return "–"
        if math.isinf(x):
            return {"times": "∞×" if x > 0 else "0×"}.get(self.scale, "+∞" if x > 0 else "−∞")
        if self.scale == "times":
            return f"{math.exp(x):.3g}×"
        low, high = self.line_interval or (x, x)
        fine = next((y for y in ((high - low) / 2, self.margin, abs(self.middle)) if 0 < y < math.inf), 1.0)
        text = f"{x:+.{min(8, max(0, 1 - math.floor(math.log10(fine))))}f}".replace("-", "−")
        return text + (" %" if self.scale == "percent" else f" {self.unit}".rstrip())

    @property
    def measured(self) -> str:
        """``−0.0123 (−0.0201 … −0.0045), 3 pairs``, and how many runs diverged."""
        n = len(self.treated)
        interval = f" ({' … '.join(map(self.words, self.line_interval))})" if self.line_interval else ""
        pairs = "one pair" if n == 1 else f"{n} pairs"
        silent = "".join(
            f", {bad} of {n} {who} runs without a number"
            for bad, who in zip(self.num_diverged, ("treated", "control"), strict=True)
            if bad
        )
        median = "median " if self._diverged else ""
        return f"{f'{self.label}: ' if self.label else ''}{median}{self.words(self.middle)}{interval}, {pairs}{silent}"

    # --- kept ----------------------------------------------------------------------------------------------------------

    def to_json(self) -> dict[str, Any]:
        """As JSON has it: a run that diverged is null."""
        runs = {
            name: [x if math.isfinite(x) else None for x in values]
            for name, values in (("treated", self.treated), ("control", self.control))
        }
        words = {name: getattr(self, name) for name in ("margin", "says", "better", "scale", "label", "unit")}
        return {**runs, **words}

    @classmethod
    def from_json(cls, kept: Mapping[str, Any]) -> Effect:
        runs = {name: tuple(math.nan if x is None else float(x) for x in kept[name]) for name in ("treated", "control")}
        return cls(**{**kept, **runs})


def holm(ps: Sequence[float]) -> list[float]:
    """p-values after Holm's correction (1979) for as many looks as there are: below 0.05 in one of them, by chance, one time in twenty."""
    order = sorted(range(len(ps)), key=lambda i: ps[i])
    out, highest = [1.0] * len(ps), 0.0
    for k, i in enumerate(order):
        highest = max(highest, min(1.0, (len(ps) - k) * ps[i]))
        out[i] = highest
    return out


def paired_seeds(text: str, settings: Sequence[str]) -> dict[str, list[int]]:
    """The seeds of each setting: ``0,1,2`` or ``5-36`` for all of them, or a list for each with ``;`` between (``5-36; 5-20``).

    Seeds that a first look was taken at do not belong among those that judge: take fresh ones, as many as that look said would decide.

    Raises
    ------
    ValueError
        for what is no seed, a seed given twice, and other than one list or as many as there are settings.
    """
    lists = [seeds_in(one) for one in text.split(";")]
    if len(lists) not in (1, len(settings)):
        raise ValueError(
            f"seeds {text!r}: {len(lists)} lists for {len(settings)} settings ({', '.join(settings)}); give one for all, or one for each"
        )
    return dict(zip(settings, lists * len(settings) if len(lists) == 1 else lists, strict=True))


def seeds_in(text: str) -> list[int]:
    """One list of seeds: ``0,1,2`` or ``5-36``. Raises ValueError for what is no seed, and one given twice."""
    found: list[int] = []
    for part in text.split(","):
        first, _, last = part.strip().partition("-")
        if not (first.isdigit() and (last or first).isdigit()):
            raise ValueError(f"seeds {text.strip()!r}: {part.strip()!r} is none; write 0,1,2 or 5-36")
        found += range(int(first), int(last or first) + 1)
    if len(set(found)) < max(1, len(found)):
        raise ValueError(f"seeds {text.strip()!r}: each once, and a range from its lower end")
    return found
