"""Finished runs in small form: what a notebook's firm profile rests on, kept with the repository.

::

    notebooks/firm/settings.toml           what the firm profile gives each notebook (`lab.study.profiles`)
    notebooks/firm/26_scale/<id>.jsonl.xz  the events of one finished run, or of one record (`lab.runs.records`)

A stored run has all its events, in their order. A step's training loss is the mean over its workers, for each of them; it and learning rates,
seconds of local steps, how far workers drift apart and the edges that a policy tries as it learns are rounded. Of the latents that looks at
pseudo-labels draw, the first and the last are kept. The rest is as it was: what was validated and what was sent to the last digit. The file is
named after the recipe, or the record, and xz keeps a checksum of it. Its first line says what was to be done (of a run, the event that it began
with), its second has all events after that as columns (`packed`).
"""

from __future__ import annotations

import contextlib
import json
import lzma
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import accumulate, chain, groupby, pairwise, repeat
from pathlib import Path
from typing import Any

import pydantic_core

from lab.events import Drifted, Ended, Event, Orchestrated, PseudoLabelled, Started, Stepped, from_rows, read, to_bytes
from lab.ground.errors import Damaged, RecipeError
from lab.ground.files import shown, write_atomically
from lab.recipes.recipe import Recipe
from lab.runs.folder import UNREADABLE

DIGITS = 4  # after the point, of a training loss (nats) and of a probability; significant ones of a learning rate
MEASURED = 2  # significant digits of the seconds of a local step, and of how far each worker drifts
ENDING = ".jsonl.xz"


class Stored:
    """A folder of finished runs in small form, perhaps not there yet."""

    def __init__(self, folder: str | Path):
        """Raises RecipeError for a file of that name."""
        self.folder = store(folder)

    def file(self, recipe: Recipe) -> Path:
        return self.folder / f"{recipe.id}{ENDING}"

    def __len__(self) -> int:
        return sum(1 for _ in self.folder.glob(f"*{ENDING}"))

    def __contains__(self, recipe: Recipe) -> bool:
        return self.file(recipe).exists()

    def events(self, recipe: Recipe) -> list[Event]:
        """Of a run that is there. Raises Damaged, also where the file is that of another recipe."""
        found = events_in(file := self.file(recipe))
        recorded = found[0].recipe if isinstance(found[0], Started) else {}
        if recorded != recipe.to_dict() and Recipe.recorded(recorded).id != recipe.id:
            raise Damaged(f"{shown(file)} is a run of another recipe: remove it, and it is made anew")
        return found

    def add(self, recipe: Recipe, events: Iterable[Event]) -> None:
        """Store a run that has come to its end, or has failed at it; one that was stopped is left out."""
        small = rounded(list(events))
        if small and isinstance(small[-1], Ended) and small[-1].status in ("done", "failed"):
            write_small(self.file(recipe), to_bytes(small[0]), small[1:])


def store(folder: str | Path) -> Path:
    """A folder for small forms, perhaps not there yet. Raises RecipeError for what is none, before anything is trained."""
    if (path := Path(folder)).exists() and not path.is_dir():
        raise RecipeError(f"stored = {shown(path)!r} is no folder: use one, or the name of one that is to be made")
    return path


def write_small(file: Path, first: bytes, events: Sequence[Event]) -> None:
    """One file: a line that says what was to be done, and what happened."""
    file.parent.mkdir(parents=True, exist_ok=True)
    columns = json.dumps(packed([json.loads(to_bytes(e)) for e in events]), separators=(",", ":")).encode()
    write_atomically(file, lzma.compress(first + b"\n" + columns, preset=9))


def read_small(file: Path) -> tuple[bytes, list[Event]]:
    """Both of `write_small`. Raises Damaged."""
    with _reading(file):
        first, *more = lzma.decompress(file.read_bytes()).splitlines()
        if len(more) != 1:
            raise ValueError("it does not have two lines")
        return first, from_rows(unpacked(pydantic_core.from_json(more[0])), more[0])


def events_in(file: Path) -> list[Event]:
    """The events of a stored run. Raises Damaged."""
    first, rest = read_small(file)
    with _reading(file):
        found = read(first) + rest
        if not isinstance(found[0], Started) or not isinstance(found[-1], Ended):
            raise ValueError("it is not a whole run")
        return found


