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
``membership``     whether the agreed model's loss tells what it   a forward pass for each of at most 512 examples
                   was trained on (`lab.probes.membership`)
=================  ==============================================  ===================================================

``membership`` whenever the model is evaluated, the four before it every ``metrics_every`` local steps. The numbers of the run stay what they are.

Over several processes the values are the same. For ``alignment`` the parameters, the pseudo-gradients and the first moments of
all workers travel to the first process at each such average (more than the average itself), for ``noise`` the mean gradient
is made; for the others a few numbers. It is looking and not the method: the ledger leaves it out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from lab.engine.checkpoint import Piece, Rows, pieces_of, places, stack_of
from lab.engine.comm import Meeting
from lab.engine.stack import Stack
from lab.events import Measured
from lab.probes import metrics
from lab.probes.membership import MembershipProbe
from lab.probes.probe import Agreed, Probe, Setup

DIRECTIONS = 8  # of a basis: the leading ones of each matrix


def measures(setup: Setup) -> list[Probe]:
    """The probes that a recipe asks for."""
    names = set(setup.recipe.metrics)
    kinds: dict[str, Callable[[Setup], Probe]] = {
        "gradients": GradientsProbe,
        "rates": RatesProbe,
        "activations": ActivationsProbe,
        "noise": NoiseProbe,
        "membership": MembershipProbe,
    }
    averaged: list[Probe] = [AlignmentProbe(setup)] if names & {"alignment", "spectrum"} else []
    return averaged + [kind(setup) for name, kind in kinds.items() if name in names]


class Remembered:
    """Copies of states that the next look compares with; in checkpoints under ``measured``."""

    def __init__(self, setup: Setup, names: tuple[str, ...]):
        self.setup, self.stacks = setup, dict[str, Stack]()
        self.names = names  # what a checkpoint may have of it, or how that begins

    def tensors(self) -> Iterator[Piece]:
        for name, stack in self.stacks.items():
            yield from pieces_of(f"measured/{name}", stack)

    def wanted(self, keys: Sequence[str]) -> dict[str, Rows]:
        blocks = self.setup.fleet.layout.blocks
        parts = {key: key.split("/") for key in keys}
        return {
            key: places(blocks[int(block)])
            for key, (kind, name, block) in ((k, p) for k, p in parts.items() if len(p) == 3)
            if kind == "measured" and name.startswith(self.names)
        }

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        layout, device = self.setup.fleet.layout, self.setup.fleet.device
        for name in dict.fromkeys(key.split("/")[1] for key in self.wanted([*tensors])):
            self.stacks[name] = stack_of(f"measured/{name}", layout, tensors, device)


class AlignmentProbe(Probe):
    """``alignment`` and ``spectrum``: at every average of all parameters. The first is reported by the first process alone."""

    def __init__(self, setup: Setup):
        self.setup, self.names = setup, setup.recipe.metrics
        self.averages = metrics.Averages(setup.state, setup.comm, look="alignment" in self.names)
        self.remembered = Remembered(setup, ("start", "moved"))
        self.held = metrics.holders(setup.fleet.layout)

    def before_average(self, meeting: Meeting) -> None:
        self.averages.before_average(meeting)

    def tensors(self) -> Iterator[Piece]:
        self.remembered.stacks["start"] = self.averages.start
        return self.remembered.tensors()

    def wanted(self, keys: Sequence[str]) -> dict[str, Rows]:
        return self.remembered.wanted(keys)

    def load_tensors(self, tensors: Mapping[str, Tensor], step: int) -> None:
        self.remembered.load_tensors(tensors)
        self.held = self.averages.held = metrics.holders(self.setup.fleet.layout)
        self.averages.start = self.remembered.stacks["start"]

    def after_step(self, t: int, agreed: Agreed) -> Iterator[Measured]:
        self._follow_()
        if not self.averages.due:
            return
        before = self.averages.start
        for look in self.averages.seen:
            values = {k: v for k, v in vars(look).items() if k != "step"}
            yield Measured(t, "alignment", {k: [_plain(v)] for k, v in values.items()})
        self.averages.seen.clear()
        self.averages.after()  # pseudo-gradients count from here
        if "spectrum" in self.names:
            moved = self.averages.start - before
            yield self._spectrum(t, moved)
            self.remembered.stacks["moved"] = moved

    def _follow_(self) -> None:
        """Experts may have moved: a cell that came to its worker has not moved yet."""
        self.averages.follow_()
        held, moved = metrics.holders(self.setup.fleet.layout), self.remembered.stacks.get("moved")
        if held != self.held and moved is not None:
            nothing = Stack(moved.layout, [x.new_zeros(1, x.shape[1]) for x in moved.blocks])
            self.remembered.stacks["moved"] = metrics.followed(moved, self.held, nothing)
        self.held = held

    @torch.no_grad()
    def _spectrum(self, t: int, moved: Stack) -> Measured:
        """Spectrum of every matrix's change between two averages, at the first of its holders that is up."""
        found: dict[str, dict[str, list[float | None]]] = {}
        for name in moved.names():
            block = moved.layout.blocks[moved.layout.place[name][0]]
            worker = next((w for w in block.everywhere if self.setup.fleet.up[w]), block.everywhere[0])
            if worker not in block.holders or moved[name].dim() != 3:
                continue
            matrix = moved.cell(name, worker)
            if not matrix.any():
                continue
            U, S = _leading(matrix)
            values = found.setdefault(name, {})
            values[f"{name} rank"] = [float(metrics.numerical_rank(S, 1e-6))]
            values[f"{name} singular values"] = list(map(_plain, S[:DIRECTIONS].tolist()))
            last = self.remembered.stacks.get("moved")
            before = last.cell(name, worker) if last is not None else None
            if before is not None and before.any():
                values[f"{name} basis similarity"] = [metrics.basis_similarity(_leading(before)[0], U)]
        parts = self.setup.world.all_gather_json(found)
        return Measured(t, "spectrum", {k: v for n in moved.names() for p in parts for k, v in p.get(n, {}).items()})


