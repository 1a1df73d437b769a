"""LoRDO and low-rank Adam: steps by hand, torch's optimizers in a rotated basis, memory and bytes, stagnation."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from lab.engine.optim import AdamW
from lab.ground.errors import RecipeError
from lab.methods.lordo import LoRDO, QHAdam
from lab.optimizers import LowRankAdam
from lab.optimizers import QHAdam as TorchQHAdam
from lab.optimizers.low_rank import first_basis, low_rank_adam_, rotate_, top_basis
from lab.study.toys import matrix_regression
from tests.support.bench import F64, Bench, batch, build, close, drawn, flat

LR, B1, B2, EPS = 0.1, 0.9, 0.95, 1e-8


def matrix(*shape: int) -> torch.nn.Parameter:
    return torch.nn.Parameter(drawn(*shape, purpose=("matrix",)))


def orthogonal(p: int, r: int | None = None) -> torch.Tensor:
    q: torch.Tensor = torch.linalg.qr(drawn(p, p, purpose=("basis", p)))[0]
    return q[:, : r or p]


# --- the optimizer ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error_feedback", [False, True])
def test_low_rank_adam_by_hand(error_feedback: bool) -> None:
    """Three steps on a 2 × 3 matrix with the basis (0.6, 0.8), every number in plain Python."""
    x, Q = matrix(2, 3), [0.6, 0.8]
    want = x.tolist()
    u, v, e, omega = [0.0] * 3, [0.0] * 3, [[0.0] * 3, [0.0] * 3], 0.7
    optimizer = LowRankAdam([x], LR, 1, (B1, B2), omega, EPS, error_feedback=error_feedback)
    for k in range(1, 4):
        x.grad = drawn(2, 3, purpose=("g", k))
        G = x.grad.tolist()
        if k == 1:  # the first step makes the state, with the first column of the identity: put ours in its place
            state = optimizer.state[x]
            state["step"] = torch.tensor(0.0)
            state["projector"] = torch.tensor([[0.6], [0.8]], dtype=F64)
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros(1, 3, dtype=F64), torch.zeros(1, 3, dtype=F64)
            if error_feedback:
                state["residual"] = torch.zeros(2, 3, dtype=F64)
        optimizer.step()
        owed = [[G[i][j] + e[i][j] for j in range(3)] for i in range(2)]
        low = [Q[0] * owed[0][j] + Q[1] * owed[1][j] for j in range(3)]
        if error_feedback:
            e = [[owed[i][j] - Q[i] * low[j] for j in range(3)] for i in range(2)]
        u = [B1 * u[j] + (1 - B1) * low[j] for j in range(3)]
        v = [B2 * v[j] + (1 - B2) * low[j] ** 2 for j in range(3)]
        d = [math.sqrt(v[j] / (1 - B2**k)) + EPS for j in range(3)]
        mu = sum(d) / 3
        for i in range(2):
            for j in range(3):
                slow = Q[i] * u[j] / (1 - B1**k) / d[j]
                want[i][j] -= LR * ((1 - omega) * G[i][j] / mu + omega * slow)
        assert close(x.detach(), torch.tensor(want, dtype=F64), 1e-13), k
    if error_feedback:
        assert close(optimizer.state[x]["residual"], torch.tensor(e, dtype=F64), 1e-13)


def test_the_longer_side_is_never_projected() -> None:
    """A tall matrix moves as its transpose, and moments have the rank and the longer side as their shape."""
    tall, flat_ = matrix(5, 3), torch.nn.Parameter(matrix(5, 3).detach().T.clone())
    options: dict[str, Any] = {"lr": LR, "rank": 2, "weight": 0.8, "refresh": 2, "error_feedback": True}
    a, b = LowRankAdam([tall], **options), LowRankAdam([flat_], **options)
    for t in range(5):
        tall.grad = drawn(5, 3, purpose=("g", t))
        flat_.grad = tall.grad.T.clone()
        a.step()
        b.step()
    assert close(tall.detach(), flat_.detach().T)
    shapes = {k: tuple(s.shape) for k, s in a.state[tall].items() if k != "step"}
    assert shapes == {"projector": (3, 2), "exp_avg": (2, 5), "exp_avg_sq": (2, 5), "residual": (5, 3)}


def test_what_is_no_matrix_is_trained_by_qhadam() -> None:
    """Vectors keep full moments: QHAdam with the same decays and weight, and AdamW at ω = 1."""
    for weight in (0.6, 1.0):
        x, y, z = (torch.nn.Parameter(drawn(7, purpose=("vector",))) for _ in range(3))
        mine = LowRankAdam([x], LR, weight=weight, betas=(B1, B2))
        theirs = TorchQHAdam([y], LR, betas=(B1, B2), weights=(weight,))
        torchs = torch.optim.AdamW([z], LR, betas=(B1, B2), weight_decay=0.0)
        for t in range(5):
            for p, o in ((x, mine), (y, theirs), (z, torchs)):
                p.grad = drawn(7, purpose=("g", t))
                o.step()
        assert close(x.detach(), y.detach())
        assert close(x.detach(), z.detach()) == (weight == 1.0)


@pytest.mark.parametrize("weight", [1.0, 0.7])
def test_full_rank_is_adam_in_a_rotated_basis(weight: float) -> None:
    """r = p and orthogonal Q: Qᵀθ moves under Qᵀg as under quasi-hyperbolic Adam, whose fresh term divides by a mean.

    At ω = 1 that is ``torch.optim.AdamW`` on the rotated matrix.
    """
    Q, x = orthogonal(4), matrix(4, 6)
    u, v = torch.zeros(4, 6, dtype=F64), torch.zeros(4, 6, dtype=F64)
    turned = torch.nn.Parameter(Q.T @ x.detach())
    adamw = torch.optim.AdamW([turned], LR, betas=(B1, B2), eps=EPS, weight_decay=0.0)
    theta = turned.detach().clone()
    m, s = torch.zeros_like(theta), torch.zeros_like(theta)
    for k in range(1, 7):
        g = drawn(4, 6, purpose=("g", k))
        with torch.no_grad():
            low_rank_adam_(x, g, u, v, Q, None, lr=LR, betas=(B1, B2), weight=weight, eps=EPS, k=k)
        turned.grad = Q.T @ g
        adamw.step()
        m = B1 * m + (1 - B1) * Q.T @ g
        s = B2 * s + (1 - B2) * (Q.T @ g) ** 2
        d = (s / (1 - B2**k)).sqrt() + EPS
        theta = theta - LR * ((1 - weight) * (Q.T @ g) / d.mean() + weight * m / (1 - B1**k) / d)
    assert close(Q.T @ x.detach(), theta, 1e-12)
    assert close(Q.T @ x.detach(), turned.detach(), 1e-12) == (weight == 1.0)


def test_rotating_into_the_same_basis_changes_nothing() -> None:
    """Q_new = Q_old is the identity; a basis with its columns exchanged and one turned round exchanges the moments."""
    Q = orthogonal(6, 3)
    u, v = drawn(3, 5, purpose=("u",)), drawn(3, 5, purpose=("v",)).square()
    same_u, same_v = u.clone(), v.clone()
    rotate_(same_u, same_v, Q, Q, (B1, B2), 7)
    assert close(same_u, u, 1e-13)
    assert close(same_v, v, 1e-13)
    rotate_(u2 := u.clone(), v2 := v.clone(), Q, Q[:, [2, 0, 1]] * torch.tensor([1.0, -1.0, 1.0]), (B1, B2), 7)
    assert close(u2, u[[2, 0, 1]] * torch.tensor([[1.0], [-1.0], [1.0]]), 1e-13)
    assert close(v2, v[[2, 0, 1]], 1e-13)


def test_rotation_by_hand() -> None:
    """From the axis (1, 0) to (0.6, 0.8): R = 0.6, so u halves to 0.6·u and the variance turns with 0.36.

    k = 1 and β = 0.5 for both: û = 2u = 4, v̂ = 2v = 20; new û = 2.4, new v̂ = 0.36 · (20 − 16) + 2.4² = 7.2, v = 3.6.
    """
    u, v = torch.tensor([[2.0]], dtype=F64), torch.tensor([[10.0]], dtype=F64)
    old, new = torch.tensor([[1.0], [0.0]], dtype=F64), torch.tensor([[0.6], [0.8]], dtype=F64)
    rotate_(u, v, old, new, (0.5, 0.5), 1)
    assert float(u) == pytest.approx(1.2, rel=1e-14)
    assert float(v) == pytest.approx(3.6, rel=1e-14)


def test_top_basis_is_where_the_matrix_is_largest() -> None:
    """Of 3·a bᵀ + c dᵀ with orthonormal pairs the first direction is a, the second c; the longer side does not matter."""
    a, c, _ = orthogonal(3).unbind(1)
    b, d, *_ = orthogonal(5).unbind(1)
    x = 3 * torch.outer(a, b) + torch.outer(c, d)
    for y in (x, x.T):
        basis = top_basis(y, 2)
        assert basis.shape == (3, 2)
        assert float((basis[:, 0] @ a).abs()) == pytest.approx(1, abs=1e-12)
        assert float((basis[:, 1] @ c).abs()) == pytest.approx(1, abs=1e-12)
    assert torch.equal(first_basis(x, 2), torch.eye(3, 2, dtype=F64))


# --- the method ------------------------------------------------------------------------------------------------------

FULL = ("out",)  # of the tiny net: `hidden` 4 × 3 is projected, `bias` is a vector


def plainly(steps: int, every: int, own: bool, **options: Any) -> torch.Tensor:
    """One module under `LowRankAdam` in an ordinary loop; every few steps a new basis."""
    net = build(None)
    low, full = LowRankAdam([net.hidden, net.bias], **options), TorchQHAdam([net.out], options["lr"])
    full.param_groups[0] |= {"betas": options["betas"], "weights": (options["weight"],)}
    anchor = net.hidden.detach().clone()
    for t in range(1, steps + 1):
        net.zero_grad()
        net.loss(*batch(0, t)).backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        low.step()
        full.step()
        if t % every == 0:
            low.project_(net.hidden, net.hidden.grad if own else net.hidden - anchor)  # type: ignore[arg-type]
            anchor = net.hidden.detach().clone()
    return flat(net)


@pytest.mark.parametrize("error_feedback", [False, True])
@pytest.mark.parametrize("projector", ["pseudo_gradient", "gradient", "own_gradient"])
def test_one_worker_is_the_plain_optimizer(projector: Any, error_feedback: bool) -> None:
    """With one worker LoRDO is `LowRankAdam` on the matrices and QHAdam on the rest, with a new basis every K steps."""
    inner = QHAdam(3e-2, (B1, B2), 0.8)
    method = LoRDO(3, 2, inner, projector, error_feedback, full_rank=FULL)
    options: dict[str, Any] = {
        "lr": 3e-2,
        "rank": 2,
        "betas": (B1, B2),
        "weight": 0.8,
        "error_feedback": error_feedback,
    }
    want = plainly(8, 3, projector != "pseudo_gradient", **options)
    assert close(Bench(method, 1).run(8).of(0), want, 1e-11)
    assert not close(Bench(method, 1).run(7).of(0), want, 1e-3)


def test_a_sync_by_hand() -> None:
    """Two workers: parameters and moments become means, and are then turned into the basis of the mean movement."""
    inner = QHAdam(3e-2, (B1, B2), 0.8)
    bench = Bench(LoRDO(3, 2, inner, full_rank=FULL), 2)
    start = bench.state.local["params"]["hidden"][0].clone()
    alone = Bench(LoRDO(9, 2, inner, full_rank=FULL), 2).run(3)  # the same three local steps, without a sync
    bench.run(3)
    mean = {k: {n: x[n].mean(0) for n in x.names()} for k, x in alone.state.local.items()}
    old, new = torch.eye(3, 2, dtype=F64), top_basis(mean["params"]["hidden"] - start, 2)
    u, v = mean["exp_avg"]["hidden"], mean["exp_avg_sq"]["hidden"]
    rotate_(u, v, old, new, (B1, B2), 3)
    for w in range(2):
        local = bench.state.local
        assert close(local["params"]["hidden"][w], mean["params"]["hidden"])
        assert close(local["projector"]["hidden"][w], new)
        assert close(local["exp_avg"]["hidden"][w], u)
        assert close(local["exp_avg_sq"]["hidden"][w], v)
        assert close(local["exp_avg"]["bias"][w], mean["exp_avg"]["bias"])


def three_by_hand(method: LoRDO, steps: int) -> list[dict[str, torch.Tensor]]:
    """Three workers in ordinary loops, by the formulas: parameters, basis and residual of each, in the end."""
    omega, nets = 0.8, [build(None) for _ in range(3)]
    Q = [torch.eye(3, 2, dtype=F64) for _ in nets]
    E = [torch.zeros(3, 4, dtype=F64) for _ in nets]
    u: list[dict[str, Any]] = [dict.fromkeys(("hidden", "bias", "out"), 0.0) for _ in nets]
    v: list[dict[str, Any]] = [dict.fromkeys(("hidden", "bias", "out"), 0.0) for _ in nets]
    before = nets[0].hidden.detach().clone()
    for t in range(1, steps + 1):
        for w, net in enumerate(nets):
            net.zero_grad()
            net.loss(*batch(w, t)).backward()
            torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            for name, x in net.named_parameters():
                G = low = x.grad
                if name == "hidden":
                    G = G.T
                    owed = G + E[w] if method.error_feedback else G
                    low = Q[w].T @ owed
                    E[w] = owed - Q[w] @ low
                u[w][name] = B1 * u[w][name] + (1 - B1) * low
                v[w][name] = B2 * v[w][name] + (1 - B2) * low**2
                d = (v[w][name] / (1 - B2**t)).sqrt() + EPS
                slow = u[w][name] / (1 - B1**t)
                if name != "hidden":
                    move = (1 - omega) * G / d + omega * slow / d
                else:
                    slow = slow / d if method.low_rank_term == "divided" else slow
                    move = ((1 - omega) * G / d.mean() + omega * (Q[w] @ slow)).T
                x.data -= 3e-2 * move
        if t % 3:
            continue
        means = {name: sum(dict(net.named_parameters())[name].data for net in nets) / 3 for name in u[0]}
        deviations = [net.hidden.data - means["hidden"] for net in nets]
        for some in (u, v):
            mean = {name: sum(of[name] for of in some) / 3 for name in means}
            some[:] = [{name: x.clone() for name, x in mean.items()} for _ in nets]
        if method.residual == "averaged":
            E = [sum(E) / 3 for _ in nets]  # type: ignore[misc]
        for w, net in enumerate(nets):
            own = method.projector == "own_deviation"
            new = top_basis(deviations[w] if own else means["hidden"] - before, 2)
            if method.rotate:
                rotate_(u[w]["hidden"], v[w]["hidden"], Q[w], new, (B1, B2), t)
            Q[w] = new
            for name, x in net.named_parameters():
                x.data.copy_(means[name])
        before = means["hidden"]
    return [{"params": flat(net), "projector": q, "residual": e.T} for net, q, e in zip(nets, Q, E, strict=True)]


READINGS: dict[str, dict[str, Any]] = {
    "the paper's": {},
    "own deviation": {"projector": "own_deviation"},
    "local residual": {"residual": "local"},
    "plain term": {"low_rank_term": "plain"},
    "not rotated": {"rotate": False},
    "the authors' code": {
        "projector": "own_deviation",
        "residual": "local",
        "low_rank_term": "plain",
        "rotate": False,
    },
}


@pytest.mark.parametrize("reading", READINGS.values(), ids=READINGS)
def test_readings_of_the_algorithm_by_hand(reading: dict[str, Any]) -> None:
    """Two syncs and a step, with error feedback; each of what the authors' code does otherwise, alone and together."""
    inner = QHAdam(3e-2, (B1, B2), 0.8)
    method = LoRDO(3, 2, inner, error_feedback=True, full_rank=FULL, **reading)
    bench = Bench(method).run(7)
    for w, want in enumerate(three_by_hand(method, 7)):
        assert close(bench.of(w), want["params"], 1e-11), w
        for name in ("projector", "residual"):
            assert close(bench.state.local[name]["hidden"][w], want[name], 1e-11), (w, name)
    plain = Bench(LoRDO(3, 2, inner, error_feedback=True, full_rank=FULL)).run(7)
    assert close(bench.of(0), plain.of(0), 1e-6) == (not reading)
    assert {r.state for r in bench.records} == {"params", *method._moments}
    assert ("residual" in method._moments) == (method.residual == "averaged")


