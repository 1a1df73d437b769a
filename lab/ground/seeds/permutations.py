"""Permutations and draws for many at once: one for each of some ids, each a function of seed, purpose and its id alone.

A generator for each would take longer than a step of a small model. Here a hash of seed, purpose, id and place gives every place a
number of 64 bits. A permutation sorts the places by it; a draw takes it as the number of an item.
"""

from __future__ import annotations

import numpy as np

from lab.ground.seeds import derive

_STEP = np.uint64(0x9E3779B97F4A7C15)  # 2⁶⁴ divided by the golden ratio: what neighbouring places are apart
_FIRST, _SECOND = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)


def _mixed(x: np.ndarray) -> np.ndarray:
    """The finaliser of SplitMix64 (Steele, Lea, Flood 2014): every bit of the result depends on every bit of x."""
    x = (x ^ (x >> np.uint64(30))) * _FIRST
    x = (x ^ (x >> np.uint64(27))) * _SECOND
    mixed: np.ndarray = x ^ (x >> np.uint64(31))
    return mixed


def permutations(seed: int, purpose: str, ids: np.ndarray, size: int) -> np.ndarray:
    """A permutation of 0 … size − 1 for each id: int64 ``[ids, size]``.

    Parameters
    ----------
    ids
        integers of at least 0, ``[ids]`` or, where several numbers make an id, ``[ids, numbers]``.
    """
    return np.argsort(_numbers(seed, purpose, ids, size), axis=1, kind="stable")


def draws(seed: int, purpose: str, ids: np.ndarray, num_items: int, size: int) -> np.ndarray:
    """``size`` of 0 … num_items − 1 for each id, without replacement, in the order in which they are drawn: int64 ``[ids, size]``.

    Where few of many are drawn the work goes with ``size``: items are drawn with replacement, and what has come before is passed over.
    ``ids`` as in `permutations`.
    """
    if 4 * size > num_items:
        return permutations(seed, purpose, ids, num_items)[:, :size]
    num = size + size // 2 + 8
    while True:
        items = (_numbers(seed, purpose, ids, num) % np.uint64(num_items)).astype(np.int64)
        new = _first_of_its_kind(items)
        if (new.sum(axis=1) >= size).all():
            return items[new & (new.cumsum(axis=1) <= size)].reshape(len(ids), size)
        num *= 2  # the numbers so far stay what they are


def uniforms(seed: int, purpose: str, ids: np.ndarray, num: int) -> np.ndarray:
    """``num`` numbers in [0, 1) for each id, float64 ``[ids, num]``; ``ids`` as in `permutations`."""
    return (_numbers(seed, purpose, ids, num) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _numbers(seed: int, purpose: str, ids: np.ndarray, num: int) -> np.ndarray:
    """``num`` numbers of 64 bits for each id, uint64 ``[ids, num]``."""
    state = np.full(len(ids), derive(seed, purpose), np.uint64)
    for column in np.atleast_2d(ids.astype(np.uint64).T):
        state = _mixed(state * _STEP + column)
    return _mixed(state[:, None] + np.arange(1, num + 1, dtype=np.uint64) * _STEP)


def _first_of_its_kind(rows: np.ndarray) -> np.ndarray:
    """Whether a number is not among those before it in its row, bool."""
    order = np.argsort(rows, axis=1, kind="stable")
    in_order = np.take_along_axis(rows, order, axis=1)
    changes = np.ones(rows.shape, bool)
    changes[:, 1:] = in_order[:, 1:] != in_order[:, :-1]
    first = np.empty(rows.shape, bool)
    np.put_along_axis(first, order, changes, axis=1)
    return first
