"""The run folder of sites that talk through a mailbox: each keeps itself there, and comes back alone.

After each checkpoint's step a site puts into the place what it needs to go on from there: its rows, its copies of what is agreed, and how
far it has read. The first one makes the checkpoint of the whole run of these, as ever, so that nothing travels twice; its own is that.
A site that was lost goes through the beginning again, from what was said there; then it takes up what it has kept, alone, and goes on
in its messages from where it was. If it has kept nothing yet, it does all steps again.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from lab.engine.checkpoint import Checkpoint, Part, Piece, joined
from lab.engine.world import World
from lab.events import Checkpointed, Ended, Event
from lab.ground.errors import RecipeError
from lab.processes.invitation import Invitation
from lab.processes.messages import Seal
from lab.processes.peers import ManyProcesses, listening
from lab.processes.places import Place
from lab.processes.post import Post, clear
from lab.recipes.recipe import Recipe
from lab.runs.folder import RunFolder
from lab.runs.inputs import Inputs, of_digests
from lab.runs.shared_folder import SharedFolder

HEAD = "isthmus"  # in what a site keeps: its small values


class SiteFolder:
    """As `lab.runs.shared_folder.SharedFolder`."""

    def __init__(self, world: ManyProcesses, folder: RunFolder | None, post: Post):
        self.world, self.post, self.shared = world, post, SharedFolder(world, folder)
        self.folder = self.shared.folder
        self.back: Checkpoint | None = None  # what this site comes back with
        # Of the run that is gone on with, by the step that they were turned for.
        self.knobs: dict[int, dict[str, Any]] = {}
        # Of the next checkpoint, and what of it the whole run's has.
        self.pieces: tuple[list[Piece], set[str]] = ([], set())

    def lock(self) -> None:
        with listening(self.world.timeout_seconds):
            self.back = self._kept()
        self.world.alone = self.back is not None  # until it is where the others are
        self.shared.lock()

    def _kept(self) -> Checkpoint | None:
        """What this site has kept last; at the first one, whether the newest checkpoint is of this run."""
        newest = self.folder.last_step_saved() if self.folder is not None else None
        for step, data in self.post.kept():
            if self.folder is None:
                return _parsed(step, data)
            if step == newest:
                return Checkpoint(step, 0, {}, {})
        return None

    def load(self, recipe: Recipe | None = None) -> tuple[Checkpoint | None, list[str]]:
        if self.back is None:
            return self.shared.load(recipe)
        if self.folder is None:
            self.knobs = dict(self.back.extra.pop("turned before"))
            return self.back, []
        found, notes = self.shared.load(recipe)
        if found is None or found.step != self.back.step:
            raise RecipeError(
                f"{self.folder.path}: checkpoint {self.back.step} cannot be used, so this site cannot come back: begin all again, with an "
                "empty mailbox"
            )
        return found, notes

    def check_inputs(self, now: Inputs, was: Mapping[str, str] | None, accept_new_text: bool = False) -> list[str]:
        if self.back is not None and self.folder is None and was is not None and was != of_digests(now):
            raise RecipeError(f"site {self.post.index} reads other files than before it was lost: give it those")
        return self.shared.check_inputs(now, was, accept_new_text)

    def knobs_after(self, after: int) -> dict[int, dict[str, Any]]:
        found = self.shared.knobs_after(after)
        if self.back is None or self.folder is not None:
            self.knobs = found
        return {t: knobs for t, knobs in self.knobs.items() if t > after}

    def record_inputs(self, now: Inputs) -> None:
        self.shared.record_inputs(now)
        self.world.alone = False
        if self.back is None:
            self.post.begun()
        else:
            with listening(self.world.timeout_seconds):
                self.post.back_to(self.back.step)

    def open(self, recipe: Recipe, keep_bytes: int = 0, step: int = 0) -> None:
        self.shared.open(recipe, keep_bytes, step)

    def events(self) -> Iterator[Event]:
        return self.shared.events()

    def append(self, event: Event) -> None:
        self.shared.append(event)

    def append_end(self, ended: Ended) -> None:
        self.shared.append_end(ended)

    def last_step_saved(self) -> int | None:
        return self.shared.last_step_saved()

    def clients(self) -> Path | None:
        return self.shared.clients()

    def close(self) -> None:
        self.shared.close()

    def flush(self) -> None:
        """What is written at the end: then the others may go, and what was said can be removed."""
        if self.post.deadline is None:
            self.shared.flush()
        elif self.folder is not None:
            self.folder.flush()
        with listening(self.world.timeout_seconds):
            self.post.end()

    # checkpoints

    def gather(
        self, step: int, parts: Sequence[Part], world: World, device: torch.device
    ) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The small values, and what this site has; at the first one, what all have, as soon as they have kept it."""
        values: dict[str, Any] = {}
        for part in parts:
            values |= part.json()
        own = [piece for part in parts for piece in part.tensors()]
        if self.folder is None:
            with self.world.as_alone():
                mine = [piece for part in parts for piece in part.tensors()]
            self.pieces = mine, {piece.key for piece in own}
            return {}, values
        with listening(self.world.timeout_seconds):
            for p in range(1, self.world.num):
                own += _of_whole(self._kept_by(p, step))
        own += _missing(own)
        return joined(Piece(x.key, x.tensor.cpu(), x.rows, x.num) for x in own), values

    def _kept_by(self, site: int, step: int) -> bytes | None:
        if self.post.deadline is None:
            return self.post.kept_by(site, step)
        return self.post.kept_last(site, step, self.post.deadline.seconds)

    def save(self, step: int, tensors: dict[str, Tensor], extra: dict[str, Any]) -> Checkpointed:
        with listening(self.world.timeout_seconds):
            self.post.keep(step, b"" if self.folder is not None else self._data(extra))
            if self.folder is not None:
                self.folder.save(step, tensors, extra)
            self.post.kept_for_good(step)
        return Checkpointed(step, RunFolder(".").checkpoint_file(step).name)

    def _data(self, extra: dict[str, Any]) -> bytes:
        pieces, of_whole = self.pieces
        about = [[x.key, None if x.rows is None else list(x.rows), x.num, x.key in of_whole] for x in pieces]
        head = {"pieces": about, "extra": extra | {"turned before": [*self.knobs.items()]}}
        tensors = {str(i): x.tensor.detach().cpu().contiguous().clone() for i, x in enumerate(pieces)}
        return save(tensors, metadata={HEAD: json.dumps(head)})


