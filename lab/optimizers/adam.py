"""Adam's relatives that DES-LOC uses: normalised by the previous second moment, without bias correction, or momentum alone."""

from __future__ import annotations

from typing import Any

import torch


class ADOPT(torch.optim.Optimizer):
    """Adam that normalises by the *previous* second moment (Taniguchi et al. 2024, as DES-LOC uses it).

    First step: v = g² and nothing moves. Then n = g / max(√v, ε), clamped to ± k^``clip_exponent`` in the k-th step that
    moves (None: not clamped);  m = β1·m + (1−β1)·n;  x = x·(1 − lr·weight_decay) − lr·m;  v = β2·v + (1−β2)·g². No bias
    correction. States ``exp_avg`` (m) and ``exp_avg_sq`` (v).

    The clamp and its exponent 0.25 are the default of ADOPT's authors, whose code has it since November 2024; their paper's
    listing does not. DES-LOC's public code trains without it in one version, with it in a later one.
    """

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.9999),
        eps: float = 1e-6,
        weight_decay: float = 0.0,
        clip_exponent: float | None = 0.25,
    ):
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, defaults | {"clip_exponent": clip_exponent, "differentiable": False})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            beta1, beta2 = group["betas"]
            for x in group["params"]:
                g, state = x.grad, self.state[x]
                if g is None:
                    continue
                if not state:
                    state["step"] = torch.tensor(0.0, dtype=torch.float32, device="cpu")
                    state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(x), g * g
                    continue
                state["step"] += 1
                m, v = state["exp_avg"], state["exp_avg_sq"]
                n = g / v.sqrt().clamp_(min=group["eps"])
                if group["clip_exponent"] is not None:
                    most = float(state["step"]) ** group["clip_exponent"]
                    n.clamp_(-most, most)
                if group["weight_decay"]:
                    x.mul_(1 - group["lr"] * group["weight_decay"])
                m.lerp_(n, 1 - beta1)
                x.add_(m, alpha=-group["lr"])
                v.mul_(beta2).addcmul_(g, g, value=1 - beta2)


class SGDM(torch.optim.Optimizer):
    """SGD with averaged momentum, u = β·u + (1−β)·g from u = 0; x = x − lr·u (the form that DES-LOC analyses).

    ``torch.optim.SGD`` starts with u = g instead. State ``momentum_buffer`` (u).
    """

    def __init__(self, params: Any, lr: float = 1e-2, momentum: float = 0.9):
        super().__init__(params, {"lr": lr, "momentum": momentum, "differentiable": False})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for x in group["params"]:
                if x.grad is None:
                    continue
                u = self.state[x].setdefault("momentum_buffer", torch.zeros_like(x))
                u.lerp_(x.grad, 1 - group["momentum"])
                x.add_(u, alpha=-group["lr"])


class PlainAdam(torch.optim.Optimizer):
    """Adam without bias correction, x = x − lr·u / √(v + ε²): the form in DES-LOC's theory and toy problem.

    u = β1·u + (1−β1)·g and v = β2·v + (1−β2)·g², both from zero. States ``exp_avg`` (u) and ``exp_avg_sq`` (v).
    """

    def __init__(self, params: Any, lr: float = 1e-3, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8):
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "differentiable": False})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            beta1, beta2 = group["betas"]
            for x in group["params"]:
                g, state = x.grad, self.state[x]
                if g is None:
                    continue
                if not state:
                    state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(x), torch.zeros_like(x)
                u, v = state["exp_avg"], state["exp_avg_sq"]
                u.lerp_(g, 1 - beta1)
                v.mul_(beta2).addcmul_(g, g, value=1 - beta2)
                x.addcdiv_(u, (v + group["eps"] ** 2).sqrt_(), value=-group["lr"])
