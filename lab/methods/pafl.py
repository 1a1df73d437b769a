"""PaFL (Iacob et al. 2023, arXiv 2305.02728): federated training whose clients already train with a loss of personalisation."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from lab.config import Fraction, Period, Positive, RecipeView, config, unused
from lab.engine.comm import Communicator
from lab.engine.optim import Optimizer
from lab.engine.stack import Stack, clip_
from lab.engine.state import Grad, State, numeric
from lab.methods.registry import method, never_synced
from lab.methods.rounds import InnerStates, Weight, beginning, fetch_, weights_of
from lab.models.distillation import divergence, loss_and_predictions, predictions

Term = Literal["plain", "ewc", "kd"]
Round = Annotated[int, Field(ge=1)]


@method("pafl", server=True, own_loss=True, holds=("params",))
@config
class PaFL:
    """FedAvg in which a client's loss holds on to θᴳ, the model that it fetched for the round; the loss may change from round to round.

    With ℓ for the task's loss and σ for softmax, in the form that local adaptation has (Yu et al. 2020, arXiv 2002.04758):

        plain   ℓ(θ)
        ewc     ℓ(θ) + λ/2·Σ_i Fis_i·(θ_i − θᴳ_i)²
        kd      α·K²·ℓ(θ) + (1 − α)·KL(σ(θᴳ(x)/K) ‖ σ(θ(x)/K))

    Fis is the diagonal of the empirical Fisher information at θᴳ: the mean over examples of the squared gradient of each one's loss, with
    the labels that are there, in eval mode. [inferred] It is taken from the first batch of a client's round, one backward pass for each of its
    examples (of text, a row is an example). KL is the mean over what counts as a target, for text over tokens. Of numbers, instead of classes,
    it is that of normal distributions around them, (θᴳ(x) − θ(x))² / 2K² (ours). With λ = 0, or α = 1 and K = 1, it is FedAvg.

    Sends: ``params``, down at the beginning of a round (θᴳ) and up at its end. State: the server's θᴳ in ``shared``, which a client has at
    hand while it trains; local ``fisher``, made anew in every round, if any round is one of ``ewc``. What is reported is ℓ.

    A client that was down for a part of the round fetches θᴳ when it is back, and takes its Fisher information then. What is personal is
    not held on to; a teacher has it as its client has it at the moment.

    losses
        which loss from which round on; before the first of them it is ``plain``. That it is a matter of rounds is the paper's, which
        rounds is not known.
    strength
        λ of ``ewc``. Under SGD a coordinate with learning rate · λ · Fis above 2 diverges.
    temperature, share
        K and α of ``kd``.
    inner, inner_states, weight, max_norm
        as of `lab.methods.fedprox.FedProx`.
    """

    sync_every: Period = 16
    losses: dict[Round, Term] = Field(default_factory=lambda: dict[int, Term]({1: "ewc"}))
    strength: Annotated[float, Field(ge=0)] = 10.0
    temperature: Positive = 1.0
    share: Fraction = 0.5
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
        for first, loss in self.losses.items():
            if (first - 1) * self.sync_every >= recipe.steps:
                yield f"method.losses has {loss} from round {first} on, which is after the {recipe.steps:,} steps of the run"
        for options, loss in ((("strength",), "ewc"), (("temperature", "share"), "kd")):
            if loss not in self.losses.values():
                yield from unused(self, options, f"{loss} among method.losses", "method.")
        if self.inner_states == "kept" and not self.inner.state_names:
            yield f"method.inner_states = 'kept' makes no difference: {self.inner.name} keeps nothing"

    def loss_in(self, t: int) -> Term:
        """The loss of local step ``t``."""
        number = (t - 1) // self.sync_every + 1
        return self.losses[max(begun)] if (begun := [r for r in self.losses if r <= number]) else "plain"

    def init(self, s: State) -> None:
        s.optimizers["inner"] = self.inner.over(s.local["params"], s.grads)
        s.shared["params"] = beginning(s.fleet)  # θᴳ
        if "ewc" in self.losses.values():
            s.local["fisher"] = s.local["params"].zeros_like()  # Fis

    def step(self, s: State, grad: Grad, comm: Communicator, t: int) -> Tensor:
        to, loss = fetch_(s, comm, t, self.sync_every, self.inner_states), self.loss_in(t)  # θ_k ← θᴳ
        if loss == "kd":
            loss_W = grad(s, partial(self._distilled, s.shared["params"]))
        elif loss == "ewc" and to:
            looked = {w: 0 for w in to if w in s.fleet.mine and s.fleet.up[w]}
            s.local["fisher"].zero_([w in to for w in range(s.fleet.num_workers)])
            loss_W = grad(s, partial(_looked_at, s.local["fisher"], looked))
            _divide_(s.local["fisher"], looked)
        else:
            loss_W = grad(s)
        if loss == "ewc":
            self._pull_(s)
        clip_(s.grads, self.max_norm)
        self.inner.step_(s, t)
        if t % self.sync_every == 0:
            n_W, known = weights_of(s, self.weight), s.shared["params"]
            s.shared["params"] = comm.mean(s.local["params"], "params", weights_W=n_W, fallback=known, to_server=True)
        return loss_W

    @numeric
    def _pull_(self, s: State) -> None:
        """∇ℓ + λ·Fis·(θ − θᴳ). What is personal has no θᴳ."""
        w, agreed, fisher = s.local["params"], s.shared["params"], s.local["fisher"]
        for i, block in enumerate(w.layout.blocks):
            if not block.personal:
                apart = w.blocks[i] - agreed.blocks[i]  # [H, P] − [1, P]
                s.grads.blocks[i].addcmul_(fisher.blocks[i], apart, value=self.strength)

    def _distilled(self, agreed: Stack, module: nn.Module, worker: int, inputs: Tensor, targets: Tensor) -> Tensor:
        """The value is ℓ, the gradient that of α·K²·ℓ + (1 − α)·KL."""
        if self.share < 1:
            values = {n: agreed[n][0] for n in agreed.names() if not agreed.is_personal(n)}
            teacher = predictions(module, values, inputs)
        loss, student = loss_and_predictions(module, inputs, targets)
        whole = self.share * self.temperature**2 * loss
        if self.share < 1:
            whole = whole + (1 - self.share) * _apart(teacher, student, targets, self.temperature)
        return loss.detach() + (whole - whole.detach())


def _apart(teacher: Tensor, student: Tensor, targets: Tensor, temperature: float) -> Tensor:
    """KL of two predictions, the mean over those targets that count; ``[]``."""
    if targets.is_floating_point():
        return (teacher - student).square().mean() / (2 * temperature**2)
    counts = targets >= 0
    return divergence(teacher[counts], student[counts], temperature) if counts.any() else 0 * student.sum()


def _looked_at(
    fisher: Stack, looked: dict[int, int], module: nn.Module, worker: int, inputs: Tensor, targets: Tensor
) -> Tensor:
    """ℓ of a batch; on the way the squared gradients of its examples are added up, of the workers in ``looked``, which counts examples."""
    if worker in looked:
        named = {n: p for n, p in module.named_parameters() if p.requires_grad}
        into = {n: fisher.cell(n, worker) for n in named}
        training = module.training
        module.eval()
        try:
            looked[worker] += _add_squares_(into, module, named, inputs, targets)
        finally:
            module.train(training)
    loss: Tensor = module.loss(inputs, targets)  # type: ignore[operator]
    return loss


def _add_squares_(
    into: Mapping[str, Tensor], module: nn.Module, named: Mapping[str, Tensor], inputs: Tensor, targets: Tensor
) -> int:
    """Add (∂ℓ/∂θ_i)² of each example; returns how many there were. One of whose targets none counts has no loss."""
    found = 0
    for k in range(len(inputs)):
        loss: Tensor = module.loss(inputs[k : k + 1], targets[k : k + 1])  # type: ignore[operator]
        if loss.isfinite():
            grads = torch.autograd.grad(loss, [*named.values()], allow_unused=True)
            pairs = [(into[n], g) for n, g in zip(named, grads, strict=True) if g is not None]
            torch._foreach_addcmul_([x for x, _ in pairs], [g for _, g in pairs], [g for _, g in pairs])
            found += 1
    return found


@numeric
def _divide_(fisher: Stack, looked: Mapping[int, int]) -> None:
    """Sums to means, of the workers that were looked at."""
    for block, x in zip(fisher.layout.blocks, fisher.blocks, strict=True):
        for row, worker in enumerate(block.holders):
            if worker in looked:
                x[row] /= max(1, looked[worker])
