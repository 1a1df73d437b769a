"""Steps worked by hand, torch's own optimizers, and the real ``DistributedDataParallel``: what the numbers must be."""

from __future__ import annotations

import itertools
import json
import math
import os
import subprocess
import sys
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from lab.engine.fleet import Fleet
from lab.engine.optim import ELEMENTWISE, AdamW, Nesterov, Optimizer, states, step_
from lab.engine.stack import Stack, clip_, worker_norms
from lab.ground.errors import RecipeError
from lab.methods.ddp import DDP
from lab.methods.des_loc import DESLOC, half_life, suggest_periods
from lab.methods.diloco import DiLoCo
from lab.optimizers.schedule import Schedule
from lab.recipes.buffers import Buffers, Kind
from lab.recipes.recipe import Recipe
from tests.support import ROOT
from tests.support.bench import F64, Bench, build, close, drawn, flat
from tests.support.buffered import Synced, flat_buffers, pictured, pictures
from tests.support.plain import OPTIONS
from tests.support.points import START, Point, mean, point, points, slope, values

# --- DES-LOC ---------------------------------------------------------------------------------------------------------

LR, BETA1, BETA2, EPS = 0.1, 0.9, 0.95, 1e-8
PERIODS = {"params": 2, "exp_avg": 3, "exp_avg_sq": 4}


def adam(x: float, u: float, v: float, g: float, k: int) -> tuple[float, float, float]:
    """The k-th step of Adam on one number: new x, u, v."""
    u = BETA1 * u + (1 - BETA1) * g
    v = BETA2 * v + (1 - BETA2) * g * g
    return x - LR * (u / (1 - BETA1**k)) / (math.sqrt(v / (1 - BETA2**k)) + EPS), u, v


def clipped(g: float, rho: float) -> float:
    """The paper's coordinate-wise clip: sign(g) · min(|g|, ρ)."""
    return math.copysign(min(abs(g), rho), g)


def test_des_loc_by_hand() -> None:
    """Two workers, one number, six steps: each state becomes its mean right after the step that its period divides."""
    bench = points(DESLOC(PERIODS, AdamW(LR, (BETA1, BETA2), EPS), max_norm=None))
    x, u, v = [START] * 2, [0.0] * 2, [0.0] * 2
    for t in range(1, 7):
        for w in range(2):
            x[w], u[w], v[w] = adam(x[w], u[w], v[w], slope(w, t, x[w]), t)
        if t in (2, 4, 6):
            x = mean(x)
        if t in (3, 6):
            u = mean(u)
        if t == 4:
            v = mean(v)
        bench.run(1)
        assert values(bench) == pytest.approx(x, rel=1e-13), t
        assert values(bench, "exp_avg") == pytest.approx(u, rel=1e-13), t
        assert values(bench, "exp_avg_sq") == pytest.approx(v, rel=1e-13), t


def test_first_step_in_numbers() -> None:
    """The same with numbers: gradients 1 and −3 from x = 1 move Adam by lr to either side, and the mean stays at 1."""
    bench = points(DESLOC(dict.fromkeys(PERIODS, 1), AdamW(LR, (BETA1, BETA2), 1e-30), max_norm=None)).run(1)
    assert values(bench) == pytest.approx([1.0, 1.0], rel=1e-14)  # 0.9 and 1.1
    assert values(bench, "exp_avg") == pytest.approx([-0.1, -0.1], rel=1e-14)  # 0.1 · (1 − 3) / 2
    assert values(bench, "exp_avg_sq") == pytest.approx([0.25, 0.25], rel=1e-14)  # 0.05 · (1 + 9) / 2


def paper_listing(steps: int, rho: float) -> tuple[list[float], list[float], list[float]]:
    """DES-LOC as its paper lists it: at steps t ≡ 0 (mod K), counted from 0, average the old state, then update it.

    Returns x, u, v as they are at the start of step ``steps``, after the averages that this step begins with.
    """
    x, u, v = [START] * 2, [0.0] * 2, [0.0] * 2
    for t in range(steps + 1):
        g = [clipped(slope(w, t + 1, x[w]), rho) for w in range(2)] if t < steps else [0.0, 0.0]
        x = mean(x) if t % PERIODS["params"] == 0 else x
        u = mean(u) if t % PERIODS["exp_avg"] == 0 else u
        v = mean(v) if t % PERIODS["exp_avg_sq"] == 0 else v
        if t == steps:
            break
        g = [clipped(slope(w, t + 1, x[w]), rho) for w in range(2)]
        moved = [adam(x[w], u[w], v[w], g[w], t + 1) for w in range(2)]
        x, u, v = ([m[i] for m in moved] for i in range(3))
    return x, u, v


