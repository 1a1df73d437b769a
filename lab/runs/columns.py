"""The fold of a run: events in, columns out, for tables, figures and views, after the run and while it goes on.

Legend: W workers. A row is a finished local step.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from lab.costs.calendar import Calendar, Kinds
from lab.costs.energy import Energy, Joules, joules
from lab.costs.network import Bill, Meter, Network, Turn
from lab.engine.ledger import Ledger
from lab.events import (
    Adapted,
    Branched,
    ClientsScored,
    Clipped,
    Covered,
    Drifted,
    Ended,
    Evaluated,
    Event,
    Forked,
    GroupsScored,
    Iterated,
    KnobChanged,
    Masked,
    Measured,
    Placed,
    PseudoLabelled,
    Routed,
    Saturated,
    Seated,
    Sent,
    Started,
    Stepped,
    Truncated,
    Warned,
    Weighted,
    WorkersChanged,
)
from lab.ground.errors import RecipeError
from lab.methods.registry import declared, levels
from lab.recipes.recipe import Recipe
from lab.recipes.selection import pace_W
from lab.runs import table
from lab.runs.growing import Growing, Spread

if TYPE_CHECKING:
    import pandas as pd

_LISTS = {Drifted: "drifted", WorkersChanged: "changes", KnobChanged: "turned", Warned: "warnings", Placed: "placed"}
_LISTS |= {
    Seated: "seated",
    ClientsScored: "clients_scored",
    Adapted: "adapted",
    GroupsScored: "groups_scored",
    Routed: "routed",
    Covered: "covered",
    Truncated: "truncated",
    Clipped: "clipped",
    Masked: "masked",
    PseudoLabelled: "pseudo_labelled",
    Branched: "branched",
    Iterated: "iterated",
    Weighted: "weighted",
    Measured: "measured",
    Forked: "forked",
}


@dataclass(repr=False)
class Columns:
    """One run as columns. ``add`` takes events as they come; reading is cheap at any time.

    What is listed is as it was in the events: ``step``, ``loss_W``, ``lr`` and ``seconds`` of each row, ``eval_…`` and
    ``drift`` of each evaluation. What follows from it is in `curves`.
    """

    started: Started | None = None
    ended: Ended | None = None
    step: list[int] = field(default_factory=list)
    loss_W: list[list[float | None]] = field(default_factory=list)
    lr: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    eval_step: list[int] = field(default_factory=list)
    eval_loss: list[float] = field(default_factory=list)
    drift: list[float] = field(default_factory=list)
    drifted: list[Drifted] = field(default_factory=list)
    ledger: Ledger = field(default_factory=Ledger)
    changes: list[WorkersChanged] = field(default_factory=list)
    turned: list[KnobChanged] = field(default_factory=list)
    warnings: list[Warned] = field(default_factory=list)
    placed: list[Placed] = field(default_factory=list)
    seated: list[Seated] = field(default_factory=list)
    routed: list[Routed] = field(default_factory=list)
    saturated: Saturated | None = None
    scores: list[dict[str, float]] = field(default_factory=list)
    covered: list[Covered] = field(default_factory=list)
    truncated: list[Truncated] = field(default_factory=list)
    clipped: list[Clipped] = field(default_factory=list)
    masked: list[Masked] = field(default_factory=list)
    pseudo_labelled: list[PseudoLabelled] = field(default_factory=list)
    branched: list[Branched] = field(default_factory=list)
    iterated: list[Iterated] = field(default_factory=list)
    weighted: list[Weighted] = field(default_factory=list)
    clients_scored: list[ClientsScored] = field(default_factory=list)
    adapted: list[Adapted] = field(default_factory=list)
    groups_scored: list[GroupsScored] = field(default_factory=list)
    measured: list[Measured] = field(default_factory=list)
    forked: list[Forked] = field(default_factory=list)
    row_ends: list[int] = field(
        default_factory=list
    )  # of each row that has sent all it will: records in the ledger by then
    eval_row: list[int] = field(default_factory=list)  # of each evaluation: the row that it came after
    _read: tuple[Started, Recipe] | None = field(default=None, init=False, repr=False, compare=False)
    _curves: Curves = field(default_factory=lambda: Curves(), init=False, repr=False, compare=False)

    @classmethod
    def of(cls, events: Iterable[Event]) -> Columns:
        columns = cls()
        for event in events:
            columns.add(event)
        return columns

    def add(self, event: Event) -> None:
        match event:
            case Stepped():
                self.close()
                self.step.append(event.step)
                self.loss_W.append(event.loss_W)
                self.lr.append(event.lr)
                self.seconds.append(event.seconds)
            case Sent():
                self.ledger.records.append(event)
            case Evaluated():
                self.close()
                self.eval_row.append(len(self.step) - 1)
                self.eval_step.append(event.step)
                self.eval_loss.append(event.loss)
                self.drift.append(event.drift)
                self.scores.append(event.scores)
            case Started():
                self.started = event
            case Ended():
                self.close()
                self.ended = event
            case _ if type(event) in _LISTS:
                getattr(self, _LISTS[type(event)]).append(event)
            case Saturated():
                self.saturated = event

    def close(self) -> None:
        """The last row has sent all that it will send. Every event that says so does this by itself."""
        if len(self.row_ends) < len(self.step):
            self.row_ends.append(len(self.ledger.records))

    @property
    def curves(self) -> Curves:
        """What follows from the columns, as numbers that grow; only what is new is worked out."""
        self._curves.catch_up(self)
        return self._curves

    @property
    def sent(self) -> list[Sent]:
        """What was sent, in the order of sending."""
        return self.ledger.records

    def frame(self, network: Network | None = None, energy: Energy | None = None) -> pd.DataFrame:
        """A table with a row for each local step; `lab.runs.table` says what its columns are, also with a network and energy."""
        if network is None:
            if energy is not None:
                raise RecipeError("energy is of a run on a network: give that as well")
            return table.frame(self)
        at: dict[str, np.ndarray] = {"network_seconds": self.price(network).at_step[1:]}
        if energy is not None:
            at["joules"] = self.joules(energy, network).at_step
        return table.frame(self, {name: dict(enumerate(values.tolist(), 1)) for name, values in at.items()})

    def __repr__(self) -> str:
        loss = f", validation loss {self.eval_loss[-1]:.4f}" if self.eval_loss else ""
        status = self.ended.status if self.ended else "not ended"
        return f"<Columns of {len(self.step):,} local steps, {status}{loss}, {self.ledger.total_bytes():,} bytes sent>"

    @property
    def recipe(self) -> Recipe:
        assert self.started is not None
        if self._read is None or self._read[0] is not self.started:
            self._read = self.started, Recipe.recorded(self.started.recipe)
        return self._read[1]

    @property
    def num_workers(self) -> int:
        assert self.started is not None
        return int(self.started.recipe["num_workers"])

    @property
    def loss(self) -> np.ndarray:
        """Mean training loss over the workers that were up, nats per token, ``[steps]``."""
        return self.curves.loss.values

    @property
    def payload_bytes(self) -> np.ndarray:
        """Payload of all workers since the start, after each step, ``[steps]``."""
        sent = self.curves.bytes.values
        if len(self.row_ends) == len(self.step):
            return sent
        before = self.row_ends[-1] if self.row_ends else 0  # the last row may send more
        return np.append(sent, sent[-1:].sum() + sum(r.bytes_all for r in self.ledger.records[before:]))

    @property
    def own_payload_bytes(self) -> int:
        """Payload of all workers in the steps that are this run's own: of a fork, those after the one that it goes on from."""
        since = self.forked[-1].step if self.forked else 0
        return sum(sent.bytes_all for sent in self.ledger.records if sent.step > since)

    @property
    def tokens_per_second(self) -> float:
        """Tokens per second in this process, over all steps but the first (which warms up)."""
        assert self.started is not None
        timed = self.seconds[1:] or self.seconds
        return self.started.tokens_per_step * len(timed) / sum(timed) if timed else 0.0

    def price(self, network: Network, compute_seconds: float | None = None) -> Bill:
        """What this run would have taken on a network; of a method with a server on one with a server, with a link like a worker's.

        ``compute_seconds`` of one local step at one worker; by default the `pace` of this run.
        """
        assert self.started is not None
        steps = self.step[-1] if self.step else 0
        if compute_seconds is None:
            compute_seconds = pace(self.seconds, self.started)
        return used_by(self.recipe, network).price(
            self.ledger,
            num_workers=self.num_workers,
            steps=steps,
            compute_seconds=compute_seconds,
            slow=slowness(self.started),
            turns=list(turns(self.recipe, self.seated)),
        )

    def joules(self, energy: Energy, network: Network, compute_seconds: float | None = None) -> Joules:
        """What this run would have drawn on a network; seconds as for `price`."""
        assert self.started is not None
        steps = self.step[-1] if self.step else 0
        if compute_seconds is None:
            compute_seconds = pace(self.seconds, self.started)
        up_TW = np.zeros((steps, self.num_workers), dtype=bool)
        for t, loss_W in zip(self.step, self.loss_W, strict=True):
            up_TW[t - 1] = [x is not None for x in loss_W]
        return joules(
            energy,
            used_by(self.recipe, network),
            Calendar.of(self.ledger, steps),
            up_TW,
            self.price(network, compute_seconds).at_step[1:],
            compute_seconds,
            slowness(self.started),
            list(turns(self.recipe, self.seated)),
        )

    def priced(self, network: Network, compute_seconds: float | None = None) -> Price:
        """The time of this run on a network, as numbers that grow. What is new is added, until another network is asked for.

        A local step counts as it took here (`pace`), or ``compute_seconds``; with 0 what is priced is sending alone.
        """
        return self.curves.priced(self, network, compute_seconds)


