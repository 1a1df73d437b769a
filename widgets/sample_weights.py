"""Which samples count? Weights by domain over time, how they and their scores are spread, and how much of the data is left."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from lab.events import Ended, Event, Started, Weighted
from lab.runs.growing import Growing
from widgets.answers import percent
from widgets.pictures import Band, Lines, Note, Picture, Series
from widgets.view import View

TITLE = "Which samples count?"
OVER_TIME = "{name}, step {x}: mean weight {y}\nof the samples since the last look"
RATIO = "{name}, step {x}: {y}"
SPREAD = "{name}: {y} of the samples, at {x}"


@dataclass(eq=False, repr=False)
class SampleWeights(View):
    """Weights by domain, the effective share of data, and histograms of weights and scores, from `Weighted`: at first and now."""

    title = TITLE
    reads = (Started, Weighted, Ended)

    step: Growing = field(default_factory=Growing, init=False)
    weights: dict[str, Growing] = field(default_factory=dict, init=False)  # by domain
    mean: Growing = field(default_factory=Growing, init=False)
    effective: Growing = field(default_factory=Growing, init=False)
    first: Weighted | None = field(default=None, init=False)
    last: Weighted | None = field(default=None, init=False)

    def fold(self, event: Event) -> None:
        match event:
            case Started():
                self.step, self.mean, self.effective, self.weights = Growing(), Growing(), Growing(), {}
                self.first = self.last = None
            case Weighted() if event.samples:
                self.step.append(event.step)
                self.mean.append(event.weight)
                self.effective.append(event.effective)
                for name, w in zip(event.domains, event.weight_D, strict=True):
                    self.weights.setdefault(name, Growing()).append(w)
                self.first, self.last = self.first or event, event

    def answer(self) -> str:
        seen = self.last
        if seen is None or not seen.by_domain:
            return "No sample has been weighed yet."
        pairs = [*seen.by_domain.items()]  # the highest weight first
        (most, high), (least, low) = pairs[0], pairs[-1]
        says = f"At step {seen.step:,} samples of {most} count {high:.3g} on average"
        says += f", those of {least} {low:.3g}" if len(pairs) > 1 else ""
        if seen.effective is not None:
            says += f"; all together are worth {percent(seen.effective)} of as many with equal weights"
        return f"{says}."

    def pictures(self) -> list[Picture]:
        if self.first is None or self.last is None:
            return [Note(TITLE, "No sample has been weighed yet, or the run weighs none (weighting.by=adapt does).")]
        shown: list[Picture] = [Note("In numbers", self._words(self.first, self.last)), self._by_domain(self.last)]
        shown.append(
            Lines(
                "How much of the data is left?",
                "local step",
                "share of samples",
                [
                    Series("mean weight", self.step, self.mean),
                    Series("effective", self.step, self.effective),
                ],
                hover=RATIO,
                reach=(0.0, 1.0),
            )
        )
        for what, title in (("weights", "How are weights spread?"), ("scores", "How are scores spread?")):
            picture = self._spread(title, what, self.first, self.last)
            shown += [picture] if picture is not None else []
        return shown

    def _words(self, first: Weighted, last: Weighted) -> str:
        says = f"{last.words().capitalize()}."
        names = [*last.by_domain]
        if len(names) > 1 and first is not last:
            gaps = [_gap(e.by_domain, names[0], names[-1]) for e in (first, last)]
            if None not in gaps:
                says += f" From {names[-1]} to {names[0]} it is {gaps[1]:+.3f}, after {gaps[0]:+.3f} at step {first.step:,}."
        return says

    def _by_domain(self, last: Weighted) -> Lines:
        order = [*last.by_domain, *(name for name in self.weights if name not in last.by_domain)]
        series = [Series(name, self.step, self.weights[name]) for name in order]
        return Lines("Whose samples count?", "local step", "mean weight", series, hover=OVER_TIME)

    def _spread(self, title: str, what: str, first: Weighted, last: Weighted) -> Lines | None:
        """At first and now, as stairs."""
        series, bands = list[Series](), list[Band]()
        for event, colour in ((last, 0),) if first is last else ((first, 6), (last, 0)):
            found: Mapping[str, Sequence[float]] = getattr(event, what)
            if not found:
                continue
            (low, high), num = found["ends"], found["num"]
            x = np.repeat(np.linspace(low, high, len(num) + 1), 2)
            stairs = np.concatenate([[0.0], np.repeat(np.asarray(num) / max(1, sum(num)), 2), [0.0]])
            series.append(Series(f"step {event.step:,}", x, stairs, colour=colour))
            bands.append(Band(x, np.zeros(len(x)), stairs, colour))
        if not series:
            return None
        return Lines(title, what.removesuffix("s"), "share of samples", series, hover=SPREAD, bands=bands)


def _gap(weights: Mapping[str, float], high: str, low: str) -> float | None:
    """By how much more a domain counts than another."""
    found = weights.get(high, math.nan) - weights.get(low, math.nan)
    return found if math.isfinite(found) else None
