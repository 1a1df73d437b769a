"""Tasks by name, and a cache of their examples.

An entry of the cache is one file of JSON with its SHA-256 beside it, named by a hash of what the examples are made from
(for the standard library: the stamp of every file, see `lab.data.files`). A damaged entry is made again. A data set of the hub is read
once per cache, whatever is uploaded later.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from lab.data.cache import cache_folder
from lab.data.tasks import arithmetic, hub, pointers, stdlib
from lab.ground.errors import RecipeError, one_of
from lab.ground.files import damage, write_with_digest

FORMAT = 1
PREFIX = "task:"


class Example(NamedTuple):
    """A prompt, the completion that is wanted, and where it comes from (a package, a category)."""

    prompt: str
    completion: str
    domain: str


@dataclass(frozen=True)
class Task:
    """A source of examples. Where it ``has_labels`` the completion says which domain the prompt is from."""

    about: str
    has_labels: bool
    identity: Callable[[], list[Any]]  # JSON-able; changes when the examples may have changed
    rows: Callable[[], Iterator[tuple[str, str, str, bool]]]  # prompt, completion, domain, held out for validation


TASKS = {
    "packages": Task(
        "which package of the standard library a piece of source is from", True, stdlib.identity, stdlib.packages
    ),
    "docstrings": Task(
        "the first line of a function's docstring, from the standard library", False, stdlib.identity, stdlib.docstrings
    ),
    "arithmetic": Task(
        "sums of two numbers below a hundred, alone and after answers of others",
        False,
        arithmetic.identity,
        arithmetic.rows,
    ),
    "pointers": Task(
        "where so many hops along a map of letters lead, one to four", False, pointers.identity, pointers.rows
    ),
    **{
        name: Task(source.about, source.has_labels, source.identity, source.rows)
        for name, source in hub.SOURCES.items()
    },
}


@dataclass(frozen=True)
class Examples:
    """All examples of a task: those to train on and those held out, each sorted by domain, no prompt in both.

    ``fingerprint`` is a hash of them.
    """

    train: tuple[Example, ...]
    held_out: tuple[Example, ...]
    fingerprint: str


def task_name(corpus: str) -> str | None:
    """``packages`` for ``task:packages``, None for a corpus that is not a task.

    Raises RecipeError for a task that there is not.
    """
    if not corpus.startswith(PREFIX):
        return None
    return _known(corpus.removeprefix(PREFIX))


def _known(name: str) -> str:
    if name not in TASKS:
        raise RecipeError(one_of("task", name, TASKS))
    return name


def _entry(name: str, cache: Path | None) -> Path:
    root = Path(cache) if cache is not None else cache_folder("tasks")
    identity = TASKS[_known(name)].identity()
    key = hashlib.sha256(json.dumps([FORMAT, name, identity]).encode(errors="surrogatepass")).hexdigest()
    return root / f"{name}-{key[:16]}.examples"


def is_there(name: str) -> bool:
    """Whether the examples of a task can be had without a network."""
    return name not in hub.SOURCES or _entry(name, None).exists()


def load_examples(name: str, cache: Path | None = None) -> Examples:
    """The examples of a task, from the cache where they are there (``cache``: a folder instead of the user's own).

    Raises RecipeError, one line, for an unknown name, for what cannot be read, and for a cache that cannot be written.
    """
    task = TASKS[_known(name)]
    file = _entry(name, cache)
    if not file.exists() or damage(file):
        data = json.dumps(_collect(name, task)).encode()
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            write_with_digest(file, data)
        except OSError as error:
            raise RecipeError(
                f"task {name!r}: {error.strerror or error} at {str(error.filename or file)!r}: the cache cannot be written "
                "(ISTHMUS_CACHE names another folder)"
            ) from error
    data = file.read_bytes()
    train, held_out = (tuple(Example(*row) for row in rows) for rows in json.loads(data))
    return Examples(train, held_out, hashlib.sha256(data).hexdigest())


def _collect(name: str, task: Task) -> tuple[list[Example], list[Example]]:
    """Examples to train on and held out. A prompt that comes twice stays once, to train on if it is anywhere."""
    train: dict[str, Example] = {}
    held_out: dict[str, Example] = {}
    for prompt, completion, domain, held in task.rows():
        (held_out if held else train).setdefault(prompt, Example(prompt, completion, domain))
    for prompt in train:
        held_out.pop(prompt, None)
    for part, found in (("to train on", train), ("for validation", held_out)):
        if not found:
            raise RecipeError(f"task {name!r} has no examples {part}: use another of {', '.join(TASKS)}")
    return _by_domain(train), _by_domain(held_out)


def _by_domain(found: dict[str, Example]) -> list[Example]:
    return sorted(found.values(), key=lambda example: example.domain)
