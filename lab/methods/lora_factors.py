"""Factors of adapters as pairs (A ``[r, d_in]``, B ``[d_out, r]``), and what servers do with their products B·A."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lab.engine.stack import Stack, at_least_float32
from lab.models.lora import LoRA

Pair = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Adapters:
    """Where the adapters of a federation are: which maps are adapted, and which rank each worker has."""

    lora: LoRA
    ranks_W: tuple[int, ...]
    targets: tuple[str, ...]  # paths of the adapted maps of which nothing is personal
    halves: tuple[str, ...] = ()  # and of those of which one factor is

    @classmethod
    def of(
        cls, lora: LoRA, num_workers: int, names: Sequence[str], personal: Callable[[str], bool] = lambda name: False
    ) -> Adapters:
        """``names`` of the whole model's tensors, and which of them are ``personal``."""
        own: dict[str, set[bool]] = {}
        for name in names:
            target, factor, _ = name.rpartition(".lora_")
            if factor:
                own.setdefault(target, set()).add(personal(name))
        targets, halves = (tuple(t for t in own if own[t] == kind) for kind in ({False}, {False, True}))
        return cls(lora, lora.ranks_W(num_workers), targets, halves)

    @property
    def bounds(self) -> tuple[int, ...]:
        return self.lora.bounds

    @property
    def rank(self) -> int:
        """The largest: that of the server's adapter."""
        return self.bounds[-1]

    @property
    def scale(self) -> float:
        """s of the server's adapter. All that is handed over is in this scale."""
        return self.lora.scale_of(self.rank)

    def segments(self, rank: int | None = None) -> list[tuple[int, int]]:
        """(r_{m−1}, r_m) of every segment that an adapter of this rank has."""
        all_of_them = zip([0, *self.bounds], self.bounds, strict=False)
        return [(low, high) for low, high in all_of_them if rank is None or high <= rank]

    def pair(self, value: Callable[[str], Tensor], target: str, rank: int | None = None) -> Pair:
        """A and B of one map, put together from their segments."""
        num = len(self.segments(rank))
        A = [value(f"{target}.lora_A.{m}") for m in range(num)]
        B = [value(f"{target}.lora_B.{m}") for m in range(num)]
        return torch.cat(A), torch.cat(B, 1)

    def agreed(self, stack: Stack, target: str) -> Pair:
        """A and B of an agreed stack ``[1, P]``."""
        return self.pair(lambda name: stack[name][0], target)

    @torch.no_grad()
    def put_(self, stack: Stack, target: str, A: Tensor, B: Tensor) -> None:
        """Write A and B into an agreed stack. Fewer rank indices than there is room for: the others become zero."""
        for m, (low, high) in enumerate(self.segments()):
            a, b = stack[f"{target}.lora_A.{m}"][0], stack[f"{target}.lora_B.{m}"][0]
            part_A, part_B = A[low:high], B[:, low:high]
            a.zero_()[: len(part_A)] = part_A
            b.zero_()[:, : part_B.shape[1]] = part_B


def cells(stack: Stack, worker: int) -> Callable[[str], Tensor]:
    """Where one worker's copies are found by name; the shapes of one in another process."""
    return lambda name: stack.cell_or_shape(name, worker)


def padded(pair: Pair, rank: int) -> Pair:
    """With zero rows and columns up to ``rank``."""
    A, B = pair
    missing = rank - len(A)
    return torch.nn.functional.pad(A, (0, 0, 0, missing)), torch.nn.functional.pad(B, (0, missing))


# Weights, sums and decompositions are in float32 at least, and so are the pairs that come of them.


def _wide(x: Tensor) -> Tensor:
    return x.to(at_least_float32(x.dtype))


def stacked(pairs: Sequence[Pair], weights: Sequence[float]) -> Pair:
    """Factors whose product is Σ p_k·B_k·A_k exactly, of rank Σ r_k. The weights stand at the A's alone."""
    A = torch.cat([_wide(A) * p for (A, _), p in zip(pairs, weights, strict=True)])
    return A, torch.cat([_wide(B) for _, B in pairs], 1)


def mean(pairs: Sequence[Pair], weights: Sequence[float]) -> Pair:
    """Σ p_k·A_k and Σ p_k·B_k: the product of the two is not the mean of the products."""
    A = sum(
        (_wide(A) * p for (A, _), p in zip(pairs, weights, strict=True)), start=_wide(torch.zeros_like(pairs[0][0]))
    )
    B = sum(
        (_wide(B) * p for (_, B), p in zip(pairs, weights, strict=True)), start=_wide(torch.zeros_like(pairs[0][1]))
    )
    return A, B


def refactored(pair: Pair, rank: int) -> Pair:
    """The best pair of this rank for the product B·A: B = U·Σ, A = Vᵀ, with signs fixed so that equal products give equal pairs.

    Costs a QR decomposition of both factors and the SVD of a core r × r; nothing of size d_out × d_in is made unless r is
    larger than that.
    """
    A, B = map(_wide, pair)
    if len(A) >= min(A.shape[1], B.shape[0]):
        U, S, Vt = torch.linalg.svd(B @ A, full_matrices=False)
    else:
        left, core_B = torch.linalg.qr(B)  # d_out r, r r
        right, core_A = torch.linalg.qr(A.T)  # d_in r, r r
        u, S, vt = torch.linalg.svd(core_B @ core_A.T)
        U, Vt = left @ u, vt @ right.T
    sign = torch.where(Vt.gather(1, Vt.abs().argmax(1, keepdim=True)) < 0, -1.0, 1.0)  # r 1
    return (Vt * sign)[:rank], (U * S * sign.T)[:, :rank]


def product_norm(pair: Pair) -> float:
    """‖B·A‖_F without making the product: √tr((BᵀB)(AAᵀ))."""
    A, B = map(_wide, pair)
    return float(((B.T @ B) * (A @ A.T)).sum().clamp_(min=0.0).sqrt())


def shares(values: Mapping[int, float]) -> dict[int, float]:
    """p_k: each value over their sum; equal ones where all are zero."""
    total = sum(values.values())
    return {k: v / total if total else 1 / len(values) for k, v in values.items()}


def samples(samples_W: Sequence[int] | None, workers: Sequence[int], how: str) -> dict[int, float]:
    """p_k of the clients that take part, by ``samples`` (n_k over their sum) or ``uniform``."""
    by_count = how == "samples" and samples_W is not None
    return shares({w: float(samples_W[w]) if by_count else 1.0 for w in workers})  # type: ignore[index]
