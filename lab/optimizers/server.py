"""Server optimizers of federated learning: their "gradient" is the mean pseudo-gradient Δ = θ − average of the clients."""

from __future__ import annotations

from typing import Any

import torch


class FedMom(torch.optim.Optimizer):
    """Momentum as a look ahead (Huo et al. 2020): y = θ − lr·Δ;  θ = (1 + μ)·y − μ·y_previous.  State ``previous``, from θ.

    Up to rounding this is ``torch.optim.SGD`` with Nesterov momentum, which keeps b instead of y: the same Δs give the same θ.
    """

    def __init__(self, params: Any, lr: float = 1.0, momentum: float = 0.9):
        super().__init__(params, {"lr": lr, "momentum": momentum, "differentiable": False})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for x in group["params"]:
                if x.grad is None:
                    continue
                previous = self.state[x].setdefault("previous", x.detach().clone())
                y = x - group["lr"] * x.grad
                x.copy_(y + group["momentum"] * (y - previous))
                previous.copy_(y)


class FedAdam(torch.optim.Optimizer):
    """Adam at the server (Reddi et al. 2021): m = β1·m + (1−β1)·Δ;  v = β2·v + (1−β2)·Δ²;  θ = θ − lr·m / (√v + τ).

    No bias correction; m starts at 0 and v at τ², as in the paper's listing. States ``exp_avg`` (m), ``exp_avg_sq`` (v).
    """

    yogi = False

    def __init__(self, params: Any, lr: float = 1e-2, betas: tuple[float, float] = (0.9, 0.99), tau: float = 1e-3):
        super().__init__(params, {"lr": lr, "betas": betas, "tau": tau, "differentiable": False})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            beta1, beta2 = group["betas"]
            for x in group["params"]:
                if x.grad is None:
                    continue
                state, square = self.state[x], x.grad.square()
                if not state:
                    state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(x), torch.full_like(x, group["tau"] ** 2)
                m, v = state["exp_avg"], state["exp_avg_sq"]
                m.lerp_(x.grad, 1 - beta1)
                if self.yogi:
                    v.addcmul_(square, torch.sign(v - square), value=beta2 - 1)
                else:
                    v.lerp_(square, 1 - beta2)
                x.addcdiv_(m, v.sqrt().add_(group["tau"]), value=-group["lr"])


class FedYogi(FedAdam):
    """FedAdam whose v moves by a fixed part of Δ² towards it: v = v − (1−β2)·Δ²·sign(v − Δ²) (Reddi et al. 2021)."""

    yogi = True
