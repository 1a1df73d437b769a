"""A method as a user brings it. Importing this registers it: tests do so inside of `tests.support.parts.with_own_method` alone."""

from __future__ import annotations

from torch import Tensor

from lab.engine.comm import Communicator
from lab.engine.optim import AdamW, Optimizer
from lab.engine.state import Grad, State
from lab.ground.config import Period, config
from lab.methods import method


@method("own_average")
@config
class OwnAverage:
    """Local steps, and a mean of the parameters every so many."""

    sync_every: Period = 4
    inner: Optimizer = AdamW(lr=1e-2)

    @property
    def averages(self) -> tuple[str, ...]:
        return ("params",)

    def init(self, s: State) -> None:
        s.optimizers["inner"] = self.inner.over(s.local["params"], s.grads)

    def step(self, s: State, grad: Grad, comm: Communicator, t: int) -> Tensor:
        loss_W = grad(s)
        self.inner.step_(s, t)
        if t % self.sync_every == 0:
            comm.mean_(s.local["params"], "params")
        return loss_W
