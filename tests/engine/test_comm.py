"""What travels: means over holders, bytes counted by hand, codecs and what they may lose."""

from __future__ import annotations

import contextlib
import itertools
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from lab.engine.codecs import Cast, Int8, TopK, codec
from lab.engine.comm import Communicator
from lab.engine.fleet import Fleet
from lab.engine.ledger import Ledger
from lab.engine.optim import AdamW, Optimizer
from lab.engine.stack import Stack, clip_
from lab.events import Sent
from lab.ground.errors import RecipeError
from lab.methods.ddp import DDP
from lab.methods.des_loc import DESLOC
from lab.methods.diloco import DiLoCo
from lab.methods.local_adam import LocalAdam
from lab.methods.local_sgd import LocalSGD
from lab.runs.trainer import Trainer, dry_run
from tests.support.bench import F64, Bench, close, drawn, fill_
from tests.support.listed import SGD
from tests.support.recipes import corpus, recipe
from tests.support.sites import HOLDERS, fleet_of_sites, scale, sites


def sent(step: int, op: str, state: str, workers: tuple[int, ...], **payload: int) -> Sent:
    return Sent(step, op, state, workers, payload)


# --- means -----------------------------------------------------------------------------------------------------------


def test_mean_is_over_the_holders() -> None:
    """Every tensor becomes the mean of the copies that exist; a tensor with one holder stays as it is."""
    fleet = fleet_of_sites()
    before = {
        (n, w): fleet.params.cell(n, w).clone() for n in fleet.params.names() for w in range(3) if holds(fleet, n, w)
    }
    Communicator(fleet).mean_(fleet.params, "params")
    assert len(before) == 3 + 5 + 1
    for (name, w), _ in before.items():
        copies = [x for (n, _), x in before.items() if n == name]
        assert close(fleet.params.cell(name, w), sum(copies) / len(copies)), (name, w)
    assert torch.equal(fleet.params.cell("private", 0), before["private", 0])


def holds(fleet: Fleet, name: str, worker: int) -> bool:
    return worker in fleet.layout.blocks[fleet.layout.place[name][0]].holders


@pytest.mark.parametrize("name", ["experts.a", "private"])
def test_an_empty_cell_is_an_error(name: str) -> None:
    """Asking for a tensor at a worker that does not hold it is a KeyError that names both."""
    with pytest.raises(KeyError, match=f"worker 2 does not hold {name}"):
        fleet_of_sites().params.cell(name, 2)


def test_what_a_worker_does_not_hold_never_travels_to_it() -> None:
    """Bytes by hand: trunk 6, experts 5 each, private 4 elements of 8 bytes, counted at their holders only."""
    fleet = fleet_of_sites()
    comm = Communicator(fleet)
    comm.t = 3
    comm.mean_(fleet.params, "params")
    ledger = comm.ledger
    assert ledger.by("group", "worker") == {
        **{("trunk", w): 48 for w in range(3)},
        ("experts", 0): 80,
        ("experts", 1): 80,
        ("experts", 2): 40,
        ("private", 0): 32,
    }
    assert ledger.total_bytes() == 3 * 48 + 5 * 40 + 32
    assert ledger.total_bytes(worker=2) == 48 + 40
    assert ledger.by("step", "op", "state") == {(3, "all_reduce", "params"): ledger.total_bytes()}
    assert {r.workers for r in ledger} == {(0, 1, 2), (0,), (0, 1), (1, 2)}


@pytest.mark.parametrize("up", [u for u in itertools.product([True, False], repeat=3) if any(u)], ids=str)
def test_mean_is_over_the_holders_that_are_up(up: tuple[bool, ...]) -> None:
    """Only workers that are up take part; the rows of the others stay; what nobody up holds is neither sent nor moved."""
    fleet = fleet_of_sites()
    before = fleet.params.clone()
    fleet.up = list(up)
    comm = Communicator(fleet)
    comm.mean_(fleet.params, "params")
    for name in fleet.params.names():
        held_by = [w for w in range(3) if holds(fleet, name, w)]
        present = [w for w in held_by if up[w]]
        for w in held_by:
            want = sum(before.cell(name, v) for v in present) / len(present) if w in present else before.cell(name, w)
            assert close(fleet.params.cell(name, w), want), (name, w)
    spoke = {w for r in comm.ledger for w in r.workers}
    assert spoke == {w for w in range(3) if up[w]}


