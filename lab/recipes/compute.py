"""Where and how the workers of a process compute their losses and gradients. None of it changes what is sent."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Literal

import torch
from torch import Tensor

from lab.engine.fleet import Fleet, saved_buffers
from lab.engine.vectorised import Vectorised
from lab.ground.config import Count, RecipeView, config
from lab.ground.errors import RecipeError
from lab.recipes.replay import Replayed

# Below this many multiplications of parameters with tokens, a worker's step takes less time on a GPU than its launches: about
# 100 kernels of 5 µs a layer, at 10 TFLOP/s and 6 operations each. An estimate, not measured.
SMALL = 5e9
# On a CPU so many workers in one pass are faster than each by itself, up to so many multiplications a worker: measured on two cores
# by `python -m bench federation`. A rule, and no measurement when a run begins: then the same recipe has the same numbers every time.
MANY, SMALL_ON_A_CPU = 8, 3e6


@config
class Compute:
    """Where a worker computes, how precisely, and how much at a time.

    device
        ``cpu``; ``auto``: what Accelerate chooses (with several processes a GPU for each, with one the GPU, Apple's, or else the
        CPU); ``cuda`` and ``mps``: that, or an error. Never measured on a GPU, so the default is the CPU.
    mixed_precision
        ``bf16``: forward passes and losses under `torch.autocast`, as with Accelerate's option of that name. Parameters,
        gradients, optimizer states and what travels keep the recipe's ``dtype``.
    accumulate
        passes into which the batch of a local step is cut; their gradients add up to that of the whole batch, with less memory
        for activations. Means are over all tokens of the batch, however they fall to the passes; of a model with experts the
        balance loss is that of each pass, and what is seen of its routers is the last one.
    vectorised
        all workers in one pass over the stacks (`lab.engine.vectorised`), instead of each by itself. None: on a GPU, where
        launching kernels would take longer than they do, and on a CPU for many clients with small models.
    """

    device: Literal["cpu", "auto", "cuda", "mps"] = "cpu"
    mixed_precision: Literal["no", "bf16"] = "no"
    accumulate: Count = 1
    vectorised: bool | None = None

    def check(self, recipe: RecipeView) -> None:
        """Raises RecipeError for what does not go together."""
        batch_size, dtype = recipe.batch_size, recipe.dtype
        if self.accumulate > batch_size:
            raise RecipeError(
                f"compute.accumulate = {self.accumulate} cuts a batch of {batch_size} sequences into more parts than it has: "
                f"use at most {batch_size}"
            )
        if self.accumulate > 1 and self.vectorised:
            raise RecipeError(
                "compute.vectorised = true takes all at once, compute.accumulate little at a time: leave out one"
            )
        if self.mixed_precision == "bf16" and dtype != "float32":
            raise RecipeError(
                f"compute.mixed_precision = 'bf16' is for dtype float32, not {dtype}: leave out one of the two"
            )
        if self.device == "mps" and dtype == "float64":
            raise RecipeError("compute.device = 'mps' has no float64: use dtype float32")

    def one_by_one(self, what: str) -> None:
        """Raises RecipeError where all workers are to compute in one pass: ``what`` needs each by itself."""
        if self.vectorised:
            raise RecipeError(f"compute.vectorised = true does not go with {what}: leave out one")

    def precision(self, device: torch.device) -> AbstractContextManager[object]:
        """Entered around forward passes and losses, in the thread that computes them; never around backward."""
        if self.mixed_precision == "no":
            return nullcontext()
        return torch.autocast(device.type, dtype=torch.bfloat16)

    def losses(
        self,
        of: Callable[[Tensor, Tensor], Tensor],
        inputs: Tensor,
        targets: Tensor,
        device: torch.device,
        num_targets: Callable[[Tensor], int],
    ) -> Iterator[Tensor]:
        """The loss of a batch (on the CPU) in parts that sum to it, each made on the device when it is asked for.

        Parameters
        ----------
        of
            the mean loss over those targets of some rows that count.
        num_targets
            how many of some targets count.
        """
        parts = list(zip(inputs.tensor_split(self.accumulate), targets.tensor_split(self.accumulate), strict=True))
        count = [num_targets(goals) for _, goals in parts] if self.accumulate > 1 else [1]
        for (some, goals), num in zip(parts, count, strict=True):
            if num:  # else a mean over nothing
                with self.precision(device):
                    loss = of(some.to(device), goals.to(device))
                yield loss * (num / sum(count)) if self.accumulate > 1 else loss


def vectorised(
    fleet: Fleet, compute: Compute, tokens: int, clients: bool = False, ours: bool = False
) -> Vectorised | None:
    """For steps of so many tokens or examples a worker; None where each worker computes by itself. Raises RecipeError.

    ``clients``: the workers are clients of a federation, of whom there are many and whose models are small. ``ours``: model and task are
    the lab's own.
    """
    alike = all(block.holders == tuple(fleet.mine) for block in fleet.layout.blocks)
    if compute.vectorised:
        if not alike:
            raise RecipeError("compute.vectorised = true is for workers that all hold the same tensors: leave it out")
        return Vectorised(fleet, compute.precision, required=True)
    small = max(map(fleet.num_params, fleet.mine)) * tokens < SMALL
    if saved_buffers(fleet.modules[fleet.mine[0]]):
        return None  # in one pass there is one module, and so one set of buffers
    faster = alike and small and fleet.device.type != "cpu" and compute.accumulate == 1
    if clients and fleet.device.type == "cpu":
        work = max(map(fleet.num_params, fleet.mine)) * tokens
        faster = alike and compute.accumulate == 1 and len(fleet.mine) >= MANY and work < SMALL_ON_A_CPU
    if compute.vectorised is not None or not faster:
        return None
    return Vectorised(
        fleet, compute.precision, required=False, quickly=Replayed if clients and ours else lambda one: one
    )


def only_cpus() -> bool:
    """Whether ``accelerate launch --cpu`` says so."""
    from accelerate.utils import parse_flag_from_env

    return bool(parse_flag_from_env("ACCELERATE_USE_CPU"))


def device_of(compute: Compute, dtype: str) -> torch.device:
    """What this process computes on. Raises RecipeError where the machine does not have what the recipe asks for."""
    if compute.device == "cpu":
        return torch.device("cpu")
    from accelerate import PartialState  # takes a second, which runs on the CPU do without

    chosen: torch.device = PartialState(cpu=only_cpus()).device
    if compute.device not in ("auto", chosen.type):
        raise RecipeError(
            f"compute.device = {compute.device!r}, but Accelerate finds nothing better than {chosen.type} for this process: use auto"
        )
    if chosen.type == "mps" and dtype == "float64":
        raise RecipeError("compute.device = 'auto' is mps here, which has no float64: use dtype float32, or device cpu")
    return chosen
