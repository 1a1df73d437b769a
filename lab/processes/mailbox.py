"""A backend of `torch.distributed` for sites that reach nothing but one place, where they leave messages for each other.

What a site says to several it puts there once, and each of them reads it: an all-reduce of S bytes among n sites is one upload of S
and n − 1 downloads, and all add the parts in the order of the sites, so that all have the same bits (and two sites those of a ring).
No socket is opened, and no store is shared: groups are made without a word.
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
        self.post.put(self.post.next(f"{self.post.index}to{self.members[to]}"), _data(tensors[0]), kind(tensors[0]))
        return Then()

    def recv(self, tensors: list[Tensor], origin: int, tag: int = 0) -> Work:
        sender = self.members[origin]
        self._take_(self.post.next(f"{sender}to{self.post.index}"), {sender: tensors[0]})
        return Then()

    def broadcast(self, tensors: list[Tensor], opts: Any = None) -> Work:  # type: ignore[override]
        name, (x,) = self.post.next(self.channel), tensors
        if self.index == opts.rootRank:
            self._put_(name, x)
        else:
            self._take_(name, {self.members[opts.rootRank]: x})
        return Then()

    def allgather(self, outputs: list[list[Tensor]], inputs: list[Tensor], opts: Any = None) -> Work:  # type: ignore[override]
        name, (out,), (mine,) = self.post.next(self.channel), outputs, inputs
        out[self.index].copy_(mine)
        self._put_(name, out[self.index])
        self._take_(name, {p: x for p, x in zip(self.members, out, strict=True) if p != self.post.index})
        return Then()

    def allreduce(self, tensors: list[Tensor], opts: Any = None) -> Work:  # type: ignore[override]
        if opts is not None and opts.reduceOp != dist.ReduceOp.SUM:
            raise RuntimeError("sites add; other reductions are not made")
        name, (x,) = self.post.next(self.channel), tensors
        self._put_(name, x)
        self.post.unread.add(name)

        def add_() -> None:
            parts = {p: x if p == self.post.index else torch.empty_like(x) for p in self.members}
            self._take_(name, {p: part for p, part in parts.items() if p != self.post.index})
            self.post.unread.discard(name)
            total, *rest = (parts[p] for p in sorted(parts))
            total = total.clone()
            for part in rest:
                total.add_(part)
            x.copy_(total)

        return Then(add_)

    def barrier(self, opts: Any = None) -> Work:
        word = torch.zeros(1, dtype=torch.uint8)
        return self.allgather([[torch.empty_like(word) for _ in self.members]], [word])

    def _put_(self, name: str, x: Tensor) -> None:
        """Send a tensor. What this site said under this name before it was lost counts, and is in ``x`` then."""
        data = _data(x)
        said = self.post.put(name, data, kind(x))
        if said is not data:
            _fill_(x, said)
        check_finite(self.post, name, self.post.index, x)

    def _take_(self, name: str, into: Mapping[int, Tensor]) -> None:
        of = next((kind(x) for x in into.values()), None)
        for p, data in self.post.take(name, {p: x.nbytes for p, x in into.items()}, of).items():
            _fill_(into[p], data)
            check_finite(self.post, name, p, into[p])


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


def _fill_(x: Tensor, data: bytes) -> None:
    if data:
        x.detach().view(-1).view(torch.uint8).copy_(torch.frombuffer(bytearray(data), dtype=torch.uint8))


def begin(post: Post) -> None:
    """Initialise `torch.distributed` with this backend, for all groups. Waits for nobody."""

    def group(options: Any, _: object) -> Mailbox:
        members = list(options.global_ranks_in_group) or range(post.num)
        return Mailbox(options.group_rank, members, post)

    dist.Backend.register_backend(NAME, group, extended_api=True, devices=["cpu", "cuda"])
    dist.init_process_group(NAME, store=HashStore(), rank=post.index, world_size=post.num)
