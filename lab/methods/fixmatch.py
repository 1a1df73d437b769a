"""FixMatch (Sohn et al. 2020, arXiv 2001.07685) with FedAvg: clients without labels, which they believe where they are confident of them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

from pydantic import Field
from torch import Tensor, nn

from lab.data.augmented import Augmentation
from lab.data.tasks.task import IGNORED
from lab.engine.comm import Communicator
from lab.engine.optim import Optimizer
from lab.engine.stack import clip_
from lab.engine.state import Grad, Loss, State
from lab.ground.config import Fraction, Period, Positive, RecipeView, config
from lab.methods.registry import method, never_synced
from lab.methods.rounds import InnerStates, Weight, fetch_
from lab.methods.server_labels import ServerTraining, begin_, confident, end_round_, loss_on, of_task, train_
from lab.models.distillation import predictions


@method("fixmatch", server=True, own_loss=True, unlabelled=True, holds=(), bounded=True)
@config
class FixMatch:
    """A client's own model says what an example is, seen with little change, and learns it on the same example changed strongly:

        (1/B)·Σ_b 1[max p_b ≥ τ]·CE(f(strong(x_b)), argmax p_b),    p_b = softmax f(weak(x_b))

    without a gradient through p. That is the unlabelled half of FixMatch's loss; the labelled half is the server's, which trains on its own
    examples before the first round and after each mean (as federations without labels at clients do it: in the paper both are one loss).

    Sends: ``params``, down at the beginning of a round and up at its end. State: the server's model in ``shared``; inner states local.

    threshold
        τ, 0.95 in the paper.
    weak, strong
        how examples are changed before they are given a label, and before they are learnt.
    sync_every, inner, server, inner_states, weight, max_norm, seed
        as of `lab.methods.fedanchor.FedAnchor`.
    """

    sync_every: Period = 16
    inner: Optimizer = Field(
        default_factory=lambda: Optimizer("SGD", 0.03, {"momentum": 0.9, "nesterov": True, "weight_decay": 5e-4})
    )
    threshold: Fraction = 0.95
    weak: Augmentation = Field(default_factory=Augmentation)
    strong: Augmentation = Field(default_factory=lambda: Augmentation(0.15, 0.2, 0.3))
    server: ServerTraining = Field(default_factory=ServerTraining)
    inner_states: InnerStates = "reset"
    weight: Weight = "samples"
    max_norm: Positive | None = None
    seed: Annotated[int, Field(ge=0)] = 0

    def __post_init__(self) -> None:
        if self.inner_states == "reset":
            self.inner.check_reset()

    @property
    def averages(self) -> tuple[str, ...]:
        return ("params",)

    def exceptions(self) -> dict[str, str]:
        return {"hearing": "who is confident of nothing learns nothing"} if self.threshold else {}

    def notes(self, recipe: RecipeView) -> Iterator[str]:
        yield from never_synced(self.sync_every, recipe.steps)

    def init(self, s: State) -> None:
        s.optimizers["inner"] = self.inner.over(s.local["params"], s.grads)
        begin_(s)

    def step(self, s: State, grad: Grad, comm: Communicator, t: int) -> Tensor:
        if t == 1:
            train_(s, comm, t, self.server, self.server.first, of_task)
        fetch_(s, comm, t, self.sync_every, self.inner_states)
        loss_W = grad(s, self.loss(s, t))
        clip_(s.grads, self.max_norm)
        self.inner.step_(s, t)
        if t % self.sync_every == 0 and any(s.fleet.up):
            end_round_(s, comm, t, self.weight, self.server, of_task)
        return loss_W

    def loss(self, s: State, t: int) -> Loss:
        """A client's, in local step ``t``. Its own targets are handed over, and nobody looks at them."""

        def own(module: nn.Module, worker: int, inputs: Tensor, targets: Tensor) -> Tensor:
            labels = self.labels(s, module, self.weak(inputs, self.seed, "weak", t))
            share = (labels != IGNORED).to(inputs.dtype).mean()
            return share * loss_on(module, self.strong(inputs, self.seed, "strong", t), labels)

        return own

    def labels(self, s: State, module: nn.Module, inputs: Tensor) -> Tensor:
        """argmax p where it is confident, int64 ``[B]``."""
        return confident(predictions(module, {}, inputs), self.threshold)
