"""ZeroFL (Qiu et al. 2022, arXiv 2208.02507): forward passes with the largest weights, gradients from the largest inputs."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from lab.engine.comm import Communicator
from lab.engine.optim import Optimizer
from lab.engine.stack import clip_
from lab.engine.state import Grad, State
from lab.ground.config import Period, Positive, RecipeView, config
from lab.methods.registry import method
from lab.methods.rounds import InnerStates, Weight, beginning
from lab.methods.sparse_rounds import (
    check_weights,
    fetch_,
    hand_in_pruned_,
    nominal,
    not_claimed,
    share_of_union,
    thresholds_first,
)
from lab.models.reparametrised import largest, reparametrise_


@method("zerofl", server=True, prunes=True)
@config
class ZeroFL:
    """Clients train by SWAT (Raihan & Aamodt 2020, arXiv 2001.01969) and hand in their largest weights, as Top-K does.

    SWAT keeps all weights. Each layer computes, forwards and for what it hands back, with those that are largest in its own tensor; the
    gradient of its weight is taken from its largest inputs, and moves all of them, also those that were left out.

    Sends: ``params`` (the values) and ``mask``, up those of what is left, down those of the union. State: the server's model in
    ``shared``; inner states local. How much the clients differ hangs on values: a plan counts as if no two had a weight in common.

    sparsity
        share of the weights, and of the inputs, that are left out. 0 is FedAvg.
    weight
        ``samples``, as in FedAvg, or ``uniform``.

    That clients hand in as much as they compute with is the paper's mask ratio 0, as SparsyFed's comparison has it. The model is scored with
    the largest weights of each layer, as it is trained [inferred].
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

    def prepare_(self, module: nn.Module, values: bool) -> None:
        if self.sparsity:
            reparametrise_(module, self.effective, self.kept)

    def effective(self, w: Tensor) -> Tensor:
        """The largest of a layer's weights, with the gradient of the identity."""
        with torch.no_grad():
            few = largest(w, self.kept(w))
        return few + (w - w.detach())

    def kept(self, w: Tensor) -> Tensor:
        return torch.full((), 1 - self.sparsity, device=w.device)

    def init(self, s: State) -> None:
        s.optimizers["inner"] = self.inner.over(s.local["params"], s.grads)
        s.shared["params"] = beginning(s.fleet)
        s.facts["pruned"] = False  # whether the server's model is by now a mean of what was pruned

    def step(self, s: State, grad: Grad, comm: Communicator, t: int) -> Tensor:
        union = share_of_union(s, self.sparsity) if s.facts["pruned"] else 1.0
        fetched = fetch_(s, comm, t, self.sync_every, self.inner_states, nominal(s.fleet, union))
        loss_W = thresholds_first(s, comm, grad, fetched)
        clip_(s.grads, self.max_norm)
        self.inner.step_(s, t)
        if t % self.sync_every == 0 and any(s.fleet.up):
            hand_in_pruned_(s, comm, self.sparsity, self.weight)
            s.facts["pruned"] = True
        return loss_W
