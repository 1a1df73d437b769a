"""Probe of runs that weigh their samples: how much the samples of each domain counted of late."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from lab.events import BINS, Weighted
from lab.probes.probe import Agreed, Probe, Setup

Rows = Sequence[Sequence[float]]


class WeightsProbe(Probe):
    """Whenever the agreed model is evaluated: weights and scores of the samples since the last time, as far as they are remembered.

    ``taken``: score, weight and domain of those of a worker of this process, float64 ``[samples, 3]``.
    """

    def __init__(self, setup: Setup, taken: Callable[[int], Tensor]):
        self.setup, self.taken = setup, taken
        assert setup.data is not None
        assert setup.data.domains is not None
        self.names = list(setup.data.domains.names)

    def due(self, t: int) -> bool:
        return self.setup.evaluates(t)

    def forget(self) -> None:
        for w in self.setup.fleet.mine:
            self.taken(w)

    def after_step(self, t: int, agreed: Agreed) -> Iterator[Weighted]:
        if not self.due(t):
            return
        world, rows = self.setup.world, {w: self.taken(w).numpy() for w in self.setup.fleet.mine}
        ends = _ends([e for of in world.all_gather_json([_extremes(x) for x in rows.values()]) for e in of])
        sums = {w: _sums(x, len(self.names), ends) for w, x in rows.items()}
        everywhere = dict(pair for of in world.all_gather_json(list(sums.items())) for pair in of)
        together = np.sum([everywhere[w] for w in sorted(everywhere)], axis=0)  # always in this order
        yield Weighted(t, self.setup.recipe.weighting.by, self.names, **_told(together, len(self.names), ends))


def _extremes(rows: np.ndarray) -> list[list[float]]:
    """Least and greatest score, and weight; nothing where there is none."""
    return [[float(x.min()), float(x.max())] if len(x := of[np.isfinite(of)]) else [] for of in rows[:, :2].T]


def _ends(found: Sequence[list[list[float]]]) -> list[list[float]]:
    """Ends of the histograms of scores, and of weights; nothing where there are none."""
    out = []
    for column in (0, 1):
        known = [of[column] for of in found if of[column]]
        low, high = min((k[0] for k in known), default=0.0), max((k[1] for k in known), default=0.0)
        out.append([] if not known else [low, high] if low < high else [low - 0.5, high + 0.5])
    return out


def _sums(rows: np.ndarray, num: int, ends: Sequence[Sequence[float]]) -> list[float]:
    """By domain how many samples, and sums of weights and scores; over all those of squares; and both histograms."""
    s, w, of = rows[:, 0], rows[:, 1], rows[:, 2].astype(int)
    there = np.nan_to_num(s)
    by_domain = [np.bincount(of, x, num) for x in (np.ones(len(rows)), w, there)]
    counts = [
        np.histogram(x[np.isfinite(x)], BINS, (e[0], e[1]))[0] if e else np.zeros(BINS)
        for x, e in zip((s, w), ends, strict=True)
    ]
    return [float(x) for x in np.concatenate([*by_domain, [(w**2).sum(), (there**2).sum()], *counts])]


def _told(sums: np.ndarray, num: int, ends: Sequence[Sequence[float]]) -> dict[str, Any]:
    """The fields of `Weighted`, but for those that the recipe says."""
    count_D, weight_D, score_D = sums[:num], sums[num : 2 * num], sums[2 * num : 3 * num]
    (squares_w, squares_s), counts = sums[3 * num : 3 * num + 2], sums[3 * num + 2 :]
    n, total = count_D.sum(), weight_D.sum()
    scored = bool(ends[0])
    s = score_D.sum() / n if scored else None
    return {
        "samples": int(n),
        "num_D": [int(x) for x in count_D],
        "weight_D": [float(x / c) if c else None for x, c in zip(weight_D, count_D, strict=True)],
        "score_D": [float(x / c) if c and scored else None for x, c in zip(score_D, count_D, strict=True)],
        "weight": float(total / n) if n else None,
        "effective": float(total**2 / (n * squares_w)) if squares_w else None,
        "score": None if s is None else float(s),
        "score_std": None if s is None else math.sqrt(max(0.0, float(squares_s / n - s**2))),
        "scores": {} if not scored else {"ends": list(ends[0]), "num": [int(x) for x in counts[:BINS]]},
        "weights": {} if not ends[1] else {"ends": list(ends[1]), "num": [int(x) for x in counts[BINS:]]},
    }
