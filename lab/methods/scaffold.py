"""SCAFFOLD (Karimireddy et al. 2020, arXiv 1910.06378): control variates take the drift out of the clients' steps."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from pydantic import Field
from torch import Tensor

from lab.engine.comm import Communicator
from lab.engine.optim import Optimizer
from lab.engine.stack import Stack, at_least_float32, clip_
from lab.engine.state import Grad, State, numeric
from lab.ground.config import Period, Positive, RecipeView, config
from lab.ground.errors import RecipeError
from lab.methods.private import add_noise_, clipped
from lab.methods.registry import method, never_synced
from lab.methods.rounds import Weight, beginning, fetching, share_of_all, weights_of


@method("scaffold", server=True, keeps=("control",), holds=("params", "control"), bounded=True)
@config
class SCAFFOLD:
    """y_i ← y_i − η_l·(g_i(y_i) − c_i + c): c_i says where client i pulls, c where all do; algorithm 1.

    At the end of a round c_i becomes what the client's gradient was, at x (option I) or on its way from x to y_i (option II), and

        x ← x + η_g·E_S[y_i − x],    c ← c + |S|/N·E_S[c_i⁺ − c_i]

    over the clients S of the round, of N that there are. So c stays the mean of all c_i, also of those who are away.

    Sends: ``params`` and ``control``, down at the beginning of a round (x and c) and up at its end (y_i − x and c_i⁺ − c_i): twice the
    bytes of FedAvg. State: the server's x and c in ``shared``, which a client has at hand while it trains; local ``control`` (c_i), which
    goes where its client goes, and with option I the gradient at x.

    A client that was down for a part of the round fetches x and c when it is back, and its way from there is divided by its own local
    steps K_i. One that is down at the end hands in nothing and keeps its c_i. What is personal has no control variate.

    sync_every
        K, local steps of a round.
    inner
        η_l. With option II plain SGD, since a way can be read as a gradient only if it was made of gradients (weight decay counts as a
        part of them); with option I any optimizer.
    server_lr
        η_g. The paper's theory has √|S|, its experiments 1.
    option
        ``II``, or ``I``: the gradient at x of the first batch of the round (the paper also allows for all examples of a client).
    weight
        ``uniform`` as in the paper; ``samples``: means over clients, and N, count examples, for an objective that does.
    max_norm
        largest norm of g_i, which then is clipped where it is taken; None, as in the paper: no clipping.
    """

    sync_every: Period = 16
    inner: Optimizer = Field(default_factory=lambda: Optimizer("SGD", 0.1))
    server_lr: Positive = 1.0
    option: Literal["I", "II"] = "II"
    weight: Weight = "uniform"
    max_norm: Positive | None = None

    def __post_init__(self) -> None:
        plain = self.inner.name == "SGD" and not self.inner.options.get("momentum")
        if self.option == "II" and not plain:
            raise RecipeError(
                f"scaffold takes control variates from how far a client went (option II), which {self.inner.name} {self.inner.options} "
                "does not tell: use SGD without momentum, or method.option=I"
            )

    @property
    def averages(self) -> tuple[str, ...]:
        return ("params", "control")

    def notes(self, recipe: RecipeView) -> Iterator[str]:
        yield from never_synced(self.sync_every, recipe.steps)

    def init(self, s: State) -> None:
        s.optimizers["inner"] = self.inner.over(s.local["params"], s.grads)
        s.shared["params"] = beginning(s.fleet)  # x
        s.shared["control"] = s.shared["params"].zeros_like()  # c
        s.local["control"] = s.local["params"].zeros_like()  # c_i
        if self.option == "I":
            s.local["start_gradient"] = s.local["params"].zeros_like()  # g_i(x)
        s.facts["lr_sum_W"] = [0.0] * s.fleet.num_workers  # K_i·η_l, under any schedule

    def step(self, s: State, grad: Grad, comm: Communicator, t: int) -> Tensor:
        to = fetching(s, t, self.sync_every)
        if to:
            comm.broadcast_(s.shared["params"], s.local["params"], "params", to=to)  # y_i ← x
            comm.broadcast_(s.shared["control"], s.shared["control"], "control", to=to)
        loss_W = grad(s)
        clip_(s.grads, self.max_norm)
        self._note_(s, to, self.inner.lr * s.schedule(t))
        self._correct_(s)
        self.inner.step_(s, t)
        if t % self.sync_every == 0 and any(s.fleet.up):
            n_W, change = weights_of(s, self.weight), s.local["control"].zeros_like()
            self._renew_control_(s, change)
            y, change = clipped(s, (s.local["params"], s.shared["params"]), (change, None))
            moved = comm.mean(y, "params", minus=s.shared["params"], weights_W=n_W, to_server=True)
            change = comm.mean(change, "control", weights_W=n_W, to_server=True)
            add_noise_(s, comm, params=moved, control=change)
            self._move_server_(s, moved, change)
        return loss_W

    @numeric
    def _note_(self, s: State, to: list[int], lr: float) -> None:
        """Who has just fetched x begins to count, and notes its gradient there; a step of size ``lr`` follows."""
        lr_sum_W = s.facts["lr_sum_W"]
        for w, up in enumerate(s.fleet.up):
            lr_sum_W[w] = (0.0 if w in to else lr_sum_W[w]) + (lr if up else 0.0)
        if self.option == "I":
            s.local["start_gradient"].put_(s.grads, [w in to for w in range(s.fleet.num_workers)])

    @numeric
    def _correct_(self, s: State) -> None:
        """g_i − c_i + c. Of what is personal both are zero."""
        for g, c, c_i in zip(s.grads.blocks, s.shared["control"].blocks, s.local["control"].blocks, strict=True):
            g.add_(c - c_i)  # [1, P] − [H, P]

    @numeric
    def _renew_control_(self, s: State, change: Stack) -> None:
        """c_i⁺ − c_i into ``change`` ``[H, P]``, and c_i ← c_i⁺, at the clients that are up and have moved."""
        x, c, y, c_i = s.shared["params"], s.shared["control"], s.local["params"], s.local["control"]
        lr_sum_W = s.facts["lr_sum_W"]
        for i, block in enumerate(y.layout.blocks):
            rows = [r for r, w in enumerate(block.holders) if s.fleet.up[w] and lr_sum_W[w] > 0]
            if block.personal or not rows:
                continue
            if self.option == "I":
                new = s.local["start_gradient"].blocks[i][rows] - c_i.blocks[i][rows]
            else:
                dtype = at_least_float32(y.blocks[i].dtype)
                lr_sum = y.blocks[i].new_tensor([lr_sum_W[block.holders[r]] for r in rows], dtype=dtype)
                new = (x.blocks[i] - y.blocks[i][rows]) / lr_sum[:, None] - c.blocks[i]
            change.blocks[i][rows] = new.to(c.blocks[i].dtype)
            c_i.blocks[i].add_(change.blocks[i])

    @numeric
    def _move_server_(self, s: State, moved: Stack, change: Stack) -> None:
        """x ← x + η_g·Δx and c ← c + |S|/N·Δc; ``moved`` and ``change`` are means over S, ``[1, P]``."""
        x, c = s.shared["params"], s.shared["control"]
        for i, block in enumerate(x.layout.blocks):
            share = share_of_all(s, self.weight, block)
            if share and not block.personal:
                x.blocks[i].add_(moved.blocks[i], alpha=self.server_lr)
                c.blocks[i].add_(change.blocks[i], alpha=share)
