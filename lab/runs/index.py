"""What a list of runs says of each of them, without reading all of it again: an index beside the runs.

::

    runs/.index.json        a summary of each run, with what its files looked like when it was made

A summary is made anew where a file of the run has changed. Nothing is lost with the index: whatever is wrong with it, it is made again.
"""

from __future__ import annotations

import contextlib
import functools
import json
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pydantic_core

from lab.events import Forked, Sent, read
from lab.ground.errors import LabError
from lab.ground.files import open_plain, write_atomically
from lab.methods import name_of
from lab.recipes.presets import PRESETS
from lab.recipes.recipe import SIZES, UNSAID, Recipe
from lab.runs.folder import PLACES, UNREADABLE, RunFolder, stored

INDEX = ".index.json"
VERSION = 2
READ = ("recipe.json", "events.jsonl", "name.txt")  # what a summary is made of


@dataclass(frozen=True)
class Summary:
    """One run in short.

    run, path
        its folder's name, and where that is from the folder of runs.
    name
        what somebody calls it; may be empty.
    status
        ``done``, ``stopped``, ``failed``, ``unfinished`` (it was cut off, or goes on) or ``damaged``, with the ``problem``.
    step
        finished local steps, of ``steps``; None where that is not known without reading all of it.
    loss
        the last one on the validation data, if it was near the end of the events.
    payload_bytes, own_payload_bytes
        of all workers together, as far as the run has come; and of a fork, since it is one.
    origin, forked
        of a fork (`lab.runs.fork`): the id of the run that it comes from, and after which step.
    preset, differs
        the preset of its method that is nearest, and the fields of which the recipe has other values, by options as one would type them.
    changed
        when its events were last written to, in seconds since 1970.
    """

    run: str
    path: str
    name: str = ""
    status: str = "damaged"
    problem: str = ""
    method: str = ""
    model: str = ""
    data: str = ""
    workers: int = 0
    seed: int = 0
    step: int | None = None
    steps: int = 0
    loss: float | None = None
    payload_bytes: int | None = None
    preset: str = ""
    differs: dict[str, Any] = field(default_factory=dict)
    changed: float = 0.0
    own_payload_bytes: int | None = None
    origin: str = ""
    forked: int | None = None


@contextlib.contextmanager
def named(folder: RunFolder, name: str | None) -> Iterator[None]:
    """Context manager: the run that is written inside has that name (None: the one that it had). Raises RecipeError as `RunFolder.call`."""
    if name is not None:
        folder.call(name)
    try:
        yield
    finally:
        if name is not None and not folder.exists:  # nothing came of it
            with contextlib.suppress(OSError):
                (folder.path / "name.txt").unlink()
                folder.path.rmdir()


def summaries(runs: str | Path = "runs") -> list[Summary]:
    """Of all runs in a folder, by id; those that a hand may have touched (``live/``) come last.

    What has not changed since the last time is taken from the index, which is then written anew, if it can be.

    Raises
    ------
    RecipeError
        where it is no folder.
    """
    made = remembered(
        Path(runs), INDEX, VERSION, lambda run, path: asdict(summary_of(run, path)), lambda x: Summary(**x)
    )
    return [Summary(**value) for value in made.values()]


def remembered(
    folder: Path,
    index: str,
    version: int,
    make: Callable[[RunFolder, str], dict[str, Any]],
    check: Callable[[dict[str, Any]], object],
    seconds: float = math.inf,
) -> dict[str, dict[str, Any]]:
    """What ``make`` says of each run, by its path from the folder; where no file of a run has changed, from the index of that name.

    ``check`` fails for what is no such thing. After so many ``seconds`` nothing more is made: the runs that are not known are left out.
    """
    known, found, until = (
        _known(folder / index, version, check),
        dict[str, dict[str, Any]](),
        time.monotonic() + seconds,
    )
    for run in (run for place in PLACES for run in stored(folder, place)):
        path, stamp = run.path.relative_to(folder).as_posix(), _stamp(run)
        entry = known.get(path)
        if entry is None or entry.get("stamp") != stamp:
            if time.monotonic() > until:
                continue
            entry = {"stamp": stamp, "says": make(run, path)}
        found[path] = entry
    if found != known:
        with contextlib.suppress(OSError):
            write_atomically(folder / index, json.dumps({"version": version, "runs": found}).encode())
    return {path: entry["says"] for path, entry in found.items()}


