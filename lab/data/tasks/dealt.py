"""A task's examples dealt to workers: batches without a cursor, what a model is scored on, and scores."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from lab.data.splits import Order, parse_split, partition
from lab.data.tasks.task import Examples, Task
from lab.errors import RecipeError


@dataclass(frozen=True)
class TensorBatches:
    """Batch (worker, t) is a function of (seed, worker, t) alone, see `lab.data.splits.Order`."""

    examples: Examples
    order: Order

    def get(self, worker: int, t: int) -> tuple[Tensor, Tensor]:
        """Inputs ``[B, *shape]`` and targets ``[B, *]`` of batch ``t`` (from 1) of ``worker``."""
        index = torch.from_numpy(self.order.items(worker, t))
        return self.examples.inputs.index_select(0, index), self.examples.targets.index_select(0, index)


@dataclass(frozen=True)
class Dealt:
    """What a run needs of a task (`lab.data.training_data.TrainingData`)."""

    batches: TensorBatches
    validation: list[tuple[Tensor, Tensor]]
    samples_W: Sequence[int]
    scores: Callable[[nn.Module], dict[str, float]]
    digest: str
    input_shape: tuple[int, ...]
    num_outputs: int
    loss: Callable[[nn.Module, Tensor, Tensor], Tensor]
    num_targets: Callable[[Tensor], int]


def deal(
    task: Task,
    *,
    num_workers: int,
    split: str,
    split_seed: int,
    batch_size: int,
    batches_seed: int,
    num_validation: int,
    dtype: torch.dtype = torch.float32,
) -> Dealt:
    """Deal a task to workers. ``num_validation``: held-out examples that a model is scored on, evenly spaced, at most.

    Raises
    ------
    RecipeError
        where a worker would get nothing, or the split needs labels or groups that there are not.
    """
    train, held_out = in_dtype(task.train, dtype), in_dtype(task.held_out, dtype)
    shards = partition(_domains(train, split), num_workers, split, split_seed)
    some = evenly(held_out, num_validation)
    return Dealt(
        TensorBatches(train, Order(shards, batch_size, batches_seed)),
        list(zip(some.inputs.split(batch_size), some.targets.split(batch_size), strict=True)),
        [len(shard) for shard in shards],
        lambda module: task.scores(module, some),
        fingerprint(task.train, task.held_out),
        tuple(train.inputs.shape[1:]),
        task.num_outputs,
        task.loss,
        task.num_targets,
    )


def _domains(train: Examples, split: str) -> np.ndarray:
    kind, _ = parse_split(split)
    if kind == "dirichlet":
        if train.targets.is_floating_point() or train.targets.dim() != 1:
            raise RecipeError(f"split {split!r} deals by labels, and this task has none: use iid or size:<exponent>")
        return train.targets.clamp(min=0).numpy()
    if train.groups is not None:
        return train.groups.numpy()
    if kind == "domain":
        raise RecipeError(
            f"split {split!r} deals natural groups, and this task has none: use iid, dirichlet:<alpha> or size:<exponent>"
        )
    return np.zeros(len(train), np.int64)


def in_dtype(examples: Examples, dtype: torch.dtype) -> Examples:
    """Floats as the parameters are; integers stay."""
    inputs, targets = (x.to(dtype) if x.is_floating_point() else x for x in (examples.inputs, examples.targets))
    return Examples(inputs, targets, examples.groups)


def evenly(examples: Examples, num: int) -> Examples:
    """Evenly spaced examples, in order; all where there are fewer."""
    total = len(examples)
    index = torch.arange(min(num, total)) * total // min(num, total)
    groups = None if examples.groups is None else examples.groups[index]
    return Examples(examples.inputs[index], examples.targets[index], groups)


def fingerprint(*parts: Examples) -> str:
    """SHA-256 of all examples: shapes, dtypes and values."""
    digest = hashlib.sha256()
    for examples in parts:
        for x in (examples.inputs, examples.targets, examples.groups):
            if x is not None:
                digest.update(f"{x.dtype} {tuple(x.shape)} ".encode())
                digest.update(x.contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()