@pytest.mark.parametrize("steps", range(1, 10))
def test_the_papers_listing_is_the_same_rule_shifted_by_one(steps: int) -> None:
    """ "Average, then update" at t ≡ 0 counted from 0 is "update, then average" at t ≡ 0 counted from 1."""
    method = DESLOC(PERIODS, AdamW(LR, (BETA1, BETA2), EPS), max_norm=0.7, clip="value")
    bench = points(method).run(steps)
    for state, want in zip(("params", "exp_avg", "exp_avg_sq"), paper_listing(steps, 0.7), strict=True):
        assert values(bench, state) == pytest.approx(want, rel=1e-13), state


@pytest.mark.parametrize(
    ("options", "exponent", "decay"),
    [({}, 0.25, 0.0), ({"clip_exponent": None}, None, 0.0), ({"clip_exponent": 0.5, "weight_decay": 0.3}, 0.5, 0.3)],
)
def test_des_loc_with_adopt_by_hand(options: dict[str, Any], exponent: float | None, decay: float) -> None:
    """ADOPT divides by the second moment of the step before; its first step only takes v = g² and moves nothing.

    What it divides is clamped to ± k^¼ in the k-th step that moves, unless that is switched off.
    """
    inner = Optimizer("ADOPT", LR, options)
    bench = points(DESLOC({"params": 2, "exp_avg": 3, "exp_avg_sq": 4}, inner, max_norm=None))
    beta1, beta2, eps, clamped = 0.9, 0.9999, 1e-6, 0
    x, m, v = [START] * 2, [0.0] * 2, [0.0] * 2
    for t in range(1, 7):
        for w in range(2):
            g = slope(w, t, x[w])
            if t == 1:
                v[w] = g * g
                continue
            n = g / max(math.sqrt(v[w]), eps)
            if exponent is not None:
                clamped += abs(n) > (t - 1) ** exponent
                n = clipped(n, (t - 1) ** exponent)
            m[w] = beta1 * m[w] + (1 - beta1) * n
            x[w] = x[w] * (1 - LR * decay) - LR * m[w]
            v[w] = beta2 * v[w] + (1 - beta2) * g * g
        x = mean(x) if t % 2 == 0 else x
        m = mean(m) if t % 3 == 0 else m
        v = mean(v) if t % 4 == 0 else v
        bench.run(1)
        assert values(bench) == pytest.approx(x, rel=1e-13), t
        assert values(bench, "exp_avg") == pytest.approx(m, rel=1e-13, abs=1e-15), t
        assert values(bench, "exp_avg_sq") == pytest.approx(v, rel=1e-13), t
    assert bool(clamped) == (exponent is not None)


def test_a_tiny_first_gradient_does_not_throw_adopt_away() -> None:
    """30 steps whose first gradient is 1e-6 and all others 1: clamped they are of the size of lr, else of its millionfold."""
    far = {}
    for clip_exponent in (0.25, None):
        x = torch.nn.Parameter(torch.zeros(1, dtype=F64))
        optimizer = ELEMENTWISE["ADOPT"]([x], lr=2e-3, clip_exponent=clip_exponent)
        for t in range(30):
            x.grad = torch.full_like(x, 1e-6 if t == 0 else 1.0)
            optimizer.step()
        far[clip_exponent] = float(x.detach().abs())
    assert far[0.25] < 30 * 2e-3 * 30**0.25
    assert far[None] > 100 * far[0.25]


def test_des_loc_with_averaged_momentum_by_hand() -> None:
    """SGDM, the form of the paper's analysis: u = β·u + (1 − β)·g from u = 0, x = x − lr·u."""
    bench = points(DESLOC({"params": 3, "momentum_buffer": 2}, Optimizer("SGDM", LR, {"momentum": 0.8}), max_norm=None))
    x, u = [START] * 2, [0.0] * 2
    for t in range(1, 7):
        for w in range(2):
            u[w] = 0.8 * u[w] + 0.2 * slope(w, t, x[w])
            x[w] -= LR * u[w]
        x = mean(x) if t % 3 == 0 else x
        u = mean(u) if t % 2 == 0 else u
        bench.run(1)
        assert values(bench) == pytest.approx(x, rel=1e-13), t
        assert values(bench, "momentum_buffer") == pytest.approx(u, rel=1e-13), t


