"""Prices a ledger: payload bytes → bytes on the wire → seconds, under a topology, bandwidths and latencies.

Pricing happens after the fact. One run can be looked at on any network, and no method knows of any.

Per collective among n workers with payload S each (bandwidth B, latency l, server bandwidth B_s):

=============  =====================  ================================================
topology       a worker sends         seconds
=============  =====================  ================================================
ring           2(n−1)/n · S           2(n−1)/n · S / B + 2(n−1) · l
all_to_all     (n−1) · S              (n−1) · S / B + l
server         S up, S down           2 · max(n · S / B_s, S / B) + 2 · l
=============  =====================  ================================================

B is the slowest link among those that take part. A payload that cannot be summed on the way (``all_gather``) costs
(n−1) · S per worker on ring and all_to_all, and n · S down per worker from a server. A broadcast to n receivers moves S to
each: S / B pipelined along a ring or from any peer, n · S / B_s from a server. A gather moves n · S to one place. The forms
are the standard ones (Photon's comparison of topologies, DES-LOC's time model); the number of latencies is ours.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import groupby
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from lab.config import Fraction, Positive, config
from lab.errors import RecipeError, one_of
from lab.events import Sent


@config
class Network:
    """Links between workers.

    bits_per_second
        of every worker's link; ``links`` overrides it for single workers.
    latency_seconds
        one way, between any two workers (or a worker and the server).
    server_bits_per_second
        of the server's own link; default as a worker's.
    overlap
        the part of communication that hides behind computation (α in the papers): 0 none, 1 all of it.
    """

    bits_per_second: Positive = 1e9
    latency_seconds: Annotated[float, Field(ge=0)] = 0.0
    topology: Literal["ring", "server", "all_to_all"] = "ring"
    links: dict[int, Positive] = Field(default_factory=dict)
    server_bits_per_second: Positive | None = None
    overlap: Fraction = 0.0

    def price(
        self,
        sent: Iterable[Sent],
        *,
        num_workers: int,
        steps: int,
        compute_seconds: float = 0.0,
        slow: dict[int, float] | None = None,
    ) -> Bill:
        """What a ledger costs on this network.

        Parameters
        ----------
        compute_seconds
            of one local step at a worker; ``slow`` gives factors for single workers. Workers run on by themselves and wait
            for each other only where they exchange something.
        """
        pace = np.array([compute_seconds * (slow or {}).get(w, 1.0) for w in range(num_workers)])
        clock = np.zeros(num_workers)
        at_step = np.zeros(steps + 1)
        wire_W = np.zeros(num_workers)
        by_state: dict[str, float] = {}
        communication, done = 0.0, 0
        for step, records in groupby(sent, key=lambda r: r.step):
            at_step[done + 1 : step] = _alone(clock, pace, step - done - 1)
            clock += pace * (step - done)
            done = step
            # What leaves in one step for the same workers in the same way is one transfer.
            together: dict[tuple[str, tuple[int, ...]], int] = {}
            for r in records:
                payload = r.bytes_each
                together[r.op, r.workers] = together.get((r.op, r.workers), 0) + payload
                by_state[r.state] = by_state.get(r.state, 0.0) + self.wire_bytes(r.op, payload, len(r.workers))
            computed = clock.max()
            for (op, workers), payload in together.items():
                who = list(workers)
                wire_W[who] += self.wire_bytes(op, payload, len(who)) / len(who)
                clock[who] = clock[who].max() + (1 - self.overlap) * self.seconds(op, payload, workers)
            at_step[step] = clock.max()
            communication += float(at_step[step] - computed)  # groups without a common worker talk at the same time
        at_step[done + 1 :] = _alone(clock, pace, steps - done)
        total = float(at_step[-1]) if steps else 0.0
        return Bill(total, communication, total - communication, at_step, wire_W, by_state)

    def wire_bytes(self, op: str, payload: int, n: int) -> float:
        """Bytes that all links together carry for one collective among ``n`` workers with this payload each."""
        if op == "broadcast":
            return float(n * payload)
        if n == 1 and self.topology != "server":
            return 0.0
        if op == "gather":
            return float(n * payload)
        if self.topology == "server":
            return float(n * payload + n * payload * (1 if op == "all_reduce" else n))
        if op == "all_gather" or self.topology == "all_to_all":
            return float(n * (n - 1) * payload)
        return 2.0 * (n - 1) * payload

    def seconds(self, op: str, payload: int, workers: tuple[int, ...]) -> float:
        """How long one collective takes."""
        n = len(workers)
        slowest = min(self.links.get(w, self.bits_per_second) for w in workers) / 8
        server = (self.server_bits_per_second or self.bits_per_second) / 8
        if op == "broadcast":
            if self.topology == "server":
                return max(n * payload / server, payload / slowest) + self.latency_seconds
            return payload / slowest + self.latency_seconds
        if n == 1 and self.topology != "server":
            return 0.0
        if op == "gather":
            return max(n * payload / server, payload / slowest) + self.latency_seconds
        if self.topology == "server":
            down = payload if op == "all_reduce" else n * payload
            up_seconds = max(n * payload / server, payload / slowest)
            return up_seconds + max(n * down / server, down / slowest) + 2 * self.latency_seconds
        if self.topology == "all_to_all":
            return (n - 1) * payload / slowest + self.latency_seconds
        hops = n - 1 if op == "all_gather" else 2 * (n - 1)
        moved = (n - 1) * payload if op == "all_gather" else 2 * (n - 1) / n * payload
        return moved / slowest + hops * self.latency_seconds


def _alone(clock: np.ndarray, pace: np.ndarray, steps: int) -> np.ndarray:
    """When the last worker finishes each of the next ``steps`` steps, if nobody waits for anybody."""
    return np.asarray((clock[:, None] + pace[:, None] * np.arange(1, steps + 1)).max(0))


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


def network(name: str) -> Network:
    """A named network: wide-area links from 10 Mbit/s (50 ms) to a machine room's 100 Gbit/s (0.1 ms)."""
    if name not in NETWORKS:
        raise RecipeError(one_of("network", name, NETWORKS))
    return NETWORKS[name]


# Peak floating-point operations per second (bf16, dense) and the part of it that training is assumed to reach.
DEVICES: dict[str, tuple[float, float]] = {
    "h100": (989e12, 0.4),
    "a100": (312e12, 0.4),
    "rtx4090": (165e12, 0.35),
    "laptop": (100e9, 0.5),
}


def step_seconds(num_params: float, tokens: int, device: str) -> float:
    """Seconds of one local step by the usual count of 6 operations per parameter that a token meets."""
    if device not in DEVICES:
        raise RecipeError(one_of("device", device, DEVICES))
    peak, reached = DEVICES[device]
    return 6.0 * num_params * tokens / (peak * reached)
