"""PreLort (arXiv 2606.15963): nested adapters across clients of different rank.

Two ingredients. A rank segment is averaged over the clients that hold it, so that high ranks are not diluted. And every
client trains all prefixes of its adapter at once, so that each of them is usable by itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from lab.engine.comm import Communicator
from lab.engine.optim import AdamW, Optimizer
from lab.engine.outer import descend_
from lab.engine.stack import clip_
from lab.engine.state import Grad, Loss, State
from lab.ground.config import Period, Positive, RecipeView, config, unused
from lab.ground.seeds import uniform
from lab.methods.lora_rounds import adapters_of, fetch_, open_
from lab.methods.lora_rounds import mean_of_holders as segment_mean
from lab.methods.registry import method
from lab.methods.rounds import InnerStates, Weight
from lab.models.lora import Cut, prefix_losses, weighted


@method("prelort", server=True, own_loss=True, bounded=True)
@config
class PreLort:
    """Each round: fetch the prefix, train the nested loss L_k = Σ_r ω_r·ℓ(W₀ + s·B[:, :r]·A[:r]), hand in; per segment m

    A[S_m] ← Σ_{k: r_k ≥ r_m} n_k·A_k[S_m] / Σ_{k: r_k ≥ r_m} n_k, and B alike. There is no re-factorisation, which would
    turn the basis and break the nesting.

    The segment-wise mean is not written here: a client's model has only the segments that its rank covers, and the mean of
    a tensor is always over those who hold it. Nobody pads.

    Sends: ``params``, Σ r_k·(d_in + d_out) each way. State: the server's adapter in ``shared`` (and the state of ``outer``);
    inner states local.

    nested
        ``sum``: all truncations in every step; ``sample``: one, drawn per client and step (DyLoRA, FjORD); ``sandwich``: the
        smallest, the client's own, and one drawn between; ``matryoshka``: one pass with rank index i weighted by
        Σ_{r ≥ i} ω_r (averages outputs instead of losses); ``none``: the client's own rank only.
    truncations
        ``ranks``: the ranks that occur in the federation, as far as the client's reaches; ``powers``: 1, 2, 4, … and its own.
    omega
        ω_r: ``uniform``, ``rank`` (∝ r), or ``last`` (half on the client's own rank, the rest even).
    uncovered
        a segment that nobody covered in a round: ``keep`` its values, or ``zero`` its B.
    outer
        a server optimizer on the mean change, or None for the mean itself.

    Only the two ingredients are certain from the source (its abstract). Weights ω, truncations, which loss, client weights
    and all numbers are not given; the defaults follow its forerunners FjORD (sample counts, values kept) and MatryoshkaLoRA.
    """

    sync_every: Period = 16
    inner: Optimizer = Field(default_factory=lambda: AdamW(lr=3e-3))
    nested: Literal["none", "sum", "sample", "sandwich", "matryoshka"] = "sum"
    truncations: Literal["ranks", "powers"] = "ranks"
    omega: Literal["uniform", "rank", "last"] = "uniform"
    weight: Weight = "samples"
    uncovered: Literal["keep", "zero"] = "keep"
    outer: Optimizer | None = None
    inner_states: InnerStates = "reset"
    max_norm: Positive | None = 1.0
    prefix_seed: int = 0  # of the truncations that are drawn

    @property
    def averages(self) -> tuple[str, ...]:
        return ("params",)

    def check(self, recipe: RecipeView) -> None:
        if self.nested != "none":
            recipe.compute.one_by_one("the nested loss of prelort")

    def notes(self, recipe: RecipeView) -> Iterator[str]:
        if self.nested == "none":
            yield from unused(self, ("truncations", "omega"), "method.nested", "method.")

    def init(self, s: State) -> None:
        open_(s, self.inner, self.inner_states)
        if self.outer is not None:
            s.optimizers["outer"] = self.outer.over(s.shared["params"])

    def step(self, s: State, grad: Grad, comm: Communicator, t: int) -> Tensor:
        fetch_(s, comm, t, self.sync_every, self.inner_states)
        loss_W = grad(s, self.nested_loss(adapters_of(s).bounds, t))
        clip_(s.grads, self.max_norm)
        self.inner.step_(s, t)
        if t % self.sync_every == 0 and any(s.fleet.up):
            self.aggregate_(s, comm)
        return loss_W

    def nested_loss(self, occurring: tuple[int, ...], t: int) -> Loss:
        """The loss of local step ``t``, where these ranks occur in the federation."""

        def nested(module: nn.Module, worker: int, ids: Tensor, targets: Tensor) -> Tensor:
            cut: Cut = module.cut  # type: ignore[assignment]
            ranks = self.ranks_of(cut.rank, occurring)
            omega = torch.tensor(self.weights_of(ranks), dtype=torch.float32, device=ids.device)
            if self.nested == "none" or len(ranks) == 1:
                return module.loss(ids, targets)  # type: ignore[operator, no-any-return]
            if self.nested == "matryoshka":
                index, reach = torch.arange(cut.rank, device=ids.device), torch.tensor(ranks, device=ids.device)
                per_index = (omega[:, None] * (index < reach[:, None])).sum(0)  # P_i = Σ_{r ≥ i} ω_r
                with weighted(module, per_index.to(next(module.parameters()).dtype)):
                    return module.loss(ids, targets)  # type: ignore[operator, no-any-return]
            if self.nested == "sum":
                return (prefix_losses(module, ids, targets, ranks) * omega).sum()
            drawn = uniform(self.prefix_seed, "prefix", worker, t)
            if self.nested == "sample":
                return prefix_losses(module, ids, targets, [ranks[int(drawn * len(ranks))]])[0]
            between = ranks[1:-1]
            some = sorted({ranks[0], ranks[-1], *([between[int(drawn * len(between))]] if between else [])})
            return prefix_losses(module, ids, targets, some).mean()

        return nested

    def ranks_of(self, rank: int, occurring: tuple[int, ...]) -> list[int]:
        """R_k: to which ranks a client of this rank is truncated."""
        if self.truncations == "ranks":
            return [r for r in occurring if r <= rank]
        return sorted({2**i for i in range(rank.bit_length()) if 2**i < rank} | {rank})

    def weights_of(self, ranks: list[int]) -> list[float]:
        """ω_r, with sum 1."""
        if self.omega == "rank":
            return [r / sum(ranks) for r in ranks]
        if self.omega == "last" and len(ranks) > 1:
            return [0.5 / (len(ranks) - 1)] * (len(ranks) - 1) + [0.5]
        return [1 / len(ranks)] * len(ranks)

    @torch.no_grad()
    def aggregate_(self, s: State, comm: Communicator) -> None:
        before = s.shared["params"]
        segment_mean(s, comm, self.weight)
        if self.outer is not None:
            moved, s.shared["params"] = s.shared["params"] - before, before
            descend_(s.optimizers["outer"], moved, s.fleet.up)
        if self.uncovered == "zero":
            agreed = s.shared["params"]
            for block in agreed.layout.blocks:
                for name in block.names if not any(s.fleet.up[w] for w in block.everywhere) else ():
                    if ".lora_B." in name:
                        agreed[name].zero_()
