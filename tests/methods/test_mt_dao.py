"""MT-DAO and the quasi-hyperbolic optimizers: steps by hand, torch's own optimizers at the corners, the paper's formulas."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch

from lab import optimizers
from lab.engine.ledger import Ledger
from lab.engine.optim import ELEMENTWISE, AdamW, Optimizer
from lab.ground.errors import RecipeError
from lab.methods.ddp import DDP
from lab.methods.des_loc import DESLOC
from lab.methods.local_adam import LocalAdam
from lab.methods.mt_dao import MTDAO, QHADOPT, Warm, kept, local_variance, preserved_information
from lab.runs.trainer import dry_run
from lab.study.toys import quadratic
from tests.support.bench import F64, Bench, build, close, drawn, flat
from tests.support.listed import QHM, SGD, TWO
from tests.support.points import START, mean, points, slope, values
from tests.support.recipes import recipe

LR, EPS = 0.1, 1e-6

# --- the optimizers --------------------------------------------------------------------------------------------------


def trained(cls: Any, steps: int = 6, **options: Any) -> torch.Tensor:
    """An ordinary module under an ordinary optimizer, with gradients of very different sizes."""
    net = build(None)
    optimizer = cls(net.parameters(), lr=0.05, **options)
    for t in range(steps):
        for name, p in net.named_parameters():
            p.grad = drawn(*p.shape, purpose=("g", t, name)) * 10.0 ** (t % 3 - 1)
        optimizer.step()
    return flat(net)


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_qhadam_at_its_corners_is_torchs_adamw(weight_decay: float) -> None:
    """ω = 1: AdamW with (β1, β2). ω = 0: AdamW without momentum. Two momenta of which one has no weight: the other."""
    shared = {"eps": 1e-6, "weight_decay": weight_decay}
    adamw = trained(torch.optim.AdamW, betas=(0.9, 0.95), **shared)
    assert close(trained(optimizers.QHAdam, betas=(0.9, 0.95), weights=(1.0,), **shared), adamw)
    assert close(trained(optimizers.QHAdam, betas=(0.9, 0.3, 0.95), weights=(1.0, 0.0), **shared), adamw)
    assert close(trained(optimizers.QHAdam, betas=(0.9, 0.9, 0.95), weights=(0.4, 0.6), **shared), adamw)
    none = trained(torch.optim.AdamW, betas=(0.0, 0.95), **shared)
    assert close(trained(optimizers.QHAdam, betas=(0.9, 0.95), weights=(0.0,), **shared), none)
    between = trained(optimizers.QHAdam, betas=(0.9, 0.95), weights=(0.5,), **shared)
    assert not close(between, adamw, 1e-3)
    assert not close(between, none, 1e-3)


def test_qhadam_without_its_momentum_is_torchs_adam_up_to_weight_decay() -> None:
    assert close(
        trained(optimizers.QHAdam, betas=(0.9, 0.95), weights=(1.0,)), trained(torch.optim.Adam, betas=(0.9, 0.95))
    )


def test_qhm_at_its_corners_is_sgd() -> None:
    """ω = 0: plain SGD. ω = 1: SGD with averaged momentum, which is torch's with dampening after a start from zero."""
    assert close(trained(optimizers.QHM, betas=(0.9,), weights=(0.0,)), trained(torch.optim.SGD))
    assert close(trained(optimizers.QHM, betas=(0.9,), weights=(1.0,)), trained(ELEMENTWISE["SGDM"], momentum=0.9))


def test_qhadopt_at_its_corner_is_adopt_bit_for_bit() -> None:
    """ω = 1 is ADOPT, with the same clamp and without; they differ as soon as a gradient jumps."""
    corner: dict[str, Any] = {"betas": (0.9, 0.99), "weights": (1.0,)}
    free: dict[str, Any] = {"clip_exponent": None, "weight_decay": 0.1}
    adopt = trained(ELEMENTWISE["ADOPT"], betas=(0.9, 0.99))
    assert torch.equal(trained(optimizers.QHADOPT, **corner), adopt)
    assert torch.equal(
        trained(optimizers.QHADOPT, **corner, **free), trained(ELEMENTWISE["ADOPT"], betas=(0.9, 0.99), **free)
    )
    assert not close(trained(optimizers.QHADOPT, **corner, clip_exponent=None), adopt, 1e-3)


