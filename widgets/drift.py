"""How far do the workers drift apart between two averages, and from what they agreed on?"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from lab.events import Drifted, Ended, Event, Started
from lab.runs.growing import MANY, Growing, Spread
from widgets.answers import last
from widgets.pictures import Lines, Note, Picture, Series, bands
from widgets.view import View

HOVER = "{name}, step {x}: {y}\nRoot mean square over parameters, just before they are averaged; 0 = all alike"


@dataclass(eq=False, repr=False)
class Drift(View):
    """Distance of every worker (thin; of many: bands) from the mean and from the shared parameters, as root mean squares, from `Drifted`."""

    title = "Do the workers drift apart?"
    reads = (Started, Drifted, Ended)

    step: Growing = field(default_factory=Growing, init=False)
    to_mean: _Distances = field(default_factory=lambda: _Distances(), init=False)
    to_shared: _Distances = field(default_factory=lambda: _Distances(), init=False)

    def fold(self, event: Event) -> None:
        match event:
            case Started():
                self.step, self.to_mean, self.to_shared = Growing(), _Distances(), _Distances()
            case Drifted():
                self.step.append(event.step)
                self.to_mean.append(event.to_mean_W)
                self.to_shared.append(event.to_shared_W)

    def answer(self) -> str:
        mean = last(self.step, self.to_mean.all)
        if mean is None:
            return "No look at how far workers are apart yet."
        shared = last(self.step, self.to_shared.all)
        first = float(self.to_mean.all[0])
        was = f", {first:.3g} at step {int(self.step[0]):,}" if mean[0] != self.step[0] and math.isfinite(first) else ""
        agreed = "" if shared is None else f"; {shared[1]:.3g} from what they last agreed on"
        return f"At step {mean[0]:,} workers are {mean[1]:.3g} from their mean (root mean square over parameters){was}{agreed}."

    def pictures(self) -> list[Picture]:
        if not len(self.step):
            return [
                Note(
                    "How far apart are they?",
                    "No look yet: there is one at every evaluation, and before averages of all workers.",
                )
            ]
        out: list[Picture] = [self._lines("How far apart are they?", "distance from the mean", self.to_mean, 0)]
        if self.to_shared.known:
            out.append(self._lines("How far did they move since?", "distance from the shared", self.to_shared, 1))
        return out

    def _lines(self, title: str, y: str, distances: _Distances, colour: int) -> Lines:
        lines = distances.each_W if len(distances.each_W) <= MANY else []
        spread = bands(self.step, distances.spread, colour)
        thin = [Series(f"worker {w}", self.step, d, faint=True, colour=2 + w) for w, d in enumerate(lines)]
        name = "all" + (" (thin: each)" if thin else "")
        y += " (bands: 90 % and 50 % of workers)" if spread else ""
        return Lines(
            title,
            "local step",
            y,
            [*thin, Series(name, self.step, distances.all, colour=colour)],
            hover=HOVER,
            bands=spread,
        )


class _Distances:
    """Of each worker, and the root mean square over those that are up."""

    def __init__(self) -> None:
        self.each_W: list[Growing] = []
        self.spread = Spread()
        self.all, self.known = Growing(), False

    def append(self, distance_W: list[float | None]) -> None:
        self.each_W = self.each_W or [Growing() for _ in distance_W]
        for line, distance in zip(self.each_W, distance_W, strict=True):
            line.append(distance)
        self.spread.append(distance_W)
        up = [d for d in distance_W if d is not None]
        self.all.append((sum(d * d for d in up) / len(up)) ** 0.5 if up else None)
        self.known = self.known or bool(up)
