"""A task as a trainer needs it: its examples dealt to workers, batches without a cursor, and what the model is scored on.

Legend: N workers, E examples, B examples of a batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lab.data.shards import Shards, portions, sizes
from lab.data.splits import Order, cut, evenly_spaced, parse_split, partition
from lab.data.tasks.labelled import Labelled, taken_off
from lab.data.tasks.task import Examples, Task
from lab.data.tasks.tensors import fingerprint
from lab.data.training_data import HeldOut
from lab.ground.errors import RecipeError, one_of, shown

ColumnOf = Callable[[str], list[int]]


@dataclass(frozen=True)
class TensorBatches:
    """Batch (worker, t) is a function of (seed, worker, t) alone, see `lab.data.splits.Order`. May be asked from several threads."""

    examples: Examples
    order: Order
    dtype: torch.dtype = torch.float32

    def get(self, worker: int, t: int) -> tuple[Tensor, Tensor]:
        """Inputs ``[B, *shape]`` and targets ``[B, *]`` of batch ``t`` (from 1) of ``worker``; floats are of ``dtype``."""
        return self.examples.take(torch.from_numpy(self.order.items(worker, t)), self.dtype)

    def get_all(self, workers: Sequence[int], t: int) -> tuple[Tensor, Tensor]:
        """The same of some workers, gathered at once: ``[W, B, *shape]`` and ``[W, B, *]``."""
        index = torch.from_numpy(self.order.items_of(workers, t).ravel())
        inputs, targets = self.examples.take(index, self.dtype)
        return inputs.unflatten(0, (len(workers), -1)), targets.unflatten(0, (len(workers), -1))


@dataclass(frozen=True)
class Dealt:
    """A task, dealt to workers: the fields of `lab.data.training_data.TrainingData` that it has something to say on.

    batches, validation
        of every worker; held-out examples in batches, of which the last may have fewer.
    samples_W
        examples of every worker (federated papers: n_k).
    scores
        what a module in eval mode is worth on the examples of ``validation``.
    digest
        SHA-256 of all examples.
    input_shape, num_outputs
        of an example, without the batch axis; classes, or numbers to predict.
    vocab_size
        tokens that there are, where inputs are tokens; 0 else.
    loss, num_targets
        those of the task (`lab.data.tasks.task.Task`).
    held_out
        what workers hold out of their own examples.
    column_of
        what a column says of every worker's examples; RecipeError where there is none of this name, or where it does not say one thing.
    labelled
        examples that a server has with their labels; None where it has none.
    """

    batches: TensorBatches
    validation: list[tuple[Tensor, Tensor]]
    samples_W: Sequence[int]
    scores: Callable[[nn.Module], dict[str, float]]
    digest: str
    input_shape: tuple[int, ...]
    num_outputs: int
    vocab_size: int
    loss: Callable[[nn.Module, Tensor, Tensor], Tensor]
    num_targets: Callable[[Tensor], int]
    held_out: HeldOut | None = None
    column_of: ColumnOf | None = None
    labelled: Labelled | None = None


def deal(
    task: Task,
    *,
    num_workers: int,
    split: str = "iid",
    batch_size: int,
    num_validation: int = 256,
    split_seed: int = 0,
    batches_seed: int = 0,
    share_held_out: float = 0.0,
    dtype: torch.dtype = torch.float32,
    labelled: int = 0,
) -> Dealt:
    """Deal the examples of a task to workers.

    Raises RecipeError in one line: what is no task, a split that these examples do not have, a worker that would get nothing.

    Parameters
    ----------
    split
        as `lab.data.splits.partition` has them, ``dirichlet:<alpha>`` over classes. Where a column is the name of the parts of inputs,
        examples are taken apart (`lab.data.tasks.parts`): sensor by sensor for ``by:person+sensor``.
    num_validation, split_seed, batches_seed
        held-out examples that the model is scored on, evenly spaced, with every class in its share (all where there are fewer); who gets
        what, and in which order: neither depends on the other, nor on anything drawn elsewhere.
    share_held_out, dtype, labelled
        the part of its own examples that each worker does not train on; of inputs and targets that are floats; how many examples of every
        class a server has for itself, and nobody is dealt (`lab.data.tasks.labelled.taken_off`).
    """
    check_task(task)
    train, held_out = _as_split(task.train, split), task.held_out
    kept, train = taken_off(train, task.num_outputs, labelled, split_seed, dtype)
    dealt = partition(_domains(train, split), num_workers, split, split_seed, by_columns=True)
    shards, own = portions(dealt, share_held_out, split_seed)
    scored = held_out.select(torch.from_numpy(_validation(held_out, num_validation)), dtype)
    return Dealt(
        batches=TensorBatches(train, Order(shards, batch_size, batches_seed), dtype),
        validation=[scored.take(torch.from_numpy(part), dtype) for part in cut(np.arange(len(scored)), batch_size)],
        samples_W=sizes(shards),
        scores=partial(task.scores, examples=scored),
        digest=digest_of(task, split),
        input_shape=tuple(train.inputs.shape[1:]),
        num_outputs=task.num_outputs,
        vocab_size=vocab_size(task),
        loss=task.loss,
        num_targets=task.num_targets,
        held_out=None if own is None else _held_out(task, train, own, dtype),
        column_of=partial(_column_of, train, dealt),
        labelled=kept,
    )


def digest_of(task: Task, split: str) -> str:
    """`Dealt.digest`: columns count where a split goes by them."""
    return fingerprint(task, columns=parse_split(split).kind == "by")


def _as_split(train: Examples, split: str) -> Examples:
    """Examples as a split needs them, with the columns that it names."""
    names = parse_split(split).columns
    try:
        return train.by(names)
    except RecipeError as error:
        raise RecipeError(f"split {split!r}: {error}") from None


def _column_of(train: Examples, shards: Shards, name: str) -> list[int]:
    """What a column says of the examples of every shard, one number each. Raises RecipeError, see `Dealt`."""
    if name not in train.columns:
        of_parts = train.parts is not None and train.parts.name == name
        raise RecipeError(
            f"it is what single examples are taken apart by: name it in the split, as in by:{name}"
            if of_parts
            else one_of("column of the examples", name, train.columns)
            if train.columns
            else f"these examples have no column {name!r}, and no other"
        )
    column, found = train.columns[name].cpu().numpy(), []
    for owner in range(len(shards)):
        values = np.unique(column[shards[owner]])
        if len(values) > 1:
            raise RecipeError(
                f"client {owner} has examples of {name} {values[0]} and {values[1]}: use a split by {name} and as many clients as it gives"
            )
        found.append(int(values[0]))
    return found


def _held_out(task: Task, train: Examples, shards: Shards, dtype: torch.dtype) -> HeldOut:
    def take(index: np.ndarray) -> tuple[Tensor, Tensor]:
        return train.take(torch.from_numpy(index), dtype)

    @torch.no_grad()
    def scores(module: nn.Module, inputs: Tensor, targets: Tensor) -> dict[str, float]:
        device = next((p.device for p in module.parameters()), torch.device("cpu"))
        loss = float(task.loss(module, inputs.to(device), targets.to(device)))
        return {"loss": loss} | task.scores(module, Examples(inputs, targets))

    return HeldOut(shards, take, getattr(task, "by_example", None), scores)


def check_task(task: Any, name: str = "data") -> None:
    """Raises RecipeError where an object is no task, or has examples that cannot be dealt: one line that says what is missing.

    ``name``: what gave it, for the error.
    """
    kind = type(task).__name__
    missing = [
        what for what in ("train", "held_out", "num_outputs", "loss", "num_targets", "scores") if what not in dir(task)
    ]
    if missing:
        raise RecipeError(
            f"{name} gives {kind}, which has no {', '.join(missing)}: lab.data.tasks.task.Task says what a task has; Classification and "
            "Regression of lab.data.tasks.tensors are such"
        )
    for which, part in (("train", task.train), ("held_out", task.held_out)):
        if not isinstance(part, Examples):
            raise RecipeError(
                f"{name}: {kind}.{which} is a {type(part).__name__}: give lab.data.tasks.task.Examples(inputs, targets)"
            )
        if not len(part) or len(part.targets) != len(part):
            raise RecipeError(
                f"{name}: {kind}.{which} has {len(part)} inputs and {len(part.targets)} targets: as many, and at least one of each"
            )
    shapes = [list(part.inputs.shape[1:]) for part in (task.train, task.held_out)]
    if shapes[0] != shapes[1]:
        raise RecipeError(
            f"{name}: {kind} has inputs of shape {shapes[0]} to train on and {shapes[1]} held out: give them one shape"
        )
    if isinstance(task.num_outputs, bool) or not isinstance(task.num_outputs, int) or task.num_outputs < 1:
        raise RecipeError(
            f"{name}: {kind}.num_outputs = {shown(task.num_outputs)} is not allowed: it is an integer of at least 1"
        )


def predicts_tokens(task: Task) -> bool:
    """Whether a task's targets are tokens, one after each of its inputs."""
    x, y = task.train.inputs, task.train.targets
    return x.dim() == 2 and x.shape == y.shape and not x.is_floating_point() and not y.is_floating_point()


