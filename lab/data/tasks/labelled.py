"""Examples that a server has with their labels, taken off a task's before the rest is dealt to clients.

Legend: C classes, n of each.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from lab.data.tasks.task import Examples
from lab.ground.errors import RecipeError
from lab.ground.seeds import numpy_generator

Labelled = tuple[Tensor, Tensor]  # inputs ``[C, n, *shape]`` and targets ``[C, n]``, class by class


def taken_off(
    train: Examples, num_classes: int, num: int, seed: int, dtype: torch.dtype
) -> tuple[Labelled | None, Examples]:
    """``num`` examples of every class (0: None), drawn from ``seed`` alone, and what is left of the others in their order.

    Raises
    ------
    RecipeError
        where targets are no classes, or there are not so many of one and some of it left.
    """
    if not num:
        return None, train
    targets = train.targets
    if targets.is_floating_point() or targets.dim() != 1:
        raise RecipeError(
            f"server.labelled = {num} takes so many examples of every class, and the targets of these examples are no classes: leave it out"
        )
    rng, parts = numpy_generator(seed, "labelled"), []
    for c in range(num_classes):
        members = (targets == c).nonzero()[:, 0]
        if len(members) <= num:
            raise RecipeError(
                f"server.labelled = {num} takes so many examples of every class, and of class {c} there are {len(members)}: "
                f"use {f'at most {len(members) - 1}' if len(members) > 1 else 'another task'}"
            )
        parts.append(members[torch.from_numpy(rng.permutation(len(members))[:num])].sort().values)
    index = torch.cat(parts)
    left = torch.ones(len(train), dtype=torch.bool)
    left[index] = False
    columns = {name: x[left.to(x.device)] for name, x in train.columns.items()}
    groups = None if train.groups is None else train.groups[left]
    inputs, classes = (x.unflatten(0, (num_classes, num)) for x in train.take(index, dtype))
    rest = replace(train, inputs=train.inputs[left], targets=targets[left], groups=groups, columns=columns)
    return (inputs, classes), rest
