"""How a method gets its gradients: every worker's, of its own batch of the present local step."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from lab.data.tasks.dealt import TensorBatches
from lab.data.training_data import TrainingData
from lab.engine.comm import Communicator
from lab.engine.state import Loss, State
from lab.engine.vectorised import Vectorised
from lab.ground.seeds import derive
from lab.recipes.recipe import Recipe
from lab.runs.weights import Weights


class Gradients:
    """`lab.engine.state.Grad` of a run. ``vectorised``: all workers at once, where that is faster.

    ``weights`` of samples are in the loss that a method trains with, and not in that of `at`, which probes look at.
    """

    def __init__(
        self,
        recipe: Recipe,
        data: TrainingData | None,
        comm: Communicator,
        vectorised: Vectorised | None,
        weights: Weights | None = None,
    ):
        self.recipe, self.data, self.comm, self.vectorised, self.weights = recipe, data, comm, vectorised, weights

    def __call__(self, s: State, loss: Loss | None = None) -> Tensor:
        if self.weights is not None:
            loss = self.weights.in_loss(self.comm.t, s, loss)
        return self.at(self.comm.t, s, loss)

    def at(self, t: int, s: State, loss: Loss | None = None) -> Tensor:
        """Fill the gradients of local step ``t``; return the losses ``[N]``."""
        compute, data = self.recipe.compute, self.data

        def owner(worker: int) -> int:
            return s.clients_W[worker] if s.clients_W else worker

        def batch(worker: int) -> tuple[Tensor, Tensor]:
            assert data is not None
            return data.batches.get(owner(worker), t)

        def batches(workers: Sequence[int]) -> tuple[Tensor, Tensor]:
            assert data is not None
            source = data.batches
            if isinstance(source, TensorBatches):  # gathered in one go
                return source.get_all(list(map(owner, workers)), t)
            inputs, targets = zip(*map(batch, workers), strict=True)
            return torch.stack(inputs), torch.stack(targets)

        def losses(module: nn.Module, worker: int) -> Iterator[Tensor]:
            of: Any = module.loss if loss is None else partial(loss, module, worker)
            assert data is not None
            return compute.losses(of, *batch(worker), s.fleet.device, data.num_targets)

        if self.vectorised is not None:
            loss_W = self.vectorised.backward(batches, own_loss=loss is not None)
            if loss_W is not None:
                return loss_W
        return s.fleet.backward(losses, lambda worker: derive(self.recipe.seed, "forward", worker, t))
