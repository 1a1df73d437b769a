"""Explorables: pages that explain one idea each, made by whatever is installed to draw them.

The lab names no package that draws: an explorable is found by its entry point, ``isthmus.explorables``, a name and a function
without arguments that makes it. `docs/write_your_own_explorable.md` makes one.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import entry_points
from pathlib import Path
from typing import Protocol

from lab.ground.errors import RecipeError

EXPLORABLES = "isthmus.explorables"


class Explorable(Protocol):
    """Shows itself as the last line of a cell."""

    title: str
    question: str

    def page(self) -> str:
        """As HTML that needs neither network nor server."""

    def save(self, path: str | Path) -> None:
        """Write that page."""

    def text(self) -> str:
        """What it says, for a terminal."""


def names() -> list[str]:
    """Those that are installed."""
    return sorted(entry_points(group=EXPLORABLES).names)


def explorable(name: str) -> Explorable:
    """The explorable of this name: as the last line of a cell it shows itself.

    Raises
    ------
    RecipeError
        where there is none of this name.
    """
    for point in entry_points(group=EXPLORABLES, name=name):
        made: Explorable = point.load()()
        return made
    known = ", ".join(names()) or "none is installed, so install isthmus again (pip install -e .)"
    raise RecipeError(f"there is no explorable {name[:40]!r}: {known}")


def write(some: Sequence[str], folder: str | Path) -> dict[str, Path]:
    """Write ``<name>.html`` of these explorables, or of all, into a folder; returns where each of them is.

    Raises
    ------
    RecipeError
        where there is none of some name; then nothing is written.
    """
    made = {name: explorable(name) for name in (some or names())}
    place = Path(folder)
    place.mkdir(parents=True, exist_ok=True)
    for name, each in made.items():
        each.save(place / f"{name}.html")
    return {name: place / f"{name}.html" for name in made}
