"""HetLoRA (Cho et al. 2024, arXiv 2401.06432): clients of different rank that prune their rank, weighted by what they found."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from lab.engine.comm import Communicator
from lab.engine.optim import AdamW, Optimizer
from lab.engine.stack import Stack, clip_
from lab.engine.state import Grad, Loss, State, numeric
from lab.engine.world import Named
from lab.ground.config import Fraction, Period, Positive, config
from lab.methods.lora_factors import Pair, cells, mean, padded, product_norm, shares
from lab.methods.lora_rounds import adapters_of, open_, rescale_, start_
from lab.methods.registry import method
from lab.methods.rounds import InnerStates, fetching
from lab.models.lora import adapters as adapters_in
from lab.models.lora import cut_to


@method("hetlora", server=True, own_loss=True)
@config
class HetLoRA:
    """Clients train F_k + λ·‖B_k[:, γ·r_k:]‖·‖A_k[γ·r_k:]‖; if that tail shrank in a round, r_k ← ⌊γ·r_k⌋.

    The server averages zero-padded factors with weights p_k = ‖B_k·A_k‖ / Σ ‖B_j·A_j‖ (Frobenius norms over all adapted
    maps), and each client goes on from its prefix.

    Sends: ``params``, Σ r_k·(d_in + d_out) each way with the ranks of that moment, so that a dry run, which cannot know who
    prunes, counts the most that it can be. State: the server's adapter in ``shared``; inner states and ranks local. A rank
    that was pruned is neither trained nor sent any more, but its memory is not given back.

    gamma
        γ, 0.99 in the source; 1: nobody prunes.
    decay
        λ of the regulariser (0.01 in third-party code; the source's value could not be read).

    From second-hand descriptions. Norms of the tail are summed over the adapted maps (not given).
    """

    sync_every: Period = 16
    inner: Optimizer = Field(default_factory=lambda: AdamW(lr=3e-3))
    gamma: Annotated[Fraction, Field(gt=0)] = 0.99
    decay: Annotated[float, Field(ge=0)] = 0.01
    inner_states: InnerStates = "reset"
    max_norm: Positive | None = 1.0

    @property
    def averages(self) -> tuple[str, ...]:
        return ()

    def exceptions(self) -> dict[str, str]:
        return (
            {"dry run": "who prunes hangs on values: a plan counts the most that it can be"} if self.gamma < 1 else {}
        )

    def init(self, s: State) -> None:
        adapters = open_(s, self.inner, self.inner_states, products=True)
        s.facts |= {"ranks": list(adapters.ranks_W), "tails": [0.0] * len(adapters.ranks_W)}
        s.facts["pruned"] = {}  # ranks of clients that have pruned, by client, where who sits in a row changes

    def step(self, s: State, grad: Grad, comm: Communicator, t: int) -> Tensor:
        self.fetch_(s, comm, t)
        loss_W = grad(s, self.regularised(s))
        clip_(s.grads, self.max_norm)
        self.inner.step_(s, t)
        if t % self.sync_every == 0 and any(s.fleet.up):
            self.aggregate_(s, comm)
        return loss_W

    def fetch_(self, s: State, comm: Communicator, t: int) -> None:
        """The server's adapter, cut to the rank that the client has by now."""
        to = fetching(s, t, self.sync_every)
        params, adapters, ranks = s.local["params"], adapters_of(s), s.facts["ranks"]
        if not to:
            return
        for w in to if s.clients_W else ():
            ranks[w] = s.facts["pruned"].get(str(s.clients_W[w]), adapters.ranks_W[w])
        server = [adapters.agreed(s.shared["params"], target) for target in adapters.targets]
        cut = {w: self.named(s, [(A[: ranks[w]], B[:, : ranks[w]]) for A, B in server]) for w in to}
        received = comm.hand_out(cut, "params")
        self._take_(params, {w: received[w] for w in to if w in s.fleet.mine})
        start_(s, to, self.inner_states, at_round=(t - 1) % self.sync_every == 0)
        self._measure_(s, comm, to)

    @numeric
    def _take_(self, params: Stack, received: Named) -> None:
        for w in received:
            for name, x in received[w].items():
                params.cell(name, w)[tuple(slice(n) for n in x.shape)] = x

    @numeric
    def _measure_(self, s: State, comm: Communicator, clients: list[int]) -> None:
        """All processes learn how large the tails of these clients are at the beginning of their round."""
        here = {w: float(self.tail(s.fleet.modules[w], s.facts["ranks"][w])) for w in clients if w in s.fleet.mine}
        for w, tail in comm.world.all_gather_by_worker(here).items():
            s.facts["tails"][w] = tail

    def regularised(self, s: State) -> Loss:
        """The client's loss at its present rank, with the regulariser on the tail."""
        ranks = s.facts["ranks"]

        def loss_of(module: nn.Module, worker: int, ids: Tensor, targets: Tensor) -> Tensor:
            with cut_to(module, ranks[worker]):
                loss: Tensor = module.loss(ids, targets)  # type: ignore[operator]
            return loss + self.decay * self.tail(module, ranks[worker]) if self.decay else loss

        return loss_of

    def tail(self, module: nn.Module, rank: int) -> Tensor:
        """Σ over the adapted maps of ‖B[:, γr:]‖·‖A[γr:]‖."""
        keep = math.floor(self.gamma * rank)
        factors = [a.factors(rank) for a in adapters_in(module).values()]
        return torch.stack([_norm(B[:, keep:]) * _norm(A[keep:]) for A, B in factors]).sum()

    @torch.no_grad()
    def aggregate_(self, s: State, comm: Communicator) -> None:
        params, adapters, ranks = s.local["params"], adapters_of(s), s.facts["ranks"]
        up = [w for w, u in enumerate(s.fleet.up) if u]
        self._prune_(s, comm, up)
        rescale_(s, up, up=True)
        cut: dict[int, dict[str, Tensor]] = {}
        for w in up:
            whole = [adapters.pair(cells(params, w), t, adapters.ranks_W[w]) for t in adapters.targets]
            cut[w] = self.named(s, [(A[: ranks[w]], B[:, : ranks[w]]) for A, B in whole])
        self._average_(s, comm.collect(cut, "params", of=params))

    @numeric
    def _prune_(self, s: State, comm: Communicator, clients: list[int]) -> None:
        """Clients whose tail has shrunk in this round cut it off; all processes learn of it."""
        ranks, pruned = s.facts["ranks"], dict[int, int]()
        for w in clients:
            if w in s.fleet.mine and float(self.tail(s.fleet.modules[w], ranks[w])) < s.facts["tails"][w]:
                pruned[w] = max(1, math.floor(self.gamma * ranks[w]))
        for w, rank in comm.world.all_gather_by_worker(pruned).items():
            ranks[w] = rank
            if s.clients_W:
                s.facts["pruned"][str(s.clients_W[w])] = rank

    @numeric
    def _average_(self, s: State, handed: Named) -> None:
        """At the server: the mean of what clients have handed in."""
        adapters, up = adapters_of(s), list(handed)
        pairs = {w: [_pair(named, target) for target in adapters.targets] for w, named in handed.items()}
        p = shares({w: math.sqrt(sum(product_norm(pair) ** 2 for pair in pairs[w])) for w in up})
        for i, target in enumerate(adapters.targets):
            A, B = mean([padded(pairs[w][i], adapters.rank) for w in up], [p[w] for w in up])
            adapters.put_(s.shared["params"], target, A, B)

    def named(self, s: State, pairs: list[Pair]) -> dict[str, Tensor]:
        """Factors by the names of their segments, of which the last may be cut."""
        adapters, out = adapters_of(s), dict[str, Tensor]()
        for target, (A, B) in zip(adapters.targets, pairs, strict=True):
            for m, (low, high) in enumerate(adapters.segments()):
                if low < len(A):
                    out |= {f"{target}.lora_A.{m}": A[low:high], f"{target}.lora_B.{m}": B[:, low:high]}
        return out


def _pair(named: Mapping[str, Tensor], target: str) -> Pair:
    """A and B of one map, put together from what there is of its segments."""
    A = [x for name, x in named.items() if name.startswith(f"{target}.lora_A.")]
    return torch.cat(A), torch.cat([x for name, x in named.items() if name.startswith(f"{target}.lora_B.")], 1)


def _norm(x: Tensor) -> Tensor:
    """Frobenius norm with a gradient of zero, not NaN, where ``x`` is zero."""
    return x.square().sum().clamp(min=1e-24).sqrt() if x.numel() else x.sum()
