"""One run as lines that grow: the fold behind the live pictures.

Legend: W workers. A row is a finished step. What a step sent is known when the event after its last `Sent` comes, so the
payload and the priced seconds of the present step follow with the next one.
"""

from __future__ import annotations

from lab.columns import pace
from lab.events import Ended, Evaluated, Event, Sent, Started, Stepped
from lab.network import Meter, Network
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
        self.bytes_W: list[int] = []
        self.bytes_by_state: dict[str, int] = {}
        self.sent: dict[int, list[Sent]] = {}  # by step
        self.price: Price | None = None
        self._seconds_here = Growing()  # wall clock of each row in this process
        self._open: tuple[int, list[Sent]] | None = None  # the row that may still send

    @property
    def num_workers(self) -> int:
        return len(self.loss_W)

    def add(self, event: Event) -> None:
        match event:
            case Started():
                self.started = event
                num_workers = int(event.recipe["num_workers"])
                self.loss_W, self.bytes_W = [Growing() for _ in range(num_workers)], [0] * num_workers
            case Stepped():
                self.close()
                self._open = event.step, []
                up = [x for x in event.loss_W if x is not None]
                self.steps.append(event.step)
                self.loss.append(sum(up) / len(up) if up else None)
                for line, x in zip(self.loss_W, event.loss_W, strict=True):
                    line.append(x)
                self._seconds_here.append(event.seconds)
                of_one = self.started.tokens_per_step / self.num_workers if self.started else 0.0
                self.tokens.append(_last(self.tokens) + of_one * len(up))
            case Sent():
                payload = event.bytes_each
                if self._open is not None:
                    self._open[1].append(event)
                for w in event.workers:
                    self.bytes_W[w] += payload
                by = self.bytes_by_state
                by[event.state] = by.get(event.state, 0) + payload * len(event.workers)
            case Evaluated():
                self.close()
                self.eval_row.append(len(self.steps) - 1)
                self.eval_loss.append(event.loss)
                self.eval_steps.append(event.step)
                self.eval_tokens.append(_last(self.tokens))
                self.eval_bytes.append(_last(self.bytes))
                if self.price is not None:
                    self.price.eval_seconds.append(_last(self.price.seconds))
            case Ended():
                self.close()
                self.ended = event

    def priced(self, network: Network) -> Price:
        """The time of this run on a network. From then on it is kept up to date, until it is asked for on another.

        A local step counts as it took here (`lab.columns.pace`).
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
        for step in self.steps.values[:rows].astype(int).tolist():
            price.go_on(step, self.sent.get(step, []))
        price.eval_seconds.extend(price.seconds.values[self.eval_row])
        return price

    def close(self) -> None:
        """The last row has sent all that it will send. Every event that says so does this by itself."""
        if self._open is None:
            return
        (step, records), self._open = self._open, None
        self.bytes.append(_last(self.bytes) + sum(r.bytes_all for r in records))
        if records:
            self.sent[step] = records
        if self.price is not None:
            self.price.go_on(step, records)


class Price:
    """A run on one network: seconds and bytes on the wire after each row, seconds at each evaluation."""

    def __init__(self, network: Network, num_workers: int, pace: float, slow: dict[int, float], rows_timed: int):
        self.network, self.pace, self.rows_timed = network, pace, rows_timed
        self.meter = Meter(network, num_workers, pace, slow)
        self.seconds, self.wire_bytes, self.eval_seconds = Growing(), Growing(), Growing()

    def go_on(self, step: int, records: list[Sent]) -> None:
        self.seconds.append(self.meter.until(step, records)[-1])
        self.wire_bytes.append(sum(self.meter.wire_bytes_W))


def _last(numbers: Growing) -> float:
    return float(numbers[-1]) if len(numbers) else 0.0
