"""Asynchronous DiLoCo: two rounds by hand, an event queue that knows nothing of ticks, what it is with equal paces, and what it costs."""

from __future__ import annotations

import heapq
import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from lab.costs.network import Network
from lab.engine.optim import AdamW, Nesterov, Optimizer
from lab.ground.errors import RecipeError
from lab.methods.async_diloco import AsyncDiLoCo
from lab.methods.diloco import DiLoCo
from lab.recipes.notes import notes
from tests.support.bench import F64, Bench, batch, build, close, flat
from tests.support.listed import SGDM
from tests.support.recipes import recipe

SGD = Optimizer("SGD", 0.1)


class Planes(nn.Module):
    """Three numbers x, and a loss |a·x − y|² / 2 with a matrix and a vector from the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.x = nn.Parameter(torch.zeros(3, dtype=F64))

    def loss(self, a: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return (a @ self.x - y).square().sum() / 2


class Slope(nn.Module):
    """One number whose gradient is what the batch says."""

    def __init__(self) -> None:
        super().__init__()
        self.x = nn.Parameter(torch.zeros(1, dtype=F64))

    def loss(self, slope: float) -> torch.Tensor:
        return slope * self.x.sum()


def bench(method: AsyncDiLoCo, num: int, model: type[nn.Module], of: Any) -> Bench:
    return Bench(method, num, build=lambda w: model(), batch=of)


def test_two_rounds_by_hand() -> None:
    """Worker 1 takes twice as long, so it ends steps in ticks 2, 4, 6, 8; two steps a round: Δ is 0.2 and 0.6; lr 1, μ 0.5."""
    method = AsyncDiLoCo(2, (1.0, 2.0), inner=SGD, lr=1.0, momentum=0.5, max_norm=None)
    lab = bench(method, 2, Slope, lambda w, t: (1.0 if w == 0 else 100.0 if t % 2 else 3.0,))
    # tick 2: g = 0.1.  4: g = (0.2 + 0.6) / 2, three have come: b = 0.5 = m, θ = −0.5 − 0.5 · 0.5
    # 6: g = 0.1.  8: g = 0.4, b = 0.5, m = 0.25 + 0.5, θ = −0.75 − 0.5 − 0.5 · 0.75
    server = [0, -0.1, -0.1, -0.75, -0.75, -0.85, -0.85, -1.625]
    first = [-0.1, -0.2, -0.2, -0.3, -0.85, -0.95, -0.95, -1.05]
    second = [0, -0.3, -0.3, -0.6, -0.75, -1.05, -1.05, -1.35]
    for t in range(8):
        lab.run(1)
        found = [float(lab.shared("params")), float(lab.of(0)), float(lab.of(1))]
        assert found == pytest.approx([server[t], first[t], second[t]], rel=1e-12), t + 1
    assert float(lab.shared("server.momentum")) == pytest.approx(0.75, rel=1e-12)
    assert [(r.step, r.op, r.workers) for r in lab.records] == [
        (1, "broadcast", (0, 1)),
        (2, "reduce", (0,)),
        (3, "broadcast", (0,)),
        (4, "reduce", (0, 1)),
        (5, "broadcast", (0, 1)),
        (6, "reduce", (0,)),
        (7, "broadcast", (0,)),
        (8, "reduce", (0, 1)),
    ]


def plane(worker: int, t: int) -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng([worker, t])
    a = draw.normal(size=(2, 3))
    return a, a @ [1.0, -2.0, 3.0] + draw.normal(size=2)


def in_a_queue(method: AsyncDiLoCo, paces: list[str], ends: list[int], ticks: int) -> list[np.ndarray]:
    """The server's numbers at the end of every tick, from a queue of (when a local step ends, worker). ``ends``: steps of a round."""
    num, theta, m, b = len(paces), np.zeros(3), np.zeros(3), np.zeros(3)
    x, taken = [theta.copy() for _ in paces], [theta.copy() for _ in paces]
    done, took, moves, arrived = [0] * num, [0] * num, 0, 0
    queue = [(math.ceil(Fraction(p)), w) for w, p in enumerate(paces)]
    heapq.heapify(queue)
    out: list[np.ndarray] = []
    for now in range(1, ticks + 1):
        here: list[int] = []
        while queue and queue[0][0] == now:
            w = heapq.heappop(queue)[1]
            a, y = plane(w, now)
            x[w] = x[w] - method.inner.lr * (a.T @ (a @ x[w] - y))
            done[w] += 1
            heapq.heappush(queue, (math.ceil((done[w] + 1) * Fraction(paces[w])), w))
            here += [w] if done[w] % ends[w] == 0 else []
        if here:
            g = np.zeros(3)
            for w in here:
                g += (1 + moves - took[w]) ** -method.staleness * (taken[w] - x[w]) / num
            b, theta, moves, arrived = b + g, theta - method.lr * g, moves + 1, arrived + len(here)
            if arrived >= (method.momentum_every or num):
                m = method.momentum * m + b
                theta, b, arrived = theta - method.lr * method.momentum * m, np.zeros(3), 0
            for w in here:
                x[w], taken[w], took[w] = theta.copy(), theta.copy(), moves
        out.append(theta)
    return out


