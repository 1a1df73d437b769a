"""Finished runs in small form: what a notebook's firm profile rests on, kept with the repository.

::

    notebooks/firm/settings.toml           what the firm profile gives each notebook (`lab.study.profiles`)
    notebooks/firm/26_scale/<id>.jsonl.xz  the events of one finished run

A stored run has all its events, in their order. A step's training loss is the mean over its workers, for each of them; it and learning rates,
seconds of local steps and how far workers drift apart are rounded. Of the latents that looks at pseudo-labels draw, the first and the last are
kept. The rest is as it was: what was validated and what was sent to the last digit. The file is named after the recipe, and xz keeps a checksum
of it.
"""

from __future__ import annotations

import contextlib
import lzma
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from lab.events import Drifted, Ended, Event, PseudoLabelled, Started, Stepped, read, to_bytes
from lab.ground.errors import Damaged
from lab.ground.files import shown, write_atomically
from lab.recipes.recipe import Recipe
from lab.runs.folder import UNREADABLE

DIGITS = 4  # after the point, of a training loss (nats); significant ones of a learning rate and of a drift
SECONDS = 2  # significant digits of the seconds of a local step
ENDING = ".jsonl.xz"


class Stored:
    """A folder of finished runs in small form, perhaps not there yet."""

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)

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
            raise Damaged(f"{shown(file)} is a run of another recipe: remove it, and the run is trained anew")
        return found

    def add(self, recipe: Recipe, events: Iterable[Event]) -> None:
        """Store a run that has come to its end, or has failed at it; one that was stopped is left out."""
        small = _small(list(events))
        if small and isinstance(small[-1], Ended) and small[-1].status in ("done", "failed"):
            self.folder.mkdir(parents=True, exist_ok=True)
            lines = b"".join(to_bytes(event) + b"\n" for event in small)
            write_atomically(self.file(recipe), lzma.compress(lines, preset=6))


def events_in(file: Path) -> list[Event]:
    """The events of a stored run. Raises Damaged."""
    with _reading(file):
        found = read(lzma.decompress(file.read_bytes()))
        if not isinstance(found[0], Started) or not isinstance(found[-1], Ended):
            raise ValueError("it is not a whole run")
        return found


def started_in(file: Path) -> Started:
    """How a stored run began; no more of it is read. Raises Damaged."""
    with _reading(file), lzma.open(file) as lines:
        (first,) = read(lines.readline())
        if not isinstance(first, Started):
            raise ValueError("it does not begin with its recipe")
        return first


@contextlib.contextmanager
def _reading(file: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, lzma.LZMAError, EOFError, *UNREADABLE) as error:
        raise Damaged(
            f"{shown(file)} cannot be read ({error or type(error).__name__}): remove it, and the run is trained anew"
        ) from None


def _small(events: list[Event]) -> list[Event]:
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
                event, loss_W=losses, seconds=_significant(event.seconds, SECONDS), lr=_significant(event.lr)
            )
        case Drifted():
            return replace(
                event,
                to_mean_W=[None if x is None else _significant(x) for x in event.to_mean_W],
                to_shared_W=[None if x is None else _significant(x) for x in event.to_shared_W],
            )
        case _:
            return event


def _significant(x: float, digits: int = DIGITS) -> float:
    return float(f"{x:.{digits}g}")
