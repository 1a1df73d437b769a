"""Permutations for many at once, and the batches of clients that are looked up together."""

from __future__ import annotations

import numpy as np
import pytest

from lab.data import splits
from lab.data.shards import Drawn
from lab.data.splits import Order
from lab.ground.seeds.permutations import draws, permutations


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


@pytest.mark.parametrize(("num_items", "size"), [(100, 20), (30, 20), (20, 20), (1, 1), (81, 20)])
def test_draws_are_without_replacement_and_follow_from_their_ids_alone(num_items: int, size: int) -> None:
    ids = np.array([[3, 0], [3, 1], [7, 0], *([k, 9] for k in range(2000))])
    found = draws(0, "draw", ids, num_items, size)
    assert found.shape == (len(ids), size)
    assert found.min() >= 0
    assert found.max() < num_items
    assert (np.diff(np.sort(found, axis=1), axis=1) > 0).all()
    for i in (0, 1, 2, 77, 2002):
        assert (draws(0, "draw", ids[i][None], num_items, size)[0] == found[i]).all()
    if size < num_items:
        assert len({tuple(row) for row in found.tolist()}) == len(ids)


def test_draws_are_even() -> None:
    """Each item, and each two of them, as often as another: within five standard deviations, of a fixed seed."""
    found = draws(0, "even", np.arange(20_000), 12, 3)
    share = 3 / 12
    counts = np.bincount(found.ravel(), minlength=12)
    assert np.abs(counts - 20_000 * share).max() < 5 * np.sqrt(20_000 * share * (1 - share))
    pairs = np.zeros((12, 12))
    for i, j in ((0, 1), (0, 2), (1, 2)):
        np.add.at(pairs, (found[:, i], found[:, j]), 1)
    both, chance = pairs + pairs.T, 3 * 2 / (12 * 11)
    assert np.abs(both[~np.eye(12, dtype=bool)] - 20_000 * chance).max() < 5 * np.sqrt(20_000 * chance)


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


def test_draws_are_made_once_and_kept_of_so_many_clients(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of draws that take long, with classes in proportions of their own: who comes again has the same; of more clients than are remembered no more are in memory, and nothing changes."""
    classes = tuple(np.split(np.arange(50), 5))
    drawn, rounds = Drawn(100, 6, 50, 3, classes, 0.5), ([0, 1], [1, 2], [0, 3], [4, 5], [0, 1])
    alone = [Order(drawn, 3, seed=5).items_of(clients, t) for t, clients in enumerate(rounds, start=1)]
    made, of = list[int](), Drawn._of_domains
    monkeypatch.setattr(splits, "REMEMBERED", 4)
    monkeypatch.setattr(Drawn, "_of_domains", lambda self, owner: made.append(owner) or of(self, owner))
    order = Order(drawn, 3, seed=5)
    for t, clients in enumerate(rounds, start=1):
        assert (order.items_of(clients, t) == alone[t - 1]).all()
        assert len(order._made) <= 4
    assert made == [0, 1, 2, 3, 4, 5, 0, 1]  # four are remembered when 4 comes, and are forgotten
