"""ADAPT (Zhao et al. 2026, arXiv 2605.05227): every sample has a weight in the loss, by its likeness to anchors; and rivals.

A batch of B samples x_i with per-sample losses ℓ_i (the mean cross entropy over a sample's targets) is trained on Σ w_i ∇ℓ_i:

    α_i = i / Σ_j j                               over the n real tokens of a sample                      (eq. 9)
    φ   = Σ_i α_i h_i,  φ ← φ / ‖φ‖               h: last hidden states, after the last norm [inferred]
    c   = 1/A Σ_v φ(v)                            over A anchors v, not normalised again: φ·c is the mean cosine  (eq. 10)
    w   = clip(σ(φ·c / max(τ, ε)), w_min, w_max)  no gradient                                             (eq. 11)

c is found with the present parameters at step 0 and every R steps (R is not published), in eval mode. So w of a sample never depends on the
others of its batch. The rivals ``softmax``, ``hard`` and ``lin_upper`` do depend on them; how LinUpper scales and caps is inferred from its
description (weights linear in the normalised loss, with a cap).

Legend: B samples, T positions, D width, A anchors.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from lab.data.tasks.task import IGNORED

EPS = 1e-8
Reduce = Literal["sum", "mean", "normalised"]


def real_tokens(targets: Tensor) -> Tensor:
    """How many tokens of each row ``[B, T]`` are real: up to the one that predicts the last target that counts; all, where none does."""
    T = targets.shape[1]
    last = torch.where(targets != IGNORED, torch.arange(1, T + 1, device=targets.device), 0).amax(1)
    return torch.where(last > 0, last, T)


def positions(counts: Tensor, length: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """α, ``[B, T]``: later tokens weigh more, as they have seen more; 0 for what is no real token."""
    at = torch.arange(1, length + 1, device=counts.device)
    alpha = torch.where(at <= counts[:, None], at, 0).to(dtype)
    return alpha / alpha.sum(1, keepdim=True)


def pooled(hidden: Tensor, counts: Tensor) -> Tensor:
    """Σ_i α_i h_i, ``[B, D]`` of ``[B, T, D]``, in float32 at least; not yet normalised."""
    fine = hidden.to(torch.promote_types(hidden.dtype, torch.float32))
    return torch.einsum("bt,btd->bd", positions(counts, hidden.shape[1], fine.dtype), fine)


def directions(pools: Tensor, middle: Tensor | float = 0.0) -> Tensor:
    """φ, ``[B, D]``: of length 1, as seen from a middle (the origin, in the paper)."""
    return F.normalize(pools - middle, dim=-1)


def centroid(phi: Tensor) -> Tensor:
    """c, ``[D]``, of directions of anchors ``[A, D]``."""
    return phi.mean(0)


def gate(s: Tensor, tau: float, clip: tuple[float, float]) -> Tensor:
    """Weights ``[B]`` of scores ``[B]``, each by itself."""
    return torch.sigmoid(s / max(tau, EPS)).clamp(*clip)


def softmax(s: Tensor, tau: float) -> Tensor:
    """Weights whose mean over the batch is 1."""
    return len(s) * torch.softmax(s / max(tau, EPS), 0)


def hard(s: Tensor, share: float) -> Tensor:
    """1 for this share of the batch, at least one: those with the highest scores (of equal ones the first); 0 for all others."""
    kept = s.argsort(descending=True, stable=True)[: max(1, round(share * len(s)))]
    return torch.zeros_like(s).index_fill(0, kept, 1.0)


def lin_upper(losses: Tensor, cap: float) -> Tensor:
    """Linear in the loss, from 0 for the least of the batch on, capped at ``cap`` of the way to the greatest; their mean is 1."""
    low, high = losses.aminmax()
    raw = ((losses - low) / (high - low).clamp(min=EPS)).clamp(max=cap)
    return torch.where(high > low, raw / raw.mean().clamp(min=EPS), torch.ones_like(raw))


def by_sample(logits: Tensor, targets: Tensor) -> Tensor:
    """ℓ, ``[B]``, of logits ``[B, T, V]``: the mean over the targets of a row that count, 0 where none does; in float32 at least."""
    fine = logits.to(torch.promote_types(logits.dtype, torch.float32))
    nats = F.cross_entropy(fine.flatten(0, 1), targets.flatten(), reduction="none").view(targets.shape)
    return nats.sum(1) / (targets != IGNORED).sum(1).clamp(min=1)


def reduced(w: Tensor, losses: Tensor, how: Reduce) -> Tensor:
    """What is trained: Σ w ℓ (the paper's eq. 7), over B, or over Σ w."""
    total = (w * losses).sum()
    return total if how == "sum" else total / (len(w) if how == "mean" else w.sum().clamp(min=EPS))


def shown_as(trained: Tensor, value: Tensor) -> Tensor:
    """A loss with the gradient of what is trained, and the value of another: runs with different weights tell the same loss."""
    return trained + (value - trained).detach()
