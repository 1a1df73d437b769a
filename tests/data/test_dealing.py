"""Examples dealt to workers: everything to somebody, once; by classes, by groups, by size; batches that need no cursor."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from lab.data.tasks.dealt import check_task, deal
from lab.data.tasks.task import Examples, Task
from lab.data.tasks.tensors import Classification, Regression
from lab.ground.errors import RecipeError
from lab.ground.seeds import numpy_generator
from tests.support.examples import dealt, shards, task_of
from tests.support.texts import fails, run

SPLITS = st.one_of(
    st.just("iid"),
    st.just("groups"),
    st.just("domain"),
    st.floats(0.05, 100).map(lambda a: f"dirichlet:{a}"),
    st.floats(0, 3).map(lambda a: f"size:{a}"),
)


@settings(max_examples=150)
@given(
    st.lists(st.tuples(st.integers(0, 5), st.integers(-9, 9)), min_size=1, max_size=80),
    st.integers(1, 9),
    SPLITS,
    st.integers(0, 4),
)
def test_every_example_goes_to_one_worker(
    examples: list[tuple[int, int]], num_workers: int, split: str, seed: int
) -> None:
    """And the same ones again; no worker has none, or that is said in one line."""
    task = task_of([c for c, _ in examples], [g for _, g in examples])
    try:
        found = shards(dealt(task, num_workers, split, seed))
    except RecipeError:
        with fails("would get no data"):
            dealt(task, num_workers, split, seed)
        return
    assert sorted(i for mine in found for i in mine) == list(range(len(examples)))
    assert all(found)
    assert shards(dealt(task, num_workers, split, seed)) == found
    if split in ("groups", "domain"):
        of = [{examples[i][1] for i in mine} for mine in found]
        assert sum(map(len, of)) == len(set().union(*of))  # nobody's examples are torn apart
    if split == "iid":
        assert max(map(len, found)) - min(map(len, found)) <= 1
    if split.startswith("size"):
        assert list(map(len, found)) == sorted(map(len, found), reverse=True)


@given(st.lists(st.integers(1, 12), min_size=1, max_size=20), st.integers(1, 20))
def test_groups_are_dealt_whole_and_evenly(sizes: list[int], num_workers: int) -> None:
    """Fewer groups than workers are refused; else no worker has more than its part and one group (the bound of greedy dealing)."""
    groups = np.repeat(np.arange(len(sizes)) * 7 - 3, sizes)
    shuffled = numpy_generator(0, "test").permutation(groups)
    task = task_of([0] * len(groups), shuffled.tolist())
    if num_workers > len(sizes) and num_workers <= sum(sizes):
        with fails(
            f"worker {len(sizes)} would get no data: split 'groups' gives {len(sizes)} groups to {num_workers} workers: use at most "
            f"{len(sizes)} workers \\(of clients, clients.num\\), or another split"
        ):
            dealt(task, num_workers, "groups")
    elif num_workers <= len(sizes):
        found = shards(dealt(task, num_workers, "groups"))
        owned = [set(shuffled[mine].tolist()) for mine in found]
        assert sorted(g for own in owned for g in own) == sorted(set(groups.tolist()))
        assert max(map(len, found)) <= sum(sizes) / num_workers + max(sizes)
        if num_workers == len(sizes):
            assert all(len(own) == 1 for own in owned)


def test_shares_of_classes_are_a_dirichlet_distribution() -> None:
    """400 classes: the mean square of a worker's share of a class is (α + 1) / (N (N α + 1)), and its mean is 1/N."""
    num_workers, num_classes, each = 4, 400, 50
    targets = np.repeat(np.arange(num_classes), each)
    for alpha in (0.3, 2.0):
        found = shards(dealt(task_of(targets.tolist()), num_workers, f"dirichlet:{alpha}"))
        share = np.stack([np.bincount(targets[mine], minlength=num_classes) for mine in found]) / each
        assert share.sum(0) == pytest.approx(np.ones(num_classes))
        wanted = (alpha + 1) / (num_workers * (num_workers * alpha + 1))
        assert (share**2).mean() == pytest.approx(wanted, rel=0.05)
        assert share.mean(1) == pytest.approx(np.full(num_workers, 1 / num_workers), rel=0.1)


def test_a_large_alpha_deals_every_class_evenly() -> None:
    targets = np.repeat(np.arange(10), 40)
    found = shards(dealt(task_of(targets.tolist()), 4, "dirichlet:1000000"))
    for mine in found:
        assert np.abs(np.bincount(targets[mine]) - 10).max() <= 1


