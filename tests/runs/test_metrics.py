"""Measurements: by hand where they are formulas, against the run's own numbers where they look at a run."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from lab.engine.comm import Meeting
from lab.engine.optim import Optimizer
from lab.engine.stack import Layout, Stack
from lab.events import Evaluated, Event, Measured, Sent, Started
from lab.methods.demo import DeMo
from lab.methods.diloco import DiLoCo
from lab.methods.local_sgd import LocalSGD
from lab.methods.lordo import LoRDO
from lab.methods.mt_dao import MTDAO
from lab.methods.noloco import NoLoCo
from lab.methods.photon import Photon
from lab.methods.sparta import SPARTA
from lab.methods.streaming_diloco import StreamingDiLoCo
from lab.probes import metrics
from lab.probes.measure import AlignmentProbe
from lab.runs.trainer import Trainer
from lab.study.experiments import alignment, along, rates_of_change
from tests.support.bench import F64, Bench, drawn
from tests.support.cases import METRICS, OVER_PROCESSES
from tests.support.listed import LISTED
from tests.support.recipes import corpus, recipe
from tests.support.sites import HOLDERS, fleet_of_sites, scale, sites
from tests.support.stop_and_go import stop_and_go
from tests.support.stories import story

SGD = Optimizer("SGD", 1e-2)


def vectors(*rows: list[float]) -> Stack:
    """A stack in which each worker holds one vector."""

    class Vector(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.x = nn.Parameter(torch.zeros(len(rows[0]), dtype=F64))

        loss = None

    bench = Bench(LocalSGD(), len(rows), build=lambda w: Vector())
    bench.fleet.params.blocks[0].copy_(torch.tensor(rows, dtype=F64))
    return bench.fleet.params


# --- formulas --------------------------------------------------------------------------------------------------------


def test_cosines_by_hand() -> None:
    """(1, 0), (0, 2) and (−3, 0): right angles and opposites; with (1, 1): cos 45°, 45° and 135°."""
    stack = vectors([1.0, 0.0], [0.0, 2.0], [-3.0, 0.0])
    want = torch.tensor([[1.0, 0.0, -1.0], [0.0, 1.0, 0.0], [-1.0, 0.0, 1.0]], dtype=F64)
    assert torch.allclose(metrics.pairwise_cosines(stack, 3), want)
    agreed = Stack(stack.layout, [torch.tensor([[1.0, 1.0]], dtype=F64)])
    root = math.sqrt(0.5)
    assert metrics.cosines(stack, agreed, 3).tolist() == pytest.approx([root, root, -root])
    assert metrics.inner_products(stack, stack, 3).tolist() == [1.0, 4.0, 9.0]


def test_cosines_where_workers_hold_different_tensors() -> None:
    """Two workers are compared on what both hold, a worker and an agreed value on what the worker holds."""
    fleet = fleet_of_sites()
    cos = metrics.pairwise_cosines(fleet.params, 3)
    both = [torch.cat([fleet.params.cell(n, w).flatten() for n in ("trunk", "experts.b")]) for w in (0, 1)]
    assert float(cos[0, 1]) == pytest.approx(float(torch.cosine_similarity(*both, dim=0)))
    trunks = [fleet.params.cell("trunk", w).flatten() for w in (0, 2)]
    assert float(cos[0, 2]) == pytest.approx(float(torch.cosine_similarity(*trunks, dim=0)))
    drift = metrics.drift(fleet.params, Stack(fleet.layout, [torch.zeros_like(b[:1]) for b in fleet.params.blocks]), 3)
    mine = torch.cat([fleet.params.cell(n, 2).flatten() for n in ("trunk", "experts.c")])
    assert float(drift[2]) == pytest.approx(float(mine.square().mean().sqrt()))


def test_noise_scale_by_hand() -> None:
    """Gradients (3, 1) and (3, −1) over 3 samples each: |G|² = (2·9 − 10) / 1 = 8, tr Σ = (10 − 9)·3·2 / 1 = 6, scale 0.75."""
    assert metrics.noise_scale(vectors([3.0, 1.0], [3.0, -1.0]), 2, 3) == pytest.approx(0.75)
    assert math.isnan(metrics.noise_scale(vectors([1.0, 0.0], [0.0, 1.0]), 2, 3))


def test_noise_scale_finds_the_noise() -> None:
    """G = 1 and noise of variance 4 per sample in each of 40,000 coordinates: 4 samples, within 5 %."""
    rows = 1 + 2.0 / math.sqrt(8) * drawn(4, 40_000, purpose=("noise",))
    assert metrics.noise_scale(vectors(*rows.tolist()), 4, 8) == pytest.approx(4, rel=0.05)


def test_bases_and_spectra() -> None:
    """The same space 1, orthogonal ones 0, half of it shared ½; the spectrum of diag(3, 1, 10⁻¹²) has rank 2."""
    e = torch.eye(4, dtype=F64)
    turned = e[:, :2] @ torch.tensor([[0.6, -0.8], [0.8, 0.6]], dtype=F64)
    assert metrics.basis_similarity(e[:, :2], turned) == pytest.approx(1)
    assert metrics.basis_similarity(e[:, :2], e[:, 2:]) == 0
    assert metrics.basis_similarity(e[:, :2], e[:, 1:3]) == pytest.approx(0.5)
    values = metrics.spectrum(torch.diag(torch.tensor([1.0, 3.0, 1e-12], dtype=F64)))
    assert values.tolist() == pytest.approx([3.0, 1.0, 1e-12])
    assert metrics.numerical_rank(values) == 2
    assert metrics.numerical_rank(values, 0.5) == 1


def test_activation_norms_by_hand() -> None:
    """x = (3, 4) through 2·x: root mean square 2 · √12.5; nothing stays hooked."""
    double = nn.Linear(2, 2, bias=False, dtype=F64, device="meta").to_empty(device="cpu")
    with torch.no_grad():
        double.weight.copy_(2 * torch.eye(2))
    module = nn.Sequential(double, nn.ReLU())
    found = metrics.activation_norms(module, lambda m: m(torch.tensor([[3.0, -4.0]], dtype=F64)))
    assert found == pytest.approx({"0": 2 * math.sqrt(12.5), "1": math.sqrt(18), "": math.sqrt(18)})
    assert not double._forward_hooks


def test_norms_by_group() -> None:
    bench = Bench(LISTED["ddp"], 2)
    norms = metrics.norms_by_group(bench.fleet.params, 2)
    head = float(bench.fleet.params["out"][0].norm())
    whole = float(bench.of(0).norm())
    assert norms["head"] == pytest.approx([head, head])
    assert math.hypot(norms["head"][1], norms["body"][1]) == pytest.approx(whole)


# --- along a run -----------------------------------------------------------------------------------------------------


def test_alignment_of_a_run() -> None:
    """One look per average of the parameters; drift is that of the run's own evaluation in the same step, before it."""
    r = recipe("local_sgd").but(method={"name": "local_sgd", "sync_every": 2})
    seen = alignment(r)
    assert [a.step for a in seen] == [2, 4, 6]
    assert all(-1 <= a.pairwise <= a.with_mean <= 1 for a in seen)
    assert all(a.drift > 0 and a.norm > 0 for a in seen)
    assert not alignment(recipe("ddp"))
    alone = alignment(recipe(DiLoCo(2), num_workers=1), "momentum_buffer")
    assert all(math.isnan(a.pairwise) and a.with_mean == pytest.approx(1) for a in alone)
    assert math.isnan(alone[0].with_momentum)  # there is none before the first outer step
    assert 0 < abs(alone[1].with_momentum) <= 1


