"""Streaming DiLoCo: DiLoCo at its corner, delay and mixing by hand, fragments, peaks, and four-bit payloads."""

from __future__ import annotations

import itertools
from collections import Counter
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from lab.engine.codecs import E3M0, codec
from lab.engine.optim import AdamW, Nesterov, Optimizer
from lab.events import Sent
from lab.ground.errors import RecipeError
from lab.methods.diloco import DiLoCo
from lab.methods.fragments import fragments
from lab.methods.streaming_diloco import StreamingDiLoCo
from lab.runs.trainer import Trainer, dry_run
from tests.support.bench import F64, Bench, close, drawn
from tests.support.points import START, points, slope, values
from tests.support.recipes import TINY, corpus, recipe


def test_one_fragment_without_delay_or_mixing_is_diloco() -> None:
    """P = 1, τ = 0, α = 0 in full precision: DiLoCo, bit for bit, numbers and ledger."""
    inner, outer = AdamW(3e-2), Nesterov(0.7, 0.9)
    one, diloco = Bench(StreamingDiLoCo(3, 1, "strided", 0, 0.0, inner, outer)).run(8), Bench(DiLoCo(3, inner)).run(8)
    assert all(torch.equal(one.of(w), diloco.of(w)) for w in range(3))
    assert torch.equal(one.shared("params.0"), diloco.shared("params"))
    assert torch.equal(one.shared("momentum_buffer.0"), diloco.shared("momentum_buffer"))
    assert one.records == diloco.records
    r = recipe(StreamingDiLoCo(2, 1, "strided", 0, 0.0, inner, outer))
    pair = [Trainer(x, corpus=corpus()) for x in (r, recipe(DiLoCo(2, inner)))]
    for trainer in pair:
        list(trainer.events())
    for a, b in zip(pair[0].fleet.params.blocks, pair[1].fleet.params.blocks, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(("tau", "alpha"), [(0, 0.0), (0, 0.5), (1, 0.5), (2, 0.25), (3, 1.0)])
def test_delay_and_mixing_by_hand(tau: int, alpha: float) -> None:
    """Rounds of four SGD steps: Δ is taken at t = 4 and 8, acts τ steps later, and α of the worker's own way is kept."""
    method = StreamingDiLoCo(4, 1, "strided", tau, alpha, Optimizer("SGD", 0.1), Nesterov(0.4, 0.9), max_norm=None)
    bench = points(method)
    x, shared, b, delta = [START] * 2, START, 0.0, 0.0
    for t in range(1, 10):
        x = [x[w] - 0.1 * slope(w, t, x[w]) for w in range(2)]
        if t in (4, 8):
            delta = shared - (x[0] + x[1]) / 2
        if t in (4 + tau, 8 + tau):
            b = 0.9 * b + delta
            shared -= 0.4 * (delta + 0.9 * b)
            x = [alpha * xw + (1 - alpha) * shared for xw in x]
        bench.run(1)
        assert values(bench) == pytest.approx(x, rel=1e-12), t
        assert float(bench.shared("params.0")) == pytest.approx(shared, rel=1e-12), t
    assert {r.step for r in bench.records} == {4, 8}


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_a_fragment_that_arrives_brings_workers_together(alpha: float) -> None:
    """Where it arrives, workers differ by α of what they differed by a moment before; elsewhere nothing changes."""

    class Arrival(StreamingDiLoCo):
        def _arrive_(self, s: Any, p: int, moved: Any) -> None:
            before = s.local["params"].clone()
            super()._arrive_(s, p, moved)
            arrived = set(s.shared[f"params.{p}"].names())
            for name in before.names():
                apart, were = s.local["params"][name], before[name]
                if name in arrived:
                    assert close(apart[0] - apart[1], alpha * (were[0] - were[1]))
                    seen.append(p)
                else:
                    assert torch.equal(apart, were)

    seen: list[int] = []
    Bench(Arrival(4, 2, overlap=1, mix=alpha)).run(9)
    assert set(seen) == {0, 1}


class Deep(nn.Module):
    """An embedding and four layers, all of the same size."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Parameter(torch.zeros(3, 4, dtype=F64))
        self.blocks = nn.ModuleList(nn.Linear(3, 3, dtype=F64) for _ in range(4))

    def loss(self, x: Any) -> Any:
        for block in self.blocks:
            x = x + block(x)
        return (x @ self.embedding).square().mean()


def deep(method: Any, **options: Any) -> Bench:
    return Bench(method, build=lambda w: Deep(), batch=lambda w, t: (drawn(2, 3, purpose=(w, t)),), **options)  # type: ignore[arg-type,return-value]


def test_fragments_are_whole_layers() -> None:
    with torch.device("meta"):
        names = [name for name, _ in Deep().named_parameters()]
    layers = [["embedding"], *([f"blocks.{i}.weight", f"blocks.{i}.bias"] for i in range(4))]
    assert fragments(names, 5) == layers
    assert fragments(names, 1) == [list(itertools.chain(*layers))]
    assert fragments(names, 2) == [layers[0] + layers[2] + layers[4], layers[1] + layers[3]]
    assert fragments(names, 2, "contiguous") == [layers[0] + layers[1] + layers[2], layers[3] + layers[4]]
    assert [f[0] for f in fragments(["a.1.x", "a.1.y", "b.1.x"], 2)] == ["a.1.x", "b.1.x"]
    with pytest.raises(RecipeError, match="num_fragments = 6 is more than the 5"):
        fragments(names, 6)


def per_step(records: list[Sent]) -> Counter[int]:
    out: Counter[int] = Counter()
    for r in records:
        out[r.step] += r.bytes_each
    return out


def test_the_peak_is_divided_by_the_number_of_fragments() -> None:
    """Five equal layers in five fragments: the largest step sends a fifth of DiLoCo's, the round as much as DiLoCo's."""
    streaming = per_step(deep(StreamingDiLoCo(10, 5), device="meta").run(40).records)
    diloco = per_step(deep(DiLoCo(10), device="meta").run(40).records)
    assert set(diloco) == {10, 20, 30, 40}
    assert set(streaming) == set(range(2, 41, 2))
    assert {5 * b for b in streaming.values()} == set(diloco.values())
    assert sum(streaming.values()) == sum(diloco.values())


def test_dry_run_of_fragments_with_codecs() -> None:
    """Four bits and a scale: the ledger of the dry run, which is that of the run, counts what the encoded tensors hold."""
    r = recipe(StreamingDiLoCo(3, 3), model=TINY, codecs={"params": "e3m0"})
    real = [e for e in Trainer(r, corpus=corpus()).events() if isinstance(e, Sent)]
    assert dry_run(r) == real
    assert {e.op for e in real} == {"all_gather"}
    full = dry_run(r.but(codecs={}))
    ratio = sum(e.bytes_all for e in full) / sum(e.bytes_all for e in real)
    assert 14 < ratio < 16  # 64 bits against 4 and the scales


def test_what_remembers_is_refused_on_parts() -> None:
    with pytest.raises(RecipeError, match="in parts"):
        Trainer(recipe(StreamingDiLoCo(3), codecs={"params": "topk:0.1"}), corpus=corpus())
    Trainer(recipe(StreamingDiLoCo(3), codecs={"params": "topk:0.1:forget"}), corpus=corpus())


def test_mistakes_are_explained() -> None:
    with pytest.raises(RecipeError, match="overlap = 4 must be less"):
        StreamingDiLoCo(4, overlap=4)
    with pytest.raises(RecipeError, match="num_fragments = 5"):
        StreamingDiLoCo(4, 5)


# --- E3M0 ------------------------------------------------------------------------------------------------------------


def through(x: torch.Tensor, chunk: int = 256) -> torch.Tensor:
    form = E3M0(chunk)
    return form.decode(form.encode(x), x)


def test_the_fifteen_numbers_of_e3m0() -> None:
    """± max · 2^−6 … 2^0 and 0 arrive as they are."""
    exact = torch.tensor([s * 2.0**-k * 3 for s, k in itertools.product((1, -1), range(7))] + [0.0], dtype=F64)
    assert torch.equal(through(exact), exact)


def test_e3m0_rounds_to_the_nearest() -> None:
    """Between 1 and 2 the border is 1.5; below 2^−7 of the largest is nothing."""
    x = torch.tensor([64.0, 47.9, 48.1, -1.49, -1.51, 0.49, 0.51, -0.49], dtype=F64)
    assert through(x).tolist() == [64.0, 32.0, 64.0, -1.0, -2.0, 0.0, 1.0, 0.0]


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=40), st.integers(1, 16))
def test_e3m0_errs_by_a_third_at_most(x: list[float], chunk: int) -> None:
    sent = torch.tensor(x, dtype=F64)
    got = through(sent, chunk)
    most = torch.nn.functional.pad(sent.abs(), (0, -len(x) % chunk)).view(-1, chunk).amax(1)
    smallest = most.repeat_interleave(chunk)[: len(x)] / 128
    error = (got - sent).abs()
    assert bool((error <= sent.abs() / 3 * (1 + 1e-6) + smallest + 1e-30).all())
    assert bool((error[sent.abs() > smallest * 1.01] <= 1.0000001 * sent.abs()[sent.abs() > smallest * 1.01]).all())
    assert bool(((got == 0) | (got.sign() == sent.sign())).all())


def test_e3m0_bytes_by_hand() -> None:
    """257 numbers: 129 bytes of pairs and two scales of four bytes."""
    parts = codec("e3m0").encode(torch.ones(257, dtype=F64))
    assert [p.nbytes for p in parts] == [129, 8]
    assert [p.nbytes for p in codec("e3m0").encode(torch.ones(257, device="meta"))] == [129, 8]
