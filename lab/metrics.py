"""What can be measured on a running fleet, beyond losses and bytes. Computed only when asked for.

Legend: N workers, P elements of all tensors together. Costs are per call, beside those of the run.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from lab.comm import Communicator, Meeting
from lab.events import Event
from lab.fleet import Stack, worker_norms
from lab.methods import State
from lab.recipe import Recipe
from lab.run import Trainer

T = TypeVar("T")


@torch.no_grad()
def relative_change(now: Stack, before: Stack) -> float:
    """‖now − before‖ / ‖before‖ over all tensors and workers."""
    change = sum(float((a - b).square().sum()) for a, b in zip(now.blocks, before.blocks, strict=True))
    size = sum(float(b.square().sum()) for b in before.blocks)
    return (change / size) ** 0.5 if size else float("nan")


def along(
    recipe: Recipe, look: Callable[[Trainer], T], every: int = 32, each: Callable[[Event], None] = lambda event: None
) -> list[tuple[int, T]]:
    """What ``look`` sees after every ``every``-th local step of a run of the recipe, as pairs (local step, what it saw).

    ``each`` is called with every event, to show how far it is. Ready-made looks: `drifts`, `gradient_norms`, `noise`,
    `activations`.
    """
    trainer = Trainer(recipe)
    seen: list[tuple[int, T]] = []
    for event in trainer.events():
        each(event)
        if event.kind == "stepped" and trainer.t % every == 0:
            seen.append((trainer.t, look(trainer)))
    return seen


def rates_of_change(
    recipe: Recipe, every: int = 64, each: Callable[[Event], None] = lambda event: None
) -> dict[str, list[tuple[int, float]]]:
    """How far each state moves in ``every`` local steps, relative to its size, along a run of the recipe.

    Keeps a second copy of all local states. ``each`` is called with every event, to show how far it is.

    Returns
    -------
    by state, pairs (local step, ‖s_t − s_{t−every}‖ / ‖s_{t−every}‖).
    """
    before: dict[str, Stack] = {}
    out: dict[str, list[tuple[int, float]]] = {}

    def look(trainer: Trainer) -> None:
        for name, stack in trainer.state.local.items():
            if name in before:
                out.setdefault(name, []).append((trainer.t, relative_change(stack, before[name])))
            before[name] = stack.clone()

    along(recipe, look, every, each)
    return out


def drifts(trainer: Trainer) -> list[float]:
    """`drift` of every worker from the mean of those that are up."""
    params = trainer.state.local["params"]
    return drift(params, trainer.comm.agreed(params), trainer.recipe.num_workers).tolist()


def gradient_norms(trainer: Trainer) -> list[float]:
    """Norm of every worker's gradient as the method left it: clipped where it clips, the mean where it averages. O(N·P)."""
    return worker_norms(trainer.state.grads).tolist()


def noise(trainer: Trainer) -> float:
    """`noise_scale` in sequences, from the gradients that the workers would take next: one more forward and backward pass.

    NaN where a worker is down. The workers' parameters should be equal, so look right after a sync.
    """
    if not all(trainer.fleet.up):
        return float("nan")
    trainer._grad(trainer.state)  # overwritten by the next step
    return noise_scale(trainer.state.grads, trainer.recipe.num_workers, trainer.recipe.batch_size)


def activations(trainer: Trainer) -> dict[str, float]:
    """`activation_norms` of the first worker's model on a batch of the validation text."""
    return activation_norms(trainer.fleet.modules[0], lambda m: m.loss(*trainer.validation[0]))  # type: ignore[operator]


# --- do the workers agree? -------------------------------------------------------------------------------------------


@torch.no_grad()
def inner_products(a: Stack, b: Stack, num_workers: int) -> Tensor:
    """⟨a_w, b_w⟩ of every worker over all tensors that it holds, ``[N]``; ``b`` may be agreed (one row). O(N·P)."""
    out = torch.zeros(num_workers, dtype=torch.float64)
    for block, x, y in zip(a.layout.blocks, a.blocks, b.blocks, strict=True):
        out.index_add_(0, block.index, (x * y).sum(1, dtype=torch.float64).expand(len(block.holders)))
    return out


