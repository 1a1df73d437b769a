"""NoLoCo: a round by hand, its corner, who meets whom, and workers that come closer."""

from __future__ import annotations

import dataclasses
import itertools
from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lab.costs.network import Network
from lab.engine.comm import Communicator
from lab.engine.optim import AdamW, Optimizer
from lab.methods import noloco
from lab.methods.diloco import DiLoCo
from lab.methods.noloco import NoLoCo, groups
from lab.recipes.recipe import Recipe
from lab.runs.trainer import dry_run
from lab.study.toys import gossip
from tests.support.bench import Bench, close, drawn, other
from tests.support.listed import SGD
from tests.support.points import START, points, slope, values


def test_noloco_by_hand() -> None:
    """Two workers, rounds of two SGD steps: velocity, slow weights and parameters of both, with γ unlike η."""
    bench = points(NoLoCo(2, Optimizer("SGD", 0.1), lr=0.7, momentum=0.5, pull=0.3, max_norm=None))
    x, phi, m = [START] * 2, [START] * 2, [0.0] * 2
    for t in range(1, 9):
        x = [x[w] - 0.1 * slope(w, t, x[w]) for w in range(2)]
        if t % 2 == 0:
            delta, middle = sum(x[w] - phi[w] for w in range(2)) / 2, sum(phi) / 2
            m = [0.5 * m[w] + 0.7 * delta + 0.3 * (middle - phi[w]) for w in range(2)]
            phi = [phi[w] + m[w] for w in range(2)]
            x = list(phi)
        bench.run(1)
        for state, want in (("params", x), ("slow", phi), ("velocity", m)):
            assert values(bench, state) == pytest.approx(want, rel=1e-12, abs=1e-15), (t, state)


def test_one_group_without_pull_is_diloco_with_heavy_ball() -> None:
    """All workers in one group, γ = 0: DiLoCo whose outer optimizer is SGD with plain momentum."""
    inner = AdamW(3e-2)
    noloco = Bench(NoLoCo(3, inner, lr=0.7, momentum=0.5, pull=0.0, group_size=3)).run(9)
    diloco = Bench(DiLoCo(3, inner, Optimizer("SGD", 0.7, {"momentum": 0.5}))).run(9)
    assert all(close(noloco.of(w), diloco.of(w)) for w in range(3))
    assert not close(noloco.of(0), Bench(DiLoCo(3, inner)).run(9).of(0), 1e-3)


def test_one_worker_is_alone() -> None:
    """Nobody to talk to: nothing is sent, and its own Δ drives it as an outer optimizer would."""
    alone = Bench(NoLoCo(2, SGD), 1).run(6)
    diloco = Bench(DiLoCo(2, SGD, Optimizer("SGD", 0.7, {"momentum": 0.5})), 1).run(6)
    assert close(alone.of(0), diloco.of(0))
    assert not alone.records


@given(st.lists(st.integers(0, 99), unique=True, max_size=12).map(sorted), st.integers(2, 5), st.integers(0, 9))
def test_groups_are_a_partition(workers: list[int], size: int, t: int) -> None:
    """Everybody is in one group; all but the last are full; the same seed and step give the same groups."""
    found = groups(workers, size, 3, t)
    assert sorted(w for g in found for w in g) == workers
    assert all(len(g) == size for g in found[:-1])
    assert found == groups(workers, size, 3, t)


def test_partners_are_drawn_evenly() -> None:
    """Over 600 rounds of four workers each of the six pairs comes up 200 times (± five standard deviations of 11.5)."""
    met = Counter(tuple(g) for t in range(600) for g in groups([0, 1, 2, 3], 2, 0, t))
    assert len(met) == 6
    assert all(abs(n - 200) < 58 for n in met.values())


def apart(bench: Bench) -> float:
    rows = torch.stack([bench.of(w, "slow") for w in range(bench.fleet.num_workers)])
    return float((rows - rows.mean(0)).square().sum())


def scattered(method: NoLoCo, num_workers: int) -> Bench:
    """Workers that start far apart and do not train."""
    bench = Bench(method, num_workers, schedule=lambda t: 0.0)
    for w in range(num_workers):
        for i, block in enumerate(bench.state.local["slow"].blocks):
            block[w] = drawn(block.shape[1], purpose=("slow", w, i))
            bench.fleet.params.blocks[i][w] = block[w]
    return bench


