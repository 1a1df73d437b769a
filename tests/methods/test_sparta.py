"""SPARTA: everything at fraction 1, what is drawn and what is left alone, DiLoCo around it."""

from __future__ import annotations

import pytest
import torch

from lab.engine.optim import AdamW, Nesterov
from lab.methods.diloco import DiLoCo
from lab.methods.local_sgd import LocalSGD
from lab.methods.sparta import SPARTA, positions
from tests.support.bench import Bench
from tests.support.listed import SGD

INNER = AdamW(3e-2)


def test_a_fraction_of_one_is_averaging_in_every_step() -> None:
    """Local SGD with a sync in every step: numbers and bytes, bit for bit."""
    sparta, averaging = Bench(SPARTA(1, 1.0, INNER)).run(7), Bench(LocalSGD(1, INNER)).run(7)
    assert all(torch.equal(sparta.of(w), averaging.of(w)) for w in range(3))
    assert sparta.records == averaging.records
    seldom, averaging = Bench(SPARTA(3, 1.0, INNER)).run(7), Bench(LocalSGD(3, INNER)).run(7)
    assert torch.equal(seldom.of(1), averaging.of(1))


def test_with_an_outer_optimizer_and_no_draws_it_is_diloco() -> None:
    """Draws that never come and an outer step every third: DiLoCo, bit for bit."""
    sparta = Bench(SPARTA(99, inner=INNER, outer=Nesterov(), outer_every=3)).run(8)
    diloco = Bench(DiLoCo(3, INNER)).run(8)
    assert all(torch.equal(sparta.of(w), diloco.of(w)) for w in range(3))
    assert sparta.records == diloco.records
    both = Bench(SPARTA(1, 0.3, INNER, Nesterov(), 3)).run(8)
    assert not torch.equal(both.of(0), diloco.of(0))


def test_what_is_drawn_agrees_and_the_rest_is_left_alone() -> None:
    """After a step the drawn numbers are the mean over the workers, the others what each worker made of them."""
    method = SPARTA(2, 0.3, SGD)
    bench, alone = Bench(method).run(2), Bench(SPARTA(9, 0.3, SGD)).run(2)
    for i, block in enumerate(bench.fleet.params.blocks):
        own = alone.fleet.params.blocks[i]
        num = round(0.3 * block.shape[1])
        at = positions(block.shape[1], num, 0, 2, i)
        rest = torch.tensor([k for k in range(block.shape[1]) if k not in at.tolist()])
        assert len(at) == num
        assert torch.equal(block[:, at], own[:, at].mean(0, keepdim=True).expand(3, -1))
        assert torch.equal(block[:, rest], own[:, rest])


def test_bytes_are_those_of_the_drawn_numbers() -> None:
    """Blocks of 16 and 8 numbers, a quarter of each in every second step: 6 numbers of 8 bytes and no positions."""
    bench = Bench(SPARTA(2, 0.25)).run(4)
    assert [(r.step, r.payload_bytes) for r in bench.records] == [(t, {"body": 32, "head": 16}) for t in (2, 4)]
    least = Bench(SPARTA(1, 1e-6)).run(1)
    assert [r.payload_bytes for r in least.records] == [{"body": 8, "head": 8}]


@pytest.mark.parametrize(("size", "num"), [(1000, 10), (7, 7)])
def test_positions_are_drawn_afresh(size: int, num: int) -> None:
    """Without repetition, the same for the same step, and after n steps a part 1 − (1 − p)^n has been drawn."""
    drawn = [positions(size, num, 5, t, 0) for t in range(100)]
    assert all(len(set(d.tolist())) == num for d in drawn)
    assert torch.equal(drawn[3], positions(size, num, 5, 3, 0))
    covered = len(set(torch.cat(drawn).tolist())) / size
    assert covered == pytest.approx(1 - (1 - num / size) ** 100, abs=0.06)  # 4 standard deviations of 0.015
    if num < size:
        assert not torch.equal(drawn[0], drawn[1])
        assert not torch.equal(drawn[0], positions(size, num, 6, 0, 0))
        assert not torch.equal(drawn[0], positions(size, num, 5, 0, 1))
