"""Methods on models with buffers, step by step; and a small ResNet-18 on images for them."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lab.events import Sent
from lab.methods import Method
from lab.models.registry import parse_model
from lab.models.shape import Shape
from lab.recipes.buffers import Buffers
from lab.runs.buffers import STATE, BufferSync
from tests.support.bench import F64, Bench, drawn, fill_


class Normed(nn.Module):
    """A linear map, a BatchNorm of four channels and another map; and buffers of every kind besides."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 4, dtype=F64)
        self.norm = nn.BatchNorm1d(4, momentum=0.3, dtype=F64)
        self.last = nn.Linear(4, 2, dtype=F64)
        self.register_buffer("table", torch.ones(7, dtype=F64), persistent=False)

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        return (self.last(torch.tanh(self.norm(self.first(x)))) * self.table[0] - y).square().mean()

    @staticmethod
    def tensor_group(name: str) -> str:
        return "norm" if "norm" in name else "map"


def normed(worker: int | None = None) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        return fill_(Normed())


class Synced(Bench):
    """A bench whose buffers are sent as well."""

    def __init__(self, method: Method, buffers: Buffers, num_workers: int = 3, build: Any = normed, **more: Any):
        super().__init__(method, num_workers, build=lambda w: buffers.freeze_(build(w)), **more)
        self.sync = BufferSync(buffers, self.state, self.comm, lambda: getattr(method, "sync_every", None) or 1)

    def step(self) -> Tensor:
        self.comm.t = self.t + 1
        self.sync.before_(self.t + 1)
        loss_W = super().step()
        self.sync.after_(self.t)
        return loss_W

    def buffers(self, worker: int) -> dict[str, Tensor]:
        return {n: x.clone() for n, x in self.fleet.modules[worker].named_buffers()}

    @property
    def sent(self) -> list[Sent]:
        return [r for r in self.records if r.state == STATE]


class Pictured(nn.Module):
    """ResNet-18 with BatchNorm, two channels wide, for images of 8 × 8 pixels and four classes."""

    def __init__(self) -> None:
        super().__init__()
        self.net = parse_model({"name": "resnet18", "width": 2}).module(Shape(input=(3, 8, 8), outputs=4), 0).double()

    def loss(self, images: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(self.net(images), labels)


def pictured(worker: int | None = None) -> nn.Module:
    return Pictured()


def pictures(worker: int, t: int) -> tuple[Tensor, Tensor]:
    """What ``worker`` sees in local step ``t``: six images and their classes."""
    return drawn(6, 3, 8, 8, purpose=("x", worker, t)), drawn(6, 4, purpose=("y", worker, t)).argmax(1)


def flat_buffers(module: nn.Module) -> Tensor:
    return torch.cat([x.detach().double().flatten() for x in module.buffers()])
