"""FedEx-LoRA (Singhal et al. 2024, arXiv 2410.09432): the factors are averaged, and what that leaves out goes into W₀."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from pydantic import Field
from torch import Tensor

from lab.engine.comm import Communicator
from lab.engine.optim import AdamW, Optimizer
from lab.engine.stack import at_least_float32, clip_
from lab.engine.state import Grad, State, numeric
from lab.ground.config import Period, Positive, config
from lab.methods.lora_factors import mean, samples, stacked
from lab.methods.lora_rounds import (
    adapters_of,
    add_to_base_,
    agreed_base,
    hand_in,
    need_equal_ranks,
    open_,
    pairs_of,
    start_,
)
from lab.methods.registry import method
from lab.methods.rounds import InnerStates, Weight, fetching


@method("fedex_lora", server=True, equal_ranks=True)
@config
class FedExLoRA:
    """Ā = Σ p_k·A_k, B̄ = Σ p_k·B_k, and W₀ ← W₀ + s·(Σ p_k·B_k·A_k − B̄·Ā), so that the product is averaged exactly.

    Sends: ``params``, r·(d_in + d_out) per client and map up; down all clients' factors, from which the means and the
    residual (of rank K·r) both follow: K times as much. A client that missed a round fetches the maps with their residuals
    (``base``) and the adapter. State: ``base`` and the server's adapter in ``shared``; inner states local.

    weight
        p_k: ``uniform`` as in the source, or by ``samples``.
    """

    sync_every: Period = 16
    inner: Optimizer = Field(default_factory=lambda: AdamW(lr=3e-3))
    weight: Weight = "uniform"
    inner_states: InnerStates = "reset"
    max_norm: Positive | None = 1.0

    @property
    def averages(self) -> tuple[str, ...]:
        return ()

    def init(self, s: State) -> None:
        adapters = open_(s, self.inner, self.inner_states, products=True)
        need_equal_ranks(self, adapters)
        s.shared["base"] = agreed_base(s.fleet, [f"{t}.weight" for t in adapters.targets])

    def step(self, s: State, grad: Grad, comm: Communicator, t: int) -> Tensor:
        begins = (t - 1) % self.sync_every == 0
        if s.returned:
            comm.broadcast_(s.shared["base"], s.shared["base"], "base", to=s.returned)
            comm.broadcast_(s.shared["params"], s.local["params"], "params", to=s.returned)
        to = fetching(s, t, self.sync_every)
        s.local["params"].copy_(s.shared["params"], [w in to for w in range(s.fleet.num_workers)])  # known already
        start_(s, to, self.inner_states, at_round=begins)
        loss_W = grad(s)
        clip_(s.grads, self.max_norm)
        self.inner.step_(s, t)
        if t % self.sync_every == 0 and any(s.fleet.up):
            self.aggregate_(s, comm)
        return loss_W

    @torch.no_grad()
    def aggregate_(self, s: State, comm: Communicator) -> None:
        handed, adapters = hand_in(s, comm), adapters_of(s)
        p = samples(s.samples_W, list(handed), self.weight)
        stack: dict[str, Tensor] = {}
        for target in adapters.targets:
            pairs = pairs_of(s, handed, target)
            A, B = stacked([pairs[k] for k in pairs], [p[k] for k in pairs])
            stack |= {f"{target}.lora_A": A.to(s.fleet.dtype), f"{target}.lora_B": B.to(s.fleet.dtype)}
        received = next(iter(comm.hand_out(dict.fromkeys(handed, stack), "params").values()), {})
        if received:
            self._take_in_(s, received, p)

    @numeric
    def _take_in_(self, s: State, received: Mapping[str, Tensor], p: Mapping[int, float]) -> None:
        """The means and the residual, from the factors of all clients."""
        adapters = adapters_of(s)
        for target in adapters.targets:
            wide = at_least_float32(s.fleet.dtype)
            A, B = received[f"{target}.lora_A"].to(wide), received[f"{target}.lora_B"].to(wide)
            halves = zip(A.chunk(len(p)), B.chunk(len(p), 1), p.values(), strict=True)
            parts = [(a, b * weight) for a, b, weight in halves]  # the weights stand at the A's alone
            mean_A, mean_B = mean(parts, [1.0] * len(p))
            add_to_base_(s, target, B @ A - mean_B @ mean_A, adapters.scale)
            adapters.put_(s.shared["params"], target, mean_A, mean_B)
