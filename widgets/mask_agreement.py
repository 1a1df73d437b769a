"""Do they keep the same weights? The masks of clients that prune, and of the server's model, round by round."""

from __future__ import annotations

from dataclasses import dataclass, field

from lab.events import Ended, Event, Masked, Started
from lab.runs.growing import Growing
from widgets.answers import percent, plural
from widgets.pictures import Lines, Note, Picture, Series
from widgets.view import View

TITLE = "Do clients keep the same weights?"
AGREEMENT = "{name}, step {x}: {y}\nIoU: weights in both masks over weights in either; 1 = the same weights"
GROWN = "step {x}: {y} weights\nzero when clients fetched, not zero when they had trained; all clients of the round together"
SPARSITY = "{name}, step {x}: {y} of the weights that can be pruned are zero"
SERIES = ("mean", "least", "server", "before", "regrown", "realised", "handed in")


@dataclass(eq=False, repr=False)
class MaskAgreement(View):
    """Agreement of masks (IoU), weights that grow back, and sparsity, from `Masked`."""

    title = TITLE
    reads = (Started, Masked, Ended)

    step: Growing = field(default_factory=Growing, init=False)
    lines: dict[str, Growing] = field(default_factory=lambda: {name: Growing() for name in SERIES}, init=False)
    last: Masked | None = field(default=None, init=False)
    rounds_at_zero: int = field(default=0, init=False)  # in which nothing had grown back

    def fold(self, event: Event) -> None:
        match event:
            case Started():
                self.step, self.lines = Growing(), {name: Growing() for name in SERIES}
                self.last, self.rounds_at_zero = None, 0
            case Masked():
                self._handed_in(event)

    def _handed_in(self, event: Masked) -> None:
        self.step.append(event.step)
        values = (
            event.between.get("mean"),
            event.between.get("least"),
            event.with_server["mean"],
            event.with_before,
            event.regrown,
            event.sparsity,
            1 - event.kept / event.num_weights,
        )
        for name, value in zip(SERIES, values, strict=True):
            self.lines[name].append(value)
        self.last, self.rounds_at_zero = event, self.rounds_at_zero + (event.regrown == 0)

    def answer(self) -> str:
        seen = self.last
        if seen is None:
            return "No client has handed in what it has pruned yet."
        which = "two clients share" if seen.between else "client and server share"
        mean = seen.between["mean"] if seen.between else seen.with_server["mean"]
        least = f", at least {percent(seen.between['least'])}" if seen.between else ""
        grown = f"{plural(seen.regrown, 'weight')} grew back at clients"
        return f"At step {seen.step:,}, {which} {percent(mean)} of the weights that either keeps{least}; {grown}."

    def pictures(self) -> list[Picture]:
        if self.last is None:
            says = "No client has handed in what it has pruned: a round ends every method.sync_every steps."
            return [Note(TITLE, says)]
        words = f"{self.last.words()}. In {self.rounds_at_zero:,} of {len(self.step):,} rounds nothing had grown back."
        return [Note("In the last round", words), self._agreement(), self._regrown(), self._sparsity()]

    def _agreement(self) -> Lines:
        names = {
            "mean": "two clients, mean",
            "least": "two clients, least",
            "server": "client and server",
            "before": "server and before",
        }
        series = [Series(says, self.step, self.lines[name], colour=k) for k, (name, says) in enumerate(names.items())]
        return Lines("How far do masks agree?", "local step", "IoU of masks", series, hover=AGREEMENT, reach=(0.0, 1.0))

    def _regrown(self) -> Lines:
        series = [Series("weights", self.step, self.lines["regrown"])]
        return Lines("How much grows back at clients?", "local step", "weights, all clients", series, hover=GROWN)

    def _sparsity(self) -> Lines:
        series = [
            Series("the server's model", self.step, self.lines["realised"], colour=0),
            Series("what a client hands in", self.step, self.lines["handed in"], colour=1),
        ]
        return Lines(
            "How sparse is the model?", "local step", "share of weights at 0", series, hover=SPARSITY, reach=(0.0, 1.0)
        )
