"""Pointer chasing: a task that needs depth and little else. No download."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from string import ascii_lowercase
from typing import Any

from lab.data.corpora import fraction

LETTERS = 6  # of a map
HOPS = 4  # at most
HELD_OUT = 0.1  # of all maps

Row = tuple[str, str, str, bool]


def identity() -> list[Any]:
    """Changes when what is made of it does."""
    return [LETTERS, HOPS, HELD_OUT]


def rows() -> Iterator[Row]:
    """A map of letters to letters, where to begin and how many hops → where one ends: ``cabfed b3`` → ``b``.

    The map is a permutation, written as the images of a, b, c …; the question comes last, so that nobody can answer while reading the map.
    There are all 720 maps with all questions; a tenth of the maps is held out, by hash. The domain is the number of hops.
    """
    for map_ in map("".join, itertools.permutations(ascii_lowercase[:LETTERS])):
        to, held_out = dict(zip(ascii_lowercase, map_, strict=False)), fraction("map", map_) < HELD_OUT
        for begin in to:
            at = begin
            for hops in range(1, HOPS + 1):
                at = to[at]
                yield f"{map_} {begin}{hops}", at, f"{hops} hops", held_out
