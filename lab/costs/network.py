"""Prices a ledger: payload bytes → bytes on the wire → seconds, under a topology, bandwidths and latencies.

Pricing happens after the fact. One run can be looked at on any network, and no method knows of any.

Per collective among n workers with payload S each (bandwidth B, latency l, server bandwidth B_s):

=============  =====================  ================================================
topology       a worker sends         seconds
=============  =====================  ================================================
ring           2(n−1)/n · S           2(n−1)/n · S / B + 2(n−1) · l
all_to_all     (n−1) · S              (n−1) · S / B + l
server         S up, S down           2 · max(n · S / B_s, S / B) + 2 · l
mailbox        S up, (n−1) · S down   n · S / B + 2 · l
=============  =====================  ================================================

B is the slowest link among those that take part. A payload that cannot be summed on the way (``all_gather``) costs
(n−1) · S per worker on ring and all_to_all, and n · S down per worker from a server. A broadcast to n receivers moves S to
each: S / B pipelined along a ring or from any peer, n · S / B_s from a server. A gather moves n · S to one place, and so does
a reduce to a server; without a server it is summed on the way, (n−1) · S.

A mailbox is a place that all reach, a shared folder or a bucket (`lab.processes.mailbox`): what one says to all is put there once and
read n − 1 times, whether it could be summed or not. A broadcast is one upload and n downloads, a gather (and a reduce to a server)
n of each. What is long goes in pieces, and the next is put while others read the one before: where a link carries both directions at
once, seconds lie between those given here, of one after the other, and the longer of the two. The place has as much room for all as
they want, unless B_s is given; then n · S / B_s and n (n−1) · S / B_s are lower bounds.

A link has two directions: where those differ, B is in each phase that of the direction which is used. A ring, and whatever is passed on from one to
the next, uses both at once, and waits for the slower; what goes to a server or a place waits for ``up``, what comes from there for ``down``.
Jitter, links that several share, and rates that change along a run are priced transfer by transfer (`lab.costs.links`).

With ``framing="ethernet"`` S is not the payload alone but all that a kernel counts on its interface: at an MTU of 1500 bytes TCP
carries 1448 of payload in a frame of 1514 (14 of Ethernet, 20 of IPv4, 32 of TCP with timestamps: RFC 791, 9293, 7323), and the
other side acknowledges every second one (RFC 5681, 4.2) with a frame of 66: (1514 + 66/2) / 1448 = 1.068 times S.

The forms are the standard ones (Photon's comparison of topologies, DES-LOC's time model); the number of latencies is ours.
"""

from __future__ import annotations

import math
import re
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from lab.costs.link_traces import rate_in, read_trace
from lab.costs.links import UNITS, Bottleneck, Course, Link, Rate, check_trace, phases, through_a_place
from lab.events import Sent
from lab.ground.config import Fraction, Positive, config, number_in
from lab.ground.errors import RecipeError, one_of, shown

Turn = tuple[int, Sequence[float]]  # from which step on a local step takes how many times longer, by worker
FRAMING = {"none": 1.0, "ethernet": (1514 + 66 / 2) / 1448}  # bytes on a link per byte of payload


