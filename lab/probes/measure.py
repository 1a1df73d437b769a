"""Metrics of a run as events: those of `lab.probes.metrics` that the recipe asks for, and nothing where it asks for none.

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

Over several processes the values are the same. For ``alignment`` the parameters, the pseudo-gradients and the first moments of
all workers travel to the first process at each such average (more than the average itself), for ``noise`` the mean gradient
is made; for the others a few numbers. It is looking and not the method: the ledger leaves it out.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lab.engine.stack import Stack
from lab.events import Measured
from lab.probes import metrics

if TYPE_CHECKING:
    from lab.runs.trainer import Trainer

DIRECTIONS = 8  # of a basis: the leading ones of each matrix


class Measures:
    """What a run's recipe asks for. ``remembered`` belongs into checkpoints: the copies that the next look compares with.

    Over several processes all of them look at the same steps; ``alignment`` and ``activations`` are told by the first alone.
    """

    def __init__(self, trainer: Trainer):
        self.trainer, self.names = trainer, trainer.recipe.metrics
        self.remembered: dict[str, Stack] = {}
        self.held = metrics.holders(trainer.fleet.layout)
        self.watch: metrics.Watch | None = None
        if {"alignment", "spectrum"} & set(self.names):
            self.watch = metrics.Watch(trainer.state, trainer.comm, look="alignment" in self.names)
            self.remembered["start"] = self.watch.start

    def restored(self) -> None:
        """What is remembered was put back from a checkpoint."""
        self.held = metrics.holders(self.trainer.fleet.layout)
        if self.watch is not None:
            self.watch.start, self.watch.held = self.remembered["start"], self.held

    def after(self, t: int) -> Iterator[Measured]:
        """What there is to say after local step ``t``."""
        self._follow_()
        if self.watch is not None and self.watch.due:
            yield from self._averaged(t, self.watch)
        if t % self.trainer.recipe.metrics_every == 0:
            yield from self._every(t)

    def _follow_(self) -> None:
        """Experts may have moved: what is compared for a cell that came to its worker begins there."""
        held, local = metrics.holders(self.trainer.fleet.layout), self.trainer.state.local
        if self.watch is not None:
            self.watch.follow_()
            self.remembered["start"] = self.watch.start
        if held == self.held:
            return
        for name, old in list(self.remembered.items()):
            if name == "moved":
                nothing = Stack(old.layout, [x.new_zeros(1, x.shape[1]) for x in old.blocks])
                self.remembered[name] = metrics.followed(old, self.held, nothing)
            elif name != "start":
                self.remembered[name] = metrics.followed(old, self.held, local[name.removeprefix("rates ")])
        self.held = held

    def _averaged(self, t: int, watch: metrics.Watch) -> Iterator[Measured]:
        before = watch.start
        for look in watch.seen:
            values = {k: v for k, v in vars(look).items() if k != "step"}
            yield Measured(t, "alignment", {k: [_plain(v)] for k, v in values.items()})
        watch.seen.clear()
        watch.after()  # pseudo-gradients count from here
        self.remembered["start"] = watch.start
        if "spectrum" in self.names:
            moved = watch.start - before
            yield self._spectrum(t, moved)
            self.remembered["moved"] = moved

    @torch.no_grad()
    def _spectrum(self, t: int, moved: Stack) -> Measured:
        """Of every matrix's change from average to average, at the first of its holders that is up."""
        found: dict[str, dict[str, list[float | None]]] = {}
        for name in moved.names():
            block = moved.layout.blocks[moved.layout.place[name][0]]
            worker = next((w for w in block.everywhere if self.trainer.fleet.up[w]), block.everywhere[0])
            if worker not in block.holders or moved[name].dim() != 3:
                continue
            matrix = moved.cell(name, worker)
            if not matrix.any():
                continue
            U, S = _leading(matrix)
            values = found.setdefault(name, {})
            values[f"{name} rank"] = [float(metrics.numerical_rank(S, 1e-6))]
            values[f"{name} singular values"] = list(map(_plain, S[:DIRECTIONS].tolist()))
            before = self.remembered["moved"].cell(name, worker) if "moved" in self.remembered else None
            if before is not None and before.any():
                values[f"{name} basis similarity"] = [metrics.basis_similarity(_leading(before)[0], U)]
        parts = self.trainer.world.all_gather_json(found)
        return Measured(t, "spectrum", {k: v for n in moved.names() for p in parts for k, v in p.get(n, {}).items()})

    def _every(self, t: int) -> Iterator[Measured]:
        trainer, world = self.trainer, self.trainer.world
        if "gradients" in self.names:
            norms = {"all": metrics.gradient_norms(trainer)}
            norms |= metrics.norms_by_group(trainer.state.grads, trainer.recipe.num_workers)
            told = world.all_gather_by_worker({w: [_plain(x[w]) for x in norms.values()] for w in trainer.fleet.mine})
            yield Measured(t, "gradients", dict(zip(norms, map(list, zip(*told.values(), strict=True)), strict=True)))
        if "rates" in self.names:
            yield from self._rates(t)
        if "activations" in self.names and world.first:
            yield Measured(
                t, "activations", {k or "model": [_plain(v)] for k, v in metrics.activations(trainer).items()}
            )
        if "noise" in self.names:
            yield Measured(t, "noise", {"sequences": [_plain(metrics.noise(trainer))]})

    def _rates(self, t: int) -> Iterator[Measured]:
        local, layout = self.trainer.state.local, self.trainer.fleet.layout
        here: dict[str, tuple[float, float]] = {}
        for name, stack in local.items():
            if f"rates {name}" in self.remembered:
                here[name] = metrics.changed(stack, self.remembered[f"rates {name}"])
            if stack.layout is layout:
                self.remembered[f"rates {name}"] = stack.clone()
        parts = self.trainer.world.all_gather_json(here)
        names = dict.fromkeys(name for p in parts for name in p)
        sums = {n: [sum(x) for x in zip(*(p[n] for p in parts if n in p), strict=True)] for n in names}
        if sums:
            yield Measured(t, "rates", {k: [_plain((a / b) ** 0.5) if b else None] for k, (a, b) in sums.items()})


def _leading(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """The leading directions, and all singular values."""
    U, S, _ = torch.linalg.svd(matrix.cpu().double(), full_matrices=False)
    return U[:, :DIRECTIONS], S


def _plain(x: float) -> float | None:
    return float(x) if math.isfinite(x) else None
