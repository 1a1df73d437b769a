"""A backend of `torch.distributed` for the processes of one machine: a Unix socket between each two of them, and no port.

gloo opens a port for each group of processes, even on one machine, and takes whoever connects first for the process that it waits for:
another user of the machine could hold a run up, or speak in it. These sockets lie in a folder that only their user can reach
(`lab.processes.rendezvous.own_folder`), and once all are connected nothing listens any more.

An all-reduce is a ring, as gloo's: P − 1 steps in which each process sums a part, and P − 1 in which the sums go round. So all have the
same bits, and each sends 2 (P − 1) / P of the buffer. Calls are finished when they return; each two processes make those that concern
them both in the same order.
"""

from __future__ import annotations

import contextlib
import select
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import Store, Work

from lab.processes.rendezvous import new_file

NAME = "isthmus"
PIECE = 1 << 18  # elements that fit into a cache
Links = Mapping[int, socket.socket]  # to each other process, by its number in the run


def connect(store: Store, index: int, num: int, timeout_seconds: float) -> dict[int, socket.socket]:
    """Links to all other processes. Each listens until those after it have come, and tells where by the store."""
    until = time.monotonic() + timeout_seconds
    links: dict[int, socket.socket] = {}
    mine = new_file("link")
    mine.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(mine))
        server.listen(num)
        store.set(f"listening/{index}", str(mine))
        for p in range(index):
            links[p] = socket.socket(socket.AF_UNIX)
            links[p].connect(store.get(f"listening/{p}").decode())
            links[p].sendall(index.to_bytes(4, "big"))
        while len(links) < num - 1:
            server.settimeout(max(0.01, until - time.monotonic()))
            try:
                link, _ = server.accept()
            except TimeoutError:
                raise RuntimeError(f"{num - 1 - len(links)} of {num} processes did not come") from None
            link.settimeout(max(0.01, until - time.monotonic()))
            links[int.from_bytes(link.recv(4, socket.MSG_WAITALL), "big")] = link
    mine.unlink()
    for link in links.values():
        link.setblocking(False)
        for size in (socket.SO_SNDBUF, socket.SO_RCVBUF):
            with contextlib.suppress(OSError):  # as much as there may be
                link.setsockopt(socket.SOL_SOCKET, size, 1 << 20)
    return links