def test_shares_by_size_by_hand() -> None:
    """(w + 1)⁻¹ of 1, 1/2, 1/3 over 11/6: 60, 30 and 20 of 110."""
    assert dealt(task_of([0] * 110), 3, "size:1").samples_W == [60, 30, 20]


def test_what_does_not_count_is_dealt_as_a_class_of_its_own() -> None:
    """Unlabelled examples are data, too: also by Dirichlet shares none is lost."""
    x = torch.arange(40.0)[:, None]
    y = torch.tensor([-100, 0, 1, -100] * 10)
    found = shards(dealt(Classification((x, y), (x, y)), 3, "dirichlet:5"))
    assert sorted(i for mine in found for i in mine) == list(range(40))


@pytest.mark.processes
def test_dealing_is_the_same_in_another_process() -> None:
    code = (
        "from tests.support.examples import *; t = task_of([i % 5 for i in range(60)], [i % 7 for i in range(60)]);"
        "print([[shards(dealt(t, 3, s, 4)), dealt(t, 3, s, 4).batches.get(1, 9)[0].tolist()] for s in ('iid', 'groups', 'dirichlet:0.5', 'size:2')])"
    )
    here: list[Any] = []
    task = task_of([i % 5 for i in range(60)], [i % 7 for i in range(60)])
    for split in ("iid", "groups", "dirichlet:0.5", "size:2"):
        found = dealt(task, 3, split, 4)
        here.append([shards(found), found.batches.get(1, 9)[0].tolist()])
    assert run(code, PYTHONHASHSEED="3") == str(here)


@pytest.mark.parametrize(
    ("task", "split", "message"),
    [
        (task_of([0, 1]), "groups", "split 'groups' needs natural groups, which these examples do not have: use iid, dirichlet:0.5 or size:1"),
        (task_of([0, 1]), "domain", "split 'domain' needs natural groups"),
        (task_of([0, 1]), "group", "unknown split 'group': use one of iid, domain, groups.*did you mean 'groups'"),
        (Regression((torch.ones(4, 1), torch.ones(4)), (torch.ones(4, 1), torch.ones(4))), "dirichlet:1", "goes by classes"),
        (task_of([0] * 3), "iid", "worker 3 would get no data: there are 3 examples for 9 workers"),
    ],
)  # fmt: skip
def test_splits_that_there_are_not(task: Task, split: str, message: str) -> None:
    with fails(message):
        dealt(task, 9, split)


# --- batches ----------------------------------------------------------------------------------------------------------


@given(st.integers(1, 40), st.integers(1, 4), st.integers(1, 9), st.integers(0, 5))
def test_batches_have_no_cursor(num: int, num_workers: int, batch_size: int, seed: int) -> None:
    """Whatever is asked for before or meanwhile: a batch is the same; an epoch has each example of a shard once."""
    if num < num_workers:
        return
    task = task_of(list(range(num)))
    one, other = (dealt(task, num_workers, "iid", seed, batch_size) for _ in range(2))
    asked = [(w, t) for w in range(num_workers) for t in (7, 1, 3, 2)]
    found = {at: one.batches.get(*at) for at in asked}
    for at in reversed(asked):
        assert all(torch.equal(a, b) for a, b in zip(other.batches.get(*at), found[at], strict=True))
    for worker, shard in enumerate(shards(one)):
        drawn = [i for t in range(1, 2 * len(shard) + 1) for i in one.batches.get(worker, t)[1].tolist()]
        assert len(drawn) == 2 * len(shard) * batch_size
        for epoch in range(batch_size):
            assert sorted(drawn[epoch * len(shard) : (epoch + 1) * len(shard)]) == shard


def test_batches_may_be_asked_for_from_several_threads() -> None:
    found = dealt(task_of(list(range(37))), 2, batch_size=5)
    wanted = {
        (w, t): dealt(task_of(list(range(37))), 2, batch_size=5).batches.get(w, t)[1]
        for w in (0, 1)
        for t in range(1, 30)
    }
    wrong: list[Any] = []

    def ask() -> None:
        for at, batch in wanted.items():
            if not torch.equal(found.batches.get(*at)[1], batch):
                wrong.append(at)

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_batch_is_the_reader_s_own() -> None:
    """Who writes into a batch changes nobody's data."""
    found = dealt(task_of([0, 1, 2]), 1, batch_size=3)
    x, y = found.batches.get(0, 1)
    x.zero_()
    y.fill_(2)
    assert found.batches.get(0, 1)[0].sum() == 3
    assert found.batches.examples.targets.tolist() == [0, 1, 2]


