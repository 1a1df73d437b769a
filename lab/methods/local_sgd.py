"""Local SGD / FedAvg: train locally, average the parameters now and then (McMahan et al. 2017; Stich 2019)."""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from torch import Tensor

from lab.engine.comm import Communicator
from lab.engine.optim import AdamW, Optimizer, reset_
from lab.engine.stack import clip_
from lab.engine.state import Grad, State
from lab.ground.config import Period, Positive, config
from lab.methods.registry import method


@method("local_sgd")
@config
class LocalSGD:
    """Every ``sync_every`` local steps the parameters become their mean over the workers.

    Sends: ``params``, once per round. State: inner states stay at the workers.

    ``inner_states="kept"`` (FAVG+OPT in DES-LOC's words) carries each worker's own optimizer state over the sync;
    ``"reset"`` (FAVG−OPT) starts every round with fresh ones. The inner optimizer may be any; with plain ``SGD`` this is
    Local SGD.
    """

    sync_every: Period = 32
    inner: Optimizer = Field(default_factory=lambda: AdamW(lr=3e-3))
    inner_states: Literal["kept", "reset"] = "kept"
    max_norm: Positive | None = 1.0

    def __post_init__(self) -> None:
        if self.inner_states == "reset":
            self.inner.check_reset()

    @property
    def averages(self) -> tuple[str, ...]:
        return ("params",)

    def exceptions(self) -> dict[str, str]:
        return {"plain optimizer": "its states start afresh in every round"} if self.inner_states == "reset" else {}

    def init(self, s: State) -> None:
        s.optimizers["inner"] = self.inner.over(s.local["params"], s.grads)

    def step(self, s: State, grad: Grad, comm: Communicator, t: int) -> Tensor:
        loss_W = grad(s)
        clip_(s.grads, self.max_norm)
        self.inner.step_(s, t)
        if t % self.sync_every == 0:
            comm.mean_(s.local["params"], "params")
            if self.inner_states == "reset":
                reset_(s.optimizers["inner"], s.local["params"], s.fleet.up)
        return loss_W