def test_alignment_by_hand() -> None:
    """One step of SGD from a common start: pseudo-gradients are lr · gradients, and so are their cosines."""
    bench = Bench(LocalSGD(1, SGD, max_norm=None), 3)
    watch = metrics.Averages(bench.state, bench.comm)
    bench.comm.subscribe(watch.before_average)
    bench.run(1)
    assert watch.after()
    (look,) = watch.seen
    grads = bench.fleet.grads
    cos = metrics.pairwise_cosines(grads, 3)
    assert look.pairwise == pytest.approx(float((cos.sum() - 3) / 6))
    assert look.with_mean == pytest.approx(float(metrics.cosines(grads, bench.comm.agreed(grads), 3).mean()))
    mean = torch.cat([b.mean(0) for b in grads.blocks])
    assert look.norm == pytest.approx(1e-2 * float(mean.norm()))


def test_looking_changes_nothing() -> None:
    """A run that is looked at in every way is the run that is not."""
    r = recipe("mt_dao", steps=4)
    told: list[list[Event]] = [[], [], []]
    alignment(r, each=told[0].append)
    looks = (metrics.drifts, metrics.gradient_norms, metrics.noise, metrics.activations)
    along(r, lambda setup: [look(setup) for look in looks], 1, told[1].append)
    rates_of_change(r, 2, told[2].append)
    results = [[e for e in events if isinstance(e, Evaluated | Sent)] for events in told]
    assert results[0] == results[1] == results[2]
    assert results[0]


