"""Permutations for many at once: one for each of some ids, each a function of seed, purpose and its id alone.

A generator for each would take longer than a step of a small model. Here a hash of seed, purpose, id and place gives every place a
number of 64 bits, and the places are sorted by it.
"""

from __future__ import annotations

import numpy as np

from lab.seeds import derive

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
    state = np.full(len(ids), derive(seed, purpose), np.uint64)
    for column in np.atleast_2d(ids.astype(np.uint64).T):
        state = _mixed(state * _STEP + column)
    keys = _mixed(state[:, None] + np.arange(1, size + 1, dtype=np.uint64) * _STEP)
    return np.argsort(keys, axis=1, kind="stable")