@config
class Network:
    """Links between workers.

    bits_per_second
        of every worker's link; ``links`` overrides it for single workers.
    latency_seconds
        one way, between any two workers (or a worker and the server).
    server_bits_per_second
        of the server's own link; default as a worker's. Of a mailbox: of the place that all reach; default without a limit.
    levels
        links between the nodes of a tree of federations, 1, 2, … levels above those of workers; the last is for all above it as well.
        Without any, they are as a worker's. Who knows no levels sends everything over the slowest of all links (`used_by`).
    overlap
        the part of communication that hides behind computation (α in the papers): 0 none, 1 all of it.
    framing
        ``none`` counts payload, as the papers do; ``ethernet`` also headers and acknowledgements, as a real link has them.
    down_bits_per_second
        of every worker's link towards the worker; default as the other way. ``links`` are of both directions, ``down_links`` of this one.
    jitter_seconds, spread, seed
        in every step that sends something latencies are longer by a time that is drawn anew for each worker, exponentially distributed with this
        mean; and its rates are multiplied by a draw, log-normal with median 1 and this spread (of the logarithm). The same seed gives the
        same run the same price.
    bottlenecks
        links that several workers share. What is sent at the same time goes through one after the other, in the order of the ledger.
    trace
        rates over time: (seconds since the run began, worker, bits per second up, down), each until the worker's next; the last for good.
        `lab.costs.link_traces.read_trace` has them from a file. In the place of the worker's other rates.
    """

    bits_per_second: Positive = 1e9
    latency_seconds: Annotated[float, Field(ge=0)] = 0.0
    topology: Literal["ring", "server", "all_to_all", "mailbox"] = "ring"
    links: dict[int, Positive] = Field(default_factory=dict)
    server_bits_per_second: Positive | None = None
    levels: tuple[Link, ...] = ()
    overlap: Fraction = 0.0
    framing: Literal["none", "ethernet"] = "none"
    down_bits_per_second: Positive | None = None
    down_links: dict[int, Positive] = Field(default_factory=dict)
    jitter_seconds: Annotated[float, Field(ge=0)] = 0.0
    spread: Annotated[float, Field(ge=0, le=5)] = 0.0
    seed: Annotated[int, Field(ge=0)] = 0
    bottlenecks: tuple[Bottleneck, ...] = ()
    trace: tuple[Rate, ...] = ()

    def __post_init__(self) -> None:
        check_trace(self.trace)

    @property
    def down(self) -> float:
        """Bits per second towards a worker."""
        return self.down_bits_per_second or self.bits_per_second

    @property
    def changes(self) -> bool:
        """Whether what a transfer takes depends on when it takes place, or on what else is sent then."""
        return bool(self.trace or self.bottlenecks or self.jitter_seconds or self.spread)

    def price(
        self,
        sent: Iterable[Sent],
        *,
        num_workers: int,
        steps: int,
        compute_seconds: float = 0.0,
        slow: dict[int, float] | None = None,
        turns: Sequence[Turn] = (),
    ) -> Bill:
        """What a ledger costs on this network.

        Parameters
        ----------
        compute_seconds
            of one local step at a worker; ``slow`` gives factors for single workers. Workers run on by themselves and wait
            for each other only where they exchange something.
        turns
            factors that change along the run, as other clients take the place of a worker; those of ``slow`` come on top.
        """
        meter = Meter(self, num_workers, compute_seconds, slow, turns)
        at_step = [0.0]
        for step, records in groupby(sent, key=lambda r: r.step):
            at_step += meter.until(step, records)
        at_step += meter.until(steps)
        return meter.bill(np.array(at_step))

    def wire_bytes(self, op: str, payload: float, n: int) -> float:
        """Bytes that all links together carry for one collective among ``n`` workers with this payload each."""
        if self.topology == "mailbox":
            up, down = through_a_place(op, n)
            return float((up + down) * payload)
        if op == "broadcast":
            return float(n * payload)
        if n == 1 and self.topology != "server":
            return 0.0
        if op == "gather" or (op == "reduce" and self.topology == "server"):
            return float(n * payload)
        if op == "reduce":
            return float((n - 1) * payload)
        if self.topology == "server":
            return float(n * payload + n * payload * (1 if op == "all_reduce" else n))
        if op == "all_gather" or self.topology == "all_to_all":
            return float(n * (n - 1) * payload)
        return 2.0 * (n - 1) * payload

    def used_by(self, levels: int) -> Network:
        """What a method uses whose nodes are so many levels above its workers: with 0, the slowest link is between any two workers."""
        return replace(self, levels=self.levels[:levels]) if levels else self.slowest

    @property
    def slowest(self) -> Network:
        """For workers that know no levels, and so talk over the slowest of these links."""
        if not self.levels:
            return self
        links = [Link(self.bits_per_second, self.latency_seconds, self.down_bits_per_second), *self.levels]
        up, down = min(link.bits_per_second for link in links), min(link.down for link in links)
        return replace(
            self,
            bits_per_second=up,
            down_bits_per_second=None if down == up else down,
            latency_seconds=max(link.latency_seconds for link in links),
            levels=(),
            trace=tuple((t, w, min(u, up), min(d, down)) for t, w, u, d in self.trace),
        )

    def at_level(self, level: int) -> Network:
        """The links of so many levels above the workers, as a network of their own."""
        if not level:
            return self
        of_workers: dict[str, Any] = {"links": {}, "down_links": {}, "trace": (), "bottlenecks": ()}
        if not self.levels:
            return replace(self, **of_workers)
        link = self.levels[min(level, len(self.levels)) - 1]
        return replace(
            self,
            bits_per_second=link.bits_per_second,
            down_bits_per_second=link.down_bits_per_second,
            latency_seconds=link.latency_seconds,
            server_bits_per_second=None,
            **of_workers,
        )

    def seconds(self, op: str, payload: float, workers: tuple[int, ...], level: int = 0) -> float:
        """How long one collective takes where nothing changes."""
        if level:
            return self.at_level(level).seconds(op, payload, workers)
        up = min(self.up_of(w) for w in workers) / 8
        down = min(self.down_of(w) for w in workers) / 8
        to_server, from_server = self._of_server
        took, hops = 0.0, 0
        for phase in phases(self.topology, op, payload, len(workers)):
            server = to_server if phase.to_server else from_server
            took += max(phase.server / server, phase.up / up, phase.down / down)
            hops += phase.hops
        return took + hops * self.latency_seconds

    def up_of(self, worker: int) -> float:
        """Bits per second from a worker, where nothing changes."""
        return self.links.get(worker, self.bits_per_second)

    def down_of(self, worker: int) -> float:
        return self.down_links.get(worker, self.links.get(worker, self.down))

    @property
    def _of_server(self) -> tuple[float, float]:
        """Bytes per second to and from the server, or the place that all reach."""
        if self.server_bits_per_second or self.topology == "mailbox":
            rate = (self.server_bits_per_second or math.inf) / 8
            return rate, rate
        return self.down / 8, self.bits_per_second / 8

    def course(self, num_workers: int, level: int = 0) -> Course:
        """The links of so many levels above the workers along a run."""
        if level:
            return replace(self.at_level(level).course(num_workers), level=level)
        up_W, down_W = ([of(w) / 8 for w in range(num_workers)] for of in (self.up_of, self.down_of))
        return Course(
            np.array(up_W),
            np.array(down_W),
            *self._of_server,
            latency_seconds=self.latency_seconds,
            spread=self.spread,
            jitter_seconds=self.jitter_seconds,
            seed=self.seed,
            trace=self.trace,
            bottlenecks=self.bottlenecks,
        )