def test_memory_and_bytes_from_the_tensors() -> None:
    """Per projected p × q matrix 2·r·q + p·r numbers of state; a round sends θ once and the small moments twice."""
    bench = Bench(LoRDO(3, 2, full_rank=FULL)).run(3)
    held = {
        name: sum(bench.state.local[k][name][0].numel() for k in ("exp_avg", "exp_avg_sq", "projector"))
        for name in ("hidden",)
    }
    assert held == {"hidden": 2 * 2 * 4 + 3 * 2}  # p = 3, q = 4, r = 2
    assert bench.state.local["exp_avg"]["out"][0].numel() == 8  # not projected: 2 × 4
    sent = {r.state: sum(r.payload_bytes.values()) for r in bench.records}
    assert sent == {"params": 8 * 24, "exp_avg": 8 * (2 * 4 + 4 + 8), "exp_avg_sq": 8 * (2 * 4 + 4 + 8)}
    more = Bench(LoRDO(3, 2, projector="gradient", full_rank=FULL, error_feedback=True)).run(3)
    extra = {r.state: sum(r.payload_bytes.values()) for r in more.records}
    assert extra == sent | {"gradient": 8 * 12, "residual": 8 * 12}
    own = Bench(LoRDO(3, 2, projector="own_gradient", full_rank=FULL, error_feedback=True)).run(3)
    assert {r.state for r in own.records} == {"params"}


