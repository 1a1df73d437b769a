"""Photon: server steps by hand, weighted averages, clients that are sampled, the stretched schedule, times by topology."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch

from lab import optimizers
from lab.costs.network import Network
from lab.engine.optim import AdamW, Nesterov, Optimizer
from lab.events import Sent, WorkersChanged
from lab.ground.errors import RecipeError
from lab.methods.ddp import DDP
from lab.methods.diloco import DiLoCo
from lab.methods.local_sgd import LocalSGD
from lab.methods.photon import FedAvg, Photon, stretched_cosine
from lab.recipes.scenario import Scenario
from lab.runs.trainer import Trainer
from tests.support.bench import F64, Bench, close, other
from tests.support.listed import SGD
from tests.support.plain import plain
from tests.support.points import START, points, slope, values
from tests.support.recipes import corpus, recipe

# --- the server's optimizers -----------------------------------------------------------------------------------------

DELTAS = [0.5, -0.25, 1.0, 0.0, -2.0]
THETA, ETA, MU, BETA1, BETA2, TAU = 1.0, 0.7, 0.9, 0.8, 0.9, 0.1


def fedavg(deltas: list[float]) -> float:
    return THETA - sum(ETA * d for d in deltas)


def fedmom(deltas: list[float]) -> float:
    theta, before = THETA, THETA
    for d in deltas:
        y = theta - ETA * d
        theta, before = (1 + MU) * y - MU * before, y
    return theta


def nesterov(deltas: list[float]) -> float:
    theta, b = THETA, 0.0
    for d in deltas:
        b = MU * b + d
        theta -= ETA * (d + MU * b)
    return theta


def fedadam(deltas: list[float], yogi: bool = False) -> float:
    theta, m, v = THETA, 0.0, TAU**2
    for d in deltas:
        m = BETA1 * m + (1 - BETA1) * d
        sign = (v > d * d) - (v < d * d)
        v = v - (1 - BETA2) * d * d * sign if yogi else BETA2 * v + (1 - BETA2) * d * d
        theta -= ETA * m / (math.sqrt(v) + TAU)
    return theta


ADAPTIVE = {"betas": (BETA1, BETA2), "tau": TAU}
SERVERS: list[tuple[Optimizer, Any]] = [
    (FedAvg(ETA), fedavg),
    (Optimizer("FedMom", ETA, {"momentum": MU}), fedmom),
    (Nesterov(ETA, MU), nesterov),
    (Optimizer("FedAdam", ETA, ADAPTIVE), fedadam),
    (Optimizer("FedYogi", ETA, ADAPTIVE), lambda d: fedadam(d, yogi=True)),
]


@pytest.mark.parametrize(("outer", "by_hand"), SERVERS, ids=lambda v: getattr(v, "name", ""))
def test_server_steps_by_hand(outer: Optimizer, by_hand: Any) -> None:
    """Five pseudo-gradients, zero and sign changes among them, against the formulas in plain Python."""
    x = torch.nn.Parameter(torch.tensor(THETA, dtype=F64))
    cls = getattr(optimizers, outer.name, torch.optim.SGD)
    optimizer = cls([x], lr=outer.lr, **outer.options)
    for k, d in enumerate(DELTAS, 1):
        x.grad = torch.tensor(d, dtype=F64)
        optimizer.step()
        assert float(x.detach()) == pytest.approx(by_hand(DELTAS[:k]), rel=1e-13), k


def test_server_steps_in_numbers() -> None:
    """Δ = 0.5 from θ = 1 with η = 0.5, μ = 0.5: FedMom y = 0.75, θ = 1.5 · 0.75 − 0.5 = 0.625; then Δ = 0: y = 0.625, 0.5625."""
    x = torch.nn.Parameter(torch.tensor(1.0, dtype=F64))
    optimizer = optimizers.FedMom([x], lr=0.5, momentum=0.5)
    for d, want in ((0.5, 0.625), (0.0, 0.5625)):
        x.grad = torch.tensor(d, dtype=F64)
        optimizer.step()
        assert float(x.detach()) == want


@pytest.mark.parametrize(("outer", "by_hand"), SERVERS, ids=lambda v: getattr(v, "name", ""))
def test_photon_by_hand(outer: Optimizer, by_hand: Any) -> None:
    """Two clients, rounds of two SGD steps, n = (3, 1): the server moves by Δ = θ − (3·θ_0 + θ_1) / 4."""
    method = Photon(2, Optimizer("SGD", 0.1), outer=outer, samples={0: 3.0}, max_norm=None)
    bench = points(method)
    theta, deltas, x = START, [], [START] * 2
    for t in range(1, 9):
        x = [x[w] - 0.1 * slope(w, t, x[w]) for w in range(2)]
        if t % 2 == 0:
            deltas.append(theta - (3 * x[0] + x[1]) / 4)
            theta = by_hand(deltas)
            x = [theta] * 2
        bench.run(1)
        assert values(bench) == pytest.approx(x, rel=1e-11), t
    assert float(bench.shared("params")) == pytest.approx(theta, rel=1e-11)


# --- reductions ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sync_every", [1, 3])
def test_one_client_and_fedavg_is_the_plain_optimizer(sync_every: int) -> None:
    """N = 1, kept states, η = 1: one module under torch's AdamW, whatever τ; with reset states AdamW is new every round."""
    inner = AdamW(3e-2)
    assert close(Bench(Photon(sync_every, inner, "kept"), 1).run(7).of(0), plain(inner, 7))
    assert close(Bench(Photon(sync_every, inner), 1).run(7).of(0), plain(inner, 7, fresh_every=sync_every))