def used_by(recipe: Recipe, network: Network) -> Network:
    """The network as a run uses it: with a server where its method needs one and nothing else was said, and its levels if it knows any."""
    needs = network.topology == "ring" and declared(recipe.method).server
    known = network.used_by(levels(recipe.method, recipe.num_workers))
    return replace(known, topology="server") if needs else known


def pace(seconds: Sequence[float] | np.ndarray, started: Started) -> float:
    """Seconds of one local step at one worker, if every worker had a machine of its own.

    What steps took here (the median, without the first, which warms up) × threads / workers.
    """
    timed = seconds[1:] if len(seconds) > 1 else seconds
    threads, num_workers = int(started.environment.get("threads", 1)), int(started.recipe["num_workers"])
    return float(np.median(timed)) * threads / num_workers if len(timed) else 0.0


MANY = 8  # rows from which on they are priced at once rather than one by one
SETTLED = 64  # steps after which the seconds of a local step are taken as known, until the end looks at all of them


class Curves:
    """Of a run, after each row and at each evaluation, as numbers that grow. Made and kept up to date by `Columns.curves`.

    What a step sent is known when the event after its last `Sent` comes, so ``bytes`` and what is priced may be a row behind.
    """

    READS: ClassVar = (Started, Stepped, Sent, Evaluated, Ended)  # the events that they follow from

    def __init__(self) -> None:
        self.steps, self.tokens, self.bytes = Growing(), Growing(), Growing()  # of all workers since the start
        self.loss, self.loss_W = Growing(), list[Growing]()  # nats per token; the mean of those that were up, and each
        self.loss_spread = Spread()
        self.eval_steps, self.eval_tokens, self.eval_bytes = Growing(), Growing(), Growing()
        self.eval_loss = Growing()
        self.kinds, self.kind = Kinds(), list[int]()  # what was sent: its kinds, and that of each row
        self._times: list[int] = []  # rows of each kind
        self._tokens_so_far, self._bytes_so_far = 0.0, 0
        self._price: Price | None = None

    def catch_up(self, run: Columns) -> None:
        """Take in what the columns have beyond what was taken in before."""
        if run.started is not None:
            self._rows(run, run.started)
        for k in range(len(self.bytes), len(run.row_ends)):
            self._sent(run.ledger.records[run.row_ends[k - 1] if k else 0 : run.row_ends[k]])
        for i in range(len(self.eval_steps), len(run.eval_step)):
            row = run.eval_row[i]
            self.eval_steps.append(run.eval_step[i])
            self.eval_loss.append(run.eval_loss[i])
            self.eval_tokens.append(self.tokens[row] if row >= 0 else 0.0)
            self.eval_bytes.append(self.bytes[row] if row >= 0 else 0)

    def _rows(self, run: Columns, started: Started) -> None:
        num_workers = int(started.recipe["num_workers"])
        self.loss_W = self.loss_W or [Growing() for _ in range(num_workers)]
        of_one = started.tokens_per_step / num_workers
        for k in range(len(self.steps), len(run.step)):
            up = [x for x in run.loss_W[k] if x is not None]
            self.steps.append(run.step[k])
            self.loss.append(sum(up) / len(up) if up else None)
            self.loss_spread.append(run.loss_W[k])
            for line, x in zip(self.loss_W, run.loss_W[k], strict=True):
                line.append(x)
            self._tokens_so_far += of_one * len(up)
            self.tokens.append(self._tokens_so_far)

    def _sent(self, records: Sequence[Sent]) -> None:
        kind = self.kinds.index(records)
        if kind == len(self._times):
            self._times.append(0)
        self._times[kind] += 1
        self.kind.append(kind)
        self._bytes_so_far += self.kinds.bytes_all[kind]
        self.bytes.append(self._bytes_so_far)

    @property
    def bytes_W(self) -> list[int]:
        """Payload of every worker."""
        out = [0] * len(self.loss_W)
        for record, times in self._counted():
            for w in record.workers:
                out[w] += record.bytes_each * times
        return out

    @property
    def bytes_by_state(self) -> dict[str, int]:
        """Payload of all workers together."""
        out: dict[str, int] = {}
        for record, times in self._counted():
            out[record.state] = out.get(record.state, 0) + record.bytes_all * times
        return out

    def _counted(self) -> Iterator[tuple[Sent, int]]:
        """One record of each sort, and how many there are."""
        for records, times in zip(self.kinds.kinds, self._times, strict=True):
            for record in records:
                yield record, times

    def priced(self, run: Columns, network: Network, compute_seconds: float | None) -> Price:
        """`Columns.priced`."""
        rows = len(self.bytes)
        enough = 0 if compute_seconds is not None else rows if run.ended is not None else min(SETTLED, rows)
        price, asked = self._price, (network, compute_seconds)
        if price is None or price.asked != asked or price.rows_timed < enough:
            price = self._price = Price(run, network, compute_seconds, rows)
        price.go_on(self, run.eval_row, run.seated)
        return price


