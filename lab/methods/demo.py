"""DeMo (Peng, Quesnelle, Kingma 2024, arXiv 2411.19870): every step sends the few strongest waves of each momentum."""

from __future__ import annotations

import functools
import math
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from lab.engine.comm import Communicator
from lab.engine.optim import Optimizer
from lab.engine.stack import Stack, at_least_float32, clip_, frozen
from lab.engine.state import Grad, State, numeric
from lab.ground.config import Fraction, Period, Positive, config
from lab.methods.registry import method
from lab.methods.tiles import Tiling, room


@method("demo")
@config
class DeMo:
    """Momenta stay at the workers and differ; what moves fast in them is taken out, averaged, and all step along its sign.

    m = β·m + lr·g;  q = the ``topk`` largest coefficients of each tile of DCT(m);  m = m − DCT⁻¹(q);  Q = mean of q over the
    workers;  θ = θ − lr·sign(DCT⁻¹(Q)).

    Sends: ``momentum``, in every step, as positions within tiles (one or two bytes each) and values. State: ``momentum``
    is local and not averaged (error feedback by itself: what was not sent stays in it); parameters are equal everywhere
    as long as all workers are up, because all take the same steps.

    A tensor is cut into tiles of up to ``chunk`` × ``chunk`` (sides that divide its own), a vector into pieces of up to
    ``chunk``. Defaults from the authors' code: β = 0.999, 32 coefficients, tiles of 64.

    inner
        SGD, as there, on the sign of the average.
    sign
        off: θ = θ − DCT⁻¹(Q), the mean step itself (for tests; always on in the authors' code).

    The authors' code divides each coefficient by the number of workers that sent it, we by the number of all workers: one
    that a worker did not send counts as zero.
    """

    sync_every: ClassVar[None] = None  # it sends in every step
    inner: Optimizer = Field(default_factory=lambda: Optimizer("SGD", 1e-3))
    decay: Fraction = 0.999
    topk: Period = 32
    chunk: Annotated[int, Field(ge=1, le=4096)] = 64
    sign: bool = True
    max_norm: Positive | None = None

    @property
    def averages(self) -> tuple[str, ...]:
        return ()  # but through a codec of its own

    def init(self, s: State) -> None:
        params = s.local["params"]
        s.optimizers["inner"] = self.inner.over(params, s.grads)
        s.local["momentum"] = params.zeros_like()

    def step(self, s: State, grad: Grad, comm: Communicator, t: int) -> Tensor:
        loss_W = grad(s)
        clip_(s.grads, self.max_norm)
        lr, m = self.inner.lr * s.schedule(t), s.local["momentum"]
        strongest = room(m, {name: Tiling.of(m[name].shape, self.chunk) for name in m.names()})
        with frozen([m], s.fleet.up):
            self._take_(m, s.grads, lr, strongest)
        for stack in strongest:
            per_tile = next(iter(stack.layout.blocks)).shapes[0][-1]
            agreed = comm.mean(stack, "momentum", codec=Strongest(per_tile, min(self.topk, per_tile)))
            self._write_(s.grads, agreed, stack, lr)
        self.inner.step_(s, t)
        return loss_W

    @numeric
    def _take_(self, m: Stack, grads: Stack, lr: float, strongest: list[Stack]) -> None:
        """Add the gradients to the momenta, and move the strongest coefficients out of every one."""
        torch._foreach_mul_(m.blocks, self.decay)
        torch._foreach_add_(m.blocks, grads.blocks, alpha=lr)
        for stack in strongest:
            for name in stack.names():
                waves = to_tiles(m[name], self.chunk)
                index = waves.abs().topk(min(self.topk, waves.shape[-1]), sorted=False).indices
                stack[name].scatter_(-1, index, waves.gather(-1, index))
                m[name].sub_(from_tiles(stack[name], m[name].shape, self.chunk))

    @numeric
    def _write_(self, grads: Stack, agreed: Stack, own: Stack, lr: float) -> None:
        """The gradient that SGD is to follow: the sign of the agreed step, or of a worker's own where the tensor is personal."""
        for name in agreed.names():
            waves = own[name] if own.is_personal(name) else agreed[name]
            step = from_tiles(waves, (len(waves), *grads[name].shape[1:]), self.chunk)
            grads[name].copy_(step.sign() if self.sign else step / lr if lr else torch.zeros_like(step))


class Strongest:
    """The k largest numbers of every tile, as (position in the tile, value) pairs. The momentum remembers the rest itself."""

    reducible = False
    sparse = False  # in the sense of codecs that must not be used on whole states: all that is handed over is sent
    error_feedback = False

    def __init__(self, tile: int, k: int):
        self.tile, self.k = tile, k

    def encode(self, x: Tensor) -> tuple[Tensor, ...]:
        tiles = x.view(-1, self.tile)
        index = tiles.abs().topk(self.k, sorted=False).indices
        least = torch.uint8 if self.tile <= 2**8 else torch.int16 if self.tile <= 2**15 else torch.int32
        return index.to(least), tiles.gather(1, index)

    def decode(self, sent: tuple[Tensor, ...], like: Tensor) -> Tensor:
        index, value = sent
        return torch.zeros_like(like).view(-1, self.tile).scatter_(1, index.long(), value).view(-1)


@functools.cache
def dct(n: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """The orthonormal cosine transform of n numbers, ``[n, n]``: row k holds √(2/n)·cos(π·k·(2i + 1) / 2n), row 0 √(1/n)."""
    k, i = torch.meshgrid(*[torch.arange(n, dtype=torch.float64, device="cpu")] * 2, indexing="ij")
    out = torch.cos(math.pi * k * (2 * i + 1) / (2 * n)) * math.sqrt(2 / n)
    out[0] = math.sqrt(1 / n)
    return out.to(dtype).to(device)


def to_tiles(x: Tensor, chunk: int) -> Tensor:
    """Cosine coefficients of the tiles, ``[H, tiles, a·b]`` from ``[H, *shape]``."""
    tiling, dtype = Tiling.of(x.shape, chunk), at_least_float32(x.dtype)
    waves = dct(tiling.a, dtype, x.device) @ tiling.cut(x).to(dtype) @ dct(tiling.b, dtype, x.device).T
    return waves.flatten(2).to(x.dtype)


def from_tiles(waves: Tensor, shape: torch.Size | tuple[int, ...], chunk: int) -> Tensor:
    """The tensor ``[H, *shape]`` with these coefficients."""
    tiling, dtype = Tiling.of(shape, chunk), at_least_float32(waves.dtype)
    tiles = waves.unflatten(2, (tiling.a, tiling.b)).to(dtype)
    x = dct(tiling.a, dtype, waves.device).T @ tiles @ dct(tiling.b, dtype, waves.device)
    return tiling.join(x, shape).to(waves.dtype)
