"""Muon (Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks"): steps whose singular values are all near one.

Matrices move along their orthogonalised momentum, everything else (embeddings, heads, norms, vectors) by AdamW. Each row of a parameter
moves by its own history alone, so rows can be workers.

Legend: H rows, P elements of one row, p × q a matrix in it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

COEFFICIENTS = (3.4445, -4.775, 2.0315)  # of the quintic step, Jordan's
TINY = 1e-7
NOT_HIDDEN = ("embedding", "embed", "head", "router")  # groups of tensors that AdamW moves though they are matrices


class Rows(Protocol):
    """What lies in a row of a parameter: tensors side by side, as in `lab.engine.stack.Block`."""

    @property
    def group(self) -> str: ...
    @property
    def shapes(self) -> tuple[torch.Size, ...]: ...
    @property
    def offsets(self) -> tuple[int, ...]: ...


def orthogonalised(x: Tensor, steps: int = 5) -> Tensor:
    """For matrices ``[…, p, q]`` = U·S·Vᵀ about U·Vᵀ: singular values between 0.7 and 1.2 after five Newton–Schulz steps.

    torch computes this in bfloat16; here in float32 at least.
    """
    a, b, c = COEFFICIENTS
    tall = x.shape[-2] > x.shape[-1]
    y = (x.mT if tall else x).to(torch.promote_types(x.dtype, torch.float32))
    y = y / torch.linalg.matrix_norm(y, keepdim=True).clamp_min(TINY)
    for _ in range(steps):
        gram = y @ y.mT
        y = a * y + (b * gram + c * (gram @ gram)) @ y
    near: Tensor = (y.mT if tall else y).to(x.dtype)
    return near


class Muon(torch.optim.Optimizer):
    """Of matrices: B = μ·B + (1 − μ)·G;  O = NS((1 − ω)·G + ω·B);  θ = θ·(1 − lr·wd) − lr·s·O.  Of all else: AdamW.

    ω is μ (Nesterov's form, as in torch), or ``weight``, as of a quasi-hyperbolic momentum: one that forgets slowly keeps more of the
    fresh gradient. Without Nesterov it is 1, and O = NS(B).

    s is 0.2·√max(p, q) (``match_rms_adamw``: a step is as large as one of AdamW, so that one rate serves both), or √max(1, p/q)
    (``original``). Tensors of more than two axes are matrices with all but the first joined. States:
    ``exp_avg`` (B, and AdamW's first moment) and ``exp_avg_sq`` (AdamW's second; of matrices it stays zero).

    A parameter is ``[H, P]`` with ``rows`` (`Rows`) as an attribute that says which tensors are in it, or without it one tensor.
    """

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        momentum: float = 0.95,
        nesterov: bool = True,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
        weight_decay: float = 0.1,
        ns_steps: int = 5,
        adjust_lr_fn: Literal["original", "match_rms_adamw"] = "match_rms_adamw",
        weight: float | None = None,
    ):
        if weight is not None and not (nesterov and 0 <= weight <= 1):
            raise ValueError(f"weight {weight} must lie in [0, 1], and needs nesterov")
        defaults = {"lr": lr, "momentum": momentum, "nesterov": nesterov, "betas": betas, "eps": eps}
        defaults |= {"weight_decay": weight_decay, "ns_steps": ns_steps, "adjust_lr_fn": adjust_lr_fn, "weight": weight}
        super().__init__(params, defaults | {"differentiable": False})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for x in group["params"]:
                if x.grad is not None:
                    self._step_(x, self.state[x], group)

    def _step_(self, x: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
        if not state:
            state["step"] = torch.tensor(0.0, dtype=torch.float32, device="cpu")
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(x), torch.zeros_like(x)
        state["step"] += 1
        x.mul_(1 - group["lr"] * group["weight_decay"])
        g, u, v = x.grad, state["exp_avg"], state["exp_avg_sq"]
        assert g is not None
        for is_matrix, part, shape in parts(x):
            if is_matrix:
                self._matrix_(x[part], g[part], u[part], shape, group)
            else:
                _adam_(x[part], g[part], u[part], v[part], float(state["step"]), group)

    def _matrix_(self, x: Tensor, g: Tensor, u: Tensor, shape: Sequence[int], group: dict[str, Any]) -> None:
        """``[H, elements]``, or the matrix itself."""
        u.lerp_(g, 1 - group["momentum"])
        weight = group["momentum"] if group["weight"] is None else group["weight"]
        towards = g.lerp(u, weight) if group["nesterov"] else u
        p, q = shape[0], math.prod(shape[1:])
        step = orthogonalised(towards.reshape(-1, p, q), group["ns_steps"]).reshape(x.shape)
        scale = 0.2 * math.sqrt(max(p, q)) if group["adjust_lr_fn"] == "match_rms_adamw" else math.sqrt(max(1.0, p / q))
        x.add_(step, alpha=-group["lr"] * scale)


def parts(x: Tensor) -> Iterator[tuple[bool, Any, Sequence[int]]]:
    """What a parameter consists of: whether it is a hidden matrix, where it is (an index), and its shape. Neighbours that are none are one."""
    rows: Rows | None = vars(x).get("rows")
    if rows is None:
        yield x.dim() >= 2, slice(None), x.shape
        return
    begin = end = 0  # of what AdamW moves
    for offset, shape in zip(rows.offsets, rows.shapes, strict=True):
        if len(shape) >= 2 and rows.group not in NOT_HIDDEN:
            if end > begin:
                yield False, (slice(None), slice(begin, end)), (end - begin,)
            yield True, (slice(None), slice(offset, offset + shape.numel())), shape
            begin = offset + shape.numel()
        end = offset + shape.numel()
    if end > begin:
        yield False, (slice(None), slice(begin, end)), (end - begin,)


def _adam_(x: Tensor, g: Tensor, u: Tensor, v: Tensor, k: float, group: dict[str, Any]) -> None:
    """The k-th step of AdamW, but for the decay."""
    beta1, beta2 = group["betas"]
    u.lerp_(g, 1 - beta1)
    v.mul_(beta2).addcmul_(g, g, value=1 - beta2)
    scale = (v / (1 - beta2**k)).sqrt_().add_(group["eps"])
    x.addcdiv_(u, scale, value=-group["lr"] / (1 - beta1**k))
