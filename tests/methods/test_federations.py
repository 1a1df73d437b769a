"""FedProx and SCAFFOLD: steps by hand, whole federations written out in plain torch, reductions, bytes, clients that come back."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lab.engine.optim import AdamW, Optimizer
from lab.events import Evaluated, Seated, Sent
from lab.ground.errors import RecipeError
from lab.methods.fedprox import FedProx
from lab.methods.local_sgd import LocalSGD
from lab.methods.photon import FedAvg, Photon
from lab.methods.scaffold import SCAFFOLD
from lab.recipes.clients import Clients
from lab.recipes.notes import notes
from lab.recipes.recipe import Recipe
from lab.recipes.scenario import Outage, Scenario
from lab.runs.plan import plan
from lab.runs.trainer import Trainer, dry_run
from tests.support.bench import Bench, close
from tests.support.listed import SGD, SGDM
from tests.support.plain import plain
from tests.support.points import START, point, points, slope, values
from tests.support.recipes import corpus, recipe
from tests.support.stop_and_go import stop_and_go

RATE = 0.1
PLAIN = Optimizer("SGD", RATE)

# --- steps by hand ----------------------------------------------------------------------------------------------------


def test_one_round_of_fedprox_in_numbers() -> None:
    """Worker 0 sees x²/2 and then (x − 1)², from wᵗ = 1 with η = 0.1 and μ = 0.5: 1 − 0.1·1 = 0.9, and then the pull is felt.

    0.9 − 0.1·(2·(0.9 − 1) + 0.5·(0.9 − 1)) = 0.925. Worker 1: 1 − 0.1·3·(1 − 2) = 1.3; 1.3 − 0.1·((1.3 + 2) + 0.5·0.3) = 0.955.
    """
    bench = points(FedProx(2, 0.5, PLAIN))
    assert values(bench.run(1)) == pytest.approx([0.9, 1.3], rel=1e-15)
    assert values(bench.run(1)) == pytest.approx([0.925, 0.955], rel=1e-15)
    assert float(bench.shared("params")) == pytest.approx(0.94, rel=1e-15)


def test_two_rounds_of_scaffold_in_numbers() -> None:
    """Rounds of one step, η_l = 0.1, η_g = 2: y_0 = 1 − 0.1·1 = 0.9 and y_1 = 1 − 0.1·(−3) = 1.3, so x = 1 + 2·0.1 = 1.2.

    c_0 = (1 − 0.9)/0.1 = 1 and c_1 = −3, so c = −1. Second round, with gradients 2·(1.2 − 1) = 0.4 and 1.2 + 2 = 3.2:
    y_0 = 1.2 − 0.1·(0.4 − 1 − 1) = 1.36 and y_1 = 1.2 − 0.1·(3.2 + 3 − 1) = 0.68; x = 1.2 + 2·(1.02 − 1.2) = 0.84.
    c_0 = 1 + 1 + (1.2 − 1.36)/0.1 = 0.4 and c_1 = −3 + 1 + 5.2 = 3.2, the gradients themselves; c = 1.8.
    """
    for option in ("I", "II"):
        bench = points(SCAFFOLD(1, PLAIN, 2.0, option))
        for y, c_i, x, c in (([0.9, 1.3], [1.0, -3.0], 1.2, -1.0), ([1.36, 0.68], [0.4, 3.2], 0.84, 1.8)):
            bench.run(1)
            assert values(bench) == pytest.approx(y, rel=1e-14)
            assert values(bench, "control") == pytest.approx(c_i, rel=1e-13)
            assert float(bench.shared("params")) == pytest.approx(x, rel=1e-14)
            assert float(bench.shared("control")) == pytest.approx(c, rel=1e-13)


@pytest.mark.parametrize("weight", ["uniform", "samples"])
def test_fedprox_by_hand(weight: Any) -> None:
    """Four rounds of two steps, client 1 away in the last step of the second, and in the first of the third."""
    bench = points(FedProx(2, 0.5, PLAIN, weight=weight))
    bench.state.samples_W = [3, 1]
    n = [3, 1] if weight == "samples" else [1, 1]
    server, w_k, was = START, [START] * 2, [True] * 2
    for t in range(1, 9):
        up = [True, t not in (4, 5)]
        for k in range(2):
            if up[k] and (t % 2 == 1 or not was[k]):
                w_k[k] = server
            if up[k]:
                w_k[k] -= RATE * (slope(k, t, w_k[k]) + 0.5 * (w_k[k] - server))
        if t % 2 == 0:
            server = sum(n[k] * w_k[k] for k in range(2) if up[k]) / sum(n[k] for k in range(2) if up[k])
        bench.fleet.up, bench.state.returned = up, [k for k in range(2) if up[k] and not was[k]]
        bench.run(1)
        was = up
        assert values(bench) == pytest.approx(w_k, rel=1e-12), t
        assert float(bench.shared("params")) == pytest.approx(server, rel=1e-12), t


@pytest.mark.parametrize("weight", ["uniform", "samples"])
@pytest.mark.parametrize("option", ["I", "II"])
def test_scaffold_by_hand(option: Any, weight: Any) -> None:
    """Three rounds of three steps: client 1 takes its last two alone (K_i = 2), and is away at the end of the second round."""
    bench = points(SCAFFOLD(3, PLAIN, 1.5, option, weight))
    bench.state.samples_W = [3, 1]
    n = [3, 1] if weight == "samples" else [1, 1]
    x, c, y, c_i, was = START, 0.0, [START] * 2, [0.0] * 2, [True] * 2
    K_i, first = [0, 0], [0.0, 0.0]
    for t in range(1, 10):
        up = [True, t not in (1, 6)]
        for i in range(2):
            if up[i] and (t % 3 == 1 or not was[i]):
                y[i], K_i[i], first[i] = x, 0, slope(i, t, x)
            if up[i]:
                y[i] -= RATE * (slope(i, t, y[i]) - c_i[i] + c)
                K_i[i] += 1
        if t % 3 == 0:
            S = [i for i in range(2) if up[i]]
            new = [first[i] if option == "I" else c_i[i] - c + (x - y[i]) / (K_i[i] * RATE) for i in range(2)]
            mass = sum(n[i] for i in S)
            moved = sum(n[i] * (y[i] - x) for i in S) / mass
            change = sum(n[i] * (new[i] - c_i[i]) for i in S) / mass
            x, c = x + 1.5 * moved, c + mass / sum(n) * change
            c_i = [new[i] if up[i] else c_i[i] for i in range(2)]
        bench.fleet.up, bench.state.returned = up, [i for i in range(2) if up[i] and not was[i]]
        bench.run(1)
        was = up
        assert values(bench) == pytest.approx(y, rel=1e-11), t
        assert values(bench, "control") == pytest.approx(c_i, rel=1e-11), t
        assert float(bench.shared("params")) == pytest.approx(x, rel=1e-11), t
        assert float(bench.shared("control")) == pytest.approx(c, rel=1e-11), t
    assert K_i == [3, 3]


def test_the_way_is_divided_by_what_the_schedule_made_of_the_rate() -> None:
    """With η_l falling within a round, c_i is the mean of the gradients on the way, each as much as its step."""
    bench = points(SCAFFOLD(3, PLAIN))
    bench.state.schedule = lambda t: 1 / t
    y, g = START, []
    for t in range(1, 4):
        g.append(slope(0, t, y))
        y -= RATE / t * g[-1]
    bench.run(3)
    assert values(bench, "control")[0] == pytest.approx(
        sum(x / t for t, x in enumerate(g, 1)) / (1 + 1 / 2 + 1 / 3), rel=1e-12
    )


# --- what they are for ------------------------------------------------------------------------------------------------

BOWLS = ((4.0, 1.0), (1.0, -2.0))  # a/2·(x − b)²: all together are least at x* = Σ a·b / Σ a, which is 0.4


def lands(pull: float) -> float:
    """Where FedProx, whose client k goes to (a·b + μ·x) / (a + μ) by a part 1 − (1 − η·(a + μ))^K of its way, goes no further."""
    parts = [(1 - (1 - RATE * (a + pull)) ** 10) * a / (a + pull) for a, _ in BOWLS]
    return sum(p * b for p, (_, b) in zip(parts, BOWLS, strict=True)) / sum(parts)


def test_drift_stays_with_fedavg_shrinks_with_fedprox_and_goes_with_scaffold() -> None:
    """Two clients with optima of their own, ten local steps in a round: where the server's model comes to rest."""

    def end(method: Any) -> float:
        bench = Bench(method, 2, build=point, batch=lambda w, t: BOWLS[w]).run(10 * 70)
        return float(bench.shared("params"))

    assert abs(lands(0.0) - 0.4) > 0.5
    assert abs(lands(4.0) - 0.4) < 0.5 * abs(lands(0.0) - 0.4)
    for pull in (0.0, 1.0, 4.0):
        assert end(FedProx(10, pull, PLAIN)) == pytest.approx(lands(pull), abs=1e-12)
    for option in ("I", "II"):
        assert end(SCAFFOLD(10, PLAIN, option=option)) == pytest.approx(0.4, abs=1e-12)  # type: ignore[arg-type]


