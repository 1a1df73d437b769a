"""Losses that hold on to a model which a worker was given: parameter by parameter (EWC), or prediction by prediction (KD).

With ℓ for the task's loss, θᴳ for what was given and σ for softmax, as local adaptation has them (Yu et al. 2020, arXiv 2002.04758):

    plain   ℓ(θ)
    ewc     ℓ(θ) + λ/2·Σ_i Fis_i·(θ_i − θᴳ_i)²
    kd      α·K²·ℓ(θ) + (1 − α)·KL(σ(θᴳ(x)/K) ‖ σ(θ(x)/K))

Fis is the diagonal of the empirical Fisher information at θᴳ: the mean over examples of the squared gradient of each one's loss, with the
labels that are there, in eval mode. [inferred] It is taken from the first batch that a worker sees with θᴳ, one backward pass for each of its
examples (of text, a row is an example). KL is the mean over what counts as a target, for text over tokens. Of numbers instead of classes it
is that of normal distributions around them, (θᴳ(x) − θ(x))² / 2K² (ours).

θᴳ is ``s.shared["params"]``, Fis ``s.local["fisher"]``. What is personal is not held on to; a teacher has it as its worker has it at the moment.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from lab.engine.stack import Stack
from lab.engine.state import Grad, State, numeric
from lab.methods.rounds import fetched
from lab.models.distillation import apart, loss_and_predictions, predictions

Loss = Literal["plain", "ewc", "kd"]


@dataclass(frozen=True)
class Hold:
    """Which loss, and how strongly it holds on: λ of ``ewc``, K and α of ``kd``."""

    loss: Loss = "plain"
    strength: float = 1.0
    temperature: float = 1.0
    share: float = 0.5


def open_(s: State) -> None:
    """Room for the Fisher information of each worker."""
    s.local["fisher"] = s.local["params"].zeros_like()


def gradients_(s: State, grad: Grad, hold: Hold, to: Sequence[int]) -> Tensor:
    """Fill the gradients of the loss at every worker that is up; returns ℓ, ``[N]``. Those of ``to`` have just been given θᴳ."""
    if hold.loss == "kd":
        return grad(s, partial(_distilled, hold, fetched(s)))
    if hold.loss == "plain":
        return grad(s)
    if to:
        looked = {w: 0 for w in to if w in s.fleet.mine and s.fleet.up[w]}
        s.local["fisher"].zero_([w in to for w in range(s.fleet.num_workers)])
        loss_W = grad(s, partial(_looked_at, s.local["fisher"], looked))
        _divide_(s.local["fisher"], looked)
    else:
        loss_W = grad(s)
    _pull_(s, hold.strength)
    return loss_W


@numeric
def _pull_(s: State, strength: float) -> None:
    """∇ℓ + λ·Fis·(θ − θᴳ). What is personal has no θᴳ."""
    w, agreed, fisher = s.local["params"], s.shared["params"], s.local["fisher"]
    for i, block in enumerate(w.layout.blocks):
        if not block.personal:
            apart = w.blocks[i] - agreed.blocks[i]  # [H, P] − [1, P]
            s.grads.blocks[i].addcmul_(fisher.blocks[i], apart, value=strength)


def _distilled(
    hold: Hold, given: Mapping[str, Tensor], module: nn.Module, worker: int, inputs: Tensor, targets: Tensor
) -> Tensor:
    """The value is ℓ, the gradient that of α·K²·ℓ + (1 − α)·KL; ``given``: values of θᴳ."""
    if hold.share < 1:
        teacher = predictions(module, given, inputs)
    loss, student = loss_and_predictions(module, inputs, targets)
    whole = hold.share * hold.temperature**2 * loss
    if hold.share < 1:
        whole = whole + (1 - hold.share) * apart(student, teacher, targets, hold.temperature)
    return loss.detach() + (whole - whole.detach())


def _looked_at(
    fisher: Stack, looked: dict[int, int], module: nn.Module, worker: int, inputs: Tensor, targets: Tensor
) -> Tensor:
    """ℓ of a batch; on the way the squared gradients of its examples are added up, of the workers in ``looked``, which counts examples."""
    if worker in looked:
        named = {n: p for n, p in module.named_parameters() if p.requires_grad}
        into = {n: fisher.cell(n, worker) for n in named}
        training = module.training
        module.eval()
        try:
            looked[worker] += _add_squares_(into, module, named, inputs, targets)
        finally:
            module.train(training)
    loss: Tensor = module.loss(inputs, targets)  # type: ignore[operator]
    return loss


def _add_squares_(
    into: Mapping[str, Tensor], module: nn.Module, named: Mapping[str, Tensor], inputs: Tensor, targets: Tensor
) -> int:
    """Add (∂ℓ/∂θ_i)² of each example; returns how many there were. One of whose targets none counts has no loss."""
    found = 0
    for k in range(len(inputs)):
        loss: Tensor = module.loss(inputs[k : k + 1], targets[k : k + 1])  # type: ignore[operator]
        if loss.isfinite():
            grads = torch.autograd.grad(loss, [*named.values()], allow_unused=True)
            pairs = [(into[n], g) for n, g in zip(named, grads, strict=True) if g is not None]
            torch._foreach_addcmul_([x for x, _ in pairs], [g for _, g in pairs], [g for _, g in pairs])
            found += 1
    return found


@numeric
def _divide_(fisher: Stack, looked: Mapping[int, int]) -> None:
    """Sums to means, of the workers that were looked at."""
    for block, x in zip(fisher.layout.blocks, fisher.blocks, strict=True):
        for row, worker in enumerate(block.holders):
            if worker in looked:
                x[row] /= max(1, looked[worker])
