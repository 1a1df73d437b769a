"""Many runs at once: a table with their losses, made by whatever is installed to show them."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from lab.study.installed import installed

BOARDS = "isthmus.boards"  # entry points: called with a folder of runs


class Board(Protocol):
    """Shows itself as the last line of a cell."""

    def answer(self) -> str:
        """How many runs there are, and what the best of them came to, in words."""

    def save(self, path: str | Path) -> None:
        """Write a page that filters and sorts without a server."""

    def write_notebook(self, path: str | Path) -> None:
        """Write a notebook whose one cell shows the runs."""


def board(runs: str | Path = "runs") -> Board:
    """All runs in a folder, those of the shell and of notebooks together: the last line of a cell shows them.

    Raises
    ------
    RecipeError
        where that is no folder, or nothing that is installed shows runs.
    """
    made: Board = installed(BOARDS, "shows many runs")(runs)
    return made
