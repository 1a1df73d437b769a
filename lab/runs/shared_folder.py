"""One run folder for several processes: the first reads and writes it, and broadcasts what the others need."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from lab.engine.checkpoint import Checkpoint, Part, snapshot
from lab.engine.world import World
from lab.events import Checkpointed, Ended, Event
from lab.ground.errors import LabError, RecipeError
from lab.recipes.recipe import Recipe
from lab.runs.folder import RunFolder
from lab.runs.inputs import Inputs

T = TypeVar("T")


class SharedFolder:
    """A run folder that only the first process opens. A checkpoint is the same file as that of one process.

    The tensors of checkpoints are those of the first process, where all rows have been gathered, and from where they are
    scattered, also over another number of processes (`lab.engine.checkpoint`).
    """

    def __init__(self, world: World, folder: RunFolder | None):
        self.world, self.folder = world, folder if world.first else None

    def lock(self) -> None:
        self._first(lambda folder: folder.lock())

    def load(self, recipe: Recipe | None = None) -> tuple[Checkpoint | None, list[str]]:
        found, notes = self._first(lambda folder: folder.load(recipe)) or (None, [])
        head, notes = self.world.all_gather_json([found and [found.step, found.events_bytes, found.extra], notes])[0]
        return (found or Checkpoint(head[0], head[1], {}, head[2]) if head is not None else None), notes

    def save(self, step: int, tensors: dict[str, Tensor], extra: dict[str, Any]) -> Checkpointed:
        self._first(lambda folder: folder.save(step, tensors, extra))
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

    def knobs_after(self, after: int) -> dict[int, dict[str, Any]]:
        found = self._first(lambda folder: folder.knobs_after(after)) or {}
        return dict(self.world.all_gather_json(list(found.items()))[0])

    def gather(
        self, step: int, parts: Sequence[Part], world: World, device: torch.device
    ) -> tuple[dict[str, Tensor], dict[str, Any]]:
        return snapshot(parts, world, device)

    def last_step_saved(self) -> int | None:
        """At the first process; None elsewhere."""
        return self.folder.last_step_saved() if self.folder is not None else None

    def clients(self) -> Path | None:
        return self.folder.clients() if self.folder is not None else None

    def close(self) -> None:
        if self.folder is not None:
            self.folder.close()

    def _first(self, do: Callable[[RunFolder], T]) -> T | None:
        """Call ``do`` at the first process while the others wait; return its result there, None elsewhere. Its LabError is raised everywhere."""
        out, problem = None, None
        try:
            out = do(self.folder) if self.folder is not None else None
        except LabError as error:
            problem = [str(error), error.exit_code]
        problem = self.world.all_gather_json(problem)[0]
        if problem is not None:
            raise (RecipeError if problem[1] == RecipeError.exit_code else LabError)(problem[0])
        return out
