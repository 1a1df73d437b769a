"""Training from a notebook: one line that says how far it is, and the columns at the end."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from IPython.display import display

from lab.events import Evaluated, Event, Sent, Started, Stepped
from lab.recipes.recipe import Recipe
from lab.runs.columns import Columns
from lab.runs.folder import Busy
from lab.runs.plan import human
from lab.runs.trainer import train
from lab.study.reproduce import NOTE


class _Progress:
    """Text that shows itself and is changed twice a second at most; one line per finished run, and one for the present."""

    def __init__(self, names: list[str]):
        self.width, self.num = max(map(len, names)), len(names)
        self.done: list[str] = []
        self.shown = 0.0
        self.handle: Any = display({"text/plain": "starting …"}, raw=True, display_id=True)

    def begin(self, name: str, recipe: Recipe) -> None:
        self.name, self.recipe, self.began = name, recipe, time.monotonic()
        self.sent, self.tokens, self.loss = 0, 0, float("nan")

    def __call__(self, event: Event) -> None:
        match event:
            case Started():
                self.tokens = event.tokens_per_step
            case Sent():
                self.sent += event.bytes_all
            case Evaluated():
                self.loss = event.loss
            case Stepped() if time.monotonic() - self.shown > 0.5:
                spent = time.monotonic() - self.began
                self._show(
                    f"{self.name:<{self.width}}  {len(self.done) + 1} of {self.num}: step {event.step}/{self.recipe.steps}, "
                    f"{event.words}, {self.tokens * event.step / max(spent, 1e-9):,.0f} tokens/s, "
                    f"{human(self.sent)} sent, {spent / event.step * (self.recipe.steps - event.step):.0f} s left"
                )

    def end(self, run: Columns) -> None:
        self.done.append(
            f"{self.name:<{self.width}}  {self.recipe.steps} steps, validation {self.loss:.4f}, "
            f"{human(self.sent)} sent by all, {sum(run.seconds):.0f} s"
        )
        self._show()

    def _show(self, *present: str) -> None:
        if NOTE in os.environ:  # a batch run wants to know as well
            Path(os.environ[NOTE]).write_text([*self.done, *present][-1], encoding="utf-8")
        self.handle.update({"text/plain": "\n".join([*self.done, *present])}, raw=True)
        self.shown = time.monotonic()


def progress(name: str, recipe: Recipe) -> Callable[[Event], None]:
    """A line under the cell that says how far a run is; give it every event of the run."""
    line = _Progress([name])
    line.begin(name, recipe)
    return line


def train_all(recipes: Mapping[str, Recipe], runs: str | Path = "runs") -> dict[str, Columns]:
    """Train recipes one after another; each is written to ``runs/<id>/`` and read from there if it is finished already.

    A run that another process is training (a notebook beside this one) is waited for. Returns the columns of each under its
    label.
    """
    line, out = _Progress(list(recipes)), {}
    for name, recipe in recipes.items():
        line.begin(name, recipe)
        out[name] = _when_free(recipe, Path(runs) / recipe.id, line)
        line.end(out[name])
    return out


def _when_free(recipe: Recipe, folder: Path, line: Callable[[Event], None], wait: float = 1.0) -> Columns:
    while True:
        try:
            return train(recipe, folder, each=line)
        except Busy:
            time.sleep(wait)
