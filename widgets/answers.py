"""Answers above pictures: the words that sentences with numbers are made of."""

from __future__ import annotations

import math

from lab.runs.growing import Growing


def percent(share: float) -> str:
    """``61.2 %`` of a share from 0 to 1."""
    return f"{100 * share:.3g} %"


def plural(num: int, word: str) -> str:
    """``1 step``, ``1,920 steps``."""
    return f"{num:,} {word}{'s' * (num != 1)}"


def last(x: Growing, y: Growing) -> tuple[int, float] | None:
    """Where the last number of a line is, and that number."""
    for k in range(min(len(x), len(y)) - 1, -1, -1):
        if math.isfinite(y[k]):
            return int(x[k]), float(y[k])
    return None
