"""Adam whose moments live in a subspace of each matrix, with a full-rank quasi-hyperbolic term (LoRDO, arXiv 2602.04396).

Legend: a matrix is turned so that p ≤ q (`short_side_first`); leading axes (workers) are carried along. θ, G ``[…, p, q]``; basis
Q ``[…, p, r]`` with orthonormal columns; moments u, v ``[…, r, q]``; residual E ``[…, p, q]``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def short_side_first(x: Tensor) -> Tensor:
    """The matrix or its transpose (a view), so that its first side is not the longer one."""
    return x if x.shape[-2] <= x.shape[-1] else x.mT


def first_basis(like: Tensor, rank: int) -> Tensor:
    """The first r columns of the identity, ``[…, p, r]``, for matrices like this one."""
    p = short_side_first(like).shape[-2]
    return torch.eye(p, min(rank, p), dtype=like.dtype, device=like.device).expand(*like.shape[:-2], -1, -1).clone()


def top_basis(x: Tensor, rank: int) -> Tensor:
    """The r directions in which a matrix is largest: its first left singular vectors, ``[…, p, r]``. O(p²·q)."""
    wider = torch.promote_types(x.dtype, torch.float32)  # there is no decomposition of narrower floats
    U: Tensor = torch.linalg.svd(short_side_first(x).to(wider), full_matrices=False).U
    return U[..., :rank].to(x.dtype)


def filled(beta: float, k: int | Tensor, moment: Tensor) -> float | Tensor:
    """1 − β^k: how much of an average from zero is there after k steps (``[…]``, one for each of the leading axes)."""
    if isinstance(k, int):
        return 1 - beta**k
    return (1 - beta ** k.double()).to(moment).view(*k.shape, *[1] * (moment.dim() - k.dim()))


def low_rank_adam_(
    x: Tensor,
    g: Tensor,
    u: Tensor,
    v: Tensor,
    Q: Tensor | None,
    E: Tensor | None,
    *,
    lr: float,
    betas: tuple[float, float],
    weight: float,
    eps: float,
    k: int | Tensor,
    divided: bool = True,
) -> None:
    """The k-th step, in place; k may differ along the leading axes. Without Q the moments are full and the step is QHAdam's.

    ĝ = Qᵀ(G + E);  E = G + E − Q·ĝ;  u, v as in Adam;  d = √v̂ + ε;
    θ = θ − lr·[ (1 − ω)·G / mean(d) + ω·Q·(û / d) ]. The full-rank term divides by a number, since d is r × q. Not ``divided``: with a basis
    the second term is ω·Q·û.
    """
    beta1, beta2 = betas
    if Q is None:
        fresh = low = g
    else:
        x, g = short_side_first(x), short_side_first(g)
        if E is not None:
            owed = g + short_side_first(E)
            low = Q.mT @ owed
            short_side_first(E).copy_(owed - Q @ low)
        else:
            low = Q.mT @ g
        fresh = g
    u.lerp_(low, 1 - beta1)
    v.mul_(beta2).addcmul_(low, low, value=1 - beta2)
    d = (v / filled(beta2, k, v)).sqrt_().add_(eps)
    slow = u / filled(beta1, k, u)
    if divided or Q is None:
        slow = slow / d
    if Q is None:
        step = (1 - weight) * fresh / d + weight * slow
    else:
        step = (1 - weight) * fresh / d.mean((-2, -1), keepdim=True) + weight * (Q @ slow)
    x.sub_(step, alpha=lr)


def rotate_(u: Tensor, v: Tensor, old: Tensor, new: Tensor, betas: tuple[float, float], k: int | Tensor) -> None:
    """Write the moments after k steps in another basis, in place: R = Q_newᵀ·Q_old;  u = R·u;  v by its variance.

    v̂ − û² is read as a variance per coordinate, which turns with R∘R, and û turns with R (as in LDAdam); the absolute
    value keeps v from turning negative where v̂ < û². With the same basis nothing changes.
    """
    dtype = torch.promote_types(u.dtype, torch.float32)
    wide_u, wide_v = u.to(dtype), v.to(dtype)
    of_u, of_v = filled(betas[0], k, wide_u), filled(betas[1], k, wide_v)
    u_hat, v_hat = wide_u / of_u, wide_v / of_v
    R = new.to(dtype).mT @ old.to(dtype)
    v.copy_((R.square() @ (v_hat - u_hat.square()) + (R @ u_hat).square()).abs_().mul_(of_v))
    u.copy_(R @ wide_u)


class LowRankAdam(torch.optim.Optimizer):
    """LoRDO's inner step for one worker: matrices by their low-rank moments, everything else by QHAdam.

    The basis of a matrix begins as the first ``rank`` columns of the identity. Every ``refresh`` steps it becomes the top
    directions of the last gradient ("local projection"; 0: never by itself); `project_` sets it from anything else, as
    LoRDO does from the mean pseudo-gradient. States ``exp_avg``, ``exp_avg_sq`` (``[r, q]``) and ``projector`` (``[p, r]``).
    """

    def __init__(
        self,
        params: Any,
        lr: float = 8e-3,
        rank: int = 16,
        betas: tuple[float, float] = (0.9, 0.95),
        weight: float = 0.97,
        eps: float = 1e-8,
        refresh: int = 0,
        error_feedback: bool = False,
    ):
        defaults = {"lr": lr, "rank": rank, "betas": betas, "weight": weight, "eps": eps, "refresh": refresh}
        super().__init__(params, defaults | {"error_feedback": error_feedback, "differentiable": False})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for x in group["params"]:
                g, state = x.grad, self.state[x]
                if g is None:
                    continue
                if not state:
                    state["step"] = torch.tensor(0.0, dtype=torch.float32, device="cpu")
                    if x.dim() >= 2:
                        state["projector"] = first_basis(x, group["rank"])
                        if group["error_feedback"]:
                            state["residual"] = torch.zeros_like(x)
                    moment = state["projector"].mT @ short_side_first(x) if x.dim() >= 2 else x
                    state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(moment), torch.zeros_like(moment)
                state["step"] += 1
                k = int(state["step"])
                options = {name: group[name] for name in ("lr", "betas", "weight", "eps")}
                moments = state["exp_avg"], state["exp_avg_sq"]
                low_rank_adam_(x, g, *moments, state.get("projector"), state.get("residual"), k=k, **options)
                if x.dim() >= 2 and group["refresh"] and k % group["refresh"] == 0:
                    self.project_(x, g)

    @torch.no_grad()
    def project_(self, x: Tensor, towards: Tensor) -> None:
        """From now on matrix ``x`` moves in the top directions of ``towards`` (its shape); the moments are rotated."""
        state, betas = self.state[x], next(g["betas"] for g in self.param_groups if any(x is p for p in g["params"]))
        new = top_basis(towards, state["projector"].shape[-1])
        rotate_(state["exp_avg"], state["exp_avg_sq"], state["projector"], new, betas, int(state["step"]))
        state["projector"] = new
