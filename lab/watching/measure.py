"""Metrics of a run as events: those of `lab.metrics` that the recipe asks for, and nothing where it asks for none.

=================  ==============================================  ===================================================
name               when, and what                                  costs beside the run
=================  ==============================================  ===================================================
``alignment``      at every average of all params: cosines of the  a copy of the params, O(N²·P) per average
                   workers' pseudo-gradients with each other,
                   with their mean and with the mean momentum
``spectrum``       there too: rank and largest singular values of  two SVDs of every matrix, O(p²·q) each, per
                   the mean pseudo-gradient's matrices, and how    average, and two copies of the params
                   far its basis turned since the average before
``rates``          ‖s_t − s_{t−k}‖ / ‖s_{t−k}‖ of every state      a copy of all local states
``gradients``      norm of every worker's gradient                 O(N·P)
``activations``    root mean square of what each part of the       a forward pass
                   first worker's model gives out
``noise``          gradient noise scale in sequences               a forward and backward pass of every worker
=================  ==============================================  ===================================================

The last four every ``metrics_every`` local steps. The numbers of the run stay what they are.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lab import metrics
from lab.events import Measured
from lab.fleet import Stack

if TYPE_CHECKING:
    from lab.run import Trainer

DIRECTIONS = 8  # of a basis: the leading ones of each matrix


class Measures:
    """What a run's recipe asks for. ``remembered`` belongs into checkpoints: the copies that the next look compares with."""

    def __init__(self, trainer: Trainer):
        self.trainer, self.names = trainer, trainer.recipe.metrics
        self.remembered: dict[str, Stack] = {}
        self.watch: metrics.Watch | None = None
        if {"alignment", "spectrum"} & set(self.names):
            self.watch = metrics.Watch(trainer.state, trainer.comm)
            self.remembered["start"] = self.watch.start

    def restored(self) -> None:
        """What is remembered was put back from a checkpoint."""
        if self.watch is not None:
            self.watch.start = self.remembered["start"]

    def after(self, t: int) -> Iterator[Measured]:
        """What there is to say after local step ``t``."""
        if self.watch is not None and self.watch.due:
            yield from self._averaged(t, self.watch)
        if t % self.trainer.recipe.metrics_every == 0:
            yield from self._every(t)

    def _averaged(self, t: int, watch: metrics.Watch) -> Iterator[Measured]:
        before = watch.start
        if "alignment" in self.names:
            values = {k: v for k, v in vars(watch.seen[-1]).items() if k != "step"}
            yield Measured(t, "alignment", {k: [_plain(v)] for k, v in values.items()})
        watch.seen.clear()
        watch.after()  # pseudo-gradients count from here
        self.remembered["start"] = watch.start
        if "spectrum" in self.names:
            moved = Stack(before.layout, [a - b for a, b in zip(watch.start.blocks, before.blocks, strict=True)])
            yield self._spectrum(t, moved)
            self.remembered["moved"] = moved

    @torch.no_grad()
    def _spectrum(self, t: int, moved: Stack) -> Measured:
        """Of every matrix's change from average to average, at the first of its holders that is up."""
        values: dict[str, list[float | None]] = {}
        for name in moved.names():
            holders = moved.layout.blocks[moved.layout.place[name][0]].holders
            row = next((r for r, w in enumerate(holders) if self.trainer.fleet.up[w]), 0)
            if moved[name].dim() != 3 or not moved[name][row].any():
                continue
            U, S = _leading(moved[name][row])
            values[f"{name} rank"] = [float(metrics.numerical_rank(S, 1e-6))]
            values[f"{name} singular values"] = list(map(_plain, S[:DIRECTIONS].tolist()))
            if "moved" in self.remembered and self.remembered["moved"][name][row].any():
                old, _ = _leading(self.remembered["moved"][name][row])
                values[f"{name} basis similarity"] = [metrics.basis_similarity(old, U)]
        return Measured(t, "spectrum", values)

    def _every(self, t: int) -> Iterator[Measured]:
        trainer = self.trainer
        if "gradients" in self.names:
            norms = metrics.norms_by_group(trainer.state.grads, trainer.recipe.num_workers)
            yield Measured(
                t,
                "gradients",
                {"all": _plains(metrics.gradient_norms(trainer))} | {k: _plains(v) for k, v in norms.items()},
            )
        if "rates" in self.names:
            values: dict[str, list[float | None]] = {}
            for name, stack in trainer.state.local.items():
                if f"rates {name}" in self.remembered:
                    values[name] = [_plain(metrics.relative_change(stack, self.remembered[f"rates {name}"]))]
                if stack.layout is trainer.fleet.layout:
                    self.remembered[f"rates {name}"] = stack.clone()
            if values:
                yield Measured(t, "rates", values)
        if "activations" in self.names:
            yield Measured(
                t, "activations", {k or "model": [_plain(v)] for k, v in metrics.activations(trainer).items()}
            )
        if "noise" in self.names:
            yield Measured(t, "noise", {"sequences": [_plain(metrics.noise(trainer))]})


def _leading(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """The leading directions, and all singular values."""
    U, S, _ = torch.linalg.svd(matrix.double(), full_matrices=False)
    return U[:, :DIRECTIONS], S


def _plain(x: float) -> float | None:
    return float(x) if math.isfinite(x) else None


def _plains(values: list[float]) -> list[float | None]:
    return [_plain(x) for x in values]
