"""Torch's own optimizers, by themselves."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lab.engine.optim import ELEMENTWISE, Optimizer
from tests.support.bench import batch, build, flat


def plain(spec: Optimizer, steps: int, worker: int = 0, max_norm: float | None = 1.0, fresh_every: int = 0) -> Tensor:
    """One ordinary module, trained by an ordinary loop with torch's own optimizer and clipping."""
    net = build(None)
    for t in range(1, steps + 1):
        if t == 1 or (fresh_every and (t - 1) % fresh_every == 0):
            optimizer = ELEMENTWISE[spec.name](net.parameters(), lr=spec.lr, **spec.options)
        optimizer.zero_grad()
        net.loss(*batch(worker, t)).backward()
        if max_norm is not None:
            torch.nn.utils.clip_grad_norm_(net.parameters(), max_norm)
        optimizer.step()
    return flat(net)


# Of one tensor alone Muon cannot tell whether it is a head (see `tests.methods.test_muon`).
OPTIONS: list[tuple[str, dict[str, Any]]] = [(name, {}) for name in ELEMENTWISE if name != "Muon"] + [
    ("AdamW", {"betas": (0.8, 0.9), "weight_decay": 0.1, "amsgrad": True}),
    ("AdamW", {"foreach": True}),
    ("Adam", {"weight_decay": 0.2, "fused": False}),
    ("SGD", {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1}),
    ("SGD", {"momentum": 0.9, "dampening": 0.3}),
    ("RMSprop", {"centered": True, "momentum": 0.5}),
    ("Adagrad", {"lr_decay": 0.1, "initial_accumulator_value": 0.5}),
    ("RAdam", {"decoupled_weight_decay": True, "weight_decay": 0.1}),
    ("Rprop", {"etas": (0.4, 1.3)}),
]
