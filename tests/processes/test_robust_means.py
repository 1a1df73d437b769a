"""Medians, trimmed and clipped means: what they are, what they take, and what a worker that sends anything it likes can do to them."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from lab.engine.codecs import codec
from lab.engine.comm import Communicator, Meeting
from lab.engine.stack import Stack
from lab.engine.world import OneProcess
from lab.events import Sent
from lab.ground.errors import RecipeError
from lab.processes.robust_means import RobustMeans, clipped, median, trimmed
from lab.recipes.mean import Mean
from lab.runs.trainer import Trainer, dry_run
from tests.support.bench import F64, drawn
from tests.support.listed import LISTED
from tests.support.recipes import corpus, recipe
from tests.support.sites import HOLDERS, fleet_of_sites

MEDIAN, TRIMMED, CLIPPED = Mean(by="median"), Mean(by="trimmed", trim=0.34), Mean(by="clipped", max_norm=1.0)


def equal(n: int) -> Tensor:
    return torch.full((n,), 1 / n, dtype=F64)


# --- numbers -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", range(1, 9))
def test_with_equal_weights_they_are_those_of_numpy_and_scipy(n: int) -> None:
    rows = drawn(n, 50, purpose=("rows", n))
    assert torch.allclose(median(rows, equal(n)), torch.from_numpy(np.median(rows.numpy(), 0)), atol=1e-15)
    for trim in (0.1, 0.25, 0.34, 0.49):
        want = torch.from_numpy(scipy.stats.trim_mean(rows.numpy(), trim, axis=0))
        assert torch.allclose(trimmed(rows, equal(n), trim), want, atol=1e-14)


@given(st.lists(st.integers(1, 5), min_size=1, max_size=6))
def test_who_counts_several_times_is_as_several_workers(times: list[int]) -> None:
    rows = drawn(len(times), 7, purpose=("rows", *times))
    weights = torch.tensor(times, dtype=F64) / sum(times)
    want = np.median(np.repeat(rows.numpy(), times, 0), 0)
    assert torch.allclose(median(rows, weights), torch.from_numpy(want), atol=1e-15)


def test_a_weighted_trimmed_mean_by_hand() -> None:
    """Of 4, 1, 9, 2 with weights 1, 2, 3, 4 tenths a quarter on each side goes: 9 and 1; (4 · 1 + 2 · 4) / 5 is left."""
    rows = torch.tensor([[4.0], [1.0], [9.0], [2.0]], dtype=F64)
    assert float(trimmed(rows, torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=F64), 0.25)) == pytest.approx(12 / 5)


def test_clipping_is_of_all_that_a_worker_hands_in() -> None:
    """Norms 5 (3 in one block, 4 in the other) and 0.5: the first is cut to a fifth of itself, the second stays."""
    one, other = torch.tensor([[3.0], [0.3]], dtype=F64), torch.tensor([[4.0], [0.4]], dtype=F64)
    got = clipped([one, other], equal(2), 1.0)
    assert torch.allclose(torch.cat(got), torch.tensor([(0.6 + 0.3) / 2, (0.8 + 0.4) / 2], dtype=F64))
    assert torch.equal(torch.cat(clipped([one, other], equal(2), 100.0)), torch.cat([one, other], 1).mean(0))


# --- laws ----------------------------------------------------------------------------------------------------------------


def robust(how: Mean) -> RobustMeans:
    return RobustMeans(fleet_of_sites(), {}, OneProcess(), how)


def zeros(stack: Stack) -> Stack:
    return Stack(stack.layout, [torch.zeros(1, x.shape[1], dtype=F64) for x in stack.blocks])


@pytest.mark.parametrize("how", [MEDIAN, TRIMMED])
def test_each_block_is_that_of_its_holders(how: Mean) -> None:
    """Expert b lives at workers 0 and 1, the trunk at three; by hand with numpy and scipy."""
    comm = robust(how)
    params = comm.fleet.params
    got = comm.mean(params, "params")
    for name, holders in {"trunk": (0, 1, 2), **{f"experts.{e}": h for e, h in HOLDERS.items()}}.items():
        rows = torch.stack([params.cell(name, w) for w in holders]).numpy()
        want = np.median(rows, 0) if how is MEDIAN else scipy.stats.trim_mean(rows, how.trim, axis=0)
        assert torch.allclose(got[name][0], torch.from_numpy(want), atol=1e-14), name


@pytest.mark.parametrize("how", [MEDIAN, TRIMMED])
def test_copies_that_are_equal_stay_what_they_are(how: Mean) -> None:
    comm = robust(how)
    params = comm.fleet.params
    for x in params.blocks:
        x.copy_(x[:1].clone() * 0.01)
    got = comm.mean(params, "params", minus=zeros(params))
    assert all(torch.allclose(x, y[:1], atol=1e-16) for x, y in zip(got.blocks, params.blocks, strict=True))


@pytest.mark.parametrize("how", [MEDIAN, TRIMMED, CLIPPED])
def test_nobody_is_special(how: Mean) -> None:
    """Whoever hands in what: the same comes out."""
    rows, weights = drawn(4, 9, purpose="rows"), torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=F64)

    def of(rows: Tensor, weights: Tensor) -> Tensor:
        if how is MEDIAN:
            return median(rows, weights)
        return trimmed(rows, weights, 0.25) if how is TRIMMED else clipped([rows], weights, 1.0)[0]

    want = of(rows, weights)
    for order in itertools.permutations(range(4)):
        assert torch.allclose(of(rows[list(order)], weights[list(order)]), want, atol=1e-15)


@pytest.mark.parametrize("how", [None, MEDIAN, TRIMMED])
def test_one_worker_that_sends_anything_moves_the_mean_without_bound_and_these_hardly(how: Mean | None) -> None:
    """Of the trunk, which three hold: the more worker 2 says, the further goes the mean; the others stay among what honest ones say."""
    far = []
    for size in (1.0, 1e3, 1e6):
        comm = robust(how) if how is not None else Communicator(fleet_of_sites())
        params = comm.fleet.params
        params["trunk"][2] = size
        far.append(float(comm.mean(params, "params", minus=zeros(params))["trunk"].abs().max()))
    if how is None:
        assert far[2] > 500 * far[1] > 1e5
    else:
        honest = fleet_of_sites().params["trunk"][:2].abs().max()
        assert max(far) <= max(1.0, float(honest))


def test_a_poisoned_run_learns_on_and_a_mean_does_not() -> None:
    """DDP of four, of whom one sends a gradient of 10⁶ everywhere: with a median all take the steps of honest ones."""

    sgd = {"name": "ddp", "inner": {"name": "SGD", "lr": 0.1}, "max_norm": None}

    def norm(by: dict[str, Any]) -> float:
        of = recipe("ddp", num_workers=4, mean=by, steps=1, eval_every=0, checkpoint_every=0).but(method=sgd)
        trainer = Trainer(of, corpus=corpus())
        own = trainer.built.grad

        def poisoned(state: Any) -> Tensor:
            loss_W: Tensor = own(state)
            for block, x in zip(state.grads.layout.blocks, state.grads.blocks, strict=True):
                x[block.holders.index(3)] = 1e6
            return loss_W

        object.__setattr__(trainer.built, "grad", poisoned)
        start = [x.clone() for x in trainer.fleet.params.blocks]
        list(trainer.events())
        return max(float((x - y).abs().max()) for x, y in zip(trainer.fleet.params.blocks, start, strict=True))

    assert norm({"by": "mean"}) > 1e4
    assert norm({"by": "median"}) < 10
    assert norm({"by": "trimmed"}) < 10
    assert norm({"by": "clipped", "max_norm": 1.0}) < 10


# --- bytes ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "op", "instead"), [("des_loc", "all_reduce", "all_gather"), ("fedprox", "reduce", "gather")]
)
def test_what_is_compared_is_gathered_and_counted_so(method: str, op: str, instead: str) -> None:
    plain = recipe(LISTED[method], num_workers=4)
    some = plain.but(mean={"by": "median"})
    want = [replaced(r, op, instead) for r in dry_run(plain)]
    assert op in {r.op for r in dry_run(plain)}
    assert dry_run(some) == want
    trained = Trainer(some, corpus=corpus())
    list(trained.events())
    assert list(trained.comm.ledger) == want


def replaced(r: Sent, op: str, instead: str) -> Sent:
    return Sent(r.step, instead if r.op == op else r.op, r.state, r.workers, r.payload_bytes, r.level)


def test_who_looks_on_knows_that_it_is_no_plain_mean() -> None:
    seen: list[Meeting] = []
    comm = robust(MEDIAN)
    comm.subscribe(seen.append)
    comm.mean(comm.fleet.params, "params")
    assert [m.plain for m in seen] == [False]


# --- what cannot be ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"mean": {"by": "median"}, "codecs": {"params": "int8"}}, "mean.by=median compares numbers as they are, and codecs.params"),
        ({"mean": {"by": "median"}, "privacy": {"secure_sum": True}}, "privacy.secure_sum shows nobody more than the sum"),
        ({"mean": {"by": "clipped"}}, "set both, or neither"),
        ({"mean": {"max_norm": 1.0}}, "set both, or neither"),
        ({"mean": {"by": "trimmed", "trim": 0.1}}, "mean.trim = 0.1 of 4 workers is less than one"),
        ({"mean": {"by": "middle"}}, "mean.by"),
    ],
)  # fmt: skip
def test_what_cannot_go_along_is_refused_in_one_line(changes: dict[str, Any], why: str) -> None:
    with pytest.raises(RecipeError, match=why):
        recipe(**({"method": LISTED["des_loc"], "num_workers": 4} | changes))


def test_what_shows_when_a_method_sends_is_refused_before_it_trains() -> None:
    with pytest.raises(RecipeError, match=r"mean\.by=clipped cuts differences, and this method averages whole params"):
        Trainer(recipe(LISTED["des_loc"], num_workers=4, mean={"by": "clipped", "max_norm": 1.0}), corpus=corpus())
    comm = robust(MEDIAN)
    with pytest.raises(
        RecipeError, match=r"mean\.by=median is instead of a mean, and this method makes something else"
    ):
        comm.gather(comm.fleet.params, "params")
    with pytest.raises(
        RecipeError, match=r"mean\.by=median compares numbers as they are, and this method sends others"
    ):
        comm.mean(comm.fleet.params, "params", codec=codec("bfloat16"))