def pace_TW(turns: Sequence[Turn], steps: int, num_workers: int) -> np.ndarray:
    """How many times longer each local step takes at each worker, ``[steps, workers]``."""
    pace = np.ones((steps, num_workers))
    for first, factors in turns:
        pace[first - 1 :] = factors
    return pace


class Meter:
    """Prices a ledger step by step, as it grows; what it has seen so far is in its attributes. ``turns`` may grow as well."""

    def __init__(
        self,
        network: Network,
        num_workers: int,
        compute_seconds: float = 0.0,
        slow: dict[int, float] | None = None,
        turns: Sequence[Turn] = (),
    ):
        self.network, self.done, self.turns = network, 0, turns
        self.wire_bytes_W = [0.0] * num_workers
        self.wire_bytes_by_state: dict[str, float] = {}
        self.communication_seconds = 0.0
        self._own_pace = [compute_seconds * (slow or {}).get(w, 1.0) for w in range(num_workers)]
        self._pace = self._own_pace  # seconds of a local step, by worker
        self._clock = [0.0] * num_workers
        self._costs: dict[tuple[str, int, tuple[int, ...], int], tuple[float, float]] = {}
        self._courses: dict[int, Course] = {}  # by level, of a network that changes

    def until(self, step: int, records: Iterable[Sent] = ()) -> list[float]:
        """Go on to ``step``, at whose end this is sent: seconds since the start at the end of every step on the way."""
        alone = list[float]()
        for last in self._turns_until(step):
            steps = last - self.done
            alone += [max(c + p * k for c, p in zip(self._clock, self._pace, strict=True)) for k in range(1, steps + 1)]
            self._clock = [c + p * steps for c, p in zip(self._clock, self._pace, strict=True)]
            self.done = last
        clock = self._clock
        # What leaves in one step for the same workers in the same way is one transfer.
        together: dict[tuple[str, tuple[int, ...], int], int] = {}
        for r in records:
            payload = r.bytes_each
            together[r.op, r.workers, r.level] = together.get((r.op, r.workers, r.level), 0) + payload
            wire = self._cost(r.op, payload, r.workers, r.level)[1]
            self.wire_bytes_by_state[r.state] = self.wire_bytes_by_state.get(r.state, 0.0) + wire
        if not together:
            return alone
        computed = max(clock)
        for (op, workers, level), payload in together.items():
            wire, begin = self._cost(op, payload, workers, level)[1], max(clock[w] for w in workers)
            over = begin + (1 - self.network.overlap) * self._seconds(op, payload, workers, level, begin)
            for w in workers:
                clock[w] = over
                self.wire_bytes_W[w] += wire / len(workers)
        over = max(clock)
        self.communication_seconds += over - computed  # groups without a common worker talk at the same time
        if alone:
            alone[-1] = over
        for course in self._courses.values():
            course.forget(min(clock))
        return alone

    def _turns_until(self, step: int) -> Iterator[int]:
        """Cut the steps from here to ``step`` where the pace changes: set it for each part, and yield its last step."""
        last = self.done
        while last < step:
            i = bisect_right(self.turns, last + 1, key=lambda turn: turn[0])
            if i:
                self._pace = [p * f for p, f in zip(self._own_pace, self.turns[i - 1][1], strict=True)]
            last = min(step, self.turns[i][0] - 1) if i < len(self.turns) else step
            yield last

    def through(
        self, steps: np.ndarray, which: np.ndarray, kinds: Sequence[Sequence[Sent]]
    ) -> tuple[np.ndarray, np.ndarray]:
        """As `until` for each of these steps, at the end of which ``kinds[which]`` is sent, all at once where that is possible.

        Returns
        -------
        seconds since the start, and bytes on the wire of all workers, at the end of every step.
        """
        seconds, wire, at = np.empty(len(steps)), np.empty(len(steps)), 0
        if self.network.changes:
            return self._one_by_one(steps, which, kinds)
        for last in self._turns_until(int(steps[-1]) if len(steps) else self.done):
            end = int(np.searchsorted(steps, last, side="right"))
            seconds[at:end], wire[at:end] = self._at_one_pace(steps[at:end], which[at:end], kinds)
            more, self.done, at = last - self.done, last, end
            self._clock = [c + p * more for c, p in zip(self._clock, self._pace, strict=True)]
        return seconds, wire

    def _one_by_one(
        self, steps: np.ndarray, which: np.ndarray, kinds: Sequence[Sequence[Sent]]
    ) -> tuple[np.ndarray, np.ndarray]:
        """What a transfer takes depends on when it begins: rows between which nothing is sent are taken together, no others."""
        seconds, wire, before, first = np.empty(len(steps)), np.empty(len(steps)), 0, self.done
        steps = steps.astype(int)
        sends = np.array([bool(records) for records in kinds], dtype=bool)[which]
        for row in [*np.flatnonzero(sends).tolist(), len(steps) - 1]:
            if row < before:  # the last one sends something
                break
            so_far = sum(self.wire_bytes_W)
            at = self.until(int(steps[row]), kinds[which[row]])  # from the step after ``first``
            seconds[before : row + 1] = np.array(at)[steps[before : row + 1] - first - 1]
            wire[before:row], wire[row] = so_far, sum(self.wire_bytes_W)
            before, first = row + 1, self.done
        return seconds, wire

    def _at_one_pace(
        self, steps: np.ndarray, which: np.ndarray, kinds: Sequence[Sequence[Sent]]
    ) -> tuple[np.ndarray, np.ndarray]:
        everybody, there = len(self._clock), np.unique(which).tolist()
        if len({*self._clock}) > 1 or any(len(r.workers) < everybody for k in there for r in kinds[k]):
            return self._in_groups(steps, which, kinds)
        # Whenever anything is sent all wait for all, so the slowest sets the pace and what is sent adds to it.
        lasts, wires, began = np.zeros(len(kinds)), np.zeros(len(kinds)), sum(self.wire_bytes_W)
        for k in there:
            of_one = Meter(self.network, everybody)
            of_one.until(1, kinds[k])
            lasts[k], wires[k] = of_one.communication_seconds, sum(of_one.wire_bytes_W)
            self._add(of_one, int((which == k).sum()))
        sends = np.array([bool(records) for records in kinds])[which]
        seconds = self._clock[0] + max(self._pace) * (steps - self.done) + lasts[which].cumsum()
        if len(steps):
            since, at = self.done, self._clock[0]
            for row in np.flatnonzero(sends)[-1:]:  # when all clocks showed the same
                since, at = int(steps[row]), float(seconds[row])
            self.done = int(steps[-1])
            self._clock = [at + p * (self.done - since) for p in self._pace]
        return seconds, began + wires[which].cumsum()

    def _in_groups(
        self, steps: np.ndarray, which: np.ndarray, kinds: Sequence[Sequence[Sent]]
    ) -> tuple[np.ndarray, np.ndarray]:
        """The same where some exchange something and others run on.

        How the clocks go on depends on how far each is ahead of the last, on what is sent, and after how many steps: what was
        worked out once is looked up.
        """
        pace, began = np.array(self._pace), sum(self.wire_bytes_W)
        rows = np.flatnonzero(
            np.array([bool(records) for records in kinds])[which]
        )  # at the end of which something is sent
        seconds, wire = np.empty(len(steps)), np.empty(len(rows))
        known: dict[tuple[int, int, tuple[float, ...]], tuple[float, tuple[float, ...], Meter]] = {}
        times: dict[tuple[int, int, tuple[float, ...]], int] = {}
        last, total, before = min(self._clock), began, 0
        ahead = tuple(c - last for c in self._clock)
        for i, row in enumerate([*rows.tolist(), len(steps)]):
            if row > before:  # at which nothing is sent
                gap = steps[before:row, None] - self.done
                seconds[before:row] = last + (np.array(ahead) + pace * gap).max(1)
            if i == len(rows):
                break
            key = int(which[row]), int(steps[row]) - self.done, ahead
            if key not in known:
                one = Meter(self.network, len(ahead))
                one._pace, one._clock = self._pace, list(ahead)  # it has no turns, and keeps it
                one.until(key[1], kinds[key[0]])
                least = min(one._clock)
                known[key] = least, tuple(c - least for c in one._clock), one
            more, ahead, one = known[key]
            last, total, self.done, before = last + more, total + sum(one.wire_bytes_W), int(steps[row]), row + 1
            times[key] = times.get(key, 0) + 1
            seconds[row], wire[i] = last + max(ahead), total
        for key, num in times.items():
            self._add(known[key][2], num)
        since = int(steps[-1]) - self.done if len(steps) else 0
        self._clock = [last + c + p * since for c, p in zip(ahead, self._pace, strict=True)]
        self.done += since
        sent = np.searchsorted(rows, np.arange(len(steps)), side="right")  # how often by then
        return seconds, np.concatenate([[began], wire])[sent]

    def _add(self, other: Meter, times: int) -> None:
        """Count what another has seen, so many times."""
        self.communication_seconds += times * other.communication_seconds
        self.wire_bytes_W = [a + times * b for a, b in zip(self.wire_bytes_W, other.wire_bytes_W, strict=True)]
        for state, more in other.wire_bytes_by_state.items():
            self.wire_bytes_by_state[state] = self.wire_bytes_by_state.get(state, 0.0) + times * more

    def bill(self, at_step: np.ndarray) -> Bill:
        """What was seen so far; ``at_step`` as in `Bill`."""
        total = float(at_step[-1])
        return Bill(
            total,
            self.communication_seconds,
            total - self.communication_seconds,
            at_step,
            np.array(self.wire_bytes_W),
            self.wire_bytes_by_state,
        )

    def _seconds(self, op: str, payload: int, workers: tuple[int, ...], level: int, begin: float) -> float:
        """Seconds of a collective that begins at this time."""
        net = self.network
        if not net.changes:
            return self._cost(op, payload, workers, level)[0]
        if level not in self._courses:
            self._courses[level] = net.course(len(self._clock), level)
        asked = phases(net.topology, op, payload * FRAMING[net.framing], len(workers))
        return self._courses[level].end(asked, workers, begin, self.done) - begin

    def _cost(self, op: str, payload: int, workers: tuple[int, ...], level: int) -> tuple[float, float]:
        """Seconds and bytes on the wire of one collective."""
        key = op, payload, workers, level
        if key not in self._costs:
            net = self.network
            framed = payload * FRAMING[net.framing]
            self._costs[key] = net.seconds(op, framed, workers, level), net.wire_bytes(op, framed, len(workers))
        return self._costs[key]