def _known(file: Path, version: int, check: Callable[[dict[str, Any]], object]) -> dict[str, dict[str, Any]]:
    """What an index says; nothing where it is missing, damaged or of another version."""
    try:
        with open_plain(file) as f:
            index = pydantic_core.from_json(f.read())
        entries: dict[str, dict[str, Any]] = index["runs"] if index["version"] == version else {}
        for entry in entries.values():
            check(entry["says"])
    except (OSError, LabError, *UNREADABLE):
        return {}
    return entries


def _stamp(run: RunFolder) -> list[list[int]]:
    """What the files of a run look like from outside."""
    found = []
    for name in READ:
        try:
            about = os.stat(run.path / name, follow_symlinks=False)
        except OSError:
            found.append([0, 0])
        else:
            found.append([about.st_size, about.st_mtime_ns])
    return found


def summary_of(run: RunFolder, path: str) -> Summary:
    """Of one run, from its files; ``path`` is where it is from the folder of runs."""
    events = run.path / "events.jsonl"
    changed = events.stat().st_mtime if events.exists() else 0.0
    try:
        ended, recipe, last = run.end(), run.recipe(), run.last_evaluated()
    except LabError as error:
        return Summary(run.path.name, path, run.name, problem=str(error), changed=changed)
    named = recipe.to_dict()["model"].get("name", type(recipe.model).__name__)
    preset, differs = nearest(recipe)
    sent, fork = _sent(events)
    return Summary(
        run.path.name,
        path,
        run.name,
        ended.status if ended else "unfinished",
        ended.message if ended and ended.status == "failed" else "",
        name_of(recipe.method),
        next((name for name, size in SIZES.items() if size == recipe.model), named),
        recipe.corpus if recipe.data is None else recipe.data.name,
        recipe.num_workers,
        recipe.seed,
        ended.step if ended else None,
        recipe.steps,
        None if last is None else last.loss,
        None if sent is None else sum(event.bytes_all for event in sent),
        preset,
        differs,
        changed,
        None if sent is None else sum(event.bytes_all for event in sent if fork is None or event.step > fork.step),
        fork.run if fork else "",
        fork.step if fork else None,
    )


SAID = (b'{"kind":"sent"', b'{"kind":"forked"')  # how the lines begin that are read of a run


def _sent(events: Path) -> tuple[list[Sent] | None, Forked | None]:
    """What was handed over, from the lines that say so, and whether it is a fork; None where one of them cannot be read."""
    try:
        with open_plain(events) as file:
            lines = b"".join(line for line in file if line.startswith(SAID) and line.endswith(b"\n"))
        found = read(lines) if lines else []
    except (OSError, LabError, *UNREADABLE):
        return None, None
    forks = [event for event in found if isinstance(event, Forked)]
    return [event for event in found if isinstance(event, Sent)], forks[-1] if forks else None


# --- what is special about a recipe -----------------------------------------------------------------------------------


def nearest(recipe: Recipe) -> tuple[str, dict[str, Any]]:
    """The preset of the same method from which a recipe differs in the fewest fields, and these fields with the recipe's values.

    Keys are options as one would type them (``method.inner.lr``). An empty name, and nothing, where its method has no preset.
    """
    mine, best = flat(UNSAID | recipe.to_dict()), ("", dict[str, Any]())
    for name in _presets_of(name_of(recipe.method)):
        theirs = _fields_of_preset(name)
        differs = {key: value for key, value in mine.items() if key not in theirs or theirs[key] != value}
        differs |= {key: None for key in theirs.keys() - mine.keys() if theirs[key] is not None}
        if not best[0] or len(differs) < len(best[1]):
            best = name, differs
    return best


def as_options(differs: Mapping[str, Any]) -> list[str]:
    """``method.inner.lr=0.001`` and the like."""
    return [f"{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in differs.items()]


@functools.cache
def _presets_of(method: str) -> tuple[str, ...]:
    def of(raw: Mapping[str, Any]) -> Any:
        given = raw.get("method")
        return given.get("name") if isinstance(given, Mapping) else given

    return tuple(name for name, raw in PRESETS.items() if of(raw) == method)


@functools.cache
def _fields_of_preset(name: str) -> dict[str, Any]:
    return flat(UNSAID | Recipe.of(name).to_dict())


def flat(raw: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a recipe by options as one would type them (``method.inner.lr``)."""
    return dict(_fields(raw, ()))


def _fields(raw: Mapping[str, Any], above: Sequence[str]) -> Iterator[tuple[str, Any]]:
    for key, value in raw.items():
        if isinstance(value, Mapping) and value:
            yield from _fields(value, (*above, key))
        else:
            yield ".".join((*above, key)), value