def test_ready_made_looks() -> None:
    """Drifts go with the run's own number; gradients are clipped to one; activations are those of the model's parts."""
    r = recipe("local_sgd", steps=3, eval_every=1)
    shown: list[float] = []

    def keep(event: Event) -> None:
        if isinstance(event, Evaluated):
            shown.append(event.drift)

    seen = along(r, metrics.drifts, 1, keep)
    assert [math.sqrt(sum(d * d for d in drifts) / 3) for _, drifts in seen] == pytest.approx(shown)
    assert all(n <= 1 + 1e-9 for _, norms in along(r, metrics.gradient_norms, 1) for n in norms)
    ((_, parts),) = along(r, metrics.activations, 3)
    assert {"blocks.0.attention", "norm"} <= set(parts)
    assert all(v > 0 for v in parts.values())
    scales = [
        x for _, x in along(recipe("local_adam").but(method={"name": "local_adam", "sync_every": 1}), metrics.noise, 1)
    ]
    assert len(scales) == 6


# --- the family where workers hold different tensors -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "agree"),
    [
        (MTDAO(dict.fromkeys(("params", "exp_avg", "exp_avg_sq"), 2)), True),
        (LoRDO(2, 1), True),
        (LoRDO(2, 1, projector="gradient", error_feedback=True), True),
        (Photon(2), True),
        (StreamingDiLoCo(2, 2, overlap=0, mix=0.0), False),
        (NoLoCo(2), False),
        (SPARTA(2, 0.5), False),
        (DeMo(topk=1, chunk=2), True),
    ],
    ids=lambda v: type(v).__name__,
)
def test_methods_on_partial_holders(method: object, agree: bool) -> None:
    """They run, send in a dry run what they send in a run, no tensor to who does not hold it, and copies stay one."""
    real = Bench(method, build=sites, batch=scale).run(4)  # type: ignore[arg-type]
    dry = Bench(method, build=sites, batch=scale, device="meta").run(4)  # type: ignore[arg-type]
    assert real.records == dry.records
    for r in real.records:
        if "private" in r.payload_bytes:
            assert r.workers == (0,)
        if "experts" in r.payload_bytes:
            assert any(set(r.workers) <= set(held_by) for held_by in HOLDERS.values())
    for name, held_by in HOLDERS.items():
        copies = [real.fleet.params.cell(f"experts.{name}", w) for w in held_by]
        assert all(torch.equal(c, copies[0]) for c in copies) or not agree, name


