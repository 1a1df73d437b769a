"""FoMoE (arXiv 2606.19025): a federation of experts. No site holds the whole model, and no expert visits all sites."""

from __future__ import annotations

from pydantic import Field
from torch import Tensor

from lab.engine.comm import Communicator
from lab.engine.optim import AdamW, Optimizer, forget_
from lab.engine.outer import init_outer, outer_step_
from lab.engine.stack import clip_
from lab.engine.state import Grad, State
from lab.ground.config import Period, Positive, config
from lab.methods.registry import method


@method("fomoe", moves_experts=True)
@config
class FoMoE:
    """Each expert lives on O_e of the M workers: dense tensors are averaged over all, an expert over its holders only.

    Nothing of that is written here. A worker's module has only its resident experts (``recipe.placement``), and the mean
    of a tensor is always over those who hold it. What this file adds to DES-LOC's loop is the moving of experts: with a
    *random* placement a new table is drawn every T rounds (a round is ``sync_every.params`` local steps). An expert that
    comes to a worker is sent to it once, starts there with a fresh optimizer state, and warms up alone.

    Sends: each state on its own period, over the holders; ``params`` of the experts that move. State: inner states local;
    ``shared`` parameters, the coordinator's copy from which experts are handed out, and the outer momentum, which stays
    with an expert wherever it goes.

    sync_every
        periods by state. ``{"params": K}`` with ``outer`` is the paper's DiLoCo variant; params and both moments on the
        same period without ``outer`` is its LocalAdamW variant, the better one there and the default here; other periods
        make it DES-LOC.
    outer
        outer optimizer on the averaged parameters (the paper: Nesterov 0.7 / 0.9), or None for the plain mean.

    The source leaves open the length of the warm-up (``placement.warmup``; one round here) and what becomes of the outer
    momentum of an expert that moves.
    """

    sync_every: dict[str, Period] = Field(default_factory=lambda: {"params": 32, "exp_avg": 32, "exp_avg_sq": 32})
    inner: Optimizer = Field(default_factory=lambda: AdamW(lr=3e-3))
    outer: Optimizer | None = None
    max_norm: Positive | None = 1.0

    def __post_init__(self) -> None:
        self.inner.check_periods(self.sync_every)

    @property
    def averages(self) -> tuple[str, ...]:
        return tuple(self.sync_every)

    def init(self, s: State) -> None:
        s.optimizers["inner"] = self.inner.over(s.local["params"], s.grads)
        if self.outer is not None:
            init_outer(s, self.outer)
        else:
            s.shared["params"] = s.local["params"].first()

    def step(self, s: State, grad: Grad, comm: Communicator, t: int) -> Tensor:
        round_steps = self.sync_every["params"]
        warmup = 0
        if s.experts is not None:
            if s.experts.redraw_(t, round_steps):  # algorithm 1: S^t from a new table
                arrived = s.fleet.hold_(s.experts.holders, t)
                comm.send_(s.shared["params"], s.local["params"], "params", arrived)
                forget_(s.optimizers["inner"], s.local["params"], arrived)
            warmup = s.experts.warmup(round_steps)
        loss_W = grad(s)
        clip_(s.grads, self.max_norm)
        self.inner.step_(s, t, warmup)
        for name, period in self.sync_every.items():
            if t % period:
                continue
            if name != "params":
                comm.mean_(s.local[name], name)
            elif self.outer is not None:
                outer_step_(s, comm)
            else:
                s.shared["params"] = comm.mean(s.local["params"], "params", fallback=s.shared["params"])
                s.local["params"].copy_(s.shared["params"], s.fleet.up)
        return loss_W
