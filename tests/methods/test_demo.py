"""DeMo: two workers and two numbers by hand, the cosine transform, its corners, what travels."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

from lab.engine.optim import Optimizer
from lab.methods.ddp import DDP
from lab.methods.demo import DeMo, Strongest, dct, from_tiles, to_tiles
from lab.methods.tiles import side
from tests.support.bench import F64, Bench, close, drawn
from tests.support.listed import SGD

LR, BETA = 0.1, 0.5
SLOPES = [[(3.0, 1.0), (-1.0, 2.0), (0.5, 0.4), (2.0, -2.0)], [(1.0, 2.0), (4.0, 4.0), (-3.0, 1.0), (1.0, 0.0)]]


class Line(nn.Module):
    """Two numbers with a given slope: the gradient is what the batch says."""

    def __init__(self) -> None:
        super().__init__()
        self.x = nn.Parameter(torch.zeros(2, dtype=F64))

    def loss(self, slope: tuple[float, float]) -> torch.Tensor:
        return (self.x * torch.tensor(slope, dtype=F64)).sum()


@pytest.mark.parametrize("sign", [True, False])
def test_demo_by_hand(sign: bool) -> None:
    """One of two waves a step: sum and difference over √2. What is not sent stays in the momentum of its worker."""
    method = DeMo(Optimizer("SGD", LR), BETA, topk=1, chunk=2, sign=sign)
    bench = Bench(method, 2, build=lambda w: Line(), batch=lambda w, t: (SLOPES[w][t - 1],))  # type: ignore[arg-type,return-value]
    x, m, root = [0.0, 0.0], [[0.0, 0.0], [0.0, 0.0]], math.sqrt(2)
    for t in range(1, 5):
        mean = [0.0, 0.0]
        for w in range(2):
            m[w] = [BETA * mi + LR * gi for mi, gi in zip(m[w], SLOPES[w][t - 1], strict=True)]
            waves = [(m[w][0] + m[w][1]) / root, (m[w][0] - m[w][1]) / root]
            sent = [waves[0], 0.0] if abs(waves[0]) >= abs(waves[1]) else [0.0, waves[1]]
            kept = [a - b for a, b in zip(waves, sent, strict=True)]
            m[w] = [(kept[0] + kept[1]) / root, (kept[0] - kept[1]) / root]
            mean = [a + b / 2 for a, b in zip(mean, sent, strict=True)]
        step = [(mean[0] + mean[1]) / root, (mean[0] - mean[1]) / root]
        step = [LR * ((s > 0) - (s < 0)) for s in step] if sign else step
        x = [xi - si for xi, si in zip(x, step, strict=True)]
        bench.run(1)
        for w in range(2):
            assert bench.of(w).tolist() == pytest.approx(x, rel=1e-12), t
            assert bench.of(w, "momentum").tolist() == pytest.approx(m[w], rel=1e-12, abs=1e-15), t


def test_all_waves_without_sign_is_ddp_with_sgd() -> None:
    """Everything is taken out of the momentum in every step, so that nothing is remembered: SGD on the mean gradient."""
    demo = Bench(DeMo(SGD, 0.9, topk=10**6, sign=False)).run(7)
    ddp = Bench(DDP(SGD, max_norm=None)).run(7)
    assert all(close(demo.of(w), ddp.of(w)) for w in range(3))
    assert all(float(b.abs().max()) < 1e-15 for b in demo.state.local["momentum"].blocks)
    few = Bench(DeMo(SGD, 0.9, topk=1, sign=False)).run(7)
    assert not close(few.of(0), ddp.of(0), 1e-3)


def test_all_waves_with_sign_is_sign_sgd() -> None:
    """And with the sign every number moves by lr in every step."""
    bench = Bench(DeMo(Optimizer("SGD", 0.01), topk=10**6)).run(1)
    start = Bench(DeMo()).of(0)
    assert close((bench.of(0) - start).abs(), torch.full_like(start, 0.01))


def test_the_transform_is_orthonormal() -> None:
    """DCT-II: row 0 is the mean, the rest cosines; its transpose is its inverse; by hand for two and three numbers."""
    for n in (1, 2, 3, 8, 64):
        d = dct(n, F64, torch.device("cpu"))
        assert close(d @ d.T, torch.eye(n, dtype=F64), 1e-12)
    assert close(dct(2, F64, torch.device("cpu")), torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=F64) / math.sqrt(2))
    third = dct(3, F64, torch.device("cpu"))
    assert third[1].tolist() == pytest.approx([math.sqrt(0.5), 0.0, -math.sqrt(0.5)], abs=1e-15)


@pytest.mark.parametrize("shape", [(7,), (), (6, 8), (5, 9), (4, 3, 2)])
def test_tiles_come_back(shape: tuple[int, ...]) -> None:
    """Every shape survives, with all its energy; a constant is a single wave per tile."""
    x = drawn(3, *shape, purpose=("tiles", *shape))
    waves = to_tiles(x, 4)
    assert close(from_tiles(waves, x.shape, 4), x)
    assert close(waves.square().sum(), x.square().sum())
    flat = to_tiles(torch.ones_like(x), 4)
    assert int((flat.abs() > 1e-9).sum()) == flat.shape[0] * flat.shape[1]


def test_tiles_are_where_they_should_be() -> None:
    """A single number of a 4 × 6 matrix, in tiles of 2 × 3: only its tile has waves."""
    x = torch.zeros(1, 4, 6, dtype=F64)
    x[0, 3, 1] = 1.0
    assert to_tiles(x, 3).shape == (1, 4, 6)
    assert to_tiles(x, 3).abs().sum(-1)[0].gt(0).tolist() == [False, False, True, False]
    assert [side(n, 64) for n in (64, 192, 50, 67, 1)] == [64, 64, 50, 1, 1]


def test_what_travels() -> None:
    """Net: a 4 × 3 matrix and a vector of 4 in the body, a 2 × 4 head. Two waves a tile, positions of one byte each."""
    bench = Bench(DeMo(topk=2, chunk=4)).run(2)
    sent: dict[Any, int] = {}
    for r in bench.records:
        for group, num_bytes in r.payload_bytes.items():
            sent[r.step, group] = sent.get((r.step, group), 0) + num_bytes
    assert sent == {(t, g): n for t in (1, 2) for g, n in (("body", 2 * 2 * 9), ("head", 2 * 9))}
    assert {(r.op, r.state) for r in bench.records} == {("all_gather", "momentum")}
    wide = Strongest(4096, 32).encode(torch.ones(2 * 4096))
    assert [part.nbytes for part in wide] == [2 * 32 * 2, 2 * 32 * 4]


def test_strongest_sends_all_that_is_not_zero() -> None:
    """Where a tile holds no more than k numbers they arrive as they are; with more, the largest do."""
    x = torch.zeros(300, 2, dtype=F64).view(-1)
    x[[0, 5, 299, 300, 599]] = torch.tensor([1.0, -2.0, 3.0, 4.0, -5.0], dtype=F64)
    form = Strongest(300, 3)
    assert torch.equal(form.decode(form.encode(x), x), x)
    less = Strongest(300, 1)
    assert less.decode(less.encode(x), x).nonzero().flatten().tolist() == [299, 599]
