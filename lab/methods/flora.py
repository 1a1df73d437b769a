"""FLoRA (Wang et al. 2024, arXiv 2409.05976): adapters are stacked instead of averaged, and merged into the model.

[p_1·A_1; …; p_K·A_K] and [B_1, …, B_K] have the product Σ p_k·B_k·A_k exactly, whatever the ranks are.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from pydantic import Field
from torch import Tensor

from lab.engine.comm import Communicator
from lab.engine.optim import AdamW, Optimizer
from lab.engine.stack import clip_
from lab.engine.state import Grad, State, numeric
from lab.ground.config import Period, Positive, config
from lab.ground.seeds import generator
from lab.methods.lora_factors import samples, stacked
from lab.methods.lora_rounds import adapters_of, add_to_base_, agreed_base, hand_in, open_, pairs_of, start_
from lab.methods.registry import method
from lab.methods.rounds import Weight, fetching
from lab.models.lora import fresh_A


@method("flora", server=True)
@config
class FLoRA:
    """Each round: new adapters (A random, B = 0) are trained and handed in; W₀ ← W₀ + s·Σ p_k·B_k·A_k at everybody.

    The weights p_k stand at the A's alone. Rank accumulates over the rounds, since every round adds to W₀.

    Sends: ``params``, Σ r_k·(d_in + d_out) up; down the whole stack to every client, which grows with the number of clients.
    A client that missed a round fetches the merged maps themselves (``base``; ours: the source has no absences). New
    adapters follow from a seed and are not sent. State: merged maps ``base`` and the round's first adapter in ``shared``.

    After a round the server's adapter is zero: everything is in ``base``, and all prefixes are one model.
    """

    sync_every: Period = 16
    inner: Optimizer = Field(default_factory=lambda: AdamW(lr=3e-3))
    weight: Weight = "samples"
    max_norm: Positive | None = 1.0
    init_seed: int = 0  # of the new adapters

    @property
    def averages(self) -> tuple[str, ...]:
        return ()

    def exceptions(self) -> dict[str, str]:
        return {"schedule": "every round begins with adapters drawn anew, whatever the schedule says"}

    def init(self, s: State) -> None:
        adapters = open_(s, self.inner, "reset", products=True)
        s.shared["base"] = agreed_base(s.fleet, [f"{t}.weight" for t in adapters.targets])

    def step(self, s: State, grad: Grad, comm: Communicator, t: int) -> Tensor:
        begins = (t - 1) % self.sync_every == 0
        if s.returned:
            comm.broadcast_(s.shared["base"], s.shared["base"], "base", to=s.returned)
        to = fetching(s, t, self.sync_every)
        s.local["params"].copy_(s.shared["params"], [w in to for w in range(s.fleet.num_workers)])
        start_(s, to, "reset", at_round=begins)
        loss_W = grad(s)
        clip_(s.grads, self.max_norm)
        self.inner.step_(s, t)
        if t % self.sync_every == 0 and any(s.fleet.up):
            self.merge_(s, comm, t)
        return loss_W

    @torch.no_grad()
    def merge_(self, s: State, comm: Communicator, t: int) -> None:
        handed, adapters = hand_in(s, comm), adapters_of(s)
        p = samples(s.samples_W, list(handed), self.weight)
        stack: dict[str, Tensor] = {}
        for target in adapters.targets:
            pairs = pairs_of(s, handed, target)
            A, B = stacked([pairs[k] for k in pairs], [p[k] for k in pairs])
            stack |= {f"{target}.lora_A": A.to(s.fleet.dtype), f"{target}.lora_B": B.to(s.fleet.dtype)}
        received = next(iter(comm.hand_out(dict.fromkeys(handed, stack), "params").values()), {})
        self._begin_anew_(s, received, t)

    @numeric
    def _begin_anew_(self, s: State, received: Mapping[str, Tensor], t: int) -> None:
        """W₀ takes in what was handed out (to a process whose workers are all down: nothing), and the adapter is a new one."""
        adapters = adapters_of(s)
        for target in adapters.targets:
            if received:
                product = received[f"{target}.lora_B"] @ received[f"{target}.lora_A"]
                add_to_base_(s, target, product, adapters.scale)
            A, B = adapters.agreed(s.shared["params"], target)
            new = fresh_A(adapters.lora, adapters.rank, A, generator(self.init_seed, "flora", t, target))
            adapters.put_(s.shared["params"], target, new, torch.zeros_like(B))