def test_adam_without_bias_correction_by_hand() -> None:
    """PlainAdam: u and v from zero, x = x − lr · u / √(v + ε²), nothing divided out."""
    inner = Optimizer("PlainAdam", LR, {"betas": [0.9, 0.99], "eps": 0.01})
    bench = points(DESLOC({"params": 2}, inner, max_norm=None))
    x, u, v = [START] * 2, [0.0] * 2, [0.0] * 2
    for t in range(1, 5):
        for w in range(2):
            g = slope(w, t, x[w])
            u[w], v[w] = 0.9 * u[w] + 0.1 * g, 0.99 * v[w] + 0.01 * g * g
            x[w] -= LR * u[w] / math.sqrt(v[w] + 0.01**2)
        x = mean(x) if t % 2 == 0 else x
        bench.run(1)
        assert values(bench) == pytest.approx(x, rel=1e-13), t


# --- DiLoCo ----------------------------------------------------------------------------------------------------------


def test_diloco_by_hand() -> None:
    """Two rounds in numbers: Δ = shared − mean of locals; b = 0.9·b + Δ; shared = shared − 0.7·(Δ + 0.9·b).

    x = 1. Gradients 1 and 3 with inner lr 0.1: locals 0.9 and 0.7, Δ = 0.2, b = 0.2, x = 1 − 0.7 · 0.38 = 0.734.
    Gradients 2 and 2: locals 0.534, Δ = 0.2, b = 0.38, x = 0.734 − 0.7 · (0.2 + 0.342) = 0.3546.
    """
    slopes = {(0, 1): 1.0, (1, 1): 3.0, (0, 2): 2.0, (1, 2): 2.0}

    class Slope(Point):
        def loss(self, g: float) -> Tensor:  # type: ignore[override]
            return self.x * g

    def build_slope(worker: int | None) -> nn.Module:
        module = Slope()
        if worker is None:
            module.x.data.fill_(1.0)
        return module

    method = DiLoCo(sync_every=1, inner=Optimizer("SGD", 0.1), max_norm=None)
    bench = Bench(method, 2, build=build_slope, batch=lambda w, t: (slopes[w, t],)).run(1)  # type: ignore[arg-type,return-value]
    assert values(bench) == pytest.approx([0.734, 0.734], rel=1e-14)
    bench.run(1)
    assert values(bench) == pytest.approx([0.3546, 0.3546], rel=1e-14)
    assert float(bench.shared("params")) == pytest.approx(0.3546, rel=1e-14)
    assert float(bench.shared("momentum_buffer")) == pytest.approx(0.38, rel=1e-14)


def test_diloco_rounds_by_hand() -> None:
    """Three inner steps a round with AdamW that is kept over the outer step: the first round is not a step longer."""
    bench = points(DiLoCo(3, AdamW(LR, (BETA1, BETA2), EPS), Nesterov(0.7, 0.9), max_norm=None))
    shared, b = START, 0.0
    x, u, v = [START] * 2, [0.0] * 2, [0.0] * 2
    for t in range(1, 10):
        for w in range(2):
            x[w], u[w], v[w] = adam(x[w], u[w], v[w], slope(w, t, x[w]), t)
        if t in (3, 6, 9):
            delta = shared - mean(x)[0]
            b = 0.9 * b + delta
            shared -= 0.7 * (delta + 0.9 * b)
            x = [shared] * 2
        bench.run(1)
        assert values(bench) == pytest.approx(x, rel=1e-12), t
        assert values(bench, "exp_avg") == pytest.approx(u, rel=1e-12), t


