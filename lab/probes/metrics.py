"""What can be measured on a running fleet, beyond losses and bytes. Computed only when asked for.

Legend: N workers, P elements of all tensors together. Costs are per call, beside those of the run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lab.engine.comm import Communicator, Meeting
from lab.engine.stack import Layout, Stack, for_sums, worker_norms
from lab.engine.state import State
from lab.probes.buffers import untouched
from lab.probes.evaluation import Evaluator
from lab.probes.probe import Setup


@torch.no_grad()
def relative_change(now: Stack, before: Stack) -> float:
    """‖now − before‖ / ‖before‖ over all tensors and workers."""
    change, size = changed(now, before)
    return (change / size) ** 0.5 if size else float("nan")


@torch.no_grad()
def changed(now: Stack, before: Stack) -> tuple[float, float]:
    """‖now − before‖² and ‖before‖² over all tensors and the workers here."""
    change = sum(float((a - b).square().sum()) for a, b in zip(now.blocks, before.blocks, strict=True))
    return change, sum(float(b.square().sum()) for b in before.blocks)


def drifts(setup: Setup) -> list[float]:
    """`drift` of every worker from the mean of those that are up."""
    params = setup.state.local["params"]
    return drift(params, setup.comm.agreed(params), setup.recipe.num_workers).tolist()


def gradient_norms(setup: Setup) -> list[float]:
    """Norm of every worker's gradient as the method left it: clipped where it clips, the mean where it averages. O(N·P)."""
    return worker_norms(setup.state.grads).tolist()


def noise(setup: Setup) -> float:
    """`noise_scale` in sequences, from the gradients that the workers would take next: one more forward and backward pass.

    NaN where a worker is down. The workers' parameters should be equal, so look right after a sync. Over several processes
    all of them call it, and the mean gradient travels.
    """
    fleet, n = setup.fleet, setup.recipe.num_workers
    if not all(fleet.up):
        return float("nan")
    with untouched([fleet.modules[w] for w in fleet.mine]):
        setup.grad_at(setup.comm.t + 1)  # overwritten by the next step
    big = setup.comm.agreed(fleet.grads)
    once = [x for b, x in zip(big.layout.blocks, big.blocks, strict=True) if b.everywhere[0] in fleet.mine]
    here = [_size(once), float(inner_products(fleet.grads, fleet.grads, n).sum())]
    size_big, sizes = (sum(x) for x in zip(*setup.world.all_gather_json(here), strict=True))
    return _noise_scale(size_big, sizes / n, n, setup.recipe.batch_size)


def activations(setup: Setup) -> dict[str, float]:
    """`activation_norms` of the first worker's model on a batch of the validation text."""
    assert setup.data is not None
    batch = setup.data.validation[0]
    with Evaluator(setup).draws("activations"), untouched(setup.fleet.modules[:1]):
        return activation_norms(setup.fleet.modules[0], lambda m: m.loss(*batch))  # type: ignore[operator]


# --- do the workers agree? -------------------------------------------------------------------------------------------


@torch.no_grad()
def inner_products(a: Stack, b: Stack, num_workers: int) -> Tensor:
    """⟨a_w, b_w⟩ of every worker over all tensors that it holds, ``[N]``; ``b`` may be agreed (one row). O(N·P)."""
    out = torch.zeros(num_workers, dtype=torch.float64)
    for block, x, y in zip(a.layout.blocks, a.blocks, b.blocks, strict=True):
        out.index_add_(0, block.index, for_sums(x * y).sum(1).cpu().double().expand(len(block.holders)))
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
        gram = (for_sums(x) @ for_sums(x).T).cpu().double()
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


