"""What an audit has found so far, folded from its events: rates of texts that pass for the author's, with bands, and what detectors say."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from lab.events import Defended, Event, Imitated

PEOPLE, IMITATIONS, RATIO, SIGNATURE = "people only", "with imitations", "likelihood ratio", "signature"  # verifiers
MARK, SERVICE, ATTACKER = "watermark", "watermark, at the service", "watermark, at the attacker"  # detectors
LEVEL = 0.95  # of bands


class Row(NamedTuple):
    """What is compared: a way of imitating with so many messages; of a federation, whose adapter and to which rank it is cut."""

    way: str
    messages: int
    federation: str = ""
    rank: int = 0

    @property
    def name(self) -> str:
        cut = f", rank {self.rank}" if self.rank else ""
        return f"{self.federation}: {self.way}{cut}" if self.federation else f"{self.way}, {self.messages} messages"


@dataclass
class Found:
    """A fold.

    imitated
        by row and author: the cells there are, one a seed.
    defended
        by author.
    """

    imitated: dict[Row, dict[int, list[Imitated]]] = field(default_factory=dict)
    defended: dict[int, Defended] = field(default_factory=dict)

    @classmethod
    def of(cls, events: Iterable[Event]) -> Found:
        found = cls()
        for event in events:
            found.add(event)
        return found

    def add(self, event: Event) -> None:
        if isinstance(event, Defended):
            self.defended[event.author] = event
        if isinstance(event, Imitated):
            row = Row(event.way, event.messages, event.federation, event.rank)
            cells = self.imitated.setdefault(row, {}).setdefault(event.author, [])
            cells[:] = [e for e in cells if e.seed != event.seed] + [event]

    # rows

    @property
    def ways(self) -> list[str]:
        """Of fine-tuning, in the order in which they came."""
        return list(dict.fromkeys(row.way for row in self.imitated if not row.federation and row.messages))

    def counts(self, way: str) -> list[Row]:
        """Rows of one way alone, by their number of messages; the base comes first, whatever the way."""
        alone = [row for row in self.imitated if not row.federation and (row.way == way or not row.messages)]
        return sorted(alone, key=lambda row: row.messages)

    @property
    def federated(self) -> list[Row]:
        return [row for row in self.imitated if row.federation]

    @property
    def verifiers(self) -> list[str]:
        return list(
            dict.fromkeys(name for of in self.imitated.values() for es in of.values() for name in es[0].accepted)
        )

    # numbers

    def texts(self, row: Row, verifier: str) -> dict[int, list[int]]:
        """By author, 1 of each text that passes for its own, else 0; of all seeds."""
        return {
            a: [x for e in es for x in e.accepted[verifier]]
            for a, es in self.imitated[row].items()
            if verifier in es[0].accepted
        }

    def rates(self, row: Row, verifier: str) -> dict[int, float]:
        """By author, the share of texts that pass for its own: false accepts."""
        return {a: sum(x) / len(x) for a, x in self.texts(row, verifier).items()}

    def rate(self, row: Row, verifier: str) -> float:
        """The mean over authors."""
        return float(np.mean([*self.rates(row, verifier).values()]))

    def band(self, row: Row, verifier: str) -> tuple[float, float]:
        return band(self.texts(row, verifier))

    def detected(self, row: Row, detector: str, which: int = 0) -> dict[int, float]:
        """By author, AUROC (0) or the share that is found at 1 % false alarms (1), the mean over seeds."""
        return {a: float(np.mean([e.detected[detector][which] for e in es])) for a, es in self.imitated[row].items()}

    def similar(self, row: Row, what: str) -> dict[int, float]:
        return {a: float(np.mean([e.similar[what] for e in es])) for a, es in self.imitated[row].items()}

    def cpu_seconds(self, row: Row) -> dict[int, float]:
        return {a: float(np.mean([e.cpu_seconds for e in es])) for a, es in self.imitated[row].items()}

    def loss(self, row: Row) -> float:
        """Nats per byte of the authors' own messages, the mean over those that have a number; NaN where none has."""
        known = [e.loss for es in self.imitated[row].values() for e in es if e.loss is not None]
        return float(np.mean(known)) if known else float("nan")

    def says_loss(self, row: Row) -> str:
        loss = self.loss(row)
        return f"loss {loss:.2f}" if np.isfinite(loss) else "no loss"

    # words

    def words(self) -> str:
        """What there is to be known, in numbers: a line for each question."""
        lines = [
            self._of_defences(),
            *(self._of_way(way) for way in self.ways),
            self._of_detectors(),
            self._of_federations(),
        ]
        return "\n".join(filter(None, lines)) or "Nobody has been imitated yet."

    def _of_defences(self) -> str:
        if not self.defended:
            return ""
        names = list(next(iter(self.defended.values())).accepts)
        says = [
            f"{name} {_percent(np.mean([d.accepts[name] for d in self.defended.values()]))} and "
            f"{_percent(np.mean([d.impostors[name] for d in self.defended.values()]))}"
            for name in names
        ]
        return f"Of messages held out, verifiers of {len(self.defended)} authors accept so many of the author's own, and of other people's: {'; '.join(says)}."

    def _of_way(self, way: str) -> str:
        rows = self.counts(way)
        num = len(next(iter(self.texts(rows[-1], self.verifiers[0]).values())))
        says = []
        for verifier in self.verifiers:
            parts = [
                f"{_percent(self.rate(r, verifier))} ({_between(self.band(r, verifier))}) with {r.messages}"
                for r in _ends(rows)
            ]
            says.append(f"{verifier}: {', '.join(parts)}")
        return f"Texts by {way} that pass for the author's, {num} of each author, by messages that it was fine-tuned on (95 % band): {'; '.join(says)}."

    def _of_detectors(self) -> str:
        if not self.ways:
            return ""
        rows = self.counts(self.ways[-1])
        ends = _ends(rows)
        names = list(next(iter(self.imitated[ends[0]].values()))[0].detected)
        says = [
            f"{name} " + " and ".join(f"{np.mean([*self.detected(r, name).values()]):.2f}" for r in ends)
            for name in names
        ]
        counts = " and ".join(str(r.messages) for r in ends)
        return f"AUROC of detectors (0.5: a guess) with {counts} messages, {ends[-1].way}: {'; '.join(says)}."

    def _of_federations(self) -> str:
        rows = self.federated
        if not rows:
            return ""
        says = [f"{r.name} {_percent(self.rate(r, PEOPLE))} ({self.says_loss(r)})" for r in rows]
        return f"In federations of {len(self.imitated[rows[0]])} authors pass for an author's, by its verifier of {PEOPLE}: {'; '.join(says)}."


