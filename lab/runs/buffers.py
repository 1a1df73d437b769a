"""Buffers on their way between workers, around the local steps of any method (`lab.recipes.buffers.Buffers`)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from torch import Tensor

from lab.engine.buffers import moved
from lab.engine.comm import Communicator
from lab.engine.fleet import Fleet, saved_buffers
from lab.engine.stack import Layout, Stack
from lab.engine.state import State
from lab.ground.errors import RecipeError
from lab.methods.rounds import fetching
from lab.recipes.buffers import Buffers

STATE = "buffers"  # its name in the ledger, and where a server keeps it


class BufferSync:
    """Sends the buffers of a fleet as its recipe says. Whoever takes local steps calls `before_` and `after_` each time.

    They lie where the modules have them, and are in stacks only while they are sent: a module may as well replace one.

    Parameters
    ----------
    round_steps
        returns the local steps of a round at the moment.
    come_and_go
        whether rows of the fleet are taken by other clients from round to round.

    Raises
    ------
    RecipeError
        for ``first`` with a server, or where workers have different buffers; for ``local`` where clients come and go.
    """

    def __init__(
        self,
        buffers: Buffers,
        state: State,
        comm: Communicator,
        round_steps: Callable[[], int],
        come_and_go: bool = False,
    ):
        self.buffers, self.state, self.comm, self.round_steps = buffers, state, comm, round_steps
        self.fleet, self.kind = state.fleet, buffers.kind
        self.layouts = layouts(self.fleet) if self.kind != "local" else {}
        self.unchecked = self.kind == "frozen" and not self.fleet.dry
        if self.kind == "averaged":
            self.layouts = {dtype: x for dtype, x in self.layouts.items() if dtype.is_floating_point}
            for stack in self._stacks() if state.served else ():
                state.shared[STATE] = stack.first()
        if self.kind == "local" and come_and_go and layouts(self.fleet):
            raise RecipeError(
                "with more clients than workers nobody keeps a client's own buffers: set buffers=averaged (or first, frozen), or "
                "take a model without, such as one with norm=group"
            )
        everybody = tuple(range(self.fleet.num_workers))
        alike = all(b.everywhere == everybody for layout in self.layouts.values() for b in layout.blocks)
        if self.kind == "first" and (state.served or not alike):
            why = "here a server keeps the model" if state.served else "here workers hold different parts"
            raise RecipeError(
                f"buffers.kind = 'first' is for workers that all hold the whole model, and {why}: use averaged or local"
            )

    def notes(self) -> Iterator[str]:
        """A line, where it makes no difference."""
        if self.kind != "local" and not self.layouts:
            yield f"buffers.kind = {self.kind!r} makes no difference: the model has no buffers that belong to its state"

    def before_(self, t: int) -> None:
        """The beginning of local step ``t``: what is sent before its forward passes."""
        up = [w for w, u in enumerate(self.fleet.up) if u]
        if self.kind == "first" and len(up) > 1:
            known_by = [w == up[0] for w in range(self.fleet.num_workers)]
            for stack in self._stacks():
                self._send_(_row(stack, up[0]), stack, up[1:], known_by)
        if self.kind == "averaged" and self.state.served:
            to = fetching(self.state, t, self.every)
            for stack in self._stacks() if to else ():
                self._send_(self.state.shared[STATE], stack, to)

    def after_(self, t: int) -> None:
        """The end of local step ``t``. Raises RecipeError if it has moved buffers that are frozen."""
        if self.unchecked:
            self.unchecked = False
            self._check_frozen()
        if self.kind != "averaged" or t % self.every:
            return
        for stack in self._stacks():
            if self.state.served:
                known = self.state.shared[STATE]
                self.state.shared[STATE] = self.comm.mean(stack, STATE, fallback=known, to_server=True)
            else:
                self.comm.mean_(stack, STATE)
                self._put_(stack, [w for w, up in enumerate(self.fleet.up) if up])

    def catch_up_(self, returned: Sequence[int], last_up: Sequence[bool]) -> None:
        """Workers that come back receive the mean of those that were up last (under ``first``, what `before_` sends)."""
        for stack in self._stacks() if self.kind == "averaged" else ():
            self._send_(self.comm.agreed(stack, last_up), stack, returned, last_up)

    @property
    def every(self) -> int:
        """Local steps between two means."""
        return self.buffers.every or self.round_steps()

    def _stacks(self) -> Iterator[Stack]:
        """Copies of the present buffers of all workers here, one stack for each dtype."""
        for dtype, layout in self.layouts.items():
            stack = Stack.zeros(layout, self.fleet.device, dtype)
            _copy_(*self._cells(stack, self.fleet.mine))
            yield stack

    def _send_(self, agreed: Stack, stack: Stack, to: Sequence[int], known_by: Sequence[bool] | None = None) -> None:
        self.comm.broadcast_(agreed, stack, STATE, to, known_by)
        self._put_(stack, to)

    def _put_(self, stack: Stack, workers: Iterable[int]) -> None:
        cells, buffers = self._cells(stack, workers)
        _copy_(buffers, cells)

    def _cells(self, stack: Stack, workers: Iterable[int]) -> tuple[list[Tensor], list[Tensor]]:
        """Of those of the workers that are here: cells of a stack, and the buffers of their modules that belong there."""
        found: tuple[list[Tensor], list[Tensor]] = [], []
        for w in [w for w in workers if w in self.fleet.mine and not stack.dry]:
            own = dict(self.fleet.modules[w].named_buffers(remove_duplicate=False))
            for name in [n for b in stack.layout.blocks if w in b.holders for n in b.names]:
                found[0].append(stack.cell(name, w))
                found[1].append(own[name])
        return found

    def _check_frozen(self) -> None:
        names = {name for layout in self.layouts.values() for name in layout.place}
        for name in [n for named in moved(self.fleet).values() for n in named if n in names]:
            raise RecipeError(
                f"buffers.kind = 'frozen' leaves in evaluation mode what has buffers, and {name} was moved there as well: use "
                "local, averaged or first"
            )


def layouts(fleet: Fleet) -> dict[torch.dtype, Layout]:
    """Where the buffers of all workers lie in stacks, one for each dtype. Those of units that move are each worker's own."""
    saved = {id(module): saved_buffers(module) for module in {id(m): m for m in fleet.modules}.values()}
    of_dtype: dict[torch.dtype, dict[str, list[int]]] = {}
    shapes: dict[str, torch.Size] = {}
    moving = {block.unit for block in fleet.layout.blocks} - {None}
    for w, module in enumerate(fleet.modules):
        unit = getattr(module, "tensor_unit", lambda name: None)
        for name, x in saved[id(module)].items():
            if unit(name) not in moving:
                shapes[name] = x.shape
                of_dtype.setdefault(fleet.constants[name].dtype, {}).setdefault(name, []).append(w)
    group = getattr(fleet.modules[0], "tensor_group", lambda name: "all")
    return {
        dtype: Layout.of({n: tuple(ws) for n, ws in holders.items()}, shapes, group, mine=fleet.layout.mine)
        for dtype, holders in of_dtype.items()
    }


@torch.no_grad()
def _copy_(to: list[Tensor], of: list[Tensor]) -> None:
    if to:
        torch._foreach_copy_(to, of)


def _row(stack: Stack, worker: int) -> Stack:
    """The copies of one worker as an agreed stack ``[1, P]``; where it is not here, room for them."""
    blocks = list[Tensor]()
    for block, x in zip(stack.layout.blocks, stack.blocks, strict=True):
        here = worker in block.holders
        blocks.append(x[block.holders.index(worker) :][:1].clone() if here else x.new_empty(1, block.numel))
    return Stack(stack.layout, blocks)
