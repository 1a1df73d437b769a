"""SparsyFed (Guastella et al. 2025, arXiv 2504.05153): sparse local training whose clients agree on a mask without being told."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from lab.engine.comm import Communicator
from lab.engine.optim import Optimizer
from lab.engine.stack import clip_
from lab.engine.state import Grad, State
from lab.ground.config import Period, Positive, RecipeView, config
from lab.methods.registry import method, never_synced
from lab.methods.rounds import InnerStates, Weight, beginning
from lab.methods.sparse_rounds import check_weights, fetch_, hand_in_pruned_, nominal, not_claimed, thresholds_first
from lab.models.reparametrised import layers, reparametrise_

ITERATIONS = 10  # of the power iteration, not given


@method("sparsyfed", server=True, prunes=True)
@config
class SparsyFed:
    """θ = sign(u)·|u|^β: a client trains u, computes with θ, and hands in the largest of u; the server takes the mean.

    With β > 1 the gradient β·|u|^(β−1)·∂L/∂θ of a weight of zero is zero, so that what has been pruned never comes back at a client. The
    server does not prune; the support of its model is the union of its clients', and once that is one mask it stays so.

    In a backward pass a layer whose θ has a share s of zeros keeps of its inputs the share 1 − s that are largest, for the gradient of its
    weight; what it hands on is exact. A convolution keeps the threshold that it has found in the first batch of a client's round. No inputs
    are pruned when the model is scored. Biases and norms are trained as ever.

    Sends: ``params`` (values, u) and ``mask``, down at the beginning of a round and up at its end. State: the server's u in ``shared``; inner
    states local. A plan counts what ``sparsity`` says: exactly as many values as clients hand in, and as the server hands out when
    they agree. In the rounds until then it hands out more (all, in the first).

    sync_every
        local steps of a round; the paper's is one epoch of batches of 16.
    sparsity
        share of the weights of linear maps and convolutions that are zero in what a client hands in, over all layers together.
    beta
        β; 1.25 in the paper, 1.15 on speech. ``spectral``: for each layer 1 + mean(\\|u\\|/σ), where σ is the largest singular value of \\|u\\|,
        by power iteration; it is taken as a constant in the gradient, and the start is that of the β which the first weights have [both
        inferred].
    activations
        whether inputs are pruned for the gradients of weights.
    sparsity_ramp_rounds
        rounds in which the sparsity of round r rises as 1 − (1 − r/R)³ to its final value. Ours: the paper prunes at once, 0.
    inner
        the paper's is SGD whose rate falls exponentially from 0.5 to 0.01, with weight decay 0.001 (on u).
    weight
        ``samples``, as in FedAvg, or ``uniform``.

    Weights begin as the model begins: u = sign(v)·|v|^(1/β) for its first values v. (The paper draws v from a truncated normal distribution.)
    """

    sync_every: Period = 16
    sparsity: Annotated[float, Field(ge=0, lt=1)] = 0.95
    beta: Annotated[float, Field(ge=1, le=8)] | Literal["spectral"] = 1.25
    activations: bool = True
    sparsity_ramp_rounds: Annotated[int, Field(ge=0)] = 0
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

    def notes(self, recipe: RecipeView) -> Iterator[str]:
        yield from never_synced(self.sync_every, recipe.steps)
        if self.beta == 1:
            yield "method.beta = 1 computes with the weights as they are: what a client has pruned may come back, as in top_k"

    def exceptions(self) -> dict[str, str]:
        return not_claimed(
            self.sparsity, "which weights clients have in common hangs on values: a plan counts those that all agree on"
        )

    def prepare_(self, module: nn.Module, values: bool) -> None:
        if values:
            with torch.no_grad():
                for layer in layers(module).values():
                    v = layer.weight
                    v.copy_(v.sign() * v.abs().pow(1 / self._beta_of(v)))
        reparametrise_(module, self.effective, kept if self.activations else None)

    def effective(self, u: Tensor) -> Tensor:
        """θ, elementwise. With β = 1 it is u itself: the formula would let no weight of zero move."""
        return u if self.beta == 1 else u.sign() * u.abs().pow(self._beta_of(u))

    def _beta_of(self, u: Tensor) -> float | Tensor:
        if self.beta != "spectral":
            return self.beta
        with torch.no_grad():
            size = u.abs().flatten(1)
            return 1 + size.mean() / norm(size).clamp_min(torch.finfo(u.dtype).tiny)

    def init(self, s: State) -> None:
        s.optimizers["inner"] = self.inner.over(s.local["params"], s.grads)
        s.shared["params"] = beginning(s.fleet)
        s.facts["sparsity"] = 0.0  # of what the server has been handed in last

    def step(self, s: State, grad: Grad, comm: Communicator, t: int) -> Tensor:
        expected = nominal(s.fleet, 1 - s.facts["sparsity"])
        fetched = fetch_(s, comm, t, self.sync_every, self.inner_states, expected)
        loss_W = thresholds_first(s, comm, grad, fetched) if self.activations else grad(s)
        clip_(s.grads, self.max_norm)
        self.inner.step_(s, t)
        if t % self.sync_every == 0 and any(s.fleet.up):
            sparsity = self.sparsity_at(t)
            hand_in_pruned_(s, comm, sparsity, self.weight)
            s.facts["sparsity"] = sparsity
        return loss_W

    def sparsity_at(self, t: int) -> float:
        """The target of the round that ends with local step ``t``."""
        if t >= self.sparsity_ramp_rounds * self.sync_every:
            return self.sparsity
        return self.sparsity * (1 - (1 - t / (self.sparsity_ramp_rounds * self.sync_every)) ** 3)


def kept(theta: Tensor) -> Tensor:
    """1 − s: the share of a layer's inputs that the gradient of its weight is made of."""
    share: Tensor = (theta != 0).sum() / theta.numel()
    return share


def norm(x: Tensor) -> Tensor:
    """The largest singular value of a matrix ``[O, I]`` without negative elements, from below, by power iteration."""
    v: Tensor = x.new_ones(x.shape[1]) / x.shape[1] ** 0.5
    for _ in range(ITERATIONS):
        v = x.mT @ (x @ v)
        v = v / v.norm().clamp_min(torch.finfo(x.dtype).tiny)
    found: Tensor = (x @ v).norm()
    return found
