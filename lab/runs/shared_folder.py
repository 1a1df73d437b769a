"""One run folder for several processes, and checkpoints that any number of them can go on from."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from lab.engine.checkpoint import take_places_
from lab.engine.optim import FRESH, joined_counts
from lab.engine.stack import Block, Layout
from lab.errors import LabError, RecipeError
from lab.events import Checkpointed, Ended, Event
from lab.processes.peers import ManyProcesses
from lab.recipes.recipe import Recipe
from lab.runs.folder import Checkpoint, RunFolder
from lab.runs.inputs import Inputs
from lab.runs.trainer import Trainer

T = TypeVar("T")
Cell = tuple[str, str, int, str]  # kind of state, its name, block, and the optimizer's own name for it
Cells = dict[Cell, dict[int | None, Tensor]]  # the row of each worker; None: what all agree on


class SharedFolder:
    """A run folder of which the first process takes care. A checkpoint is the same file as that of one process.

    The first process gathers all rows when it saves, and deals them out when it loads, also over another number of processes.
    """

    def __init__(self, world: ManyProcesses, trainer: Trainer, folder: RunFolder | None):
        self.world, self.trainer, self.folder = world, trainer, folder if world.first else None

    def lock(self) -> None:
        self._first(lambda folder: folder.lock())

    def load(self, recipe: Recipe | None = None) -> tuple[Checkpoint | None, list[str]]:
        found, notes = self._first(lambda folder: folder.load(recipe)) or (None, [])
        head, notes = self.world.all_gather_json([found and [found.step, found.events_bytes, found.extra], notes])[0]
        if head is None:
            return None, notes
        take_places_(self.trainer, head[2])  # rows are those of the holders of that time
        cells = self._split(found.tensors, None) if found is not None else {}
        mine: dict[str, Tensor] = {}
        for p in range(self.world.num):
            theirs = self._joined(cells, self.world.workers_of(p)) if found is not None else {}
            shapes = self.world.all_gather_json(_shapes(theirs.items()))[0]
            if p == self.world.index:
                mine = theirs if p == 0 else _empty(shapes)
            self.world.copy_between_([((0,), (p,), x) for x in (theirs if found is not None else mine).values()])
        return Checkpoint(head[0], head[1], mine, head[2]), notes

    def save(self, step: int, tensors: dict[str, Tensor], extra: dict[str, Any]) -> Checkpointed:
        cells = self._split(tensors, self.world.mine)
        mine = {json.dumps([*cell, worker]): x for cell, rows in cells.items() for worker, x in rows.items()}
        for p, shapes in enumerate(self.world.all_gather_json(_shapes(mine.items()))):
            theirs = _empty(shapes) if self.world.first and p else mine
            self.world.copy_between_([((p,), (0,), x) for x in theirs.values()])
            for name, x in theirs.items() if self.world.first else ():
                *cell, worker = json.loads(name)
                cells.setdefault(tuple(cell), {})[worker] = x
        self._first(lambda folder: folder.save(step, self._joined(cells, None), extra))
        return Checkpointed(step, RunFolder(".").checkpoint_file(step).name)

    def check_inputs(self, now: Inputs, was: Mapping[str, str] | None, accept_new_text: bool = False) -> list[str]:
        notes = self._first(lambda folder: folder.check_inputs(now, was, accept_new_text)) or []
        return list(self.world.all_gather_json(notes)[0])

    def record_inputs(self, now: Inputs) -> None:
        self._first(lambda folder: folder.record_inputs(now))

    def open(self, recipe: Recipe, keep_bytes: int = 0, step: int = 0) -> None:
        self._first(lambda folder: folder.open(recipe, keep_bytes, step))

    def events(self) -> Iterator[Event]:
        if self.folder is not None:
            yield from self.folder.events()

    def append(self, event: Event) -> None:
        if self.folder is not None:
            self.folder.append(event)

    def flush(self) -> None:
        self._first(lambda folder: folder.flush())

    def append_end(self, ended: Ended) -> None:
        if self.folder is not None:
            self.folder.append_end(ended)

    def turned(self, after: int) -> dict[int, dict[str, Any]]:
        found = self._first(lambda folder: folder.turned(after)) or {}
        return dict(self.world.all_gather_json(list(found.items()))[0])

    def last_step_saved(self) -> int | None:
        """At the first process; None elsewhere."""
        return self.folder.last_step_saved() if self.folder is not None else None

    def close(self) -> None:
        if self.folder is not None:
            self.folder.close()

    def _first(self, do: Callable[[RunFolder], T]) -> T | None:
        """Do something at the first process, for which the others wait. What it cannot do is an error at all of them."""
        out, problem = None, None
        try:
            out = do(self.folder) if self.folder is not None else None
        except LabError as error:
            problem = [str(error), error.exit_code]
        problem = self.world.all_gather_json(problem)[0]
        if problem is not None:
            raise (RecipeError if problem[1] == RecipeError.exit_code else LabError)(problem[0])
        return out

    # A snapshot has the tensors of the workers in ``mine`` (None: all, as in the file).

    def _split(self, tensors: Mapping[str, Tensor], mine: Sequence[int] | None) -> Cells:
        """Row by row. Of what all agree on, only if it is known here."""
        cells: Cells = {}
        for key, x in tensors.items():
            kind, name, *rest = key.split("/")
            if kind == "watch":
                cells[kind, name, 0, ""] = {None: x}
                continue
            if kind == "buffer":
                cells.setdefault((kind, rest[0], 0, ""), {})[int(name)] = x
                continue
            layout, number, leaf_key = self._layout(kind, name), int(rest[0]), "/".join(rest[1:])
            i, only = _leaves(layout, name, mine)[number] if kind == "optimizer" else (number, None)
            cell, block = cells.setdefault((kind, name, i, leaf_key), {}), layout.blocks[i]
            if kind == "shared" or (kind == "optimizer" and name != "inner"):
                if mine is None or self.world.owners(block)[0] in mine:
                    cell[None] = x
            else:
                workers = _here(block, mine) if only is None else [only]
                cell |= {w: x[row] if x.dim() else x for row, w in enumerate(workers)}
        return {cell: rows for cell, rows in cells.items() if rows}

    def _joined(self, cells: Cells, mine: Sequence[int] | None) -> dict[str, Tensor]:
        """The inverse of `_split`, for any workers."""
        tensors: dict[str, Tensor] = {}
        for (kind, name, i, leaf_key), rows in cells.items():
            if kind == "watch":
                tensors |= {f"{kind}/{name}": rows[None]} if mine is None or 0 in mine else {}
                continue
            if kind == "buffer":
                tensors |= {f"{kind}/{w}/{name}": x for w, x in rows.items() if mine is None or w in mine}
                continue
            layout = self._layout(kind, name)
            workers = _here(layout.blocks[i], mine)
            leaves = _leaves(layout, name, mine) if kind == "optimizer" else []
            some = next(iter(rows.values()))
            if None in rows:
                made: dict[tuple[int, int | None], Tensor] = {
                    (i, None): some[: len(workers)] if some.dim() and not self.world.served else some
                }
            elif (i, None) in leaves or not leaves:
                held = [rows[w] for w in workers if w in rows]
                if workers and not held:
                    continue  # a fresh one has no state yet
                if some.dim():
                    made = {(i, None): torch.stack(held) if held else some.new_empty(0, *some.shape)}
                else:
                    if leaf_key == FRESH:  # processes where no row is marked say nothing of it
                        held = [rows.get(w, torch.zeros_like(some)) for w in workers]
                    kept = joined_counts(leaf_key, held) if held else some
                    made = {(i, None): kept} if kept is not None else {}
            else:
                alone = bool(some.dim()) or leaf_key == FRESH
                made = {(i, w): rows[w][None] if alone else rows[w] for w in workers if w in rows}
            for leaf, x in made.items():
                number = leaves.index(leaf) if leaves else i
                tensors["/".join([kind, name, str(number), *([leaf_key] if leaf_key else [])])] = x
        return tensors

    def _layout(self, kind: str, name: str) -> Layout:
        """Of a state, or of the parameters that an optimizer moves."""
        state, params = self.trainer.state, self.trainer.fleet.params
        if kind == "optimizer":
            return (params if name == "inner" else state.shared["params" + name.removeprefix("outer")]).layout
        place = {"local": state.local, "shared": state.shared}.get(kind, {})
        return place.get(name, params).layout  # what a later step makes, owes or remembers looks like the parameters


def _here(block: Block, mine: Sequence[int] | None) -> list[int]:
    return [w for w in block.everywhere if mine is None or w in mine]


def _leaves(layout: Layout, name: str, mine: Sequence[int] | None) -> list[tuple[int, int | None]]:
    """What is one parameter of an optimizer where these workers are: a block, or the row of one worker (`lab.engine.optim`)."""
    leaves: list[tuple[int, int | None]] = []
    for i, block in enumerate(layout.blocks):
        workers = _here(block, mine)
        apart = name == "inner" and block.unit is not None and len(workers) > 1
        leaves += [(i, w) for w in workers] if apart else [(i, None)]
    return leaves


def _shapes(tensors: Iterable[tuple[str, Tensor]]) -> dict[str, list[Any]]:
    return {key: [str(x.dtype).removeprefix("torch."), *x.shape] for key, x in tensors}


def _empty(shapes: Mapping[str, list[Any]]) -> dict[str, Tensor]:
    return {key: torch.empty(shape, dtype=getattr(torch, dtype)) for key, (dtype, *shape) in shapes.items()}
