"""Tasks over tensors: classification and regression."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lab.data.tasks.task import Examples

Pair = tuple[Tensor, Tensor]  # inputs [E, *shape], targets


@dataclass(frozen=True, eq=False)
class Classification:
    """Which of several classes an example is of; targets int64 ``[E]``. Loss: cross entropy, nats per example.

    ``num_classes=None``: as many as the largest label of both parts says.
    """

    train: Examples
    held_out: Examples
    num_classes: int | None = None

    @classmethod
    def of(
        cls, train: Pair, held_out: Pair, *, num_classes: int | None = None, groups: Tensor | None = None
    ) -> Classification:
        return cls(Examples(*train, groups), Examples(*held_out), num_classes)

    @cached_property
    def num_outputs(self) -> int:
        return self.num_classes or 1 + max(int(self.train.targets.max()), int(self.held_out.targets.max()))

    def loss(self, module: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(module(inputs), targets)

    def num_targets(self, targets: Tensor) -> int:
        return int((targets != -100).sum())

    def scores(self, module: nn.Module, examples: Examples) -> dict[str, float]:
        with torch.no_grad():
            right = (module(examples.inputs).argmax(1) == examples.targets).double().mean()
        return {"accuracy": float(right)}
