"""A module whose experts live on some workers only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lab.engine.fleet import Fleet
from tests.support.bench import F64, drawn, fill_

# Three workers and three experts of 5 elements: worker 0 holds a and b, worker 1 holds b and c, worker 2 holds c alone.
# The trunk (2 · 3 elements) is everywhere; nobody but worker 0 holds its private tensor (4 elements).
RESIDENT = {0: ("a", "b"), 1: ("b", "c"), 2: ("c",)}


HOLDERS = {"a": (0,), "b": (0, 1), "c": (1, 2)}


class Sites(nn.Module):
    """A module whose experts live on some workers only."""

    def __init__(self, experts: Sequence[str], private: bool):
        super().__init__()
        self.trunk = nn.Parameter(torch.empty(2, 3, dtype=F64))
        self.experts = nn.ParameterDict({e: nn.Parameter(torch.empty(5, dtype=F64)) for e in experts})
        if private:
            self.private = nn.Parameter(torch.empty(4, dtype=F64))

    def loss(self, scale: float) -> Tensor:
        return scale * sum((p.square().sum() for p in self.parameters()), torch.zeros((), dtype=F64))

    @staticmethod
    def tensor_group(name: str) -> str:
        return name.split(".")[0]


def sites(worker: int | None) -> nn.Module:
    if worker is None:
        return fill_(Sites("abc", True))
    return Sites(RESIDENT[worker], worker == 0)


def scale(worker: int, t: int) -> Any:
    return (0.1 * (worker + 1) + 0.01 * t,)


def fleet_of_sites(device: str = "cpu") -> Fleet:
    with torch.device(device):
        fleet = Fleet(sites, 3, device=device, dtype=F64, threads=1)
    if device != "meta":
        for i, block in enumerate(fleet.params.blocks):
            block.copy_(drawn(*block.shape, purpose=("block", i)))
    return fleet
