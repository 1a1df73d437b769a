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
    """What the rows of this process add to the mean of a block."""

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
        """A run begins. ``served``: its first process keeps the agreed states, not the holders. Nothing is sent."""

    def note_up(self, block: Block, up: Sequence[bool], all_know: bool = False) -> None:
        """From now on these are up; ``all_know``: all holders have just received what is agreed. Nothing is sent."""

    def owners(self, block: Block) -> Sequence[int]:
        """Workers whose processes have the newest agreed values of a block. Nothing is sent."""

    def reduce_(self, means: Sequence[Contribution], codec: Codec | None, to_server: bool = False) -> None:
        """Complete the ``partial_sum`` ``[1, P]`` of each mean, in place: the sum over the processes that have a worker in it.

        Only those exchange anything, and what goes to the same of them travels as one buffer. ``to_server``: all send to the
        first process, which alone has the sum then.
        """

    def all_gather_json(self, value: Any) -> list[Any]:
        """The small JSON values of all processes, ``[P]``, at each of them."""

    def all_gather_by_worker(self, values: Mapping[int, Any]) -> dict[int, Any]:
        """Small JSON values of the workers here: those of all workers, at each process."""

    def gather_to_server(self, tensors: Mapping[int, Mapping[K, Tensor]]) -> Mapping[int, Mapping[K, Tensor]]:
        """Tensors by worker and key; those of workers elsewhere are given by their shape, on ``meta``.

        Returns all of them at the first process; elsewhere their shapes. Nobody but the first process waits.
        """

    def scatter_from_server(self, tensors: Named) -> Named:
        """Tensors of the first process for workers everywhere: there all, elsewhere those of the workers here.

        Elsewhere only their shapes are read. Workers that get the same mapping get it once a process.
        """

    def broadcast_newest_(self, moves: Sequence[tuple[Sequence[int], Sequence[int], Tensor]]) -> None:
        """Of each (workers that know it, workers to receive it, tensor): copy it, in place, to processes that do not know it.

        Under a server its process is the one that knows.
        """

    def sync_server_state(self, agreed: Stack) -> Stack:
        """The server's state ``[1, P]`` of each block is copied, in place, to the processes that hold the block."""

    def gather_blocks(self, agreed: Stack, known_by: Sequence[bool]) -> Stack:
        """At the first process an agreed state with all its blocks ``[1, P]``, from workers marked in ``known_by``."""

    def gather_copies(self, stack: Stack) -> Stack:
        """At the first process the copies of all workers, ``[holders everywhere, P]``; elsewhere ``stack`` as it is."""


class OneProcess:
    """No other process: all workers are in this one, and everything is where it is needed."""

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

    def all_gather_json(self, value: Any) -> list[Any]:
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
