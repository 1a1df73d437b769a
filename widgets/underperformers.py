"""Who would be better off alone? What clients have of the federation's model, before and after they adapt it, against a model of their own."""

from __future__ import annotations

from dataclasses import dataclass, field

from lab.events import Adapted, Ended, Event, Started, named_way
from lab.runs.growing import Growing
from widgets.answers import plural
from widgets.pictures import Bars, Lines, Note, Picture, Series
from widgets.view import View

TITLE = "Who would be better off alone?"
NOBODY = "No client was compared with a model of its own: set adaptation.local_steps, and clients.held_out, what each is scored on."
SORTED = "{name}: the client in place {x} from below has {y} more than alone\nalone: its own model, trained on its examples only"
OVER_TIME = "{name}, step {x}: {y} clients would be better off alone"


@dataclass(eq=False, repr=False)
class Underperformers(View):
    """Relative scores of clients (r_k: what each has less what it would have alone), from `Adapted`: how many are below 0, and how they are spread.

    ``score`` is what is compared; by default accuracy, or else the first that there is.
    """

    title = TITLE
    reads = (Started, Adapted, Ended)

    score: str = ""
    step: Growing = field(default_factory=Growing, init=False)
    lines: dict[tuple[str, str], Growing] = field(default_factory=dict, init=False)  # by score and way: clients below 0
    last: Adapted | None = field(default=None, init=False)

    def fold(self, event: Event) -> None:
        match event:
            case Started():
                self.step, self.lines, self.last = Growing(), {}, None
            case Adapted():
                self.step.append(event.step)
                for score in event.local_C:
                    for way in event.ways:
                        self.lines.setdefault((score, way), Growing()).append(event.underperformers(way, score))
                self.last = event

    def answer(self) -> str:
        event = self.last
        if event is None or not event.local_C:
            return "No client was compared with a model of its own yet."
        score = self._chosen(event)
        counts = {way: event.underperformers(way, score) for way in event.ways}
        known = len(event.relative_C(event.ways[0], score))
        first, *others = event.ways
        says = f"{counts[first]} of {plural(known, 'client')} would do better alone than with the federation's model {named_way(first)}"
        if others:
            best = min(others, key=counts.__getitem__)
            says += f", {counts[best]} than after {named_way(best)}"
        return f"{says} (by {score}, step {event.step:,})."

    def _chosen(self, event: Adapted) -> str:
        return self.score or ("accuracy" if "accuracy" in event.local_C else next(iter(event.local_C)))

    def pictures(self) -> list[Picture]:
        event = self.last
        if event is None or not event.local_C:
            return [Note(TITLE, NOBODY)]
        if self.score not in ("", *event.local_C):
            raise ValueError(f"score = {self.score[:40]!r} is not known of this run: use {', '.join(event.local_C)}")
        score = self._chosen(event)
        out: list[Picture] = [Note("In numbers", event.words(score)), self._counts(event, score)]
        out.append(self._sorted(event, score))
        return [*out, self._over_time(event, score)] if len(self.step) > 1 else out

    def _counts(self, event: Adapted, score: str) -> Bars:
        counts = [event.underperformers(way, score) for way in event.ways]
        of = [len(event.relative_C(way, score)) for way in event.ways]
        labels = [f"{n} of {all_of_them}" for n, all_of_them in zip(counts, of, strict=True)]
        return Bars(
            f"How many would be better off alone, by {score}?",
            "clients",
            [named_way(way) for way in event.ways],
            [float(n) for n in counts],
            labels,
            list(range(len(counts))),
        )

    def _sorted(self, event: Adapted, score: str) -> Lines:
        """Each way's clients from the worst off to the best; what lies below the line at 0 is its number of bars above."""
        series = []
        for k, way in enumerate(event.ways):
            gains = sorted(event.relative_C(way, score))
            series.append(Series(named_way(way), [*range(1, len(gains) + 1)], gains, colour=k))
        return Lines(
            "By how much is each client better off than alone?",
            "clients, from the worst off",
            f"gain in {score}",
            series,
            floor=(0.0, "as alone"),
            hover=SORTED,
        )

    def _over_time(self, event: Adapted, score: str) -> Lines:
        series = [
            Series(named_way(way), self.step, self.lines[score, way], colour=k) for k, way in enumerate(event.ways)
        ]
        return Lines(
            "How many, as training goes on?", "local step", "clients better off alone", series, hover=OVER_TIME
        )
