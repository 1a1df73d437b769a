"""MT-DAO (arXiv 2510.05361, ICLR 2026): slow momenta survive long rounds, a fresh-gradient term keeps them usable."""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from pydantic import Field
from torch import Tensor

from lab.engine.comm import Communicator
from lab.engine.optim import ELEMENTWISE, Optimizer
from lab.engine.stack import clip_
from lab.engine.state import Grad, State
from lab.ground.config import Period, Positive, RecipeView, config
from lab.ground.errors import RecipeError, one_of
from lab.methods.registry import method, never_synced
from lab.optimizers.quasi_hyperbolic import momenta

SLOW = ("QHADOPT", "QHAdam", "QHM", "Muon")  # whose steps may mix the fresh gradient into a slow momentum


def QHADOPT(
    lr: float, betas: tuple[float, ...] = (0.999, 0.999), weights: tuple[float, ...] = (0.98,), eps: float = 1e-6
) -> Optimizer:
    """The paper's optimizer with its decays (β_1, …, β_N, β2) and weights (ω_1, …, ω_N) for one momentum."""
    return Optimizer("QHADOPT", lr, {"betas": betas, "weights": weights, "eps": eps})


@config
class Warm:
    """The steps before the switch, with an inner optimizer of their own: one fast momentum (ω = 1), smaller lr.

    After the last of them every first momentum is set to zero, at workers that are away when they are back. Defaults from the authors' run configurations, where the
    learning rate is then multiplied by 1 (16M) to 4 (1B parameters): here that is ``inner.lr`` against ``warm.inner.lr``.
    """

    steps: Period = 2048
    inner: Optimizer = Field(default_factory=lambda: QHADOPT(1e-3, (0.95, 0.999), (1.0,)))


