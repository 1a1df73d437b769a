"""How far the workers are from each other, and from what they agreed on last: looked at just before they agree again."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from lab.engine.comm import Meeting
from lab.engine.stack import Stack
from lab.events import Drifted
from lab.probes.probe import Agreed, Probe, Setup

GAP = 4  # local steps between two looks; one costs a small model about a hundredth of a step (`bench/watching.py`)
TOGETHER = 2**20  # numbers whose distances are taken at once


class DriftProbe(Probe):
    """Looks at ``params`` at evaluations, and between them when a method averages all of them, unless it did so lately.

    Where a method makes another mean than the plain one of all workers (of a fragment, of a pair, weighted, through a codec, at
    a server) it is looked at in steps with an evaluation only: over several processes the plain mean would have to travel just
    for that, and one process tells the same story as many.
    """

    def __init__(self, setup: Setup):
        self.setup, self.state, self.comm = setup, setup.state, setup.comm
        self.new: list[Drifted] = []
        self.looked = 0  # at which step
        self.averaged = 0  # the step of the last look before an average

    def before_average(self, meeting: Meeting) -> None:
        t = self.comm.t
        whole = meeting.plain and meeting.stack is self.state.local["params"]
        due = self.setup.evaluates(t) or (whole and (not self.averaged or t >= self.averaged + GAP))
        if meeting.state == "params" and due:
            self.averaged = t
            self.look(t, meeting.mean if whole else None)

    def by_worker(self, t: int, agreed: Agreed) -> Iterable[Drifted]:
        if self.setup.evaluates(t):
            self.look(t, None if self.state.served else agreed.here)
        new, self.new = self.new, []
        return new

    def json(self) -> dict[str, Any]:
        return {"drift": self.averaged}

    def load_json(self, values: dict[str, Any], step: int) -> None:
        self.averaged = values.get("drift", step)

    def look(self, t: int, mean: Stack | None = None) -> None:
        """Record the distances, unless that was done in this step already.

        ``mean`` is that of the workers that are up, where it is known; else it is made, which travels and is not counted. Each
        process knows the distances of its own workers.
        """
        if t == self.looked:
            return
        self.looked = t
        params, shared, up = self.state.local["params"], self.state.shared, self.state.fleet.up
        mean = mean if mean is not None else self.comm.agreed(params)
        agreed = [s for name, s in shared.items() if name.split(".")[0] == "params"]  # whole, or by fragments
        if self.state.served:
            agreed = [self.comm.world.sync_server_state(s) for s in agreed]
        pairs = [(params.select(s.names()) if s.layout is not params.layout else params, s) for s in agreed]
        self.new.append(Drifted(t, root_W(*squares_W([(params, mean)], up)), root_W(*squares_W(pairs, up))))


def root_W(square_W: list[float], count_W: list[int]) -> list[float | None]:
    """Return root mean squares per worker, ``[W]``; None where there is no distance."""
    return [math.sqrt(s / n) if n and math.isfinite(s) else None for s, n in zip(square_W, count_W, strict=True)]


@torch.no_grad()
def squares_W(pairs: Sequence[tuple[Stack, Stack]], up: Sequence[bool]) -> tuple[list[float], list[int]]:
    """Squared distance of every worker here that is up from an agreed stack, and over how many numbers; nobody agrees on personal ones."""
    square_W, count_W = [0.0] * len(up), [0] * len(up)
    for stack, agreed in pairs:
        for i, (block, copies) in enumerate(zip(stack.layout.blocks, stack.blocks, strict=True)):
            rows = [] if block.personal else stack.rows(i, up)
            if not rows:  # as where another process holds all of them
                continue
            for row, apart in zip(rows, distances(copies, agreed.blocks[i][0], rows), strict=True):
                square_W[block.holders[row]] += apart * apart
                count_W[block.holders[row]] += block.numel
    return square_W, count_W


def distances(copies: Tensor, agreed: Tensor, rows: Sequence[int]) -> list[float]:
    """Norm of each of these rows less the agreed one; of small ones together, as one by one they take longer than their numbers."""
    wide, together = torch.promote_types(copies.dtype, torch.float32), max(1, TOGETHER // len(agreed))
    some = copies.split(together) if len(rows) == len(copies) else (copies[row, None] for row in rows)
    return [x for part in some for x in torch.linalg.vector_norm((part - agreed).to(wide), dim=1).tolist()]
