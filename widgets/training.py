"""Training from a notebook: one line that says how far it is, and the columns at the end."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from IPython.display import display

from lab.events import Event, Stepped
from lab.recipes.recipe import Recipe
from lab.runs.columns import Columns
from lab.runs.folder import Busy, RunFolder
from lab.runs.progress import Progress, report
from lab.runs.trainer import train
from lab.study.stored import Stored

LINES = 16  # of finished runs that are shown


class _Lines:
    """Text that shows itself and is changed twice a second at most; one line per finished run (of many the last), and one for the present."""

    def __init__(self, names: list[str]):
        self.width, self.num = max(map(len, names)), len(names)
        self.done: list[str] = []
        self.shown = 0.0
        self.handle: Any = display({"text/plain": "starting …"}, raw=True, display_id=True)

    def begin(self, name: str, recipe: Recipe) -> None:
        self.name, self.progress = name, Progress(recipe.steps)

    def __call__(self, event: Event) -> None:
        self.progress(event)
        if isinstance(event, Stepped) and time.monotonic() - self.shown > 0.5:
            self._show(f"{self.name:<{self.width}}  {len(self.done) + 1} of {self.num}: {self.progress.text()}")

    def end(self) -> None:
        self.done.append(f"{self.name:<{self.width}}  {self.progress.summary()}")
        self._show()

    def _show(self, *present: str) -> None:
        report([*self.done, *present][-1])
        before = [f"… and {len(self.done) - LINES} runs before"] if len(self.done) > LINES + 1 else []
        shown = [*before, *self.done[-LINES if before else 0 :], *present]
        self.handle.update({"text/plain": "\n".join(shown)}, raw=True)
        self.shown = time.monotonic()


def progress(name: str, recipe: Recipe) -> Callable[[Event], None]:
    """A line under the cell that says how far a run is; give it every event of the run."""
    lines = _Lines([name])
    lines.begin(name, recipe)
    return lines


def train_all(
    recipes: Mapping[str, Recipe], runs: str | Path = "runs", stored: str | Path | None = None
) -> dict[str, Columns]:
    """Train recipes one after another; each is written to ``runs/<id>/`` and read from there if it is finished already.

    A run that another process is training (a notebook beside this one) is waited for. ``stored``: a folder of finished runs in small form
    (`lab.study.stored`), which are read from there; what is trained is added. Returns the columns of each under its label.
    """
    lines, out = _Lines(list(recipes)), {}
    small = Stored(stored) if stored else None
    for name, recipe in recipes.items():
        lines.begin(name, recipe)
        folder = Path(runs) / recipe.id
        if small is not None and recipe in small:
            out[name] = _as_stored(small.events(recipe), lines)
        else:
            out[name] = _when_free(recipe, folder, lines)
            if small is not None:
                small.add(recipe, RunFolder(folder).events())
        lines.end()
    return out


def _as_stored(events: list[Event], lines: _Lines) -> Columns:
    for event in events:
        lines.progress(event)
    return Columns.of(events)


def _when_free(recipe: Recipe, folder: Path, each: Callable[[Event], None], wait: float = 1.0) -> Columns:
    while True:
        try:
            return train(recipe, folder, each=each)
        except Busy:
            time.sleep(wait)
