"""Top-K: FedAvg whose clients keep, after each round, only their largest weights. What SparsyFed (arXiv 2504.05153) is compared with."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from torch import Tensor

from lab.engine.comm import Communicator
from lab.engine.optim import Optimizer
from lab.engine.stack import clip_
from lab.engine.state import Grad, State
from lab.ground.config import Period, Positive, RecipeView, config
from lab.methods.registry import method
from lab.methods.rounds import InnerStates, Weight, beginning
from lab.methods.sparse_rounds import check_weights, fetch_, hand_in_pruned_, nominal, not_claimed, share_of_union


@method("top_k", server=True, prunes=True)
@config
class TopK:
    """w_k ← the largest of all its weights, after local training; the server takes the mean.

    Each client prunes by itself, so that the server's model has all weights that some client has kept. It is not pruned.

    Sends: ``params`` (the values) and ``mask``, up those of what is left, down those of the union. State: the server's model in
    ``shared``; inner states local. How much the clients differ hangs on values: a plan counts as if no two had a weight in common.

    sparsity
        share of the weights of linear maps and convolutions that are zero in what a client hands in; 0 is FedAvg.
    weight
        ``samples``, as in FedAvg, or ``uniform``.
    """

    sync_every: Period = 16
    sparsity: Annotated[float, Field(ge=0, lt=1)] = 0.95
    inner: Optimizer = Field(default_factory=lambda: Optimizer("SGD", 0.1))
    inner_states: InnerStates = "reset"
    weight: Weight = "samples"
    max_norm: Positive | None = None

    def __post_init__(self) -> None:
        if self.inner_states == "reset":
            self.inner.check_reset()

    @property
    def averages(self) -> tuple[str, ...]:
        return ()

    def check(self, recipe: RecipeView) -> None:
        check_weights(recipe)

    def exceptions(self) -> dict[str, str]:
        return not_claimed(self.sparsity, "which weights clients have in common hangs on values: a plan counts none")

    def init(self, s: State) -> None:
        s.optimizers["inner"] = self.inner.over(s.local["params"], s.grads)
        s.shared["params"] = beginning(s.fleet)
        s.facts["pruned"] = False  # whether the server's model is by now a mean of what was pruned

    def step(self, s: State, grad: Grad, comm: Communicator, t: int) -> Tensor:
        union = share_of_union(s, self.sparsity) if s.facts["pruned"] else 1.0
        fetch_(s, comm, t, self.sync_every, self.inner_states, nominal(s.fleet, union))
        loss_W = grad(s)
        clip_(s.grads, self.max_norm)
        self.inner.step_(s, t)
        if t % self.sync_every == 0 and any(s.fleet.up):
            hand_in_pruned_(s, comm, self.sparsity, self.weight)
            s.facts["pruned"] = True
        return loss_W
