"""Photon (arXiv 2411.02908, MLSys 2025): federated pre-training, many local steps and a server step on the average."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field
from torch import Tensor

from lab.engine.comm import Communicator
from lab.engine.optim import AdamW, Optimizer, reset_
from lab.engine.outer import init_outer, outer_step_
from lab.engine.stack import clip_
from lab.engine.state import Grad, State
from lab.ground.config import Period, Positive, RecipeView, config
from lab.ground.errors import RecipeError
from lab.methods.registry import method
from lab.optimizers.schedule import Schedule


def FedAvg(lr: float = 1.0) -> Optimizer:
    """θ = θ − lr·Δ; with lr = 1 the average itself (the paper's choice)."""
    return Optimizer("SGD", lr)


@method("photon")
@config
class Photon:
    """Every ``sync_every`` (τ) local steps the server moves θ by the mean Δ = θ − Σ n_i·θ_i / Σ n_i of the clients.

    Sends: ``params`` (as pseudo-gradients), once per round. State: inner states local, kept or reset, each with the number of
    steps that its own client has taken; ``shared`` parameters and what the server's optimizer keeps.

    Which clients take part is the recipe's affair: ``scenario`` with ``sample`` and ``sample_every`` (set it to τ) draws
    some for each round; they first receive the server's state. Who is down at the end of a round is left out of the
    average. Photon's clients may be whole sites: here a client is a worker.

    sync_every
        τ; the paper studies 64, 128 and 512 local steps.
    inner_states
        ``reset`` (default of the authors' code: clients keep nothing between rounds) or ``kept`` (its 125M example).
    outer
        the server's optimizer: `FedAvg` (default), ``FedMom``, SGD with Nesterov momentum (lr 0.7, momentum 0.9 as the code's
        default, 0.7 in its public configuration), ``FedAdam``, ``FedYogi`` (which climb in the public code: a wrong sign), or any other.
    samples
        n_i, by worker; those not named count 1. None: all alike. Not where clients take turns as workers.

    The recipe of the paper is a small batch per client with the learning rate of a large one and a schedule that is
    stretched: `stretched_cosine`. The source leaves open whether its large runs reset the inner states. Multiplying Δ by
    the number of clients (off in the code) is left out: it is a factor of ``outer.lr``.
    """

    sync_every: Period = 64
    inner: Optimizer = Field(default_factory=lambda: AdamW(lr=3e-3))
    inner_states: Literal["reset", "kept"] = "reset"
    outer: Optimizer = Field(default_factory=FedAvg)
    samples: dict[Annotated[int, Field(ge=0)], Positive] | None = None
    max_norm: Positive | None = 1.0

    def __post_init__(self) -> None:
        if self.inner_states == "reset":
            self.inner.check_reset()

    def check(self, recipe: RecipeView) -> None:
        if self.samples and recipe.clients.take_turns(recipe.num_workers):
            raise RecipeError(
                "method.samples names workers, but clients take turns as workers: leave it out, or use method fedprox with pull=0 and "
                "weight=samples, which counts each client's own examples"
            )

    @property
    def averages(self) -> tuple[str, ...]:
        return ("params",)

    def init(self, s: State) -> None:
        unknown = [w for w in self.samples or {} if w >= s.fleet.num_workers]
        if unknown:
            raise RecipeError(f"method.samples names worker {unknown[0]} of {s.fleet.num_workers}")
        s.optimizers["inner"] = self.inner.over(s.local["params"], s.grads)
        init_outer(s, self.outer)

    def step(self, s: State, grad: Grad, comm: Communicator, t: int) -> Tensor:
        loss_W = grad(s)
        clip_(s.grads, self.max_norm)
        self.inner.step_(s, t)
        if t % self.sync_every == 0:
            n_W = [self.samples.get(w, 1.0) for w in range(s.fleet.num_workers)] if self.samples else None
            outer_step_(s, comm, weights_W=n_W)
            if self.inner_states == "reset":
                reset_(s.optimizers["inner"], s.local["params"], s.fleet.up)
        return loss_W


def stretched_cosine(steps: int, batch_size: int, local_batch_size: int, warmup: int = 0) -> tuple[int, Schedule]:
    """The schedule of a centralised run, stretched to the small batch of one client; keep the large batch's learning rate.

    Parameters
    ----------
    steps, batch_size, warmup
        of the centralised run, whose learning rate is good for its batch size.

    Returns
    -------
    local steps T = steps · batch_size / local_batch_size, and a cosine to 0.1 over them with the warm-up made longer by the
    same factor. 5120 steps of 256 sequences become 40,960 local steps of 32.
    """
    longer = batch_size / local_batch_size
    return round(steps * longer), Schedule("cosine", warmup=round(warmup * longer), final=0.1)
