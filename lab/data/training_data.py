"""What the workers of a run read, and what the model is scored on, as the step loop and the probes need it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from lab.data.splits import Batches
from lab.data.tasks.data import TaskBatches


@dataclass(frozen=True)
class TrainingData:
    """Batches of every worker, and what the agreed model is scored on."""

    vocab_size: int
    batches: Batches | TaskBatches
    validation: list[tuple[Tensor, Tensor]]
    samples_W: Sequence[int]  # windows or examples of every worker
    scores: Callable[[nn.Module], dict[str, float]]  # what a task says of a model; nothing for running text
    floor_nats: float | None = None  # entropy rate, where it is known
    bytes_per_token: float = 1.0
    digest: str = ""  # of all that a result depends on: tokens or examples, and where they come from
    note: str = ""  # what the reader should know of it
