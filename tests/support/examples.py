"""Examples that tests deal to workers."""

from __future__ import annotations

import torch

from lab.data.tasks.dealt import Dealt, deal
from lab.data.tasks.task import Task
from lab.data.tasks.tensors import Classification, Regression


def task_of(targets: list[int], groups: list[int] | None = None) -> Classification:
    """Examples that are their own number, so that a batch shows what it is made of."""
    num = len(targets)
    x = torch.arange(float(num))[:, None]
    return Classification((x, targets), (x, targets), max(targets) + 1, groups, groups)


def dealt(task: Task, num_workers: int, split: str = "iid", seed: int = 0, batch_size: int = 4) -> Dealt:
    return deal(task, num_workers=num_workers, split=split, batch_size=batch_size, split_seed=seed, batches_seed=seed)


def shards(found: Dealt) -> list[list[int]]:
    """Which examples each worker has: one epoch of it, example by example."""
    one = [found.batches.order.shards[w].tolist() for w in range(len(found.samples_W))]
    assert list(map(len, one)) == found.samples_W
    return one


def of_groups() -> Regression:
    """Sums of three numbers, by three people who have 10, 6 and 4 of them."""
    x = torch.sin(torch.arange(60.0)).view(20, 3)
    groups = [0] * 10 + [1] * 6 + [2] * 4
    return Regression((x, x.sum(1)), (x.flip(0), x.flip(0).sum(1)), groups)
