"""How far the workers are from each other, and from what they agreed on last: looked at just before they agree again."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from lab.events import Drifted
from lab.fleet import Stack
from lab.methods import State
from lab.parts import part

GAP = 4  # local steps between two looks; one costs a small model about a hundredth of a step (`bench/watching.py`)


class DriftWatch:
    """Looks at ``params`` at evaluations, and when a method is about to average them, unless it did so a few steps ago."""

    def __init__(self, state: State):
        self.state, self.new = state, list[Drifted]()
        self.looked = 0  # at which step
        self.averaged = 0  # the step of the last look before an average

    def before_average(self, state: str, t: int, evaluated: bool) -> None:
        if state == "params" and (evaluated or not self.averaged or t >= self.averaged + GAP):
            self.averaged = t
            self.look(t)

    def look(self, t: int) -> None:
        """Write down the distances of this moment, unless that was done in this step already."""
        if t == self.looked:
            return
        self.looked = t
        params, shared, up = self.state.local["params"], self.state.shared, self.state.fleet.up
        agreed = [s for name, s in shared.items() if name.split(".")[0] == "params"]  # whole, or by fragments
        pairs = [(part(params, s.names()) if s.layout is not params.layout else params, s) for s in agreed]
        self.new.append(Drifted(t, root_W(*squares_W([(params, None)], up)), root_W(*squares_W(pairs, up))))


def root_W(square_W: list[float], count_W: list[int]) -> list[float | None]:
    return [math.sqrt(s / n) if n else None for s, n in zip(square_W, count_W, strict=True)]


@torch.no_grad()
def squares_W(pairs: Sequence[tuple[Stack, Stack | None]], up: Sequence[bool]) -> tuple[list[float], list[int]]:
    """Squared distance of every worker that is up from an agreed stack (or from the mean of them), and over how many numbers."""
    square_W, count_W = [0.0] * len(up), [0] * len(up)
    for stack, agreed in pairs:
        for i, (block, copies) in enumerate(zip(stack.layout.blocks, stack.blocks, strict=True)):
            rows = stack.rows(i, up)
            if not rows:
                continue
            to = agreed.blocks[i][0] if agreed else (copies if len(rows) == len(copies) else copies[rows]).mean(0)
            for row in rows:
                apart = (copies[row] - to).to(torch.promote_types(copies.dtype, torch.float32))
                square_W[block.holders[row]] += float(apart @ apart)
                count_W[block.holders[row]] += len(to)
    return square_W, count_W
