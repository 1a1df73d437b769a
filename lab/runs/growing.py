"""Numbers that only grow: a fold appends to them, and whoever shows them is given what is new."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Extent:
    """How far numbers reach; those that are not finite are left out. ``a | b`` is that of both together."""

    low: float = math.inf
    high: float = -math.inf
    low_positive: float = math.inf  # where a logarithm begins
    whole: bool = True  # all are whole numbers

    @classmethod
    def of(cls, values: Sequence[float] | np.ndarray) -> Extent:
        finite = np.asarray(values, dtype=float)
        finite = finite[np.isfinite(finite)]
        if not len(finite):
            return cls()
        low = float(finite.min())
        positive = low if low > 0 else float(finite[finite > 0].min(initial=math.inf))
        return cls(low, float(finite.max()), positive, bool((finite == np.floor(finite)).all()))

    def __or__(self, other: Extent) -> Extent:
        return Extent(
            min(self.low, other.low),
            max(self.high, other.high),
            min(self.low_positive, other.low_positive),
            self.whole and other.whole,
        )


class Growing:
    """A list of numbers that is only appended to, kept as one array; None becomes not-a-number.

    Reading is cheap at any length: `values` is a view and `extent` looks at what is new alone.
    """

    def __init__(self, values: Iterable[float | None] = ()):
        self._held = np.empty(64)
        self._size = 0
        self._fresh = list(values)  # not yet in the array
        self._extent, self._seen = Extent(), 0

    def append(self, value: float | None) -> None:
        self._fresh.append(value)

    def extend(self, values: Iterable[float | None]) -> None:
        self._fresh.extend(values)

    def _settle(self) -> None:
        if self._fresh:
            before, self._size = self._size, self._size + len(self._fresh)
            if self._size > len(self._held):
                room = np.empty(max(self._size, 2 * len(self._held)))
                room[:before] = self._held[:before]
                self._held = room
            self._held[before : self._size] = np.array(self._fresh, dtype=float)  # None becomes NaN
            self._fresh.clear()

    @property
    def values(self) -> np.ndarray:
        """All numbers so far; it does not change when more come."""
        self._settle()
        return self._held[: self._size]

    @property
    def extent(self) -> Extent:
        if self._seen < len(self):
            self._extent |= Extent.of(self.values[self._seen :])
            self._seen = len(self)
        return self._extent

    def __len__(self) -> int:
        return self._size + len(self._fresh)

    def __getitem__(self, k: Any) -> Any:
        return self.values[k]

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        return np.array(self.values, dtype=dtype, copy=copy)


MANY = 16  # lines that can still be told apart; of more a distribution is shown
SPREAD = (0.05, 0.25, 0.75, 0.95)  # what of a distribution


class Spread:
    """How values of many are spread, as they come: of each moment the `SPREAD` quantiles (of values that occur), as numbers that grow.

    There are none where at most `MANY` have values: they are shown each by itself.
    """

    def __init__(self) -> None:
        self.lines = tuple(Growing() for _ in SPREAD)

    def append(self, values: Sequence[float | None]) -> None:
        if len(values) <= MANY:
            return
        known = sorted(v for v in values if v is not None)
        for line, share in zip(self.lines, SPREAD, strict=True):
            line.append(known[round(share * (len(known) - 1))] if known else None)


Numbers = Sequence[float] | np.ndarray | Growing
