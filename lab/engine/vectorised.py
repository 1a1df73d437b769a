"""All workers of a process in one forward and one backward pass.

A small model keeps a GPU waiting: its kernels are done sooner than the next ones are launched, and W workers launch W times
as many. Here one module runs over the stacks themselves (`torch.func.vmap`), so that what were W products of matrices is one
batched product, and gradients go straight into the stack of gradients. It takes a fleet whose workers all hold the same
tensors, and a model that `vmap` can follow: no dropout, no experts.

Legend: W workers in this process, B sequences, T positions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import wait
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from lab.engine.fleet import Fleet
from lab.ground.errors import RecipeError
from lab.ground.seeds.surroundings import one_core

# Of values ``[W, …]`` of all parameters, inputs and targets: losses ``[W]``, and the gradients.
Pass = Callable[[Sequence[Tensor], Tensor, Tensor], list[Tensor]]


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
    quickly
        what to make of a pass, so that it takes less time and gives the same.
    """

    def __init__(
        self,
        fleet: Fleet,
        precision: Callable[[torch.device], AbstractContextManager[object]],
        required: bool,
        quickly: Callable[[Pass], Pass] = lambda one: one,
    ):
        self.fleet, self.precision, self.required = fleet, precision, required
        self.works = True
        names = list(fleet.params.names())
        self.values, self.grads = ([stack[n] for n in names] for stack in (fleet.params, fleet.grads))  # [W, …]
        # Each thread has a module of its own, since a pass puts the values that it is for into the module.
        self.passes = [quickly(self._pass(_Loss(fleet.modules[w]))) for w in list(fleet.mine)[: fleet.threads]]

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
            if self.required:
                self._refuse("the method has a loss of its own")
            return None  # this time: there are methods that have one in some steps only
        fleet, up = self.fleet, [w for w in self.fleet.mine if self.fleet.up[w]]
        loss_W = torch.full((fleet.num_workers,), float("nan"), dtype=torch.float64)
        if not self.works:
            return None
        if not up:
            return loss_W
        inputs, targets = (x.to(fleet.device) for x in batches_of(up))
        each = -(-len(up) // len(self.passes))
        parts = [slice(at, min(at + each, len(up))) for at in range(0, len(up), each)]
        try:
            # Threads may only begin when what they all switch (a warning) is switched, and end before it is switched back.
            with _without_a_word():
                found = self._on_all_cores(partial(self._part, up, inputs, targets), parts)
        except RuntimeError as error:
            self._refuse(str(error).strip().splitlines()[0].split(". ")[0])
            return None
        loss_W[up] = torch.cat(found).cpu().double()
        return loss_W

    def _pass(self, loss: nn.Module) -> Pass:
        def run(values: Sequence[Tensor], inputs: Tensor, targets: Tensor) -> list[Tensor]:
            leaves = {f"module.{n}": x.detach().requires_grad_() for n, x in zip(names, values, strict=True)}
            with self.precision(device):
                losses = vmap(lambda p, *batch: functional_call(loss, p, batch))(leaves, inputs, targets)
            return [losses.detach(), *torch.autograd.grad(losses.sum(), [*leaves.values()], materialize_grads=True)]

        names, device = list(self.fleet.params.names()), self.fleet.device
        return run

    def _part(self, up: Sequence[int], inputs: Tensor, targets: Tensor, one: Pass, part: slice) -> Tensor:
        """The pass of some of those that are up; their losses."""
        rows = [self.fleet.mine.index(w) for w in up[part]]
        at: slice | list[int] = slice(rows[0], rows[-1] + 1) if rows[-1] - rows[0] == len(rows) - 1 else rows
        losses, *found = one([x[at] for x in self.values], inputs[part], targets[part])
        if isinstance(at, slice):
            torch._foreach_copy_([x[at] for x in self.grads], found)
        else:
            for x, new in zip(self.grads, found, strict=True):
                x[at] = new
        return losses

    def _on_all_cores(self, one: Callable[[Pass, slice], Tensor], parts: Sequence[slice]) -> list[Tensor]:
        """``one`` of every part: this thread takes the first, the others are the pool's. All have ended when this does."""
        others = [self.fleet.pool.submit(one, *of) for of in zip(self.passes[1:], parts[1:], strict=False)]
        try:
            with one_core():
                first = one(self.passes[0], parts[0])
        finally:
            wait(others)
        return [first, *(other.result() for other in others)]

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
