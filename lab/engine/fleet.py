"""Workers as modules over stacks.

A fleet is a table: named tensors down, workers across, a cell empty where a worker does not hold the tensor. The copies of a
tensor lie in one stack (`lab.engine.stack`). Every worker's module parameters and gradients are views of its rows; forward and
backward are ordinary PyTorch on an ordinary module.

A process may hold only some of the N workers (`lab.processes`): blocks and their order are the same in all, rows are those
of its own workers, and there may be none.

Legend: W workers in this process, H holders of a block among them, P elements of one copy of it.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn

from lab.engine.stack import Block, Layout, Stack
from lab.ground.seeds.draws import Draws
from lab.ground.seeds.surroundings import one_core_


def _share_one_heap() -> None:
    """glibc gives every thread a heap of its own, each with its own holes: one for all saves memory at the same speed."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):  # another C library
            ctypes.CDLL(None).mallopt(-8, 1)  # M_ARENA_MAX of malloc.h


def num_cores() -> int:
    """Cores this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # macOS, Windows
        return os.cpu_count() or 1


def _named(module: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Parameters by name; of a module that stands for several of its layers at once, under each of their names."""
    return module.named_parameters(remove_duplicate=not getattr(module, "repeats", False))


def saved_buffers(module: nn.Module) -> dict[str, Tensor]:
    """The buffers that belong to the state of a module, as ``state_dict`` has it, by name: those that training may move."""
    return {
        f"{path}.{leaf}" if path else leaf: x
        for path, part in module.named_modules()
        for leaf, x in part._buffers.items()
        if x is not None and leaf not in part._non_persistent_buffers_set
    }


# Called with the blocks that got other holders, as they were, and of each that has other rows here now, whose row each was.
Relabelled = Callable[[Mapping[int, Block], Mapping[int, Sequence[int | None]]], None]