# --- reductions -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("states", ["kept", "reset"])
@pytest.mark.parametrize("inner", [PLAIN, SGDM, AdamW(3e-2)], ids=lambda i: i.name)
def test_fedprox_without_pull_is_local_sgd(inner: Optimizer, states: Any) -> None:
    """Bit for bit; what goes up and down is as much as an exchange among all, and the first fetch."""
    prox, local = Bench(FedProx(3, 0.0, inner, states, max_norm=0.5)), Bench(LocalSGD(3, inner, states, 0.5))
    for t in range(1, 9):
        prox.run(1)
        local.run(1)
        for w in range(3) if t % 3 else ():
            assert torch.equal(prox.of(w), local.of(w)), t
        assert t % 3 or torch.equal(prox.shared("params"), local.of(0)), t
    assert not close(Bench(FedProx(3, 0.1, inner, states, max_norm=0.5)).run(6).shared("params"), local.of(0), 1e-6)
    up = sum(r.bytes_each for r in prox.records if r.op == "reduce")
    assert up == sum(r.bytes_each for r in local.records)


@pytest.mark.parametrize("server_lr", [1.0, 0.3, 1.7])
def test_the_first_round_of_scaffold_is_fedavg_with_the_servers_rate(server_lr: float) -> None:
    """All control variates are zero: nothing is corrected. In the second round they are not."""
    fedavg = Photon(3, SGD, outer=FedAvg(server_lr), max_norm=None)
    mine, theirs = Bench(SCAFFOLD(3, SGD, server_lr)), Bench(fedavg)
    for _ in range(2):
        assert torch.equal(mine.run(1).of(1), theirs.run(1).of(1))
    assert close(mine.run(1).shared("params"), theirs.run(1).shared("params"))
    assert not close(mine.run(3).shared("params"), theirs.run(3).shared("params"), 1e-6)