@given(st.lists(st.floats(0.1, 10.0), min_size=3, max_size=3))
def test_weighted_mean(weights: list[float]) -> None:
    """Weights are per worker and count among the holders of each tensor; equal ones are the plain mean."""
    fleet = fleet_of_sites()
    agreed = Communicator(fleet).mean(fleet.params, "params", weights_W=weights)
    for name in fleet.params.names():
        held_by = [w for w in range(3) if holds(fleet, name, w)]
        total = sum(weights[w] for w in held_by)
        want = sum(fleet.params.cell(name, w) * (weights[w] / total) for w in held_by)
        assert close(agreed[name][0], want), name
    plain, equal = (Communicator(fleet).mean(fleet.params, "params", weights_W=w) for w in (None, [2.0] * 3))
    assert all(close(a, b) for a, b in zip(plain.blocks, equal.blocks, strict=True))


@pytest.mark.parametrize("weights", [None, [1.0, 2.0, 5.0]])
def test_mean_of_differences(weights: list[float] | None) -> None:
    """With ``minus`` the mean is that of the differences to the agreed state, and costs the same bytes."""
    fleet = fleet_of_sites()
    base = fleet.params.first()
    for i, block in enumerate(base.blocks):
        block.copy_(drawn(*block.shape, purpose=("base", i)))
    comm = Communicator(fleet)
    whole = comm.mean(fleet.params, "params", weights_W=weights)
    moved = comm.mean(fleet.params, "params", minus=base, weights_W=weights)
    for m, a, b in zip(moved.blocks, whole.blocks, base.blocks, strict=True):
        assert close(m, a - b)
    half = len(comm.ledger) // 2
    assert comm.ledger.records[:half] == comm.ledger.records[half:]


def test_mean_leaves_its_input_alone() -> None:
    """``mean`` without the underscore changes no copy, with a codec or without."""
    for codecs in ({}, {"params": Int8()}):
        fleet = fleet_of_sites()
        before = fleet.params.clone()
        Communicator(fleet, codecs).mean(fleet.params, "params")
        assert all(torch.equal(a, b) for a, b in zip(before.blocks, fleet.params.blocks, strict=True))


def test_gather() -> None:
    """Gather hands over every copy that is up under its name, once each, and counts it as ``gather``."""
    fleet = fleet_of_sites()
    fleet.up = [True, False, True]
    comm = Communicator(fleet)
    copies = comm.gather(fleet.params, "params")
    assert {w: set(c) for w, c in copies.items()} == {
        0: {"trunk", "experts.a", "experts.b", "private"},
        2: {"trunk", "experts.c"},
    }
    for w, named in copies.items():
        for name, x in named.items():
            assert torch.equal(x, fleet.params.cell(name, w))
    assert comm.ledger.by("op", "worker") == {("gather", 0): 48 + 80 + 32, ("gather", 2): 48 + 40}


def test_broadcast() -> None:
    """The receivers get the agreed state and pay one payload each; nobody else moves or pays."""
    fleet = fleet_of_sites()
    before, agreed = fleet.params.clone(), fleet.params.first()
    comm = Communicator(fleet)
    comm.broadcast_(agreed, fleet.params, "params", to=[1])
    for name in fleet.params.names():
        for w in (w for w in range(3) if holds(fleet, name, w)):
            want = agreed[name][0] if w == 1 else before.cell(name, w)
            assert torch.equal(fleet.params.cell(name, w), want), (name, w)
    assert comm.ledger.by("op", "worker") == {("broadcast", 1): 48 + 80}