class Averages:
    """Looks at the workers whenever ``params`` are about to be averaged whole; call ``after`` when a step is done.

    A pseudo-gradient is where a worker was after the last average less where it is now. ``momentum`` is a local state or,
    if there is none of that name, a shared one (the outer momentum). Costs a copy of the parameters and O(N²·P) per average.
    Methods that never average all parameters at once (in fragments, in pairs, some numbers) are not seen. Without ``look`` it
    only says when, and remembers where the workers were.

    Over several processes cosines between their workers take the workers' numbers: at every such average the parameters, the
    pseudo-gradients and a local momentum of all workers travel to the first process, which alone sees something. That is
    looking and not the method, so the ledger leaves it out.
    """

    def __init__(self, s: State, comm: Communicator, momentum: str = "exp_avg", look: bool = True):
        self.s, self.comm, self.momentum, self.look, self.seen = s, comm, momentum, look, list[Alignment]()
        self.due = False
        self.start, self.held = s.local["params"].clone(), holders(s.fleet.layout)

    def before_average(self, meeting: Meeting) -> None:
        """To be subscribed to the communicator."""
        if meeting.stack is self.s.local["params"] and any(self.s.fleet.up):
            self.follow_()
            self.due = True
            if self.look:
                self._look()

    def after(self) -> bool:
        """Call after each step; returns whether the parameters were averaged in it."""
        due, self.due = self.due, False
        if due:
            self.start = self.s.local["params"].clone()
        return due

    def follow_(self) -> None:
        """Adjust to experts that moved: their new holders start from the agreed values."""
        if self.held != holders(self.s.fleet.layout):
            self.start = followed(self.start, self.held, self.s.shared["params"])
            self.held = holders(self.s.fleet.layout)

    @torch.no_grad()
    def _look(self) -> None:
        s, n, world = self.s, self.s.fleet.num_workers, self.comm.world
        now, up, momentum = s.local["params"], torch.tensor(s.fleet.up), s.shared.get(self.momentum)
        moved = self.start - now
        local = s.local.get(self.momentum)
        if local is not None:
            momentum = (
                world.gather_copies(local) if local.layout is now.layout else None
            )  # that of LoRDO has its own shapes
        elif momentum is not None:
            momentum = world.gather_blocks(momentum, s.fleet.up)
        moved, now = world.gather_copies(moved), world.gather_copies(now)
        if not world.first:
            return
        if local is not None and momentum is not None:
            momentum = self.comm.agreed(momentum)
        mean = self.comm.agreed(moved)
        between = pairwise_cosines(moved, n)[up][:, up]
        others = ~torch.eye(len(between), dtype=torch.bool)
        with_mean = float(cosines(moved, mean, n)[up].mean())
        along = float(cosines(moved, momentum, n)[up].mean()) if momentum is not None else float("nan")
        apart = float(drift(now, self.comm.agreed(now), n)[up].square().mean().sqrt())
        norm = _size(mean.blocks) ** 0.5
        self.seen.append(Alignment(self.comm.t, float(between[others].mean()), with_mean, along, apart, norm))


def holders(layout: Layout) -> list[tuple[int, ...]]:
    """The workers of each block's rows here."""
    return [block.holders for block in layout.blocks]


@torch.no_grad()
def followed(old: Stack, held: Sequence[tuple[int, ...]], fresh: Stack) -> Stack:
    """Return an old copy of a state with its rows arranged by present holders. ``held``: who did then; who is new has ``fresh`` values."""
    blocks = list(old.blocks)
    for i, (block, was) in enumerate(zip(old.layout.blocks, held, strict=True)):
        if block.holders != was:
            blocks[i] = fresh.blocks[i].expand(len(block.holders), -1).clone()
            for row, worker in enumerate(block.holders):
                if worker in was:
                    blocks[i][row] = old.blocks[i][was.index(worker)]
    return Stack(old.layout, blocks)


@torch.no_grad()
def drift(params: Stack, agreed: Stack, num_workers: int) -> Tensor:
    """Root mean square distance of every worker's parameters from the agreed ones, ``[N]``. O(N·P)."""
    apart = params - agreed
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
    size_big = _size([b.mean(0) for b in grads.blocks])
    size_small = float(inner_products(grads, grads, num_workers).mean())
    return _noise_scale(size_big, size_small, num_workers, samples)


def _size(blocks: Sequence[Tensor]) -> float:
    return sum(float(for_sums(b).square().sum()) for b in blocks)


def _noise_scale(size_big: float, size_small: float, n: int, samples: int) -> float:
    """From |G|² of the mean gradient of ``n`` workers, and its mean over them."""
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
    values: Tensor = torch.linalg.svdvals(x.cpu().double())
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
                found[name] = float(for_sums(output).square().mean().sqrt())

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
        of_group.index_add_(0, block.index, for_sums(x).square().sum(1).cpu().double())
    return {group: x.sqrt().tolist() for group, x in square.items()}