class Mesh(dist.ProcessGroup):
    """A process group: a subset of the run's processes, which uses the sockets that connect all of them.

    Parameters
    ----------
    members
        their numbers in the run.
    timeout_seconds
        of each wait for others. Every method raises RuntimeError if one has gone, or does not answer for so long.
    """

    def __init__(self, index: int, members: Sequence[int], links: Links, timeout_seconds: float):
        super().__init__(index, len(members))  # type: ignore[call-arg]
        self.index, self.links, self.timeout_seconds = index, [links.get(p) for p in members], timeout_seconds

    def getBackendName(self) -> str:
        return NAME

    def send(self, tensors: list[Tensor], to: int, tag: int = 0) -> Work:
        self._move({to: tensors[0]}, {})
        return Done()

    def recv(self, tensors: list[Tensor], origin: int, tag: int = 0) -> Work:
        self._move({}, {origin: tensors[0]})
        return Done()

    def broadcast(self, tensors: list[Tensor], opts: Any = None) -> Work:  # type: ignore[override]
        root = opts.rootRank
        if self.index == root:
            self._move(dict.fromkeys(self._others(), tensors[0]), {})
        else:
            self._move({}, {root: tensors[0]})
        return Done()

    def allgather(self, outputs: list[list[Tensor]], inputs: list[Tensor], opts: Any = None) -> Work:  # type: ignore[override]
        (out,), (mine,) = outputs, inputs
        out[self.index].copy_(mine)
        self._move(dict.fromkeys(self._others(), mine), {p: out[p] for p in self._others()})
        return Done()

    def allreduce(self, tensors: list[Tensor], opts: Any = None) -> Work:  # type: ignore[override]
        if opts is not None and opts.reduceOp != dist.ReduceOp.SUM:
            raise RuntimeError("processes of one machine add; other reductions are not made")
        flat, num = tensors[0].view(-1), len(self.links)
        if num == 2:  # as many bytes in one turn; a sum of two has the same bits from either side
            received, other = torch.empty_like(flat[:PIECE]), 1 - self.index
            for part in flat.split(PIECE):
                self._move({other: part}, {other: received[: len(part)]})
                part.add_(received[: len(part)])
            return Done()
        parts, before, after = flat.tensor_split(num), (self.index - 1) % num, (self.index + 1) % num
        received = torch.empty_like(parts[0])
        for k in range(num - 1):  # what comes in has the sum of one more process
            part = parts[(self.index - k - 1) % num]
            self._move({after: parts[(self.index - k) % num]}, {before: received[: len(part)]})
            part.add_(received[: len(part)])
        for k in range(num - 1):
            self._move({after: parts[(self.index - k + 1) % num]}, {before: parts[(self.index - k) % num]})
        return Done()

    def barrier(self, opts: Any = None) -> Work:
        word = torch.zeros(1, dtype=torch.uint8)
        return self.allgather([[torch.empty_like(word) for _ in self.links]], [word])

    def _others(self) -> list[int]:
        return [p for p in range(len(self.links)) if p != self.index]

    def _move(self, out: Mapping[int, Tensor], into: Mapping[int, Tensor]) -> None:
        """Send to some and receive from some at the same time, so that no two wait for each other with full buffers."""
        sending, receiving = _views(out), _views(into)
        while sending or receiving:
            moved = False
            for p in list(sending):
                with _going_on(p):
                    sending[p] = sending[p][self._link(p).send(sending[p]) :]
                    moved = True
                if not sending[p]:
                    del sending[p]
            for p in list(receiving):
                with _going_on(p):
                    num = self._link(p).recv_into(receiving[p])
                    if not num:
                        raise ConnectionError("it was closed there")
                    receiving[p] = receiving[p][num:]
                    moved = True
                if not receiving[p]:
                    del receiving[p]
            if not moved:
                self._wait(sending, receiving)

    def _wait(self, sending: Mapping[int, Any], receiving: Mapping[int, Any]) -> None:
        ready = select.poll()
        for p in {*sending, *receiving}:
            ready.register(self._link(p), select.POLLOUT * (p in sending) | select.POLLIN * (p in receiving))
        if not ready.poll(self.timeout_seconds * 1000):
            raise RuntimeError(f"timed out after {self.timeout_seconds:g} s")

    def _link(self, p: int) -> socket.socket:
        link = self.links[p]
        assert link is not None, "nobody sends to itself"
        return link


@contextlib.contextmanager
def _going_on(p: int) -> Iterator[None]:
    try:
        yield
    except BlockingIOError:
        pass
    except OSError as error:
        raise RuntimeError(f"the connection to member {p} of this group is broken: {error}") from error


class Done(Work):
    """The finished `torch.distributed.Work` of a call that blocks."""

    def is_completed(self) -> bool:
        return True

    def wait(self, timeout: timedelta | None = None) -> bool:
        return True


def _views(tensors: Mapping[int, Tensor]) -> dict[int, memoryview]:
    """Return each tensor's memory as bytes, without a copy."""
    return {p: x.detach().view(-1).view(torch.uint8).numpy().data for p, x in tensors.items() if x.numel()}


def begin(store: Store, index: int, num: int, timeout_seconds: float) -> None:
    """Initialise `torch.distributed` with this backend, for all groups. Raises RuntimeError if a process does not connect."""
    try:
        links = connect(store, index, num, timeout_seconds)
    except OSError as error:
        raise RuntimeError(f"no connection to all others: {error}") from error

    def group(options: Any, _: object) -> Mesh:
        members = list(options.global_ranks_in_group) or range(num)
        return Mesh(options.group_rank, members, links, options.timeout.total_seconds())

    dist.Backend.register_backend(NAME, group, extended_api=True, devices=["cpu"])
    dist.init_process_group(NAME, store=store, rank=index, world_size=num, timeout=timedelta(seconds=timeout_seconds))
