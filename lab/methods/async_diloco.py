"""Asynchronous DiLoCo (Liu et al. 2024, "Asynchronous Local-SGD Training for Language Modeling", arXiv 2401.09135): nobody waits for anybody."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from fractions import Fraction as Ratio
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from lab.engine.comm import Communicator
from lab.engine.optim import AdamW, Optimizer, states, step_
from lab.engine.stack import Stack, clip_
from lab.engine.state import Grad, State, numeric
from lab.ground.config import Count, Fraction, Period, Positive, RecipeView, config
from lab.ground.errors import RecipeError
from lab.methods.registry import method, never_synced
from lab.methods.rounds import beginning

Pace = Annotated[float, Field(ge=1, le=1000)]
BY_NUMBER = "how fast a worker is follows from its number"
BY_ARRIVALS = "momentum moves after so many arrivals, however many workers there are"


@method("async_diloco", server=True)
@config
class AsyncDiLoCo:
    """Worker w takes the server's θ, goes ``sync_every`` (H) local steps of its own, hands in Δ_w = taken − local, takes the newest θ, and goes on.

    The server moves as soon as something arrives, Nesterov's momentum with a delay. With N workers up:

    * at every arrival  g = Δ_w / N;  b = b + g;  θ = θ − lr·g
    * when N have arrived since the last time  m = μ·m + b;  θ = θ − lr·μ·m;  b = 0

    The clock: a step of a run is a tick, in which the fastest workers (pace 1) take a local step. A worker of pace p ends its n-th
    local step in tick ⌈n·p⌉; in all others it is at work, and its parameters stay. What arrives in one tick is one move of the server,
    and all of them then take the same θ. Paces are exact ratios, so that a run can be repeated. Seconds come from the price of a
    run: a tick is a local step there, and an exchange holds up those alone who take part in it.

    With equal paces all arrive together, and it is DiLoCo with its outer Nesterov step, to rounding.

    Sends: ``params``, from the server (``broadcast``) to whoever begins a round and to it (``reduce``) from whoever ends one. State: the
    server's θ in ``shared``, m and b with it; at a worker ``taken``, the θ that it has last taken, and inner states, which are kept.

    [inferred] What the paper leaves open, or we do not know of it: that N counts those who are up; that arrivals of one tick are one move
    (the paper lets a server wait for a little while, so that several arrive together); that a worker which comes back takes the newest θ and
    hands in at its next appointed tick, after fewer steps; that the learning rate's schedule goes by ticks. The paper's c, by which a
    part of the momentum is spread over the arrivals between, is 0. Links take no time that would change who comes first. The gradient
    of a worker at work is worked out in every tick, and used in the one in which its step ends.

    Not Decoupled DiLoCo (Douillard et al. 2026, arXiv 2604.21428), whose server merges fragments at fixed periods from a quorum of
    learners, weighted by their tokens.

    paces
        how many times longer a local step takes than a tick, of workers 0, 1, …, again from the first where there are more workers.
        They are in the place of ``scenario.slow``, which would make the ticks of a worker longer in the price, and change nothing else.
    local_steps
        ``equal``: H at every worker; ``by_speed``: at one that is p times slower than the fastest H / p, rounded down, at least one (the paper's
        dynamic local updates), so that all arrive about equally often.
    lr, momentum
        0.7 and 0.9, those of DiLoCo.
    momentum_every
        arrivals after which momentum moves; None: as many as workers are up. 1: at every arrival, which the paper finds to be what
        goes wrong.
    staleness
        a: an arrival counts (1 + τ)^−a times, with τ moves of the server since its worker took θ, its own left out. 0, as in the paper: all
        count alike. The form is that of FedAsync (Xie et al. 2019, arXiv 1903.03934).
    """

    sync_every: Period = 32
    paces: Annotated[tuple[Pace, ...], Field(min_length=1)] = (1.0,)
    local_steps: Literal["equal", "by_speed"] = "equal"
    inner: Optimizer = Field(default_factory=lambda: AdamW(lr=3e-3))
    lr: Positive = 0.7
    momentum: Fraction = 0.9
    momentum_every: Count | None = None
    staleness: Annotated[float, Field(ge=0)] = 0.0
    max_norm: Positive | None = 1.0

    @property
    def averages(self) -> tuple[str, ...]:
        return ("params",)

    def check(self, recipe: RecipeView) -> None:
        if len({*self.paces}) > 1 and recipe.clients.take_turns(recipe.num_workers):
            raise RecipeError(
                "method.paces differ, but clients take turns as workers in rounds of one length: use one pace, or as many workers as clients"
            )

    def notes(self, recipe: RecipeView) -> Iterator[str]:
        yield from never_synced(self.sync_every, recipe.steps)
        if len(self.paces) > recipe.num_workers:
            yield f"method.paces has {len(self.paces)} paces for {recipe.num_workers} workers: those after the last worker's make no difference"
        if recipe.scenario.slow:
            yield (
                "scenario.slow makes ticks longer in the price alone: who takes fewer local steps than others, and arrives later, is said by "
                "method.paces"
            )
        if len({*self.paces}) == 1:
            if self.staleness:
                yield "method.staleness makes no difference: with equal paces nothing that arrives is stale"
            if self.local_steps == "by_speed":
                yield "method.local_steps = 'by_speed' makes no difference: all paces are equal"

    def exceptions(self) -> dict[str, str]:
        if len({*self.paces}) > 1:
            alone = {"isolation": "while the one that is heard is at work, others arrive without it"}
            return alone | dict.fromkeys(("relabelling", "solitude", "equal workers"), BY_NUMBER)
        return dict.fromkeys(("solitude", "equal workers"), BY_ARRIVALS) if (self.momentum_every or 1) > 1 else {}

    def steps_by(self, worker: int, t: Any) -> Any:
        """How many local steps a worker that was always up has ended by the end of tick ``t``."""
        pace = self._pace(worker)
        return t * pace.denominator // pace.numerator

    def ends(self, worker: int, t: Any) -> bool:
        """Whether a worker ends a local step in tick ``t``."""
        return bool(self.steps_by(worker, t) != self.steps_by(worker, t - 1))

    def arrives(self, worker: int, t: Any) -> bool:
        """Whether a worker ends a round in tick ``t``; before the first tick it is as if all had."""
        return self.ends(worker, t) and bool(self.steps_by(worker, t) % self._round(worker) == 0)

    def _pace(self, worker: int) -> Ratio:
        return Ratio(str(self.paces[worker % len(self.paces)]))

    def _round(self, worker: int) -> int:
        if self.local_steps == "equal":
            return self.sync_every
        return max(1, int(self.sync_every * Ratio(str(min(self.paces))) / self._pace(worker)))

    def init(self, s: State) -> None:
        s.optimizers["inner"] = self.inner.over(s.local["params"], s.grads)
        s.local["taken"] = s.local["params"].clone()
        s.shared["params"] = beginning(s.fleet)  # θ
        s.shared["server.momentum"] = s.shared["params"].zeros_like()  # m
        s.shared["server.since"] = s.shared["params"].zeros_like()  # b
        s.facts |= {"moves": 0, "arrived": 0, "took_W": [0] * s.fleet.num_workers}

    def step(self, s: State, grad: Grad, comm: Communicator, t: int) -> Tensor:
        up = s.fleet.up
        begin = [w in s.returned or (u and self.arrives(w, t - 1)) for w, u in enumerate(up)]
        if any(begin):
            comm.broadcast_(s.shared["params"], s.local["params"], "params", to=[w for w, b in enumerate(begin) if b])
            self._take_(s, begin)
        loss_W = grad(s)
        clip_(s.grads, self.max_norm)
        moving = [u and self.ends(w, t) for w, u in enumerate(up)]
        if any(moving):
            step_(s.optimizers["inner"], self.inner.lr * s.schedule(t), s.local["params"], moving)
            s.local.update(states(s.optimizers["inner"], s.local["params"]))
        arriving = [u and self.arrives(w, t) for w, u in enumerate(up)]
        if any(arriving):
            self._hand_in_(s, comm, arriving)
        return loss_W

    @numeric
    def _take_(self, s: State, begin: list[bool]) -> None:
        s.local["taken"].copy_(s.shared["params"], begin)
        s.facts["took_W"] = [s.facts["moves"] if b else k for b, k in zip(begin, s.facts["took_W"], strict=True)]

    def _hand_in_(self, s: State, comm: Communicator, arriving: list[bool]) -> None:
        stale_W = [s.facts["moves"] - took for took in s.facts["took_W"]]  # τ
        counts_W = [(1.0 + k) ** -self.staleness for k in stale_W]
        mean = comm.mean(
            s.local["params"] - s.local["taken"],
            "params",
            weights_W=counts_W if self.staleness else None,
            fallback=s.shared["params"].zeros_like(),
            participants=arriving,
            to_server=True,
        )
        self._move_(s, mean, arriving, counts_W)

    @numeric
    def _move_(self, s: State, mean: Stack, arriving: Sequence[bool], counts_W: Sequence[float]) -> None:
        """The server moves. ``mean`` is that of local − taken over those who arrive, by what they count; it is used up."""
        theta, m, b = (s.shared[name].blocks for name in ("params", "server.momentum", "server.since"))
        g, up = mean.blocks, s.fleet.up
        shares = [
            sum(counts_W[w] for w in block.taking_part(arriving)) / max(1, len(block.taking_part(up)))
            for block in mean.layout.blocks
        ]
        torch._foreach_mul_(g, [-share for share in shares])
        torch._foreach_add_(b, g)
        torch._foreach_add_(theta, g, alpha=-self.lr)
        s.facts["moves"] += 1
        s.facts["arrived"] += sum(arriving)
        if s.facts["arrived"] >= (self.momentum_every or sum(up)):
            torch._foreach_mul_(m, self.momentum)
            torch._foreach_add_(m, b)
            torch._foreach_add_(theta, m, alpha=-self.lr * self.momentum)
            torch._foreach_zero_(b)
            s.facts["arrived"] = 0