def first_line(file: Path) -> bytes:
    """What was to be done; no more of it is read. Raises Damaged."""
    with _reading(file), lzma.open(file) as lines:
        return lines.readline()


def started_in(file: Path) -> Started:
    """How a stored run began; no more of it is read. Raises Damaged."""
    line = first_line(file)
    with _reading(file):
        (first,) = read(line)
        if not isinstance(first, Started):
            raise ValueError("it does not begin with its recipe")
        return first


@contextlib.contextmanager
def _reading(file: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, lzma.LZMAError, EOFError, *UNREADABLE) as error:
        raise Damaged(
            f"{shown(file)} cannot be read ({error or type(error).__name__}): remove it, and it is made anew"
        ) from None


def rounded(events: list[Event]) -> list[Event]:
    """As they are stored: what is only drawn, or measured on this machine, in fewer digits."""
    drawn = [k for k, event in enumerate(events) if isinstance(event, PseudoLabelled) and event.points]
    return [
        replace(event, points=[], anchors=[])
        if isinstance(event, PseudoLabelled) and k in drawn[1:-1]
        else _rounded(event)
        for k, event in enumerate(events)
    ]


def _rounded(event: Event) -> Event:
    match event:
        case Stepped():
            losses = [None if x is None else round(event.loss, DIGITS) for x in event.loss_W]
            return replace(
                event, loss_W=losses, seconds=_significant(event.seconds, MEASURED), lr=_significant(event.lr)
            )
        case Drifted():
            return replace(
                event,
                to_mean_W=[None if x is None else _significant(x, MEASURED) for x in event.to_mean_W],
                to_shared_W=[None if x is None else _significant(x, MEASURED) for x in event.to_shared_W],
            )
        case Orchestrated(learning=True):
            return replace(event, probability_RR=[[round(p, DIGITS) for p in row] for row in event.probability_RR])
        case _:
            return event


def _significant(x: float, digits: int = DIGITS) -> float:
    return float(f"{x:.{digits}g}")


# --- rows as columns ---------------------------------------------------------------------------------------------------


def packed(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """JSON rows as columns, which xz makes a third smaller than lines.

    ``groups`` has, for each set of keys, the column of each key; ``order`` the group of each row, in runs of ``[group, how many]``. A column is a list of
    values, ``{"runs": [[value, how many], …]}``, or, of whole numbers, ``{"steps": [[difference to the one before, how many], …]}``: whatever is
    shortest. `unpacked` gives the same rows with their keys in the same order.
    """
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row.get("kind"), *row), []).append(row)
    numbers = {group: k for k, group in enumerate(groups)}
    order = [numbers[row.get("kind"), *row] for row in rows]
    columns = [{key: _column([row[key] for row in of]) for key in of[0]} for of in groups.values()]
    return {"order": _runs(order), "groups": columns}


def unpacked(columns: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows that `packed` was given."""
    many = [0] * len(columns["groups"])
    for group, times in columns["order"]:
        many[group] += times
    rows = []
    for group, times in zip(columns["groups"], many, strict=True):
        values = [_values(column) for column in group.values()]
        if any(len(x) != times for x in values):
            raise ValueError("its columns are not equally long")
        rows.append(iter([dict(zip(group, row, strict=True)) for row in zip(*values, strict=True)]))
    return [next(rows[group]) for group, times in columns["order"] for _ in range(times)]


def _column(values: list[Any]) -> list[Any] | dict[str, Any]:
    ways: list[Any] = [values, {"runs": _runs(values)}]
    if all(type(x) is int for x in values):
        ways.append({"steps": _runs([b - a for a, b in pairwise([0, *values])])})
    shortest: list[Any] | dict[str, Any] = min(ways, key=lambda way: len(json.dumps(way)))
    return shortest


def _values(column: list[Any] | dict[str, Any]) -> list[Any]:
    if isinstance(column, list):
        return column
    ((way, runs),) = column.items()
    values = chain.from_iterable(repeat(value, times) for value, times in runs)
    return [*values] if way == "runs" else [*accumulate(values)]


def _runs(values: Iterable[Any]) -> list[list[Any]]:
    """Of equal values: as JSON writes them, so that 1, 1.0 and true are three."""
    return [[json.loads(text), len([*same])] for text, same in groupby(values, json.dumps)]
