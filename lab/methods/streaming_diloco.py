"""Streaming DiLoCo (Douillard et al. 2025, arXiv 2501.18512): DiLoCo a fragment at a time, while training goes on."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from lab.engine.comm import Communicator
from lab.engine.optim import AdamW, Nesterov, Optimizer
from lab.engine.stack import Stack, clip_
from lab.engine.state import Grad, State
from lab.ground.config import Fraction, Period, Positive, RecipeView, config
from lab.methods.fragments import Pattern, check_times, fragments, mix_, outer_step_, why_fixed
from lab.methods.registry import method


@method("streaming_diloco")
@config
class StreamingDiLoCo:
    """The tensors form P fragments; each has its own outer step every ``sync_every`` (H) local steps, at its own time.

    When fragment p is due, Δ_p = shared − local is averaged; ``overlap`` (τ) local steps later the outer optimizer moves
    the shared fragment by it and every worker mixes θ_p = α·θ_p + (1 − α)·shared_p. Meanwhile the workers train on.

    Sends: the due fragment of ``params`` (as pseudo-gradients); the largest step sends one fragment instead of the whole
    model. With ``codecs={"params": "e3m0"}`` payloads have four bits per number, as in the paper. State: inner states
    local and kept; shared parameters and outer momentum by fragment (``params.0`` …), and with τ > 0 the average that is
    on its way (``pending.0`` …). How much of the transfer hides behind computation is the network's ``overlap``.

    sync_every
        H; 100 in the paper, 30 in its scaling runs; here 32, since the models are small.
    num_fragments, pattern
        P fragments of whole layers: ``strided`` (layer i in fragment i mod P, the paper's choice) or ``contiguous``. A
        tensor outside of the layers counts as a layer of its own (where the paper puts those is not said). The paper
        takes three layers a fragment. Fragment p is due when (t − ⌊p·H/P⌋) mod H = 0.
    overlap, mix
        τ (1 in the paper, at most 5 advised) and α (0.5). With P = 1, τ = 0, α = 0 this is DiLoCo.
    outer
        Nesterov 0.4 / 0.9, kept over all scales in the paper.
    """

    sync_every: Period = 32
    num_fragments: Period = 2
    pattern: Pattern = "strided"
    overlap: Annotated[int, Field(ge=0)] = 1
    mix: Fraction = 0.5
    inner: Optimizer = Field(default_factory=lambda: AdamW(lr=3e-3))
    outer: Optimizer = Field(default_factory=lambda: Nesterov(0.4, 0.9))
    max_norm: Positive | None = 1.0

    def __post_init__(self) -> None:
        check_times(self.num_fragments, self.overlap, self.sync_every)

    @property
    def averages(self) -> tuple[str, ...]:
        return ("params",)

    def fixed_periods(self, recipe: RecipeView) -> str | None:
        return why_fixed("streaming_diloco", self.overlap)

    def init(self, s: State) -> None:
        s.optimizers["inner"] = self.inner.over(s.local["params"], s.grads)
        for p, names in enumerate(fragments(s.local["params"].names(), self.num_fragments, self.pattern)):
            s.shared[f"params.{p}"] = shared = s.local["params"].select(names).first()
            s.optimizers[f"outer.{p}"] = self.outer.over(shared)
            if self.overlap:
                s.shared[f"pending.{p}"] = shared.zeros_like()

    def step(self, s: State, grad: Grad, comm: Communicator, t: int) -> Tensor:
        loss_W = grad(s)
        clip_(s.grads, self.max_norm)
        self.inner.step_(s, t)
        for p in range(self.num_fragments):
            if self._due(p, t):
                shared = s.shared[f"params.{p}"]
                moved = comm.mean(s.local["params"].select(shared.names()), "params", minus=shared)  # −Δ_p
                if self.overlap and any(s.fleet.up):
                    torch._foreach_copy_(s.shared[f"pending.{p}"].blocks, moved.blocks)
            if self._due(p, t - self.overlap) and any(s.fleet.up):
                self._arrive_(s, p, s.shared[f"pending.{p}"] if self.overlap else moved)
        return loss_W

    @torch.no_grad()
    def _arrive_(self, s: State, p: int, moved: Stack) -> None:
        """The outer step of one fragment; every worker that is up mixes the result into what it has by now."""
        shared = outer_step_(s, p, moved)
        moved.zero_()  # nothing is on its way any more
        mix_(s, "params", shared, self.mix)

    def _due(self, p: int, t: int) -> bool:
        return t >= 1 and (t - p * self.sync_every // self.num_fragments) % self.sync_every == 0
