"""Zero-padding: clients of different rank, their factors filled up with zeros to the largest rank and averaged.

The straightforward way to let ranks differ, and the one that most comparisons call HetLoRA. Rank index j is averaged over
all clients though only those of rank j or more have it, so that it shrinks by N_j / N in every round.
"""

from __future__ import annotations

from pydantic import Field
from torch import Tensor

from lab.engine.comm import Communicator
from lab.engine.optim import AdamW, Optimizer
from lab.engine.stack import clip_
from lab.engine.state import Grad, State
from lab.ground.config import Period, Positive, config
from lab.methods.lora_rounds import coverage, fetch_, mean_of_holders, open_
from lab.methods.registry import method
from lab.methods.rounds import InnerStates, Weight


@method("zero_padding", server=True, bounded=True)
@config
class ZeroPadding:
    """Ā = Σ p_k·pad(A_k), B̄ = Σ p_k·pad(B_k); a client goes on from its prefix of both.

    Nothing is padded here, as nobody sends zeros: the mean over the holders of a segment times N_j / N is the same number.

    Sends: ``params``, Σ r_k·(d_in + d_out) each way. State: the server's adapter in ``shared``; inner states local.
    Options as in `FedIT`.
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
        open_(s, self.inner, self.inner_states)

    def step(self, s: State, grad: Grad, comm: Communicator, t: int) -> Tensor:
        fetch_(s, comm, t, self.sync_every, self.inner_states)
        loss_W = grad(s)
        clip_(s.grads, self.max_norm)
        self.inner.step_(s, t)
        if t % self.sync_every == 0 and any(s.fleet.up):
            mean_of_holders(s, comm, self.weight)
            diluted = zip(s.shared["params"].blocks, coverage(s, self.weight), strict=True)
            s.shared["params"].blocks = [x * share for x, share in diluted]
        return loss_W