def test_a_pair_comes_closer_as_its_recursion_says() -> None:
    """Without training Δ = 0: the difference d of two workers obeys v = μ·v − γ·d, d = d + v, and their mean stays."""
    bench = scattered(NoLoCo(1, SGD, momentum=0.5, pull=0.7), 2)
    middle = bench.of(0, "slow") + bench.of(1, "slow")
    d = bench.of(0, "slow") - bench.of(1, "slow")
    v = torch.zeros_like(d)
    for _ in range(8):
        v = 0.5 * v - 0.7 * d
        d = d + v
        bench.run(1)
        assert close(bench.of(0, "slow") - bench.of(1, "slow"), d)
        assert close(bench.of(0, "slow") + bench.of(1, "slow"), middle)


def test_consensus_contracts() -> None:
    """Eight workers that start apart: their spread falls to a thousandth in 40 rounds, around a mean that stays."""
    bench = scattered(NoLoCo(1, SGD), 8)
    before, middle = apart(bench), sum(bench.of(w, "slow") for w in range(8))
    bench.run(40)
    assert apart(bench) < 1e-3 * before
    assert close(sum(bench.of(w, "slow") for w in range(8)), middle, 1e-10)  # type: ignore[arg-type]
    without = scattered(NoLoCo(1, SGD, pull=0.0), 8).run(40)
    assert apart(without) == pytest.approx(before)


def test_pairs_talk_at_the_same_time() -> None:
    """Two payloads to one other worker: on a ring of two that is 2 · S/B, however many workers there are."""
    for n in (2, 4, 16):
        bench = Bench(NoLoCo(1, SGD), n, device="meta").run(1)
        size = sum(b.numel for b in bench.fleet.layout.blocks) * 8
        assert {r.workers for r in bench.records} == {tuple(g) for g in groups(list(range(n)), 2, 0, 1)}
        assert all(bench.comm.ledger.total_bytes(w) == 2 * size for w in range(n))
        bill = Network(bits_per_second=8.0 * size).price(bench.records, num_workers=n, steps=1)
        assert bill.total_seconds == bill.communication_seconds == pytest.approx(2.0)


def test_among_takes_part_in_a_mean() -> None:
    """``participants`` limits a mean to marked workers, in numbers and in the ledger."""
    bench = Bench(NoLoCo(), 3)
    for block in bench.fleet.params.blocks:
        block.copy_(torch.tensor([1.0, 2.0, 6.0])[:, None].expand_as(block))
    comm = Communicator(bench.fleet)
    mean = comm.mean(bench.fleet.params, "params", participants=[True, False, True])
    assert all((b == 3.5).all() for b in mean.blocks)
    assert {r.workers for r in comm.ledger} == {(0, 2)}


def test_gossip_agrees_up_to_a_floor() -> None:
    """Without training the distance shrinks at least tenfold in 10 rounds; with it a larger rate leaves a higher floor."""
    still = gossip(lr=0.0, rounds=20)
    assert still[20] < 0.1 * still[10] < 0.01 * still[0]
    low, high = (sum(gossip(lr=lr, rounds=30)[20:]) for lr in (0.01, 0.04))
    assert 0 < 2 * low < high


def test_a_codec_stands_for_the_slow_parameters() -> None:
    """They are what pairs average: in bfloat16 half the bytes."""

    def sent(codecs: str) -> int:
        recipe = Recipe.of("noloco", ["steps=64", "schedule.warmup=0", f"codecs={codecs}"])
        return sum(r.bytes_each for r in dry_run(recipe) if r.state == "slow")

    assert sent("{}") == 2 * sent('{"slow": "bfloat16"}') > 0


def test_other_numbers_move_the_pairs_along(monkeypatch: pytest.MonkeyPatch) -> None:
    """Dealing the same batches, and the same pairs, to other workers moves all results along: nobody is special."""
    deal = {0: 2, 1: 0, 2: 1}
    label, drawn = {old: new for new, old in deal.items()}, noloco.groups
    plain = Bench(NoLoCo(3)).run(7)
    monkeypatch.setattr(noloco, "groups", lambda *a: [[label[w] for w in group] for group in drawn(*a)])
    dealt = Bench(NoLoCo(3), batch=other(deal)).run(7)
    for w, state in itertools.product(range(3), plain.state.local):
        assert close(plain.of(deal[w], state), dealt.of(w, state)), state
    renamed = [dataclasses.replace(r, workers=sorted(label[w] for w in r.workers)) for r in plain.records]
    assert renamed == dealt.records
