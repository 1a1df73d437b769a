"""Runs on disk: ``runs/<id>/`` holds the recipe, the event stream and the last checkpoints.

::

    recipe.json                        everything needed to repeat the run
    events.jsonl                       one event a line, in order
    knobs.jsonl                        those of them that are knobs turned by hand, if any
    checkpoints/step-000100.safetensors   all state after step 100 (and a .json with its SHA-256)
    lock                               held by the process that writes

A checkpoint knows how long ``events.jsonl`` was when it was made. Resuming cuts the file back to that length, so the
stream of a run that was killed ends up as that of one that never stopped. The file of knobs is not cut: what was turned
after the checkpoint is turned again at its step.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from torch import Tensor

from lab.errors import LabError, RecipeError
from lab.events import Checkpointed, Ended, Event, Turned, from_json, read, to_json
from lab.recipe import Recipe

PLACES = ("", "live/")  # within a folder of runs: those of recipes alone, and those that a hand may have touched
KEEP = 2  # checkpoints; the older one is for when the newer is damaged


class Busy(LabError):
    """Another process is writing this run."""


@dataclass(frozen=True)
class Checkpoint:
    step: int
    events_bytes: int  # length of events.jsonl when it was written
    tensors: dict[str, Tensor]
    extra: dict[str, Any]  # small JSON values


class RunFolder:
    """One run on disk. Make it, then `open` to write or iterate `events` to read."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self._file: TextIO | None = None
        self._lock: TextIO | None = None
        self._flushed = 0.0

    # reading

    @property
    def exists(self) -> bool:
        return (self.path / "recipe.json").exists()

    @property
    def done(self) -> bool:
        """Whether the run has come to its end."""
        ended = self.ended()
        return ended is not None and ended.status == "done"

    def recipe(self) -> Recipe:
        return Recipe.of(str(self.path / "recipe.json"))

    def events(self) -> Iterator[Event]:
        """All complete events; a torn last line (the writer was killed) is left out."""
        try:
            file = open(self.path / "events.jsonl", "rb")
        except FileNotFoundError:
            return
        with file:
            while lines := file.readlines(1 << 22):
                yield from read(b"".join(lines if lines[-1].endswith(b"\n") else lines[:-1]))

    def turned(self, after: int) -> dict[int, dict[str, Any]]:
        """Knobs that were turned for steps later than ``after``, by step and name."""
        out: dict[int, dict[str, Any]] = {}
        file = self.path / "knobs.jsonl"
        for line in file.read_text().splitlines(keepends=True) if file.exists() else ():
            event = from_json(line) if line.endswith("\n") else None
            if isinstance(event, Turned) and event.step > after:
                out.setdefault(event.step, {})[event.knob] = event.value
        return out

    def ended(self) -> Ended | None:
        """How the run ended, None if it was cut off or is still going on."""
        try:
            with open(self.path / "events.jsonl", "rb") as file:
                file.seek(max(0, os.fstat(file.fileno()).st_size - 8192))  # an Ended is far shorter
                lines = file.read().split(b"\n")
        except FileNotFoundError:
            return None
        if len(lines) < 2 or lines[-1] or not re.match(rb'{"kind": ?"ended"', lines[-2]):
            return None
        last = from_json(lines[-2].decode())
        return last if isinstance(last, Ended) else None

    # writing

    def check_recipe(self, recipe: Recipe) -> None:
        """Raises RecipeError if this is the run of another one."""
        if self.exists and self.recipe() != recipe:
            raise RecipeError(f"{self.path} holds a run of another recipe ({self.recipe().id}): give another folder")

    def write_recipe(self, recipe: Recipe) -> None:
        self.path.mkdir(parents=True, exist_ok=True)
        write_atomically(self.path / "recipe.json", json.dumps(recipe.to_dict(), indent=1).encode())

    def open(self, recipe: Recipe, keep_bytes: int = 0) -> None:
        """Take the lock and write from ``keep_bytes`` of the event stream on.

        Raises
        ------
        Busy
            if another process is writing this run.
        """
        (self.path / "checkpoints").mkdir(parents=True, exist_ok=True)
        self._lock = open(self.path / "lock", "a+")
        if not _lock(self._lock):
            raise Busy(f"{self.path} is being written by another process: wait for it, or stop it")
        self.write_recipe(recipe)
        events = self.path / "events.jsonl"
        events.touch()
        os.truncate(events, keep_bytes)
        self._file = open(events, "a", encoding="utf-8")

    def append(self, event: Event) -> None:
        """Write one event; it is on its way to the disk within a quarter of a second."""
        assert self._file is not None
        line = to_json(event) + "\n"
        self._file.write(line)
        if isinstance(event, Turned) and event.knob != "paused":
            with open(self.path / "knobs.jsonl", "a", encoding="utf-8") as file:
                file.write(line)
        now = time.monotonic()
        if now - self._flushed > 0.25:
            self._file.flush()
            self._flushed = now

    def close(self) -> None:
        for file in (self._file, self._lock):
            if file is not None:
                file.close()
        self._file = self._lock = None

    # checkpoints

    def checkpoint_file(self, step: int) -> Path:
        return self.path / "checkpoints" / f"step-{step:06d}.safetensors"

    def save(self, step: int, tensors: dict[str, Tensor], extra: dict[str, Any]) -> Checkpointed:
        """Write all state after ``step``: file, then its digest, each atomically; older ones go when both are there."""
        from safetensors.torch import save

        event = Checkpointed(step, self.checkpoint_file(step).name)
        self.append(event)
        assert self._file is not None
        self._file.flush()
        os.fsync(self._file.fileno())
        meta = {"step": step, "events_bytes": self._file.tell(), "extra": extra}
        data = save(tensors, metadata={"isthmus": json.dumps(meta)})
        file = self.checkpoint_file(step)
        write_with_digest(file, data)
        for old in sorted((self.path / "checkpoints").glob("step-*.safetensors"))[:-KEEP]:
            old.with_suffix(".json").unlink(missing_ok=True)
            old.unlink()
        return event

    def load(self) -> tuple[Checkpoint | None, list[str]]:
        """The newest checkpoint that is whole, and a line for every one that is not."""
        from safetensors import safe_open

        damaged = []
        for file in sorted((self.path / "checkpoints").glob("step-*.safetensors"), reverse=True):
            problem = damage(file)
            if problem:
                damaged.append(f"checkpoint {file.name} is damaged ({problem}): going back to the one before it")
                continue
            with safe_open(file, framework="pt") as f:
                meta = json.loads(f.metadata()["isthmus"])
                tensors = {key: f.get_tensor(key) for key in f.keys()}  # noqa: SIM118
            return Checkpoint(meta["step"], meta["events_bytes"], tensors, meta["extra"]), damaged
        return None, damaged

    def last_step_saved(self) -> int | None:
        """Step of the newest whole checkpoint."""
        files = sorted((self.path / "checkpoints").glob("step-*.safetensors"), reverse=True)
        return next((int(f.stem.split("-")[1]) for f in files if not damage(f)), None)


