"""A tiny problem whose every number can be worked out again, and a driver for methods without text, recipes or events."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from lab.engine.comm import Communicator
from lab.engine.fleet import Fleet
from lab.engine.state import State
from lab.events import Sent
from lab.ground.seeds import generator
from lab.methods import Method
from lab.methods.registry import prepared
from lab.study import bench as driver

F64 = torch.float64


Batch = Callable[[int, int], tuple[Tensor, Tensor]]


def drawn(*shape: int, purpose: Iterable[str | int]) -> Tensor:
    """Standard normal numbers that depend on what they are for, and on nothing else."""
    return torch.randn(*shape, generator=generator(0, *purpose), dtype=F64)


def batch(worker: int, t: int) -> tuple[Tensor, Tensor]:
    """What ``worker`` sees in local step ``t``: five inputs ``[5, 3]`` and targets ``[5, 2]``."""
    return drawn(5, 3, purpose=("x", worker, t)), drawn(5, 2, purpose=("y", worker, t))


class Net(nn.Module):
    """A perceptron with one hidden layer and two groups of tensors: 4 · 3 + 4 + 2 · 4 = 24 parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = nn.Parameter(torch.empty(4, 3, dtype=F64))
        self.bias = nn.Parameter(torch.empty(4, dtype=F64))
        self.out = nn.Parameter(torch.empty(2, 4, dtype=F64))

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x @ self.hidden.T + self.bias) @ self.out.T

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        return (self(x) - y).square().mean()

    @staticmethod
    def tensor_group(name: str) -> str:
        return "head" if name == "out" else "body"


def fill_(module: nn.Module) -> nn.Module:
    """Initial values by name; a module on ``meta`` keeps only its shapes."""
    with torch.no_grad():
        for name, p in module.named_parameters():
            if not p.is_meta:
                p.copy_(drawn(*p.shape, purpose=("init", name)))
    return module


def build(worker: int | None) -> nn.Module:
    return Net() if worker is not None else fill_(Net())


class TwoNets(nn.Module):
    """Two perceptrons side by side, whose losses are added: what one learns hangs in nothing on the other."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.other = Net(), Net()

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.one(x), self.other(x)], 1)

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        return self.one.loss(x, y) + self.other.loss(x, y)

    @staticmethod
    def tensor_group(name: str) -> str:
        return name.split(".")[0]


def two_nets(worker: int | None) -> nn.Module:
    return TwoNets() if worker is not None else fill_(TwoNets())


class Bench(driver.Bench):
    """A method on a tiny fleet of `Net`, driven step by step without text, recipes or events."""

    def __init__(
        self,
        method: Method,
        num_workers: int = 3,
        *,
        batch: Batch = batch,
        build: Callable[[int | None], nn.Module] = build,
        communicator: Callable[..., Communicator] = Communicator,
        codecs: dict[str, Any] | None = None,
        schedule: Callable[[int], float] = lambda t: 1.0,
        device: str = "cpu",
        personal: Callable[[str], bool] = lambda name: False,
    ):
        def as_wanted(worker: int | None) -> nn.Module:
            module = build(worker)
            return prepared(method, module, worker is None) if "in_groups" in dir(type(method)) else module

        with torch.device(device):
            self.fleet = Fleet(as_wanted, num_workers, device=device, dtype=F64, threads=1, personal=personal)
        state = State.of(self.fleet, schedule)
        super().__init__(method, state, batch=batch, comm=communicator(self.fleet, codecs))

    def of(self, worker: int, state: str = "params") -> Tensor:
        """Everything that ``worker`` holds of one local state, as one vector in the model's own order."""
        stack = self.state.local[state]
        return torch.cat([stack.cell(name, worker).flatten() for name in stack.names()]).clone()

    def shared(self, state: str) -> Tensor:
        stack = self.state.shared[state]
        return torch.cat([stack[name][0].flatten() for name in stack.names()]).clone()

    @property
    def records(self) -> list[Sent]:
        return self.comm.ledger.records


def flat(module: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in module.parameters()])


def close(a: Tensor, b: Tensor, tolerance: float = 1e-12) -> bool:
    return a.shape == b.shape and torch.allclose(a, b, rtol=tolerance, atol=tolerance)


def other(workers: dict[int, int]) -> Any:
    """Batches dealt differently: ``worker`` sees what ``workers[worker]`` would see."""
    return lambda worker, t: batch(workers.get(worker, worker), t)
