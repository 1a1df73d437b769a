"""Which worker holds which expert (FoMoE, arXiv 2606.19025, section 3 and algorithm 1).

A placement is *biregular*: in every layer each expert lives on exactly O_e workers and each worker holds exactly
N_le = N_e·O_e/M distinct experts. It is plain data, ``workers_LE[layer][expert]``: the workers that hold the expert, ascending.

Legend: M workers, L layers, E = N_e experts of a layer, O_e the overlap factor.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from pydantic import Field

from lab.ground.config import Period, RecipeView, config
from lab.ground.errors import RecipeError
from lab.ground.seeds import generator

Table = list[list[list[int]]]  # [layer][expert] -> workers, ascending


@config
class Placement:
    """How the experts of a mixture lie over the workers.

    overlap
        O_e, the workers that hold an expert; None puts every expert on every worker (full replicas).
    kind
        ``fixed``: one table for the whole run. ``random``: a new one every ``every`` rounds, if the method moves experts.
    every
        T, rounds between two random tables (the paper's experiments: 1).
    layers
        whether all layers share one map (``alike``, the default when fixed: the same few groups of workers for all) or
        each layer has its own (``apart``, the default when random).
    warmup
        local steps in which the learning rate of an expert that moved rises from 0 to the others'; None: one round.

    The paper leaves open how tables are made, whether layers share them, and how long the warm-up is; these are ours.
    """

    overlap: int | None = Field(default=None, ge=1)
    kind: Literal["fixed", "random"] = "fixed"
    every: Period = 1
    layers: Literal["alike", "apart"] | None = None
    warmup: int | None = Field(default=None, ge=0)

    def check(self, recipe: RecipeView) -> None:
        """Raises RecipeError where the model has no experts, no table exists, or nothing would move."""
        _, num_experts = recipe.model.layers_and_experts
        if not num_experts:
            if self.overlap is not None or self.kind == "random":
                given = f"overlap = {self.overlap}" if self.overlap else "kind = 'random'"
                raise RecipeError(
                    f"placement.{given} is for models with experts: choose one, for example model=moe-nano, or set placement={{}}"
                )
            return
        self.check_table(num_experts, recipe.num_workers)
        if self.kind == "random" and self.overlap is None:
            raise RecipeError(
                "placement.kind = 'random' moves nothing while every worker holds every expert: set placement.overlap, "
                f"for example to {max(1, recipe.num_workers // 2)}"
            )

    def check_table(self, num_experts: int, num_workers: int) -> None:
        """Raises RecipeError where no biregular table exists."""
        if self.kind == "fixed" and (self.every != 1 or self.warmup is not None):
            raise RecipeError(
                "placement.every and placement.warmup are for experts that move: set placement.kind=random, or leave them out"
            )
        if self.overlap is None:
            return
        if self.overlap > num_workers:
            raise RecipeError(
                f"placement.overlap = {self.overlap} asks for more workers than there are: at most num_workers = {num_workers}"
            )
        if num_experts * self.overlap % num_workers:
            least = num_workers // math.gcd(num_experts, num_workers)
            fitting = [str(o) for o in range(least, num_workers + 1, least)[:8]]
            raise RecipeError(
                f"placement.overlap = {self.overlap} does not fit: {num_experts} experts × {self.overlap} copies cannot be "
                f"shared out evenly over {num_workers} workers; use an overlap of {', '.join(fitting)}, "
                "or other model.num_experts"
            )

    def moves(self, num_workers: int) -> bool:
        """Whether experts ever change workers."""
        return self.kind == "random" and self.overlap not in (None, num_workers)

    def table(self, num_layers: int, num_experts: int, num_workers: int, seed: int, draw: int = 0) -> Table:
        """The ``draw``-th table of a run; the same for the same seed. Fixed placements have only the 0-th."""
        overlap = num_workers if self.overlap is None else self.overlap
        if not self.moves(num_workers):
            draw = 0
        apart = self.layers == "apart" or (self.layers is None and self.kind == "random")
        maps: list[list[list[int]]] = []
        for layer in range(num_layers if apart else 1):
            if self.kind == "fixed" and layer == 0:
                maps.append(fixed_map(num_experts, overlap, num_workers))
            else:
                maps.append(random_map(num_experts, overlap, num_workers, generator(seed, "placement", draw, layer)))
        return maps if apart else maps * num_layers


def fixed_map(num_experts: int, overlap: int, num_workers: int) -> list[list[int]]:
    """One layer's map without chance: the experts, O_e times over, are dealt to the workers in runs of N_le.

    Two copies of an expert are N_e ≥ N_le cards apart, so no worker gets both. Where O_e divides M this makes M/O_e
    groups of workers with equal experts: the fewest and cheapest collectives.
    """
    each = num_experts * overlap // num_workers
    workers_E: list[list[int]] = [[] for _ in range(num_experts)]
    for card in range(num_experts * overlap):
        workers_E[card % num_experts].append(card // each)
    return workers_E


def random_map(num_experts: int, overlap: int, num_workers: int, g: torch.Generator) -> list[list[int]]:
    """One layer's map by chance: a dealt one with experts and workers renamed, then mixed by exchanging pairs.

    Renaming alone makes every (expert, worker) pair equally likely; the exchanges, which keep the map biregular, break
    up the groups.
    """
    expert = torch.randperm(num_experts, generator=g).tolist()
    worker = torch.randperm(num_workers, generator=g).tolist()
    held = [set[int]() for _ in range(num_experts)]
    for e, workers in enumerate(fixed_map(num_experts, overlap, num_workers)):
        held[expert[e]] = {worker[w] for w in workers}
    if overlap < num_workers:
        pairs = torch.randint(num_experts, (2 * num_experts * overlap, 2), generator=g).tolist()
        picks = torch.rand(len(pairs), 2, dtype=torch.float32, generator=g).tolist()
        for (a, b), (x, y) in zip(pairs, picks, strict=True):
            only_a, only_b = sorted(held[a] - held[b]), sorted(held[b] - held[a])
            if only_a and only_b:
                wa, wb = only_a[int(x * len(only_a))], only_b[int(y * len(only_b))]
                held[a] ^= {wa, wb}
                held[b] ^= {wa, wb}
    return [sorted(workers) for workers in held]


def resident(table: Table, worker: int) -> list[list[int]]:
    """The experts that a worker holds, by layer."""
    return [[e for e, workers in enumerate(workers_E) if worker in workers] for workers_E in table]


def moved(before: Table, after: Table) -> int:
    """Copies of experts that are somewhere in ``after`` where they were not ``before``."""
    pairs = zip(before, after, strict=True)
    return sum(len(set(a) - set(b)) for old, new in pairs for b, a in zip(old, new, strict=True))


class Experts:
    """The placement of one run: which table is in force."""

    def __init__(self, placement: Placement, num_layers: int, num_experts: int, num_workers: int, seed: int):
        placement.check_table(num_experts, num_workers)
        self.placement = placement
        self._shape = (num_layers, num_experts, num_workers, seed)
        self.draw = 0
        self.table = placement.table(*self._shape)
        self.moved = 0  # copies that changed worker with this table

    @property
    def movable(self) -> bool:
        return self.placement.moves(self._shape[2])

    @property
    def holders(self) -> dict[str, list[int]]:
        """Workers by unit: ``"3.17"`` is expert 17 of layer 3."""
        return {f"{layer}.{e}": ws for layer, by_expert in enumerate(self.table) for e, ws in enumerate(by_expert)}

    def redraw_(self, t: int, round_steps: int) -> bool:
        """Take the table of the round that begins with local step ``t``, if one begins there and it has a new one."""
        rounds, into = divmod(t - 1, round_steps)
        if not self.movable or into or rounds % self.placement.every:
            return False
        return self.take_(rounds // self.placement.every)

    def take_(self, draw: int) -> bool:
        """Take the ``draw``-th table."""
        if draw == self.draw:
            return False
        before, self.table = self.table, self.placement.table(*self._shape, draw)
        self.draw, self.moved = draw, moved(before, self.table)
        return True

    def warmup(self, round_steps: int) -> int:
        """Local steps in which a moved expert's learning rate rises."""
        return round_steps if self.placement.warmup is None else self.placement.warmup
