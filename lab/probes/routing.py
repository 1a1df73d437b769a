"""Probe of the routers of a mixture of experts: where they send tokens, and how evenly.

Legend: W workers, L layers, E experts of a layer, N tokens, k choices of each (a slot is one choice of one token).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lab.engine.checkpoint import Piece, Rows
from lab.engine.comm import Meeting
from lab.engine.stack import Block, for_sums
from lab.events import Event, Routed, Saturated
from lab.probes.evaluation import Evaluator
from lab.probes.probe import Agreed, Probe, Setup

UNKNOWN = -1.0
PROBE_WINDOWS = 8  # validation windows on which the agreed model's choices are followed
CHOICES, DIVERGENCE = "watch/choices", "watch/divergence"  # in checkpoints
DEAD = 0.01  # an expert is dead below this share of a uniform load


@dataclass(frozen=True)
class Balance:
    """How evenly slots are spread over the experts that a router knows."""

    cv: float  # standard deviation ÷ mean of the load: 0 is even
    max_over_mean: float  # of the busiest expert: 1 is even
    dead: int  # experts with less than 1 % of a uniform load


def balance(load_E: Sequence[int | None]) -> Balance:
    """Return how evenly the slots of one layer are spread. Experts that the router does not know (None) do not count."""
    load = np.array([x for x in load_E if x is not None], dtype=float)
    mean = load.mean() if len(load) else 0.0
    if not mean:
        return Balance(float("nan"), float("nan"), len(load))
    return Balance(float(load.std() / mean), float(load.max() / mean), int((load < DEAD * mean).sum()))


class RoutingProbe(Probe):
    """Follows the routers of a run: the workers' in their last batch, the agreed model's on a fixed probe batch.

    What it remembers (the agreed model's choices at every look, two bytes each, and how far each worker's experts had come away) goes
    into checkpoints.
    """

    def __init__(self, setup: Setup, table: Sequence[Sequence[Sequence[int]]]):
        assert setup.data is not None
        self.setup, self.fleet, self.world, self.evaluator = setup, setup.fleet, setup.world, Evaluator(setup)
        self.probe = torch.cat([ids for ids, _ in setup.data.validation])[:PROBE_WINDOWS]  # [windows, T] token ids
        self.num_layers, self.num_experts = len(table), len(table[0])
        self.steps: list[int] = []
        self.choices: list[Tensor] = []  # of each look, [L, N, k] int16
        # What each worker here adds to the mean over holders; UNKNOWN where nobody knows.
        self.divergence_WLE = torch.full(
            (len(self.fleet.mine), self.num_layers, self.num_experts), UNKNOWN, dtype=torch.float64
        )

    def due(self, t: int) -> bool:
        return t % self.setup.recipe.routing_every == 0

    @torch.no_grad()
    def before_average(self, meeting: Meeting) -> None:
        """How far the copies of each expert have come apart: ‖copy − mean‖ / ‖mean‖, mean over the holders that are up."""
        stack, mean = meeting.stack, meeting.mean
        if meeting.state != "params" or mean is None or not stack.layout.place.keys() <= self.fleet.layout.place.keys():
            return  # of numbers that are drawn from all tensors nobody can say which expert's they are
        for i, (block, copies, average) in enumerate(zip(stack.layout.blocks, stack.blocks, mean.blocks, strict=True)):
            rows, num = stack.rows(i, self.fleet.up), sum(self.fleet.up[w] for w in block.everywhere)
            if block.group != "experts" or num < 2:
                continue
            column, cells = _cells(block)
            apart = _sums(copies[rows] - average, column, len(cells)).sqrt()  # [rows, cells]
            size = _sums(average, column, len(cells)).sqrt()  # [1, cells]
            part_W = torch.zeros(
                len(self.fleet.mine), len(cells), dtype=torch.float64
            )  # who holds it no more adds nothing
            part_W[[self.fleet.mine.index(block.holders[row]) for row in rows]] = (apart / size).double().cpu() / num
            layers, experts = zip(*cells, strict=True)
            self.divergence_WLE[:, list(layers), list(experts)] = part_W

    def after_step(self, t: int, agreed: Agreed) -> Iterator[Event]:
        if self.due(t):
            with self.evaluator.precision():
                routed = self.look(t, agreed.model() if agreed.gather_() else None)
            yield routed

    def ended(self, t: int) -> Iterator[Event]:
        if self.steps:
            yield self.saturated(t)

    @torch.no_grad()
    def look(self, t: int, agreed: nn.Module | None) -> Routed:
        """After local step ``t``. ``agreed``: the whole model, in eval mode, at the first process."""
        churn_L: list[float | None] = [None] * self.num_layers
        agreed_load: list[list[int]] = []
        self.steps.append(t)
        if agreed is not None:
            agreed(self.probe)
            chosen = torch.stack([r.selected for r in agreed.routing()]).to(torch.int16)  # type: ignore[operator]
            if self.choices:
                both = self._common(self.choices[-1], chosen)  # [L, N]
                churn_L = (1 - both / (2 * chosen.shape[-1] - both)).mean(1).tolist()
            self.choices.append(chosen)
            agreed_load = [torch.bincount(c.flatten().long(), minlength=self.num_experts).tolist() for c in chosen]
        mine: dict[int, list[Any]] = {}  # of each worker here: load, ghosts, entropy
        for worker in [w for w in self.fleet.mine if self.fleet.up[w]]:
            layers = self.fleet.modules[worker].routing()  # type: ignore[operator]
            of_worker = [(self._load(r), _ghost_fraction(r), _entropy(r.mean_gate)) for r in layers]
            mine[worker] = [list(parts) or None for parts in zip(*of_worker, strict=True)]
        known = self.world.all_gather_by_worker(mine)
        load, ghosts, entropy = (
            [known[w][k] if known.get(w) else None for w in range(self.fleet.num_workers)] for k in range(3)
        )
        return Routed(t, load, ghosts, entropy, agreed_load, churn_L, self._divergence())

    def _divergence(self) -> list[list[float | None]]:
        known = self.divergence_WLE != UNKNOWN
        here = zip((self.divergence_WLE * known).sum(0).tolist(), known.any(0).tolist(), strict=True)
        parts = self.world.all_gather_json(
            [[x if is_known else None for x, is_known in zip(*row, strict=True)] for row in here]
        )
        cells = ([[p[layer][e] for p in parts] for e in range(self.num_experts)] for layer in range(self.num_layers))
        return [[sum(x for x in c if x is not None) if c.count(None) < len(c) else None for c in row] for row in cells]

    def saturated(self, t: int) -> Saturated:
        """Called at the end: the share of the final choices that each look already had."""
        if not self.choices:  # it is the first process that looks
            return Saturated(t, list(self.steps), [])
        last = self.choices[-1]
        overlap = [(self._common(c, last) / last.shape[-1]).mean(1).tolist() for c in self.choices]
        return Saturated(t, list(self.steps), overlap)

    def json(self) -> dict[str, Any]:
        return {"watch": {"steps": self.steps}}

    def load_json(self, values: dict[str, Any], step: int) -> None:
        self.steps = list(values["watch"]["steps"])
        before = values["watch"].get("divergence")  # of a checkpoint that does not know whose part is whose
        if before is not None and self.world.first:
            self.divergence_WLE[0] = torch.tensor(
                [[UNKNOWN if x is None else x for x in row] for row in before], dtype=torch.float64
            )

    def tensors(self) -> Sequence[Piece]:
        apart = Piece(DIVERGENCE, self.divergence_WLE, list(self.fleet.mine), self.fleet.num_workers)
        return [apart, *([Piece(CHOICES, torch.stack(self.choices))] if self.choices else [])]

    def wanted(self, keys: Sequence[str]) -> dict[str, Rows]:
        found: dict[str, Rows] = {CHOICES: None} if CHOICES in keys and self.world.first else {}
        return found | ({DIVERGENCE: list(self.fleet.mine)} if DIVERGENCE in keys else {})

    def load_tensors(self, tensors: Mapping[str, Tensor], step: int) -> None:
        if DIVERGENCE in tensors:
            self.divergence_WLE = tensors[DIVERGENCE].clone()
        self.choices = list(tensors[CHOICES]) if CHOICES in tensors else []

    def forget(self) -> None:
        """Drop earlier looks, which were at other text."""
        self.steps, self.choices = [], []

    def _common(self, a: Tensor, b: Tensor) -> Tensor:
        """Return how many choices two looks share, by layer and token, ``[L, N]``."""
        return (a[..., :, None] == b[..., None, :]).sum((-1, -2)).double()

    def _load(self, routing: Any) -> list[int | None]:
        slots = torch.bincount(routing.selected.flatten(), minlength=self.num_experts).tolist()
        known = set(routing.known)
        return [n if e in known else None for e, n in enumerate(slots)]


def _ghost_fraction(routing: Any) -> float:
    """Share of slots whose expert is not resident."""
    present = torch.isin(routing.selected, torch.tensor(routing.resident))
    return 1.0 - float(present.double().mean())


def _entropy(gate_E: Tensor) -> float:
    """Return the entropy of the mean gate over the experts that the router knows; 1 = uniform."""
    p = gate_E.double() / gate_E.double().sum()
    return float(-(p * p.clamp_min(1e-300).log()).sum() / np.log(len(p))) if len(p) > 1 else 1.0


def _cells(block: Block) -> tuple[Tensor, list[tuple[int, int]]]:
    """Which (layer, expert) each column of a block of experts belongs to: an index ``[P]`` into the list."""
    names: dict[tuple[int, int], int] = {}
    parts = []
    for name, shape in zip(block.names, block.shapes, strict=True):
        path = name.split(".")  # blocks.3.moe.experts.17.up
        cell = names.setdefault((int(path[1]), int(path[4])), len(names))
        parts.append(torch.full((shape.numel(),), cell))
    return torch.cat(parts), list(names)


def _sums(x: Tensor, column: Tensor, num_cells: int) -> Tensor:
    """Squares of ``x [rows, P]`` summed within each cell, ``[rows, cells]``."""
    squares = for_sums(x).square()
    return squares.new_zeros(len(x), num_cells).index_add_(1, column.to(x.device), squares)
