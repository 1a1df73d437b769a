"""Means that a few workers cannot move far: median, trimmed mean, and the mean of differences that are cut to a norm.

What workers hand in cannot be summed on the way, since each number is compared with those of all others: it is gathered, and counted so
(``all_gather`` in the ledger where a mean is ``all_reduce``, ``gather`` where it is ``reduce``).

Weights, which the sources leave open [inferred]: the weighted median is where the weights on both sides are equal, in the middle between
two numbers where both are; of a trimmed mean as many numbers are left out as without weights, and the rest is weighted. With equal weights
both are what `numpy.median` and `scipy.stats.trim_mean` give.

Legend: n workers that hand in a block, P its numbers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from lab.engine.codecs import Codec
from lab.engine.comm import Communicator, Meeting, Sizes, count
from lab.engine.fleet import Fleet
from lab.engine.stack import Stack, at_least_float32
from lab.engine.world import Contribution, Named, World
from lab.ground.errors import RecipeError
from lab.processes.peers import ManyProcesses
from lab.processes.secure_sum import looked_at, shares
from lab.recipes.mean import Mean

EVEN = 1e-9  # how far from a half the weights on both sides of a median may be, as they are rounded


def median(rows: Tensor, weights: Tensor) -> Tensor:
    """The weighted median of each number: ``[n, P]``, weights ``[n]`` with sum 1 → ``[P]``."""
    ordered, who = rows.sort(0)
    until = weights[who].cumsum(0)  # the weight of all numbers up to each
    low = (until < 0.5 - EVEN).sum(0, keepdim=True)
    high = (until <= 0.5 + EVEN).sum(0, keepdim=True).clamp_max(len(rows) - 1)
    return (ordered.gather(0, low) + ordered.gather(0, high))[0] / 2


def trimmed(rows: Tensor, weights: Tensor, trim: float) -> Tensor:
    """The weighted mean of each number without the ⌊trim · n⌋ largest and as many of the smallest: ``[n, P]``, ``[n]`` → ``[P]``."""
    left_out = int(trim * len(rows))
    ordered, who = rows.sort(0)
    part = slice(left_out, len(rows) - left_out)
    kept = weights[who][part]
    return (ordered[part] * (kept / kept.sum(0)).to(rows.dtype)).sum(0)


def clipped(blocks: Sequence[Tensor], weights: Tensor, max_norm: float) -> list[Tensor]:
    """The weighted mean of what is cut to a norm, over all blocks together: of ``[n, P]`` each → ``[P]`` each."""
    norms = torch.stack([x.double().square().sum(1) for x in blocks]).sum(0).sqrt()
    factor = (max_norm / norms.clamp_min(max_norm) * weights).unsqueeze(1)  # 1 below the norm
    return [(x * factor.to(x.dtype)).sum(0) for x in blocks]


class RobustMeans(Communicator):
    """As `lab.engine.comm.Communicator`, with another `mean`; also of what is looked at (`agreed`), where that can be said."""

    def __init__(self, fleet: Fleet, codecs: Mapping[str, Codec] | None, world: World | None, how: Mean):
        super().__init__(fleet, codecs, world)
        self.how = how

    @torch.no_grad()
    def mean(
        self,
        stack: Stack,
        state: str,
        *,
        minus: Stack | None = None,
        fallback: Stack | None = None,
        weights_W: Sequence[float] | None = None,
        participants: Sequence[bool] | None = None,
        codec: Codec | None = None,
        to_server: bool = False,
    ) -> Stack:
        """As `lab.engine.comm.Communicator.mean`, with all parts gathered.

        Raises
        ------
        RecipeError
            where the method brings a codec, or averages whole states, of which no norm says anything.
        """
        if codec is not None:
            raise RecipeError(
                f"mean.by={self.how.by} compares numbers as they are, and this method sends others: leave it out"
            )
        if self.how.by == "clipped" and minus is None and state != "grads":
            raise RecipeError(
                f"mean.by=clipped cuts differences, and this method averages whole {state}: use median or trimmed, or a method that sends "
                "differences (ddp, diloco)"
            )
        up = self.fleet.up if participants is None else participants
        there = [b.taking_part(up) for b in stack.layout.blocks]
        sent = Sizes()
        for block, workers, x in zip(stack.layout.blocks, there, stack.blocks, strict=True):
            if workers:
                count(sent, workers, block.group, block.numel * x.itemsize)
        mean = self._combined(stack, there, minus, fallback, weights_W, to_server)
        self._write("gather" if to_server else "all_gather", state, sent)
        if not stack.dry:
            self._notify(lambda: Meeting(state, stack, mean if minus is None else mean + minus))
        return mean

    @torch.no_grad()
    def agreed(self, stack: Stack, participants: Sequence[bool] | None = None, fallback: Stack | None = None) -> Stack:
        """As `lab.engine.comm.Communicator.agreed`: the same median or trimmed mean of copies; where differences are cut, their mean."""
        if self.how.by == "clipped":
            return super().agreed(stack, participants, fallback)
        there = looked_at(stack, self.fleet.up if participants is None else participants, fallback)
        return self._combined(stack, there, None, fallback)

    def _combined(
        self,
        stack: Stack,
        there: Sequence[Sequence[int]],
        minus: Stack | None,
        fallback: Stack | None,
        weights_W: Sequence[float] | None = None,
        to_server: bool = False,
    ) -> Stack:
        """Each block of the workers that are ``there``, ``[1, P]``; of one that nobody hands in, what is known of it."""
        if stack.dry:
            return Stack(stack.layout, [x[:1] for x in stack.blocks])
        known: dict[int, Tensor] = {}
        asked: dict[int, Sequence[int]] = {}
        for i, (block, x) in enumerate(zip(stack.layout.blocks, stack.blocks, strict=True)):
            if there[i]:
                asked[i] = there[i]
            elif minus is not None:
                known[i] = torch.zeros_like(minus.blocks[i])
            elif fallback is not None:
                known[i] = fallback.blocks[i]
            elif block.personal:  # of which nobody else learns anything
                known[i] = x[:1] if len(x) else x.new_zeros(1, block.numel)
            else:
                asked[i] = block.everywhere  # their last copies
        handed = self._handed(stack, asked, minus, to_server)
        made = self._made(handed, asked, weights_W)
        empty = [x.new_zeros(1 if to_server else min(1, len(x)), x.shape[1]) for x in stack.blocks]
        blocks = [
            known[i] if i in known else made[i][None].to(x.dtype) if i in made else x for i, x in enumerate(empty)
        ]
        return Stack(stack.layout, blocks)

    def _handed(
        self, stack: Stack, asked: Mapping[int, Sequence[int]], minus: Stack | None, to_server: bool
    ) -> dict[int, Tensor]:
        """What each of the workers hands in of these blocks, ``[n, P]`` in their order; of blocks of which this process learns."""
        own: dict[int, dict[int, Tensor]] = {}  # by block and worker
        for i, workers in asked.items():
            x, holders = stack.blocks[i], stack.layout.blocks[i].holders
            base = None if minus is None else minus.blocks[i][0]
            own[i] = {w: x[row] if base is None else x[row] - base for row, w in enumerate(holders) if w in workers}
        if isinstance(self.world, ManyProcesses) and to_server:
            own = self._at_server(stack, asked, own)
        elif isinstance(self.world, ManyProcesses):
            parts = [
                Contribution(
                    dict.fromkeys(workers, 1 / len(workers)), {w: (x,) for w, x in own[i].items()}, stack.blocks[i][:1]
                )
                for i, workers in asked.items()
            ]
            for i, rows in zip(asked, self.world.all_gather_rows(parts), strict=True):
                own[i] = {w: row[0] for w, row in rows.items()} or own[i]
        return {i: torch.stack([own[i][w] for w in ws]) for i, ws in asked.items() if own[i].keys() >= {*ws}}

    def _at_server(
        self, stack: Stack, asked: Mapping[int, Sequence[int]], own: Mapping[int, Mapping[int, Tensor]]
    ) -> dict[int, dict[int, Tensor]]:
        """What all hand in, at the first process."""
        like = {i: stack.blocks[i].new_empty(stack.blocks[i].shape[1], device="meta") for i in asked}
        workers = sorted({w for ws in asked.values() for w in ws})
        given = {w: {i: own[i].get(w, like[i]) for i, ws in asked.items() if w in ws} for w in workers}
        got = self.world.gather_to_server(given)
        return {i: {w: got[w][i] for w in ws if self.world.first} for i, ws in asked.items()}

    def _made(
        self, handed: Mapping[int, Tensor], asked: Mapping[int, Sequence[int]], weights_W: Sequence[float] | None
    ) -> dict[int, Tensor]:
        """One row of each block, ``[P]``, in at least float32."""
        rows = {i: x.to(at_least_float32(x.dtype)) for i, x in handed.items()}
        weights = {
            i: torch.tensor([*shares(weights_W, asked[i]).values()], dtype=torch.float64, device=x.device)
            for i, x in rows.items()
        }
        if self.how.by == "clipped":
            assert self.how.max_norm is not None
            some = next(iter(weights.values()), torch.empty(0))
            return dict(zip(rows, clipped([*rows.values()], some, self.how.max_norm), strict=True)) if rows else {}
        if self.how.by == "trimmed":
            return {i: trimmed(x, weights[i], self.how.trim) for i, x in rows.items()}
        return {i: median(x, weights[i]) for i, x in rows.items()}

    def gather(self, stack: Stack, state: str) -> Named:
        raise RecipeError(self._single(state))

    def collect(self, tensors: Named, state: str, of: Stack, level: int = 0) -> Named:
        raise RecipeError(self._single(state))

    def _single(self, state: str) -> str:
        return (
            f"mean.by={self.how.by} is instead of a mean, and this method makes something else of the {state} of each worker: use a method that "
            "takes means, such as des_loc, diloco, fedprox or ddp"
        )