@method("mt_dao")
@config
class MTDAO:
    """DES-LOC's loop with N first momenta per worker, each with its own decay and its own period.

    Between two syncs a worker's momentum forgets what all agreed on: after K local steps a part β^K of it is left (0.19 at
    β = 0.95, 0.97 at 0.999). Slow momenta keep the agreement, and the step (1 − Σω)·g + Σ ω_j·u_j over √v keeps a part of
    the fresh gradient, without which such slow momenta overshoot.

    Sends: ``params``, every momentum and the second moment, each on its own period. State: all local. One momentum (N = 1)
    needs no more memory than Adam, each further one a copy of the parameters. With ω = 1 and N = 1 this is DES-LOC.

    sync_every
        as in DES-LOC; states are ``exp_avg`` for N = 1, ``exp_avg_1`` … ``exp_avg_N`` else, and ``exp_avg_sq``. Default 32
        for all, the paper's choice: with one momentum 32 / 3 = 10.67 times fewer bytes than DDP.
    inner
        QHADOPT (the paper's runs), QHAdam or QHM (its theory). Default β = (0.999, 0.999), ω = 0.98 from the run
        configurations; their N = 2 is betas (0.9, 0.999, 0.999), weights (0.05, 0.9). Or Muon, as a variant in the authors' code has it
        (momentum 0.95, and 0.999 after the switch): ``weight`` is its ω, which the source does not give there; None is Nesterov's form.
    warm
        steps with other decays and weights before the switch. Without it a momentum with β = 0.999 starts at zero and takes
        thousands of steps to fill. None by default.

    The source leaves open the weights of the final tables. Its listing averages the old state and then updates; as in
    DES-LOC we average after the step, the same rule shifted by one.
    """

    sync_every: dict[str, Period] = Field(default_factory=lambda: {"params": 32, "exp_avg": 32, "exp_avg_sq": 32})
    inner: Optimizer = Field(default_factory=lambda: QHADOPT(1e-3))
    warm: Warm | None = None
    max_norm: Positive | None = 1.0

    def __post_init__(self) -> None:
        for inner in (self.inner, *([self.warm.inner] if self.warm else [])):
            if inner.name not in SLOW:
                raise RecipeError(one_of("inner optimizer of mt_dao", inner.name, SLOW))
            if (inner.name, inner.state_names) != (self.inner.name, self.inner.state_names):
                raise RecipeError(
                    "warm.inner must have the states of inner: the same optimizer with as many momenta "
                    f"({self.inner.name} with {', '.join(self.inner.state_names)}); give the spare ones the weight 0"
                )
        self.inner.check_periods(self.sync_every)

    def check(self, recipe: RecipeView) -> None:
        own = [name for name in self._momenta() if name not in self.sync_every]
        kept = recipe.clients.take_turns(recipe.num_workers) and recipe.clients.inner_states == "kept"
        if self.warm is not None and own and kept:
            raise RecipeError(
                f"method.warm has all forget their momenta at once, but clients keep {own[0]} while they are away: set "
                f"clients.inner_states=fresh, give method.sync_every a period for {own[0]}, or leave out method.warm"
            )

    @property
    def averages(self) -> tuple[str, ...]:
        return tuple(self.sync_every)

    def notes(self, recipe: RecipeView) -> Iterator[str]:
        yield from never_synced(self.sync_every, recipe.steps)
        if self.warm is not None and self.warm.steps >= recipe.steps:
            yield (
                f"method.warm.steps = {self.warm.steps:,} lasts for the {recipe.steps:,} steps of the run: "
                "method.inner takes no step"
            )

    def exceptions(self) -> dict[str, str]:
        return {"plain optimizer": "it is another one until the switch"} if self.warm is not None else {}

    def init(self, s: State) -> None:
        s.optimizers["inner"] = self.inner.over(s.local["params"], s.grads)

    def step(self, s: State, grad: Grad, comm: Communicator, t: int) -> Tensor:
        inner = self.warm.inner if self.warm is not None and t <= self.warm.steps else self.inner
        optimizer = s.optimizers["inner"]
        optimizer.param_groups[0].update(optimizer.defaults | _settings(inner))  # decays and weights of this step
        self._forget_late_(s)
        loss_W = grad(s)
        clip_(s.grads, self.max_norm)
        inner.step_(s, t)
        for name, period in self.sync_every.items():
            if t % period == 0:
                comm.mean_(s.local[name], name)
        if self.warm is not None and t == self.warm.steps:
            self._forget_(s, self._momenta(), s.fleet.up)
            if not all(s.fleet.up):
                s.facts["away_at_switch"] = [w for w, up in enumerate(s.fleet.up) if not up]
        return loss_W

    def _forget_(self, s: State, momenta: Iterable[str], workers: Sequence[bool]) -> None:
        """The switch: every first momentum starts again from zero."""
        for name in momenta:
            s.local[name].zero_(workers)

    def _forget_late_(self, s: State) -> None:
        """Who was away at the switch does so when it is back, unless it was sent the momenta of the others."""
        late = [w for w in s.facts.get("away_at_switch", ()) if w in s.returned]
        if late:
            s.facts["away_at_switch"] = [w for w in s.facts["away_at_switch"] if w not in late]
            own = [name for name in self._momenta() if name not in s.received]
            self._forget_(s, own, [w in late for w in range(s.fleet.num_workers)])

    def _momenta(self) -> list[str]:
        return momenta(len(self.inner.state_names) - ("exp_avg_sq" in self.inner.state_names))


@functools.cache
def _defaults(name: str) -> dict[str, Any]:
    parameters = inspect.signature(ELEMENTWISE[name]).parameters.values()
    return {p.name: p.default for p in parameters if p.default is not p.empty and p.name != "lr"}


def _settings(inner: Optimizer) -> dict[str, Any]:
    """All options of an optimizer, those that are not given as they are by default."""
    return _defaults(inner.name) | inner.options


def kept(beta: float, steps: int) -> float:
    """Part of an agreed momentum that is left after so many local steps: β^K."""
    return beta**steps


def local_variance(beta: float, steps: int, noise: float = 1.0) -> float:
    """Variance that independent gradients of variance noise² add to a momentum in K local steps.

    (1 − β)/(1 + β) · (1 − β^2K) · noise²: what makes the momenta of different workers differ before a sync.
    """
    return (1 - beta) / (1 + beta) * (1 - beta ** (2 * steps)) * noise**2


def preserved_information(beta: float, steps: int, agreed_variance: float, noise: float = 1.0) -> float:
    """Mutual information (nats per coordinate, Gaussian model) between a momentum and the agreed one K steps before.

    ½ · ln(1 + β^2K · agreed variance / local variance).
    """
    return 0.5 * math.log1p(kept(beta, 2 * steps) * agreed_variance / local_variance(beta, steps, noise))
