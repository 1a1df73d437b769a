"""Whose style gives itself away? How many texts of an imitator pass for an author's, which defences notice, and what adapters of federations tell."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from lab.events import CellDone, Defended, Ended, Event, Imitated
from lab.systems.imitation.found import PEOPLE, Found, Row
from widgets.answers import percent
from widgets.pictures import Band, Bars, Lines, Note, Picture, Series
from widgets.view import Control, View

TITLE = "Whose style gives itself away?"
NOTHING = "Nobody has been imitated yet: feed this view the events of an audit (lab.systems.imitation.audit.audit)."
RATE = "{name}, {x} messages: {y} of texts pass for the author's, mean over authors"
DETECTED = "{name}, {x} messages: AUROC {y}, mean over authors\n0.5: no better than a guess; below, the author's own look more like a model's"
LIKE = "{name}, {x} messages: {y}, mean over authors"
SIMILAR = {
    "chrf": "chrF to the author's own",
    "bleu": "BLEU to the author's own",
    "divergence": "divergence of 3-grams, bits",
    "copied": "longest stretch that was copied, share",
}


@dataclass(eq=False, repr=False)
class StyleLeak(View):
    """False accepts against messages, with bands, for each way of fine-tuning and each verifier; detectors; likeness; federations.

    way
        of fine-tuning, whose defences are drawn; by default the last that there is.
    """

    title = TITLE
    reads = (Defended, Imitated, CellDone, Ended)

    way: str = ""
    found: Found = field(default_factory=Found, init=False)

    def fold(self, event: Event) -> None:
        if isinstance(event, CellDone) and event.step == 1:  # an audit begins
            self.found = Found()
        self.found.add(event)

    def controls(self) -> list[Control]:
        ways = self.found.ways
        return [Control("way", "fine-tuned by", self._way, ways)] if len(ways) > 1 else []

    @property
    def _way(self) -> str:
        ways = self.found.ways
        if self.way not in ("", *ways):
            raise ValueError(f"way = {self.way[:40]!r} is not known of this audit: use {', '.join(ways)}")
        return self.way or (ways[-1] if ways else "")

    def answer(self) -> str:
        f = self.found
        if not f.imitated:
            return "Nobody has been imitated yet."
        rows = f.counts(self._way) if f.ways else f.federated
        if not rows:
            return "Nobody has been imitated from messages yet."
        row = rows[-1] if f.ways else max(rows, key=lambda r: f.rate(r, PEOPLE))
        low, high = f.band(row, PEOPLE)
        who = f"a model tuned on {row.messages} messages" if f.ways else row.name
        return (
            f"{percent(f.rate(row, PEOPLE))} of texts by {who} pass for the author's (95 % band: {percent(low)} to {percent(high)}), "
            f"as {percent(self._impostors(PEOPLE))} of other people's own do."
        )

    def pictures(self) -> list[Picture]:
        f = self.found
        if not f.imitated:
            return [Note(TITLE, NOTHING)]
        out: list[Picture] = [Note("In numbers", self.words())]
        if f.ways:
            rows = f.counts(self._way)
            out += [self._by_way(), self._by_verifier(rows), self._by_detector(rows), self._likeness(rows)]
        out += [self._federations()] if f.federated else []
        return [*out, Note("Every number", f.words())]

    def words(self) -> str:
        """What is drawn, in short: the most messages, and the adapter that gives most away."""
        f, parts = self.found, list[str]()
        if f.ways:
            row = f.counts(self._way)[-1]
            low, high = f.band(row, PEOPLE)
            parts.append(
                f"Of texts by a model that was fine-tuned ({self._way}) on {row.messages} messages {f.rate(row, PEOPLE):.0%} ({low:.0%} to {high:.0%}) pass "
                f"for the author's, with a verifier of {PEOPLE} that lets {self._impostors(PEOPLE):.0%} of other people's own texts pass"
            )
            others = {v: f.rate(row, v) for v in f.verifiers if v != PEOPLE}
            if others:
                least = min(others, key=lambda v: others[v])
                parts.append(f"least passes with {least}: {others[least]:.0%}")
        if f.federated:
            most = max(f.federated, key=lambda r: f.rate(r, PEOPLE))
            parts.append(f"of adapters of federations {most.name} gives most away: {f.rate(most, PEOPLE):.0%}")
        return "; ".join(parts) + "."

    def _by_way(self) -> Lines:
        """Of the verifier that everybody could have."""
        return self._rates(
            f"How many texts pass for the author's? (verifier of {PEOPLE})",
            [(way, self.found.counts(way), PEOPLE) for way in self.found.ways],
            (self._impostors(PEOPLE), "other people's own texts"),
        )

    def _by_verifier(self, rows: list[Row]) -> Lines:
        return self._rates(
            f"Which verifier holds? (imitated by {self._way})", [(v, rows, v) for v in self.found.verifiers], None
        )

    def _rates(self, title: str, lines: list[tuple[str, list[Row], str]], floor: tuple[float, str] | None) -> Lines:
        series, bands = [], []
        for k, (name, rows, verifier) in enumerate(lines):
            x = [float(r.messages) for r in rows]
            series.append(Series(name, x, [self.found.rate(r, verifier) for r in rows], colour=k))
            low, high = zip(*(self.found.band(r, verifier) for r in rows), strict=True)
            bands.append(Band(x, [*low], [*high], k))
        return Lines(
            title,
            "messages of the author; bands: 95 %, bootstrap",
            "share that passes",
            series,
            floor=floor,
            hover=RATE,
            reach=(0.0, 1.0),
            bands=bands,
        )

    def _impostors(self, verifier: str) -> float:
        """Share of other people's texts that pass, on average; 0 where nothing is known."""
        known = [d.impostors[verifier] for d in self.found.defended.values() if verifier in d.impostors]
        return float(np.mean(known)) if known else 0.0

    def _by_detector(self, rows: list[Row]) -> Lines:
        names = list(next(iter(self.found.imitated[rows[0]].values()))[0].detected)
        x = [float(r.messages) for r in rows]
        series = [
            Series(name, x, [float(np.mean([*self.found.detected(r, name).values()])) for r in rows], colour=k)
            for k, name in enumerate(names)
        ]
        return Lines(
            f"Which detector tells? (by {self._way})",
            "messages of the author",
            "AUROC",
            series,
            floor=(0.5, "a guess"),
            hover=DETECTED,
            reach=(0.0, 1.0),
        )

    def _likeness(self, rows: list[Row]) -> Lines:
        x = [float(r.messages) for r in rows]
        series = [
            Series(says, x, [float(np.mean([*self.found.similar(r, name).values()])) for r in rows], colour=k)
            for k, (name, says) in enumerate(SIMILAR.items())
        ]
        return Lines(
            f"Imitated, or copied? (by {self._way})",
            "messages of the author",
            "0 to 1",
            series,
            hover=LIKE,
            reach=(0.0, 1.0),
        )

    def _federations(self) -> Bars:
        rows = self.found.federated
        rates = [self.found.rate(r, PEOPLE) for r in rows]
        groups = list(dict.fromkeys(r.federation for r in rows))
        labels = [
            f"{100 * rate:.0f} % ({100 * low:.0f} to {100 * high:.0f}), {self.found.says_loss(r)}"
            for r, rate in zip(rows, rates, strict=True)
            for low, high in [self.found.band(r, PEOPLE)]
        ]
        return Bars(
            "What do adapters of federations give away?",
            f"texts that pass for the author's (verifier of {PEOPLE})",
            [r.name for r in rows],
            rates,
            labels,
            [groups.index(r.federation) for r in rows],
        )
