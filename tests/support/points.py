"""A problem of one number, whose steps can be worked by hand."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from tests.support.bench import F64, Bench

# A problem of one number: the loss a/2 · (x − c)² has the gradient a · (x − c). Worker w sees (a, c) = CURVE[w][t − 1].
CURVE = [
    [(1.0, 0.0), (2.0, 1.0), (1.0, -1.0), (0.5, 4.0), (1.5, 0.5), (2.0, -2.0), (1.0, 3.0), (0.5, 0.0), (1.0, 1.0)],
    [(3.0, 2.0), (1.0, -2.0), (0.5, 0.0), (2.0, 1.0), (1.0, 5.0), (0.5, 1.0), (2.0, -1.0), (1.0, 2.0), (3.0, 0.0)],
]


START = 1.0


class Point(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.x = nn.Parameter(torch.empty((), dtype=F64))

    def loss(self, a: float, c: float) -> Tensor:
        return 0.5 * a * (self.x - c) ** 2


def point(worker: int | None) -> nn.Module:
    module = Point()
    if worker is None:
        module.x.data.fill_(START)
    return module


def curve(worker: int, t: int) -> tuple[float, float]:
    return CURVE[worker][t - 1]


def slope(worker: int, t: int, x: float) -> float:
    a, c = curve(worker, t)
    return a * (x - c)


def points(method: Any) -> Bench:
    return Bench(method, 2, build=point, batch=curve)


def values(bench: Bench, state: str = "params") -> list[float]:
    return [float(bench.of(w, state)) for w in range(2)]


def mean(pair: list[float]) -> list[float]:
    return [(pair[0] + pair[1]) / 2] * 2