def test_an_eighth_of_the_rank_is_an_eighth_of_the_moments() -> None:
    """r = p / 8: Adam's two moments shrink to an eighth, as the paper counts."""
    low, full = matrix(64, 128), matrix(64, 128)
    optimizers = LowRankAdam([low], rank=8), torch.optim.AdamW([full])
    for x, o in zip((low, full), optimizers, strict=True):
        x.grad = torch.ones_like(x)
        o.step()
    numbers = [
        sum(o.state[x][k].numel() for k in ("exp_avg", "exp_avg_sq"))
        for x, o in zip((low, full), optimizers, strict=True)
    ]
    assert numbers[0] * 8 == numbers[1]


def regression(rank: int, weight: float, **options: Any) -> list[Any]:
    return matrix_regression(LoRDO(16, rank, QHAdam(0.02, (0.95, 0.999), weight), max_norm=None, **options))


def test_without_the_full_rank_term_the_basis_never_turns() -> None:
    """ω = 1: every pseudo-gradient has at most rank r, the basis spans the same space for ever, and the error freezes."""
    for rank in (4, 8):
        rounds = regression(rank, 1.0)
        assert all(r.rank <= rank for r in rounds)
        assert all(r.similarity == pytest.approx(1, abs=1e-12) for r in rounds)
        assert rounds[-1].error > math.sqrt(1 - rank / 32) - 0.1  # what lies outside of the span is never reached
        assert rounds[-1].error == pytest.approx(rounds[20].error, rel=1e-3)


@pytest.mark.parametrize("weight", [0.97, 0.9])
def test_with_it_the_basis_turns_and_the_error_falls(weight: float) -> None:
    """ω < 1: the pseudo-gradient has full rank, and the error passes below what ω = 1 can ever reach."""
    rounds = regression(4, weight)
    assert min(r.rank for r in rounds) == 32
    assert rounds[-1].similarity < 1 - 1e-3
    assert rounds[-1].error < 0.5 * regression(4, 1.0)[-1].error


def test_more_directions_reach_further() -> None:
    """ω = 1: the frozen error falls with the rank, to nothing at full rank."""
    errors = [regression(r, 1.0)[-1].error for r in (2, 4, 8, 16, 32)]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 1e-3


def test_mistakes_are_explained() -> None:
    with pytest.raises(RecipeError, match="QHAdam"):
        LoRDO(inner=AdamW(1e-3))
    with pytest.raises(RecipeError, match="weight decay"):
        LoRDO(inner=QHAdam(1e-3).__class__("QHAdam", 1e-3, {"weight_decay": 0.1}))
    with pytest.raises(RecipeError, match="nothing to project"):
        Bench(LoRDO(full_rank=("hidden", "out")))