def test_seeds_of_dealing_and_of_order_are_apart() -> None:
    task = task_of(list(range(60)))
    common: dict[str, Any] = {"num_workers": 3, "batch_size": 5}
    plain = deal(task, **common)
    order = deal(task, **common, batches_seed=1)
    assert shards(order) == shards(plain)
    assert not torch.equal(order.batches.get(0, 1)[1], plain.batches.get(0, 1)[1])
    assert shards(deal(task, **common, split_seed=1)) != shards(plain)


# --- validation -------------------------------------------------------------------------------------------------------


def test_validation_has_every_class_in_its_share() -> None:
    """Held-out examples whose classes go round and round: every so-and-so-many-th of them would be of one class alone."""
    task = task_of([i % 10 for i in range(1000)])
    found = deal(task, num_workers=1, batch_size=16, num_validation=100)
    y = torch.cat([y for _, y in found.validation])
    assert np.bincount(y.numpy()).tolist() == [10] * 10
    assert [len(y) for _, y in found.validation] == [16] * 6 + [4]
    x = torch.cat([x for x, _ in found.validation]).flatten()
    assert torch.equal(x, x.sort().values)
    assert torch.equal(y, (x % 10).long())


def test_all_of_few_held_out_examples_are_taken() -> None:
    found = deal(task_of([0, 1, 0, 1, 2]), num_workers=1, batch_size=3, num_validation=99)
    assert torch.cat([x for x, _ in found.validation]).flatten().tolist() == [0, 1, 2, 3, 4]
    with fails("validation needs at least 1 example, not 0"):
        deal(task_of([0, 1]), num_workers=1, batch_size=3, num_validation=0)
    with fails("batch size must be at least 1"):
        deal(task_of([0, 1]), num_workers=1, batch_size=0)


def test_scores_are_those_of_the_validation_examples() -> None:
    """Of half of the examples, and no others."""
    logits = torch.tensor([[2.0, 1.0], [2.0, 1.0], [1.0, 2.0], [1.0, 2.0]])
    task = Classification((logits, [0, 1, 0, 1]), (logits, [0, 1, 0, 1]))
    found = deal(task, num_workers=1, batch_size=1, num_validation=2)
    x = torch.cat([x for x, _ in found.validation])
    y = torch.cat([y for _, y in found.validation])
    assert len(x) == 2
    assert found.scores(nn.Identity())["accuracy"] == (x.argmax(1) == y).double().mean().item()


# --- tasks of one's own -----------------------------------------------------------------------------------------------


FOUR = Examples(torch.arange(8.0).view(4, 2), torch.arange(8.0).view(4, 2).sum(1))
TWO = Examples(torch.ones(2, 2), torch.tensor([2.0, 2.0]))


@dataclass(frozen=True)
class Own:
    """A task that shares no code with those of the lab: sums of two numbers, with a loss and a score of its own."""

    num_outputs: int = 1
    train: Any = FOUR
    held_out: Any = TWO

    def loss(self, module: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
        return F.l1_loss(module(inputs).squeeze(1), targets)

    def num_targets(self, targets: Tensor) -> int:
        return len(targets)

    def scores(self, module: nn.Module, examples: Examples) -> dict[str, float]:
        return {"largest": float(examples.targets.max())}


def test_a_task_of_ones_own_is_dealt() -> None:
    found = deal(Own(), num_workers=2, batch_size=2, dtype=torch.float64)
    assert found.scores(nn.Identity()) == {"largest": 2.0}
    assert found.input_shape == (2,)
    assert found.batches.get(0, 1)[0].dtype == torch.float64
    assert (
        found.loss(
            nn.Linear(2, 1, device="meta", dtype=torch.float64), *(t.to("meta") for t in found.batches.get(1, 1))
        ).shape
        == ()
    )


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ({}, "my.task gives dict, which has no train, held_out, num_outputs, loss, num_targets, scores"),
        (Own(train=(torch.ones(2, 2), torch.ones(2))), "Own.train is a tuple: give lab.data.tasks.task.Examples"),
        (Own(held_out=Examples(torch.ones(0, 2), torch.ones(0))), "Own.held_out has 0 inputs and 0 targets"),
        (Own(train=Examples(torch.ones(3, 2), torch.ones(2))), "Own.train has 3 inputs and 2 targets"),
        (Own(train=Examples(torch.ones(3, 4), torch.ones(3))), r"inputs of shape \[4\] to train on and \[2\] held out"),
        (Own(num_outputs=0), "Own.num_outputs = 0 is not allowed"),
        (Own(num_outputs=True), "Own.num_outputs = True is not allowed"),
    ],
)
def test_what_is_no_task_is_refused(what: Any, message: str) -> None:
    with fails(message):
        check_task(what, "my.task")
