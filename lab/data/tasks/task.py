"""What a task is: examples, to train on and held out, the loss of a batch, and scores."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor, nn


@dataclass(frozen=True)
class Examples:
    """E examples, along the first axis.

    inputs
        ``[E, *shape]``, of floats or integers.
    targets
        int64 ``[E]``: classes, of which −100 does not count; or floats ``[E, *]``.
    groups
        int64 ``[E]``: which natural group (a person, a writer, a site) an example is of; None where there are none.
    """

    inputs: Tensor
    targets: Tensor
    groups: Tensor | None = None

    def __len__(self) -> int:
        return len(self.inputs)


class Task(Protocol):
    """What the ``data`` of a recipe names, where that is no running text. Its options are fields of a dataclass, or a function's."""

    @property
    def train(self) -> Examples: ...

    @property
    def held_out(self) -> Examples: ...

    @property
    def num_outputs(self) -> int:
        """Classes, or numbers to predict: what a model made for it gives per example."""

    def loss(self, module: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
        """The mean loss over the targets of a batch that count, a scalar."""

    def num_targets(self, targets: Tensor) -> int:
        """How many targets of a batch count: with it, means over examples are exact, whatever the size of a batch."""

    def scores(self, module: nn.Module, examples: Examples) -> dict[str, float]:
        """What a module in eval mode is worth on some examples: ``accuracy`` and the like."""
