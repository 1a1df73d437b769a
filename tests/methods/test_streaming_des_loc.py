"""Streaming DES-LOC: DES-LOC at its corner, delay and overwriting by hand, fragments at their times, nobody up."""

from __future__ import annotations

import pytest
import torch

from lab.engine.optim import AdamW, Nesterov, Optimizer
from lab.ground.errors import RecipeError
from lab.methods.des_loc import DESLOC
from lab.methods.fragments import fragments
from lab.methods.streaming_des_loc import StreamingDESLOC
from tests.support.bench import Bench, close
from tests.support.points import START, points, slope, values

PERIODS = {"params": 2, "exp_avg": 3, "exp_avg_sq": 4}


@pytest.mark.parametrize("outer", [None, Nesterov(0.7, 0.9)])
def test_one_fragment_without_delay_is_des_loc(outer: Optimizer | None) -> None:
    """P = 1, τ = 0, α = 0: DES-LOC, bit for bit, numbers and ledger."""
    inner = AdamW(3e-2)
    one = Bench(StreamingDESLOC(PERIODS, 1, overlap=0, inner=inner, outer=outer)).run(13)
    des = Bench(DESLOC(PERIODS, inner, outer)).run(13)
    for state in PERIODS:
        assert all(torch.equal(one.of(w, state), des.of(w, state)) for w in range(3)), state
    assert one.records == des.records
    if outer is not None:
        assert torch.equal(one.shared("params.0"), des.shared("params"))


@pytest.mark.parametrize(("tau", "alpha"), [(0, 0.0), (1, 0.0), (2, 0.0), (2, 0.25), (3, 1.0)])
def test_what_arrives_takes_the_place_of_steps_made_meanwhile(tau: int, alpha: float) -> None:
    """A mean every four SGD steps arrives at t = 4 and 8 and is that of τ steps before; α of the worker's own way is kept."""
    method = StreamingDESLOC({"params": 4}, 1, overlap=tau, mix=alpha, inner=Optimizer("SGD", 0.1), max_norm=None)
    bench = points(method)
    x, mean = [START] * 2, 0.0
    for t in range(1, 10):
        x = [x[w] - 0.1 * slope(w, t, x[w]) for w in range(2)]
        if t in (4 - tau, 8 - tau):
            mean = (x[0] + x[1]) / 2
        if t in (4, 8):
            x = [alpha * xw + (1 - alpha) * mean for xw in x]
        bench.run(1)
        assert values(bench) == pytest.approx(x, rel=1e-12), t
    assert [r.step for r in bench.records] == [*range(4 - tau, 10, 4)]


def test_each_state_has_its_own_times_for_each_fragment() -> None:
    """With period H fragment p arrives at ⌊H·(p + 1)/P⌋, the last at the end of a period."""
    bench = Bench(StreamingDESLOC({"params": 4, "exp_avg": 6, "exp_avg_sq": 12}, 2, overlap=0)).run(12)
    times = {
        state: [r.step for r in bench.records if r.state == state] for state in ("params", "exp_avg", "exp_avg_sq")
    }
    assert times == {"params": [2, 4, 6, 8, 10, 12], "exp_avg": [3, 6, 9, 12], "exp_avg_sq": [6, 12]}
    sizes = {r.step: r.bytes_each for r in bench.records if r.state == "params"}
    assert sizes[2] + sizes[4] == 8 * bench.of(0).numel()
    late = Bench(StreamingDESLOC({"params": 4, "exp_avg": 6}, 2, overlap=1)).run(12)
    assert [r.step for r in late.records if r.state == "params"] == [1, 3, 5, 7, 9, 11]


def test_a_mean_replaces_moments_whatever_the_mixing() -> None:
    bench = Bench(StreamingDESLOC({"params": 4, "exp_avg": 4}, 1, overlap=0, mix=0.5)).run(4)
    assert close(bench.of(0, "exp_avg"), bench.of(2, "exp_avg"))
    assert not close(bench.of(0), bench.of(2), 1e-9)


def test_what_nobody_sent_does_not_arrive() -> None:
    """All are down when a mean is due: nothing arrives where one is up again, and what arrives later is as it should be."""
    method = StreamingDESLOC({"params": 4}, 1, overlap=2, inner=Optimizer("SGD", 0.1), max_norm=None)
    bench = points(method)
    x = [START] * 2
    for t in range(1, 9):
        up = t != 2
        bench.fleet.up[:] = [up, up]
        if up:
            x = [x[w] - 0.1 * slope(w, t, x[w]) for w in range(2)]
        if t == 6:
            mean = sum(x) / 2
        if t == 8:
            x = [mean] * 2
        bench.run(1)
        assert values(bench) == pytest.approx(x, rel=1e-12), t


def test_what_is_in_no_layer_lies_in_the_first_fragment() -> None:
    names = ["embedding", "blocks.0.w", "blocks.0.b", "blocks.1.w", "blocks.2.w", "norm"]
    first = ["embedding", "norm"]
    assert fragments(names, 2, "contiguous", "first") == [first + names[1:4], ["blocks.2.w"]]
    assert fragments(names, 3, "strided", "first") == [first + names[1:3], ["blocks.1.w"], ["blocks.2.w"]]
    assert fragments(names, 4, "strided", "first") == fragments(names, 4)  # fewer layers than fragments


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"overlap": 2}, r"overlap = 2 must be less than sync_every\.params = 2"),
        ({"num_fragments": 3, "overlap": 0}, r"num_fragments = 3 is more than the sync_every\.params = 2 steps"),
        ({"sync_every": {"exp_avg": 3}}, "no 'params'"),
    ],
)
def test_settings_that_are_none(options: dict[str, object], words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        StreamingDESLOC(**({"sync_every": PERIODS} | options))  # type: ignore[arg-type]
