"""TERM (Li et al. 2021, "Tilted Empirical Risk Minimization", arXiv 2007.01162), hierarchical: a federation that tilts towards high losses."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Annotated

from pydantic import Field
from torch import Tensor

from lab.engine.comm import Communicator
from lab.engine.optim import Optimizer
from lab.engine.stack import Stack, clip_
from lab.engine.state import Grad, State, number, numeric
from lab.engine.world import Named
from lab.ground.config import Period, Positive, RecipeView, config
from lab.methods.registry import method, never_synced
from lab.methods.rounds import (
    InnerStates,
    Weight,
    beginning,
    fetch_,
    hand_in_weighted_,
    losses_there,
    note_,
    weights_of,
)

MOST = 60.0  # of an exponent: what is larger counts as much


@method("term", server=True, holds=("params",))
@config
class TERM:
    """A way to a minimum of F̃ = 1/τ·log Σ_k p_k·exp(τ·F_k), p_k being a client's share. With τ → 0 it is FedAvg.

    Its gradient is the mean of the clients', each counted p_k·exp(τ·(F_k − F̃)) times. So a round of client k, from w to w_k, counts
    as much:

        a_k = p_k·exp(τ·(F_k − F̃)),    w ← w + Σ a_k·(w_k − w) / Σ a_k

    F_k is the client's loss at w, of the first batch of its round (ours: the paper takes all examples). F̃ is that of the round before,
    which the server hands out with w; it drops out of the mean, and keeps the exponents small (the paper subtracts the largest F_k, which a
    client cannot know; its stochastic version keeps a running estimate). In the first round it is 0.

    Sends: ``params`` down (w) and up (a_k·(w_k − w)), and one number each way, ``tilt``: F̃ down, a_k up. State: the server's w in
    ``shared``; inner states local.

    tilt
        τ: the larger, the more the largest losses count; with 0 all count alike, and it is FedAvg. The paper looks at 0.1 to 5.
    weight
        p_k: ``uniform`` over clients, or by ``samples``.
    inner, inner_states, max_norm
        as of `lab.methods.fedprox.FedProx`.
    """

    sync_every: Period = 16
    tilt: Annotated[float, Field(ge=0, le=100)] = 1.0
    inner: Optimizer = Field(default_factory=lambda: Optimizer("SGD", 0.1))
    inner_states: InnerStates = "reset"
    weight: Weight = "uniform"
    max_norm: Positive | None = None

    def __post_init__(self) -> None:
        if self.inner_states == "reset":
            self.inner.check_reset()

    @property
    def averages(self) -> tuple[str, ...]:
        return ("params",)

    def notes(self, recipe: RecipeView) -> Iterator[str]:
        yield from never_synced(self.sync_every, recipe.steps)

    def init(self, s: State) -> None:
        s.optimizers["inner"] = self.inner.over(s.local["params"], s.grads)
        s.shared["params"] = beginning(s.fleet)  # w
        s.facts["tilted"] = 0.0  # F̃, at the server
        s.facts |= {
            "loss_W": [0.0] * s.fleet.num_workers,
            "tilted_W": [0.0] * s.fleet.num_workers,
        }  # F_k, and F̃ as it was fetched

    def step(self, s: State, grad: Grad, comm: Communicator, t: int) -> Tensor:
        to = fetch_(s, comm, t, self.sync_every, self.inner_states)  # w_k ← w
        if to:
            tilted = {"tilt": number(s.facts["tilted"])}
            fetched = comm.hand_out({w: tilted for w in to}, "tilt")  # noqa: C420
            note_(s, comm, "tilted_W", {w: float(fetched[w]["tilt"]) for w in to if w in s.fleet.mine})
        loss_W = grad(s)
        if to:
            note_(s, comm, "loss_W", losses_there(s, to, loss_W))
        clip_(s.grads, self.max_norm)
        self.inner.step_(s, t)
        if t % self.sync_every == 0 and any(s.fleet.up):
            ways = s.local["params"].zeros_like()
            a = {w: self._weight_of(s, w) for w in s.fleet.mine if s.fleet.up[w]}
            self._fill_(s, ways, a)
            self._tilt_(s, hand_in_weighted_(s, comm, ways, a, "tilt"))  # w ← w + Σ a_k·(w_k − w) / Σ a_k
        return loss_W

    def _weight_of(self, s: State, w: int) -> float:
        """a_k."""
        n_W = weights_of(s, self.weight)
        p: float = 1.0 if n_W is None else n_W[w]
        return p * math.exp(min(MOST, self.tilt * (s.facts["loss_W"][w] - s.facts["tilted_W"][w])))

    @numeric
    def _fill_(self, s: State, ways: Stack, a: dict[int, float]) -> None:
        """a_k·(w_k − w) into ``ways`` ``[H, P]``, of the clients here that are up."""
        for i, block in enumerate(ways.layout.blocks):
            rows = [r for r, w in enumerate(block.holders) if w in a]
            if rows and not block.personal:
                x = ways.blocks[i]
                scale = x.new_tensor([a[block.holders[r]] for r in rows])[:, None]
                x[rows] = scale * (s.local["params"].blocks[i][rows] - s.shared["params"].blocks[i])

    @numeric
    def _tilt_(self, s: State, handed: Named) -> None:
        """F̃ ← F̃ + 1/τ·log Σ p_k·exp(τ·(F_k − F̃)), the shares p_k being of those of the round."""
        n_W = weights_of(s, self.weight)
        total = float(len(handed)) if n_W is None else sum(n_W[w] for w in handed)
        if self.tilt:
            s.facts["tilted"] += math.log(math.fsum(float(x["tilt"]) for x in handed.values()) / total) / self.tilt
