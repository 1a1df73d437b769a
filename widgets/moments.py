"""What happened when in a run: its syncs, the knobs that were turned, the workers that were down, for one time axis of all its pictures."""

from __future__ import annotations

import threading
from dataclasses import replace
from typing import Any

from lab.events import Event, KnobChanged, Sent, Started, Stepped, WorkersChanged
from lab.recipes.recipe import Recipe
from lab.runs.growing import Growing
from lab.runs.knobs import at_start, named_network
from widgets.pictures import Lines, Picture
from widgets.time_axis import STEPS, TimeAxis
from widgets.timelines import Calendar


class Moments:
    """A fold of the events of one run, or of several that share an axis, into a `TimeAxis`. It is fed before the views that use it."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.runs: dict[str, _Run] = {}

    def lane(self, run: str) -> _Lane:
        """The way in for one of several runs."""
        return _Lane(self, run)

    def add(self, *events: Event, run: str = "") -> None:
        with self.lock:
            for event in events:
                if isinstance(event, Started) or run not in self.runs:
                    self.runs[run] = _Run()
                self.runs[run].fold(event)

    def leave(self, run: str) -> None:
        """Take a run off the axis."""
        with self.lock:
            self.runs.pop(run, None)

    def axis(self, compact: bool = False) -> TimeAxis | None:
        """None before anything has begun."""
        with self.lock:
            runs = {name: run for name, run in self.runs.items() if run.steps}
            if not runs:
                return None
            knobs = [(step, _of(name, runs, words)) for name, run in runs.items() for step, words in run.knobs]
            outages = [
                (first, last or run.now, _of(name, runs, words))
                for name, run in runs.items()
                for first, last, words in run.outages
                if (last or run.now) >= first
            ]
            syncs = (
                max((run.syncs for run in runs.values()), key=len) if len(runs) > 1 else next(iter(runs.values())).syncs
            )
            return TimeAxis(max(run.steps for run in runs.values()), syncs, sorted(knobs), sorted(outages), compact)

    def over(self, picture: Picture, compact: bool) -> Picture:
        """The same picture on this axis; as it is where it is not over steps."""
        axis = self.axis(compact)
        if axis is not None and isinstance(picture, Lines | Calendar) and picture.x in STEPS and not _log(picture):
            return replace(picture, time=axis)
        return picture


class _Lane:
    def __init__(self, moments: Moments, run: str):
        self.moments, self.run = moments, run

    def add(self, *events: Event) -> None:
        self.moments.add(*events, run=self.run)


class _Run:
    """The moments of one run."""

    def __init__(self) -> None:
        self.recipe: Recipe | None = None
        self.steps, self.now, self.num_workers = 0, 0, 0
        self.syncs = Growing()
        self.knobs: list[tuple[int, str]] = []
        self.outages: list[tuple[int, int, str]] = []  # the last step is 0 while it goes on
        self._down: list[int] = []
        self._values: dict[str, Any] = {}
        self._by_turns = False  # clients take turns: who is not there is not down

    def fold(self, event: Event) -> None:
        match event:
            case Started():
                self.recipe = recipe = Recipe.recorded(event.recipe)
                self.steps, self.num_workers = recipe.steps, recipe.num_workers
                self._by_turns = recipe.scenario.sample is not None or recipe.clients.take_turns(recipe.num_workers)
            case Stepped():
                self.now = event.step
            case Sent() if event.op != "broadcast":
                if not len(self.syncs) or self.syncs[-1] != event.step:
                    self.syncs.append(event.step)
            case KnobChanged():
                self._turned(event)
            case WorkersChanged() if not self._by_turns:
                self._changed(event.step, [w for w in range(self.num_workers) if w not in {*event.up}])

    def _turned(self, event: KnobChanged) -> None:
        if self.recipe is None or event.knob not in ("lr", "sync_every", "network"):
            return  # who is down has a band, and a pause takes no step
        before = self._values.get(event.knob, at_start(self.recipe, event.knob))
        self._values[event.knob] = event.value
        if event.value != before:
            self.knobs.append((event.step, _says(event.knob, event.value, before)))

    def _changed(self, step: int, down: list[int]) -> None:
        if down == self._down:
            return
        if self._down and self.outages and not self.outages[-1][1]:
            first, _, words = self.outages[-1]
            self.outages[-1] = (first, step - 1, words)
        self._down = down
        if down:
            self.outages.append((step, 0, f"w{', w'.join(map(str, down[:4]))}{' …' if len(down) > 4 else ''} down"))


def _says(knob: str, value: Any, before: Any) -> str:
    """A knob in as few letters as can be."""
    match knob:
        case "lr":
            return f"lr × {value:.3g}"
        case "sync_every" if isinstance(value, dict):
            was = before if isinstance(before, dict) else {}
            return ", ".join(f"{state} every {n}" for state, n in value.items() if n != was.get(state))
        case "sync_every":
            return f"sync every {value}"
    return named_network(value) or "another link"


def _of(name: str, runs: dict[str, _Run], words: str) -> str:
    return f"{name}: {words}" if len(runs) > 1 else words


def _log(picture: Picture) -> bool:
    return isinstance(picture, Lines) and picture.log_x
