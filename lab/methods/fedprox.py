"""FedProx (Li et al. 2020, arXiv 1812.06127): FedAvg whose clients are pulled towards what the server sent them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

from pydantic import Field
from torch import Tensor

from lab.engine.comm import Communicator
from lab.engine.optim import Optimizer
from lab.engine.stack import clip_
from lab.engine.state import Grad, State, numeric
from lab.ground.config import Period, Positive, RecipeView, config
from lab.methods.registry import method, never_synced
from lab.methods.rounds import InnerStates, Weight, beginning, fetch_, hand_in_


@method("fedprox", server=True, holds=("params",), bounded=True)
@config
class FedProx:
    """Client k moves towards a minimum of h_k(w) = F_k(w) + μ/2·‖w − wᵗ‖², and the server takes the mean: algorithm 2.

    Sends: ``params``, down at the beginning of a round and up at its end. State: the server's wᵗ in ``shared``, which a client has at
    hand while it trains; inner states local. With μ = 0 it is FedAvg. What it reports is F_k.

    How near to the minimum a client comes (the paper's γ) is a matter of its local steps and learning rate, and may differ: one that
    was down for a part of the round fetches wᵗ when it is back, and what it reaches by the end is taken as that of the others.

    sync_every
        local steps of a round.
    pull
        μ; the paper looks for it among 0.001, 0.01, 0.1 and 1.
    inner
        any optimizer can look for the minimum of h_k; the paper's is SGD.
    inner_states
        ``reset``: each round is a new problem, begun with a fresh optimizer; ``kept``. Plain SGD has none.
    weight
        ``uniform``, as in the paper's algorithm, which draws clients by how many examples they have; ``samples`` is for clients that
        are drawn alike.
    max_norm
        largest norm of a client's gradient of h_k; None, as in the paper: no clipping.
    """

    sync_every: Period = 16
    pull: Annotated[float, Field(ge=0)] = 0.1
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
        if self.inner_states == "kept" and not self.inner.state_names:
            yield f"method.inner_states = 'kept' makes no difference: {self.inner.name} keeps nothing"

    def init(self, s: State) -> None:
        s.optimizers["inner"] = self.inner.over(s.local["params"], s.grads)
        s.shared["params"] = beginning(s.fleet)  # w⁰

    def step(self, s: State, grad: Grad, comm: Communicator, t: int) -> Tensor:
        fetch_(s, comm, t, self.sync_every, self.inner_states)  # w_k ← wᵗ
        loss_W = grad(s)
        self._pull_(s)
        clip_(s.grads, self.max_norm)
        self.inner.step_(s, t)
        if t % self.sync_every == 0:
            hand_in_(s, comm, self.weight)  # wᵗ⁺¹ ← mean of w_k
        return loss_W

    @numeric
    def _pull_(self, s: State) -> None:
        """∇h_k = ∇F_k + μ·(w_k − wᵗ). What is personal has no wᵗ."""
        w, agreed = s.local["params"], s.shared["params"]
        for i, block in enumerate(w.layout.blocks):
            if not block.personal:
                s.grads.blocks[i].add_(w.blocks[i] - agreed.blocks[i], alpha=self.pull)  # [H, P] − [1, P]
