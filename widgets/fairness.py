"""Who gains, who loses? How the scores of a federation's model are spread over its clients."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from lab.events import BINS, ClientsScored, Ended, Event, Started
from lab.runs.growing import Growing
from widgets.answers import percent, plural
from widgets.pictures import Band, Lines, Note, Picture, Series
from widgets.view import Control, View

BANDS = (("p5", "p95"), ("p25", "p75"))
MAX_CLIENTS = 5  # with a line of their own
SHARED, OWN = 0, 1  # colours: the agreed model, and what each client has
WHAT = "shared: the agreed model; own: that with what a client keeps. On examples of its own that it does not train on"
OVER_TIME = "{name}, step {x}: {y}\n" + WHAT
SPREAD = "{name}: {y} clients around {x}\n" + WHAT


class _Look(NamedTuple):
    """What was seen of one client."""

    step: int
    shared: dict[str, float]
    own: dict[str, float]


@dataclass(eq=False, repr=False)
class Fairness(View):
    """Scores of the agreed model, and of what each client has, as distributions over clients, from `ClientsScored`.

    ``clients``: those who get a line of their own, as ``3, 17``, in the rounds in which they took part. ``score`` shows ``loss`` or that
    score alone; by default each of them.
    """

    title = "Who gains, who loses?"
    reads = (Started, ClientsScored, Ended)

    clients: str = ""
    score: str = ""
    step: Growing = field(default_factory=Growing, init=False)
    lines: dict[tuple[str, str, str], Growing] = field(default_factory=dict, init=False)  # by model, score, number
    of_client: dict[int, list[_Look]] = field(default_factory=dict, init=False)
    last: ClientsScored | None = field(default=None, init=False)

    def fold(self, event: Event) -> None:
        match event:
            case Started():
                self.step, self.lines, self.of_client, self.last = Growing(), {}, {}, None
            case ClientsScored():
                self._looked(event)

    def _looked(self, event: ClientsScored) -> None:
        known = len(self.step)
        for model, by_score in (("shared", event.shared), ("own", event.own)):
            for score, about in by_score.items():
                for name in ("mean", "worst_tenth", "p50", *(p for band in BANDS for p in band)):
                    line = self.lines.setdefault((model, score, name), Growing())
                    line.extend([None] * (known - len(line)))
                    line.append(about.get(name))
        self.step.append(event.step)
        for k, client in enumerate(event.clients):
            look = _Look(
                event.step,
                *({s: x for s, of in by.items() if (x := of[k]) is not None} for by in (event.shared_C, event.own_C)),
            )
            self.of_client.setdefault(client, []).append(look)
        self.last = event

    def controls(self) -> list[Control]:
        return [Control("clients", "clients", self.clients, hint="their numbers, as 3, 17")]

    def answer(self) -> str:
        seen = self.last
        if seen is None or not seen.shared:
            return "No client was scored yet."
        score = self.score or next(iter(seen.shared))
        about, gain = seen.shared[score], seen.gain.get(score)
        if not about["num"]:
            return f"At step {seen.step:,} no client has an example that counts."
        says = (
            f"{score.capitalize()} over {plural(int(about['num']), 'client')} at step {seen.step:,}: {about['mean']:.4g} on average, "
            f"{about['worst_tenth']:.4g} for the worst-off tenth"
        )
        if gain and gain["num"]:
            says += f"; {percent(gain['share'])} do better with what each keeps"
        return f"{says}."

    def pictures(self) -> list[Picture]:
        if self.last is None or not self.last.shared:
            return [
                Note(
                    "Who gains, who loses?",
                    "No client was scored yet: set clients.held_out, the share of its own examples that each does not train on.",
                )
            ]
        scores = [self.score] if self.score else list(self.last.shared)
        if self.score not in ("", *self.last.shared):
            raise ValueError(f"score = {self.score[:40]!r} is not known of this run: use {', '.join(self.last.shared)}")
        chosen = self._chosen()
        out: list[Picture] = [Note("In numbers", "\n".join(map(self.last.words, scores)))]
        for score in scores:
            out += [self._over_time(score, chosen), self._at_last(self.last, score)]
        return out

    def _chosen(self) -> list[int]:
        """The clients that were asked for. Raises ValueError for words, and for those that never took part when it was looked."""
        words = [word for word in self.clients.replace(",", " ").split() if word]
        if not all(word.isdecimal() for word in words) or len(words) > MAX_CLIENTS:
            raise ValueError(f"clients = {self.clients[:40]!r}: write up to {MAX_CLIENTS} numbers, as 3, 17")
        unknown = [word for word in words if int(word) not in self.of_client]
        if unknown:
            some = ", ".join(map(str, sorted(self.of_client)[:8]))
            raise ValueError(f"client {unknown[0]} did not take part when clients were scored: try {some}")
        return [int(word) for word in words]

    def _over_time(self, score: str, chosen: list[int]) -> Lines:
        """The mean and the worst tenth; bands for the agreed model alone, since two would hide each other."""

        series = [
            Series(f"{model}, {words}", self.step, self.lines[model, score, what], colour=colour)
            for model, colour in (("shared", SHARED), ("own", OWN))
            for what, words in (("mean", "mean"), ("worst_tenth", "worst tenth"))
            if (model, score, what) in self.lines
        ]
        for k, client in enumerate(chosen):
            looks = self.of_client[client]
            for name, by in (("shared", [x.shared for x in looks]), ("own", [x.own for x in looks])):
                at = [(look.step, scores[score]) for look, scores in zip(looks, by, strict=True) if score in scores]
                if at:
                    series.append(
                        Series(f"client {client}, {name}", [x for x, _ in at], [y for _, y in at], colour=2 + k)
                    )
        bands = [
            Band(self.step, self.lines["shared", score, low], self.lines["shared", score, high], SHARED)
            for low, high in BANDS
        ]
        return Lines(
            f"How is the {score} spread over clients?",
            "local step",
            f"{score} (bands: 90 % and 50 % of clients)",
            series,
            hover=OVER_TIME,
            bands=bands,
        )

    def _at_last(self, event: ClientsScored, score: str) -> Lines:
        """How many clients have which score, as stairs."""
        found = event.histogram[score]
        low, high = found["ends"]
        x = np.repeat(np.linspace(low, high, BINS + 1), 2)
        series, bands = list[Series](), list[Band]()
        for model, name, colour in (("shared", "shared", SHARED), ("own", "own", OWN)):
            if model in found:
                stairs = np.concatenate([[0.0], np.repeat(found[model], 2), [0.0]])
                series.append(Series(name, x, stairs, colour=colour))
                bands.append(Band(x, np.zeros(len(x)), stairs, colour))
        return Lines(
            f"Who has which {score}, at step {event.step:,}?", score, "clients", series, hover=SPREAD, bands=bands
        )
