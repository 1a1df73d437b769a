"""What a task is: examples, to train on and held out, the loss of a batch, and scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import torch
from torch import Tensor, nn

from lab.data.tasks.parts import Parts, apart
from lab.ground.errors import RecipeError, one_of

IGNORED = -100  # torch's mark for a target that does not count


@dataclass(frozen=True)
class Normalisation:
    """How stored integers (pixels, samples of a waveform) become what a model is given: ``(x / most - mean) / std``.

    mean, std
        one number for each channel (axis 1 of a batch), or one for all.
    most
        the largest value that is stored, so that ``x / most`` lies in [0, 1], or [−1, 1].
    """

    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    most: float = 255.0

    def __call__(self, stored: Tensor, dtype: torch.dtype) -> Tensor:
        """Of a batch ``[B, C, …]``, in floats."""
        along = (-1, *[1] * (stored.dim() - 2))
        mean, std = (torch.tensor(x, dtype=torch.float64, device=stored.device) for x in (self.mean, self.std))
        factor, offset = 1 / (self.most * std), -mean / std
        return stored.to(dtype).mul_(factor.to(dtype).view(along)).add_(offset.to(dtype).view(along))


@dataclass(frozen=True, eq=False)
class Examples:
    """E examples, along the first axis.

    inputs
        ``[E, *shape]``, of floats or integers. Integers are tokens or categories, and reach a model as int64, unless there is a
        ``normalisation``.
    targets
        int64 ``[E]``: classes, of which −100 does not count; or floats ``[E, *]``.
    groups
        int64 ``[E]``: which natural group (a person, a writer, a site) an example is of; None where there are none.
    normalisation
        what is done to ``inputs`` that are stored as integers to save memory (images as uint8).
    columns
        int64 ``[E]`` by name: what else is known of each example (person, room), by which a split may go: ``by:person+room``.
    parts
        what inputs consist of, such as sensors: a split that names it takes examples apart.
    """

    inputs: Tensor
    targets: Tensor
    groups: Tensor | None = None
    normalisation: Normalisation | None = None
    columns: Mapping[str, Tensor] = field(default_factory=dict)
    parts: Parts | None = None

    def __len__(self) -> int:
        return len(self.inputs)

    def __repr__(self) -> str:
        """Sizes, not contents."""
        groups = "" if self.groups is None else f", {len(self.groups.unique()):,} groups"
        return f"Examples({len(self):,} of shape {list(self.inputs.shape[1:])}, {self.inputs.dtype}{groups})"

    def take(self, index: Tensor, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
        """Inputs ``[B, *shape]`` and targets ``[B, *]`` of some examples (``index``: int64 ``[B]``), as a model is given them.

        Floats are of ``dtype``, integers are int64.
        """
        inputs, targets = self.inputs.index_select(0, index), self.targets.index_select(0, index)
        if self.normalisation is not None:
            inputs = self.normalisation(inputs, dtype)
        else:
            inputs = inputs.to(dtype if inputs.is_floating_point() else torch.int64)
        return inputs, targets.to(dtype) if targets.is_floating_point() else targets

    def select(self, index: Tensor, dtype: torch.dtype = torch.float32) -> Examples:
        """Some examples (``index``: int64 ``[B]``) as examples by themselves, as a model is given them: nothing is left to do."""
        return Examples(*self.take(index, dtype), None if self.groups is None else self.groups.index_select(0, index))

    def by(self, names: Sequence[str]) -> Examples:
        """The same examples, with a column for each of these names: taken apart, where one of them is that of the parts.

        Raises
        ------
        RecipeError
            for a name that these examples do not have.
        """
        parts = self.parts
        for name in names:
            if name not in self.columns and (parts is None or name != parts.name):
                there = [*self.columns, *([] if parts is None else [parts.name])]
                if not there:
                    raise RecipeError(
                        f"these examples have no column {name!r}, and no other: give lab.data.tasks.task.Examples its columns"
                    )
                raise RecipeError(one_of("column of the examples", name, there))
        if parts is None or parts.name not in names or parts.name in self.columns:
            return self
        inputs, index, which = apart(self.inputs, parts)
        here = index.to(self.targets.device)
        columns = {name: x.index_select(0, here.to(x.device)) for name, x in self.columns.items()} | {parts.name: which}
        groups = None if self.groups is None else self.groups.index_select(0, here.to(self.groups.device))
        return replace(
            self,
            inputs=inputs,
            targets=self.targets.index_select(0, here),
            groups=groups,
            columns=columns,
            parts=None,
        )


class Task(Protocol):
    """What the ``data`` of a recipe names, where that is no running text. Its options are fields of a dataclass, or a function's.

    `lab.data.tasks.tensors` has one for classification and one for regression. Modules and batches are handed over on the same
    device, floats of a batch in the precision of the recipe (``dtype``).
    """

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
        """What a module in eval mode is worth on some examples: ``accuracy`` and the like.

        A task may have ``by_example(module, inputs, targets)`` besides: ``loss`` and other scores of each example by itself, float64
        ``[B]`` on the CPU. Then many clients are scored in one pass (``clients.held_out``), and else one after another.
        """
