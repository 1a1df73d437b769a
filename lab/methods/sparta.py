"""SPARTA (Beton et al. 2025, openreview stFPf3gzq1): a small random part of the parameters is averaged in every step."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from lab.engine.comm import Communicator
from lab.engine.optim import AdamW, Optimizer
from lab.engine.outer import init_outer, outer_step_
from lab.engine.stack import Layout, Stack, clip_
from lab.engine.state import Grad, State, numeric
from lab.ground.config import Period, Positive, RecipeView, config, unused
from lab.ground.seeds import generator
from lab.methods.registry import method, never_synced


@method("sparta")
@config
class SPARTA:
    """In every ``sync_every``-th local step a fraction of all numbers, drawn afresh, becomes its mean over the workers.

    Sends: the drawn numbers of ``params``; which ones they are follows from the seed and the step, so that no positions
    travel. With ``outer``, in every ``outer_every``-th step also the whole of ``params`` (as pseudo-gradients), as in
    DiLoCo, which the paper combines it with. State: inner states local; with ``outer`` shared parameters and momentum.

    fraction
        0.005 in the authors' code, 0.0005 to 0.005 in the paper. At least one number of each block is drawn, and exactly
        round(fraction · size) of it, where the code tosses a coin per number. 1 averages everything.
    outer_every
        local steps between two steps of ``outer``; a run that is shorter has none. Ours.
    draw_seed
        decides the positions, together with the step.

    The paper sends while training goes on, up to 10 steps late; here what is drawn is averaged at once.
    """

    sync_every: Period = 1
    fraction: Annotated[float, Field(gt=0, le=1)] = 0.005
    inner: Optimizer = Field(default_factory=lambda: AdamW(lr=3e-3))
    outer: Optimizer | None = None
    outer_every: Period = 1000
    max_norm: Positive | None = 1.0
    draw_seed: int = 0

    @property
    def averages(self) -> tuple[str, ...]:
        return ("params",)

    def notes(self, recipe: RecipeView) -> Iterator[str]:
        yield from never_synced(self.sync_every, recipe.steps)
        if self.outer is None:
            yield from unused(self, ("outer_every",), "method.outer", "method.")
        elif self.outer_every > recipe.steps:
            yield (
                f"method.outer_every = {self.outer_every:,} is longer than the {recipe.steps:,} steps of the run: "
                "method.outer takes no step"
            )

    def init(self, s: State) -> None:
        s.optimizers["inner"] = self.inner.over(s.local["params"], s.grads)
        if self.outer is not None:
            init_outer(s, self.outer)

    def step(self, s: State, grad: Grad, comm: Communicator, t: int) -> Tensor:
        loss_W = grad(s)
        clip_(s.grads, self.max_norm)
        self.inner.step_(s, t)
        if t % self.sync_every == 0:
            self._average_some_(s, comm, t)
        if self.outer is not None and t % self.outer_every == 0:
            outer_step_(s, comm)
        return loss_W

    def _average_some_(self, s: State, comm: Communicator, t: int) -> None:
        params, blocks = s.local["params"], s.local["params"].layout.blocks
        num = [max(1, round(self.fraction * b.numel)) for b in blocks]
        shapes = {str(i): torch.Size([k]) for i, k in enumerate(num)}  # the numbers drawn of block i are one tensor
        holders = {str(i): b.everywhere for i, b in enumerate(blocks)}
        own = lambda i: blocks[int(i)].personal  # noqa: E731
        layout = Layout.of(holders, shapes, lambda i: blocks[int(i)].group, mine=params.layout.mine, personal=own)
        some, drawn = Stack.zeros(layout, s.fleet.device, s.fleet.dtype), list[Tensor]()
        self._take_(params, some, drawn, t)
        comm.mean_(some, "params")
        self._put_back_(params, some, drawn)

    @numeric
    def _take_(self, params: Stack, some: Stack, drawn: list[Tensor], t: int) -> None:
        """Draw ``positions`` in each block, and copy the numbers there."""
        for i, (x, values) in enumerate(zip(params.blocks, some.blocks, strict=True)):
            drawn.append(positions(x.shape[1], values.shape[1], self.draw_seed, t, i))
            values.copy_(x[:, drawn[i]])

    @numeric
    def _put_back_(self, params: Stack, some: Stack, drawn: list[Tensor]) -> None:
        for x, values, index in zip(params.blocks, some.blocks, drawn, strict=True):
            x[:, index] = values


def positions(size: int, num: int, seed: int, t: int, block: int) -> Tensor:
    """Which ``num`` of ``size`` numbers are averaged in step ``t``: the same at every worker. O(size)."""
    order = torch.randperm(size, generator=generator(seed, "positions", t, block), device="cpu")
    return order[:num].sort().values