class Fleet:
    """The workers of a run, those of this process with their numbers.

    Parameters
    ----------
    build
        ``build(worker)`` returns the worker's module; it is called under the ``meta`` device, so it costs no memory and
        its initial values do not count. ``build(None)`` returns the whole model with its initial values: every worker
        starts from the values that this model has under the same name.
    num_workers
        N; the workers are 0 … N−1.
    mine
        the W workers that live in this process; None: all.
    device
        ``meta`` makes a dry fleet: all shapes, no numbers.
    threads
        workers that compute at the same time, default the cores. Each uses one intra-op thread.
    personal
        which parameters are each worker's own and never sent, by name.
    movable
        whether units (the model's ``tensor_unit(name)``) may move between workers later on.
    """

    def __init__(
        self,
        build: Callable[[int | None], nn.Module],
        num_workers: int,
        *,
        mine: Sequence[int] | None = None,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
        threads: int | None = None,
        movable: bool = False,
        personal: Callable[[str], bool] = lambda name: False,
    ):
        self.build, self.num_workers = build, num_workers
        self.device, self.dtype = torch.device(device), dtype
        self.up = [True] * num_workers
        self.last_up = [True] * num_workers  # who holds the present state: those that were up when anybody was
        # Whether the module of a worker draws random numbers, in its forward and in its backward pass, once that is known.
        self.draws: dict[int, tuple[bool, bool]] = {}
        self.agreed_buffers: dict[str, Tensor] = {}  # what the whole model has of those that training moves
        self.mine = range(num_workers) if mine is None else mine
        self.threads = max(1, min(len(self.mine), threads or num_cores()))
        if self.device.type not in ("cpu", "meta"):
            self.threads = 1  # a GPU takes one launch after another
        self.when_relabelled: list[Relabelled] = []
        self._pool: ThreadPoolExecutor | None = None

        with torch.device("meta" if self.dry else "cpu"):  # values are drawn on the CPU: the same ones on every device
            whole = build(None)
        values: dict[str, Tensor] = {name: p if self.dry else p.detach() for name, p in _named(whole)}
        with torch.device("meta"):
            self.modules = [build(w) for w in range(num_workers)]
        layout = self._laid_out(whole, values, mine, movable, personal)
        self.params = Stack.zeros(layout, self.device, dtype)
        self.grads = Stack.zeros(layout, self.device, dtype)
        # What no optimizer moves: buffers, frozen parameters, tensors that nobody holds. One copy for all.
        constants = {n: v for n, v in values.items() if n not in layout.place} | saved_buffers(whole)
        constants = {n: v.to(dtype) if v.is_floating_point() else v for n, v in constants.items()}
        self.constants = {
            n: v.to(self.device) for n, v in (dict(whole.named_buffers(remove_duplicate=False)) | constants).items()
        }
        if not self.dry:
            with torch.no_grad():
                for name in layout.place:
                    self.params[name].copy_(values[name])
            for w in self.mine:
                self.attach(self.modules[w], partial(self.params.cell, worker=w), partial(self.grads.cell, worker=w))

    def _laid_out(
        self,
        whole: nn.Module,
        order: Iterable[str],
        mine: Sequence[int] | None,
        movable: bool,
        personal: Callable[[str], bool],
    ) -> Layout:
        """Where the trained tensors of all modules lie, in the ``order`` of the whole model."""
        shapes: dict[str, torch.Size] = {}
        holders: dict[str, list[int]] = {}
        alike: dict[int, list[int]] = {}  # in a dry fleet, workers that hold the same tensors have the same module
        for w, module in enumerate(self.modules):
            alike.setdefault(id(module), []).append(w)
        for workers in alike.values():
            for name, p in _named(self.modules[workers[0]]):
                if p.requires_grad:
                    shapes[name] = p.shape
                    holders.setdefault(name, []).extend(workers)
        sorted_holders = {n: tuple(sorted(holders[n])) for n in dict.fromkeys([*order, *holders]) if n in holders}
        group = getattr(whole, "tensor_group", lambda name: "all")
        unit = getattr(whole, "tensor_unit", lambda name: None) if movable else (lambda name: None)
        return Layout.of(sorted_holders, shapes, group, unit, mine, personal)

    def hold_(self, holders: Mapping[str, Sequence[int]], t: int) -> list[tuple[int, int]]:
        """From local step ``t`` on, the units are held by these workers; ``build`` must give modules to match.

        A worker that holds a unit before and after keeps its copy. The row of one that leaves becomes that of one that
        arrives, with the old values still in it: the caller has to send the right ones.

        Returns
        -------
        the copies that arrived, as (block, place among its holders everywhere).
        """
        arrived: list[tuple[int, int]] = []
        labels: dict[int, tuple[tuple[int, ...], tuple[int, ...]]] = {}
        for i, block in enumerate(self.layout.blocks):
            if block.unit is None or set(block.everywhere) == set(holders[block.unit]):
                continue
            coming = iter(sorted(set(holders[block.unit]) - set(block.everywhere)))
            held_by, since = list(block.everywhere), list(block.since)
            for k, worker in enumerate(block.everywhere):
                if worker not in holders[block.unit]:
                    held_by[k], since[k] = next(coming), t
                    arrived.append((i, k))
            labels[i] = tuple(held_by), tuple(since)
        self.relabel_(labels)
        return arrived

    def relabel_(self, labels: Mapping[int, tuple[tuple[int, ...], tuple[int, ...]]]) -> None:
        """Give some blocks other holders and arrival times; the workers concerned get modules to match."""
        concerned: set[int] = set()
        before, rows = {i: self.layout.blocks[i] for i in labels}, dict[int, list[int | None]]()
        for i, (held_by, since) in labels.items():
            block = before[i]
            concerned |= set(block.everywhere) ^ set(held_by)
            pairs = [(w, old) for w, old in zip(held_by, block.everywhere, strict=True) if w in self.mine]
            was = [block.holders.index(old) if old in self.mine else None for _, old in pairs]
            here = tuple(w for w, _ in pairs)
            if was != list(range(len(block.holders))):
                rows[i] = was
            concerned |= {w for w, old in pairs if i in rows or w != old}
            self.layout.blocks[i] = replace(block, everywhere=held_by, holders=here, since=since)
        for call in self.when_relabelled:
            call(before, rows)
        if self.dry:
            return
        for w in sorted(concerned & set(self.mine)):
            buffers = dict(self.modules[w].named_buffers(remove_duplicate=False))
            with torch.device("meta"):
                self.modules[w] = self.build(w)
            self.attach(
                self.modules[w], partial(self.params.cell, worker=w), partial(self.grads.cell, worker=w), buffers
            )

    def set_up(self, up: list[bool]) -> None:
        """Set which workers are up from now on."""
        self.up, self.last_up = up, up if any(up) else self.last_up

    @property
    def layout(self) -> Layout:
        return self.params.layout

    @property
    def dry(self) -> bool:
        """Whether this is a dry run: tensors have shapes but no storage."""
        return self.device.type == "meta"

    def num_params(self, worker: int = 0) -> int:
        """Return the number of parameters that ``worker`` holds."""
        return sum(b.numel for b in self.layout.blocks if worker in b.everywhere)

    def backward(
        self, loss_of: Callable[[nn.Module, int], Tensor | Iterator[Tensor]], seed: Callable[[int], int] = int
    ) -> Tensor:
        """Fill the gradient of every worker here that is up; return their losses ``[N]``, NaN for all others.

        Workers run side by side, one thread each; on a GPU one after another. What a module draws (dropout) comes from a
        generator of ``seed(worker)`` (`lab.ground.seeds.draws.Draws`), which costs a little on every operation: a worker's first pass
        shows whether its module draws at all, and those that do not are left alone from then on.

        Parameters
        ----------
        loss_of
            of a worker's module; or parts that sum to it, one after another.
        """
        loss_W = torch.full((self.num_workers,), float("nan"), dtype=torch.float64)
        if self.dry:
            return loss_W
        workers = [w for w in self.mine if self.up[w]]
        found: dict[int, list[Tensor]] = {}

        def one(w: int) -> None:
            for block, g in zip(self.layout.blocks, self.grads.blocks, strict=True):
                if w in block.holders:
                    g[block.holders.index(w)].zero_()
            draws = Draws(seed(w))
            forward, backward = (draws if on else nullcontext() for on in self.draws.get(w, (True, True)))
            with forward:
                loss = loss_of(self.modules[w], w)
            parts = iter((loss,) if isinstance(loss, Tensor) else loss)
            while True:
                with forward:
                    part = next(parts, None)
                if part is None:
                    break
                with backward:
                    part.backward()  # type: ignore[no-untyped-call]
                found.setdefault(w, []).append(part.detach())
            self.draws.setdefault(w, (draws.forward, draws.backward))

        list(self.pool.map(one, workers))
        for w, parts in found.items():  # only now: on a GPU this waits for all that was launched
            loss_W[w] = sum(parts[1:], parts[0])
        return loss_W

    @property
    def pool(self) -> ThreadPoolExecutor:
        if self._pool is None:
            _share_one_heap()
            self._pool = ThreadPoolExecutor(self.threads, "worker", initializer=one_core_)
        return self._pool

    def whole_model(self, agreed: Stack) -> nn.Module:
        """The whole model, in eval mode, as views of agreed values: no copy. Names nobody holds keep their first values.

        Buffers are those of ``agreed_buffers``.
        """
        with torch.device("meta"):
            model = self.build(None)
        self.attach(model, lambda name: agreed[name][0], buffers=self.agreed_buffers)
        return model.eval().requires_grad_(False)

    def attach(
        self,
        module: nn.Module,
        value: Callable[[str], Tensor],
        grad: Callable[[str], Tensor] | None = None,
        buffers: Mapping[str, Tensor] | None = None,
    ) -> None:
        """Put views where a module made on ``meta`` has its parameters (tied ones stay tied) and its buffers."""
        buffers = buffers or {}
        named = {id(p): (name, p) for name, p in module.named_parameters()}
        made: dict[int, nn.Parameter] = {}
        for path, part in module.named_modules():
            for leaf, p in part._parameters.items():
                if p is None:
                    continue
                if id(p) not in made:
                    name = named[id(p)][0]
                    moves = name in self.layout.place
                    made[id(p)] = nn.Parameter(value(name) if moves else self.constants[name], requires_grad=moves)
                    if moves and grad is not None:
                        made[id(p)].grad = grad(name)
                part._parameters[leaf] = made[id(p)]
            for leaf, b in part._buffers.items():
                if b is not None:  # a buffer is each worker's own and is never averaged
                    full = f"{path}.{leaf}" if path else leaf
                    part._buffers[leaf] = buffers[full] if full in buffers else self.constants[full].clone()

    def close(self) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)
            self._pool = None
