"""The learning rate of a method, chosen before anything is compared: a short walk over rates, each the same factor from the next.

A comparison at one rate for all says which method that rate suits. So each method gets its own: the best of a few, by the validation loss at the
end of runs with a seed of their own, so that nothing is chosen by the runs that are judged.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

FACTOR = 2.0  # between two rates
MOST = 7  # rates tried of one method


@dataclass(frozen=True)
class Tuned:
    """What the walk has found: the best rate, and the losses by rate (∞ where a run diverged)."""

    rate: float
    losses: dict[float, float]

    @property
    def at_edge(self) -> bool:
        """Whether a rate beyond those tried may be better."""
        return len(self.losses) > 1 and (self.diverged or self.rate in (min(self.losses), max(self.losses)))

    @property
    def diverged(self) -> bool:
        """Whether a run did at every rate, so that none is a choice."""
        return all(map(math.isinf, self.losses.values()))

    @property
    def words(self) -> str:
        """``0.004 of 0.002 … 0.008``, with a word where the best lies at the edge."""
        if len(self.losses) == 1:
            return f"{self.rate:.3g}, not tuned"
        edge = ", where all diverged" if self.diverged else ", at the edge" if self.at_edge else ""
        return f"{self.rate:.3g} of {min(self.losses):.3g} … {max(self.losses):.3g}{edge}"


def tune(loss: Callable[[float], float], start: float, factor: float = FACTOR, most: int = MOST) -> Tuned:
    """Walk from ``start`` to lower losses until the best rate has a worse one on either side, or ``most`` are tried.

    Parameters
    ----------
    loss
        of a run with this rate, lower is better; not finite where it diverged.
    most
        how many rates; 1 takes ``start`` as it is.

    Raises
    ------
    ValueError
        for a factor of 1 or less, and for less than one rate.
    """
    if factor <= 1 or most < 1:
        raise ValueError(f"factor {factor} and {most} rates are no walk: take a factor above 1, and at least one rate")
    if most == 1:
        return Tuned(start, {start: math.nan})
    found = {0: _number(loss(start))}  # by the number of factors from the start
    while len(found) < most:
        best = min(found, key=lambda k: (found[k], abs(k)))
        if math.isinf(found[best]):  # all of them diverged: smaller ones may not
            best = min(found)
        nearest = [k for k in (best - 1, best + 1) if k not in found]
        if not nearest:
            break
        found[nearest[0]] = _number(loss(start * factor ** nearest[0]))
    best = min(found, key=lambda k: (found[k], abs(k)))
    return Tuned(start * factor**best, {start * factor**k: found[k] for k in sorted(found)})


def _number(x: float) -> float:
    return x if math.isfinite(x) else math.inf