class Periodic(Probe):
    """Looks every ``metrics_every`` local steps."""

    def __init__(self, setup: Setup):
        self.setup = setup

    def due(self, t: int) -> bool:
        return t % self.setup.recipe.metrics_every == 0


class RatesProbe(Periodic):
    """``rates``: how far every state has moved."""

    def __init__(self, setup: Setup):
        self.setup, self.remembered = setup, Remembered(setup, ("rates ",))
        self.held = metrics.holders(setup.fleet.layout)

    def tensors(self) -> Iterator[Piece]:
        return self.remembered.tensors()

    def wanted(self, keys: Sequence[str]) -> dict[str, Rows]:
        return self.remembered.wanted(keys)

    def load_tensors(self, tensors: Mapping[str, Tensor], step: int) -> None:
        self.remembered.load_tensors(tensors)
        self.held = metrics.holders(self.setup.fleet.layout)

    def after_step(self, t: int, agreed: Agreed) -> Iterator[Measured]:
        self._follow_()
        if not self.due(t):
            return
        local, layout, before = self.setup.state.local, self.setup.fleet.layout, self.remembered.stacks
        here: dict[str, tuple[float, float]] = {}
        for name, stack in local.items():
            if f"rates {name}" in before:
                here[name] = metrics.changed(stack, before[f"rates {name}"])
            if stack.layout is layout:
                before[f"rates {name}"] = stack.clone()
        parts = self.setup.world.all_gather_json(here)
        names = dict.fromkeys(name for p in parts for name in p)
        sums = {n: [sum(x) for x in zip(*(p[n] for p in parts if n in p), strict=True)] for n in names}
        if sums:
            yield Measured(t, "rates", {k: [_plain((a / b) ** 0.5) if b else None] for k, (a, b) in sums.items()})

    def _follow_(self) -> None:
        """Experts may have moved: what is compared for a cell that came to its worker begins there."""
        held, local = metrics.holders(self.setup.fleet.layout), self.setup.state.local
        if held != self.held:
            for name, old in list(self.remembered.stacks.items()):
                fresh = local[name.removeprefix("rates ")]
                self.remembered.stacks[name] = metrics.followed(old, self.held, fresh)
        self.held = held


class GradientsProbe(Periodic):
    """``gradients``: the norm of every worker's gradient."""

    def after_step(self, t: int, agreed: Agreed) -> Iterator[Measured]:
        if self.due(t):
            setup = self.setup
            norms = {"all": metrics.gradient_norms(setup)}
            norms |= metrics.norms_by_group(setup.state.grads, setup.recipe.num_workers)
            here = {w: [_plain(x[w]) for x in norms.values()] for w in setup.fleet.mine}
            of_all = setup.world.all_gather_by_worker(here)
            yield Measured(t, "gradients", dict(zip(norms, map(list, zip(*of_all.values(), strict=True)), strict=True)))


class ActivationsProbe(Periodic):
    """``activations`` of the first worker's model, reported by the first process alone."""

    def after_step(self, t: int, agreed: Agreed) -> Iterator[Measured]:
        if self.due(t) and self.setup.world.first:
            found = metrics.activations(self.setup)
            yield Measured(t, "activations", {k or "model": [_plain(v)] for k, v in found.items()})


class NoiseProbe(Periodic):
    """``noise``: the gradient noise scale in sequences."""

    def after_step(self, t: int, agreed: Agreed) -> Iterator[Measured]:
        if self.due(t):
            yield Measured(t, "noise", {"sequences": [_plain(metrics.noise(self.setup))]})


def _leading(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """The leading directions, and all singular values."""
    U, S, _ = torch.linalg.svd(matrix.cpu().double(), full_matrices=False)
    return U[:, :DIRECTIONS], S


def _plain(x: float) -> float | None:
    return float(x) if math.isfinite(x) else None
