"""raFLoRA (arXiv 2602.13486): FlexLoRA with each rank partition averaged over the clients that reach it.

Weights that ignore the rank let the energy of the global update gather in the smallest shared rank (*rank collapse*).
"""

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


@method("raflora", server=True)
@config
class RaFLoRA:
    """ΔW = Σ_h ΔW_h over the partitions (l, h] of the ranks, ΔW_h = Σ_{k: r_k ≥ h} (n_k / N_h)·B_k[:, l:h]·A_k[l:h], with
    N_h = Σ_{k: r_k ≥ h} n_k; then the SVD to r_max, of which clients take their prefix.

    Partitions and r_max come from the ranks of all clients, not of those who take part. A partition that nobody who takes
    part reaches contributes nothing.

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
        for target in adapters.targets:
            pairs = pairs_of(s, handed, target)
            parts, weights = [], []
            for low, high in adapters.segments():
                reach = [k for k in pairs if adapters.ranks_W[k] >= high]
                p = samples(s.samples_W, reach, self.weight)  # n_k / N_h
                parts += [(pairs[k][0][low:high], pairs[k][1][:, low:high]) for k in reach]
                weights += [p[k] for k in reach]
            product = stacked(parts, weights)
            if product[1].any():
                adapters.put_(s.shared["params"], target, *refactored(product, adapters.rank))
