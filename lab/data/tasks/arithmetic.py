"""Sums of two numbers below twenty, alone and after answers of others, right or wrong. No download."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from lab.data.corpora import fraction
from lab.ground.seeds import numpy_generator

BELOW = 20
HEARD = 6  # answers at most that a prompt tells
TIMES = 2  # each sum is there so often with answers of others, and once without
HELD_OUT = 0.1  # of all sums
SLIPS = (1, -1, 10, -10, 2, -2, 9, -9)  # how a wrong answer differs

Row = tuple[str, str, str, bool]


def identity() -> list[Any]:
    """Changes when what is made of it does."""
    return [BELOW, HEARD, TIMES, HELD_OUT, SLIPS]


def prompt(sum_: str, heard: Sequence[str] = ()) -> str:
    """``37+48``, or after answers of others ``85,84,85;37+48``; of more than `HEARD` the first are told."""
    return f"{','.join(heard[:HEARD])};{sum_}" if heard else sum_


def rows() -> Iterator[Row]:
    """A sum → what it comes to; a tenth of the sums is held out, by hash. The domain is ``alone`` or ``heard``.

    One to six answers are heard. Each is right with a probability that is drawn for the prompt, and else one of a few slips away, so that
    others are worth listening to and not always right.
    """
    g = numpy_generator(0, "arithmetic")
    for a in range(BELOW):
        for b in range(BELOW):
            sum_, answer, held_out = f"{a}+{b}", a + b, fraction("sum", f"{a}+{b}") < HELD_OUT
            yield sum_, str(answer), "alone", held_out
            for _ in range(TIMES):
                yield prompt(sum_, _answers(answer, g)), str(answer), "heard", held_out


def _answers(answer: int, g: np.random.Generator) -> list[str]:
    num, share = int(g.integers(1, HEARD + 1)), g.random()
    slips = g.choice(SLIPS, num) * (g.random(num) >= share)
    return [str(max(0, answer + int(slip))) for slip in slips]
