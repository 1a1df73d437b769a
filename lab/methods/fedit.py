"""FedIT (Zhang et al. 2023, arXiv 2305.05644): FedAvg of adapters, the factors averaged one by one. All ranks are equal."""

from __future__ import annotations

from pydantic import Field
from torch import Tensor

from lab.engine.comm import Communicator
from lab.engine.optim import AdamW, Optimizer
from lab.engine.stack import clip_
from lab.engine.state import Grad, State
from lab.ground.config import Period, Positive, config
from lab.methods.lora_rounds import fetch_, mean_of_holders, need_equal_ranks, open_
from lab.methods.registry import method
from lab.methods.rounds import InnerStates, Weight


@method("fedit", server=True, equal_ranks=True, bounded=True)
@config
class FedIT:
    """Ā = Σ p_k·A_k and B̄ = Σ p_k·B_k after every round. Biased, because B̄·Ā is not Σ p_k·B_k·A_k.

    Sends: ``params`` (A and B of every client), up at the end of a round and down at its beginning: r·(d_in + d_out) per
    adapted map each way. State: the server's adapter in ``shared``; inner states local.

    sync_every
        local steps of a round.
    weight
        p_k by ``samples`` (the number of the client's examples) or ``uniform``.
    inner_states
        ``reset``: a client begins every round with a fresh optimizer, as code that starts a trainer anew does; ``kept``.
    """

    sync_every: Period = 16
    inner: Optimizer = Field(default_factory=lambda: AdamW(lr=3e-3))
    weight: Weight = "samples"
    inner_states: InnerStates = "reset"
    max_norm: Positive | None = 1.0

    @property
    def averages(self) -> tuple[str, ...]:
        return ("params",)

    def init(self, s: State) -> None:
        need_equal_ranks(self, open_(s, self.inner, self.inner_states))

    def step(self, s: State, grad: Grad, comm: Communicator, t: int) -> Tensor:
        fetch_(s, comm, t, self.sync_every, self.inner_states)
        loss_W = grad(s)
        clip_(s.grads, self.max_norm)
        self.inner.step_(s, t)
        if t % self.sync_every == 0:
            mean_of_holders(s, comm, self.weight)
        return loss_W
