"""What another set of values makes of the same inputs, and how far one set of predictions is from another.

For losses that a method has of its own (``@method(…, own_loss=True)``, ``grad(s, loss)``): what a teacher says of a batch, be it to learn
from its probabilities or to take its likeliest class for a label.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call

First = Literal["own", "other"]  # of two distributions, which stands first in the divergence


@torch.no_grad()
def predictions(module: nn.Module, values: Mapping[str, Tensor], inputs: Tensor) -> Tensor:
    """Logits of ``inputs`` as the module gives them with other values of its parameters, in eval mode, without a gradient.

    values
        by the parameters' names; what is not among them is as in the module. Those of a worker or of the server are views of a stack:
        ``{n: stack[n][row] for n in stack.names()}``.

    The module's own values, buffers and mode are as before.
    """
    training = module.training
    module.eval()
    try:
        found: Tensor = functional_call(module, dict(values), (inputs,))
    finally:
        module.train(training)
    return found


def divergence(teacher: Tensor, student: Tensor, temperature: float = 1.0) -> Tensor:
    """KL(σ(teacher / T) ‖ σ(student / T)) in nats, the mean over all but the last axis, which is that of classes; ``[]``.

    Both are logits. The teacher's are taken as they are (no gradient); whoever wants the factor T² multiplies by it.
    """
    p = (teacher.detach() / temperature).log_softmax(-1)
    q = (student / temperature).log_softmax(-1)
    return (p.exp() * (p - q)).sum(-1).mean()


def apart(own: Tensor, other: Tensor, targets: Tensor, temperature: float, first: First = "other") -> Tensor:
    """How far two predictions are from each other in nats, the mean over those targets that count, ``[]``; ``other`` is taken as it is.

    Of classes it is the divergence of their distributions at this temperature, with one or the other of them ``first``. Of numbers it is that of
    normal distributions around them, (own − other)² / 2T², which is the same both ways.
    """
    other = other.detach()
    if targets.is_floating_point():
        return (own - other).square().mean() / (2 * temperature**2)
    counts = targets >= 0
    if not counts.any():
        return 0 * own.sum()
    if first == "other":
        return divergence(other[counts], own[counts], temperature)
    p, q = ((x[counts] / temperature).log_softmax(-1) for x in (own, other))
    return (p.exp() * (p - q)).sum(-1).mean()


def loss_and_predictions(module: nn.Module, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """``module.loss(inputs, targets)``, and the logits that it is made of, both with their gradients: one forward pass.

    Two, where the loss is not made of what the module gives when it is called.
    """
    given: list[Tensor] = []
    listening = module.register_forward_hook(lambda module, inputs, output: given.append(output))
    try:
        loss: Tensor = module.loss(inputs, targets)  # type: ignore[operator]
    finally:
        listening.remove()
    return loss, given[0] if given else module(inputs)