UNEQUAL: dict[str, dict[str, Any]] = {
    "delayed": {},
    "stale counts less": {"staleness": 0.7},
    "at every arrival": {"momentum_every": 1, "momentum": 0.4},
    "after two": {"momentum_every": 2, "staleness": 1.3},
    "plain": {"momentum": 0.0},
    "by speed": {"local_steps": "by_speed"},
}


@pytest.mark.parametrize("options", UNEQUAL.values(), ids=UNEQUAL)
def test_a_queue_of_events_gives_the_same(options: dict[str, Any]) -> None:
    """Three workers, of paces that meet now and then: 1, 1.1 and 2.7."""
    paces, ticks = ["1", "1.1", "2.7"], 60
    method = AsyncDiLoCo(6, tuple(map(float, paces)), inner=Optimizer("SGD", 0.02), max_norm=None, **options)
    ends = [6, 5, 2] if method.local_steps == "by_speed" else [6] * 3
    expected = in_a_queue(method, paces, ends, ticks)
    lab = bench(method, 3, Planes, lambda w, t: tuple(map(torch.from_numpy, plane(w, t))))
    for t in range(ticks):
        lab.run(1)
        np.testing.assert_allclose(lab.shared("params").numpy(), expected[t], rtol=1e-12, atol=1e-14, err_msg=str(t))
    alone = [r for r in lab.records if r.op == "reduce" and len(r.workers) == 1]
    assert {r.workers[0] for r in alone} == {0, 1, 2}
    assert np.abs(expected[-1]).max() > 0.1


