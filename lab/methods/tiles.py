"""Tensors cut into tiles of equal size, as methods do that send the strongest numbers of each."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from lab.engine.stack import Stack, layout_like


def side(n: int, most: int) -> int:
    """The largest divisor of n that is at most ``most``."""
    return max(d for d in range(1, min(n, most) + 1) if n % d == 0)


@dataclass(frozen=True)
class Tiling:
    """How a tensor ``[H, *shape]``, seen as ``[H, rows, columns]``, is cut into tiles of a × b; a vector is one row."""

    rows: int
    columns: int
    a: int
    b: int

    @classmethod
    def of(cls, shape: torch.Size | tuple[int, ...], chunk: int, piece: int | None = None) -> Self:
        """Sides of tiles divide those of the tensor and are at most ``chunk``; pieces of a vector at most ``piece`` (``chunk``)."""
        if len(shape) > 2:
            rows, columns = shape[1], math.prod(shape[2:])
            return cls(rows, columns, side(rows, chunk), side(columns, chunk))
        length = math.prod(shape[1:])
        return cls(1, length, 1, side(length, piece or chunk))

    @property
    def numel(self) -> int:
        """Numbers in a tile."""
        return self.a * self.b

    @property
    def num(self) -> int:
        """Tiles of a tensor."""
        return self.rows * self.columns // self.numel

    def cut(self, x: Tensor) -> Tensor:
        """``[H, *shape]`` → ``[H, tiles, a, b]``."""
        grid = x.reshape(len(x), self.rows // self.a, self.a, self.columns // self.b, self.b)
        return grid.transpose(2, 3).reshape(len(x), self.num, self.a, self.b)

    def join(self, tiles: Tensor, shape: torch.Size | tuple[int, ...]) -> Tensor:
        """``[H, tiles, …]`` → ``[H, *shape]``."""
        grid = tiles.reshape(len(tiles), self.rows // self.a, self.columns // self.b, self.a, self.b)
        return grid.transpose(2, 3).reshape(shape)


def room(like: Stack, tilings: dict[str, Tiling], per_number: int = 1) -> list[Stack]:
    """Where tiles go, ``[H, tiles, per_number · numbers of a tile]``: one stack for all tensors whose tiles have one size."""
    shapes: dict[int, dict[str, tuple[int, int]]] = {}
    for name, tiling in tilings.items():
        shapes.setdefault(tiling.numel, {})[name] = tiling.num, per_number * tiling.numel
    block = like.blocks[0]
    return [Stack.zeros(layout_like(like, of, of.__getitem__), block.device, block.dtype) for of in shapes.values()]
