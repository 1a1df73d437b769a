"""Runs on disk: ``runs/<id>/`` holds the recipe, the event stream and the last checkpoints.

::

    recipe.json                        everything needed to repeat the run
    name.txt                           what somebody calls it, if anybody does
    inputs.json                        digests of the text and the other files that it read (`lab.runs.inputs`)
    events.jsonl                       one event a line, in order, each with a checksum (`lab.runs.lines`)
    knobs.jsonl                        those of them that are knobs turned by hand, if any
    checkpoints/step-000100.safetensors   all state after step 100 (and a .json with its SHA-256)
    lock                               held by the process that writes

A checkpoint knows its recipe, and the length and the digest of ``events.jsonl`` when it was made. Resuming looks at both before
it writes anything, and cuts the file back to that length, so the stream of a run that was killed ends up as that of one that
never stopped. The file of knobs is not cut: what was turned after the checkpoint is turned again at its step.

Nothing is read that is not what was written: the first damaged line or file is named (`lab.ground.errors.Damaged`). What can be had
from elsewhere is: the recipe from the events or a checkpoint, the events after a checkpoint from an older one. A run folder never
writes outside of itself: a link in it is refused.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

import torch
from torch import Tensor

from lab.engine.checkpoint import Checkpoint, Part, snapshot
from lab.engine.world import World
from lab.events import (
    VERSION,
    Checkpointed,
    Ended,
    Evaluated,
    Event,
    KnobChanged,
    Started,
    check,
    from_json,
    read,
    to_bytes,
)
from lab.ground.errors import Damaged, LabError, RecipeError, plain, shown
from lab.ground.files import (
    claimed,
    damage,
    digest_beside,
    is_sealed,
    locked,
    open_plain,
    working_folder,
    write_atomically,
    write_with_digest,
)
from lab.recipes.recipe import Recipe
from lab.runs import inputs
from lab.runs.inputs import Inputs
from lab.runs.lines import Log, Piece, Vouched, last_lines, pieces

PLACES = ("", "live/")  # within a folder of runs: those of recipes alone, and those that a hand may have touched
KEEP = 2  # checkpoints; the older one is for when the newer is damaged
WRITTEN = ("events.jsonl", "knobs.jsonl", "lock", "checkpoints", "clients")
END_BYTES = 1024  # room that is made on a full disk for how the run ended
FEW = 10  # runs that an error names
LONGEST_NAME = 100  # bytes


class Busy(LabError):
    """Another process is writing this run."""


class _Unusable(Exception):
    """A checkpoint that is not what was written, and why."""


class RunFolder:
    """One run on disk. Make it, then `open` to write or iterate `events` to read."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self._file: Log | None = None
        self._knobs: Log | None = None
        self._lock: TextIO | None = None
        self._recipe: dict[str, Any] = {}  # while it is written
        self._kept = 0  # bytes of the events that the last checkpoint counts on
        self._flushed = 0.0

    # reading

    @property
    def exists(self) -> bool:
        """Whether the folder holds anything of a run."""
        return any(os.path.exists(self.path / name) for name in ("recipe.json", "events.jsonl")) or bool(
            self._checkpoints()
        )

    @property
    def name(self) -> str:
        """What somebody calls the run (``name.txt``); empty where nobody does, or that cannot be read."""
        try:
            with open_plain(self.path / "name.txt") as file:
                return file.read(LONGEST_NAME).decode()
        except (OSError, LabError, UnicodeDecodeError):
            return ""

    def call(self, name: str) -> None:
        """Give the run a name beside its id. Raises RecipeError for one that is none, and where it cannot be written."""
        if (
            not name.strip()
            or name != name.strip()
            or not name.isprintable()
            or "/" in name
            or len(name.encode()) > LONGEST_NAME
        ):
            raise RecipeError(
                f"{shown(name, 100)} is no name for a run: use up to {LONGEST_NAME} characters that can be printed, without a / and "
                "without spaces around them"
            )
        for run in stored(self.path.parent):
            if run.path.name != self.path.name and name in (run.path.name, run.name):
                raise RecipeError(f"{shown(name, 100)} is what {run.path.name} is called already: choose another name")
        with writing(self.path, RecipeError):
            self.path.mkdir(parents=True, exist_ok=True)
            write_atomically(self.path / "name.txt", name.encode())

    @property
    def done(self) -> bool:
        """Whether the run has come to its end, and all of its events are whole."""
        ended = self.ended()
        if ended is None or ended.status != "done":
            return False
        try:
            if not all(piece.sealed for piece in pieces(self.path / "events.jsonl", self._vouched())):
                for _ in self.events():
                    pass
        except (LabError, OSError):
            return False
        return True

    def recipe(self) -> Recipe:
        """What ``recipe.json`` says; where it cannot be read, what the events or a checkpoint say.

        Raises
        ------
        RecipeError
            where none can be read, and where it is not the recipe that the run was made with.
        """
        return self._recipe_and_note()[0]

    def _recipe_and_note(self) -> tuple[Recipe, list[str]]:
        file, made_with = self.path / "recipe.json", list(self._made_with())
        try:
            here = Recipe.recorded(_read_json(file))
        except RecipeError as error:
            if not made_with:
                raise
            by, raw = made_with[0]
            return Recipe.recorded(raw), [f"recipe.json cannot be used ({error}): it is taken from {by}"]
        for by, raw in made_with:
            self._check_same(by, raw, here)
        return here, []

    def _check_same(self, by: str, raw: Mapping[str, Any], here: Recipe) -> None:
        """Raises Damaged if what is written somewhere is not the recipe in ``recipe.json``."""
        if not _same(raw, here):
            raise Damaged(
                f"{self.path} has parts of two runs: {_difference(raw, here.to_dict(), by, 'recipe.json')}: put back what was "
                f"there (without recipe.json, that of {next(self._made_with())[0]} is taken)"
            )

    def _made_with(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield the recipes in events and checkpoints as (where, plain values); damaged ones are left out."""
        for _, file in reversed(self._checkpoints()):
            about = _about(file)
            if about and isinstance(about.get("recipe"), dict):
                yield f"checkpoint {file.name}", about["recipe"]
        started = self.started()
        if started is not None:
            yield "events.jsonl", started.recipe

    def started(self) -> Started | None:
        """How the run began; None where that is not there or cannot be read."""
        with contextlib.suppress(OSError, LabError, *UNREADABLE):
            with open_plain(self.path / "events.jsonl") as events:
                line = events.readline(1 << 24)
            first = from_json(line.decode())
            if isinstance(first, Started) and line.endswith(b"\n") and (first.version < 2 or is_sealed(line)):
                return first
        return None

    def events(self) -> Iterator[Event]:
        """All complete events; a torn last line (the writer was killed) is left out.

        Raises
        ------
        Damaged
            when it comes to a line that is not what was written, with its number; at the end, where lines that a checkpoint counts
            on are missing.
        """
        file, vouched, some = self.path / "events.jsonl", self._vouched(), False
        started: Started | None = None
        try:
            for piece in pieces(file, vouched):
                events = _parsed(file, piece, started)
                if piece.number == 1 and isinstance(events[0], Started):
                    started = events[0]
                    self._check_started(started)
                yield from events
                some = True
        except FileNotFoundError:
            pass
        if not some and self._checkpoints():
            raise _missing(file)

    def _check_started(self, started: Started) -> None:
        """Raises Damaged if the events are of another recipe than what is beside them."""
        try:
            here = Recipe.recorded(_read_json(self.path / "recipe.json"))
        except RecipeError:  # the others know better
            here = Recipe.recorded(started.recipe)
        for by, raw in (("events.jsonl", started.recipe), *self._made_with()):
            self._check_same(by, raw, here)

    def _vouched(self) -> Vouched | None:
        """Return the longest beginning of the events that a checkpoint vouches for; None without one."""
        found = []
        for _, file in self._checkpoints():
            about = _about(file)
            if about is not None and "events" in about:
                found.append(Vouched(f"checkpoint {file.name}", about["events"]["bytes"], about["events"]["crc"]))
        return max(found, key=lambda vouched: vouched.num_bytes, default=None)

    def knobs_after(self, after: int) -> dict[int, dict[str, Any]]:
        """Return the knobs that were set for steps later than ``after``, by step and name.

        Raises
        ------
        Damaged
            where ``knobs.jsonl`` is. Where it is missing, they are taken from the events.
        """
        out: dict[int, dict[str, Any]] = {}
        for event in (*self._knobs_in_events(), *self._knobs_in_file()):  # the latter hold all that there are
            if event.step > after:
                out.setdefault(event.step, {})[event.knob] = event.value
        return out

    def _knobs_in_file(self) -> list[KnobChanged]:
        file = self.path / "knobs.jsonl"
        try:
            events = [e for piece in pieces(file) for e in _parsed(file, piece)]
        except FileNotFoundError:
            return []
        except Damaged as error:
            raise Damaged(f"{error}; put it back, or remove it to take the knobs from events.jsonl") from None
        return [e for e in events if isinstance(e, KnobChanged)]

    def _knobs_in_events(self) -> list[KnobChanged]:
        """Return the knob changes in ``events.jsonl``, up to the first damaged line."""
        found: list[KnobChanged] = []
        file = self.path / "events.jsonl"
        with contextlib.suppress(OSError, LabError):
            for piece in pieces(file):
                if b'"turned"' in piece.lines:
                    found += [e for e in _parsed(file, piece) if isinstance(e, KnobChanged) and e.knob != "paused"]
        return found

    def ended(self) -> Ended | None:
        """How the run ended, None if it was cut off, is still going on or cannot be read."""
        try:
            return self.end()
        except Damaged:
            return None

    def end(self) -> Ended | None:
        """The same, but raises Damaged where the end of the events cannot be read."""
        started = self.started()
        if started is not None:
            self._check_started(started)
        lines = self._last_lines(8192)  # an Ended is far shorter
        last = self._event(lines[-1], Ended) if lines else None
        return last if isinstance(last, Ended) else None

    def last_evaluated(self) -> Evaluated | None:
        """The last evaluation, if it is near the end of the events: a long file is not read for it. Raises Damaged."""
        found = (self._event(line, Evaluated) for line in reversed(self._last_lines(1 << 18)))
        return next((event for event in found if isinstance(event, Evaluated)), None)

    def _last_lines(self, num_bytes: int) -> list[bytes]:
        vouched = self._vouched()
        try:
            return last_lines(self.path / "events.jsonl", num_bytes, vouched)
        except FileNotFoundError:
            if self._checkpoints():
                raise _missing(self.path / "events.jsonl") from None
            return []

    def _event(self, line: bytes, kind: Any) -> Event | None:
        if not re.match(rb'{"kind": ?"' + kind.kind.encode() + b'"', line):
            return None
        return _parsed(self.path / "events.jsonl", Piece(2, line, claimed(line) is not None))[0]

    # writing

    def check_recipe(self, recipe: Recipe) -> None:
        """Raises RecipeError if this is the run of another one."""
        self._checked(recipe)

    def _checked(self, recipe: Recipe) -> list[str]:
        """As `check_recipe`; returns notes about ``recipe.json``."""
        if not self.exists:
            return []
        try:
            here, notes = self._recipe_and_note()
        except RecipeError as error:
            if any(True for _ in self._made_with()):
                raise
            return [str(error)]  # and nobody else knows
        if here != recipe:
            raise RecipeError(f"{self.path} holds a run of another recipe ({here.id}): give another folder")
        return notes

    def write_recipe(self, recipe: Recipe) -> None:
        with writing(self.path, RecipeError):
            self.path.mkdir(parents=True, exist_ok=True)
            write_atomically(self.path / "recipe.json", json.dumps(recipe.to_dict(), indent=1).encode())

    def check_inputs(self, now: Inputs, was: Mapping[str, str] | None, accept_new_text: bool = False) -> list[str]:
        """`lab.runs.inputs.check` of this run."""
        return inputs.check(self.path, now, was, accept_new_text)

    def record_inputs(self, now: Inputs) -> None:
        """Write down in ``inputs.json`` what the run reads from now on."""
        data = inputs.to_record(self.path, now)
        if data is not None:
            with writing(self.path, RecipeError):
                write_atomically(self.path / "inputs.json", data)

    def lock(self) -> None:
        """Take the lock, and clear away what killed writers have left.

        Raises
        ------
        Busy
            if another process is writing this run.
        RecipeError
            where nothing can be written, or a link leads out of the folder.
        """
        if self._lock is not None:
            return
        for name in WRITTEN:
            if os.path.islink(self.path / name):
                raise RecipeError(
                    f"{self.path / name} is a link to {os.readlink(self.path / name)}: a run writes only into its own folder; "
                    "put in its place what it leads to"
                )
        for _, file in (*self._checkpoints(), *self._checkpoints(_ABOUT)):
            if file.is_dir():
                raise RecipeError(f"{file} is a folder: remove it, or put back the file that was there")
        with writing(self.path, RecipeError):
            (self.path / "checkpoints").mkdir(parents=True, exist_ok=True)
        self._lock = held(self.path, RecipeError)
        for place in (self.path, self.path / "checkpoints"):
            for name in os.listdir(place):
                if _TEMPORARY.fullmatch(name):
                    with contextlib.suppress(OSError):
                        os.unlink(place / name)

    def open(self, recipe: Recipe, keep_bytes: int = 0, step: int = 0) -> None:
        """Take the lock and write from ``keep_bytes`` of the event stream on, as after ``step``.

        Raises
        ------
        Busy
            if another process is writing this run.
        RecipeError
            where nothing can be written.
        """
        self.lock()
        self._recipe, self._kept = recipe.to_dict(), keep_bytes
        with writing(self.path, RecipeError):
            missing = [e for e in self._knobs_in_events() if e.step > step]
            if (self.path / "knobs.jsonl").exists() or missing:
                known = self._knobs_in_file()
                self._knobs = Log(self.path / "knobs.jsonl")
                for event in missing:  # lost with that file, and about to be cut from this one
                    if event not in known:
                        self._knobs.append(to_bytes(event))
                self._knobs.flush()
            self.write_recipe(recipe)
            self._file = Log(self.path / "events.jsonl", keep_bytes)
            for number, file in self._checkpoints():
                if number > step:  # passed over: the steps to it are done again
                    _remove(file)
            for _, about in self._checkpoints(_ABOUT):
                if not about.with_suffix(".safetensors").exists():
                    about.unlink()

    def append(self, event: Event) -> None:
        """Write one event; it is on its way to the disk within a quarter of a second. Raises LabError where it cannot be written."""
        assert self._file is not None
        line = to_bytes(event)
        try:
            if isinstance(event, KnobChanged) and event.knob != "paused":
                self._knobs = self._knobs or Log(self.path / "knobs.jsonl")
                self._knobs.append(line)
                self._knobs.flush(sync=True)  # it cannot be worked out again
            self._file.append(line)
            now = time.monotonic()
            if now - self._flushed > 0.25:
                self._file.flush()
                self._flushed = now
        except OSError as error:
            raise _cannot_write(self.path, error) from None

    def flush(self) -> None:
        """All that was appended is in the file. Raises LabError where it cannot be."""
        assert self._file is not None
        with writing(self.path):
            self._file.flush()

    def append_end(self, ended: Ended) -> None:
        """Write how the run ended, if it can be written: on a full disk in the place of lines that no checkpoint counts on."""
        assert self._file is not None
        for room in (0, END_BYTES):
            with contextlib.suppress(OSError):
                if room:
                    self._file.cut(max(self._kept, self._file.num_bytes - room))
                    self._file.cut(None)
                self._file.append(to_bytes(ended))
                self._file.flush()
                return

    def close(self) -> None:
        """Raises LabError where the last events cannot be written."""
        files = [file for file in (self._file, self._knobs, self._lock) if file is not None]
        self._file = self._knobs = self._lock = None
        with contextlib.ExitStack() as stack, writing(self.path):
            for file in reversed(files):
                stack.callback(file.close)

    # checkpoints

    def checkpoint_file(self, step: int) -> Path:
        return self.path / "checkpoints" / f"step-{step:06d}.safetensors"

    def _checkpoints(self, named: re.Pattern[str] | None = None) -> list[tuple[int, Path]]:
        """Return (step, file) of all checkpoints, the newest last: sorted by number, since names of more than six digits sort otherwise."""
        try:
            names = os.listdir(self.path / "checkpoints")
        except OSError:
            return []
        found = (((named or _CHECKPOINT).fullmatch(name), name) for name in names)
        return sorted((int(m[1]), self.path / "checkpoints" / name) for m, name in found if m)

    def save(self, step: int, tensors: dict[str, Tensor], extra: dict[str, Any]) -> Checkpointed:
        """Write all state after ``step``: file, then its digest, each atomically; older ones go when both are there.

        Raises LabError where it cannot be written; then those that were there are there still.
        """
        from safetensors.torch import save

        event = Checkpointed(step, self.checkpoint_file(step).name)
        assert self._file is not None
        with writing(self.path):
            self._file.flush()
            before = self._file.num_bytes
            try:
                self._file.append(to_bytes(event))
                self._file.flush(sync=True)
                log = {"bytes": self._file.num_bytes, "sha256": self._file.sha256, "crc": self._file.crc}
                about = {"version": VERSION, "step": step, "events": log, "recipe": self._recipe}
                data = save(tensors, metadata={"isthmus": json.dumps(about | {"extra": extra})})
                write_with_digest(self.checkpoint_file(step), data, about)
            except OSError:
                self._file.cut(before)
                raise
        self._kept = self._file.num_bytes
        often = self._recipe.get("keep_every", 0)
        for number, old in [(number, file) for number, file in self._checkpoints() if number <= step][:-KEEP]:
            if not often or number % often:
                _remove(old)
        return event

    def load(self, recipe: Recipe | None = None) -> tuple[Checkpoint | None, list[str]]:
        """The newest checkpoint that can be gone on from, and a line for everything that cannot be used. Changes nothing.

        Parameters
        ----------
        recipe
            that of the run, if it is known from elsewhere; default: what the folder says.

        Raises
        ------
        RecipeError
            if the folder, or a checkpoint in it, is of another recipe.
        Damaged
            if going on would lose what is there: where no checkpoint's events are whole, or without a checkpoint the events are not.
        """
        if recipe is None:
            recipe, notes = self._recipe_and_note()
        else:
            notes = self._checked(recipe)
        lost: Damaged | None = None
        for step, file in reversed(self._checkpoints()):
            try:
                return self._usable(step, file, recipe), notes
            except _Unusable as problem:
                notes.append(f"checkpoint {file.name} is damaged ({problem}): going back to the one before it")
            except Damaged as error:
                lost = lost or error
                notes.append(f"{error}: going back to the checkpoint before it")
        if lost is not None:
            raise Damaged(f"{lost}: put back the file that was there, or run it anew (`lab run … --again`)")
        try:
            num = sum(1 for event in self.events() if isinstance(event, Checkpointed))
        except Damaged as error:
            raise Damaged(
                f"{error}; there is no checkpoint: remove {self.path / 'events.jsonl'} to start again from the beginning"
            ) from None
        if num and not notes:
            notes.append("its checkpoints are missing")
        return None, notes

    def saved(self) -> dict[int, int]:
        """The steps of which there is a checkpoint, and its size in bytes; whether it is whole is seen when it is loaded."""
        return {step: file.stat().st_size for step, file in self._checkpoints()}

    def load_step(self, step: int) -> Checkpoint:
        """The checkpoint after a step, verified. Changes nothing.

        Raises
        ------
        RecipeError
            where there is none of that step, or it is of another recipe; with the steps that there are.
        Damaged
            where it, or the events that it counts on, are not what was written.
        """
        there = self.saved()
        if step not in there:
            steps = ", ".join(f"{number:,}" for number in there) or "none: run it with checkpoint_every above 0"
            raise RecipeError(
                f"{self.path.name} has no checkpoint of step {step:,}; those that it has: {steps} (-o keep_every=… keeps more than the "
                f"last {KEEP})"
            )
        file = self.checkpoint_file(step)
        try:
            return self._usable(step, file, self.recipe())
        except _Unusable as problem:
            raise Damaged(
                f"checkpoint {file.name} of {self.path.name} is damaged ({problem}): put back the file that was there"
            ) from None

    def _usable(self, step: int, file: Path, recipe: Recipe) -> Checkpoint:
        """What a checkpoint holds, if it can be gone on from.

        Raises
        ------
        _Unusable
            if it is not what was written.
        Damaged
            if the events that it counts on are not.
        RecipeError
            if it is of another recipe, or of a newer version.
        """
        problem = damage(file)
        if problem is not None:
            raise _Unusable(problem)
        try:
            checkpoint, meta = _checkpoint(file)
        except UNREADABLE:
            raise _Unusable("it is no checkpoint of a run") from None
        if checkpoint.step != step:
            raise _Unusable(f"it is that of step {checkpoint.step}")
        if meta.get("version", 1) > VERSION:
            raise RecipeError(_newer(file, meta["version"]))
        if "recipe" in meta and not _same(meta["recipe"], recipe):
            raise RecipeError(
                f"{file} is of another recipe ({_difference(meta['recipe'], recipe.to_dict(), 'it', 'this run')}): "
                "remove it, or put back the recipe.json that was there"
            )
        self._check_events(file, checkpoint, meta)
        return checkpoint

    def _check_events(self, file: Path, checkpoint: Checkpoint, meta: Mapping[str, Any]) -> None:
        """Raises Damaged if the events that a checkpoint counts on are not there as they were."""
        log, want = self.path / "events.jsonl", checkpoint.events_bytes
        size = log.stat().st_size if log.exists() else 0
        if size < want:
            raise Damaged(f"{log} has {size:,} of the {want:,} bytes that checkpoint {file.name} counts on")
        if "events" in meta:
            with open_plain(log) as events:
                sha256 = hashlib.sha256()
                for place in range(0, want, 1 << 22):
                    sha256.update(events.read(min(1 << 22, want - place)))
            if sha256.hexdigest() == meta["events"]["sha256"]:
                return
        number, left = 1, want
        started: Started | None = None
        last: Event | None = None
        try:
            for piece in pieces(log):  # which line, and whether an earlier version's lines can be right
                lines = piece.lines[:left]
                left -= len(lines)
                parsed = _parsed(log, Piece(piece.number, lines, piece.sealed), started)
                started = started or next((e for e in parsed if isinstance(e, Started)), None)
                number, last = piece.number + lines.count(b"\n"), parsed[-1]
                if not left:
                    break
        except Damaged as error:
            raise Damaged(f"{error}, and checkpoint {file.name} counts on it") from None
        if "events" in meta or last != Checkpointed(checkpoint.step, file.name):
            raise Damaged(f"{log} is not what checkpoint {file.name} counts on (its first {number - 1:,} lines)")

    def gather(
        self, step: int, parts: Sequence[Part], world: World, device: torch.device
    ) -> tuple[dict[str, Tensor], dict[str, Any]]:
        return snapshot(parts, world, device)

    def clients(self) -> Path:
        """Where lies what clients of a federation keep between their turns (`lab.runs.client_store`)."""
        return self.path / "clients"

    def last_step_saved(self) -> int | None:
        """Step of the newest whole checkpoint."""
        return next((step for step, file in reversed(self._checkpoints()) if not damage(file)), None)


UNREADABLE = (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError)
_CHECKPOINT = re.compile(r"step-([0-9]+)\.safetensors")
_ABOUT = re.compile(r"step-([0-9]+)\.json")
_TEMPORARY = re.compile(r"\.(recipe|events|knobs|step-[0-9]+)\.(json|jsonl|safetensors)\.[0-9]+\.tmp")


def _parsed(file: Path, piece: Piece, started: Started | None = None) -> list[Event]:
    """The events of a piece. Raises Damaged with the number of the first line that is none, or that this run cannot have written."""
    try:
        if piece.number == 1 and not piece.sealed and file.name == "events.jsonl":
            started = _started(file, piece.lines[: piece.lines.index(b"\n")])
        events = read(piece.lines)
        for event in events if not piece.sealed else ():
            check(event, started)
        if len(events) == piece.lines.count(b"\n"):
            return events
    except UNREADABLE:
        pass
    for number, line in enumerate(piece.lines.split(b"\n")[:-1], piece.number):
        try:
            (event,) = read(line)
            if not piece.sealed:
                check(event, started)
        except UNREADABLE:
            _refuse_newer(file, line)
            raise Damaged(f"{file}: line {number:,} is damaged (it is no event of this run)") from None
    raise Damaged(f"{file}: the lines from {piece.number:,} on are damaged")


def _missing(file: Path) -> Damaged:
    return Damaged(
        f"{file} has no events, and there are checkpoints that count on it: put back the file that was there"
    )


def _started(file: Path, line: bytes) -> Started:
    """The first event, where it has no checksum. Raises Damaged where it is none of a version that had no checksums."""
    (first,) = read(line)
    if not isinstance(first, Started):
        raise Damaged(f"{file}: line 1 is damaged, or what stood before it is missing: a run begins with 'started'")
    if first.version >= 2:
        raise Damaged(f"{file}: line 1 is damaged (it has no checksum)")
    return first


def _refuse_newer(file: Path, line: bytes) -> None:
    with contextlib.suppress(*UNREADABLE):
        row = json.loads(line)
        if row["kind"] == "started" and row["version"] > VERSION:
            raise RecipeError(_newer(file, row["version"]))


def _newer(file: Path, version: int) -> str:
    return f"{file} is of version {version}, and this Isthmus reads versions up to {VERSION}: install a newer one"


def _read_json(file: Path) -> dict[str, Any]:
    """A file that holds one object. Raises RecipeError, one line."""
    try:
        with open_plain(file) as f:
            raw = json.loads(f.read(1 << 26))
    except FileNotFoundError:
        raise RecipeError(f"{file} is missing") from None
    except (ValueError, RecursionError) as error:
        raise RecipeError(f"{file} is not JSON ({error})") from None
    if not isinstance(raw, dict):
        raise RecipeError(f"{file} does not hold one JSON object")
    return raw


def _same(raw: Mapping[str, Any], recipe: Recipe) -> bool:
    """Whether what was written down, perhaps by an earlier version, is this recipe."""
    plain = recipe.to_dict()
    if raw == plain:
        return True
    try:
        return Recipe.recorded(raw).to_dict() == plain
    except RecipeError:
        return False


def _difference(there: Any, here: Any, name_there: str = "there", name_here: str = "here", key: str = "") -> str:
    """The first value that is another, in words."""
    if isinstance(there, dict) and isinstance(here, dict):
        for name in sorted(there.keys() | here.keys()):
            if there.get(name) != here.get(name):
                inner = f"{key}.{name}" if key else name
                return _difference(there.get(name), here.get(name), name_there, name_here, inner)
    values = [plain(json.dumps(value), 60) for value in (there, here)]
    return f"{key} is {values[0]} in {name_there} and {values[1]} in {name_here}"


def _checkpoint(file: Path) -> tuple[Checkpoint, dict[str, Any]]:
    """Read a checkpoint file that is whole. Raises one of `UNREADABLE` for a file of something else."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="pt") as f:
            meta = json.loads(f.metadata()["isthmus"])
            tensors = {key: f.get_tensor(key) for key in f.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(str(error)) from None
    events_bytes = meta["events"]["bytes"] if "events" in meta else meta["events_bytes"]
    return Checkpoint(meta["step"], events_bytes, tensors, meta["extra"]), meta


def _about(file: Path) -> dict[str, Any] | None:
    """Return the JSON beside a checkpoint; None where that is damaged or has no checksum."""
    found = digest_beside(file)
    return found if found is not None and found.get("crc") is not None else None


def _remove(checkpoint: Path) -> None:
    with contextlib.suppress(OSError):
        checkpoint.with_suffix(".json").unlink(missing_ok=True)
        checkpoint.unlink(missing_ok=True)


@contextlib.contextmanager
def writing(path: Path, kind: type[LabError] = LabError, go_on: str | None = None) -> Iterator[None]:
    """Context manager: errors of the file system become a LabError of one line; ``go_on``: with what, once there is room."""
    try:
        yield
    except OSError as error:
        raise _cannot_write(path, error, kind, go_on) from None


def held(path: Path, kind: type[LabError] = LabError) -> TextIO:
    """The lock of whoever writes into a folder. Raises Busy, and LabError where it cannot be made."""
    with writing(path, kind):
        lock = locked(path / "lock")
    if lock is None:
        raise Busy(f"{path} is being written by another process: wait for it, or stop it")
    return lock


def _cannot_write(path: Path, error: OSError, kind: type[LabError] = LabError, go_on: str | None = None) -> LabError:
    full = error.errno in (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)
    again = go_on or f"lab resume {path}"
    hint = f"make room, then go on with: {again}" if full else "is it a folder that you may write to?"
    return kind(f"cannot write {error.filename or path} ({error.strerror or error}): {hint}")


# --- many runs -------------------------------------------------------------------------------------------------------


def by_number(name: str) -> list[str | int]:
    """A key to sort names by: numbers in them count as numbers, so that ``run-10`` comes after ``run-9``."""
    return [int(part) if part.isdecimal() and part.isascii() else part for part in re.split("([0-9]+)", name)]


def stored(runs: str | Path = "runs", place: str = "") -> list[RunFolder]:
    """The runs in a folder, by name; ``place``: one of `PLACES` in it. Raises RecipeError where it is no folder."""
    folder = Path(runs) / place
    try:
        names = os.listdir(folder)
    except FileNotFoundError:
        return []
    except OSError as error:
        if place and Path(runs).is_dir():
            return []
        raise RecipeError(f"cannot read {folder} ({error.strerror}): --runs names a folder that holds runs") from None
    return [run for name in sorted(names, key=by_number) if (run := RunFolder(folder / name)).exists]


def find_run(name: str, runs: str | Path = "runs") -> RunFolder:
    """A run by its id, its path, its name, or the beginning of its id (the newest of several).

    A shell stands in the project's folder, a notebook in ``notebooks/``: where ``runs`` is relative and has no such run, the
    folders of that name above and in ``notebooks/`` are looked through as well, the nearest first.

    Raises
    ------
    RecipeError
        if there is none.
    """
    if not name:
        raise RecipeError("'' names no run: give its id, the beginning of its id, or its folder")
    if "\0" not in name and RunFolder(Path(name)).exists:
        return RunFolder(Path(name))
    for folder in (runs := Path(runs), *elsewhere(runs)):
        for place in PLACES:
            if "\0" not in name and RunFolder(folder / f"{place}{name}").exists:
                return RunFolder(folder / f"{place}{name}")
        if found := runs_called(name, folder):
            return found[-1]
    there = [run for place in PLACES for run in stored(runs, place)]
    names = ", ".join(run.path.name for run in there[:FEW]) + (f" … ({len(there):,} runs)" if len(there) > FEW else "")
    raise RecipeError(f"no run called {plain(repr(name), 100)} in {runs}: there are {names or 'none yet'}")


def runs_called(name: str, runs: str | Path) -> list[RunFolder]:
    """The runs of a folder that ``name`` may mean, the newest last: that of this id, else those of this name, else those whose id begins so."""
    there = [run for place in PLACES for run in stored(runs, place)]
    meant: Sequence[Callable[[RunFolder], bool]] = (
        lambda run: run.path.name == name,
        lambda run: run.name == name,  # a file is read for each run, so only where the id is none
        lambda run: run.path.name.startswith(name),
    )
    for is_meant in meant:
        found = [run for run in there if is_meant(run) and (run.path / "events.jsonl").exists()]
        if found:
            return sorted(found, key=lambda run: (run.path / "events.jsonl").stat().st_mtime)
    return []


def elsewhere(runs: Path) -> Iterator[Path]:
    """Folders of the same name in the project around the working directory: up to the one with a ``pyproject.toml``, or to one's home."""
    if runs.is_absolute():
        return
    here = working_folder()
    if (here / "notebooks" / runs).is_dir():
        yield here / "notebooks" / runs
    for above in () if (here / "pyproject.toml").exists() else here.parents:
        for folder in (above / runs, above / "notebooks" / runs):
            if folder.is_dir() and folder != here / runs:
                yield folder
        if (above / "pyproject.toml").exists() or above == Path.home():
            return
