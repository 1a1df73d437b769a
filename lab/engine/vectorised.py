"""All workers of a process in one forward and one backward pass.

A small model keeps a GPU waiting: its kernels are done sooner than the next ones are launched, and W workers launch W times
as many. Here one module runs over the stacks themselves (`torch.func.vmap`), so that what were W products of matrices is one
batched product, and gradients go straight into the stack of gradients. It takes a fleet whose workers all hold the same
tensors, and a model that `vmap` can follow: no dropout, no experts.

Legend: W workers in this process, B sequences, T positions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from lab.engine.fleet import Fleet
from lab.errors import RecipeError


class _Loss(nn.Module):
    def __init__(self, module: nn.Module):
        super().__init__()
        self.module = module

    def forward(self, ids: Tensor, targets: Tensor) -> Tensor:
        return self.module.loss(ids, targets)  # type: ignore[operator, no-any-return]


class Vectorised:
    """Forward and backward passes of all workers at once.

    Parameters
    ----------
    precision
        entered around the forward pass on a device (`torch.autocast`, or nothing).
    required
        raise RecipeError where it does not work; else `backward` says so by None, once and for all.
    """

    def __init__(
        self, fleet: Fleet, precision: Callable[[torch.device], AbstractContextManager[object]], required: bool
    ):
        self.fleet, self.precision, self.required = fleet, precision, required
        self.works = True
        self.loss = _Loss(fleet.modules[fleet.mine[0]])

    def backward(
        self, batches_of: Callable[[Sequence[int]], tuple[Tensor, Tensor]], own_loss: bool = False
    ) -> Tensor | None:
        """As `Fleet.backward`: fill the gradients of all workers here that are up, return losses ``[N]``.

        Parameters
        ----------
        batches_of
            inputs and targets of some workers, ``[W, B, …]``.
        own_loss
            whether the method has a loss of its own, which is that of one worker.
        """
        if own_loss:
            self._refuse("the method has a loss of its own")
            return None
        fleet, up = self.fleet, [w for w in self.fleet.mine if self.fleet.up[w]]
        loss_W = torch.full((fleet.num_workers,), float("nan"), dtype=torch.float64)
        if not self.works:
            return None
        if not up:
            return loss_W
        rows = [fleet.mine.index(w) for w in up]
        of_all = len(rows) == len(fleet.mine)
        stacks = {name: fleet.params[name] for name in fleet.params.names()}
        leaves = {f"module.{n}": (x if of_all else x[rows]).detach().requires_grad_() for n, x in stacks.items()}
        inputs, targets = (x.to(fleet.device) for x in batches_of(up))
        try:
            with self.precision(fleet.device), _without_a_word():
                losses = vmap(lambda p, *batch: functional_call(self.loss, p, batch))(leaves, inputs, targets)
        except RuntimeError as error:
            self._refuse(str(error).strip().splitlines()[0].split(". ")[0])
            return None
        found = torch.autograd.grad(losses.sum(), list(leaves.values()), materialize_grads=True)
        grads = [fleet.grads[name] for name in stacks]
        if of_all:
            torch._foreach_copy_(grads, found)
        else:
            for mine, new in zip(grads, found, strict=True):
                mine[rows] = new
        loss_W[up] = losses.detach().cpu().double()
        return loss_W

    def _refuse(self, why: str) -> None:
        self.works = False
        if self.required:
            raise RecipeError(f"compute.vectorised = true does not work here: leave it out ({why})")


@contextmanager
def _without_a_word() -> Iterator[None]:
    """vmap has no rule for the fused attention of CPUs and calls it for each worker: as fast as any other way.

    It would warn of that. A filter of warnings is for all threads, and would stay; this is vmap's own switch.
    """
    switch: Any = torch._C._functorch
    switch._set_vmap_fallback_warning_enabled(False)
    try:
        yield
    finally:
        switch._set_vmap_fallback_warning_enabled(True)