def quasi_hyperbolic_adopt(
    x: float, g: list[float], betas: tuple[float, ...], weights: tuple[float, ...]
) -> tuple[float, list[float], float]:
    """The authors' loop on one number, written out: x, momenta and v after the gradients ``g``."""
    u, v = [0.0] * len(weights), 0.0
    for k, gk in enumerate(g):
        if k == 0:
            v = gk * gk
            continue
        n = gk / max(math.sqrt(v), EPS)
        n = math.copysign(min(abs(n), k**0.25), n)
        u = [b * uj + (1 - b) * n for b, uj in zip(betas, u, strict=False)]
        x -= LR * ((1 - sum(weights)) * n + sum(w * uj for w, uj in zip(weights, u, strict=True)))
        v = betas[-1] * v + (1 - betas[-1]) * gk * gk
    return x, u, v


@pytest.mark.parametrize(("betas", "weights"), [((0.9, 0.99), (0.8,)), ((0.5, 0.9, 0.99), (0.3, 0.6))])
def test_qhadopt_by_hand(betas: tuple[float, ...], weights: tuple[float, ...]) -> None:
    """Six steps on one number, one of whose gradients is so large that the clamp decides (k^0.25)."""
    g = [1.0, -2.0, 0.5, 40.0, -0.1, 3.0]
    p = torch.nn.Parameter(torch.tensor(START, dtype=F64))
    optimizer = optimizers.QHADOPT([p], lr=LR, betas=betas, weights=weights, eps=EPS)
    for gk in g:
        p.grad = torch.tensor(gk, dtype=F64)
        optimizer.step()
    x, u, v = quasi_hyperbolic_adopt(START, g, betas, weights)
    assert float(p.detach()) == pytest.approx(x, rel=1e-14)
    names = ["exp_avg"] if len(u) == 1 else ["exp_avg_1", "exp_avg_2"]
    assert [float(optimizer.state[p][name]) for name in names] == pytest.approx(u, rel=1e-14)
    assert float(optimizer.state[p]["exp_avg_sq"]) == pytest.approx(v, rel=1e-14)


def test_one_quasi_hyperbolic_step_in_numbers() -> None:
    """g = 2 twice, β = (0.5, 0.75), ω = 0.5, lr 0.1: v = 4, n = 2 / 2 = 1, u = 0.5, step 0.5 · 1 + 0.5 · 0.5 = 0.75.

    QHAdam in its first step: both moments corrected to g and g², so that any ω steps by lr · sign(g).
    """
    p = torch.nn.Parameter(torch.tensor(1.0, dtype=F64))
    optimizer = optimizers.QHADOPT([p], lr=0.1, betas=(0.5, 0.75), weights=(0.5,))
    for _ in range(2):
        p.grad = torch.tensor(2.0, dtype=F64)
        optimizer.step()
    assert float(p.detach()) == pytest.approx(0.925, rel=1e-15)
    q = torch.nn.Parameter(torch.tensor(1.0, dtype=F64))
    q.grad = torch.tensor(-3.0, dtype=F64)
    optimizers.QHAdam([q], lr=0.1, weights=(0.3,), eps=0.0).step()
    assert float(q.detach()) == pytest.approx(1.1, rel=1e-15)


@pytest.mark.parametrize(
    ("betas", "weights"), [((0.9, 0.9), (0.5, 0.5)), ((0.9, 0.9), (1.2,)), ((0.9, 0.9), (-0.1,)), ((1.0, 0.9), (0.5,))]
)
def test_weights_that_make_no_sense_are_refused(betas: Any, weights: Any) -> None:
    with pytest.raises(RecipeError, match="QHADOPT does not accept"):
        QHADOPT(0.1, betas, weights)


# --- the method ------------------------------------------------------------------------------------------------------


