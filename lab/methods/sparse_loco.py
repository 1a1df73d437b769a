"""SparseLoCo (Sarfi et al. 2025, arXiv 2508.15706): DiLoCo whose workers send the few strongest numbers of what they owe, in two bits each."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from lab.engine.comm import Communicator
from lab.engine.optim import AdamW, Optimizer
from lab.engine.outer import follow_, init_outer
from lab.engine.stack import Stack, clip_, frozen
from lab.engine.state import Grad, State, numeric
from lab.ground.config import Count, Fraction, Period, Positive, config
from lab.methods.registry import method
from lab.methods.tiles import Tiling, room

LEVELS = 4  # what two bits tell apart


@method("sparse_loco")
@config
class SparseLoCo:
    """Every ``sync_every`` (H) local steps, with the pseudo-gradient Δ = shared − local at each worker:

    e = β·e + Δ;  q = Q(the ``topk`` largest of each tile of e);  e = e − q;  Q̄ = mean of q over the workers;  an outer step
    along Q̄, from which all go on. The residual e is DiLoCo's outer momentum, moved to the workers.

    Sends: ``params``, as (position, code) pairs and a small book, once per round; it cannot be summed on the way. With 64 of each 4,096
    numbers, 12 bits for a position and 2 for a code: 146 times less than float32. State: ``residual`` is local and kept, inner states
    too; ``shared`` parameters agreed.

    The paper has chunks of 4,096, β = 0.95, two bits, an outer SGD of rate 1 without momentum, and rounds of 15 to 250 steps; here 32,
    since the models are small. How Q rounds we had no source for: a code says the sign and whether a number is above the mean size of what
    is sent, and the book has the mean of each of the four kinds, by worker and group of tensors.

    topk
        how many of a tile of ``chunk`` × ``chunk`` numbers; of a smaller one the same share, one at least. A vector is cut into pieces of
        as many numbers.
    bits
        2, or 32: numbers as they are.
    over
        what a number is divided by that not everybody sent: ``senders`` of this number, or ``all`` workers.
    """

    sync_every: Period = 32
    inner: Optimizer = Field(default_factory=lambda: AdamW(lr=3e-3))
    outer: Optimizer = Field(default_factory=lambda: Optimizer("SGD", 1.0))
    decay: Fraction = 0.95
    topk: Count = 64
    chunk: Annotated[int, Field(ge=1, le=4096)] = 64
    bits: Literal[2, 32] = 2
    over: Literal["senders", "all"] = "senders"
    max_norm: Positive | None = 1.0

    @property
    def averages(self) -> tuple[str, ...]:
        return ()  # but through a codec of its own

    def init(self, s: State) -> None:
        s.optimizers["inner"] = self.inner.over(s.local["params"], s.grads)
        init_outer(s, self.outer)
        s.local["residual"] = s.local["params"].zeros_like()

    def step(self, s: State, grad: Grad, comm: Communicator, t: int) -> Tensor:
        loss_W = grad(s)
        clip_(s.grads, self.max_norm)
        self.inner.step_(s, t)
        if t % self.sync_every == 0 and any(s.fleet.up):
            self._sync_(s, comm)
        return loss_W

    def _sync_(self, s: State, comm: Communicator) -> None:
        owed, shared = s.local["residual"], s.shared["params"]
        tilings = {name: Tiling.of(owed[name].shape, self.chunk, self.chunk**2) for name in owed.names()}
        moved = shared.zeros_like()
        for wishes in room(owed, tilings, per_number=2):
            codec = self._codec(tilings[next(iter(wishes.names()))].numel)
            with frozen([owed], s.fleet.up):
                self._wish_(owed, s.local["params"], shared, wishes, tilings, codec)
            self._write_(moved, comm.mean(wishes, "params", codec=codec), tilings)
        follow_(s, moved)

    def _codec(self, tile: int) -> StrongestOf:
        return StrongestOf(tile, max(1, min(tile, round(tile * self.topk / self.chunk**2))), self.bits)

    @numeric
    def _wish_(
        self, owed: Stack, local: Stack, shared: Stack, wishes: Stack, tilings: dict[str, Tiling], codec: StrongestOf
    ) -> None:
        """Add pseudo-gradients to what is owed, write it where it is sent from, and take off what will arrive."""
        for name in wishes.names():
            owed[name].mul_(self.decay).add_(shared[name] - local[name])
            wishes[name].unflatten(2, (2, -1))[:, :, 0].copy_(tilings[name].cut(owed[name]).flatten(2))
        sent = wishes.map(
            lambda rows: torch.stack([codec.decode(codec.encode(x), x) for x in rows]) if len(rows) else rows
        )
        for name in sent.names():
            arriving = sent[name].unflatten(2, (2, -1))[:, :, 0]
            owed[name].sub_(tilings[name].join(arriving, owed[name].shape))

    @numeric
    def _write_(self, moved: Stack, mean: Stack, tilings: dict[str, Tiling]) -> None:
        """Into ``moved`` comes E[local − shared]: the mean of what was sent, and of how many sent it; what is personal stays."""
        for name in [name for name in mean.names() if not mean.is_personal(name)]:
            value, share = mean[name].unflatten(2, (2, -1)).unbind(2)
            if self.over == "senders":
                value = torch.where(share > 0, value / share, 0.0)
            moved[name].copy_(-tilings[name].join(value, moved[name].shape))


class StrongestOf:
    """The k largest numbers of every tile: positions, packed, and a code of two bits each with a book, or the numbers (``bits`` 32).

    Rows are ``[tiles, 2, numbers of a tile]``, flat: the numbers, and room for which of them have come, 1 or 0, for whoever decodes.
    """

    reducible = False
    sparse = False  # in the sense of codecs that must not be used on whole states: all that is handed over is sent
    error_feedback = False

    def __init__(self, tile: int, k: int, bits: int):
        self.tile, self.k, self.bits = tile, k, bits
        self.position_bits = max(1, (tile - 1).bit_length())

    def encode(self, x: Tensor) -> tuple[Tensor, ...]:
        tiles = x.view(-1, 2, self.tile)[:, 0]
        index = tiles.abs().topk(self.k, sorted=False).indices.sort(1).values
        values = tiles.gather(1, index)
        where = packed(index.flatten(), self.position_bits)
        if self.bits == 32:
            return where, values.flatten()
        large = values.abs() >= values.abs().mean()
        code = (2 * (values < 0) + large).flatten()
        sums, num = x.new_zeros(LEVELS).index_add_(0, code, values.flatten()), x.new_zeros(LEVELS)
        book = sums / num.index_add_(0, code, torch.ones_like(values.flatten())).clamp_min(1.0)
        return where, packed(code, 2), book

    def decode(self, sent: tuple[Tensor, ...], like: Tensor) -> Tensor:
        out = torch.zeros_like(like).view(-1, 2, self.tile)
        index = unpacked(sent[0], self.position_bits, len(out) * self.k).view(-1, self.k)
        values = sent[1] if self.bits == 32 else sent[2][unpacked(sent[1], 2, index.numel())]
        out[:, 0].scatter_(1, index, values.view(-1, self.k))
        out[:, 1].scatter_(1, index, 1.0)
        return out.view(-1)


def packed(x: Tensor, bits: int) -> Tensor:
    """Whole numbers below 2^bits, ``[n]``, in as few bytes as they take together: uint8 ``[⌈n·bits / 8⌉]``."""
    digits = (x[:, None] >> torch.arange(bits, device=x.device) & 1).flatten()
    digits = torch.nn.functional.pad(digits, (0, -len(digits) % 8)).view(-1, 8)
    return (digits << torch.arange(8, device=x.device)).sum(1).to(torch.uint8)


def unpacked(x: Tensor, bits: int, n: int) -> Tensor:
    """The n numbers that `packed` has packed, int64."""
    digits = (x.long()[:, None] >> torch.arange(8, device=x.device) & 1).flatten()[: n * bits].view(n, bits)
    return (digits << torch.arange(bits, device=x.device)).sum(1)