def cosines(a: Stack, b: Stack, num_workers: int) -> Tensor:
    """Cosine of the angle between ``a`` and ``b`` at every worker, ``[N]``. O(N·P)."""
    size = inner_products(a, a, num_workers) * inner_products(b, b, num_workers)
    return inner_products(a, b, num_workers) / size.sqrt()


def pairwise_cosines(a: Stack, num_workers: int) -> Tensor:
    """Cosines between the copies of every two workers, ``[N, N]``, over the tensors that both hold. O(N²·P)."""
    products, mine, theirs = (torch.zeros(num_workers, num_workers, dtype=torch.float64) for _ in range(3))
    for block, x in zip(a.layout.blocks, a.blocks, strict=True):
        at = torch.meshgrid(block.index, block.index, indexing="ij")
        gram = x.double() @ x.double().T
        products[at] += gram
        mine[at] += gram.diag()[:, None]
        theirs[at] += gram.diag()[None, :]
    return products / (mine * theirs).sqrt()


@dataclass(frozen=True)
class Alignment:
    """At one average of the parameters, means over the workers that took part; NaN where there is nothing to compare."""

    step: int
    pairwise: float  # cosine between the pseudo-gradients of two workers
    with_mean: float  # between a worker's pseudo-gradient and the mean of all
    with_momentum: float  # between a worker's pseudo-gradient and the mean of a momentum
    drift: float  # root mean square distance of a worker's parameters from their mean
    norm: float  # of the mean pseudo-gradient


class Watch:
    """Looks at the workers whenever ``params`` are about to be averaged whole; call ``after`` when a step is done.

    A pseudo-gradient is where a worker was after the last average less where it is now. ``momentum`` is a local state or,
    if there is none of that name, a shared one (the outer momentum). Costs a copy of the parameters and O(N²·P) per average.
    Methods that never average all parameters at once (in fragments, in pairs, some numbers) are not seen.
    """

    def __init__(self, s: State, comm: Communicator, momentum: str = "exp_avg"):
        self.s, self.momentum, self.seen = s, momentum, list[Alignment]()
        self.comm, self.before, self.due = comm, comm.observer, False
        self.start = s.local["params"].clone()
        comm.observer = self._observe

    def _observe(self, meeting: Meeting) -> None:
        if self.before is not None:
            self.before(meeting)
        if meeting.stack is self.s.local["params"] and any(self.s.fleet.up):
            self.seen.append(self._look())
            self.due = True

    def after(self) -> bool:
        """Whether the parameters were averaged in the step that is done now."""
        due, self.due = self.due, False
        if due:
            self.start = self.s.local["params"].clone()
        return due

    def close(self) -> None:
        """Stop looking."""
        self.comm.observer = self.before

    @torch.no_grad()
    def _look(self) -> Alignment:
        s, n = self.s, self.s.fleet.num_workers
        now, up = s.local["params"], torch.tensor(s.fleet.up)
        moved = Stack(now.layout, [a - b for a, b in zip(self.start.blocks, now.blocks, strict=True)])
        mean = self.comm.agreed(moved)
        between = pairwise_cosines(moved, n)[up][:, up]
        others = ~torch.eye(len(between), dtype=torch.bool)
        momentum = s.local.get(self.momentum) or s.shared.get(self.momentum)
        along = cosines(moved, self.comm.agreed(momentum), n)[up].mean() if momentum is not None else float("nan")
        norm = float(torch.stack([b.double().square().sum() for b in mean.blocks]).sum().sqrt())
        with_mean = float(cosines(moved, mean, n)[up].mean())
        apart = float(drift(now, self.comm.agreed(now), n)[up].square().mean().sqrt())
        return Alignment(self.comm.t, float(between[others].mean()), with_mean, float(along), apart, norm)