# --- clipping --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("max_norm", [0.05, 1.0, 1e9])
def test_clip_is_torchs_for_every_worker_by_itself(max_norm: float) -> None:
    """``clip_`` by norm is ``torch.nn.utils.clip_grad_norm_`` on each worker's own module: no norm mixes workers."""
    bench = Bench(DDP(), 3)
    bench.t = 1
    bench.grad(bench.state)
    bench.state.grads.blocks[0][1] *= 100.0  # one worker with a large gradient must not shrink the others
    nets = []
    for w in range(3):
        net = build(None)
        for name, p in net.named_parameters():
            p.grad = bench.state.grads.cell(name, w).clone()
        norm = torch.nn.utils.clip_grad_norm_(net.parameters(), max_norm)
        assert float(worker_norms(bench.state.grads)[w]) == pytest.approx(float(norm), rel=1e-12)
        nets.append(net)
    clip_(bench.state.grads, max_norm)
    for w, net in enumerate(nets):
        for name, p in net.named_parameters():
            assert close(bench.state.grads.cell(name, w), p.grad), (w, name)


def test_clip_by_value_is_torchs() -> None:
    """``how="value"`` clamps each coordinate, as ``clip_grad_value_`` does; None leaves everything alone."""
    bench = Bench(DDP(), 2)
    bench.t = 1
    bench.grad(bench.state)
    before = bench.state.grads.clone()
    clip_(bench.state.grads, None)
    assert all(torch.equal(a, b) for a, b in zip(before.blocks, bench.state.grads.blocks, strict=True))
    clip_(bench.state.grads, 0.1, "value")
    for a, b in zip(before.blocks, bench.state.grads.blocks, strict=True):
        assert torch.equal(a.clamp(-0.1, 0.1), b)
        assert not torch.equal(a, b)


# --- every elementwise optimizer -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "options"), OPTIONS, ids=lambda v: v if isinstance(v, str) else ",".join(v))
def test_stacked_is_one_optimizer_per_worker(name: str, options: dict[str, Any]) -> None:
    """One call on the stack equals one torch optimizer per worker, parameters and states, whatever the gradients."""
    spec = Optimizer(name, 0.05, options)
    fleet = Fleet(build, 3, dtype=F64, threads=1)
    optimizer = spec.over(fleet.params, fleet.grads)
    nets = [build(None) for _ in range(3)]
    own = [ELEMENTWISE[name](net.parameters(), lr=0.05, **options) for net in nets]
    for t in range(1, 7):
        for w, net in enumerate(nets):
            for key, p in net.named_parameters():
                p.grad = drawn(*p.shape, purpose=("g", w, t, key)) * 10.0 ** (w - 1)
                fleet.grads.cell(key, w).copy_(p.grad)
            own[w].step()
        step_(optimizer, 0.05, fleet.params, fleet.up)
    stacked = {"params": fleet.params} | states(optimizer, fleet.params)
    assert tuple(stacked)[1:] == spec.state_names
    for w, net in enumerate(nets):
        for key, p in net.named_parameters():
            theirs = own[w].state[p]
            shaped = {k for k, v in theirs.items() if isinstance(v, Tensor) and v.shape == p.shape}
            assert shaped == set(spec.state_names)
            assert close(fleet.params.cell(key, w), p.detach()), (w, key)
            for state in shaped:
                assert close(stacked[state].cell(key, w), theirs[state]), (w, key, state)


def test_state_names_are_torchs() -> None:
    """The names that a sync schedule uses are the keys of torch's own optimizer state."""
    assert AdamW(1e-3).state_names == ("exp_avg", "exp_avg_sq")
    assert Optimizer("Adam", 1e-3, {"amsgrad": True}).state_names == ("exp_avg", "exp_avg_sq", "max_exp_avg_sq")
    assert Optimizer("SGD", 1e-3).state_names == ()
    assert Nesterov().state_names == ("momentum_buffer",)
    assert Optimizer("ADOPT", 1e-3).state_names == ("exp_avg", "exp_avg_sq")
    assert Optimizer("Adamax", 1e-3).state_names == ("exp_avg", "exp_inf")


# --- real processes --------------------------------------------------------------------------------------------------

REAL = [("AdamW", 0.0), ("AdamW", 0.3), ("SGD", 0.3)]
PICTURES = "SGD:0.0:pictures"
Real = list[dict[str, dict[str, list[float]]]]


