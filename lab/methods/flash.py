"""FLASH (Babakniya et al. 2023, arXiv 2302.09624): one round without pruning, then a mask that stays."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

from pydantic import Field
from torch import Tensor

from lab.engine.comm import Communicator
from lab.engine.optim import Optimizer
from lab.engine.stack import Stack, clip_
from lab.engine.state import Grad, State, numeric
from lab.ground.config import Period, Positive, RecipeView, config
from lab.methods.registry import method
from lab.methods.rounds import InnerStates, Weight, beginning
from lab.methods.sparse_rounds import check_weights, fetch_, hand_in_, keep_largest_, nominal, not_claimed, prunable


@method("flash", server=True, prunes=True)
@config
class FLASH:
    """Round 1 is FedAvg's. Then the server keeps the largest of its weights, and what is zero stays zero for good.

    Sends: ``params`` (the values) and ``mask``, down at the beginning of a round and up at its end; all values in the first. State: the
    server's model in ``shared``; inner states local.

    sparsity
        share of the weights of linear maps and convolutions that are zero after the first round. 0 is FedAvg.
    weight
        ``samples``, as in FedAvg, or ``uniform``.

    The paper's clients tell the server how sensitive each layer is, which then has a density of its own. Here the mask is that of the largest
    weights over all layers together, as the other methods have it [inferred; how SparsyFed's comparison finds it is not known]. A plan spreads
    the weights that are left evenly over tensors, where values decide; their number is exact.
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
        return not_claimed(self.sparsity, "which tensors the weights that are left belong to hangs on values")

    def init(self, s: State) -> None:
        s.optimizers["inner"] = self.inner.over(s.local["params"], s.grads)
        s.shared["params"] = beginning(s.fleet)
        s.facts["masked"] = False  # whether the first round is over

    def step(self, s: State, grad: Grad, comm: Communicator, t: int) -> Tensor:
        masked = s.facts["masked"]
        expected = nominal(s.fleet, 1 - self.sparsity if masked else 1.0)
        fetch_(s, comm, t, self.sync_every, self.inner_states, expected)
        loss_W = grad(s)
        names = prunable(s.fleet) if masked and self.sparsity else []
        zeros = {n: s.local["params"][n] == 0 for n in names}
        _silence_(s.grads, zeros)
        clip_(s.grads, self.max_norm)
        self.inner.step_(s, t)
        _silence_(s.local["params"], zeros)  # also what an optimizer would move by itself
        if t % self.sync_every == 0 and any(s.fleet.up):
            hand_in_(s, comm, s.local["params"], self.weight, expected)
            if not masked:
                self._mask_(s.shared["params"], prunable(s.fleet))
                s.facts["masked"] = True
        return loss_W

    @numeric
    def _mask_(self, server: Stack, names: list[str]) -> None:
        keep_largest_([server[n] for n in names], self.sparsity)


@numeric
def _silence_(stack: Stack, zeros: Mapping[str, Tensor]) -> None:
    """0 where these marks are, ``[H, *shape]``."""
    for n, mark in zeros.items():
        stack[n].masked_fill_(mark, 0.0)
