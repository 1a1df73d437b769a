"""Does it pay to go through the body again? Loss against iterations, how far the state still moves, and which tokens have settled."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from lab.events import Ended, Event, Iterated, Started
from lab.runs.growing import Growing
from widgets.answers import plural
from widgets.pictures import Lines, Note, Picture, Series
from widgets.view import View

TITLE = "Does it pay to go through the body again?"
LOSS = "{name}, {x} iterations: {y}"
CHANGE = "iteration {x}: {y}\nhow far the direction of the state moves, mean over tokens; 0: it has settled"
SETTLED = "iteration {x}: {y} of the targets have the likeliest token that they have in the end"


@dataclass(eq=False, repr=False)
class Iterations(View):
    """Loss with each number of iterations, change of the state, and settled tokens, from `Iterated`: at first and now."""

    title = TITLE
    reads = (Started, Iterated, Ended)

    step: Growing = field(default_factory=Growing, init=False)
    losses: dict[int, Growing] = field(default_factory=dict, init=False)  # by number of iterations
    last: Iterated | None = field(default=None, init=False)

    def fold(self, event: Event) -> None:
        match event:
            case Started():
                self.step, self.losses, self.last = Growing(), {}, None
            case Iterated():
                self.step.append(event.step)
                for r, x in zip(event.iterations, event.loss_R, strict=True):
                    self.losses.setdefault(r, Growing()).append(x)
                self.last = event

    def answer(self) -> str:
        seen = self.last
        if seen is None:
            return "Nothing has been evaluated yet."
        known = {r: x for r, x in zip(seen.iterations, seen.loss_R, strict=True) if x is not None}
        if not known:
            return f"At step {seen.step:,} no loss is a finite number."
        best, fewest = min(known, key=lambda r: known[r]), min(known)
        rest = "" if best == fewest else f", {known[fewest] - known[best]:.3g} less than with {fewest}"
        many = plural(best, "iteration")
        return f"At step {seen.step:,} the loss is least with {many}: {known[best]:.4g} nats{rest}; it is trained with {seen.trained}."

    def pictures(self) -> list[Picture]:
        if self.last is None:
            return [
                Note(
                    TITLE,
                    "Nothing has been evaluated yet, or the model goes through itself once (model=abbie does so more often).",
                )
            ]
        seen, k = self.last, list(range(1, 1 + len(self.last.change_K)))
        return [
            Note("In numbers", seen.words()),
            Lines(
                f"What is the loss after more iterations? (step {seen.step:,})",
                f"iterations; trained with {seen.trained}",
                "validation loss, nats",
                [Series("loss", seen.iterations, _gaps(seen.loss_R))],
                hover=LOSS,
            ),
            Lines(
                "Has it learnt to use them?",
                "local step",
                "validation loss, nats",
                [Series(f"{r} iteration{'s' * (r > 1)}", self.step, x) for r, x in self.losses.items()],
            ),
            Lines(
                "Does the state settle?",
                "iteration",
                "change of its direction",
                [Series("change", k, _gaps(seen.change_K))],
                log_y=True,
                hover=CHANGE,
            ),
            Lines(
                "Do tokens settle?",
                "iteration",
                "share of targets",
                [Series("settled", k, seen.settled_K)],
                hover=SETTLED,
                reach=(0.0, 1.0),
            ),
        ]


def _gaps(values: Sequence[float | None]) -> list[float]:
    return [math.nan if x is None else x for x in values]
