"""A federation small enough to see through: clients learn one matrix W* in low rank, from the same loss ‖s·B·A − W*‖².

W* = U·Σ·Vᵀ with singular values σ_i = 4·0.8^i, so the best that a prefix of rank r can do is known: √ of the tail of the
spectrum (Eckart and Young). The methods are the lab's own, the loop is that of a run without text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from lab.engine.fleet import Fleet
from lab.engine.state import State
from lab.ground.seeds import generator
from lab.methods import Method, declared
from lab.methods.lora_factors import Adapters, product_norm
from lab.models.gpt import Linear
from lab.models.lora import LoRA, adapt_, adapters, cut_to
from lab.study.bench import Bench


class Regression(nn.Module):
    """One linear map d × d, zero at first. ``forward(identity)`` is its matrix, transposed."""

    def __init__(self, d: int):
        super().__init__()
        self.map = Linear(d, d)

    def forward(self, x: Tensor) -> Tensor:
        return self.map(x)  # type: ignore[no-any-return]

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        return self.criterion(self(x), y)

    @staticmethod
    def criterion(out: Tensor, y: Tensor) -> Tensor:
        return (out - y).square().sum()


@dataclass(frozen=True)
class Outcome:
    """What became of the server's adapter."""

    loss: dict[int, float]  # ‖s·B[:, :r]·A[:r] + W₀ − W*‖² / ‖W*‖² by prefix
    energy: list[float]  # share of every segment
    bytes_each_way: tuple[int, int]  # handed in and fetched by all clients together


def target(d: int, directions: int, seed: int) -> Tensor:
    """W* ``[d, d]`` with ``directions`` singular values 4·0.8^i."""
    g = generator(seed, "target")
    U, V = (torch.linalg.qr(torch.randn(d, directions, generator=g, dtype=torch.float64))[0] for _ in range(2))
    W: Tensor = U @ torch.diag(4 * 0.8 ** torch.arange(directions, dtype=torch.float64)) @ V.T
    return W


def best(ranks: Sequence[int], directions: int = 16) -> dict[int, float]:
    """The relative loss that no matrix of rank r goes below."""
    energy = (4 * 0.8 ** torch.arange(directions, dtype=torch.float64)).square()
    return {r: float(energy[r:].sum() / energy.sum()) for r in ranks}


def regression(
    method: Method, ranks: Sequence[int], *, rounds: int = 200, round_steps: int = 10, d: int = 32, seed: int = 0
) -> Outcome:
    """Let clients of these ranks learn W* with a federated method (its ``sync_every`` has to be ``round_steps``)."""
    torch.set_num_threads(1)  # matrices this small are not worth two, which would fight over the cores
    train: Literal["both", "B"] = "B" if declared(method).trains_B_alone else "both"
    goal, lora = target(d, 16, seed), LoRA(ranks=tuple(ranks), targets=("map",), scale=1.0, train=train)
    ranks_W = lora.ranks_W(len(ranks))

    def build(worker: int | None) -> nn.Module:
        module = Regression(d)
        if worker is None:
            nn.init.zeros_(module.map.weight)
        return adapt_(module, lora, lora.bounds[-1] if worker is None else ranks_W[worker], seed)

    fleet = Fleet(build, len(ranks), dtype=torch.float64, threads=1)
    state = State.of(fleet, adapters=Adapters.of(lora, len(ranks), list(fleet.layout.place)))
    eye = torch.eye(d, dtype=torch.float64)
    bench = Bench(method, state, batch=lambda worker, t: (eye, goal.T)).run(rounds * round_steps)
    bench.close()
    model, scale = fleet.whole_model(state.shared["params"]), float(goal.square().sum())
    losses = {}
    for rank in lora.bounds:
        with cut_to(model, rank):
            losses[rank] = float(model.loss(eye, goal.T)) / scale  # type: ignore[operator]
    A, B = next(iter(adapters(model).values())).factors()
    segments = zip([0, *lora.bounds], lora.bounds, strict=False)
    energy = [product_norm((A[low:high], B[:, low:high])) ** 2 for low, high in segments]
    by_op = bench.comm.ledger.by("op")
    down = by_op.get(("broadcast",), 0)
    return Outcome(
        losses,
        [e / sum(energy) if sum(energy) else 0.0 for e in energy],
        (bench.comm.ledger.total_bytes() - down, down),
    )
