"""A backend of `torch.distributed` for sites that reach nothing but one place, where they leave messages for each other.

What a site says to several it puts there once, and each of them reads it: an all-reduce of S bytes among n sites is one upload of S
and n − 1 downloads, and all add the parts in the order of the sites, so that all have the same bits (and two sites those of a ring).
No socket is opened, and no store is shared: groups are made without a word.

A long tensor goes in pieces (`pieces`), each a message of its own: the second is put while the first is read, so that both directions of a
link are used at once, as a ring uses them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import HashStore, Work

from lab.processes.post import Post

NAME = "mailbox"
# of a tensor: a shorter piece costs more in requests than it saves, and only the last is waited for
PIECE_BYTES, MOST_PIECES = 1 << 17, 8


class Mailbox(dist.ProcessGroup):
    """A process group: some of the run's sites.

    Parameters
    ----------
    members
        their numbers in the run.
    post
        of this site. Every method, or the `Work` that it returns, raises RuntimeError if a message does not come in time.
    """

    def __init__(self, index: int, members: Sequence[int], post: Post):
        super().__init__(index, len(members))  # type: ignore[call-arg]
        self.index, self.members, self.post = index, list(members), post
        self.channel = post.channel(self.members)

    def getBackendName(self) -> str:
        return NAME

    def send(self, tensors: list[Tensor], to: int, tag: int = 0) -> Work:
        (x,) = tensors
        self._put_(self._parts(f"{self.post.index}to{self.members[to]}", x), x)
        self.post.put_all()
        return Then()

    def recv(self, tensors: list[Tensor], origin: int, tag: int = 0) -> Work:
        sender, (x,) = self.members[origin], tensors
        self._take_(self._parts(f"{sender}to{self.post.index}", x), {sender: x})
        return Then()

    def broadcast(self, tensors: list[Tensor], opts: Any = None) -> Work:  # type: ignore[override]
        (x,) = tensors
        parts = self._parts(self.channel, x)
        if self.index == opts.rootRank:
            self._put_(parts, x)
            self.post.put_all()
        else:
            self._take_(parts, {self.members[opts.rootRank]: x})
        return Then()

    def allgather(self, outputs: list[list[Tensor]], inputs: list[Tensor], opts: Any = None) -> Work:  # type: ignore[override]
        (out,), (mine,) = outputs, inputs
        parts = self._parts(self.channel, mine)
        out[self.index].copy_(mine)
        self._put_(parts, out[self.index])
        self._take_(parts, {p: x for p, x in zip(self.members, out, strict=True) if p != self.post.index})
        self.post.put_all()
        return Then()

    def allreduce(self, tensors: list[Tensor], opts: Any = None) -> Work:  # type: ignore[override]
        if opts is not None and opts.reduceOp != dist.ReduceOp.SUM:
            raise RuntimeError("sites add; other reductions are not made")
        (x,) = tensors
        parts = self._parts(self.channel, x)
        self._put_(parts, x)
        self.post.unread.update(name for name, _ in parts)

        def add_() -> None:
            of_site = {p: x if p == self.post.index else torch.empty_like(x) for p in self.members}
            self._take_(parts, {p: other for p, other in of_site.items() if p != self.post.index})
            self.post.put_all()
            total, *rest = (of_site[p] for p in sorted(of_site))
            total = total.clone()
            for other in rest:
                total.add_(other)
            x.copy_(total)

        return Then(add_)

    def barrier(self, opts: Any = None) -> Work:
        word = torch.zeros(1, dtype=torch.uint8)
        return self.allgather([[torch.empty_like(word) for _ in self.members]], [word])

    def _parts(self, channel: str, x: Tensor) -> list[tuple[str, slice]]:
        """Names of the messages that a tensor goes in, and which of its bytes each has."""
        return [(self.post.next(channel), piece) for piece in pieces(x.nbytes)]

    def _put_(self, parts: Sequence[tuple[str, slice]], x: Tensor) -> None:
        """Begin to send a tensor. What this site said under these names before it was lost counts, and is in ``x`` then."""
        data = _data(x)
        for name, piece in parts:
            mine = data[piece]
            said = self.post.begin_to_put(name, mine, kind(x))
            if said is not mine:
                _fill_(x, piece, said)
        check_finite(self.post, parts[-1][0], self.post.index, x)

    def _take_(self, parts: Sequence[tuple[str, slice]], into: Mapping[int, Tensor]) -> None:
        """Receive a tensor from each of some sites."""
        began, of = self.post.clock(), next((kind(x) for x in into.values()), None)
        self.post.unread.update(name for name, _ in parts)
        for name, piece in parts:
            for p, data in self.post.take(name, dict.fromkeys(into, piece.stop - piece.start), of, began).items():
                _fill_(into[p], piece, data)
            self.post.unread.discard(name)
        for p, x in into.items():
            check_finite(self.post, parts[-1][0], p, x)


def pieces(num_bytes: int) -> list[slice]:
    """Which bytes of a tensor go in which message: at most ``MOST_PIECES``, none shorter than ``PIECE_BYTES`` but the last of them."""
    num = max(1, min(MOST_PIECES, num_bytes // PIECE_BYTES))
    size = -(-num_bytes // num)
    return [slice(at, min(at + size, num_bytes)) for at in range(0, max(num_bytes, 1), max(size, 1))]


def kind(x: Tensor) -> str:
    """What numbers a tensor has, in a word: ``float64[640]``."""
    return f"{str(x.dtype).removeprefix('torch.')}{list(x.shape)}"


def check_finite(post: Post, name: str, sender: int, x: Tensor) -> None:
    """Refuse what a site (this one as well) has sent, by name, if not all of it are numbers (`lab.processes.post.Post.refuse`)."""
    if x.is_floating_point() and not bool(x.isfinite().all()):
        post.refuse(sender, name, "it has numbers that are not finite")


class Then(Work):
    """The `torch.distributed.Work` of a call: what is left to do when somebody waits for it."""

    def __init__(self, rest: Callable[[], None] | None = None):
        super().__init__()
        self.rest = rest

    def is_completed(self) -> bool:
        return self.rest is None

    def wait(self, timeout: timedelta | None = None) -> bool:
        rest, self.rest = self.rest, None
        if rest is not None:
            rest()
        return True


def _data(x: Tensor) -> bytes:
    return x.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes()


def _fill_(x: Tensor, piece: slice, data: bytes) -> None:
    if data:
        x.detach().view(-1).view(torch.uint8)[piece].copy_(torch.frombuffer(bytearray(data), dtype=torch.uint8))


def begin(post: Post) -> None:
    """Initialise `torch.distributed` with this backend, for all groups. Waits for nobody."""

    def group(options: Any, _: object) -> Mailbox:
        members = list(options.global_ranks_in_group) or range(post.num)
        return Mailbox(options.group_rank, members, post)

    dist.Backend.register_backend(NAME, group, extended_api=True, devices=["cpu", "cuda"])
    dist.init_process_group(NAME, store=HashStore(), rank=post.index, world_size=post.num)
