"""Layers that compute with a function of their stored weight, and those whose weight learns from a part of what they were given.

Names and shapes of parameters stay as they are: a fleet has its views of the stored weights, and whoever runs the module, in training or
to score it, gets what the effective ones give. It is for linear maps and convolutions; biases, norms and all else stay.

Legend: B examples, I inputs and O outputs of a map.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Weight = Callable[[Tensor], Tensor]  # the effective weight of a stored one
Layer = nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d
_FORWARDS = {cls.forward: cls for cls in (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)}
# They read the weights of parts themselves, and not by calling them.
_CLOSED = (nn.MultiheadAttention, nn.TransformerEncoderLayer, nn.TransformerDecoderLayer)
_CONVOLVE: dict[int, Any] = {3: F.conv1d, 4: F.conv2d, 5: F.conv3d}


def layers(module: nn.Module) -> dict[str, Layer]:
    """The linear maps and convolutions whose weight is trained, by path.

    Left out are those whose weight another part of the module has as well (a head that is tied to an embedding), and those inside
    torch's own attention, which does not call them.
    """
    closed = [f"{path}." for path, part in module.named_modules() if isinstance(part, _CLOSED)]
    found, owners = dict[str, Any](), dict[int, int]()
    for path, part in module.named_modules():
        for p in part._parameters.values():
            if p is not None:
                owners[id(p)] = owners.get(id(p), 0) + 1
        known = type(part).forward in _FORWARDS
        if known and part._parameters["weight"].requires_grad and not path.startswith(tuple(closed)):  # type: ignore[union-attr]
            found[path] = part
    return {path: part for path, part in found.items() if owners[id(part.weight)] == 1}


def reparametrise_(
    module: nn.Module, weight: Weight | None = None, kept: Callable[[Tensor], Tensor] | None = None
) -> None:
    """Make every one of its `layers` compute with ``weight`` of what it has stored.

    kept
        the share of its inputs, a number from 0 to 1 without an axis, from which a layer's weight learns, given its effective weight:
        in training its gradient is that of the inputs that are largest in magnitude, all others taken as 0. What is handed on to the
        layers before is as ever.

        Which inputs of a linear map are the largest is found for each batch. For a convolution it is found once, and the threshold is
        then that of ``part.threshold`` until somebody sets that to None.
    """
    for part in layers(module).values():
        part.threshold = None  # type: ignore[assignment]
        part.effective = weight or _itself  # type: ignore[assignment]
        part.forward = partial(_forward, part, kept)  # type: ignore[method-assign]


def _itself(stored: Tensor) -> Tensor:
    return stored


def _forward(part: Any, kept: Callable[[Tensor], Tensor] | None, x: Tensor) -> Tensor:
    w = part.effective(part.weight)
    if kept is None or not part.training:
        return _apply(part, x, w, part.bias)
    with torch.no_grad():
        few = largest(x, kept(w)) if isinstance(part, nn.Linear) else _as_at_first(part, x, kept(w))
    seen = _apply(part, few, w, None)
    # The value is that of the first term; the second is 0, and from it alone the weight learns.
    return _apply(part, x, w.detach(), part.bias) + (seen - seen.detach())


def _apply(part: Any, x: Tensor, w: Tensor, bias: Tensor | None) -> Tensor:
    if isinstance(part, nn.Linear):
        return F.linear(x, w, bias)
    padding = part.padding
    if part.padding_mode != "zeros" or isinstance(padding, str):
        mode = "constant" if part.padding_mode == "zeros" else part.padding_mode
        x, padding = F.pad(x, part._reversed_padding_repeated_twice, mode), 0
    return _CONVOLVE[w.dim()](x, w, bias, part.stride, padding, part.dilation, part.groups)  # type: ignore[no-any-return]


def threshold(x: Tensor, share: Tensor) -> Tensor:
    """The magnitude of the last of the largest elements, if so many of them are kept, at least one; 0 where all are."""
    n = x.numel()
    num = (share * n).round().clamp(1, n)
    ordered = x.abs().flatten().sort().values
    return torch.where(num < n, ordered.gather(0, (n - num).long()[None])[0], 0.0)


def largest(x: Tensor, share: Tensor) -> Tensor:
    """``x``, of whose elements those below the `threshold` are 0."""
    return torch.where(x.abs() >= threshold(x, share), x, 0.0)


def _as_at_first(part: Any, x: Tensor, share: Tensor) -> Tensor:
    if part.threshold is None:
        part.threshold = float(threshold(x, share))
    return torch.where(x.abs() >= part.threshold, x, 0.0)


@torch.no_grad()
def plain_(module: nn.Module) -> nn.Module:
    """The same function as a plain module: effective weights in the place of stored ones. For use elsewhere."""
    for part in layers_changed(module):
        part.weight = nn.Parameter(part.effective(part.weight).clone(), requires_grad=part.weight.requires_grad)
        for own in ("forward", "effective", "threshold"):
            delattr(part, own)
    return module


def layers_changed(module: nn.Module) -> list[Any]:
    """The layers of a module that `reparametrise_` has changed."""
    return [part for part in module.modules() if "effective" in vars(part)]


def convolutions(module: nn.Module) -> dict[str, Any]:
    """Of the layers that `reparametrise_` has changed those with a threshold that stays, by path."""
    named = module.named_modules()
    return {path: part for path, part in named if "effective" in vars(part) and not isinstance(part, nn.Linear)}
