"""The processes of a run as threads of this one: what a method sends between them goes from hand to hand."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from torch import Tensor

from lab.engine.codecs import Codec
from lab.engine.stack import Block, Stack
from lab.engine.world import Contribution, K, Named, OneProcess
from lab.ground.seeds.surroundings import one_core_
from lab.testing.report import Broken

T = TypeVar("T")
PATIENCE_SECONDS = 20.0
WAITS = "a process waits for another that does not come"


class Meeting:
    """Where so many threads wait for each other. Each brings something, and leaves with what all have brought."""

    def __init__(self, num: int):
        self.barrier = threading.Barrier(num, timeout=PATIENCE_SECONDS)
        self.brought: list[Any] = [None] * num

    def exchange(self, index: int, what: str, value: Any) -> list[Any]:
        """Raises Broken where another brings something else, or has left."""
        self.brought[index] = (what, value)
        self._wait()
        all_of_them = list(self.brought)
        self._wait()
        kinds = [kind for kind, _ in all_of_them]
        if len(set(kinds)) > 1:
            other = next(p for p, kind in enumerate(kinds) if kind != what)
            raise Broken(f"process {index} {what} while process {other} {kinds[other]}")
        return [given for _, given in all_of_them]

    def _wait(self) -> None:
        try:
            self.barrier.wait()
        except threading.BrokenBarrierError:
            raise Broken(WAITS) from None


class InThreads(OneProcess):
    """`lab.engine.world.World` of one of several threads, each with one worker: all that a method's ``step`` needs of it."""

    def __init__(self, meeting: Meeting, index: int, num: int):
        self.meeting, self.index, self.num = meeting, index, num
        self.mine: Sequence[int] = (index,)
        self.first, self.served = index == 0, False

    def begin_(self, served: bool) -> None:
        self.served = served

    def owners(self, block: Block) -> Sequence[int]:
        return (0,) if self.served else block.everywhere

    def reduce_(self, means: Sequence[Contribution], codec: Codec | None, to_server: bool = False) -> None:
        # Means over one worker are listed by all processes but its own.
        several = [m for m in means if to_server or len(m.weights) > 1]
        parts = self.meeting.exchange(self.index, "calls comm.mean", [m.partial_sum.clone() for m in several])
        if len({len(part) for part in parts}) > 1:
            raise Broken("processes call comm.mean on different stacks")
        for k, mean in enumerate(several) if self.first or not to_server else ():
            rows = [part[k] for p, part in enumerate(parts) if p in mean.weights and len(part[k])]
            if rows and len(mean.partial_sum):
                mean.partial_sum.copy_(sum(rows[1:], rows[0]))

    def all_gather_json(self, value: Any, about_bytes: int = 0) -> list[Any]:
        return self.meeting.exchange(self.index, "gathers values", value)

    def all_gather_by_worker(self, values: Mapping[int, Any]) -> dict[int, Any]:
        return dict(sorted(pair for part in self.all_gather_json(dict(values)) for pair in part.items()))

    def gather_to_server(self, tensors: Mapping[int, Mapping[K, Tensor]]) -> Mapping[int, Mapping[K, Tensor]]:
        own = {w: {n: x.clone() for n, x in named.items()} for w, named in tensors.items() if w == self.index}
        parts = self.meeting.exchange(self.index, "calls comm.gather", own)
        if self.first:
            return {w: parts[w].get(w, {}) for w in tensors}
        return {w: {n: x.to("meta") for n, x in named.items()} for w, named in tensors.items()}

    def scatter_from_server(self, tensors: Named) -> Named:
        whole: Named = self.meeting.exchange(self.index, "calls comm.hand_out", tensors if self.first else None)[0]
        return {
            w: {n: x.clone() for n, x in named.items()} for w, named in whole.items() if self.first or w == self.index
        }

    def broadcast_newest_(self, moves: Sequence[tuple[Sequence[int], Sequence[int], Tensor]]) -> None:
        parts = self.meeting.exchange(self.index, "calls comm.broadcast_", [x.clone() for _, _, x in moves])
        for k, (owners, to, x) in enumerate(moves):
            source = 0 if self.served else owners[0]
            if self.index in to and self.index != source:
                x.copy_(parts[source][k])

    def sync_server_state(self, agreed: Stack) -> Stack:
        self.broadcast_newest_(
            [((), b.everywhere, x) for b, x in zip(agreed.layout.blocks, agreed.blocks, strict=True)]
        )
        return agreed


def in_threads(num: int, work: Callable[[InThreads], T]) -> list[T]:
    """What each of so many threads makes, given its world. Raises the first error; the others are then let go."""
    meeting = Meeting(num)

    def one(index: int) -> T:
        try:
            made = work(InThreads(meeting, index, num))
            meeting.exchange(index, "is done", None)
            return made
        except BaseException:
            meeting.barrier.abort()
            raise

    with ThreadPoolExecutor(num, "process", initializer=one_core_) as pool:
        futures = [pool.submit(one, index) for index in range(num)]
    errors = [e for f in futures if (e := f.exception()) is not None]
    for error in sorted(errors, key=lambda e: str(e) == WAITS):
        raise error
    return [f.result() for f in futures]
