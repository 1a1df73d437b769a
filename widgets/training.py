"""Training from a notebook: lines that say how far it is, in front of a person a picture that moves, and the columns at the end."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from IPython.core.getipython import get_ipython
from IPython.display import clear_output, display

from lab.costs.network import duration
from lab.events import Ended, Event, Stepped
from lab.ground.errors import Diverged
from lab.ground.files import located
from lab.recipes.recipe import Recipe
from lab.runs.columns import Columns
from lab.runs.folder import Busy, RunFolder, find_run
from lab.runs.progress import Progress, report
from lab.runs.stored import Stored
from lab.runs.trainer import train
from lab.study.tuning import Tuned, tune
from widgets.training_losses import Losses
from widgets.view import surroundings

LINES = 16  # of finished runs that are shown
MOST = 8  # runs in the picture: of more the last ones


class _Lines:
    """Text that shows itself and is changed twice a second at most; one line per finished run (of many the last), and one for the present.

    Many runs of which none is to be trained are one line: what each came to is in what is shown of them.

    ``to_come``: the local steps of each run, 0 where it is finished already. ``secret``: how far it is, and nothing of what comes of it.
    """

    def __init__(self, to_come: Mapping[str, int], secret: bool = False):
        self.width, self.to_come, self.secret = max(map(len, to_come)), dict(to_come), secret
        self.num, self.known = len(to_come), len(to_come) > LINES and not any(to_come.values())
        self.done: list[str] = []
        self.shown = 0.0
        first = next(iter(to_come))
        # In a plain script nothing can be changed that was said: finished runs are printed there.
        self.handle: Any = None
        if get_ipython() is not None:  # type: ignore[no-untyped-call]
            self.handle = display({"text/plain": f"{first:<{self.width}}  starting …"}, raw=True, display_id=True)

    def begin(self, name: str, recipe: Recipe) -> None:
        self.name, self.progress = name, Progress(recipe.steps)
        self.to_come[name] = 0

    def __call__(self, event: Event) -> None:
        self.progress(event)
        if isinstance(event, Stepped) and time.monotonic() - self.shown > 0.5:
            so_far = self.progress.pace() if self.secret else self.progress.text()
            self._show(f"{self.name:<{self.width}}  {len(self.done) + 1} of {self.num}{self._all_left()}: {so_far}")

    def end(self, failed: str = "") -> None:
        so_far = failed or (self.progress.pace() if self.secret else self.progress.summary())
        self.done.append(f"{self.name:<{self.width}}  {so_far}")
        self._show()

    def _all_left(self) -> str:
        """How long this run and those after it will take, if their steps take as long as its last ones."""
        left, steps = self.progress.seconds_left, sum(self.to_come.values())
        if not left or not steps:
            return ""
        return f", {duration(round(left * (1 + steps / (self.progress.steps - self.progress.step))))} for all"

    def _show(self, *present: str) -> None:
        report([*self.done, *present][-1])
        before = [f"… and {len(self.done) - LINES} runs before"] if len(self.done) > LINES + 1 else []
        shown = [*before, *self.done[-LINES if before else 0 :], *present]
        if self.known:
            shown = [f"{len(self.done):,} of {self.num:,} runs, all of them finished before, are read"]
        if self.handle is None:
            if not present and not self.known:
                print(shown[-1])
        else:
            self.handle.update({"text/plain": "\n".join(shown)}, raw=True)
        self.shown = time.monotonic()


class _Picture:
    """The losses of runs that are trained one after another, in front of a person; nothing where all are finished or nobody looks."""

    def __init__(self, to_come: Mapping[str, int]):
        self.view = Losses() if surroundings() == "live" and any(to_come.values()) else None
        self.names: list[str] = []
        if self.view is not None:
            if len(to_come) > MOST:
                self.view.heading = f"The last {MOST} of {len(to_come)} runs"
            for name in [*to_come][:MOST]:
                self.view.lane(name)
            self.view.show()

    def begin(self, name: str) -> Callable[[Event], None]:
        if self.view is None:
            return lambda event: None
        self.names.append(name)
        if len(self.names) > MOST:
            self.view.leave(self.names[-1 - MOST])
        return self.view.lane(name)

    def rest(self) -> None:
        if self.view is not None:
            self.view.rest()


def progress(name: str, recipe: Recipe) -> Callable[[Event], None]:
    """A line under the cell that says how far a run is; give it every event of the run."""
    lines = _Lines({name: recipe.steps})
    lines.begin(name, recipe)
    return lines


def train_all(
    recipes: Mapping[str, Recipe],
    runs: str | Path = "runs",
    stored: str | Path | None = None,
    secret: bool = False,
    diverging: bool = False,
) -> dict[str, Columns]:
    """Train recipes one after another; each is written to ``runs/<id>/`` and read from there if it is finished already.

    In front of a person their losses are drawn meanwhile. A run that another process is training (a notebook beside this one) is
    waited for. ``stored``: a folder of finished runs in small form (`lab.runs.stored`), which are read from there; what is trained is
    added. ``secret``: say how far they are and show nothing of what comes of it, where a question asks for that. ``diverging``: a run that diverges
    has the columns of what it came to, and the others go on. Returns the columns of each under its label.

    Raises
    ------
    Diverged
        where a run does, unless that was asked for.
    """
    if not recipes:
        return {}
    folders = {name: Path(runs) / recipe.id for name, recipe in recipes.items()}
    small = Stored(stored) if stored else None
    known = {n for n, recipe in recipes.items() if (small is not None and recipe in small) or _is_done(folders[n])}
    to_come = {name: 0 if name in known else recipe.steps for name, recipe in recipes.items()}
    lines, picture = _Lines(to_come, secret), _Picture({} if secret else to_come)
    out = dict[str, Columns]()
    try:
        for name, recipe in recipes.items():
            lines.begin(name, recipe)
            out[name], failed = _one(recipe, folders[name], small, lines, picture.begin(name))
            lines.end(f"diverged: {failed}" if failed else "")
            if failed and not diverging:
                raise Diverged(failed)
    finally:
        picture.rest()
    return out


def tune_rate(
    label: str,
    recipe: Callable[[float, int], Recipe],
    start: float,
    seeds: Sequence[int],
    loss: Callable[[Columns], float],
    most: int,
    runs: str | Path = "runs",
    stored: str | Path | None = None,
) -> Tuned:
    """The best rate of a method: `lab.study.tuning.tune` over runs of ``recipe(rate, seed)``, whose ``loss`` is taken on average over ``seeds``.

    ``most``: how many rates are tried; 1 takes ``start`` as it is, and nothing is trained. Where a run diverged or has no finite loss, its rate is
    the worst.
    Each rate's lines take the place of those of the one before.
    """
    if not seeds:
        raise ValueError("seeds: a rate is chosen by runs with one seed at least")

    def at(rate: float) -> float:
        if get_ipython() is not None:  # type: ignore[no-untyped-call]
            clear_output(wait=True)
        tried = {f"{label}, rate {rate:.3g}, seed {s}": recipe(rate, s) for s in seeds}
        try:
            return fmean(map(loss, train_all(tried, runs, stored).values()))
        except Diverged:
            return math.inf

    return tune(at, start, most=most)


def events_of(recipe: Recipe, runs: str | Path = "runs", stored: str | Path | None = None) -> list[Event]:
    """What a finished run has recorded, wherever `train_all` has found it or put it: for a view's ``replay``."""
    small = Stored(stored) if stored else None
    return small.events(recipe) if small is not None and recipe in small else [*find_run(recipe.id, runs).events()]


def _one(
    recipe: Recipe, folder: Path, small: Stored | None, lines: _Lines, draw: Callable[[Event], None]
) -> tuple[Columns, str]:
    """One run, as it is stored, or trained now; and why it diverged, if it did."""
    if small is not None and recipe in small:
        events = small.events(recipe)
        for event in events:
            lines.progress(event)
            draw(event)
        last = events[-1]
        return Columns.of(events), last.message if isinstance(last, Ended) and last.status == "failed" else ""

    def each(event: Event) -> None:
        lines(event)
        draw(event)

    failed = ""
    try:
        columns = _when_free(recipe, folder, each)
    except Diverged as error:
        failed, columns = str(error), Columns.of(RunFolder(folder).events())
    if small is not None:  # also one that diverged: so it will the next time
        small.add(recipe, RunFolder(folder).events())
    return columns, failed


def _is_done(folder: Path) -> bool:
    ended = RunFolder(located(folder)).ended()
    return ended is not None and ended.status == "done"


def _when_free(recipe: Recipe, folder: Path, each: Callable[[Event], None], wait: float = 1.0) -> Columns:
    while True:
        try:
            return train(recipe, folder, each=each)
        except Busy:
            time.sleep(wait)