@dataclass(frozen=True)
class Bill:
    """``at_step[t]``: seconds since the start when step t is finished everywhere (``at_step[0] = 0``)."""

    total_seconds: float
    communication_seconds: float  # by which exchanges lengthen the run
    compute_seconds: float  # total less communication: computing and waiting
    at_step: np.ndarray
    wire_bytes_W: np.ndarray
    wire_bytes_by_state: dict[str, float]


NETWORKS: dict[str, Network] = {
    "10Mbit": Network(bits_per_second=10e6, latency_seconds=0.05),
    "100Mbit": Network(bits_per_second=100e6, latency_seconds=0.03),
    "1Gbit": Network(bits_per_second=1e9, latency_seconds=0.02),
    "10Gbit": Network(bits_per_second=10e9, latency_seconds=0.01),
    "100Gbit": Network(bits_per_second=100e9, latency_seconds=0.0001),
}


LATENCIES = {"s": 1.0, "ms": 1e3, "us": 1e6, "µs": 1e6}  # in a second
_SPELLED = re.compile(r"([0-9.eE+]+) *([A-Za-z]+)(?:/s)? *(?:, *([0-9.eE+-]+) *([a-zµ]+))?")


def network(name: str) -> Network:
    """A named network, or one spelled out: ``3Mbit``, ``3Mbit,20ms``; without a latency it has none.

    ``10Gbit:100Mbit,30ms``: the links of workers, and those between the nodes of a tree, level by level from below.

    ``20Mbit,30ms,down=100Mbit``: with what else a link may have (`OPTIONS`), as ``jitter=5ms``, ``shared=1Gbit``, ``trace=links.csv``.

    The names, in capitals or not, are wide-area links from 10 Mbit/s (50 ms) to a machine room's 100 Gbit/s (0.1 ms).

    Raises
    ------
    RecipeError
        for what is none of these.
    """
    inside, *above = name.split(":")
    base, options = _options(inside, OPTIONS)
    net = _rate(base)
    net = replace(net, **options) if options else net
    levels = list[Link]()
    for part in above:
        base, options = _options(part, ("down",))
        link = _rate(base)
        levels.append(Link(link.bits_per_second, link.latency_seconds, **options))
    return replace(net, levels=tuple(levels)) if levels else net


