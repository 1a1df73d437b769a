"""Local Adam: parameters and optimizer states are averaged together (the baseline that DES-LOC halves)."""

from __future__ import annotations

from pydantic import Field
from torch import Tensor

from lab.engine.comm import Communicator
from lab.engine.optim import AdamW, Optimizer
from lab.engine.stack import clip_
from lab.engine.state import Grad, State
from lab.ground.config import Period, Positive, config
from lab.methods.registry import method


@method("local_adam")
@config
class LocalAdam:
    """Every ``sync_every`` local steps parameters and every optimizer state become their mean over the workers.

    Sends: ``params`` and each state of the inner optimizer, once per round: three times the bytes of FedAvg for Adam.
    State: all local. With ``inner`` ADOPT this is Local ADOPT.
    """

    sync_every: Period = 32
    inner: Optimizer = Field(default_factory=lambda: AdamW(lr=3e-3))
    max_norm: Positive | None = 1.0

    @property
    def averages(self) -> tuple[str, ...]:
        return ("params", *self.inner.state_names)

    def init(self, s: State) -> None:
        s.optimizers["inner"] = self.inner.over(s.local["params"], s.grads)

    def step(self, s: State, grad: Grad, comm: Communicator, t: int) -> Tensor:
        loss_W = grad(s)
        clip_(s.grads, self.max_norm)
        self.inner.step_(s, t)
        if t % self.sync_every == 0:
            for name in ("params", *self.inner.state_names):
                comm.mean_(s.local[name], name)
        return loss_W
