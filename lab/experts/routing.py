"""Where the routers of a mixture of experts send their tokens, and whether that stays healthy.

Legend: W workers, L layers, E experts of a layer, N tokens, k choices of each (a slot is one choice of one token).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

DEAD = 0.01  # an expert is dead below this share of a uniform load


@dataclass(frozen=True)
class Balance:
    """How evenly slots are spread over the experts that a router knows."""

    cv: float  # standard deviation ÷ mean of the load: 0 is even
    max_over_mean: float  # of the busiest expert: 1 is even
    dead: int  # experts with less than 1 % of a uniform load


def balance(load_E: Sequence[int | None]) -> Balance:
    """Of one layer. Experts that the router does not know (None) do not count."""
    load = np.array([x for x in load_E if x is not None], dtype=float)
    mean = load.mean() if len(load) else 0.0
    if not mean:
        return Balance(float("nan"), float("nan"), len(load))
    return Balance(float(load.std() / mean), float(load.max() / mean), int((load < DEAD * mean).sum()))