def _rate(name: str) -> Network:
    """A named network, or a rate with a latency."""
    known = next((net for key, net in NETWORKS.items() if key.lower() == name.strip().lower()), None)
    if known is not None:
        return known
    spelled = _SPELLED.fullmatch(name.strip())
    if spelled:
        number, unit, wait, wait_unit = spelled.groups(default="0")
        factor = {known.lower(): x for known, x in UNITS.items()}.get(unit.lower())
        part = LATENCIES.get(wait_unit) if spelled[4] else 1.0
        try:
            rate, latency = float(number) * (factor or math.nan), float(wait) / (part or math.nan)
        except ValueError:
            rate = latency = math.nan
        if 0 < rate < math.inf and 0 <= latency < math.inf:
            return Network(bits_per_second=rate, latency_seconds=latency)
        if rate == 0:
            raise RecipeError(
                f"network {shown(name)} carries nothing: its rate must be greater than 0, as in 3Mbit,20ms"
            )
    raise RecipeError(
        one_of("network", name, NETWORKS)
        + f"; or spell it out, as 3Mbit,20ms, with {', '.join(UNITS)} a second and ms or s"
    )


# What else may be said of a network, each with an example; in Python under the names of the fields of `Network`.
OPTIONS = {
    "down": "100Mbit",
    "jitter": "5ms",
    "spread": "0.3",
    "seed": "1",
    "shared": "1Gbit",
    "server": "1Gbit",
    "trace": "links.csv",
    "topology": "mailbox",
    "overlap": "0.5",
    "framing": "ethernet",
}
_FIELDS = {"down": "down_bits_per_second", "jitter": "jitter_seconds", "server": "server_bits_per_second"}


