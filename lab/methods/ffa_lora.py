"""FFA-LoRA (Sun et al. 2024, arXiv 2403.12313): A is frozen at its first value, only B is trained and averaged.

With one A₀ for all, B̄·A₀ = Σ p_k·B_k·A₀: the mean of the factors is the mean of the products, and half the bytes suffice.
"""

from __future__ import annotations

from pydantic import Field
from torch import Tensor

from lab.engine.comm import Communicator
from lab.engine.optim import AdamW, Optimizer
from lab.engine.stack import clip_
from lab.engine.state import Grad, State
from lab.ground.config import Period, Positive, config
from lab.methods.lora_rounds import fetch_, mean_of_holders, open_
from lab.methods.registry import method
from lab.methods.rounds import InnerStates, Weight


@method("ffa_lora", server=True, trains_B_alone=True, bounded=True)
@config
class FFALoRA:
    """B̄ = Σ p_k·B_k, column by column over the clients that have the column (that ranks may differ is ours).

    Needs ``lora.train="B"``: A is then part of the frozen model, known to all from the seed. It is not sent, and no
    optimizer keeps state for it.

    Sends: ``params``, Σ r_k·d_out each way. State: the server's B in ``shared``; inner states local. Options as in `FedIT`.
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
        open_(s, self.inner, self.inner_states, train="B")

    def step(self, s: State, grad: Grad, comm: Communicator, t: int) -> Tensor:
        fetch_(s, comm, t, self.sync_every, self.inner_states)
        loss_W = grad(s)
        clip_(s.grads, self.max_norm)
        self.inner.step_(s, t)
        if t % self.sync_every == 0:
            mean_of_holders(s, comm, self.weight)
        return loss_W
