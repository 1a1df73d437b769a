"""What a run in one process has instead of peers, and what it has to say in either case."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import chain
from typing import TYPE_CHECKING, Any

from torch import Tensor

from lab.engine.codecs import Codec
from lab.engine.fleet import Block, Stack
from lab.events import Drifted, Event, Stepped

if TYPE_CHECKING:
    from lab.engine.comm import Communicator, Named, Unfinished
    from lab.engine.state import State
    from lab.processes.peers import Peers


class Alone:
    """No other process: all workers are in this one. With several, `lab.processes.peers.Peers` does what this leaves out."""

    mine: Sequence[int] | None = None  # the workers of this process; None: all
    first = True  # whether this process evaluates the model and writes the run down
    num = 1  # processes
    every_step = True  # whether they meet in every step, so that losses are known at once

    def attach_(self, state: State, comm: Communicator) -> None:
        """A run begins with this."""

    def knows(self, block: Block) -> Sequence[int]:
        """Workers whose processes have the latest agreed values of a block."""
        return block.everywhere

    def saw(self, block: Block, up: Sequence[bool]) -> None:
        """Who is up from now on."""

    def finish_(self, means: Sequence[Unfinished], codec: Codec | None, to_server: bool = False) -> None:
        """Complete each mean, in place, with the parts of the other processes that have a worker in it.

        ``to_server``: only at the first process.
        """

    def collect(self, tensors: Named) -> Named:
        """At the first process the tensors of all workers; at others what they look like."""
        return tensors

    def deal(self, tensors: Named) -> Named:
        """What workers here receive of these tensors of the first process; there, all."""
        return tensors

    def tell(self, values: Mapping[int, Any]) -> dict[int, Any]:
        """Small JSON values of workers here: those of all workers."""
        return dict(values)

    def bring_(self, moves: Sequence[tuple[Sequence[int], Sequence[int], Tensor]]) -> None:
        """Copy each tensor, in place, from a process of the workers that know it to those of the workers that do not."""

    def told(self, agreed: Stack) -> Stack:
        """A server's state, which all processes know then as far as their workers hold it."""
        return agreed

    def whole(self, agreed: Stack, known_by: Sequence[bool]) -> Stack:
        """An agreed state with all its blocks, at the first process."""
        return agreed

    def everyone(self, stack: Stack) -> Stack:
        """At the first process the copies of all workers, for looking at them; elsewhere of use to nobody."""
        return stack

    def share(self, value: Any) -> list[Any]:
        """The small JSON values of all processes, at each of them."""
        return [value]


def with_all_workers(told: Sequence[Event], mine: Sequence[int], peers: Peers | Alone) -> list[Event]:
    """The same events with the losses and distances of all workers: each process knows those of its own, who are in a row."""
    known = [[x[w] for w in mine] for event in told for x in _by_worker(event)]
    whole = (list(chain(*parts)) for parts in zip(*peers.share(known), strict=True))
    out: list[Event] = []
    for event in told:
        match event:
            case Stepped():
                event = replace(event, loss_W=next(whole))
            case Drifted():
                event = replace(event, to_mean_W=next(whole), to_shared_W=next(whole))
        out.append(event)
    return out


def _by_worker(event: Event) -> tuple[list[float | None], ...]:
    match event:
        case Stepped():
            return (event.loss_W,)
        case Drifted():
            return (event.to_mean_W, event.to_shared_W)
    return ()
