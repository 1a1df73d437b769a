"""Who has which items, where nobody makes a list of everybody: shards that are worked out when they are asked for.

A shard is a sorted int64 array of indices of items. There may be a million clients, of whom some dozens take part in a round.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import overload

import numpy as np

from lab.ground.errors import RecipeError
from lab.ground.seeds import numpy_generator
from lab.ground.seeds.permutations import draws

Shards = Sequence[np.ndarray]  # by worker, or client


@dataclass(frozen=True)
class Repeated(Sequence[int]):
    """The same number ``num`` times, in the memory of one."""

    value: int
    num: int

    def __len__(self) -> int:
        return self.num

    @overload
    def __getitem__(self, at: int) -> int: ...
    @overload
    def __getitem__(self, at: slice) -> Repeated: ...
    def __getitem__(self, at: int | slice) -> int | Repeated:
        found = range(self.num)[at]
        return self.value if isinstance(found, int) else Repeated(self.value, len(found))


class Lazy(Sequence[np.ndarray]):
    """Shards that are made when they are asked for: ``shards[owner]``."""

    @abstractmethod
    def of(self, owner: int) -> np.ndarray:
        """The shard of one."""

    @property
    @abstractmethod
    def sizes(self) -> Sequence[int]:
        """How many items each has, without making any shard."""

    def __len__(self) -> int:
        return len(self.sizes)

    @overload
    def __getitem__(self, at: int) -> np.ndarray: ...
    @overload
    def __getitem__(self, at: slice) -> list[np.ndarray]: ...
    def __getitem__(self, at: int | slice) -> np.ndarray | list[np.ndarray]:
        found = range(len(self))[at]
        return self.of(found) if isinstance(found, int) else list(map(self.of, found))


@dataclass(frozen=True, eq=False)
class Drawn(Lazy):
    """To each of ``num_clients`` their own draw of ``size`` out of ``num_items`` items, without replacement; others may have the same ones.

    by_domain, alpha
        nothing, None: uniform. Else the domains of a client are in proportions of its own, drawn from Dirichlet(alpha) over the domains
        of which these are the items; where one has fewer than its part, all of them are taken, and the rest uniformly from what is left.
    salt
        what else, with ``seed`` and the client, decides the draw.
    """

    num_clients: int
    size: int
    num_items: int
    seed: int
    by_domain: tuple[np.ndarray, ...] = ()
    alpha: float | None = None
    salt: tuple[int, ...] = ()

    @property
    def sizes(self) -> Repeated:
        return Repeated(self.size, self.num_clients)

    def of(self, owner: int) -> np.ndarray:
        shard: np.ndarray = self.of_all([owner])[0]
        return shard

    def of_all(self, owners: Sequence[int]) -> np.ndarray:
        """The shards of some, int64 ``[owners, size]``."""
        if self.alpha is not None:
            return np.stack([self._of_domains(owner) for owner in owners])
        ids = np.array([[owner, *self.salt] for owner in owners])
        return np.sort(draws(self.seed, "draw", ids, self.num_items, self.size), axis=1)

    def _of_domains(self, owner: int) -> np.ndarray:
        rng = numpy_generator(self.seed, "draw", owner, *self.salt)
        shares = rng.dirichlet(np.full(len(self.by_domain), self.alpha))
        parts = rounded(shares, self.size).clip(max=[len(items) for items in self.by_domain])
        drawn = [
            rng.choice(len(x), n, replace=False, shuffle=False) for x, n in zip(self.by_domain, parts, strict=True)
        ]
        taken = np.concatenate([items[at] for items, at in zip(self.by_domain, drawn, strict=True)])
        if len(taken) < self.size:
            left = np.setdiff1d(np.concatenate(self.by_domain), taken, assume_unique=True)
            taken = np.append(taken, rng.choice(left, self.size - len(taken), replace=False, shuffle=False))
        return np.sort(taken)


@dataclass(frozen=True, eq=False)
class Portion(Lazy):
    """Of each shard the part that its owner trains on, or (``held_out``) the part that it is scored on.

    ``share`` of a shard is held out, drawn from ``seed`` and the owner: at least one item, and never all; of a shard with one item none.
    """

    shards: Shards
    share: float
    seed: int
    held_out: bool = False

    @cached_property
    def sizes(self) -> Sequence[int]:
        whole = sizes(self.shards)
        return (
            Repeated(self._size(whole.value), whole.num) if isinstance(whole, Repeated) else [*map(self._size, whole)]
        )

    def of(self, owner: int) -> np.ndarray:
        order = numpy_generator(self.seed, "held out", owner).permutation(self.shards[owner])
        num = self._held_out(len(order))
        return np.sort(order[:num] if self.held_out else order[num:])

    def _held_out(self, size: int) -> int:
        return min(max(1, round(self.share * size)), size - 1)

    def _size(self, of_shard: int) -> int:
        held_out = self._held_out(of_shard)
        return held_out if self.held_out else of_shard - held_out


def portions(shards: Shards, share: float, seed: int) -> tuple[Shards, Shards | None]:
    """What owners train on, and what they hold out (`Portion`): None, where they hold out nothing."""
    if not share:
        return shards, None
    return Portion(shards, share, seed), Portion(shards, share, seed, held_out=True)


def without(shards: Shards, items: np.ndarray) -> Shards:
    """Shards that do not have some items. Raises RecipeError where nothing is left of one, and for those that are drawn when asked for."""
    if isinstance(shards, Lazy):
        raise RecipeError(
            "a split that draws for each client gives what is to be set apart to several: use another split"
        )
    left = [np.setdiff1d(shard, items, assume_unique=True) for shard in shards]
    for worker, shard in enumerate(left):
        if not len(shard):
            raise RecipeError(f"worker {worker} would get no data but what is set apart: use fewer workers or anchors")
    return left


def sizes(shards: Shards) -> Sequence[int]:
    """How many items each has."""
    return shards.sizes if isinstance(shards, Lazy) else [len(shard) for shard in shards]


def total(sizes: Sequence[int]) -> int:
    """How many items all of them have, also of a million owners without counting them one by one."""
    return sizes.value * sizes.num if isinstance(sizes, Repeated) else sum(sizes)


def rounded(shares: np.ndarray, total: int) -> np.ndarray:
    """Integers that go as ``shares`` (which sum to 1) and sum to ``total``; what rounding leaves goes to the largest remainders, in order."""
    exact = shares * total
    found: np.ndarray = np.floor(exact).astype(np.int64)
    left = total - int(found.sum())
    found[np.argsort(found - exact, kind="stable")[:left]] += 1
    return found
