"""q-FedAvg (Li et al. 2020, "Fair Resource Allocation in Federated Learning", arXiv 1905.10497): clients that fare badly count for more."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

from pydantic import Field
from torch import Tensor

from lab.engine.comm import Communicator
from lab.engine.optim import Optimizer
from lab.engine.stack import Stack, clip_
from lab.engine.state import Grad, State, numeric
from lab.ground.config import Period, Positive, RecipeView, config
from lab.methods.registry import method, never_synced
from lab.methods.rounds import (
    InnerStates,
    Weight,
    beginning,
    fetch_,
    hand_in_weighted_,
    losses_there,
    note_,
    weights_of,
)

TINY = 1e-10  # is added to a loss before its powers are taken, as the authors' code does


@method("q_fedavg", server=True, holds=("params",))
@config
class QFedAvg:
    """A way to a minimum of Σ_k F_k^(q+1) / (q+1), algorithm 2 of the paper. With q = 0 it is FedAvg.

    A round of client k leads from w to w_k, and with 1/η for the Lipschitz constant L

        Δw_k = L·(w − w_k),    Δ_k = F_k^q·Δw_k,    h_k = q·F_k^(q−1)·‖Δw_k‖² + L·F_k^q,    w ← w − Σ Δ_k / Σ h_k

    F_k is the client's loss at w. The paper takes all examples of the client; here it is the loss of the first batch of its round,
    which costs nothing (ours).

    Sends: ``params``, down at the beginning of a round (w) and up at its end (Δ_k), and one number up, ``h``. State: the server's w in
    ``shared``, which a client has at hand to hand in its difference; inner states local.

    q
        0 is FedAvg; the larger it is, the more the worst-off count. The paper looks for it from 0.001 to 15.
    lipschitz
        L; None: 1 / learning rate of ``inner``, as in the paper.
    weight
        ``uniform``, as in the paper's algorithm, which draws clients by how many examples they have; ``samples`` is for clients that are
        drawn alike: Δ_k and h_k count n_k times.
    inner, inner_states, max_norm
        as of `lab.methods.fedprox.FedProx`.
    """

    sync_every: Period = 16
    q: Annotated[float, Field(ge=0)] = 1.0
    inner: Optimizer = Field(default_factory=lambda: Optimizer("SGD", 0.1))
    lipschitz: Positive | None = None
    inner_states: InnerStates = "reset"
    weight: Weight = "uniform"
    max_norm: Positive | None = None

    def __post_init__(self) -> None:
        if self.inner_states == "reset":
            self.inner.check_reset()

    @property
    def averages(self) -> tuple[str, ...]:
        return ("params",)

    def exceptions(self) -> dict[str, str]:
        return {"plain optimizer": "with q > 0 the server takes a shorter way than its clients"} if self.q else {}

    def notes(self, recipe: RecipeView) -> Iterator[str]:
        yield from never_synced(self.sync_every, recipe.steps)

    def init(self, s: State) -> None:
        s.optimizers["inner"] = self.inner.over(s.local["params"], s.grads)
        s.shared["params"] = beginning(s.fleet)  # w
        s.facts["loss_W"] = [0.0] * s.fleet.num_workers  # F_k

    def step(self, s: State, grad: Grad, comm: Communicator, t: int) -> Tensor:
        to = fetch_(s, comm, t, self.sync_every, self.inner_states)  # w_k ← w
        loss_W = grad(s)
        if to:
            note_(s, comm, "loss_W", losses_there(s, to, loss_W))
        clip_(s.grads, self.max_norm)
        self.inner.step_(s, t)
        if t % self.sync_every == 0 and any(s.fleet.up):
            ways, h = s.local["params"].zeros_like(), {w: 0.0 for w in s.fleet.mine if s.fleet.up[w]}
            self._fill_(s, ways, h)  # −Δ_k, and h_k
            hand_in_weighted_(s, comm, ways, h, "h")  # w ← w − Σ Δ_k / Σ h_k
        return loss_W

    @numeric
    def _fill_(self, s: State, ways: Stack, h: dict[int, float]) -> None:
        """−Δ_k into ``ways`` ``[H, P]`` and h_k into ``h``, of the clients here that are up."""
        q, L, n_W = self.q, self.lipschitz or 1 / self.inner.lr, weights_of(s, self.weight)
        loss = {w: s.facts["loss_W"][w] + TINY for w in h}
        n = {w: 1.0 if n_W is None else n_W[w] for w in h}
        for i, block in enumerate(ways.layout.blocks):
            rows = [r for r, w in enumerate(block.holders) if w in h]
            if block.personal or not rows:
                continue
            x = ways.blocks[i]
            x[rows] = L * (s.local["params"].blocks[i][rows] - s.shared["params"].blocks[i])  # −Δw_k
            squares = x[rows].double().square().sum(1).tolist()
            for row, square in zip(rows, squares, strict=True):
                w = block.holders[row]
                h[w] += n[w] * q * loss[w] ** (q - 1) * square
                x[row] *= n[w] * loss[w] ** q
        for w in h:
            h[w] += n[w] * L * loss[w] ** q
