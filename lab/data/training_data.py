"""What the workers of a run read, and what the model is scored on, as the step loop and the probes need it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from torch import Tensor, nn

from lab.data.shards import Shards


class BatchSource(Protocol):
    """Batches without a cursor: that of a worker in a local step follows from the seed."""

    def get(self, worker: int, t: int) -> tuple[Tensor, Tensor]:
        """Inputs and targets of batch ``t`` (from 1) of ``worker``."""


ByExample = Callable[[nn.Module, Tensor, Tensor], Mapping[str, Tensor]]  # of (module, inputs, targets)
Scores = Callable[[nn.Module, Tensor, Tensor], dict[str, float]]


@dataclass(frozen=True)
class HeldOut:
    """What clients hold out of their own examples, do not train on, and are scored on.

    shards
        whose is which, as indices ``[E]``; a client with one example holds none out.
    take
        inputs and targets of some, on the CPU.
    by_example
        ``loss`` first, and other scores, of each of some examples by itself, float64 ``[E]`` on the CPU, NaN where its target does not
        count; a module may be anywhere. None where a task does not have it: then ``scores`` says all of a client's examples together.
    """

    shards: Shards
    take: Callable[[np.ndarray], tuple[Tensor, Tensor]]
    by_example: ByExample | None
    scores: Scores = lambda module, inputs, targets: {}


@dataclass(frozen=True)
class Domains:
    """Where samples to train on come from, windows of text or examples of a task; and anchors that nobody trains on, and nobody is scored on.

    names
        of a few domains (`lab.data.domains.told_apart`).
    of
        int ``[samples]``: the domain of each.
    items
        which samples batch t (from 1) of a worker or client has, int ``[B]``.
    shard
        all that a worker or client has, int.
    take
        inputs and targets of some samples, int64 ``[len(index), T]`` each, on the CPU.
    anchors
        inputs and targets of the anchors; None, where no domain is a target.
    text
        what token ids say.
    """

    names: tuple[str, ...]
    of: np.ndarray
    items: Callable[[int, int], np.ndarray]
    shard: Callable[[int], np.ndarray]
    take: Callable[[np.ndarray], tuple[Tensor, Tensor]]
    anchors: tuple[Tensor, Tensor] | None
    text: Callable[[Sequence[int]], str]


@dataclass(frozen=True)
class TrainingData:
    """Batches of every worker, and what the agreed model is scored on."""

    vocab_size: int  # 0: no text
    batches: BatchSource
    validation: list[tuple[Tensor, Tensor]]
    samples_W: Sequence[int]  # windows or examples of every worker
    scores: Callable[[nn.Module], dict[str, float]]  # what a task says of a model; nothing for running text
    num_targets: Callable[[Tensor], int]  # of a batch's targets, those that count
    floor_nats: float | None = None  # entropy rate, where it is known
    bytes_per_token: float = 1.0
    digest: str = ""  # of all that a result depends on: tokens or examples, and where they come from
    note: str = ""  # what the reader should know of it
    # Of a task beyond text: the shape of an example, what a model gives for one, and the loss of a module on inputs and targets.
    input_shape: tuple[int, ...] = ()
    num_outputs: int = 0
    of_each: bool = False  # whether outputs are of each token of an example: which comes next
    loss: Callable[[nn.Module, Tensor, Tensor], Tensor] | None = None
    held_out: HeldOut | None = None  # by clients, of their own
    column_of: Callable[[str], list[int]] | None = (
        None  # what a column of a task says of every client, see `lab.data.tasks.dealt.Dealt`
    )
    domains: Domains | None = None  # where a recipe weighs samples
    # Of a server: inputs ``[C, n, *shape]`` and targets ``[C, n]``, class by class.
    labelled: tuple[Tensor, Tensor] | None = None
