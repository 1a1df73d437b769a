"""The processes that the workers of a run are spread over, in the words of `torch.distributed`.

Process p of P holds the workers p·N/P … (p+1)·N/P − 1 of N. With one process (`OneProcess`) nothing has to travel; with several
(`lab.processes.peers.ManyProcesses`) all of them run the same loop. Methods, probes and folders know neither: they call a `World`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from torch import Tensor

from lab.engine.codecs import Codec
from lab.engine.stack import Block, Stack

K = TypeVar("K")
Named = Mapping[int, Mapping[str, Tensor]]  # tensors by worker and name


@dataclass(frozen=True)
class Contribution:
    """The contribution of this process's rows to the mean of a block, given to `World.reduce_`."""

    weights: Mapping[int, float]  # what each worker of the mean counts, in all processes; the sum is 1
    encoded: Mapping[int, tuple[Tensor, ...]]  # what a codec made of the rows here, by worker; empty without a codec
    partial_sum: Tensor  # [1, P], the weighted sum over the rows here; [0, P] where no row of the block is


class World(Protocol):
    """All processes make the same calls in the same order; a call returns when what this process sends and receives is through.

    Every method raises LabError (`lab.processes.peers.PeerLost`) if a process has ended or does not answer in time.
    """

    @property
    def num(self) -> int:
        """P, processes."""

    @property
    def mine(self) -> Sequence[int] | None:
        """The workers of this process; None: all."""

    @property
    def first(self) -> bool:
        """Whether this process is the server: it evaluates the model, keeps the events and writes the run folder."""

    @property
    def meets_every_step(self) -> bool:
        """Whether all processes wait for each other in every step, so that losses are known at once."""

    def begin_(self, served: bool) -> None:
        """Called once before a run. ``served``: the first process keeps the agreed states, not the holders. Sends nothing."""

    def note_up(self, block: Block, up: Sequence[bool], all_know: bool = False) -> None:
        """Record which workers are up; ``all_know``: all holders have just received the agreed values. Sends nothing."""

    def owners(self, block: Block) -> Sequence[int]:
        """Return the workers whose processes have the newest agreed values of a block. Sends nothing."""

    def reduce_(self, means: Sequence[Contribution], codec: Codec | None, to_server: bool = False) -> None:
        """Complete the ``partial_sum`` ``[1, P]`` of each mean, in place: the sum over the processes that have a worker in it.

        Only those exchange anything, and what goes to the same of them travels as one buffer. ``to_server``: all send to the
        first process, which alone has the sum then.
        """

    def all_gather_json(self, value: Any, about_bytes: int = 0) -> list[Any]:
        """Return the JSON values of all processes that are there, in their order and the first one first, at every process.

        ``about_bytes``: how long they may be, the same everywhere; what is longer takes a second exchange.
        """

    def all_gather_by_worker(self, values: Mapping[int, Any]) -> dict[int, Any]:
        """Give JSON values of this process's workers; return those of all workers, at every process."""

    def gather_to_server(self, tensors: Mapping[int, Mapping[K, Tensor]]) -> Mapping[int, Mapping[K, Tensor]]:
        """Send tensors, by worker and key, to the first process; for workers of other processes pass their shapes, on ``meta``.

        Returns all of them at the first process, which waits for the others; at the others only shapes.
        """

    def scatter_from_server(self, tensors: Named) -> Named:
        """Send tensors from the first process to all workers; return those of this process's workers (at the first: all).

        The other processes pass shapes. Workers that are given the same mapping receive it once per process.
        """

    def broadcast_newest_(self, moves: Sequence[tuple[Sequence[int], Sequence[int], Tensor]]) -> None:
        """For each (owners, receivers, tensor): copy the tensor, in place, to the receivers' processes that do not own it.

        With a server, its process is the owner.
        """

    def sync_server_state(self, agreed: Stack) -> Stack:
        """Copy the server's state ``[1, P]`` of each block, in place, to the processes that hold the block."""

    def gather_blocks(self, agreed: Stack, known_by: Sequence[bool]) -> Stack:
        """Return an agreed state with all blocks ``[1, P]`` at the first process, from workers marked in ``known_by``."""

    def gather_copies(self, stack: Stack) -> Stack:
        """Return the copies of all workers, ``[holders everywhere, P]``, at the first process; elsewhere ``stack`` itself."""


class OneProcess:
    """The world of a run in one process: all workers are here, so no call has to send anything."""

    mine: Sequence[int] | None = None
    first = True
    num = 1
    meets_every_step = True

    def begin_(self, served: bool) -> None:
        pass

    def note_up(self, block: Block, up: Sequence[bool], all_know: bool = False) -> None:
        pass

    def owners(self, block: Block) -> Sequence[int]:
        return block.everywhere

    def reduce_(self, means: Sequence[Contribution], codec: Codec | None, to_server: bool = False) -> None:
        pass

    def all_gather_json(self, value: Any, about_bytes: int = 0) -> list[Any]:
        return [value]

    def all_gather_by_worker(self, values: Mapping[int, Any]) -> dict[int, Any]:
        return dict(values)

    def gather_to_server(self, tensors: Mapping[int, Mapping[K, Tensor]]) -> Mapping[int, Mapping[K, Tensor]]:
        return tensors

    def scatter_from_server(self, tensors: Named) -> Named:
        return tensors

    def broadcast_newest_(self, moves: Sequence[tuple[Sequence[int], Sequence[int], Tensor]]) -> None:
        pass

    def sync_server_state(self, agreed: Stack) -> Stack:
        return agreed

    def gather_blocks(self, agreed: Stack, known_by: Sequence[bool]) -> Stack:
        return agreed

    def gather_copies(self, stack: Stack) -> Stack:
        return stack