def test_looking_is_free() -> None:
    """``agreed`` is the mean for looking at: it sends nothing and writes nothing down."""
    fleet = fleet_of_sites()
    comm = Communicator(fleet)
    seen = comm.agreed(fleet.params)
    assert len(comm.ledger) == 0
    assert all(close(a, b) for a, b in zip(seen.blocks, comm.mean(fleet.params, "params").blocks, strict=True))
    some = comm.agreed(fleet.params, participants=[False, True, True])
    assert close(some["experts.b"][0], fleet.params.cell("experts.b", 1))


# --- methods on partial holders --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "method", [DDP(SGD, max_norm=None), LocalSGD(2, SGD), LocalAdam(2), DiLoCo(2), DESLOC({"params": 2})]
)
def test_methods_on_partial_holders(method: Any) -> None:
    """Any method runs on workers that hold different tensors; each round costs a worker what it holds, and no more."""
    real = Bench(method, build=sites, batch=scale).run(4)
    dry = Bench(method, build=sites, batch=scale, device="meta").run(4)
    assert real.records == dry.records
    elements = {0: 6 + 10 + 4, 1: 6 + 10, 2: 6 + 5}
    for state in {r.state for r in real.records}:
        rounds = 4 if state == "grads" else 2
        per_worker = Ledger(r for r in real.records if r.state == state).by("worker")
        assert per_worker == {(w,): rounds * 8 * n for w, n in elements.items()}, state
    for name, held_by in HOLDERS.items():
        copies = [real.fleet.params.cell(f"experts.{name}", w) for w in held_by]
        assert all(torch.equal(c, copies[0]) for c in copies), name


def test_ddp_keeps_the_copies_of_a_tensor_equal_when_it_clips() -> None:
    """Holders of one tensor that hold different others must not scale its gradient differently (or it is refused)."""
    with contextlib.suppress(RecipeError):
        bench = Bench(DDP(SGD, max_norm=0.1), build=sites, batch=scale).run(4)
        for name, held_by in HOLDERS.items():
            copies = [bench.fleet.params.cell(f"experts.{name}", w) for w in held_by]
            assert all(torch.equal(c, copies[0]) for c in copies), name


def test_an_expert_is_trained_by_its_holders_alone() -> None:
    """What happens to tensors of other holders does not reach an expert: c is the same with and without worker 0."""
    with_all = Bench(LocalSGD(2, SGD, max_norm=None), build=sites, batch=scale).run(4)
    other = Bench(LocalSGD(2, SGD, max_norm=None), build=sites, batch=lambda w, t: scale(9 if w == 0 else w, t)).run(4)
    assert torch.equal(with_all.fleet.params.cell("experts.c", 1), other.fleet.params.cell("experts.c", 1))
    assert not torch.equal(with_all.fleet.params.cell("experts.b", 1), other.fleet.params.cell("experts.b", 1))


# --- the ledger of whole methods -------------------------------------------------------------------------------------

ELEMENTS = 24  # of the toy perceptron: 16 in the body, 8 in the head


@pytest.mark.parametrize(
    ("method", "rounds"),
    [
        (DDP(), {"grads": 12}),
        (LocalSGD(3), {"params": 4}),
        (LocalSGD(3, inner_states="reset"), {"params": 4}),
        (DiLoCo(4), {"params": 3}),
        (LocalAdam(6), {"params": 2, "exp_avg": 2, "exp_avg_sq": 2}),
        (LocalAdam(6, Optimizer("SGDM")), {"params": 2, "momentum_buffer": 2}),
        (DESLOC({"params": 2, "exp_avg": 3, "exp_avg_sq": 12}), {"params": 6, "exp_avg": 4, "exp_avg_sq": 1}),
        (DESLOC({"params": 5}, outer=Optimizer("SGD", 1.0)), {"params": 2}),
    ],
    ids=lambda v: type(v).__name__,
)
def test_bytes_of_methods_by_hand(method: Any, rounds: dict[str, int]) -> None:
    """Twelve steps at three workers: so many times each state, 8 bytes an element, by state, group and worker."""
    ledger = Bench(method).run(12).comm.ledger
    want = {}
    for state, num in rounds.items():
        for w in range(3):
            want[state, "body", w], want[state, "head", w] = num * 8 * 16, num * 8 * 8
    assert ledger.by("state", "group", "worker") == want
    assert ledger.total_bytes() == sum(rounds.values()) * 3 * 8 * ELEMENTS