def _read(data: bytes) -> tuple[list[tuple[Piece, bool]], dict[str, Any]]:
    """The pieces that a site has kept, each with whether the whole run's checkpoint has it from there; and its small values."""
    tensors = load(data)
    size = int.from_bytes(data[:8], "little")
    head = json.loads(json.loads(data[8 : 8 + size])["__metadata__"][HEAD])
    found = [
        (Piece(key, tensors[str(i)], rows, num), of_whole)
        for i, (key, rows, num, of_whole) in enumerate(head["pieces"])
    ]
    return found, head["extra"]


def _of_whole(data: bytes | None) -> list[Piece]:
    if data is None:
        return []
    try:
        return [piece for piece, of_whole in _read(data)[0] if of_whole]
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise RuntimeError(f"what a site has kept cannot be read: {error}") from None


def _missing(pieces: Sequence[Piece]) -> Iterator[Piece]:
    """Zeros in the place of rows of sites that have never kept themselves: whoever comes to them receives those of the others."""
    rows: dict[str, set[int]] = {}
    one = {x.key: x for x in pieces}
    for x in pieces:
        rows.setdefault(x.key, set()).update(x.rows or ())
    for key, x in one.items():
        left = sorted({*range(x.num)} - rows[key]) if x.rows is not None else []
        if left:
            yield Piece(
                key, x.tensor.new_zeros(len(left), *x.tensor.shape[1:]) if x.tensor.dim() else x.tensor, left, x.num
            )


def _parsed(step: int, data: bytes) -> Checkpoint | None:
    try:
        pieces, extra = _read(data)
    except (SafetensorError, ValueError, KeyError, TypeError):
        return None
    return Checkpoint(step, 0, {piece.key: piece.tensor for piece, _ in pieces}, extra, own=True)


# --- which run is in a place -------------------------------------------------------------------------------------------


def invite(
    place: Place,
    secret: bytes | None,
    folder: RunFolder,
    recipe: Recipe,
    num: int,
    anew: bool,
    deadline_seconds: float | None = None,
) -> Invitation:
    """Say in a place which run is there: the one that was there, if this folder goes on with it, or another one.

    ``anew``: another one in any case. What was said in an earlier one is removed.
    """
    there, raw = Invitation.found(place, secret), _raw(recipe)
    same = there is not None and (there.processes, there.recipe, there.ended, there.deadline_seconds) == (
        num,
        raw,
        False,
        deadline_seconds,
    )
    if there is not None and not anew and same:
        newest = folder.last_step_saved()
        first = Post(place, Seal(there.run, secret), 0, num, 1.0)
        if newest in [step for step, _ in first.kept()] or (newest == there.begins and not first.has_told):
            return there
    made = Invitation.new(num, raw, folder.last_step_saved(), deadline_seconds)
    made.put(place, secret)
    if there is not None:
        clear(place, there.run)
    return made


def check_same(post: Post, recipe: Recipe) -> None:
    """Raises RecipeError if the run in a place is of another recipe."""
    there = Invitation.found(post.place, post.seal.secret)
    if there is not None and there.run == post.seal.run and there.recipe != _raw(recipe):
        raise RecipeError(
            f"the run in mailbox {post.place} is of another recipe than this site's {recipe.id}: use that recipe (lab join), or another place"
        )


def _raw(recipe: Recipe) -> dict[str, Any]:
    raw: dict[str, Any] = json.loads(json.dumps(recipe.to_dict()))
    return raw