def alignment(
    recipe: Recipe, momentum: str = "exp_avg", each: Callable[[Event], None] = lambda event: None
) -> list[Alignment]:
    """How well the workers of a recipe agree at every average of their parameters, along a run (see `Watch`)."""
    trainer = Trainer(recipe)
    watch = Watch(trainer.state, trainer.comm, momentum)
    for event in trainer.events():
        each(event)
        if event.kind == "stepped":
            watch.after()
    return watch.seen


@torch.no_grad()
def drift(params: Stack, agreed: Stack, num_workers: int) -> Tensor:
    """Root mean square distance of every worker's parameters from the agreed ones, ``[N]``. O(N·P)."""
    apart = Stack(params.layout, [a - b for a, b in zip(params.blocks, agreed.blocks, strict=True)])
    held = torch.zeros(num_workers, dtype=torch.float64)
    for block in params.layout.blocks:
        held.index_add_(0, block.index, torch.full((len(block.holders),), float(block.numel), dtype=torch.float64))
    return (inner_products(apart, apart, num_workers) / held).sqrt()


@torch.no_grad()
def noise_scale(grads: Stack, num_workers: int, samples: int) -> float:
    """Gradient noise scale tr(Σ) / |G|² in samples (McCandlish et al. 2018), from one step's gradients. O(N·P).

    The gradients must be the workers' own (before any average), each over ``samples`` samples of the same distribution at the
    same parameters: right after a sync, with N > 1. Both parts are unbiased, their ratio is not: average over steps. NaN
    where the estimate of |G|² is not positive.
    """
    big = Stack(grads.layout, [b.mean(0, keepdim=True) for b in grads.blocks])
    size_big = sum(float(b.double().square().sum()) for b in big.blocks)
    size_small = float(inner_products(grads, grads, num_workers).mean())
    n = num_workers
    signal = (n * size_big - size_small) / (n - 1)
    noise = (size_small - size_big) * samples * n / (n - 1)
    return noise / signal if signal > 0 else float("nan")


# --- bases -----------------------------------------------------------------------------------------------------------


@torch.no_grad()
def basis_similarity(a: Tensor, b: Tensor) -> float:
    """Mean squared cosine of the angles between the spaces of two orthonormal bases ``[p, r]``: 1 same, r/p by chance. O(p·r²)."""
    return float((a.mT @ b).square().sum() / a.shape[-1])


@torch.no_grad()
def spectrum(x: Tensor) -> Tensor:
    """Singular values of a matrix, largest first. O(p²·q) for p ≤ q: seconds at p in the thousands."""
    values: Tensor = torch.linalg.svdvals(x.double())
    return values


def numerical_rank(singular_values: Tensor, tolerance: float = 1e-9) -> int:
    """How many of them are larger than ``tolerance`` × the largest."""
    return int((singular_values > tolerance * singular_values[0]).sum())


# --- one worker's model ----------------------------------------------------------------------------------------------


@torch.no_grad()
def activation_norms(module: nn.Module, run: Callable[[nn.Module], object]) -> dict[str, float]:
    """Root mean square of what every submodule gives out when ``run(module)`` runs it. One forward pass, no copies kept."""
    found: dict[str, float] = {}
    handles = []
    for name, part in module.named_modules():

        def keep(_: nn.Module, __: Any, output: Any, name: str = name) -> None:
            if isinstance(output, Tensor) and output.is_floating_point():
                found[name] = float(output.double().square().mean().sqrt())

        handles.append(part.register_forward_hook(keep))
    try:
        run(module)
    finally:
        for handle in handles:
            handle.remove()
    return found


@torch.no_grad()
def norms_by_group(stack: Stack, num_workers: int) -> dict[str, list[float]]:
    """Euclidean norm of each group of tensors (of gradients, parameters, a state) at every worker. O(N·P)."""
    square: dict[str, Tensor] = {}
    for block, x in zip(stack.layout.blocks, stack.blocks, strict=True):
        of_group = square.setdefault(block.group, torch.zeros(num_workers, dtype=torch.float64))
        of_group.index_add_(0, block.index, x.double().square().sum(1))
    return {group: x.sqrt().tolist() for group, x in square.items()}
