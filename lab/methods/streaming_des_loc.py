"""Streaming DES-LOC, a variant in the code of DES-LOC's authors: each state on its own period, a fragment at a time, while training goes on."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from lab.engine.comm import Communicator
from lab.engine.optim import AdamW, Optimizer
from lab.engine.stack import Stack, clip_
from lab.engine.state import Grad, State
from lab.ground.config import Fraction, Period, Positive, RecipeView, config
from lab.methods.fragments import Pattern, check_times, fragments, mix_, outer_step_, why_fixed
from lab.methods.registry import method, never_synced


@method("streaming_des_loc")
@config
class StreamingDESLOC:
    """The tensors form P fragments; of each state each fragment is averaged once in the state's period, at its own time.

    What is averaged is what workers have τ steps before it arrives; meanwhile they train on. When it arrives, of the parameters a part α of a
    worker's own is kept, θ_p = α·θ_p + (1 − α)·mean_p; with α = 0, as in the authors' code, the mean takes the place of the τ steps that were
    made meanwhile. Moments are replaced by their mean. With ``outer`` the pseudo-gradient of a fragment travels, as in Streaming DiLoCo.

    Sends: the due fragment of each state, on the state's own period; the largest step sends one fragment of each. State: all local, the average
    that is on its way (``pending.exp_avg.0`` …, with τ > 0), and with ``outer`` shared parameters and outer momentum by fragment.

    sync_every
        periods by state, as in DES-LOC. With period H, fragment p arrives when t ≡ ⌊H·(p + 1)/P⌋ (mod H): the last at the end of a period.
    num_fragments, pattern
        P fragments of whole layers; what is in no layer lies in the first, where there are layers for all (`fragments`). ``pattern`` is as in
        Streaming DiLoCo [inferred].
    overlap, mix
        τ and α. With P = 1, τ = 0, α = 0 this is DES-LOC. That α is of the parameters alone is our choice [inferred].
    outer
        optional outer optimizer on the fragments of the parameters.

    There is no paper of it; facts from the first author's public torchtitan fork. As in all methods here, all that is due in a step is averaged or
    nothing of it is: a step in which a site is lost is not part of the run (`lab.processes.deadline`), which is what that code reaches by committing
    all due states together.
    """

    sync_every: dict[str, Period] = Field(default_factory=lambda: {"params": 32, "exp_avg": 96, "exp_avg_sq": 192})
    num_fragments: Period = 2
    pattern: Pattern = "strided"
    overlap: Annotated[int, Field(ge=0)] = 1
    mix: Fraction = 0.0
    inner: Optimizer = Field(default_factory=lambda: AdamW(lr=3e-3))
    outer: Optimizer | None = None
    max_norm: Positive | None = 1.0

    def __post_init__(self) -> None:
        self.inner.check_periods(self.sync_every)
        shortest = min(self.sync_every, key=self.sync_every.__getitem__)
        check_times(self.num_fragments, self.overlap, self.sync_every[shortest], f"sync_every.{shortest}")

    @property
    def averages(self) -> tuple[str, ...]:
        return tuple(self.sync_every)

    def fixed_periods(self, recipe: RecipeView) -> str | None:
        return why_fixed("streaming_des_loc", self.overlap)

    def notes(self, recipe: RecipeView) -> Iterator[str]:
        yield from never_synced(self.sync_every, recipe.steps)

    def exceptions(self) -> dict[str, str]:
        if self.overlap and self.mix < 1:
            return {"plain optimizer": "what arrives replaces the steps that were made meanwhile"}
        return {"plain optimizer": "it has an outer step"} if self.outer is not None else {}

    def init(self, s: State) -> None:
        s.optimizers["inner"] = self.inner.over(s.local["params"], s.grads)
        for p, names in enumerate(self._fragments(s)):
            like = s.local["params"].select(names).first()
            if self.outer is not None:
                s.shared[f"params.{p}"] = like
                s.optimizers[f"outer.{p}"] = self.outer.over(like)
            for state in self.sync_every if self.overlap else ():
                s.shared[f"pending.{state}.{p}"] = like.zeros_like()

    def step(self, s: State, grad: Grad, comm: Communicator, t: int) -> Tensor:
        loss_W = grad(s)
        clip_(s.grads, self.max_norm)
        self.inner.step_(s, t)
        for state, period in self.sync_every.items():
            for p in range(self.num_fragments):
                if self._arrives(p, t + self.overlap, period):
                    mean = self._mean(s, comm, state, p)
                    if self.overlap and any(s.fleet.up):
                        torch._foreach_copy_(s.shared[f"pending.{state}.{p}"].blocks, mean.blocks)
                        s.facts[f"pending.{state}.{p}"] = True
                if self._arrives(p, t, period) and any(s.fleet.up):
                    if not self.overlap:
                        self._arrive_(s, state, p, mean)
                    elif s.facts.pop(f"pending.{state}.{p}", False):
                        self._arrive_(s, state, p, s.shared[f"pending.{state}.{p}"])
        return loss_W

    def _mean(self, s: State, comm: Communicator, state: str, p: int) -> Stack:
        minus = s.shared[f"params.{p}"] if state == "params" and self.outer is not None else None
        return comm.mean(s.local[state].select(self._fragments(s)[p]), state, minus=minus)

    @torch.no_grad()
    def _arrive_(self, s: State, state: str, p: int, mean: Stack) -> None:
        """Every worker that is up takes what has arrived of one fragment of one state."""
        if state != "params":
            mix_(s, state, mean, keep=0.0)
        else:
            mix_(s, state, mean if self.outer is None else outer_step_(s, p, mean), self.mix)

    def _fragments(self, s: State) -> list[list[str]]:
        return fragments(s.local["params"].names(), self.num_fragments, self.pattern, "first")

    def _arrives(self, p: int, t: int, period: int) -> bool:
        return t > self.overlap and (t - period * (p + 1) // self.num_fragments) % period == 0
