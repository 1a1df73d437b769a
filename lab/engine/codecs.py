"""What travels instead of a tensor.

A codec turns one worker's row into a few tensors (``encode``) and back (``decode``). The communicator counts the bytes of
the encoded tensors; a codec never counts. ``reducible`` says whether encoded rows can be summed on the way round a ring;
others must be gathered, which the network prices differently. ``sparse`` codecs drop most of a tensor, so they are only
allowed on differences (gradients, pseudo-gradients), never on whole parameters.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from lab.ground.config import config, number_in
from lab.ground.errors import RecipeError, one_of


class Codec(Protocol):
    @property
    def reducible(self) -> bool: ...
    @property
    def sparse(self) -> bool: ...
    @property
    def error_feedback(self) -> bool: ...

    def encode(self, x: Tensor) -> tuple[Tensor, ...]: ...
    def decode(self, sent: tuple[Tensor, ...], like: Tensor) -> Tensor: ...


@config
class Cast:
    """Send a narrower float: ``bfloat16`` or ``float16``."""

    dtype: str = "bfloat16"
    reducible = True
    sparse = False
    error_feedback = False

    def encode(self, x: Tensor) -> tuple[Tensor, ...]:
        return (x.to(getattr(torch, self.dtype)),)

    def decode(self, sent: tuple[Tensor, ...], like: Tensor) -> Tensor:
        return sent[0].to(like.dtype)


@config
class Int8:
    """One signed byte per element and one scale per ``chunk`` elements: x ≈ q · max|x| / 127, rounded to nearest.

    The error of an element is at most half a step, max|x| of its chunk / 254.
    """

    chunk: int = 256
    reducible = False
    sparse = False
    error_feedback = False

    def encode(self, x: Tensor) -> tuple[Tensor, ...]:
        padded = torch.nn.functional.pad(x, (0, -len(x) % self.chunk)).view(-1, self.chunk)
        scale = (padded.abs().amax(1, keepdim=True) / 127).clamp_min(torch.finfo(x.dtype).tiny)
        q = (padded / scale).round().to(torch.int8)
        return q.view(-1)[: len(x)], scale.squeeze(1).to(torch.float32)

    def decode(self, sent: tuple[Tensor, ...], like: Tensor) -> Tensor:
        q, scale = sent
        padded = torch.nn.functional.pad(q, (0, -len(q) % self.chunk)).view(-1, self.chunk)
        return (padded.to(like.dtype) * scale[:, None].to(like.dtype)).view(-1)[: len(q)]


@config
class E3M0:
    """Four bits per element, sign and exponent: x ≈ ± max|x| · 2^(c − 7) for c = 1 … 7, or 0; a scale per ``chunk`` elements.

    Rounded to nearest: an element errs by at most a third of itself, those below max|x| / 128 become 0. Two to a byte. The
    format is Streaming DiLoCo's, whose scale is not given.
    """

    chunk: int = 256
    reducible = False
    sparse = False
    error_feedback = False

    def encode(self, x: Tensor) -> tuple[Tensor, ...]:
        x = x.to(torch.promote_types(x.dtype, torch.float32))
        padded = torch.nn.functional.pad(x, (0, -len(x) % self.chunk)).view(-1, self.chunk)
        scale = padded.abs().amax(1, keepdim=True).clamp_min(torch.finfo(x.dtype).tiny)
        size = padded.abs() / scale
        code = (size * (4 / 3)).log2().floor().add(7).clamp(1, 7)  # 2^k stands for [¾·2^k, ³⁄₂·2^k)
        code = torch.where(size < 2.0**-7, 0, code).to(torch.uint8) + 8 * (padded < 0).to(torch.uint8)
        code = torch.nn.functional.pad(code.view(-1)[: len(x)], (0, len(x) % 2))
        return code[::2] + 16 * code[1::2], scale.squeeze(1).to(torch.float32)

    def decode(self, sent: tuple[Tensor, ...], like: Tensor) -> Tensor:
        pairs, scale = sent
        code = torch.stack([pairs % 16, pairs // 16], 1).view(-1)[: len(like)]
        size = torch.where(code % 8 > 0, torch.exp2((code % 8).to(like.dtype) - 7), 0.0)
        signed = torch.where(code >= 8, -size, size)
        return signed * scale.to(like.dtype).repeat_interleave(self.chunk)[: len(like)]


@config
class TopK:
    """The ``fraction`` of elements largest in magnitude, as (index, value) pairs; at least one.

    With error feedback (the default) what was not sent is remembered at the worker and added the next time.
    """

    fraction: float = 0.01
    error_feedback: bool = True
    reducible = False
    sparse = True

    def __post_init__(self) -> None:
        if not 0 < self.fraction <= 1:
            raise RecipeError(f"topk fraction = {self.fraction} is not allowed: it must lie in (0, 1]")

    def encode(self, x: Tensor) -> tuple[Tensor, ...]:
        k = max(1, round(self.fraction * len(x)))
        index = x.abs().topk(k, sorted=False).indices.sort().values
        return index.to(torch.int32), x[index]

    def decode(self, sent: tuple[Tensor, ...], like: Tensor) -> Tensor:
        index, value = sent
        return torch.zeros_like(like).index_copy_(0, index.long(), value)


@config
class NonZeros:
    """All elements that are not zero, and where they are: by a bit for each element, or by their indices, whichever takes fewer bytes.

    Where neither saves anything, all elements as they are. Nothing is lost. Indices have 2 bytes in a tensor of at most 32,768
    elements, then 4. How many bytes it takes hangs on the values, so it is for methods that say what a dry run is to expect.
    """

    reducible = False
    sparse = False
    error_feedback = False

    def encode(self, x: Tensor) -> tuple[Tensor, ...]:
        """Of ``[n]``: the values, and bits (uint8), indices, or nothing."""
        at = x.nonzero()[:, 0]
        _, mask = self.shapes(len(x), len(at), x.dtype)
        if len(at) == len(x) or (not len(mask) and len(at)):
            return x, mask.new_empty(0, device=x.device)
        if mask.dtype == torch.uint8:
            bits = torch.nn.functional.pad(x != 0, (0, -len(x) % 8)).view(-1, 8)
            return x[at], (bits * 2 ** torch.arange(8, device=x.device)).sum(1).to(torch.uint8)
        return x[at], at.to(mask.dtype)

    def decode(self, sent: tuple[Tensor, ...], like: Tensor) -> Tensor:
        values, mask = sent
        if len(values) == len(like):
            return values
        if mask.dtype == torch.uint8:
            mask = (mask[:, None] >> torch.arange(8, device=mask.device) & 1).view(-1).nonzero()[:, 0]
        return torch.zeros_like(like).index_copy_(0, mask.long(), values)

    def shapes(self, n: int, num: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """What `encode` makes of ``n`` elements of which ``num`` are not zero, without numbers."""
        index = torch.int16 if n <= 1 << 15 else torch.int32
        bits, indices, dense = -(-n // 8), num * index.itemsize, (n - num) * dtype.itemsize
        shape, kind = (bits, torch.uint8) if bits < indices else (num, index)
        few = min(bits, indices) < dense
        values = torch.empty(num if few else n, dtype=dtype, device="meta")
        return values, torch.empty(shape if few else 0, dtype=kind, device="meta")


def codec(spec: str) -> Codec:
    """``"bfloat16"``, ``"float16"``, ``"int8"``, ``"e3m0"``, ``"topk:0.01"`` or ``"topk:0.01:forget"`` (no error feedback).

    Raises
    ------
    RecipeError
        for anything else.
    """
    head, *rest = spec.split(":")
    if head in ("bfloat16", "float16") and not rest:
        return Cast(head)
    if head in ("int8", "e3m0") and not rest:
        return Int8() if head == "int8" else E3M0()
    if head == "topk" and len(rest) in (1, 2) and rest[1:] in ([], ["forget"]):
        fraction = number_in(rest[0])
        if fraction is not None:
            return TopK(fraction, error_feedback=len(rest) == 1)
    raise RecipeError(one_of("codec", spec, ["bfloat16", "float16", "int8", "e3m0", "topk:0.01", "topk:0.01:forget"]))
