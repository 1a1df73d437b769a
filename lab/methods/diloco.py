"""DiLoCo (Douillard et al. 2023, arXiv 2311.08105): many inner AdamW steps, then one outer Nesterov step."""

from __future__ import annotations

from pydantic import Field
from torch import Tensor

from lab.engine.comm import Communicator
from lab.engine.optim import AdamW, Nesterov, Optimizer
from lab.engine.outer import init_outer, outer_step_
from lab.engine.stack import clip_
from lab.engine.state import Grad, State
from lab.ground.config import Period, Positive, config
from lab.methods.registry import method


@method("diloco")
@config
class DiLoCo:
    """Every ``sync_every`` (H) local steps the mean pseudo-gradient Δ = shared − local drives an outer optimizer.

    Sends: ``params`` (as pseudo-gradients), once per round. The outer step is the same arithmetic at every worker, so
    nothing comes back but the mean. State: inner states local and kept; ``shared`` parameters and outer momentum agreed.

    Defaults: outer Nesterov 0.7 / 0.9 from the paper, whose H is 500; here 32, since the models are small.
    """

    sync_every: Period = 32
    inner: Optimizer = Field(default_factory=lambda: AdamW(lr=3e-3))
    outer: Optimizer = Field(default_factory=Nesterov)
    max_norm: Positive | None = 1.0

    @property
    def averages(self) -> tuple[str, ...]:
        return ("params",)

    def init(self, s: State) -> None:
        s.optimizers["inner"] = self.inner.over(s.local["params"], s.grads)
        init_outer(s, self.outer)

    def step(self, s: State, grad: Grad, comm: Communicator, t: int) -> Tensor:
        loss_W = grad(s)
        clip_(s.grads, self.max_norm)
        self.inner.step_(s, t)
        if t % self.sync_every == 0:
            outer_step_(s, comm)
        return loss_W
