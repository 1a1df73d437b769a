"""Permutations for many at once, and the batches of clients that are looked up together."""

from __future__ import annotations

import numpy as np
import pytest

from lab.data.shards import Drawn
from lab.data.splits import Order
from lab.seeds.permutations import permutations


def test_each_is_a_permutation_that_follows_from_its_id_alone() -> None:
    ids = np.array([[3, 0], [3, 1], [7, 0], [10**9, 5]])
    found = permutations(0, "epoch", ids, 20)
    assert (np.sort(found, axis=1) == np.arange(20)).all()
    assert len({tuple(row) for row in found.tolist()}) == 4
    for i, one in enumerate(ids):
        assert (permutations(0, "epoch", one[None], 20)[0] == found[i]).all()
    assert (permutations(1, "epoch", ids, 20) != found).any(axis=1).all()
    assert (permutations(0, "draw", ids, 20) != found).any(axis=1).all()
    assert permutations(0, "x", np.arange(3), 1).tolist() == [[0], [0], [0]]


def test_they_are_even() -> None:
    """Where each number stands, over 40,000 ids: within five standard deviations of even, of a fixed seed."""
    found = permutations(0, "even", np.arange(40_000), 8)
    counts = np.stack([np.bincount(found[:, k], minlength=8) for k in range(8)])
    assert np.abs(counts - 5000).max() < 5 * np.sqrt(40_000 * (1 / 8) * (7 / 8))
    pairs = np.bincount(found[:, 0] * 8 + found[:, 1], minlength=64).reshape(8, 8)
    assert np.abs(pairs[~np.eye(8, dtype=bool)] - 40_000 / 56).max() < 5 * np.sqrt(40_000 / 56)


@pytest.mark.parametrize("batch_size", [3, 7, 10])
def test_clients_together_are_clients_one_by_one(batch_size: int) -> None:
    """And each goes through its own examples once in an epoch, over the ends of epochs."""
    drawn = Drawn(100_000, 7, 50, seed=3)
    order, seen = Order(drawn, batch_size, seed=5), dict[int, list[int]]()
    clients = [0, 5, 99_999]
    for t in range(1, 15):
        together = order.items_of(clients, t)
        assert together.shape == (3, batch_size)
        for c, items in zip(clients, together.tolist(), strict=True):
            assert Order(drawn, batch_size, seed=5).items(c, t).tolist() == items
            seen.setdefault(c, []).extend(items)
    for c, items in seen.items():
        whole = [items[i : i + 7] for i in range(0, len(items) - 6, 7)]
        assert all(sorted(epoch) == drawn.of(c).tolist() for epoch in whole)
        assert len({tuple(epoch) for epoch in whole}) > 1
