"""Is it gone, and is all else still there? Recall of both sets after each way to unlearn, the search for a block, where states went, and attacks."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from lab.events import Event, Redirected, Steered, Unlearned
from widgets.answers import percent
from widgets.pictures import Band, Bars, Lines, Note, Picture, Series
from widgets.view import View

TITLE = "Is it gone, and is all else still there?"
RECALLS = "{name}: {x} of what is to be forgotten is recalled, {y} of what is to be retained"
DISTANCES = (10, 25, 50, 75)  # deviation scores
SETS = {"forget": 3, "retain": 0, "reference": 2}  # with a place in the palette


@dataclass(eq=False, repr=False)
class Unlearning(View):
    """R_f against R_r with the distance to the ideal, the score of each block, states before and after, attacks, requests one after another."""

    title = TITLE
    reads = (Unlearned, Steered, Redirected)

    found: dict[str, dict[str, dict[int, Unlearned]]] = field(
        default_factory=dict, init=False
    )  # by part, name and seed
    steered: dict[int, Steered] = field(default_factory=dict, init=False)
    redirected: Redirected | None = field(default=None, init=False)

    def fold(self, event: Event) -> None:
        if isinstance(event, Unlearned):
            self.found.setdefault(event.part, {}).setdefault(event.name, {})[event.seed] = event
        elif isinstance(event, Steered):
            self.steered[event.seed] = event
        elif isinstance(event, Redirected):
            self.redirected = event

    def mean(self, part: str, name: str, score: str) -> float:
        """Over seeds; NaN where there is none."""
        values = [e.scores[score] for e in self.found.get(part, {}).get(name, {}).values() if score in e.scores]
        return sum(values) / len(values) if values else math.nan

    def answer(self) -> str:
        part = next((p for p in ("lunar", "rival", "before") if self.found.get(p)), None)
        if part is None:
            return "Nothing has been unlearned yet."
        names = list(self.found[part])
        name = min(names, key=lambda n: self.mean(part, n, "deviation")) if part == "rival" else names[0]
        forget, retain = (self.mean(part, name, f"recall_{x}") for x in ("forget", "retain"))
        says = f"{'Before' if part == 'before' else f'After {name}'}, {percent(forget)} of what is to be forgotten is recalled and {percent(retain)} of the rest"
        attacks = self._recovered()
        if attacks:
            says += f"; attacks bring back up to {percent(max(attacks.values()))}"
        return f"{says}."

    def pictures(self) -> list[Picture]:
        if not self.found:
            return [Note(TITLE, "Nothing has been unlearned yet: lab unlearn, or lab.unlearn(), does so.")]
        out: list[Picture] = [Note("In numbers", self.words()), self._recalls()]
        if self.steered:
            out.append(self._layers())
        if self.redirected is not None:
            out += self._states(self.redirected)
        if "attack" in self.found:
            out.append(self._attacks())
        return [*out, *self._one_after_another()]

    def words(self) -> str:
        """What is drawn, in numbers."""
        parts = []
        before = self.found.get("before", {}).get("before", {})
        if before:
            forget, retain = (self.mean("before", "before", f"recall_{x}") for x in ("forget", "retain"))
            parts.append(
                f"Before, {forget:.1%} of what is to be forgotten is recalled and {retain:.1%} of what is to be retained"
            )
        for part, what in (("lunar", "Redirected"), ("rival", "Of rivals")):
            names = list(self.found.get(part, {}))
            if names:
                name = names[0] if part == "lunar" else min(names, key=lambda n: self.mean(part, n, "deviation"))
                forget, retain, deviation = (
                    self.mean(part, name, x) for x in ("recall_forget", "recall_retain", "deviation")
                )
                num = len(self.found[part][name])
                parts.append(
                    f"{what}, {name}: {forget:.1%} and {retain:.1%}, {deviation:.1f} from the ideal (mean of {num} seed{'s' * (num > 1)})"
                )
        attacks = self._recovered()
        if attacks:
            worst = max(attacks, key=lambda name: attacks[name])
            parts.append(f"Of attacks, “{worst}” brings back most: {attacks[worst]:.1%}")
        return ". ".join(parts) + "."

    def _recalls(self) -> Lines:
        ways = [(part, name) for part in ("before", "lunar", "rival") for name in self.found.get(part, {})]
        points = [
            Series(name, [self.mean(part, name, "recall_forget")], [self.mean(part, name, "recall_retain")])
            for part, name in ways
        ]
        return Lines(
            "Recall after each way to unlearn; arcs are as far from the ideal, above left, as they say",
            "recalled of what is to be forgotten",
            "recalled of what is to be retained",
            [*map(_arc, DISTANCES), *points],
            hover=RECALLS,
        )

    def _layers(self) -> Lines:
        blocks = list(range(max(len(e.ignorance_L) for e in self.steered.values())))
        means = [
            np.mean([getattr(e, f"{x}_L") for e in self.steered.values()], 0).tolist() for x in ("ignorance", "ethics")
        ]
        apart = [a - b for a, b in zip(*means, strict=True)]
        lines = zip(("like ignorance, s1", "like other refusals, s2", "S = s1 − s2"), (*means, apart), strict=True)
        return Lines(
            "Behind which block does the vector help?", "block", "similarity", [Series(n, blocks, y) for n, y in lines]
        )

    def _states(self, e: Redirected) -> list[Picture]:
        """Each set as the hull of its points, with its mean as a point of the legend."""
        out: list[Picture] = []
        for when, sets in (("before", e.before), ("after", e.after)):
            means = {n: np.mean(p, 0).tolist() for n, p in sets.items()}
            centres = [Series(n, [x], [y], colour=SETS[n]) for n, (x, y) in means.items()]
            hulls = [hull(points, SETS[name]) for name, points in sets.items()]
            out.append(
                Lines(
                    f"Where prompts lie behind block {e.layer}, {when}",
                    "first axis",
                    "second axis",
                    centres,
                    bands=hulls,
                )
            )
        return out

    def _recovered(self) -> dict[str, float]:
        names = self.found.get("attack", {})
        return {n: x for n in names if math.isfinite(x := self.mean("attack", n, "recall_forget"))}

    def _attacks(self) -> Bars:
        attacked = self._recovered()
        first = next(iter(self.found.get("lunar", {})), None)
        if first is not None:
            attacked = {"no attack": self.mean("lunar", first, "recall_forget")} | attacked
        labels = [f"{x:.1%}" for x in attacked.values()]
        return Bars(
            "What do attacks bring back?",
            "recalled",
            list(attacked),
            list(attacked.values()),
            labels,
            [0] * len(labels),
        )

    def _one_after_another(self) -> list[Picture]:
        out: list[Picture] = []
        done = self.found.get("sequence", {})
        if done:
            x = [float(n) for n in done]
            lines = (("recall_forget", "forgotten so far"), ("recall_retain", "all others"))
            series = [Series(words, x, [self.mean("sequence", n, score) for n in done]) for score, words in lines]
            out.append(Lines("One request after another", "requests", "recalled", series, reach=(0.0, 1.0)))
        together = self.found.get("federation", {})
        if together:
            values = {n: self.mean("federation", n, "deviation") for n in together}
            labels = [f"{v:.1f}, {self.mean('federation', n, 'bytes_up') / 1e6:.2f} MB up" for n, v in values.items()]
            out.append(
                Bars(
                    "Clients that forget together: how far from the ideal?",
                    "deviation score",
                    list(values),
                    list(values.values()),
                    labels,
                )
            )
        return out


def _arc(distance: int) -> Series:
    """Where R_f and R_r are so far from (0, 1)."""
    angles = np.linspace(0, math.pi / 2, 31)
    r = distance / 100
    return Series(
        f"{distance} from the ideal",
        (r * np.sin(angles)).tolist(),
        (1 - r * np.cos(angles)).tolist(),
        faint=True,
        colour=7,
    )


def hull(points: Sequence[Sequence[float]], colour: int) -> Band:
    """The convex hull of points of a plane, as what lies between its lower and its upper edge."""
    ordered = sorted((float(a), float(b)) for a, b in points)
    lowest, highest = dict(reversed(ordered)), dict(ordered)  # by place on the first axis
    low, high = _edge(lowest, 1), _edge(highest, -1)
    axis = sorted({*(a for a, _ in low), *(a for a, _ in high)})
    sides = (np.interp(axis, [a for a, _ in edge], [b for _, b in edge]).tolist() for edge in (low, high))
    below, above = sides
    return Band(axis, below, above, colour, 0.3)


def _edge(values: Mapping[float, float], sign: int) -> list[tuple[float, float]]:
    """From left to right, what bends to the left alone (or to the right, where ``sign`` is −1)."""
    edge: list[tuple[float, float]] = []
    for point in sorted(values.items()):
        while len(edge) > 1 and sign * _turn(edge[-2], edge[-1], point) <= 0:
            edge.pop()
        edge.append(point)
    return edge


def _turn(a: tuple[float, float], b: tuple[float, float], c: tuple[float, float]) -> float:
    return (b[0] - a[0]) * (c[1] - a[1]) - (b[1] - a[1]) * (c[0] - a[0])
