"""Quasi-hyperbolic momentum: the step mixes the fresh gradient with one or more slow averages of it.

Ma & Yarats 2019 (arXiv 1810.06801) with one average; MT-DAO (arXiv 2510.05361) with N of them, each with its own decay, as in
aggregated momentum (Lucas et al. 2019, there undamped). With weights ω_1 … ω_N, whose sum is at most 1, a step follows

    (1 − Σω)·g + Σ_j ω_j·u_j     where     u_j = β_j·u_j + (1 − β_j)·g.

``betas`` lists the decays of the averages and last the one of the second moment: (β_1, …, β_N, β2). The averages are the
states ``exp_avg`` (N = 1) or ``exp_avg_1`` … ``exp_avg_N``. ω = 1 is the plain optimizer, ω = 0 uses no momentum.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def momenta(num: int) -> list[str]:
    """Names of the states that hold the averages."""
    return ["exp_avg"] if num == 1 else [f"exp_avg_{j}" for j in range(1, num + 1)]


def _check(decays: Sequence[float], weights: Sequence[float]) -> None:
    if len(decays) != len(weights):
        raise ValueError(f"{len(decays)} decays need as many weights, there are {len(weights)}")
    if any(w < 0 for w in weights) or sum(weights) > 1 + 1e-12:
        raise ValueError(f"weights {list(weights)} must not be negative and add up to at most 1")
    if any(not 0 <= beta < 1 for beta in decays):
        raise ValueError(f"decays {list(decays)} must lie in [0, 1)")


def _mix(
    g: Tensor, state: dict[str, Tensor], decays: Sequence[float], weights: Sequence[float], k: float = 0
) -> Tensor:
    """Feed ``g`` to every average, and return the mix; with k > 0 averages of k steps are corrected for their start at 0."""
    mix = g * (1 - sum(weights))
    for name, beta, weight in zip(momenta(len(decays)), decays, weights, strict=True):
        u = state[name].lerp_(g, 1 - beta)
        mix.add_(u, alpha=weight / (1 - beta**k) if k else weight)
    return mix


class QHAdam(torch.optim.Optimizer):
    """AdamW whose numerator is a quasi-hyperbolic mix; both moments bias-corrected, as in Adam.

    v = β2·v + (1−β2)·g²;  x = x·(1 − lr·weight_decay) − lr·[(1−Σω)·g + Σ ω_j·û_j] / (√v̂ + ε).
    ω = 1 with N = 1 is ``torch.optim.AdamW``. States: the averages and ``exp_avg_sq`` (v).
    """

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        betas: Sequence[float] = (0.999, 0.999),
        weights: Sequence[float] = (0.98,),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ):
        _check(betas[:-1], weights)
        defaults = {"lr": lr, "betas": betas, "weights": weights, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, defaults | {"differentiable": False})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            *decays, beta2 = group["betas"]
            lr = group["lr"]
            for x in group["params"]:
                g, state = x.grad, self.state[x]
                if g is None:
                    continue
                if not state:
                    state["step"] = torch.tensor(0.0, dtype=torch.float32, device="cpu")
                    state.update({name: torch.zeros_like(x) for name in (*momenta(len(decays)), "exp_avg_sq")})
                state["step"] += 1
                k, v = float(state["step"]), state["exp_avg_sq"]
                v.mul_(beta2).addcmul_(g, g, value=1 - beta2)
                if group["weight_decay"]:
                    x.mul_(1 - lr * group["weight_decay"])
                scale = (v / (1 - beta2**k)).sqrt_().add_(group["eps"])
                x.addcdiv_(_mix(g, state, decays, group["weights"], k), scale, value=-lr)


class QHADOPT(torch.optim.Optimizer):
    """ADOPT with a quasi-hyperbolic mix, MT-DAO's practical optimizer: normalise by the previous v first, then average.

    First step: v = g² and nothing moves. Then n = g / max(√v, ε), clamped to ± k^``clip_exponent`` in the k-th step that
    moves (None: not clamped);  u_j = β_j·u_j + (1−β_j)·n;  x = x·(1 − lr·weight_decay) − lr·[(1−Σω)·n + Σ ω_j·u_j];
    v = β2·v + (1−β2)·g². No bias correction. States: the averages and ``exp_avg_sq`` (v). Defaults of the authors' code, of
    which the clamp is that of ADOPT's authors.
    """

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        betas: Sequence[float] = (0.999, 0.9999),
        weights: Sequence[float] = (0.9,),
        eps: float = 1e-6,
        weight_decay: float = 0.0,
        clip_exponent: float | None = 0.25,
    ):
        _check(betas[:-1], weights)
        defaults = {"lr": lr, "betas": betas, "weights": weights, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, defaults | {"clip_exponent": clip_exponent, "differentiable": False})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            *decays, beta2 = group["betas"]
            lr = group["lr"]
            for x in group["params"]:
                g, state = x.grad, self.state[x]
                if g is None:
                    continue
                if not state:
                    state["step"] = torch.tensor(0.0, dtype=torch.float32, device="cpu")
                    state.update({name: torch.zeros_like(x) for name in momenta(len(decays))})
                    state["exp_avg_sq"] = g * g
                    continue
                state["step"] += 1
                v = state["exp_avg_sq"]
                n = g / v.sqrt().clamp_(min=group["eps"])
                if group["clip_exponent"] is not None:
                    most = float(state["step"]) ** group["clip_exponent"]
                    n.clamp_(-most, most)
                if group["weight_decay"]:
                    x.mul_(1 - lr * group["weight_decay"])
                x.add_(_mix(n, state, decays, group["weights"]), alpha=-lr)
                v.mul_(beta2).addcmul_(g, g, value=1 - beta2)


class QHM(torch.optim.Optimizer):
    """SGD with a quasi-hyperbolic mix, the form that MT-DAO analyses: x = x − lr·[(1−Σω)·g + Σ ω_j·u_j].

    ``betas`` are (β_1, …, β_N) alone, since there is no second moment. States: the averages, from zero.
    """

    def __init__(
        self, params: Any, lr: float = 1e-2, betas: Sequence[float] = (0.999,), weights: Sequence[float] = (0.7,)
    ):
        _check(betas, weights)
        super().__init__(params, {"lr": lr, "betas": betas, "weights": weights, "differentiable": False})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for x in group["params"]:
                if x.grad is None:
                    continue
                state = self.state[x]
                if not state:
                    state.update({name: torch.zeros_like(x) for name in momenta(len(group["betas"]))})
                x.add_(_mix(x.grad, state, group["betas"], group["weights"]), alpha=-group["lr"])