def _options(spelled: str, allowed: Iterable[str]) -> tuple[str, dict[str, Any]]:
    """What stands before the options, and the fields that they set. Raises RecipeError: one line."""
    plain, fields = list[str](), dict[str, Any]()
    for part in spelled.split(","):
        key, equals, value = (word.strip() for word in part.partition("="))
        if not equals:
            plain.append(part)
            continue
        if key not in allowed:
            raise RecipeError(one_of(f"option of network {shown(spelled)}", key, allowed))
        fields[_FIELDS.get(key, key)] = _option(key, value)
    if "shared" in fields:
        fields["bottlenecks"] = (Bottleneck(fields.pop("shared")),)
    return ",".join(plain), fields


def _option(key: str, value: str) -> Any:
    found: Any = value
    if key in ("down", "shared", "server"):
        found = rate_in(value)
    elif key == "jitter":
        number, unit = re.fullmatch("(.*?) *([a-zµ]*)", value).groups()  # type: ignore[union-attr]
        seconds = number_in(number)
        found = None if seconds is None or unit not in LATENCIES else seconds / LATENCIES[unit]
    elif key in ("spread", "overlap"):
        found = number_in(value)
    elif key == "seed":
        found = int(value) if re.fullmatch("[0-9]{1,18}", value, re.ASCII) else None
    elif key == "trace":
        found = read_trace(value)
    if found is None:
        raise RecipeError(f"network option {key}={shown(value)} is not allowed: write it as {key}={OPTIONS[key]}")
    return found