@pytest.mark.parametrize("option", ["I", "II"])
def test_scaffold_with_one_client_is_sgd(option: Any) -> None:
    """c_i = c with option II, also in bits. With option I too, whatever the gradient at x is."""
    inner = Optimizer("SGD", 3e-2, {"weight_decay": 0.1})
    alone = Bench(SCAFFOLD(3, inner, option=option, max_norm=0.2), 1)
    for steps in (2, 7, 8):
        assert close(alone.run(steps - alone.t).of(0), plain(inner, steps, max_norm=0.2))
    assert torch.equal(alone.of(0, "control"), alone.shared("control"))


# --- federations in plain torch ---------------------------------------------------------------------------------------


class ByPlainTorch:
    """A whole run with more clients than workers, written out: dictionaries of tensors, one module for all, no fleet.

    A client that is down fetches when it is back; one that is down at the end of its round hands in nothing, and keeps
    what is personal as it was then.
    """

    def __init__(self, trainer: Trainer, seats: list[list[int]]):
        self.recipe, self.data, self.seats = trainer.recipe, trainer.setup.data, seats
        self.up_TW = trainer.built.roll_call.up_TW
        r = self.recipe
        self.net = r.model.build(self.data.vocab_size, r.context, r.seed).double()
        self.x = {n: p.detach().clone() for n, p in self.net.named_parameters()}
        self.own = [n for n in self.x if r.clients.is_personal(n)]
        self.agreed = [n for n in self.x if n not in self.own]
        self.first = {n: self.x[n] for n in self.own}
        self.kept: dict[int, dict[str, Tensor]] = {}  # personal parameters, by client
        self.c = {n: torch.zeros_like(self.x[n]) for n in self.agreed}
        self.c_i = {i: {n: torch.zeros_like(self.x[n]) for n in self.agreed} for i in range(r.num_clients)}

    def gradient(self, y: dict[str, Tensor], client: int, t: int) -> dict[str, Tensor]:
        self.net.load_state_dict(y, strict=False)
        self.net.zero_grad()
        self.net.loss(*self.data.batches.get(client, t)).backward()
        return {n: p.grad.clone() for n, p in self.net.named_parameters()}

    def run(self) -> None:
        r, m = self.recipe, self.recipe.method
        was = [False] * r.num_workers
        for t in range(1, r.steps + 1):
            up = self.up_TW[t - 1].tolist()
            begins, ends = (t - 1) % m.sync_every == 0, t % m.sync_every == 0
            if begins:
                clients = self.seats[(t - 1) // m.sync_every]
                y = [{**self.x, **self.kept.get(i, self.first)} for i in clients]
                K, at_x = [0] * len(clients), [{}] * len(clients)
            for w, i in enumerate(clients):
                if not up[w]:
                    continue
                if begins or not was[w]:
                    y[w] |= {n: self.x[n] for n in self.agreed}
                    K[w], at_x[w] = 0, self.gradient(y[w], i, t)
                g = self.gradient(y[w], i, t)
                for n in self.agreed:
                    g[n] = self.bent(g[n], y[w][n], n, i)
                y[w] = {n: y[w][n] - m.inner.lr * g[n] for n in y[w]}
                K[w] += 1
            was = up
            S = [w for w in range(len(clients)) if up[w]]
            if ends and S:
                self.aggregate(S, [clients[w] for w in S], [y[w] for w in S], [K[w] for w in S], [at_x[w] for w in S])
            if ends:
                self.kept |= {i: {n: y[w][n] for n in self.own} for w, i in enumerate(clients)}

    def bent(self, g: Tensor, y: Tensor, name: str, client: int) -> Tensor:
        m = self.recipe.method
        if isinstance(m, FedProx):
            return g + m.pull * (y - self.x[name])
        return g - self.c_i[client][name] + self.c[name]

    def aggregate(self, rows: list[int], who: list[int], y: Any, K: list[int], at_x: Any) -> None:
        m, n_i = self.recipe.method, self.data.samples_W if self.recipe.method.weight == "samples" else None
        counts = [1] * self.recipe.num_clients if n_i is None else list(n_i)
        p = [counts[i] / sum(counts[j] for j in who) for i in who]
        share = sum(counts[i] for i in who) / sum(counts)
        for n in self.agreed:
            x, c = self.x[n], self.c[n]
            if isinstance(m, FedProx):
                self.x[n] = sum(q * of[n] for q, of in zip(p, y, strict=True))
                continue
            new = [
                at_x[k][n] if m.option == "I" else self.c_i[i][n] - c + (x - y[k][n]) / (K[k] * m.inner.lr)
                for k, i in enumerate(who)
            ]
            self.x[n] = x + m.server_lr * sum(q * (of[n] - x) for q, of in zip(p, y, strict=True))
            self.c[n] = c + share * sum(q * (z - self.c_i[i][n]) for q, z, i in zip(p, new, who, strict=True))
            for z, i in zip(new, who, strict=True):
                self.c_i[i][n] = z


OWN = ("blocks.0.mlp*",)
AWAY = Scenario(
    outages=(Outage(worker=0, first=5, last=5), Outage(worker=1, first=7, last=8), Outage(worker=2, first=9, last=10))
)
FEDERATIONS: dict[str, tuple[Any, dict[str, Any]]] = {
    "fedprox": (FedProx(2, 0.5, PLAIN), {"clients": Clients(num=7)}),
    "fedprox samples, personal, away": (
        FedProx(2, 0.5, PLAIN, weight="samples"),
        {"clients": Clients(num=7, personal=OWN), "scenario": AWAY, "split": "size:1"},
    ),
    "scaffold": (SCAFFOLD(2, PLAIN), {"clients": Clients(num=7)}),
    "scaffold, late": (SCAFFOLD(2, PLAIN), {"clients": Clients(num=7, personal=OWN, wait_for=2), "split": "size:1"}),
    "scaffold, all": (SCAFFOLD(2, PLAIN, 1.3), {"scenario": AWAY}),
    "scaffold I, personal": (SCAFFOLD(2, PLAIN, 0.7, "I"), {"clients": Clients(num=7, personal=OWN)}),
    "scaffold samples, personal, away": (
        SCAFFOLD(3, PLAIN, 1.3, weight="samples"),
        {"clients": Clients(num=7, personal=OWN), "scenario": AWAY, "split": "size:1"},
    ),
}
federations = pytest.mark.parametrize("name", FEDERATIONS)


def federation(name: str, **changes: Any) -> Recipe:
    method, fields = FEDERATIONS[name]
    return recipe(method, **({"steps": 18, "checkpoint_every": 0, "eval_every": 0} | fields | changes))


def ran(r: Recipe) -> tuple[Trainer, list[Any]]:
    trainer = Trainer(r, corpus=corpus())
    return trainer, list(trainer.events())


def seats_of(events: Iterable[Any], r: Recipe) -> list[list[int]]:
    found = [e.clients for e in events if isinstance(e, Seated)]
    return found or [list(range(r.num_workers))] * r.steps


def controls(trainer: Trainer) -> dict[int, dict[str, Tensor]]:
    """c_i of every client that took part: those who sit there, and what is kept of the others."""
    state, seating = trainer.state, trainer.built.roll_call.seating
    stack = state.local["control"]
    here = dict(enumerate(state.clients_W or range(trainer.recipe.num_workers)))
    away = (
        seating.store.get([i for i in range(trainer.recipe.num_clients) if i not in here.values()]) if seating else {}
    )
    found = {}
    for i, kept in away.items():
        rows = [kept[f"control/{k}"][None] for k in range(len(stack.blocks))]
        found[i] = {n: type(stack)(stack.layout, rows)[n][0] for n in stack.names()}
    return found | {i: {n: stack.cell(n, w) for n in stack.names()} for w, i in here.items()}


@federations
def test_a_federation_in_plain_torch(name: str) -> None:
    """Six or nine rounds of three out of seven: clients come back with their control variates, and what is personal."""
    r = federation(name)
    trainer, events = ran(r)
    seats = seats_of(events, r)
    want = ByPlainTorch(trainer, seats)
    want.run()
    if r.clients.num:
        times = [sum(i in row for row in seats) for i in range(7)]
        assert sorted(times)[-3] >= 3
        assert len({tuple(row) for row in seats}) > 3
    for n in want.agreed:
        assert close(trainer.state.shared["params"][n][0], want.x[n], 1e-10), n
    if isinstance(r.method, SCAFFOLD):
        mine = controls(trainer)
        assert any(float(x.abs().max()) > 1e-3 for x in want.c.values())
        for n in want.agreed:
            assert close(trainer.state.shared["control"][n][0], want.c[n], 1e-9), n
            for i, of_client in mine.items():
                assert close(of_client[n], want.c_i[i][n], 1e-9), (i, n)
        assert not any(of_client[n].any() for n in want.own for of_client in mine.values())
    for n in want.own:
        for w, i in enumerate(seats[-1]):
            if r.scenario == Scenario():
                assert close(trainer.fleet.params.cell(n, w), want.kept[i][n], 1e-10), (i, n)


@pytest.mark.parametrize("weight", ["uniform", "samples"])
def test_the_servers_control_variate_is_the_mean_of_all(weight: Any) -> None:
    """|S| / N keeps c the mean of the c_i of all clients, those included who never took part and whose c_i is zero."""
    r = recipe(SCAFFOLD(2, PLAIN, weight=weight), clients=Clients(num=7), split="size:1", steps=4)
    trainer, _ = ran(r)
    mine, counts = controls(trainer), trainer.setup.data.samples_W if weight == "samples" else [1] * 7
    assert 3 < len(mine) < 7
    for n in trainer.fleet.params.names():
        mean = sum(counts[i] * of_client[n] for i, of_client in mine.items()) / sum(counts)
        assert close(trainer.state.shared["control"][n][0], mean, 1e-11), n


@federations
def test_a_federation_is_stopped_and_resumed(name: str, tmp_path: Path) -> None:
    """Bit for bit, with the control variates of clients that are away."""
    stop_and_go(federation(name, steps=7, checkpoint_every=1), tmp_path)


@federations
def test_a_dry_federation_sends_what_the_run_sends(name: str) -> None:
    r = federation(name)
    sent = [e for e in ran(r)[1] if isinstance(e, Sent)]
    assert dry_run(r) == sent
    assert plan(r).ledger == sent


# --- what is sent -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("personal", [(), OWN])
def test_scaffold_sends_twice_as_much_as_fedprox_both_ways(personal: tuple[str, ...]) -> None:
    """A client of a round fetches the model and hands it in, and as much again for the control variates; nothing personal."""
    clients = Clients(num=7, personal=personal)
    numbers = sum(
        p.numel()
        for n, p in recipe().model.build(corpus().vocab_size, 8).named_parameters()
        if not clients.is_personal(n)
    )
    for method, states in ((FedProx(2), ["params"]), (SCAFFOLD(2), ["params", "control"])):
        sent = dry_run(recipe(method, clients=clients))
        assert all(r.workers == (0, 1, 2) and r.bytes_each == 8 * numbers for r in sent)
        each_round = [("broadcast", state) for state in states] + [("reduce", state) for state in states]
        assert [(r.op, r.state) for r in sent] == 3 * each_round
        assert [r.step for r in sent] == [t for a in (1, 3, 5) for t in [a] * len(states) + [a + 1] * len(states)]


def test_who_is_late_has_fetched_all_the_same() -> None:
    """Of three who are asked two count: c moves by 2/7, and what is sent to the third is counted."""
    sent = dry_run(federation("scaffold, late"))
    assert {(r.op, r.state, len(r.workers)) for r in sent} == {
        (op, state, n) for op, n in (("broadcast", 3), ("reduce", 2)) for state in ("params", "control")
    }


def test_what_a_client_holds_is_counted() -> None:
    """FedProx: w, gradient and wᵗ. SCAFFOLD: y, gradient, c_i, x and c, and with option I the gradient at x."""
    for method, copies in ((FedProx(2), 3), (SCAFFOLD(2), 5), (SCAFFOLD(2, option="I"), 6)):
        p = plan(recipe(method), {})
        assert p.state_bytes_per_worker == copies * 8 * p.num_params
        assert p.served


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("inner", [AdamW(1e-2), SGDM, Optimizer("SGD", 0.1, {"momentum": 0.9})])
def test_a_way_that_is_no_gradient_is_refused(inner: Optimizer) -> None:
    with pytest.raises(RecipeError, match=r"use SGD without momentum, or method\.option=I") as info:
        SCAFFOLD(inner=inner)
    assert "\n" not in str(info.value)
    assert Bench(SCAFFOLD(2, inner, option="I")).run(4).loss_W.isfinite().all()
    assert SCAFFOLD(inner=Optimizer("SGD", 0.1, {"weight_decay": 0.1})).option == "II"


def test_options_out_of_range_are_refused() -> None:
    for make, says in (
        (lambda: FedProx(pull=-0.1), "pull = -0.1 is not allowed"),
        (lambda: FedProx(inner=Optimizer("ADOPT", 1e-2)), "inner_states = 'reset' is not available"),
        (lambda: SCAFFOLD(server_lr=0.0), "server_lr = 0.0 is not allowed"),
        (lambda: SCAFFOLD(option="III"), "option = 'III' is not allowed"),  # type: ignore[arg-type]
    ):
        with pytest.raises(RecipeError, match=says) as info:
            make()
        assert "\n" not in str(info.value)


def test_what_makes_no_difference_gets_a_note() -> None:
    for method in (FedProx(9), SCAFFOLD(9)):
        assert notes(recipe(method)) == [
            "method.sync_every = 9 is longer than the 6 steps of the run: nothing is ever synchronised"
        ]
    assert notes(recipe(FedProx(2, inner_states="kept"))) == [
        "method.inner_states = 'kept' makes no difference: SGD keeps nothing"
    ]
    assert notes(recipe(FedProx(2, inner=SGDM, inner_states="kept"))) == notes(recipe(SCAFFOLD(2))) == []


# --- the presets ------------------------------------------------------------------------------------------------------


def test_the_presets_learn() -> None:
    """Four rounds of the shipped federations of digits; the loss is that of the server's model, and falls."""
    for name in ("fedprox", "scaffold"):
        r = Recipe.of(name, ["steps=40", "eval_every=20", "checkpoint_every=0"])
        losses = [e.loss for e in Trainer(r).events() if isinstance(e, Evaluated)]
        assert losses[-1] < losses[0] < 2.4