def test_rounds_of_one_step_with_sgd_are_ddp() -> None:
    """τ = 1, SGD, η = 1: the mean of the clients' steps is the step of the mean gradient."""
    photon, ddp = Bench(Photon(1, SGD, max_norm=None)).run(7), Bench(DDP(SGD, max_norm=None)).run(7)
    assert all(close(photon.of(w), ddp.of(w)) for w in range(3))


def test_photon_among_its_relatives() -> None:
    """With kept states and FedAvg it is Local SGD; with Nesterov momentum DiLoCo, bit for bit."""
    inner = AdamW(3e-2)
    photon, averaging = Bench(Photon(3, inner, "kept")).run(8), Bench(LocalSGD(3, inner)).run(8)
    assert all(close(photon.of(w), averaging.of(w)) for w in range(3))
    photon, diloco = Bench(Photon(3, inner, "kept", Nesterov())).run(8), Bench(DiLoCo(3, inner)).run(8)
    assert all(torch.equal(photon.of(w), diloco.of(w)) for w in range(3))
    assert photon.records == diloco.records


def test_nesterov_and_fedmom_are_the_same() -> None:
    """torch keeps the point that FedMom looks ahead to: the same Δs give the same θ, so the two choices are one."""
    assert fedmom(DELTAS) == pytest.approx(nesterov(DELTAS), rel=1e-12)
    mom, nag = (Bench(Photon(2, outer=o)).run(6) for o in (Optimizer("FedMom", 0.7, {"momentum": 0.9}), Nesterov()))
    assert all(close(mom.of(w), nag.of(w)) for w in range(3))


# --- samples and sampled clients -------------------------------------------------------------------------------------


def test_weights_go_with_their_clients() -> None:
    """Dealing batches and sample counts to other clients moves the results along."""
    deal = {0: 2, 1: 0, 2: 1}
    n = {0: 5.0, 2: 2.0}
    mine = Bench(Photon(2, samples=n)).run(6)
    theirs = Bench(Photon(2, samples={w: n.get(deal[w], 1.0) for w in deal}), batch=other(deal)).run(6)
    assert all(close(mine.of(deal[w]), theirs.of(w)) for w in deal)
    assert not close(mine.of(0), Bench(Photon(2)).run(6).of(0), 1e-6)


def test_who_is_down_is_left_out_of_the_weights() -> None:
    """n = (5, 1, 2) without client 1 is n = (5, 2)."""
    three = Bench(Photon(2, samples={0: 5.0, 2: 2.0}))
    three.fleet.up = [True, False, True]
    two = Bench(Photon(2, samples={0: 5.0, 1: 2.0}), 2, batch=other({1: 2}))
    assert close(three.run(6).of(2), two.run(6).of(1))


def test_clients_are_sampled_for_every_round() -> None:
    """Two of five clients a round, not always the same; only they send, at the end of the round."""
    scenario = Scenario(sample=2, sample_every=3, catch_up="params")
    r = recipe(Photon(3), num_workers=5, steps=9, scenario=scenario)
    trainer = Trainer(r, corpus=corpus())
    up: list[int] = []
    for event in trainer.events():
        if isinstance(event, WorkersChanged):
            up = event.up
            assert len(up) == 2
        if isinstance(event, Sent) and event.op == "all_reduce":
            assert list(event.workers) == up
            assert event.step % 3 == 0
    assert trainer.built.roll_call.up_TW.any(0).sum() > 2


