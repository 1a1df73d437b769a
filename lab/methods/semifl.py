"""SemiFL (Diao, Ding, Tarokh 2022, arXiv 2106.01432): labels of the server's model for a whole round, and mixtures of examples."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from lab.data.augmented import Augmentation, drawn_for
from lab.data.tasks.task import IGNORED
from lab.engine.comm import Communicator
from lab.engine.optim import Optimizer
from lab.engine.stack import clip_
from lab.engine.state import Grad, Loss, State
from lab.ground.config import Fraction, Period, Positive, RecipeView, config
from lab.methods.registry import method, never_synced
from lab.methods.rounds import InnerStates, Weight, fetch_, fetched
from lab.methods.server_labels import ServerTraining, begin_, confident, end_round_, loss_on, of_task, train_
from lab.models.distillation import predictions


@method("semifl", server=True, own_loss=True, unlabelled=True, holds=("params",), bounded=True)
@config
class SemiFL:
    """Server and clients train in turn; a client takes labels from the model that it has fetched, and keeps them for the round.

    Of a batch those examples count of which the server's model is confident (max p ≥ τ). Their loss is

        CE(f(strong(x)), ŷ) + λ·( a·CE(f(m), ŷ) + (1 − a)·CE(f(m), ŷ') ),    m = a·weak(x) + (1 − a)·weak(x'),  a ~ Beta(α, α)

    where x' is another example of the client, confident or not, with its label ŷ'.

    Simplified: the paper's client makes one set of its confident examples for the round, and draws batches from it and partners from all of
    its examples; here it goes through its batches as ever, and what is not confident is left out of them, with partners from the same
    batch. The server takes the mean without momentum, its optimizer starts afresh in each turn, and there are no statistics of norms.

    Sends: ``params``, down at the beginning of a round and up at its end. State: the server's model in ``shared``, which a client has at
    hand while it trains; inner states local.

    threshold
        τ, 0.95 in the paper.
    mix, alpha
        λ, the weight of mixtures (0: none), 1 in the paper, and α, 0.75 there.
    weak, strong
        how examples are changed before they are mixed, and before they are learnt. Labels are those of the examples as they are.
    weight
        ``uniform``, as in the authors' code.
    sync_every, inner, server, inner_states, max_norm, seed
        as of `lab.methods.fedanchor.FedAnchor`.
    """

    sync_every: Period = 16
    inner: Optimizer = Field(
        default_factory=lambda: Optimizer("SGD", 0.03, {"momentum": 0.9, "nesterov": True, "weight_decay": 5e-4})
    )
    threshold: Fraction = 0.95
    mix: Annotated[float, Field(ge=0)] = 1.0
    alpha: Positive = 0.75
    weak: Augmentation = Field(default_factory=Augmentation)
    strong: Augmentation = Field(default_factory=lambda: Augmentation(0.15, 0.2, 0.3))
    server: ServerTraining = Field(default_factory=ServerTraining)
    inner_states: InnerStates = "reset"
    weight: Weight = "uniform"
    max_norm: Positive | None = 1.0
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
        values = fetched(s)

        def own(module: nn.Module, worker: int, inputs: Tensor, targets: Tensor) -> Tensor:
            logits = predictions(module, values, inputs)
            labels = confident(logits, self.threshold)
            loss = loss_on(module, self.strong(inputs, self.seed, "strong", t), labels)
            if self.mix:
                loss = loss + self.mix * self.mixed(module, inputs, labels, logits.argmax(1), t)
            return loss

        return own

    def mixed(self, module: nn.Module, inputs: Tensor, labels: Tensor, likeliest: Tensor, t: int) -> Tensor:
        """The loss of each confident example mixed with some other one; 0 where there is none."""
        g = drawn_for(inputs, self.seed, "mix", t)
        partner = torch.randint(len(inputs), (len(inputs),), generator=g, device="cpu").to(inputs.device)
        a = beta(self.alpha, g)
        x = self.weak(inputs, self.seed, "weak", t)
        counts = labels != IGNORED
        if not bool(counts.any()):
            return 0.0 * module(x).sum()  # type: ignore[no-any-return]
        some, other = x[counts], x[partner[counts]]
        logits = module(a * some + (1 - a) * other)
        return a * F.cross_entropy(logits, labels[counts]) + (1 - a) * F.cross_entropy(
            logits, likeliest[partner[counts]]
        )

    def labels(self, s: State, module: nn.Module, inputs: Tensor) -> Tensor:
        """argmax p of the module where it is confident, int64 ``[B]``."""
        return confident(predictions(module, {}, inputs), self.threshold)


def beta(alpha: float, g: torch.Generator) -> float:
    """One draw from Beta(α, α), from two of Gamma(α, 1)."""
    shape = torch.full((2,), alpha, dtype=torch.float64, device="cpu")
    one, other = torch._standard_gamma(shape, generator=g).tolist()
    return float(one / (one + other)) if one + other > 0 else 0.5
