"""SparseLoCo: one round by hand, its corners, what travels, and what packing gives back."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lab.engine.optim import Nesterov, Optimizer
from lab.methods.diloco import DiLoCo
from lab.methods.sparse_loco import SparseLoCo, StrongestOf, packed, unpacked
from tests.support.bench import F64, Bench, close, drawn

LR, BETA = 0.1, 0.5
SGD = Optimizer("SGD", LR)
# slopes of four numbers, by worker and step
SLOPES = [
    [(3.0, 1.0, -2.0, 0.5), (-1.0, 2.0, 0.25, 4.0), (0.5, 0.5, 1.0, 0.0), (2.0, -2.0, 1.0, 1.0)],
    [(1.0, 2.0, 0.5, -3.0), (4.0, -4.5, 1.0, 2.0), (-3.0, 1.0, 0.0, 0.0), (1.0, 0.0, 6.0, -1.0)],
]


class Line(nn.Module):
    """Four numbers with a given slope: the gradient is what the batch says."""

    def __init__(self) -> None:
        super().__init__()
        self.x = nn.Parameter(torch.zeros(4, dtype=F64))

    def loss(self, slope: tuple[float, ...]) -> torch.Tensor:
        return (self.x * torch.tensor(slope, dtype=F64)).sum()


def rounded(kept: dict[int, float]) -> dict[int, float]:
    """Each number as the mean of those of its sign that are, like it, above the mean size or below."""
    mean = sum(map(abs, kept.values())) / len(kept)
    kinds = {i: (v < 0, abs(v) >= mean) for i, v in kept.items()}
    alike = {kind: [kept[i] for i in kept if kinds[i] == kind] for kind in kinds.values()}
    return {i: sum(alike[kind]) / len(alike[kind]) for i, kind in kinds.items()}


@pytest.mark.parametrize("bits", [2, 32])
@pytest.mark.parametrize("over", ["senders", "all"])
def test_rounds_by_hand(bits: int, over: str) -> None:
    """Two workers, four numbers in one tile of which three travel; two rounds of two local steps."""
    method = SparseLoCo(2, SGD, decay=BETA, topk=3, chunk=2, bits=bits, over=over, max_norm=None)  # type: ignore[arg-type]
    bench = Bench(method, 2, build=lambda w: Line(), batch=lambda w, t: (SLOPES[w][t - 1],))  # type: ignore[arg-type,return-value]
    x, owed = [0.0] * 4, [[0.0] * 4, [0.0] * 4]
    for first in (0, 2):
        sent: list[dict[int, float]] = []
        for w in range(2):
            delta = [LR * sum(SLOPES[w][t][i] for t in (first, first + 1)) for i in range(4)]
            owed[w] = [BETA * e + d for e, d in zip(owed[w], delta, strict=True)]
            kept = {i: owed[w][i] for i in sorted(range(4), key=lambda i: -abs(owed[w][i]))[:3]}
            sent.append(rounded(kept) if bits == 2 else kept)
            owed[w] = [e - sent[w].get(i, 0.0) for i, e in enumerate(owed[w])]
        for i in range(4):
            of = [s[i] for s in sent if i in s]
            x[i] -= sum(of) / (2 if over == "all" else max(1, len(of)))
        bench.run(2)
        for w in range(2):
            assert bench.of(w).tolist() == pytest.approx(x, rel=1e-12), first
            assert bench.of(w, "residual").tolist() == pytest.approx(owed[w], rel=1e-12, abs=1e-15), first


def test_outer_momentum_is_agreed_as_diloco_has_it() -> None:
    """So it is among what a worker is sent that was away, and counted."""
    mine = Bench(SparseLoCo(3, SGD, Nesterov(), decay=0.0, topk=16, chunk=4, bits=32)).run(9)
    theirs = Bench(DiLoCo(3, SGD, Nesterov())).run(9)
    assert close(mine.of(0), theirs.of(0))
    assert mine.state.shared.keys() == theirs.state.shared.keys()
    assert close(mine.shared("momentum_buffer"), theirs.shared("momentum_buffer"))


@pytest.mark.parametrize("over", ["senders", "all"])
def test_all_numbers_as_they_are_is_diloco_with_a_plain_outer_step(over: str) -> None:
    """Nothing is left to owe."""
    all_ = SparseLoCo(3, SGD, decay=0.9, topk=16, chunk=4, bits=32, over=over)  # type: ignore[arg-type]
    mine, theirs = Bench(all_).run(9), Bench(DiLoCo(3, SGD, Optimizer("SGD", 1.0))).run(9)
    assert all(close(mine.of(w), theirs.of(w)) for w in range(3))
    assert all(float(b.abs().max()) < 1e-15 for b in mine.state.local["residual"].blocks)
    some = Bench(SparseLoCo(3, SGD, topk=2, chunk=4, bits=32)).run(9)
    assert not close(some.of(0), theirs.of(0), 1e-3)


def test_what_travels() -> None:
    """Net: a 4 × 3 matrix and a vector of 4 in the body, a 2 × 4 head: tiles of 12, 4 and 8, of which 4 of 16 travel: 3, 1 and 2."""
    method = SparseLoCo(2, SGD, topk=4, chunk=4)
    bench = Bench(method).run(4)
    sent: dict[tuple[int, str], int] = {}
    for r in bench.records:
        assert (r.op, r.state) == ("all_gather", "params")
        for group, num_bytes in r.payload_bytes.items():
            sent[r.step, group] = sent.get((r.step, group), 0) + num_bytes
    book = 4 * 8
    body = (2 + 1 + book) + (1 + 1 + book)  # 3 positions of 4 bits, 3 codes; 1 of 2 bits, 1 code
    assert sent == {(t, g): n for t in (2, 4) for g, n in (("body", body), ("head", 1 + 1 + book))}


def test_the_papers_sizes() -> None:
    """64 of 4,096 numbers: 96 bytes of positions, 16 of codes, against 16,384."""
    x = drawn(1, 8 * 2 * 4096, purpose="tiles")[0].float()
    where, codes, book = StrongestOf(4096, 64, 2).encode(x)
    assert (where.nbytes, codes.nbytes, book.nbytes) == (8 * 96, 8 * 16, 16)
    assert pytest.approx(146.3, abs=0.05) == 16384 / 112


def test_what_is_decoded_is_near_and_in_its_place() -> None:
    x = drawn(5 * 2 * 64, purpose="decoded")
    given = x.view(5, 2, 64)[:, 0]
    for bits in (2, 32):
        codec = StrongestOf(64, 7, bits)
        values, here = codec.decode(codec.encode(x), x).view(5, 2, 64).unbind(1)
        largest = given.abs() >= given.abs().topk(7).values[:, -1:]
        assert torch.equal(here.bool(), largest)
        assert torch.equal(values != 0, largest)
        assert torch.equal(values.sign()[largest], given.sign()[largest])
        if bits == 32:
            assert torch.equal(values[largest], given[largest])
        else:
            assert len(values[largest].unique()) == 4
            assert float(values.sum()) == pytest.approx(float(given[largest].sum()))  # means keep sums
            assert float((values - given)[largest].square().sum()) < 0.1 * float(given[largest].square().sum())


@pytest.mark.parametrize("bits", [1, 2, 3, 7, 12])
@pytest.mark.parametrize("n", [1, 5, 64])
def test_packing_gives_back(bits: int, n: int) -> None:
    x = torch.arange(n) * 37 % 2**bits
    assert packed(x, bits).nbytes == -(-n * bits // 8)
    assert torch.equal(unpacked(packed(x, bits), bits, n), x)