def test_mt_dao_by_hand() -> None:
    """Two workers, two momenta, four periods, a switch after step 3: every number of seven steps."""
    slow, fast = ((0.5, 0.9, 0.99), (0.3, 0.6), 0.05), ((0.8, 0.8, 0.9), (1.0, 0.0), 0.1)
    periods = {"params": 2, "exp_avg_1": 2, "exp_avg_2": 3, "exp_avg_sq": 4}
    warm = Warm(3, QHADOPT(fast[2], *fast[:2]))
    bench = points(MTDAO(periods, QHADOPT(slow[2], *slow[:2]), warm, max_norm=None))
    x, u, v = [START] * 2, [[0.0, 0.0], [0.0, 0.0]], [0.0] * 2  # u[j][worker]
    for t in range(1, 8):
        betas, weights, lr = fast if t <= 3 else slow
        for w in range(2):
            g = slope(w, t, x[w])
            if t == 1:
                v[w] = g * g
                continue
            n = g / max(math.sqrt(v[w]), EPS)
            n = math.copysign(min(abs(n), (t - 1) ** 0.25), n)
            for j in range(2):
                u[j][w] = betas[j] * u[j][w] + (1 - betas[j]) * n
            x[w] -= lr * ((1 - sum(weights)) * n + weights[0] * u[0][w] + weights[1] * u[1][w])
            v[w] = betas[2] * v[w] + (1 - betas[2]) * g * g
        x = mean(x) if t % 2 == 0 else x
        u[0] = mean(u[0]) if t % 2 == 0 else u[0]
        u[1] = mean(u[1]) if t % 3 == 0 else u[1]
        v = mean(v) if t % 4 == 0 else v
        if t == 3:
            u = [[0.0, 0.0], [0.0, 0.0]]
        bench.run(1)
        for state, want in (("params", x), ("exp_avg_1", u[0]), ("exp_avg_2", u[1]), ("exp_avg_sq", v)):
            assert values(bench, state) == pytest.approx(want, rel=1e-13, abs=1e-15), (t, state)


def test_weight_one_on_one_momentum_is_des_loc() -> None:
    """ω = 1, N = 1: DES-LOC with the same optimizer, numbers and ledger, bit for bit with ADOPT (and to rounding with Adam)."""
    periods = {"params": 2, "exp_avg": 3, "exp_avg_sq": 4}
    one = Optimizer("QHADOPT", 1e-2, {"betas": (0.9, 0.99), "weights": (1.0,)})
    mt_dao = Bench(MTDAO(periods, one)).run(8)
    des_loc = Bench(DESLOC(periods, Optimizer("ADOPT", 1e-2, {"betas": (0.9, 0.99)}))).run(8)
    for w, state in itertools.product(range(3), periods):
        assert torch.equal(mt_dao.of(w, state), des_loc.of(w, state)), state
    assert mt_dao.records == des_loc.records
    one = Optimizer("QHAdam", 3e-2, {"betas": (0.9, 0.95), "weights": (1.0,)})
    adam, theirs = Bench(MTDAO(periods, one)).run(8), Bench(DESLOC(periods, AdamW(3e-2))).run(8)
    for w, state in itertools.product(range(3), periods):
        assert close(adam.of(w, state), theirs.of(w, state)), state


def test_local_adopt_is_one_period_for_all() -> None:
    """ω = 1 and equal periods: Local ADOPT."""
    one = Optimizer("QHADOPT", 1e-2, {"betas": (0.9, 0.99), "weights": (1.0,)})
    mt_dao = Bench(MTDAO(dict.fromkeys(("params", "exp_avg", "exp_avg_sq"), 3), one)).run(8)
    local = Bench(LocalAdam(3, Optimizer("ADOPT", 1e-2, {"betas": (0.9, 0.99)}))).run(8)
    assert all(torch.equal(mt_dao.of(w), local.of(w)) for w in range(3))


@pytest.mark.parametrize("inner", [QHM, Optimizer("QHM", 3e-2, {"betas": (0.5, 0.9), "weights": (0.3, 0.6)})])
def test_averaged_in_every_step_the_analysed_form_is_ddp(inner: Optimizer) -> None:
    """MT-DAO-SGDM is linear in the gradient, so that averaging all its states in every step is DDP with it."""
    every = dict.fromkeys(("params", *inner.state_names), 1)
    mt_dao, ddp = Bench(MTDAO(every, inner, max_norm=None)).run(7), Bench(DDP(inner, max_norm=None)).run(7)
    for w, state in itertools.product(range(3), every):
        assert close(mt_dao.of(w, state), ddp.of(w, state)), state


