"""NoLoCo (Kolehmainen et al. 2025, arXiv 2506.10911): no all-reduce, only random pairs of workers that pull each other closer."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from lab.engine.comm import Communicator
from lab.engine.optim import AdamW, Optimizer
from lab.engine.stack import Stack, clip_
from lab.engine.state import Grad, State, numeric
from lab.ground.config import Fraction, Period, Positive, RecipeView, config
from lab.ground.seeds import generator
from lab.methods.registry import method, never_synced


@method("noloco")
@config
class NoLoCo:
    """Every ``sync_every`` local steps worker i, with slow weights φ_i and Δ_i = θ_i − φ_i, talks to a random partner:

    m_i = μ·m_i + η·mean(Δ) + γ·(mean(φ) − φ_i);  φ_i = φ_i + m_i;  θ_i = φ_i,  with means over the group of two.

    Sends: within each group ``params`` (as Δ) and ``slow`` (φ), once per round: twice DiLoCo's payload, but no exchange
    waits for more than one other worker. Who has no partner (an odd number of workers are up) sends nothing. State, all
    local: inner states, ``slow``, ``velocity`` (m). Workers never agree exactly; γ keeps them close. What is evaluated is
    the mean of the workers' parameters. What is personal takes its local steps alone.

    sync_every
        50 in the authors' code (100 for their DiLoCo).
    lr, momentum, pull
        η = 0.7, μ = 0.5 and γ: the authors' code uses γ = η.
    group_size
        2. With all workers in one group and γ = 0 this is DiLoCo with heavy-ball momentum.
    pair_seed
        decides the partners, together with the step.

    The paper's second ingredient, routing through shuffled pipeline stages, is not part of this: here every worker holds
    the whole model.
    """

    sync_every: Period = 50
    inner: Optimizer = Field(default_factory=lambda: AdamW(lr=3e-3))
    lr: Positive = 0.7
    momentum: Fraction = 0.5
    pull: Annotated[float, Field(ge=0)] = 0.7
    group_size: Annotated[int, Field(ge=2)] = 2
    max_norm: Positive | None = 1.0
    pair_seed: int = 0

    @property
    def averages(self) -> tuple[str, ...]:
        return ("params", "slow")

    def notes(self, recipe: RecipeView) -> Iterator[str]:
        yield from never_synced(self.sync_every, recipe.steps)
        if self.group_size > recipe.num_workers:
            yield (
                f"method.group_size = {self.group_size:,} is more than the {recipe.num_workers} workers, who form one group: "
                "all average with all"
            )

    def exceptions(self) -> dict[str, str]:
        return {"relabelling": "who is paired with whom is drawn by the numbers of workers"}

    def init(self, s: State) -> None:
        params = s.local["params"]
        s.optimizers["inner"] = self.inner.over(params, s.grads)
        s.local["slow"] = params.clone()
        s.local["velocity"] = params.zeros_like()

    def step(self, s: State, grad: Grad, comm: Communicator, t: int) -> Tensor:
        loss_W = grad(s)
        clip_(s.grads, self.max_norm)
        self.inner.step_(s, t)
        if t % self.sync_every == 0:
            theta, phi = s.local["params"], s.local["slow"]
            moved = theta - phi
            up = [w for w, is_up in enumerate(s.fleet.up) if is_up]
            for members in groups(up, self.group_size, self.pair_seed, t):
                participants = [w in members for w in range(s.fleet.num_workers)]
                if len(members) > 1:
                    delta = comm.mean(moved, "params", participants=participants)
                    slow = comm.mean(phi, "slow", participants=participants)
                else:
                    delta, slow = comm.agreed(moved, participants), comm.agreed(phi, participants)
                self._pull_(s, delta, slow, participants)
        return loss_W

    @numeric
    def _pull_(self, s: State, delta: Stack, slow: Stack, participants: list[bool]) -> None:
        theta = s.local["params"]
        for i, (x, f, m) in enumerate(zip(*(s.local[k].blocks for k in ("params", "slow", "velocity")), strict=True)):
            rows = s.local["slow"].rows(i, participants) if not theta.layout.blocks[i].personal else []
            d, mean = ((y if len(y) == 1 else y[rows]) for y in (delta.blocks[i], slow.blocks[i]))
            m[rows] = self.momentum * m[rows] + self.lr * d + self.pull * (mean - f[rows])
            f[rows] += m[rows]
            x[rows] = f[rows]


def groups(workers: list[int], size: int, seed: int, t: int) -> list[list[int]]:
    """A random partition into groups of ``size`` (the last may be smaller): the same for the same seed and step."""
    order = torch.randperm(len(workers), generator=generator(seed, "pairs", t)).tolist()
    return [sorted(workers[i] for i in order[k : k + size]) for k in range(0, len(order), size)]
