"""Are the labels right that clients work out for themselves? Accuracy and coverage, and where examples lie among the server's anchors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from lab.events import Ended, Event, PseudoLabelled, Started
from lab.runs.growing import Growing
from widgets.answers import percent, plural
from widgets.graphs import Dot, Graph, Link
from widgets.pictures import Lines, Note, Picture, Series
from widgets.view import View

TITLE = "Are the labels right?"
SHARES = "{name}, step {x}: {y}"
LEVELS = 60  # rows of places, so that a picture of many dots is not taller than one of few
ARM = (0.011, 0.02)  # of a cross, as shares of width and height


@dataclass(eq=False, repr=False)
class PseudoLabels(View):
    """Accuracy and coverage of labels over rounds, and latents with anchors, from `PseudoLabelled`."""

    title = TITLE
    reads = (Started, PseudoLabelled, Ended)

    step: Growing = field(default_factory=Growing, init=False)
    accuracy: Growing = field(default_factory=Growing, init=False)
    coverage: Growing = field(default_factory=Growing, init=False)
    first: PseudoLabelled | None = field(default=None, init=False)
    last: PseudoLabelled | None = field(default=None, init=False)
    drawn: PseudoLabelled | None = field(default=None, init=False)  # the last with points

    def fold(self, event: Event) -> None:
        match event:
            case Started():
                self.step, self.accuracy, self.coverage = Growing(), Growing(), Growing()
                self.first = self.last = self.drawn = None
            case PseudoLabelled():
                self.step.append(event.step)
                self.accuracy.append(event.accuracy)
                self.coverage.append(event.coverage)
                self.first, self.last = self.first or event, event
                self.drawn = event if event.points else self.drawn

    def answer(self) -> str:
        seen, first = self.last, self.first
        if seen is None or first is None:
            return "Nobody was given a label yet."
        says = f"At step {seen.step:,}, {percent(seen.coverage)} of {plural(seen.examples, 'example')} get a label"
        if seen.accuracy is not None:
            says += f", {percent(seen.accuracy)} of them the right one"
            if first is not seen and first.accuracy is not None:
                says += f" ({percent(first.accuracy)} at step {first.step:,})"
        return f"{says}."

    def pictures(self) -> list[Picture]:
        if self.first is None or self.last is None:
            return [
                Note(
                    TITLE,
                    "Nobody was given a label yet: methods whose clients have none, such as fedanchor, give them.",
                )
            ]
        change = ""
        if self.first is not self.last and self.first.accuracy is not None and self.last.accuracy is not None:
            moved = 100 * (self.last.accuracy - self.first.accuracy)
            change = f" Since step {self.first.step:,} the share of right ones has moved by {moved:+.1f} points."
        out: list[Picture] = [Note("In numbers", f"{self.last.words()}.{change}"), self._shares()]
        return [*out, self._places(self.drawn)] if self.drawn is not None else out

    def _shares(self) -> Lines:
        series = [
            Series("right", self.step, self.accuracy, colour=0),
            Series("with a label", self.step, self.coverage, colour=1),
        ]
        return Lines(
            "How many get a label, and how many of these are right?",
            "local step",
            "share",
            series,
            hover=SHARES,
            reach=(0.0, 1.0),
        )

    def _places(self, seen: PseudoLabelled) -> Graph:
        """Latents of clients' examples, coloured by the label they got, with anchors and what is wrong marked."""
        place = _Places([*seen.points, *seen.anchors])
        dots, links, named = [], [], set[float]()
        for x, y, label, truth in seen.points:
            known = "no label" if label < 0 else f"label {label:.0f}"
            dots.append(
                Dot(
                    *place(x, y),
                    f"an example of a client: {known}, true class {truth:.0f}",
                    None if label < 0 else label,
                )
            )
            if label not in (-1, truth):
                links += _cross("wrong label", *place(x, y), 3, slanted=True)
        for x, y, c in seen.anchors:
            links += _cross("anchor of the server", *place(x, y), 1)
            name = () if c in named else (f"{c:.0f}",)
            named.add(c)
            dots.append(Dot(*place(x, y), f"an anchor of the server, class {c:.0f}", c, name))
        wrong = sum(label not in (-1, truth) for *_, label, truth in seen.points)
        says = f"{len(seen.points)} examples, {wrong} with a wrong label, and {len(seen.anchors)} anchors; {seen.variance:.0%} of the variance"
        return Graph(
            f"Where do examples lie among anchors? (step {seen.step:,})",
            f"first two principal components: {says}",
            dots,
            links,
            "class",
            tall=max(1, 300 // max(1, len({dot.y for dot in dots}) - 1)),
            radius=4,
        )


class _Places:
    """From coordinates to places in a picture, with a margin."""

    def __init__(self, rows: Sequence[Sequence[float]]):
        self.low = [min(row[k] for row in rows) for k in (0, 1)]
        self.size = [max(row[k] for row in rows) - low or 1.0 for k, low in zip((0, 1), self.low, strict=True)]

    def __call__(self, x: float, y: float) -> tuple[float, float]:
        across, down = ((v - low) / size for v, low, size in zip((x, y), self.low, self.size, strict=True))
        return 0.03 + 0.94 * across, 0.03 + 0.94 * round((1 - down) * LEVELS) / LEVELS


def _cross(name: str, x: float, y: float, colour: int, slanted: bool = False) -> list[Link]:
    dx, dy = ARM
    arms = [((x - dx, y - dy), (x + dx, y + dy)), ((x - dx, y + dy), (x + dx, y - dy))]
    if not slanted:
        arms = [((x - dx, y), (x + dx, y)), ((x, y - dy), (x, y + dy))]
    return [Link(name, arm, 2.0, colour) for arm in arms]
