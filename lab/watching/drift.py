"""How far the workers are from each other, and from what they agreed on last: looked at just before they agree again."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from lab.events import Drifted
from lab.fleet import Stack
from lab.methods import State
from lab.parts import part


class DriftWatch:
    """Looks at ``params`` when a method is about to average them, once a step. Three passes over memory, nothing is drawn."""

    def __init__(self, state: State):
        self.state, self.last, self.new = state, 0, list[Drifted]()

    def before_average(self, state: str, t: int) -> None:
        if state == "params" and t > self.last:
            self.look(t)

    def look(self, t: int) -> None:
        """Write down the distances of this moment, unless that was done in this step already."""
        if t == self.last:
            return
        self.last = t
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
                square_W[block.holders[row]] += float((copies[row] - to).square().sum(dtype=torch.float64))
                count_W[block.holders[row]] += len(to)
    return square_W, count_W