# --- as events --------------------------------------------------------------------------------------------------------


def measured(name: str, **changes: Any) -> list[Measured]:
    r = recipe(LISTED["local_adam"], steps=6, metrics=METRICS, metrics_every=3, **changes)
    return [e for e in Trainer(r, corpus=corpus()).events() if isinstance(e, Measured) and e.metric == name]


def test_metrics_are_events_when_asked_for() -> None:
    """Each at its steps with the values that the functions give, and none where the recipe asks for none."""
    assert [e.step for e in measured("alignment")] == [3, 6]  # the averages of local_adam
    assert [e.step for e in measured("gradients")] == [3, 6]
    assert [e.step for e in measured("rates")] == [6]
    direct = alignment(recipe(LISTED["local_adam"], steps=6))
    assert [e.values["with_mean"] for e in measured("alignment")] == [[a.with_mean] for a in direct]
    rates = rates_of_change(recipe(LISTED["local_adam"], steps=6), every=3)
    assert {k: v for k, (v,) in measured("rates")[0].values.items()} == {k: v[-1][1] for k, v in rates.items()}
    last = measured("spectrum")[-1].values
    assert 0 < last["blocks.0.attention.qkv.weight basis similarity"][0] <= 1 + 1e-12
    assert last["blocks.0.attention.qkv.weight rank"] == [8.0]
    assert {len(e.values["sequences"]) for e in measured("noise")} == {1}
    quiet = Trainer(recipe(LISTED["local_adam"], steps=6), corpus=corpus()).events()
    assert not [e for e in quiet if isinstance(e, Measured)]


def test_measuring_changes_nothing_and_is_resumed(tmp_path: Path) -> None:
    """Losses and bytes are those of the run that measures nothing; stopped anywhere and resumed, all events are the same."""
    r = recipe(LISTED["local_adam"], steps=6, metrics=METRICS, metrics_every=2)
    with_them = story(Trainer(r, corpus=corpus()).events())
    without = story(Trainer(r.but(metrics=[]), corpus=corpus()).events())
    assert [e for e in with_them if not isinstance(e, Measured | Started)] == without[1:]
    stop_and_go(r, tmp_path)


def test_what_is_remembered_follows_experts_that_move() -> None:
    """A worker that stays keeps its row wherever it is now; a cell that came begins with what arrived, and counts from there."""
    layout = Layout.of({"a": (0, 1), "b": (0, 1, 2)}, {"a": torch.Size([1]), "b": torch.Size([1])}, lambda n: n)
    old = Stack(layout, [torch.tensor([[1.0], [2.0]]), torch.tensor([[3.0], [4.0], [5.0]])])
    held = metrics.holders(layout)
    layout.blocks[0] = dataclasses.replace(layout.blocks[0], everywhere=(1, 2, 3), holders=(1, 2, 3))
    for fresh in (torch.tensor([[7.0]]), torch.tensor([[0.0], [7.0], [7.0]])):
        now = metrics.followed(old, held, Stack(layout, [fresh, old.blocks[1]]))
        assert now["a"].tolist() == [[2.0], [7.0], [7.0]]
        assert now["b"].tolist() == [[3.0], [4.0], [5.0]]
    trainer = Trainer(OVER_PROCESSES["experts that move, measured"], corpus=corpus())
    (watch,) = (probe.averages for probe in trainer.probes if isinstance(probe, AlignmentProbe))
    params, came = trainer.state.local["params"], 0

    def also(meeting: Meeting) -> None:
        nonlocal came
        for i, block in enumerate(params.layout.blocks if meeting.stack is params else ()):
            for row in [r for r in range(len(block.holders)) if block.came(r) > max(0, trainer.comm.t - 2)]:
                assert torch.equal(watch.start.blocks[i][row], trainer.state.shared["params"].blocks[i][0])
                came += 1

    trainer.comm.subscribe(also)
    list(trainer.events())
    assert came
