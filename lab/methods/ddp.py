"""DDP: data-parallel training, the yardstick. Every gradient is averaged in every step."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field
from torch import Tensor

from lab.engine.comm import Communicator
from lab.engine.optim import AdamW, Optimizer
from lab.engine.stack import clip_
from lab.engine.state import Grad, State
from lab.ground.config import Positive, config
from lab.ground.errors import RecipeError
from lab.methods.registry import method


@method("ddp")
@config
class DDP:
    """One model on the joined batch, spread over the workers (`torch.nn.parallel.DistributedDataParallel`).

    Sends: ``grads``, once per step. State: parameters and inner states are local and equal everywhere, because equal
    values move by the same mean gradient.

    ``max_norm``: the norm of the *averaged* gradient is clipped, as one model on the joined batch would.
    """

    sync_every: ClassVar[None] = None  # it sends in every step
    inner: Optimizer = Field(default_factory=lambda: AdamW(lr=3e-3))
    max_norm: Positive | None = 1.0

    @property
    def averages(self) -> tuple[str, ...]:
        return ("grads",)

    def init(self, s: State) -> None:
        holders = {block.everywhere for block in s.fleet.layout.blocks}
        if self.max_norm is not None and len(holders) > 1:
            raise RecipeError(
                "ddp cannot clip by norm where workers hold different tensors: each would scale what they share differently; "
                "set method.max_norm=null"
            )
        s.optimizers["inner"] = self.inner.over(s.local["params"], s.grads)

    def step(self, s: State, grad: Grad, comm: Communicator, t: int) -> Tensor:
        loss_W = grad(s)
        comm.mean_(s.grads, "grads")
        clip_(s.grads, self.max_norm)
        self.inner.step_(s, t)
        return loss_W