def test_clients_start_a_round_at_the_server() -> None:
    """After the first step of a round every sampled client is one inner step away from the server's parameters."""
    scenario = Scenario(sample=2, sample_every=3, catch_up="params")
    r = recipe(Photon(3, Optimizer("SGD", 1e-30), max_norm=None), num_workers=4, steps=9, scenario=scenario)
    trainer = Trainer(r, corpus=corpus())
    for event in trainer.events():
        if event.kind == "stepped" and trainer.t % 3 == 1:
            for i, mine in enumerate(trainer.fleet.params.blocks):
                for row in trainer.fleet.params.rows(i, trainer.fleet.up):
                    assert close(mine[row], trainer.state.shared["params"].blocks[i][0], 1e-14)


def test_mistakes_are_explained() -> None:
    with pytest.raises(RecipeError, match="ADOPT"):
        Photon(inner=Optimizer("ADOPT", 1e-3))
    with pytest.raises(RecipeError, match="worker 3 of 3"):
        Bench(Photon(samples={3: 1.0}))
    with pytest.raises(RecipeError, match="greater than 0"):
        recipe("photon").but(method={"name": "photon", "samples": {"0": 0.0}})


# --- schedule and times ----------------------------------------------------------------------------------------------


def test_the_stretched_schedule_of_the_example() -> None:
    """125M: 5120 steps of 256 sequences become 40,960 of 32, warm-up 100 becomes 800, and it ends at a tenth."""
    steps, schedule = stretched_cosine(5120, 256, 32, warmup=100)
    assert (steps, schedule.warmup) == (40_960, 800)
    assert schedule.at(800, steps) == schedule.at(801, steps) == 1.0
    assert schedule.at(steps, steps) == pytest.approx(0.1, abs=1e-6)
    centralised = [stretched_cosine(5120, 256, 256, warmup=100)[1].at(t, 5120) for t in (100, 2000, 5000)]
    assert [schedule.at(8 * t, steps) for t in (100, 2000, 5000)] == pytest.approx(centralised, abs=2e-3)


@pytest.mark.parametrize("n", [2, 4, 16])
@pytest.mark.parametrize("rounds", [1, 3])
def test_wall_time_by_topology(n: int, rounds: int) -> None:
    """rounds · (τ/ν + T): server 2·N·S/B_s, all to all (N − 1)·S/B, ring 2·(N − 1)/N·S/B; B_s = B, no latency."""
    tau, step_seconds, size, link = 5, 0.25, 1_000_000, 8e6  # S/B = 1 second
    records = [Sent(tau * (i + 1), "all_reduce", "params", tuple(range(n)), {"all": size}) for i in range(rounds)]
    forms = {"server": 2.0 * n, "all_to_all": n - 1.0, "ring": 2 * (n - 1) / n}
    for topology, seconds in forms.items():
        net = Network(bits_per_second=link, topology=topology)  # type: ignore[arg-type]
        bill = net.price(records, num_workers=n, steps=tau * rounds, compute_seconds=step_seconds)
        assert bill.total_seconds == pytest.approx(rounds * (tau * step_seconds + seconds)), topology
    fast = Network(bits_per_second=link, server_bits_per_second=4 * link, topology="server")
    want = max(2 * n / 4, 2.0)  # a client's own link is never passed
    assert fast.price(records[:1], num_workers=n, steps=tau).total_seconds == pytest.approx(want)


def test_the_ring_saturates_and_the_others_do_not() -> None:
    """Ring stays under 2·S/B for ever; server and all to all grow with N, and cross where 2·N·B/B_s = N − 1."""
    ring, peers = Network(bits_per_second=8.0), Network(bits_per_second=8.0, topology="all_to_all")
    server = Network(bits_per_second=8.0, server_bits_per_second=32.0, topology="server")
    times = {
        k: [x.seconds("all_reduce", 1, tuple(range(n))) for n in (2, 8, 64)]
        for k, x in {"ring": ring, "peers": peers, "server": server}.items()
    }
    assert all(t < 2 for t in times["ring"])
    assert times["peers"] == [1, 7, 63]
    assert times["server"] == [2, 4, 32]
    assert all(a < b for row in times.values() for a, b in itertools.pairwise(row))


def test_tau_times_fewer_bytes_than_ddp() -> None:
    """One exchange per τ steps: τ times fewer bytes than DDP."""
    ddp, photon = (Bench(m, device="meta").run(128) for m in (DDP(SGD), Photon(64)))
    assert ddp.comm.ledger.total_bytes() == 64 * photon.comm.ledger.total_bytes()