def damage(file: Path) -> str | None:
    """Why a file with a digest beside it cannot be trusted, None if it can."""
    try:
        digest = json.loads(file.with_suffix(".json").read_text())
        want_bytes, want = digest["bytes"], digest["sha256"]
    except (OSError, ValueError, KeyError, TypeError):
        return "its digest is missing or unreadable"
    if file.stat().st_size != want_bytes:
        return f"{file.stat().st_size} bytes instead of {want_bytes}"
    with open(file, "rb") as f:
        got = hashlib.file_digest(f, "sha256").hexdigest()
    return None if got == want else "its content does not match its SHA-256"


def write_with_digest(file: Path, data: bytes, about: Mapping[str, Any] | None = None) -> None:
    """A file, then a ``.json`` beside it with its size, its SHA-256 and what else there is to say, each atomically."""
    write_atomically(file, data)
    digest = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
    write_atomically(file.with_suffix(".json"), json.dumps(dict(about or {}) | digest).encode())


def write_atomically(path: Path, data: bytes) -> None:
    """All or nothing, also when the machine goes down: temporary file, fsync, rename."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with open(temporary, "wb") as f:
        f.write(data)
        f.flush()
        os.fsync(f.fileno())
    os.replace(temporary, path)


def _lock(file: TextIO) -> bool:
    """An advisory lock that the system drops when the process dies; True where the platform has none."""
    try:
        import fcntl
    except ImportError:
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def find_run(name: str, runs: str | Path = "runs") -> RunFolder:
    """A run by its id, its path, or the beginning of its id (the newest of several).

    Raises
    ------
    RecipeError
        if there is none.
    """
    for path in (Path(name), *(Path(runs) / f"{place}{name}" for place in PLACES)):
        if (path / "recipe.json").exists():
            return RunFolder(path)
    found = [p for place in PLACES for p in Path(runs).glob(f"{place}{name}*/events.jsonl")]
    found.sort(key=lambda p: p.stat().st_mtime)
    if found:
        return RunFolder(found[-1].parent)
    there = ", ".join(p.parent.name for place in PLACES for p in sorted(Path(runs).glob(f"{place}*/recipe.json")))
    raise RecipeError(f"no run called {name!r} in {runs}: there are {there or 'none yet'}")
