"""The task that all share: 50 clients a round, 20 handwritten digits each, an MLP 64-128-10, 5 local steps of 10 examples, SGD."""

from __future__ import annotations

import json
import resource
import time

import numpy as np
import psutil
import torch
from sklearn.datasets import load_digits
from torch import nn

ROWS, STEPS, BATCH, EXAMPLES, LR = 50, 5, 10, 20, 0.1


def net() -> nn.Module:
    return nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))


def examples(clients: int) -> tuple[torch.Tensor, torch.Tensor, np.ndarray]:
    """All digits, their labels, and which ones each client has ``[clients, 20]``."""
    pixels, truth = load_digits(return_X_y=True)
    draws = np.random.default_rng(0)
    own = np.stack([draws.choice(len(truth), EXAMPLES, replace=False) for _ in range(clients)])
    return torch.from_numpy(pixels / 16.0).float(), torch.from_numpy(truth).long(), own


def memory_bytes() -> int:
    """Of this process and all that it started."""
    me = psutil.Process()
    return sum(p.memory_info().rss for p in (me, *me.children(recursive=True)) if p.is_running())


class Clock:
    """Rounds a second between the ``first`` and the last round that were noted."""

    def __init__(self, first: int = 3):
        self.first, self.rounds, self.began, self.last, self.most = first, 0, 0.0, 0.0, 0

    def note(self) -> None:
        self.rounds += 1
        self.last = time.perf_counter()
        if self.rounds == self.first:
            self.began = self.last
        if self.rounds % 5 == 0:
            self.most = max(self.most, memory_bytes())

    def report(self) -> str:
        rate = (self.rounds - self.first) / (self.last - self.began)
        own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        return json.dumps({"rate": rate, "peak": float(max(self.most, own))})