def vocab_size(task: Task) -> int:
    """Of a task whose inputs are tokens (integers that nothing normalises): one more than the largest; 0 for all others.

    Where tokens are predicted it is the task's ``num_outputs``, whichever of them occur.
    """
    if predicts_tokens(task):
        return task.num_outputs
    parts = (task.train, task.held_out)
    if any(part.inputs.is_floating_point() or part.normalisation is not None for part in parts):
        return 0
    return 1 + max(int(part.inputs.max()) for part in parts)


def _domains(train: Examples, split: str) -> np.ndarray:
    """What a split goes by, as numbers from 0, int64 ``[E]``: natural groups or classes; all 0 where it does not matter."""
    how = parse_split(split)
    if how.kind == "by":
        rows = np.stack([train.columns[name].cpu().numpy() for name in how.columns], axis=1)
        return np.unique(rows, axis=0, return_inverse=True)[1].reshape(-1).astype(np.int64)
    if how.kind in ("domain", "groups"):
        if train.groups is None:
            raise RecipeError(
                f"split {split!r} needs natural groups, which these examples do not have: use iid, dirichlet:0.5 or size:1"
            )
        return _codes(train.groups)
    if not how.goes_by_domain:
        return np.zeros(len(train), np.int64)
    if train.targets.is_floating_point() or train.targets.dim() != 1:
        raise RecipeError(
            f"split {split!r} goes by classes, and the targets of these examples are none: use iid, size:1 or groups"
        )
    return _codes(train.targets)


def _codes(values: Tensor) -> np.ndarray:
    return np.unique(values.cpu().numpy(), return_inverse=True)[1].astype(np.int64)


def _validation(held_out: Examples, num: int) -> np.ndarray:
    """Indices of evenly spaced examples, sorted; of a classification every class has its share, in whatever order they lie."""
    targets = held_out.targets.cpu().numpy()
    order = np.argsort(targets, kind="stable") if targets.ndim == 1 else np.arange(len(targets))
    return np.sort(order[evenly_spaced(len(order), num, "example")])
