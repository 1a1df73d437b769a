"""q-FedAvg and TERM: rounds by hand, the formulas of the papers written out, corners in which they are FedAvg, bytes."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch

from lab.engine.optim import Optimizer
from lab.methods.fedprox import FedProx
from lab.methods.q_fedavg import TINY, QFedAvg
from lab.methods.term import TERM
from tests.support.bench import Bench, close
from tests.support.listed import SGD
from tests.support.points import START, curve, point, points, slope, values

RATE = 0.1
PLAIN = Optimizer("SGD", RATE)


def loss(worker: int, t: int, x: float) -> float:
    a, c = curve(worker, t)
    return 0.5 * a * (x - c) ** 2


def story(bench: Bench, server_step: Any) -> None:
    """Four rounds of two steps, client 1 away in the last step of the second, and in the first of the third; ``server_step`` by hand."""
    bench.state.samples_W = [3, 1]
    server, w_k, F, was = START, [START] * 2, [0.0, 0.0], [True] * 2
    for t in range(1, 9):
        up = [True, t not in (4, 5)]
        for k in range(2):
            if up[k] and (t % 2 == 1 or not was[k]):
                w_k[k], F[k] = server, loss(k, t, server)
            if up[k]:
                w_k[k] -= RATE * slope(k, t, w_k[k])
        if t % 2 == 0:
            server = server_step(server, w_k, F, [k for k in range(2) if up[k]])
        bench.fleet.up, bench.state.returned = up, [k for k in range(2) if up[k] and not was[k]]
        bench.run(1)
        was = up
        assert values(bench) == pytest.approx(w_k, rel=1e-12), t
        assert float(bench.shared("params")) == pytest.approx(server, rel=1e-12), t


def test_one_round_of_q_fedavg_in_numbers() -> None:
    """q = 1, L = 1/0.1 = 10, rounds of one step from w = 1. Client 0: x²/2, so F = 0.5 and Δw = 10·(1 − 0.9) = 1: its gradient.

    Δ = 0.5 and h = 1·1 + 10·0.5 = 6. Client 1: 1.5·(x − 2)², F = 1.5, Δw = −3, Δ = −4.5, h = 9 + 15 = 24. w = 1 + 4/30.
    """
    bench = points(QFedAvg(1, 1.0, PLAIN))
    assert values(bench.run(1)) == pytest.approx([0.9, 1.3], rel=1e-15)
    assert float(bench.shared("params")) == pytest.approx(1 + 4 / 30, rel=1e-9)  # as 1e-10 is added to each loss


def test_one_round_of_term_in_numbers() -> None:
    """τ = ln 2: a = 2^0.5 and 2^1.5, one part to two. w = 1 + (−0.1 + 2·0.3) / 3, and F̃ = log2 of the mean of the a."""
    bench = points(TERM(1, math.log(2), PLAIN))
    assert values(bench.run(1)) == pytest.approx([0.9, 1.3], rel=1e-15)
    assert float(bench.shared("params")) == pytest.approx(1 + 0.5 / 3, rel=1e-14)
    assert bench.state.facts["tilted"] == pytest.approx(math.log2((2**0.5 + 2**1.5) / 2), rel=1e-14)


@pytest.mark.parametrize("weight", ["uniform", "samples"])
@pytest.mark.parametrize(("q", "lipschitz"), [(0.0, None), (0.5, None), (3.0, 4.0)])
def test_q_fedavg_by_hand(q: float, lipschitz: float | None, weight: Any) -> None:
    n, L = [3, 1] if weight == "samples" else [1, 1], lipschitz or 1 / RATE

    def server_step(w: float, w_k: list[float], F: list[float], there: list[int]) -> float:
        way = {k: L * (w - w_k[k]) for k in there}
        change = sum(n[k] * (F[k] + TINY) ** q * way[k] for k in there)
        h = sum(n[k] * (q * (F[k] + TINY) ** (q - 1) * way[k] ** 2 + L * (F[k] + TINY) ** q) for k in there)
        return w - change / h

    story(points(QFedAvg(2, q, PLAIN, lipschitz, weight=weight)), server_step)


@pytest.mark.parametrize("weight", ["uniform", "samples"])
@pytest.mark.parametrize("tilt", [0.0, 0.1, 2.0])
def test_term_by_hand(tilt: float, weight: Any) -> None:
    """With the largest loss taken off, as the paper has it: the same."""
    n = [3, 1] if weight == "samples" else [1, 1]

    def server_step(w: float, w_k: list[float], F: list[float], there: list[int]) -> float:
        a = {k: n[k] * math.exp(tilt * (F[k] - max(F[j] for j in there))) for k in there}
        return w + sum(a[k] * (w_k[k] - w) for k in there) / sum(a.values())

    story(points(TERM(2, tilt, PLAIN, weight=weight)), server_step)


# Two clients that fare alike at the start, 1, and pull to different sides: 1/2 · (1 − 0)² = 4/2 · (1 − 1.5)².
ALIKE = [(1.0, 0.0), (4.0, 1.5)]


@pytest.mark.parametrize("q", [0.0, 0.2, 1.0, 5.0])
def test_where_all_fare_alike_it_is_flowers(q: float) -> None:
    """Flower's QFedAvg has one loss for all clients, that of the server's model; with the F_k of the paper equal it is the same step."""
    lr, loss_of_all = RATE, 0.5 + 1e-10
    bench = Bench(QFedAvg(2, q, PLAIN), 2, build=point, batch=lambda worker, t: ALIKE[worker]).run(2)
    grads = [(START - w) / lr for w in values(bench)]
    deltas = [loss_of_all**q * g for g in grads]
    hs = [q * loss_of_all ** (q - 1) * g**2 + loss_of_all**q / lr for g in grads]
    assert float(bench.shared("params")) == pytest.approx(START - sum(deltas) / sum(hs), rel=1e-12)


def test_the_tilted_loss_is_that_of_the_formula() -> None:
    """F̃ = 1/τ·log Σ p_k·exp(τ·F_k) of the last round, round after round."""
    bench, server = points(TERM(1, 2.0, PLAIN)), START
    for t in range(1, 6):
        F = [loss(k, t, server) for k in range(2)]
        bench.run(1)
        server = float(bench.shared("params"))
        assert bench.state.facts["tilted"] == pytest.approx(
            math.log(sum(math.exp(2 * x) for x in F) / 2) / 2, rel=1e-12
        )


@pytest.mark.parametrize("weight", ["uniform", "samples"])
@pytest.mark.parametrize(
    ("fair", "tolerance"),
    [(QFedAvg(2, 0.0, SGD), 1e-13), (TERM(2, 0.0, SGD), 1e-13), (TERM(2, 1e-13, SGD), 1e-11)],
    ids=["q = 0", "τ = 0", "τ → 0"],
)
def test_in_a_corner_they_are_fedavg(fair: Any, tolerance: float, weight: Any) -> None:
    one, other = Bench(dataclasses.replace(fair, weight=weight), 3), Bench(FedProx(2, 0.0, SGD, weight=weight), 3)
    one.state.samples_W = other.state.samples_W = [5, 1, 2]
    one.run(6)
    other.run(6)
    assert close(one.shared("params"), other.shared("params"), tolerance)


@pytest.mark.parametrize(("fair", "state"), [(QFedAvg(2, 1.0, SGD), "h"), (TERM(2, 1.0, SGD), "tilt")])
def test_one_number_travels_beside_the_parameters(fair: Any, state: str) -> None:
    plain, bench = Bench(FedProx(2, 0.0, SGD), 3).run(4), Bench(fair, 3).run(4)
    of = {r.state for r in bench.comm.ledger.records}
    assert of == {"params", state}
    extra = [(r.step, r.op, r.bytes_each) for r in bench.comm.ledger.records if r.state == state]
    up = [(2, "gather", 8), (4, "gather", 8)]
    assert extra == (up if state == "h" else sorted([(1, "broadcast", 8), (3, "broadcast", 8), *up]))
    rest = [r for r in bench.comm.ledger.records if r.state != state]
    assert rest == plain.comm.ledger.records


def test_who_fares_worse_counts_for_more() -> None:
    """Two clients whose minima are apart: the larger q, or τ, the nearer the common point comes to where both fare alike."""
    gaps = {}
    for name, fair in {
        "0": QFedAvg(1, 0.0, PLAIN),
        "q 1": QFedAvg(1, 1.0, PLAIN),
        "q 5": QFedAvg(1, 5.0, PLAIN),
        "t 1": TERM(1, 1.0, PLAIN),
        "t 5": TERM(1, 5.0, PLAIN),
    }.items():
        bench = Bench(fair, 2, build=point, batch=lambda worker, t: [(1.0, 0.0), (4.0, 1.0)][worker])
        x = float(bench.run(400).shared("params"))
        gaps[name] = abs(0.5 * x**2 - 2 * (x - 1) ** 2)
    assert gaps["0"] > gaps["q 1"] > gaps["q 5"]
    assert gaps["0"] > gaps["t 1"] > gaps["t 5"]
    assert torch.isfinite(torch.tensor(list(gaps.values()))).all()