@pytest.fixture(scope="module")
def real_ddp(tmp_path_factory: pytest.TempPathFactory) -> Real:
    """What both of two real processes have in the end, by optimizer and norm. They start once for all."""
    environment = os.environ | {"GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    folder = tmp_path_factory.mktemp("real")
    each = [f"{name}:{max_norm}:toy" for name, max_norm in REAL] + [PICTURES]
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.support.real_ddp", str(i), "2", str(folder / "rendezvous"), "5", *each],
            stdout=(folder / f"{i}.json").open("w"),  # a pipe would be full, and the other process wait
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
            cwd=ROOT,
        )
        for i in range(2)
    ]
    try:
        outputs = [p.communicate(timeout=120) for p in processes]
    finally:
        for p in processes:
            p.kill()
    assert [p.returncode for p in processes] == [0, 0], [err for _, err in outputs]
    return [json.loads((folder / f"{i}.json").read_text()) for i in range(2)]


@pytest.mark.processes
@pytest.mark.parametrize(("name", "max_norm"), REAL)
def test_ddp_is_real_ddp(name: str, max_norm: float, real_ddp: Real) -> None:
    """Method ``ddp`` gives the parameters of ``DistributedDataParallel`` on two real processes."""
    real = [torch.tensor(of_process[f"{name}:{max_norm}:toy"]["params"], dtype=F64) for of_process in real_ddp]
    bench = Bench(DDP(Optimizer(name, 1e-2), max_norm=max_norm or None), 2).run(5)
    assert torch.equal(real[0], real[1])
    assert close(bench.of(0), real[0])
    assert close(bench.of(1), real[0])
    assert not close(flat(build(None)), real[0], 1e-3)


@pytest.mark.processes
def test_ddp_with_buffers_is_real_ddp(real_ddp: Real) -> None:
    """ResNet-18 with BatchNorm: parameters, and the buffers of both processes, which differ by their last batch alone.

    Other ways to treat buffers give the same parameters, which do not hang on running statistics, and other buffers.
    """
    both = [{k: torch.tensor(x, dtype=F64) for k, x in of_process[PICTURES].items()} for of_process in real_ddp]
    kinds: tuple[Kind, ...] = ("first", "local", "averaged")
    for kind in kinds:
        bench = Synced(DDP(Optimizer("SGD", 1e-2), max_norm=None), Buffers(kind), 2, pictured, batch=pictures).run(5)
        for w, real in enumerate(both):
            assert close(flat(bench.fleet.modules[w]), real["params"], 1e-10)
            theirs = kind == "first" or (kind == "local" and w == 0)
            assert close(flat_buffers(bench.fleet.modules[w]), real["buffers"], 1e-10) == theirs, (kind, w)
    assert not close(both[0]["buffers"], both[1]["buffers"], 1e-3)
    assert not close(flat(pictured()), both[0]["params"], 1e-3)


# --- periods ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("beta", "steps"), [(0.95, 13.5), (0.99, 69.0), (0.999, 692.8), (0.9999, 6931.1)])
def test_half_lives(beta: float, steps: float) -> None:
    """τ(β) = ln ½ / ln β: the numbers of the paper, and what the word says: β to that power is a half."""
    assert half_life(beta) == pytest.approx(steps, abs=0.06)
    assert beta ** half_life(beta) == pytest.approx(0.5, rel=1e-12)
    assert beta ** half_life(beta, 0.1) == pytest.approx(0.1, rel=1e-12)


@given(st.integers(1, 512), st.floats(0.5, 0.9999), st.floats(0.5, 0.9999))
def test_suggested_periods_never_outrun_the_parameters(k: int, beta1: float, beta2: float) -> None:
    """No state travels more often than the parameters, or than its half-life asks; the periods make a valid method."""
    periods, reasons = suggest_periods(k, (beta1, beta2))
    assert periods["params"] == k
    for name, beta in (("exp_avg", beta1), ("exp_avg_sq", beta2)):
        assert periods[name] == max(k, round(half_life(beta)))
        assert f"{name} every {periods[name]} steps" in reasons
    DESLOC(periods)


rho = st.floats(0.01, 10.0)
gradients = st.lists(st.floats(-100.0, 100.0), min_size=2, max_size=12)


