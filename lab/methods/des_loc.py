"""DES-LOC (arXiv 2505.22549, ICLR 2026): each optimizer state is synchronised on its own period."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Literal

from pydantic import Field
from torch import Tensor

from lab.engine.comm import Communicator
from lab.engine.optim import AdamW, Optimizer
from lab.engine.outer import init_outer, outer_step_
from lab.engine.stack import clip_
from lab.engine.state import Grad, State
from lab.ground.config import Period, Positive, RecipeView, config, unused
from lab.ground.seeds import uniform
from lab.methods.registry import method, never_synced


@method("des_loc")
@config
class DESLOC:
    """Parameters are averaged every K_x local steps, the first moment every K_u, the second every K_v.

    Sends: each state on its own period. State: all local; with ``outer`` also agreed parameters and outer momentum.

    The paper lists "average the old state, then update" at steps t ≡ 0 (mod K) counted from 0; its authors' code averages
    after the optimizer step. The two are the same rule shifted by one step; this is the second.

    sync_every
        local steps between two averages, by state: ``params`` and any state of ``inner`` under torch's name. A state that
        is not named stays local. Default K_u = 3·K_x, K_v = 6·K_x, the paper's choice when in doubt (half the bytes of
        Local Adam). `suggest_periods` applies the half-life rule.
    outer
        optional outer optimizer on the averaged parameters (the paper's ServerOpt; Nesterov lr 1.0, momentum 0.9 there).
    max_norm, clip
        ``norm``: each worker's gradient norm (the paper's runs, 1.0); ``value``: each coordinate (its theory).
    coin_seed
        the form that the paper analyses: instead of every K-th step, each state is averaged with probability 1/K in
        every step, by a coin that all workers share. None (the default) keeps fixed periods.
    """

    sync_every: dict[str, Period] = Field(default_factory=lambda: {"params": 32, "exp_avg": 96, "exp_avg_sq": 192})
    inner: Optimizer = Field(default_factory=lambda: AdamW(lr=3e-3))
    outer: Optimizer | None = None
    max_norm: Positive | None = 1.0
    clip: Literal["norm", "value"] = "norm"
    coin_seed: int | None = None

    def __post_init__(self) -> None:
        self.inner.check_periods(self.sync_every)

    @property
    def averages(self) -> tuple[str, ...]:
        return tuple(self.sync_every)

    def notes(self, recipe: RecipeView) -> Iterator[str]:
        if self.coin_seed is None:
            yield from never_synced(self.sync_every, recipe.steps)
        if self.max_norm is None:
            yield from unused(self, ("clip",), "method.max_norm", "method.")

    def init(self, s: State) -> None:
        s.optimizers["inner"] = self.inner.over(s.local["params"], s.grads)
        if self.outer is not None:
            init_outer(s, self.outer)

    def step(self, s: State, grad: Grad, comm: Communicator, t: int) -> Tensor:
        loss_W = grad(s)
        clip_(s.grads, self.max_norm, self.clip)
        self.inner.step_(s, t)
        for i, (name, period) in enumerate(self.sync_every.items()):
            if not self._due(t, i, period):
                continue
            if name == "params" and self.outer is not None:
                outer_step_(s, comm)
            else:
                comm.mean_(s.local[name], name)
        return loss_W

    def _due(self, t: int, i: int, period: int) -> bool:
        if self.coin_seed is None:
            return t % period == 0
        return uniform(self.coin_seed, "coin", t, i) < 1 / period


def half_life(beta: float, left: float = 0.5) -> float:
    """Steps after which a state with decay ``beta`` keeps the fraction ``left`` of an old value: ln(left) / ln(beta)."""
    return math.log(left) / math.log(beta)


def suggest_periods(sync_params: int, betas: tuple[float, float] = (0.9, 0.95)) -> tuple[dict[str, int], str]:
    """Periods by the half-life rule (DES-LOC, appendix I), and the reasons in words.

    A state need not be averaged more often than its half-life, nor more often than the parameters.

    Returns
    -------
    the periods for ``sync_every``, and an explanation of several lines.
    """
    lines = [f"params every {sync_params} steps: your choice (16–32 for quality, 256 for very slow links)."]
    periods = {"params": sync_params}
    for name, label, beta, in_doubt in (
        ("exp_avg", "first moment", betas[0], 3),
        ("exp_avg_sq", "second moment", betas[1], 6),
    ):
        life = half_life(beta)
        periods[name] = max(sync_params, round(life))
        lines.append(
            f"{name} every {periods[name]} steps: the {label} with β = {beta} keeps half of an old value for {life:.1f} steps; "
            + (
                "averaging it more often would send what has hardly changed."
                if periods[name] > sync_params
                else "it forgets faster than the parameters travel, so it need not travel more often than they do. "
                f"When in doubt the paper takes {in_doubt} × the period of params ({in_doubt * sync_params})."
            )
        )
    saved = 3 / sync_params / sum(1 / p for p in periods.values())
    lines.append(f"Together {saved:.2f} times fewer bytes than Local Adam with one period of {sync_params}.")
    return periods, "\n".join(lines)
