"""Shards that are made when they are asked for: draws of many clients, and what a client holds out for itself."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lab.data import splits
from lab.data.shards import Drawn, Portion, Repeated, rounded, sizes
from lab.data.splits import Order, partition
from lab.data.tasks.dealt import deal
from lab.ground.errors import RecipeError
from lab.ground.seeds import numpy_generator
from tests.support.parts import blobs

DOMAINS = np.arange(1000) % 5


def test_a_repeated_number_is_a_sequence_without_a_list() -> None:
    many = Repeated(20, 10**15)
    assert (len(many), many[7], many[-1], len(many[3:10])) == (10**15, 20, 20, 7)
    assert list(Repeated(3, 4)) == [3, 3, 3, 3]
    with pytest.raises(IndexError):
        many[10**15]


@pytest.mark.parametrize("how", ["draw:20", "draw:20:0.3"])
def test_everybody_draws_their_own_and_nobody_makes_a_list(how: str) -> None:
    """No machine could hold the shards of so many clients, and what a client has does not depend on how many there are."""
    many = partition(DOMAINS, 10**12, how, seed=3)
    assert len(many) == len(sizes(many)) == 10**12
    some = [many[c] for c in (0, 5, 10**12 - 1)]
    for shard in some:
        assert shard.dtype == np.int64
        assert len({*shard.tolist()}) == len(shard) == sizes(many)[0] == 20
        assert (np.diff(shard) > 0).all()
        assert shard[0] >= 0
        assert shard[-1] < 1000
    assert len({tuple(x) for x in some}) == 3
    few = partition(DOMAINS, 6, how, seed=3)
    assert np.array_equal(few[5], some[1])
    assert len(few[1:3]) == 2
    assert np.array_equal(few[1:3][1], few[2])
    assert not np.array_equal(partition(DOMAINS, 6, how, seed=4)[5], some[1])


def test_proportions_are_those_that_were_drawn() -> None:
    """Of each domain the rounded share of a client's own draw from Dirichlet(alpha)."""
    drawn = partition(DOMAINS, 50, "draw:40:0.2", seed=1)
    for client in range(50):
        shares = numpy_generator(1, "draw", client).dirichlet(np.full(5, 0.2))
        assert np.bincount(DOMAINS[drawn[client]], minlength=5).tolist() == rounded(shares, 40).tolist()
    assert rounded(np.array([0.5, 0.26, 0.24]), 5).tolist() == [3, 1, 1]  # 2.5, 1.3, 1.2: the first has lost most


def test_what_a_domain_lacks_comes_from_the_others() -> None:
    domains = np.array([0] * 3 + [1] * 3 + [2] * 3)
    for client in range(20):
        shard = partition(domains, 20, "draw:7:0.01", seed=0)[client]
        found = np.bincount(domains[shard], minlength=3)
        shares = numpy_generator(0, "draw", client).dirichlet(np.full(3, 0.01))
        assert len({*shard.tolist()}) == 7
        assert found[shares.argmax()] == 3  # was to have (nearly) all seven
    assert partition(domains, 2, "draw:9:0.5")[1].tolist() == list(range(9))


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ("draw", "write draw:<examples of each client>, as in draw:20"),
        ("draw:", "write draw:<examples"),
        ("draw:0", "write draw:<examples"),
        ("draw:2.5", "write draw:<examples"),
        ("draw:nan", "write draw:<examples"),
        ("draw:3:0", "write draw:<n>:<alpha> with alpha from 0.001 to 1e6"),
        ("draw:3:x", "write draw:<n>:<alpha>"),
        ("draw:1001", "gives 1001 examples to each client, and there are 1000: draw fewer"),
        ("drawn:3", "unknown split 'drawn:3'"),
    ],
)
def test_what_cannot_be_drawn_is_refused(how: str, says: str) -> None:
    with pytest.raises(RecipeError, match=re.escape(says)):
        partition(DOMAINS, 4, how)


def test_batches_of_clients_that_come_and_go(monkeypatch: pytest.MonkeyPatch) -> None:
    """Epochs without replacement, whoever took part in between, and no more of them in memory than of some clients."""
    monkeypatch.setattr(splits, "REMEMBERED", 8)
    order = Order(partition(DOMAINS, 10**9, "draw:10"), batch_size=5, seed=2)
    first = order.items(17, 1)
    for client in range(100):
        order.items(client, 1)
    assert len(order._epochs) <= 8
    again = np.concatenate([order.items(17, t) for t in (1, 2)])
    assert np.array_equal(again[:5], first)
    assert np.array_equal(np.sort(again), order.shards[17])
    with pytest.raises(IndexError):
        order.items(10**9, 1)


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 40), st.floats(0.01, 0.99), st.integers(0, 9))
def test_what_a_client_holds_out_it_does_not_train_on(size: int, share: float, seed: int) -> None:
    shards = Drawn(3, size, 1000, 0)
    trained, held_out = (Portion(shards, share, seed, part) for part in (False, True))
    for client in range(3):
        parts = trained[client], held_out[client]
        assert np.array_equal(np.sort(np.concatenate(parts)), shards[client])
        assert [len(part) for part in parts] == [sizes(trained)[client], sizes(held_out)[client]]
        assert len(parts[0]) >= 1
        assert len(parts[1]) >= (1 if size > 1 else 0)
    assert sizes(Portion([np.arange(20), np.arange(7)], 0.25, 0, True)) == [5, 2]  # of 1.75


def test_a_task_is_dealt_in_draws() -> None:
    data = deal(blobs(), num_workers=10**6, split="draw:6:0.5", batch_size=4)
    assert data.samples_W[123_456] == 6
    inputs, targets = data.batches.get(123_456, 3)
    assert (len(inputs), len(targets)) == (4, 4)