def _ends(rows: list[Row]) -> list[Row]:
    return rows if len(rows) < 3 else [rows[0], rows[len(rows) // 2], rows[-1]]


def _percent(x: float | np.floating) -> str:  # type: ignore[type-arg]
    return f"{100 * float(x):.0f} %"


def _between(band: tuple[float, float]) -> str:
    return f"{100 * band[0]:.0f} to {100 * band[1]:.0f}"


def band(
    texts_A: Mapping[int, list[int]], level: float = LEVEL, times: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """A bootstrap interval of the mean over authors of a rate over texts: authors are drawn anew, and of each its texts.

    Parameters
    ----------
    texts_A
        by author, 1 of each text that was accepted, else 0.

    With one author only its texts are drawn: then the band says nothing of other authors. Of few authors a bootstrap is too narrow: of five
    that differ it covers about nine times in ten.
    """
    rng = np.random.default_rng(seed)
    rates = [np.asarray(x, float) for x in texts_A.values()]
    num = len(rates)
    each = np.stack(
        [rng.binomial(len(x), x.mean(), (times, num)) / len(x) for x in rates]
    )  # A, times, A: so many draws of texts
    who = rng.integers(num, size=(times, num))
    drawn = each[who, np.arange(times)[:, None], np.arange(num)].mean(1)
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
