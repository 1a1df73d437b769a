"""One run as lines that grow: the fold behind the live pictures.

Legend: W workers. A row is a finished step. What a step sent is known when the event after its last `Sent` comes, so the
payload and the priced seconds of the present step follow with the next one.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator

import numpy as np

from lab.costs.network import Meter, Network
from lab.events import Ended, Evaluated, Event, Sent, Started, Stepped
from lab.runs.columns import pace
from widgets.growing import Growing

SETTLED = 64  # steps after which the seconds of a local step are taken as known, until the end looks at all of them


class Curve:
    """Losses, payload and priced time of one run, after each step and at each evaluation. Feed it what it ``READS``.

    With ``timed=False`` computing takes no time: what is priced is sending alone.
    """

    READS = (Started, Stepped, Sent, Evaluated, Ended)

    def __init__(self, timed: bool = True) -> None:
        self.timed = timed
        self.started: Started | None = None
        self.ended: Ended | None = None
        self.steps, self.tokens, self.bytes = Growing(), Growing(), Growing()  # after each row, of all workers
        self.loss, self.loss_W = Growing(), list[Growing]()  # nats per token; the mean of those that were up
        self.eval_row, self.eval_loss = list[int](), Growing()
        self.eval_steps, self.eval_tokens, self.eval_bytes = Growing(), Growing(), Growing()
        self.packs = Packs()  # what was sent
        self.price: Price | None = None
        self._tokens = self._of_one = 0.0  # so far; of one worker in one step
        self._bytes = 0
        self._seconds_here = Growing()  # wall clock of each row in this process
        self._open: list[Sent] | None = None  # of the row that may still send

    @property
    def num_workers(self) -> int:
        return len(self.loss_W)

    @property
    def bytes_W(self) -> list[int]:
        """Payload of every worker."""
        return self.packs.bytes_W(self.num_workers)

    @property
    def bytes_by_state(self) -> dict[str, int]:
        return self.packs.bytes_by_state()

    def add(self, event: Event) -> None:
        match event:
            case Stepped():
                self.close()
                self._open = []
                self.steps.append(event.step)
                self.loss.append(event.loss)
                for line, x in zip(self.loss_W, event.loss_W, strict=True):
                    line.append(x)
                self._seconds_here.append(event.seconds)
                self._tokens += self._of_one * event.num_up
                self.tokens.append(self._tokens)
            case Sent():
                if self._open is not None:
                    self._open.append(event)
            case Evaluated():
                self.close()
                self.eval_row.append(len(self.steps) - 1)
                self.eval_loss.append(event.loss)
                self.eval_steps.append(event.step)
                self.eval_tokens.append(self._tokens)
                self.eval_bytes.append(self._bytes)
                if self.price is not None:
                    self.price.eval_seconds.append(_last(self.price.seconds))
            case Started():
                self.started = event
                num_workers = int(event.recipe["num_workers"])
                self.loss_W = [Growing() for _ in range(num_workers)]
                self._of_one = event.tokens_per_step / num_workers
            case Ended():
                self.close()
                self.ended = event

    def priced(self, network: Network) -> Price:
        """The time of this run on a network. From then on it is kept up to date, until it is asked for on another.

        A local step counts as it took here (`lab.runs.columns.pace`).
        """
        rows = len(self.bytes)
        enough = 0 if not self.timed else rows if self.ended is not None else min(SETTLED, rows)
        if self.price is None or self.price.network != network or self.price.rows_timed < enough:
            self.price = self._price(network, rows)
        return self.price

    def _price(self, network: Network, rows: int) -> Price:
        if self.started is None:
            return Price(network, 0, 0.0, {}, 0)
        slow = {int(w): float(f) for w, f in self.started.recipe["scenario"]["slow"].items()}
        seconds = pace(self._seconds_here.values, self.started) if self.timed else 0.0
        price = Price(network, self.num_workers, seconds, slow, rows)
        price.catch_up(self.steps.values[:rows], self.packs)
        price.eval_seconds.extend(price.seconds.values[self.eval_row])
        return price

    def close(self) -> None:
        """The last row has sent all that it will send. Every event that says so does this by itself."""
        if self._open is None:
            return
        records, self._open = self._open, None
        self._bytes += self.packs.add(records)
        self.bytes.append(self._bytes)
        if self.price is not None:
            self.price.go_on(int(self.steps[-1]), records)


class Packs:
    """What was sent in each row. Rows are much alike, so every kind is kept once."""

    def __init__(self) -> None:
        self.kinds: list[list[Sent]] = []
        self.rows: list[int] = []  # of each row, its kind
        self._bytes: list[int] = []  # of each kind, of all workers
        self._times: list[int] = []  # how many rows there are of each kind
        self._known: dict[Hashable, int] = {}

    def add(self, records: list[Sent]) -> int:
        """The next row; returns the payload of all workers."""
        key = tuple([(r.op, r.state, r.workers, *r.payload_bytes.values()) for r in records])
        kind = self._known.get(key)
        if kind is None:
            kind = self._known[key] = len(self.kinds)
            self.kinds.append(records)
            self._bytes.append(sum(r.bytes_all for r in records))
            self._times.append(0)
        self.rows.append(kind)
        self._times[kind] += 1
        return self._bytes[kind]

    def bytes_W(self, num_workers: int) -> list[int]:
        out = [0] * num_workers
        for record, times in self._counted():
            for w in record.workers:
                out[w] += record.bytes_each * times
        return out

    def bytes_by_state(self) -> dict[str, int]:
        out: dict[str, int] = {}
        for record, times in self._counted():
            out[record.state] = out.get(record.state, 0) + record.bytes_all * times
        return out

    def _counted(self) -> Iterator[tuple[Sent, int]]:
        """One record of each sort, and how many there are."""
        for records, times in zip(self.kinds, self._times, strict=True):
            for record in records:
                yield record, times


class Price:
    """A run on one network: seconds and bytes on the wire after each row, seconds at each evaluation."""

    def __init__(self, network: Network, num_workers: int, pace: float, slow: dict[int, float], rows_timed: int):
        self.network, self.pace, self.rows_timed = network, pace, rows_timed
        self.meter = Meter(network, num_workers, pace, slow)
        self.seconds, self.wire_bytes, self.eval_seconds = Growing(), Growing(), Growing()

    def catch_up(self, steps: np.ndarray, packs: Packs) -> None:
        """Many rows at once."""
        seconds, wire = self.meter.through(steps, np.array(packs.rows[: len(steps)], dtype=int), packs.kinds)
        self.seconds.extend(seconds)
        self.wire_bytes.extend(wire)

    def go_on(self, step: int, records: list[Sent]) -> None:
        self.seconds.append(self.meter.until(step, records)[-1])
        self.wire_bytes.append(sum(self.meter.wire_bytes_W))


def _last(numbers: Growing) -> float:
    return float(numbers[-1]) if len(numbers) else 0.0
