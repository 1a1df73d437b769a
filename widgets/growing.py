"""Numbers that only grow: a fold appends to them, and a canvas is sent what is new."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from widgets.axes import Extent


class Growing:
    """A list of numbers that is only appended to, kept as one array; None becomes not-a-number.

    Reading is cheap at any length: `values` is a view and `extent` looks at what is new alone.
    """

    def __init__(self, values: Iterable[float | None] = ()):
        self._held = np.empty(64)
        self._size = 0
        self._extent, self._seen = Extent(), 0
        self.extend(values)

    def append(self, value: float | None) -> None:
        if self._size == len(self._held):
            self._held = np.concatenate([self._held, np.empty_like(self._held)])
        self._held[self._size] = math.nan if value is None else value
        self._size += 1

    def extend(self, values: Iterable[float | None]) -> None:
        for value in values:
            self.append(value)

    @property
    def values(self) -> np.ndarray:
        """All numbers so far; it does not change when more come."""
        return self._held[: self._size]

    @property
    def extent(self) -> Extent:
        if self._seen < self._size:
            self._extent |= Extent.of(self._held[self._seen : self._size])
            self._seen = self._size
        return self._extent

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, k: Any) -> Any:
        return self.values[k]

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        return np.array(self.values, dtype=dtype, copy=copy)


Numbers = Sequence[float] | np.ndarray | Growing