def test_the_papers_ratios_from_dry_ledgers() -> None:
    """DES-LOC with periods 256, 768, 1536 sends 170.67 times less than DDP and half of Local Adam with 256."""
    periods = {"params": 256, "exp_avg": 768, "exp_avg_sq": 1536}
    des_loc, ddp, local_adam, fedavg = (
        Bench(m, 4, device="meta").run(1536).comm.ledger.total_bytes()
        for m in (DESLOC(periods), DDP(), LocalAdam(256), LocalSGD(256))
    )
    assert ddp == 1536 * 4 * 8 * ELEMENTS
    assert ddp / des_loc == pytest.approx(256 / 1.5, rel=1e-12)
    assert round(ddp / des_loc, 2) == 170.67
    assert local_adam / des_loc == 2.0
    assert ddp / local_adam == pytest.approx(85.333, abs=1e-3)
    assert ddp / fedavg == 256


def test_dry_ledger_of_a_recipe_is_the_real_one() -> None:
    """The paper's periods, 128 times shorter, on a small GPT: dry and real ledgers are equal record by record."""
    periods = {"params": 2, "exp_avg": 6, "exp_avg_sq": 12}
    r = recipe(DESLOC(periods, AdamW(1e-3)), steps=12, dtype="float32", checkpoint_every=0)
    real = [e for e in Trainer(r, corpus=corpus()).events() if isinstance(e, Sent)]
    assert dry_run(r) == real
    ledger = Ledger(real)
    num_params = sum(p.numel() for p in r.model.build(256, r.context).parameters())
    assert ledger.by("state") == {(s,): 12 // k * 3 * 4 * num_params for s, k in periods.items()}
    assert {g for (g,) in ledger.by("group")} == {"embedding", "attention", "mlp", "norm"}


# --- reading a ledger ------------------------------------------------------------------------------------------------

groups = st.dictionaries(st.sampled_from(["mlp", "norm", "all"]), st.integers(0, 1000), min_size=1)
workers = st.lists(st.integers(0, 4), min_size=1, max_size=5, unique=True).map(lambda w: tuple(sorted(w)))
records = st.lists(
    st.builds(
        Sent,
        step=st.integers(1, 5),
        op=st.sampled_from(["all_reduce", "all_gather", "broadcast", "gather"]),
        state=st.sampled_from(["params", "grads", "exp_avg"]),
        workers=workers,
        payload_bytes=groups,
    ),
    max_size=8,
)
KEYS = ("step", "op", "state", "group", "worker")


@given(records)
def test_every_way_to_read_a_ledger_adds_up(records: list[Sent]) -> None:
    """By any combination of keys the sums come to the same total; fewer keys are sums over the others."""
    ledger = Ledger(records)
    total = sum(sum(r.payload_bytes.values()) * len(r.workers) for r in records)
    assert ledger.total_bytes() == total
    finest = ledger.by(*KEYS)
    for size in range(len(KEYS) + 1):
        for keys in itertools.permutations(KEYS, size):
            sums: dict[tuple[object, ...], int] = {}
            for full, num in finest.items():
                key = tuple(full[KEYS.index(k)] for k in keys)
                sums[key] = sums.get(key, 0) + num
            assert ledger.by(*keys) == sums
    for w in range(5):
        assert ledger.total_bytes(worker=w) == ledger.by("worker").get((w,), 0)
        assert sum(ledger.by("state", worker=w).values()) == ledger.total_bytes(worker=w)


def test_new_records_come_once() -> None:
    """``new`` gives what was written since the last call."""
    fleet = fleet_of_sites()
    comm = Communicator(fleet)
    assert comm.ledger.new() == []
    comm.mean_(fleet.params, "params")
    first = comm.ledger.new()
    assert first == comm.ledger.records
    assert comm.ledger.new() == []
    comm.gather(fleet.params, "params")
    assert comm.ledger.new() == comm.ledger.records[len(first) :]


# --- codecs ----------------------------------------------------------------------------------------------------------

finite = st.floats(-1e6, 1e6, allow_subnormal=False)
vectors = st.lists(finite, min_size=1, max_size=40).map(lambda v: torch.tensor(v, dtype=F64))


def through(c: Any, x: Tensor) -> Tensor:
    y: Tensor = c.decode(c.encode(x), x)
    assert y.shape == x.shape
    assert y.dtype == x.dtype
    return y


@given(vectors, st.integers(1, 16))
def test_int8_errs_by_half_a_step(x: Tensor, chunk: int) -> None:
    """Each element is off by at most half a step, max|x| of its chunk / 254 (and the rounding of a float32 scale)."""
    y = through(Int8(chunk), x)
    for start in range(0, len(x), chunk):
        part = slice(start, start + chunk)
        largest = float(x[part].abs().max())
        assert float((y[part] - x[part]).abs().max()) <= largest / 254 * (1 + 1e-4) + 1e-30


@given(vectors, st.sampled_from([("bfloat16", 2.0**-8), ("float16", 2.0**-11)]))
def test_cast_errs_relatively(x: Tensor, kind: tuple[str, float]) -> None:
    """A narrower float is off by half a unit in its last place (as long as it is in the narrow type's normal range)."""
    name, half_unit = kind
    x = x.clamp(-6e4, 6e4)
    x = torch.where(x.abs() < 1e-4, torch.zeros_like(x), x)
    assert bool(((through(Cast(name), x) - x).abs() <= half_unit * x.abs() * (1 + 1e-9)).all())


@given(vectors, st.floats(0.01, 1.0))
def test_topk_keeps_the_largest(x: Tensor, fraction: float) -> None:
    """k elements stay exactly as they were, the others become zero, and none left out is larger than one kept."""
    y = through(TopK(fraction), x)
    k = max(1, round(fraction * len(x)))
    index, values = TopK(fraction).encode(x)
    assert len(index) == len(values) == k
    kept = torch.zeros(len(x), dtype=torch.bool)
    kept[index.long()] = True
    assert torch.equal(y, torch.where(kept, x, torch.zeros_like(x)))
    if k < len(x):
        assert x[kept].abs().min() >= x[~kept].abs().max()


whole_numbers = st.lists(st.lists(st.integers(-1000, 1000), min_size=6, max_size=6), min_size=1, max_size=8)


@given(whole_numbers, st.sampled_from([0.1, 0.3, 0.5, 1.0]))
def test_error_feedback_loses_nothing(inputs: list[list[int]], fraction: float) -> None:
    """What was sent and what is still owed add up to all that was put in: exactly, here with whole numbers."""
    bench = Bench(DDP(), 1, build=single, codecs={"grads": TopK(fraction)})
    arrived = torch.zeros(6, dtype=F64)
    for values in inputs:
        bench.state.grads.blocks[0].copy_(torch.tensor([values], dtype=F64))
        arrived += bench.comm.mean(bench.state.grads, "grads").blocks[0][0]
    owed = bench.comm.residuals["grads"].blocks[0][0]
    assert torch.equal(arrived + owed, torch.tensor(inputs, dtype=F64).sum(0))


def test_forgetting_forgets() -> None:
    """Without error feedback nothing is owed, and what was not sent is gone."""
    bench = Bench(DDP(), 1, build=single, codecs={"grads": codec("topk:0.1:forget")})
    bench.state.grads.blocks[0].copy_(torch.arange(6.0, dtype=F64))
    for _ in range(2):
        got = bench.comm.mean(bench.state.grads, "grads").blocks[0][0]
        assert got.tolist() == [0, 0, 0, 0, 0, 5]
    assert not bench.comm.residuals


class Vector(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.x = nn.Parameter(torch.empty(6, dtype=F64))


def single(worker: int | None) -> nn.Module:
    return Vector() if worker is not None else fill_(Vector())


@pytest.mark.parametrize("up", [[True, True, True], [True, False, True]])
@pytest.mark.parametrize("spec", ["bfloat16", "float16", "int8", "topk:0.25", "topk:0.25:forget"])
def test_bytes_are_those_of_the_encoded_tensors(spec: str, up: list[bool]) -> None:
    """The ledger counts what the codec made of each worker's row of each block, and says how it can travel."""
    fleet = fleet_of_sites()
    fleet.up = up
    c = codec(spec)
    comm = Communicator(fleet, {"grads": c})
    for i, block in enumerate(fleet.grads.blocks):
        block.copy_(drawn(*block.shape, purpose=("g", i)))
    comm.mean(fleet.grads, "grads")
    want: dict[tuple[object, ...], int] = {}
    for block, x in zip(fleet.layout.blocks, fleet.grads.blocks, strict=True):
        for row, w in enumerate(block.holders):
            if up[w]:
                num = sum(part.nbytes for part in c.encode(x[row]))
                want[block.group, w] = want.get((block.group, w), 0) + num
    assert comm.ledger.by("group", "worker") == want
    assert {r.op for r in comm.ledger} == {"all_reduce" if spec in ("bfloat16", "float16") else "all_gather"}


def test_encoded_bytes_by_hand() -> None:
    """1000 float32 elements: 2000 bytes as bfloat16; 1000 and four scales of 4 as int8; 10 pairs of 8 as topk:0.01."""
    x = torch.ones(1000)
    sizes = {s: sum(p.nbytes for p in codec(s).encode(x)) for s in ("bfloat16", "float16", "int8", "topk:0.01")}
    assert sizes == {"bfloat16": 2000, "float16": 2000, "int8": 1016, "topk:0.01": 80}


@pytest.mark.parametrize("spec", ["bfloat16", "int8", "topk:0.5"])
def test_a_coded_mean_is_the_mean_of_what_arrived(spec: str) -> None:
    """Everybody decodes the same rows, so the mean is that of the decoded rows, weighted where asked."""
    fleet = fleet_of_sites()
    c = codec(spec)
    for i, block in enumerate(fleet.grads.blocks):
        block.copy_(drawn(*block.shape, purpose=("g", i)))
    for weights in (None, [1.0, 3.0, 4.0]):
        got = Communicator(fleet, {"grads": c}).mean(fleet.grads, "grads", weights_W=weights)
        for i, block in enumerate(fleet.layout.blocks):
            w = torch.tensor([1.0 if weights is None else weights[h] for h in block.holders], dtype=F64)
            rows = torch.stack([through(c, x) for x in fleet.grads.blocks[i]])
            assert close(got.blocks[i][0], (w / w.sum()) @ rows)


def test_a_residual_belongs_to_its_worker() -> None:
    """A worker that is down keeps what it owes until it speaks again."""
    fleet = Fleet(single, 2, dtype=F64, threads=1)
    comm = Communicator(fleet, {"grads": TopK(0.1)})
    fleet.grads.blocks[0].copy_(torch.tensor([[1.0, 2, 3, 4, 5, 6], [6.0, 5, 4, 3, 2, 1]], dtype=F64))
    comm.mean(fleet.grads, "grads")
    owed = comm.residuals["grads"].blocks[0].clone()
    assert owed.tolist() == [[1, 2, 3, 4, 5, 0], [0, 5, 4, 3, 2, 1]]
    fleet.up = [True, False]
    comm.mean(fleet.grads, "grads")
    assert torch.equal(comm.residuals["grads"].blocks[0][1], owed[1])
    assert not torch.equal(comm.residuals["grads"].blocks[0][0], owed[0])


def test_sparse_codecs_are_refused_on_whole_parameters() -> None:
    """Sending a hundredth of whole parameters would zero the rest: it is refused, with what to use instead."""
    for method in (LocalSGD(1), LocalAdam(1), DESLOC({"params": 1})):
        with pytest.raises(RecipeError, match=r"sends only part of a tensor.*bfloat16 or int8"):
            Bench(method, codecs={"params": TopK(0.1)}).run(1)
    Bench(DiLoCo(1), codecs={"params": TopK(0.1)}).run(1)  # differences may be sparse
    Bench(DDP(), codecs={"grads": TopK(0.1)}).run(1)


def test_error_feedback_and_a_mean_on_stacks_of_different_runs_do_not_mix() -> None:
    """Two communicators owe separately."""
    fleet = Fleet(single, 1, dtype=F64, threads=1)
    one, two = Communicator(fleet, {"grads": TopK(0.1)}), Communicator(fleet, {"grads": TopK(0.1)})
    fleet.grads.blocks[0].copy_(torch.arange(6.0, dtype=F64)[None])
    one.mean(fleet.grads, "grads")
    assert "grads" in one.residuals
    assert "grads" not in two.residuals
    assert isinstance(one.residuals["grads"], Stack)


# --- narrow floats ---------------------------------------------------------------------------------------------------

LOSSLESS = (None, "topk:1.0:forget", "topk:1.0")


class Many(nn.Module):
    """Tensors of zeros, each in a block of its own."""

    def __init__(self, num: int, size: int):
        super().__init__()
        self.x = nn.ParameterList([torch.zeros(size) for _ in range(num)])

    @staticmethod
    def tensor_group(name: str) -> str:
        return name


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@given(
    st.lists(st.floats(1e-3, 5e3), min_size=2, max_size=9),
    st.sampled_from(["none", "weights", "weights of some"]),
    st.sampled_from(LOSSLESS),
    st.booleans(),
)
def test_the_mean_of_equal_copies_is_that_copy(
    dtype: torch.dtype, weights: list[float], how: str, spec: str | None, to_server: bool
) -> None:
    """For every dtype, every weight, and every codec that loses nothing: also after many means, nothing has shrunk or grown."""
    n = len(weights)
    fleet = Fleet(lambda w: Many(1, 64), n, dtype=dtype, threads=1)
    fleet.up = [how != "weights of some" or w != 1 for w in range(n)]
    copy = drawn(64, purpose=("copy", n)).to(dtype)
    fleet.params.blocks[0].copy_(copy)
    comm = Communicator(fleet, {"params": codec(spec)} if spec is not None else None)
    comm_minus = {"minus": Stack(fleet.layout, [torch.zeros(1, 64, dtype=dtype)])} if spec is not None else {}
    rounding = 0.0 if dtype in (torch.bfloat16, torch.float16) else 20 * n * torch.finfo(dtype).eps
    for _ in range(20):
        agreed = comm.mean(
            fleet.params, "params", weights_W=None if how == "none" else weights, to_server=to_server, **comm_minus
        )
        assert agreed.blocks[0].dtype == dtype
        fleet.params.copy_(agreed, fleet.up)
    for row in fleet.params.rows(0, fleet.up):
        assert torch.allclose(fleet.params.blocks[0][row], copy, rtol=rounding, atol=0.0)
    assert torch.allclose(comm.agreed(fleet.params).blocks[0][0], copy, rtol=rounding, atol=0.0)


def test_norms_of_narrow_gradients_are_summed_in_float32() -> None:
    """Many small blocks: a sum of squares in bfloat16 would stop growing long before the end."""
    fleet = Fleet(lambda w: Many(400, 2), 1, dtype=torch.bfloat16, threads=1)
    for g in fleet.grads.blocks:
        g.fill_(1.0)
    clip_(fleet.grads, 1.0)
    norm = torch.cat([g[0].double() for g in fleet.grads.blocks]).norm()
    assert float(norm) == pytest.approx(1.0, rel=2.0**-8)