def described(network: Network) -> str:
    """``100 Mbit/s, 30 ms``: both numbers, since either can be what a run waits for; what else there is; then the levels above."""
    own = [_described(network)]
    if network.jitter_seconds:
        own.append(f"{_latency(network.jitter_seconds)} of jitter")
    if network.spread:
        own.append(f"rates spread by {network.spread:g}")
    own += [f"{_bits(b.bits_per_second)} shared" for b in network.bottlenecks]
    if network.trace:
        num = len({entry[1] for entry in network.trace})
        own.append(f"{num} link{'s' * (num > 1)} by a trace")
    return "; above ".join([", ".join(own), *map(_described, network.levels)])


def _described(link: Network | Link) -> str:
    rate = _bits(link.bits_per_second)
    both = rate if link.down == link.bits_per_second else f"{rate} up, {_bits(link.down)} down"
    return f"{both}, {_latency(link.latency_seconds) if link.latency_seconds else 'no latency'}"


def _bits(bits_per_second: float) -> str:
    unit, factor = next((u, f) for u, f in reversed(UNITS.items()) if bits_per_second >= f or u == "bit")
    return f"{bits_per_second / factor:.3g} {unit}/s"


def _latency(seconds: float) -> str:
    return f"{seconds * 1e3:.3g} ms" if seconds < 1 else f"{seconds:.3g} s"


@dataclass(frozen=True)
class Device:
    """Peak floating-point operations per second (bf16, dense), the part of it that training is assumed to reach, memory."""

    peak: float
    reached: float
    memory_bytes: float


DEVICES: dict[str, Device] = {
    "h100": Device(989e12, 0.4, 80e9),
    "a100": Device(312e12, 0.4, 80e9),
    "rtx4090": Device(165e12, 0.35, 24e9),
    "laptop": Device(100e9, 0.5, 16e9),
}


def device_named(name: str) -> Device:
    """Raises RecipeError for a name that is none of `DEVICES`."""
    if name not in DEVICES:
        raise RecipeError(one_of("device", name, DEVICES))
    return DEVICES[name]


def step_seconds(num_params: float, tokens: int, device: str) -> float:
    """Seconds of one local step by the usual count of 6 operations per parameter that a token meets."""
    given = device_named(device)
    return 6.0 * num_params * tokens / (given.peak * given.reached)


def human(num_bytes: float) -> str:
    """``12.8 GB``: decimal units, as networks are sold."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if abs(num_bytes) < 999.5:
            return f"{num_bytes:.3g} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:.3g} PB"


def duration(seconds: float) -> str:
    """``1.25 ms``, ``40 s``, ``12.5 min``, ``3.21 h``, ``4,300 days``."""
    for size, unit in ((86400, "days"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.3g} {unit}" if seconds < 1000 * size else f"{seconds / size:,.0f} {unit}"
    if 0 < seconds < 0.1:
        return f"{1000 * seconds:.3g} ms" if seconds >= 0.001 else "under 1 ms"
    return f"{seconds:.3g} s"
