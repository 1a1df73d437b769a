"""What becomes of buffers that training moves, such as the running means and variances of a BatchNorm."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import nn

from lab.engine.fleet import saved_buffers
from lab.ground.config import Period, config

Kind = Literal["local", "averaged", "first", "frozen"]


@config
class Buffers:
    """The buffers of a model as a state of their own: ``buffers`` in the ledger.

    Meant are those that ``state_dict`` has (in PyTorch's words: the persistent ones). What a module keeps beside them, such as
    the rotary angles of a GPT, is constant, and never sent. They have the recipe's ``dtype``, but for integers.

    kind
        ``local``: each worker's own, and never sent; the model is evaluated with their means. ``averaged``: every ``every`` local
        steps all workers that are up take the mean of theirs. ``first``: as torch's ``DistributedDataParallel`` does it, those of
        the first worker that is up are sent to all others before each forward pass; they are also the model's own.
        ``frozen``: they stay as they are at first, and the layers that have them compute as in evaluation.
    every
        local steps between two means; None: those of a round of the method (in every step, where it has none).

    Integers, such as ``num_batches_tracked``, are counts of what a worker has seen: a mean of them makes no sense, and they stay
    its own under ``averaged``. Under ``first`` they are sent, as by ``DistributedDataParallel``.
    """

    kind: Kind = "local"
    every: Period | None = None

    def freeze_(self, module: nn.Module) -> nn.Module:
        """Have a worker's module treat its buffers as this says."""
        if self.kind == "frozen":
            for name in saved_buffers(module):
                module.get_submodule(name.rpartition(".")[0]).training = False
        return module

    def of_model(self, up: Sequence[bool]) -> list[bool]:
        """Whose buffers the model's are the mean of, where these workers are up."""
        first = next((w for w, u in enumerate(up) if u), 0)
        return [w == first for w in range(len(up))] if self.kind == "first" else list(up)
