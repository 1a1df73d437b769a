"""Who takes part in a round: clients drawn without replacement, of whom those that are too slow do not count.

What is drawn is a function of the seed and the round alone, the same in all processes and after a resume. A round costs what its
participants cost, where clients are many and most can take part; else all are looked at, as arrays.

Legend: C clients, S those seated in a round, W rows of the fleet.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from lab.data.shards import Repeated
from lab.ground.seeds import numpy_generator
from lab.recipes.availability import availability
from lab.recipes.clients import Clients

TRIES = 8  # draws of candidates, of whom some are away or drawn already, before all clients are looked at
AT_ONCE = 4  # candidates for each row


@dataclass(frozen=True)
class Selected:
    """``clients``: who is asked in a round, by row, sorted; rows beyond them stay empty. ``late``: rows whose client does not count."""

    clients: list[int]
    late: list[int]


class Selection:
    """The clients of every round.

    ``sizes``: examples of each client, by which ``clients.sampling = "size"`` draws; None: as if they had equally many. Raises
    RecipeError for a file of who is available that cannot be read.
    """

    def __init__(self, clients: Clients, num_rows: int, seed: int, sizes: Sequence[int] | None = None):
        self.clients, self.num_rows, self.seed = clients, num_rows, seed
        self.available = availability(clients.available, clients.num, clients.round_hours, seed)
        by_size = clients.sampling == "size" and sizes is not None and not isinstance(sizes, Repeated)
        self.weights = np.asarray(sizes, dtype=np.float64) if by_size else None
        self._up_to = None if self.weights is None else np.cumsum(self.weights)

    def of_round(self, number: int) -> Selected:
        """Of a round, counted from 0."""
        if self.available is None and self.weights is None:
            drawn = self.clients.drawn(number, self.num_rows, self.seed)
        else:
            drawn = sorted(self._drawn(number))
        return Selected(drawn, _late(self.clients, drawn, self.seed))

    def _drawn(self, number: int) -> list[int]:
        """One after another, each of those that are left and can take part with a probability that goes as its weight."""
        rng = numpy_generator(self.seed, "clients", number)
        found: dict[int, None] = {}
        for _ in range(TRIES):
            asked = self._candidates(rng)
            found |= dict.fromkeys(asked[self._up(asked, number)].tolist())
            if len(found) >= self.num_rows:
                return [*found][: self.num_rows]
        # The same for those that are still missing, at once (Efraimidis and Spirakis 2006).
        rest = np.setdiff1d(np.arange(self.clients.num), [*found], assume_unique=True)
        rest = rest[self._up(rest, number)]
        keys = rng.exponential(size=len(rest)) / (1.0 if self.weights is None else self.weights[rest])
        missing = self.num_rows - len(found)
        return [*found, *rest[np.argsort(keys, kind="stable")[:missing]].tolist()]

    def _candidates(self, rng: np.random.Generator) -> np.ndarray:
        num = AT_ONCE * self.num_rows
        if self._up_to is None:
            return rng.integers(self.clients.num, size=num)
        found: np.ndarray = np.searchsorted(self._up_to, rng.random(num) * self._up_to[-1], side="right")
        return found

    def _up(self, clients: np.ndarray, number: int) -> np.ndarray:
        return np.ones(len(clients), bool) if self.available is None else self.available.up(clients, number)


@lru_cache(maxsize=4)
def _speeds(num: int, seed: int) -> np.ndarray:
    """Of every client how slow it is among all, standard normal, ``[C]``."""
    return numpy_generator(seed, "speed").standard_normal(num, dtype=np.float32)


def slowness(clients: Clients, who: Sequence[int], seed: int) -> np.ndarray:
    """How many times longer than the median client each of these takes, ``[S]``: log-normal over clients."""
    return np.exp(clients.spread * _speeds(clients.num, seed)[who].astype(np.float64))


def _late(clients: Clients, seated: Sequence[int], seed: int) -> list[int]:
    """Rows of those that are not among the first ``wait_for``, or not there by the ``deadline``."""
    if not clients.wait_for and clients.deadline is None:
        return []
    in_time = np.ones(len(seated), bool)
    if clients.wait_for:
        in_time[np.argsort(_speeds(clients.num, seed)[seated], kind="stable")[clients.wait_for :]] = False
    if clients.deadline is not None:
        in_time &= slowness(clients, seated, seed) <= clients.deadline
    return np.flatnonzero(~in_time).tolist()


def pace_W(clients: Clients, seated: Sequence[int], late: Collection[int], num_rows: int, seed: int) -> list[float]:
    """How many times longer than the median client's a local step of each row is, as far as the round waits for it, ``[W]``.

    Rows that are empty or late hold up nobody; but where fewer than ``wait_for`` come in time, a server that does not know how slow its
    clients are waits until the deadline.
    """
    paces = [0.0] * num_rows
    waits = clients.deadline is not None and len(seated) - len(late) < min(clients.wait_for or num_rows, len(seated))
    for row, slow in enumerate(slowness(clients, seated, seed).tolist()):
        paces[row] = slow if row not in late else (clients.deadline or 0.0) if waits else 0.0
    return paces