class Price:
    """A run on one network: seconds and bytes on the wire after each row, seconds at each evaluation."""

    def __init__(self, run: Columns, network: Network, compute_seconds: float | None, rows_timed: int):
        self.asked, self.rows_timed = (network, compute_seconds), rows_timed
        num_workers, seconds, slow = 0, 0.0, dict[int, float]()
        self.recipe, self.turns, self.rounds = None, list[Turn](), 0
        if run.started is not None:
            self.recipe, num_workers, slow = run.recipe, run.num_workers, slowness(run.started)
            seconds = pace(run.seconds, run.started) if compute_seconds is None else compute_seconds
            network = used_by(run.recipe, network)
        self.meter = Meter(network, num_workers, seconds, slow, self.turns)
        self.seconds, self.wire_bytes, self.eval_seconds = Growing(), Growing(), Growing()

    def go_on(self, curves: Curves, eval_row: Sequence[int], seated: Sequence[Seated]) -> None:
        """Up to the rows and evaluations that there are by now: many rows at once, a few one by one."""
        if self.recipe is not None:
            self.turns += turns(self.recipe, seated[self.rounds :])
            self.rounds = len(seated)
        first, end = len(self.seconds), len(curves.bytes)
        kinds = curves.kinds.kinds
        if end - first > max(MANY, len(kinds)):
            which = np.array(curves.kind[first:end], dtype=int)
            seconds, wire = self.meter.through(curves.steps[first:end], which, kinds)
            self.seconds.extend(seconds)
            self.wire_bytes.extend(wire)
        else:
            for k in range(first, end):
                self.seconds.append(self.meter.until(int(curves.steps[k]), kinds[curves.kind[k]])[-1])
                self.wire_bytes.append(sum(self.meter.wire_bytes_W))
        for row in eval_row[len(self.eval_seconds) :]:
            self.eval_seconds.append(self.seconds[row] if row >= 0 else 0.0)


def turns(recipe: Recipe, seated: Iterable[Seated]) -> Iterator[Turn]:
    """How fast workers are in each round, as the clients that sit there are."""
    clients = recipe.clients
    for e in seated if clients.sets_the_pace else ():
        yield e.step, pace_W(clients, e.clients, e.late, recipe.num_workers, recipe.seed)


def slowness(started: Started) -> dict[int, float]:
    """How many times slower than the others some workers are."""
    slow: dict[str, Any] = started.recipe["scenario"]["slow"]
    return {int(w): float(f) for w, f in slow.items()}
