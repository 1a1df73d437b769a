"""What a collective asks of links, and how long links take that are not always the same: two directions, jitter, shared ones, traces.

A collective goes through one or two phases, in each of which all links work at the same time; the slowest of them ends it.
Where nothing changes along a run, a phase takes its bytes over the rate (`lab.costs.network.Network.seconds`). Else `Course` goes
through the transfers one after another: rates are constant piece by piece, and a transfer that begins at t ends where the integral
of the rate over time reaches its bytes.

Legend: W workers.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Annotated

import numpy as np
from pydantic import Field

from lab.ground.config import Positive, config
from lab.ground.errors import RecipeError
from lab.ground.seeds import numpy_generator

UNITS = {"bit": 1.0, "kbit": 1e3, "Mbit": 1e6, "Gbit": 1e9, "Tbit": 1e12}  # per second
Rate = tuple[float, int, float, float]  # from this second on, a worker's link: bits per second up, and down


@config
class Link:
    """A link of the nodes of a tree: bits per second, and seconds one way. ``down_bits_per_second``: towards the node below."""

    bits_per_second: Positive
    latency_seconds: Annotated[float, Field(ge=0)] = 0.0
    down_bits_per_second: Positive | None = None

    @property
    def down(self) -> float:
        return self.down_bits_per_second or self.bits_per_second


@config
class Bottleneck:
    """A link that several workers share: so many bits per second in each direction, for all that these workers send and receive.

    workers
        who is behind it; none named: all are. What goes between two of them passes it as well, as in a radio cell or through a relay.
    """

    bits_per_second: Positive
    workers: tuple[Annotated[int, Field(ge=0)], ...] = ()


def check_trace(trace: Sequence[Rate], what: str = "trace", lines: Sequence[int] = ()) -> None:
    """Raises RecipeError: one line that names the first entry that cannot be. ``lines``: where each of them stands in a file."""
    last: dict[int, tuple[int, Rate]] = {}
    for i, (seconds, worker, up, down) in enumerate(trace):
        here = f"{what}, line {lines[i]}" if lines else f"{what}, entry {i + 1}"
        if not 0 <= seconds < np.inf:
            raise RecipeError(f"{here}: time {seconds:g} is not allowed: seconds count from 0")
        if worker < 0:
            raise RecipeError(f"{here}: worker {worker} is not allowed: workers count from 0")
        if not (0 <= up < np.inf and 0 <= down < np.inf):
            raise RecipeError(f"{here}: a rate is 0 (nothing goes through) or more, in bits per second")
        if worker in last and seconds <= last[worker][1][0]:
            before = last[worker][1][0]
            raise RecipeError(f"{here}: time {seconds:g} of worker {worker} is not after the one before ({before:g})")
        last[worker] = i, trace[i]
    for i, (_, worker, up, down) in last.values():
        if not up or not down:
            here = f"{what}, line {lines[i]}" if lines else f"{what}, entry {i + 1}"
            raise RecipeError(
                f"{here}: the last rate of worker {worker} is 0, so nothing would ever arrive: end with another"
            )


# --- what a collective asks of links -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Phase:
    """Bytes that cross links at the same time."""

    up: float = 0.0  # from each worker
    down: float = 0.0  # to each worker
    server: float = 0.0  # over the link of the server, of the place, or of whoever gathers: of all workers together
    to_server: bool = True
    hops: int = 1  # latencies
    outside: bool = False  # what goes down goes to somebody who is none of the workers


def phases(topology: str, op: str, payload: float, n: int) -> tuple[Phase, ...]:
    """The phases of one collective among ``n`` workers with this payload each (the table in `lab.costs.network`)."""
    if topology == "mailbox":
        return _through_a_place(op, payload, n)
    if op == "broadcast":
        if topology == "server":
            return (Phase(down=payload, server=n * payload, to_server=False),)
        return (Phase(payload, payload),)  # passed on from one to the next
    if n == 1 and topology != "server":
        return ()
    if op == "gather" or (op == "reduce" and topology == "server"):
        return (Phase(payload, server=n * payload),)
    if op == "reduce":
        return (Phase(payload, payload, hops=n - 1),)
    if topology == "server":
        down = payload if op == "all_reduce" else n * payload
        return Phase(payload, server=n * payload), Phase(down=down, server=n * down, to_server=False)
    if topology == "all_to_all":
        return (Phase((n - 1) * payload, (n - 1) * payload),)
    hops = n - 1 if op == "all_gather" else 2 * (n - 1)
    moved = (n - 1) * payload if op == "all_gather" else 2 * (n - 1) / n * payload
    return (Phase(moved, moved, hops=hops),)


def through_a_place(op: str, n: int) -> tuple[int, int]:
    """How many payloads ``n`` workers put into a place that all reach, and read from there, in one collective."""
    if op == "broadcast":
        return 1, n
    if op in ("gather", "reduce"):  # at somebody who is none of them
        return n, n
    return (n, n * (n - 1)) if n > 1 else (0, 0)


def _through_a_place(op: str, payload: float, n: int) -> tuple[Phase, ...]:
    puts, reads = through_a_place(op, n)
    if not puts:
        return ()
    by_one = op in ("gather", "reduce")
    busiest = 1 if op == "broadcast" else n if by_one else n - 1  # reads of one
    up = Phase(payload, server=puts * payload)
    return up, Phase(down=busiest * payload, server=reads * payload, to_server=False, outside=by_one)


# --- links that change -------------------------------------------------------------------------------------------------


@dataclass
class Lane:
    """One direction of a link whose rate is constant from each of these times to the next."""

    times: list[float]  # seconds, the first is 0
    rates: list[float]  # bytes per second; the last is more than 0

    def end(self, begin: float, num_bytes: float, factor: float = 1.0) -> float:
        """When the bytes are through, if rates are so many times those of the lane."""
        left, at = num_bytes / factor, bisect_right(self.times, begin) - 1
        while at + 1 < len(self.times):
            carried = (self.times[at + 1] - begin) * self.rates[at]
            if carried >= left:
                break
            left, at = left - carried, at + 1
            begin = self.times[at]
        return begin + left / self.rates[at] if left else begin


@dataclass
class Queue:
    """One direction of a link that collectives share: each takes what those before it have left free."""

    rate: float  # bytes per second
    busy: list[tuple[float, float]] = field(default_factory=list)  # in order, none touches another

    def end(self, begin: float, num_bytes: float) -> float:
        """When the bytes are through, beginning with what is free then."""
        if not num_bytes:
            return begin
        left, taken = num_bytes / self.rate, list[tuple[float, float]]()
        for first, last in self.busy:
            if first - begin >= left:
                break
            if first > begin:
                taken.append((begin, first))
                left -= first - begin
            begin = max(begin, last)
        self._take([*taken, (begin, begin + left)])
        return begin + left

    def _take(self, times: Iterable[tuple[float, float]]) -> None:
        joined: list[tuple[float, float]] = []
        for first, last in sorted([*self.busy, *times]):
            if joined and first <= joined[-1][1]:
                joined[-1] = joined[-1][0], max(last, joined[-1][1])
            else:
                joined.append((first, last))
        self.busy = joined

    def forget(self, before: float) -> None:
        """Nothing begins before this time any more."""
        self.busy = [time for time in self.busy if time[1] > before]


@dataclass
class Course:
    """The links of one run, on which one transfer after another takes place.

    Rates are bytes per second, ``up_W`` and ``down_W`` those that are not traced. Each step in which something is sent, and each level of
    a tree, has a draw of its own: a factor on every worker's rates, log-normal with median 1 and this spread, and seconds that
    every worker's latency is longer by, exponentially distributed with this mean.
    """

    up_W: np.ndarray
    down_W: np.ndarray
    to_server: float
    from_server: float
    latency_seconds: float
    spread: float = 0.0
    jitter_seconds: float = 0.0
    seed: int = 0
    level: int = 0
    trace: Sequence[Rate] = ()
    bottlenecks: Sequence[Bottleneck] = ()

    def __post_init__(self) -> None:
        num_workers = len(self.up_W)
        by_worker: dict[int, list[Rate]] = {}
        for entry in self.trace:
            by_worker.setdefault(entry[1], []).append(entry)
        self._lanes: dict[int, tuple[Lane, Lane]] = {}
        for w, entries in ((w, entries) for w, entries in by_worker.items() if w < num_workers):
            times, ups, downs = ([e[i] for e in entries] for i in (0, 2, 3))
            if times[0] > 0:  # until then as without a trace
                times, ups, downs = [0.0, *times], [8 * self.up_W[w], *ups], [8 * self.down_W[w], *downs]
            self._lanes[w] = Lane(times, [x / 8 for x in ups]), Lane(times, [x / 8 for x in downs])
        self._shared = [
            ({*(b.workers or range(num_workers))}, Queue(b.bits_per_second / 8), Queue(b.bits_per_second / 8))
            for b in self.bottlenecks
        ]
        self._drawn: tuple[int, np.ndarray, np.ndarray] = (0, np.ones(num_workers), np.zeros(num_workers))

    def end(self, course: Sequence[Phase], workers: Sequence[int], begin: float, step: int) -> float:
        """When a collective that begins at this time, in this step, is over."""
        factor_W, later_W = self._draw(step)
        who = np.array(workers)
        latency = self.latency_seconds + float(later_W[who].max())
        for phase in course:
            ends = [begin, begin + phase.server / (self.to_server if phase.to_server else self.from_server)]
            ends += self._own(0, phase.up, who, begin, factor_W)
            ends += self._own(1, phase.down, who, begin, factor_W)
            for members, up, down in self._shared:
                num = sum(w in members for w in workers)
                ends.append(up.end(begin, num * phase.up))
                ends.append(down.end(begin, 0.0 if phase.outside else num * phase.down))
            begin = max(ends) + phase.hops * latency
        return begin

    def _own(
        self, direction: int, num_bytes: float, who: np.ndarray, begin: float, factor_W: np.ndarray
    ) -> Iterable[float]:
        """When each worker's own link is done; of those without a trace the last."""
        if not num_bytes:
            return
        plain = who
        if self._lanes:
            for w in (w for w in who.tolist() if w in self._lanes):
                yield self._lanes[w][direction].end(begin, num_bytes, float(factor_W[w]))
            plain = np.array([w for w in who.tolist() if w not in self._lanes], dtype=int)
        if len(plain):
            rate_W = self.down_W if direction else self.up_W
            yield begin + num_bytes / float((rate_W[plain] * factor_W[plain]).min())

    def _draw(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """Of a step: factors on rates, and what latencies are longer by, each ``[W]``."""
        if (self.spread or self.jitter_seconds) and step != self._drawn[0]:
            rng, num = numpy_generator(self.seed, "links", step, self.level), len(self.up_W)
            normal, waits = rng.standard_normal(num), rng.standard_exponential(num)
            self._drawn = step, np.exp(self.spread * normal), self.jitter_seconds * waits
        return self._drawn[1:]

    def forget(self, before: float) -> None:
        """No transfer begins before this time any more."""
        for _, up, down in self._shared:
            up.forget(before)
            down.forget(before)
