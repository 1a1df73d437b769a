"""PaFL (Iacob et al. 2023, arXiv 2305.02728): federated training whose clients already train with a loss of personalisation."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

from pydantic import Field
from torch import Tensor

from lab.engine.comm import Communicator
from lab.engine.optim import Optimizer
from lab.engine.stack import clip_
from lab.engine.state import Grad, State
from lab.ground.config import Fraction, Period, Positive, RecipeView, config, unused
from lab.methods.holding_on import Hold, Loss, gradients_, open_
from lab.methods.registry import method, never_synced
from lab.methods.rounds import InnerStates, Weight, beginning, fetch_, hand_in_

Round = Annotated[int, Field(ge=1)]


@method("pafl", server=True, own_loss=True, holds=("params",), bounded=True)
@config
class PaFL:
    """FedAvg in which a client's loss holds on to θᴳ, the model that it fetched for the round; the loss may change from round to round.

    With ℓ for the task's loss and σ for softmax:

        plain   ℓ(θ)
        ewc     ℓ(θ) + λ/2·Σ_i Fis_i·(θ_i − θᴳ_i)²
        kd      α·K²·ℓ(θ) + (1 − α)·KL(σ(θᴳ(x)/K) ‖ σ(θ(x)/K))

    `lab.methods.holding_on` says how Fis, the diagonal of the Fisher information at θᴳ, and KL are taken. With λ = 0, or α = 1 and K = 1, it
    is FedAvg.

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
    losses: dict[Round, Loss] = Field(default_factory=lambda: dict[int, Loss]({1: "ewc"}))
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

    def loss_in(self, t: int) -> Loss:
        """The loss of local step ``t``."""
        number = (t - 1) // self.sync_every + 1
        return self.losses[max(begun)] if (begun := [r for r in self.losses if r <= number]) else "plain"

    def init(self, s: State) -> None:
        s.optimizers["inner"] = self.inner.over(s.local["params"], s.grads)
        s.shared["params"] = beginning(s.fleet)  # θᴳ
        if "ewc" in self.losses.values():
            open_(s)  # Fis

    def step(self, s: State, grad: Grad, comm: Communicator, t: int) -> Tensor:
        to = fetch_(s, comm, t, self.sync_every, self.inner_states)  # θ_k ← θᴳ
        loss_W = gradients_(s, grad, Hold(self.loss_in(t), self.strength, self.temperature, self.share), to)
        clip_(s.grads, self.max_norm)
        self.inner.step_(s, t)
        if t % self.sync_every == 0:
            hand_in_(s, comm, self.weight)  # θᴳ ← mean of θ_k
        return loss_W