def test_bytes_of_the_paper() -> None:
    """All periods 32: 32 / 3 = 10.67 times fewer bytes than DDP with one momentum, 32 / 4 = 8 with two, exactly."""
    ddp = Ledger(dry_run(recipe(DDP(SGD), steps=96))).total_bytes()
    one = Ledger(dry_run(recipe(MTDAO(), steps=96))).total_bytes()
    assert ddp * 3 == one * 32
    periods = dict.fromkeys(("params", *TWO.state_names), 32)
    assert ddp * 4 == Ledger(dry_run(recipe(MTDAO(periods, TWO), steps=96))).total_bytes() * 32


def test_mistakes_are_explained() -> None:
    with pytest.raises(RecipeError, match="AdamW"):
        MTDAO(inner=AdamW(1e-3))
    with pytest.raises(RecipeError, match="exp_avg_3"):
        MTDAO({"params": 2, "exp_avg_3": 4}, TWO)
    with pytest.raises(RecipeError, match="params"):
        MTDAO({"exp_avg": 2})
    with pytest.raises(RecipeError, match=r"warm\.inner must have the states"):
        MTDAO({"params": 2}, TWO, Warm(3))
    with pytest.raises(RecipeError, match=r"unknown option 'method\.warm\.step': use .*method\.warm\.steps"):
        recipe({"name": "mt_dao", "warm": {"step": 3}})  # type: ignore[arg-type]


# --- the paper's formulas --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("beta", "part"), [(0.9, 0.034), (0.95, 0.194), (0.99, 0.725), (0.999, 0.9685)])
def test_what_is_kept_of_a_momentum(beta: float, part: float) -> None:
    assert kept(beta, 32) == pytest.approx(part, abs=6e-4)


@pytest.mark.parametrize("beta", [0.9, 0.99])
def test_variance_of_local_momenta_by_simulation(beta: float) -> None:
    """K = 32 steps of noise of variance 4 from an agreed momentum, at 40,000 workers at once: the formula within 3 %.

    The standard error of a variance from 40,000 normal numbers is 0.7 %.
    """
    x = torch.nn.Parameter(torch.zeros(40_000, dtype=F64))
    optimizer = optimizers.QHM([x], betas=(beta,), weights=(1.0,))
    g = torch.Generator().manual_seed(5)
    for _ in range(32):
        x.grad = 2.0 * torch.randn(40_000, generator=g, dtype=F64)
        optimizer.step()
    simulated = float(optimizer.state[x]["exp_avg"].var())
    assert local_variance(beta, 32, 2.0) == pytest.approx(simulated, rel=0.03)
    assert local_variance(beta, 1, 2.0) == pytest.approx((1 - beta) ** 2 * 4)
    assert local_variance(beta, 10**6, 2.0) == pytest.approx((1 - beta) / (1 + beta) * 4)


def test_preserved_information() -> None:
    """It falls with the length of a round and rises with β; by hand at K = 1: ½ ln(1 + β² s / ((1 − β)² σ²))."""
    assert preserved_information(0.5, 1, 3.0) == pytest.approx(0.5 * math.log(1 + 0.25 * 3.0 / 0.25))
    by_round = [preserved_information(0.99, k, 1.0) for k in (1, 8, 32, 128, 512)]
    assert by_round == sorted(by_round, reverse=True)
    by_beta = [preserved_information(b, 32, 1.0) for b in (0.9, 0.95, 0.99, 0.999)]
    assert by_beta == sorted(by_beta)


@pytest.mark.parametrize("noise", [1.0, 3.0])
def test_slow_momenta_make_workers_agree(noise: float) -> None:
    """On the noisy quadratic the workers' pseudo-gradients follow the global momentum at β = 0.999, not at 0.95.

    The paper: above 0.95 against about 0.7, for both cosines; here over the second half of 80 rounds.
    """

    def cosines(beta: float, weight: float) -> tuple[float, float]:
        _, seen = quadratic(MTDAO(inner=QHADOPT(1e-3, (beta, 0.999), (weight,)), max_norm=None), noise=noise)
        late = seen[len(seen) // 2 :]
        return sum(a.with_momentum for a in late) / len(late), sum(a.with_mean for a in late) / len(late)

    slow, fast = cosines(0.999, 0.98), cosines(0.95, 1.0)
    assert min(slow) > 0.95
    assert max(fast) < 0.9
