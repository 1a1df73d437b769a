"""FlexLoRA (Bai et al. 2024, arXiv 2402.11505): the server averages products, and gives each client its best truncation."""

from __future__ import annotations

from pydantic import Field
from torch import Tensor

from lab.engine.comm import Communicator
from lab.engine.optim import AdamW, Optimizer
from lab.engine.stack import clip_
from lab.engine.state import Grad, State, numeric
from lab.engine.world import Named
from lab.ground.config import Period, Positive, config
from lab.methods.lora_factors import refactored, samples, stacked
from lab.methods.lora_rounds import adapters_of, fetch_, hand_in, open_, pairs_of
from lab.methods.registry import method
from lab.methods.rounds import InnerStates, Weight


@method("flexlora", server=True)
@config
class FlexLoRA:
    """ΔW = Σ p_k·s_k·B_k·A_k = U·Σ·Vᵀ; client i goes on from B_i = U[:, :r_i]·Σ / s, A_i = Vᵀ[:r_i].

    The server keeps the pair of the largest rank; a client's truncation is its prefix. ΔW itself is never made: a QR
    decomposition of the stacked factors leaves a small core for the SVD.

    Sends: ``params``, Σ r_k·(d_in + d_out) each way. State: the server's adapter in ``shared``; inner states local.
    Options as in `FedIT`. Where no client has moved yet (all B are zero) the first A stays, since an SVD of zero says nothing.
    """

    sync_every: Period = 16
    inner: Optimizer = Field(default_factory=lambda: AdamW(lr=3e-3))
    weight: Weight = "samples"
    inner_states: InnerStates = "reset"
    max_norm: Positive | None = 1.0

    @property
    def averages(self) -> tuple[str, ...]:
        return ()

    def init(self, s: State) -> None:
        open_(s, self.inner, self.inner_states, products=True)

    def step(self, s: State, grad: Grad, comm: Communicator, t: int) -> Tensor:
        fetch_(s, comm, t, self.sync_every, self.inner_states)
        loss_W = grad(s)
        clip_(s.grads, self.max_norm)
        self.inner.step_(s, t)
        if t % self.sync_every == 0 and any(s.fleet.up):
            self.aggregate_(s, hand_in(s, comm))
        return loss_W

    @numeric
    def aggregate_(self, s: State, handed: Named) -> None:
        """At the server, of what clients have handed in."""
        adapters = adapters_of(s)
        p = samples(s.samples_W, list(handed), self.weight)
        for target in adapters.targets:
            pairs = pairs_of(s, handed, target)
            product = stacked([pairs[k] for k in pairs], [p[k] for k in pairs])
            if product[1].any():
                adapters.put_(s.shared["params"], target, *refactored(product, adapters.rank))