@given(gradients, st.data(), rho, st.floats(0.5, 0.999), st.floats(0.5, 0.999))
def test_drift_bounds(g: list[float], data: st.DataObject, rho: float, beta1: float, beta2: float) -> None:
    """With every coordinate clipped to ±ρ, K steps move u by at most 2ρ(1 − β1^K) and v by at most 2ρ²(1 − β2^K)."""
    fleet = Fleet(point, 1, dtype=F64, threads=1)
    optimizer = AdamW(1e-3, (beta1, beta2)).over(fleet.params, fleet.grads)
    u, v = [0.0], [0.0]
    for x in g:
        fleet.grads.blocks[0].fill_(x)
        clip_(fleet.grads, rho, "value")
        step_(optimizer, 1e-3, fleet.params, fleet.up)
        stacks: dict[str, Stack] = states(optimizer, fleet.params)
        u.append(float(stacks["exp_avg"].blocks[0]))
        v.append(float(stacks["exp_avg_sq"].blocks[0]))
    start = data.draw(st.integers(0, len(g) - 1))
    for end in range(start + 1, len(g) + 1):
        k, slack = end - start, 1 + 1e-9
        assert abs(u[end] - u[start]) <= 2 * rho * (1 - beta1**k) * slack
        assert abs(v[end] - v[start]) <= 2 * rho**2 * (1 - beta2**k) * slack


# --- schedules -------------------------------------------------------------------------------------------------------


def test_schedules_by_hand() -> None:
    """Linear warm-up to 1; cosine to ``final``; 1 − √ over the last part; the first step after the warm-up is at 1."""
    assert [Schedule(warmup=4).at(t, 10) for t in (1, 2, 4, 5, 10)] == [0.25, 0.5, 1.0, 1.0, 1.0]
    cosine = Schedule("cosine", warmup=2, final=0.1)
    assert cosine.at(3, 10) == 1.0
    assert cosine.at(7, 10) == pytest.approx(0.1 + 0.9 * 0.5)  # half of the 8 steps are done
    exponential = Schedule("exponential", warmup=2, final=0.01)
    assert exponential.at(3, 12) == 1.0
    assert exponential.at(8, 12) == pytest.approx(0.1)  # half of the 10 steps
    assert exponential.at(12, 12) == pytest.approx(0.01**0.9)
    with pytest.raises(RecipeError, match="never comes to 0"):
        Recipe(schedule=Schedule("exponential"))
    wsd = Schedule("wsd", decay_fraction=0.4)
    assert [wsd.at(t, 10) for t in (1, 6, 7)] == [1.0, 1.0, 1.0]
    assert wsd.at(8, 10) == pytest.approx(1 - math.sqrt(1 / 4))
    assert wsd.at(10, 10) == pytest.approx(1 - math.sqrt(3 / 4))


@given(st.integers(2, 400), st.data())
def test_wsd_in_whole_steps(steps: int, data: st.DataObject) -> None:
    """A decay over n of the steps, as code that rounds has it: 1 up to its first step, then 1 − √(k / n)."""
    n = data.draw(st.integers(1, steps))
    schedule = Schedule("wsd", decay_fraction=n / steps)
    assert [schedule.at(t, steps) for t in range(1, steps + 1)] == [
        1 - math.sqrt(max(0, t - 1 - (steps - n)) / n) for t in range(1, steps + 1)
    ]
    assert Schedule("wsd", decay_fraction=0.07).at(94, 100) == 1.0
    assert Schedule("wsd").at(347, 384) == pytest.approx(1 - math.sqrt(0.4 / 38.4))  # between two steps


@given(
    st.sampled_from(["constant", "cosine", "wsd", "exponential"]),
    st.integers(2, 60),
    st.integers(0, 20),
    st.floats(0, 1),
    st.floats(0, 1),
)
def test_schedules_stay_within_zero_and_one(kind: Any, steps: int, warmup: int, decay: float, final: float) -> None:
    """A factor lies in (0, 1] unless it ends at zero; it rises during the warm-up and never afterwards."""
    schedule = Schedule(kind, warmup=min(warmup, steps - 1), decay_fraction=decay, final=final)
    factors = [schedule.at(t, steps) for t in range(1, steps + 1)]
    assert all(0 <= f <= 1 + 1e-12 for f in factors)
    peak = max(0, schedule.warmup - 1)
    assert all(a < b for a, b in itertools.pairwise(factors[: peak + 1]))
    if not (kind == "wsd" and decay * steps > steps - schedule.warmup):
        after = factors[schedule.warmup :]
        assert all(a >= b - 1e-12 for a, b in itertools.pairwise(after))