def test_with_equal_paces_it_is_diloco() -> None:
    """Momentum, delayed until all have come, and all come together: one Nesterov step along the mean."""
    for pace, staleness in ((1.0, 0.0), (1.0, 2.0), (2.0, 0.0)):
        mine = Bench(AsyncDiLoCo(3, (pace,), inner=SGDM, staleness=staleness, max_norm=0.5))
        theirs = Bench(DiLoCo(3, SGDM, Nesterov(), max_norm=0.5))
        mine.batch = lambda w, t, p=int(pace): batch(w, t // p)  # the tick in which a step ends
        mine.run(9 * int(pace))
        theirs.run(9)
        assert close(mine.shared("params"), theirs.shared("params"))
        assert close(mine.shared("server.momentum"), theirs.shared("momentum_buffer"))
        mine.run(int(pace))
        theirs.run(1)
        assert all(close(mine.of(w), theirs.of(w)) for w in range(3))
    other = Bench(AsyncDiLoCo(3, inner=SGDM, momentum_every=7, max_norm=0.5)).run(9)
    assert not close(other.shared("params"), theirs.shared("params"), 1e-3)


def test_a_worker_at_work_stands_still() -> None:
    """Its optimizer, too: it is torch's, on the batches of the ticks in which its steps end."""
    net = build(None)
    adam = torch.optim.AdamW(net.parameters(), lr=3e-2, betas=(0.9, 0.95), weight_decay=0.0)
    lab = Bench(AsyncDiLoCo(50, (1.0, 2.5), inner=AdamW(3e-2), max_norm=None), 2)
    for t in range(1, 11):
        before = lab.of(1)
        lab.run(1)
        if t not in (3, 5, 8, 10):  # ⌈n · 2.5⌉
            assert torch.equal(lab.of(1), before)
            continue
        adam.zero_grad()
        net.loss(*batch(1, t)).backward()
        adam.step()
        assert close(lab.of(1), flat(net)), t


def test_who_is_away_is_not_waited_for_nor_counted() -> None:
    """N are those who are up; who is back takes the newest, and hands in at its next tick after fewer steps."""
    lab = bench(AsyncDiLoCo(2, inner=SGD, lr=1.0, momentum=0.0, max_norm=None), 2, Slope, lambda w, t: (1.0 + 2 * w,))
    lab.fleet.set_up([True, False])
    lab.run(2)
    assert float(lab.shared("params")) == pytest.approx(-0.2, rel=1e-12)
    lab.run(1)
    lab.fleet.set_up([True, True])
    lab.state.returned = [1]
    lab.run(1)  # 0: two steps of 0.1, 1: one of 0.3
    assert float(lab.of(1)) == pytest.approx(-0.5, rel=1e-12)
    assert float(lab.shared("params")) == pytest.approx(-0.2 - (0.2 + 0.3) / 2, rel=1e-12)


S, B, L, H, ROUNDS, TIMES = 24 * 8, 8.0 * 24 * 8, 0.5, 4, 10, 5  # a payload takes one second


def seconds(method: Any, slow: dict[int, float] | None = None) -> np.ndarray:
    """When each tick, or local step, is finished everywhere, of four workers behind a server whose own link is no limit."""
    net = Network(bits_per_second=B, latency_seconds=L, topology="server", server_bits_per_second=1e30)
    records = Bench(method, 4, device="meta").run(ROUNDS * H).records
    return net.price(records, num_workers=4, steps=ROUNDS * H, compute_seconds=1.0, slow=slow).at_step


def test_nobody_waits_for_a_slow_worker() -> None:
    """One of four takes five times as long: with DiLoCo all do, here the others end their rounds when they did before."""
    alike = seconds(AsyncDiLoCo(H))
    one_slow = seconds(AsyncDiLoCo(H, (1.0, 1.0, 1.0, float(TIMES))))
    np.testing.assert_allclose(one_slow, alike, rtol=1e-12)
    exchange = 2 * (1.0 + L)  # up and down
    assert alike[-1] == pytest.approx(ROUNDS * (H + exchange), rel=1e-12)
    assert seconds(DiLoCo(H))[-1] == pytest.approx(ROUNDS * (H + exchange), rel=1e-12)
    assert seconds(DiLoCo(H), {3: TIMES})[-1] == pytest.approx(ROUNDS * (TIMES * H + exchange), rel=1e-12)
    ledger = Bench(AsyncDiLoCo(H, (1.0, 1.0, 1.0, float(TIMES))), 4, device="meta").run(ROUNDS * H).comm.ledger
    handed = ledger.by("op", "worker")
    assert [handed["reduce", w] for w in range(4)] == [ROUNDS * S] * 3 + [ROUNDS // TIMES * S]


def test_what_is_refused_and_what_makes_no_difference() -> None:
    with pytest.raises(RecipeError, match="paces differ, but clients take turns"):
        recipe(AsyncDiLoCo(2, (1.0, 2.0)), clients={"num": 7})
    recipe(AsyncDiLoCo(2, (2.0,)), clients={"num": 7})

    def said(method: AsyncDiLoCo, **changes: Any) -> str:
        r = recipe(method, **changes)
        return "\n".join(notes(r, np.ones((r.steps, r.num_workers), dtype=bool)))

    assert "nothing that arrives is stale" in said(AsyncDiLoCo(2, staleness=0.5))
    assert "all paces are equal" in said(AsyncDiLoCo(2, local_steps="by_speed"))
    assert "4 paces for 3 workers" in said(AsyncDiLoCo(2, (1.0, 1.0, 1.0, 3.0)))
    assert "scenario.slow makes ticks longer in the price alone" in said(AsyncDiLoCo(2), scenario={"slow": {1: 2.0}})
    assert not said(AsyncDiLoCo(2, (1.0, 1.0, 3.0), "by_speed", staleness=0.5))
