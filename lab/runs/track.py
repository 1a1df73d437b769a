"""A run's events for trackers of experiments (`lab.runs.trackers`): what they keep, and that they never stop or slow a run.

=====================  ===============================================================================================
name                   value
=====================  ===============================================================================================
``loss/mean``          of the workers that are up, as the task counts it (text: nats per token)
``loss/worker_2``      of each worker, of at most `MOST_WORKERS`
``validation/loss``    of the agreed model, and ``validation/accuracy`` or whatever scores the task has
``learning_rate``      of the inner optimizer, with schedule and knob; ``learning_rate/factor`` where the method has none
``drift/to_mean``      root mean square over the workers that are up, ``drift/to_shared`` and ``drift/after_average`` likewise
``sent_bytes/total``   payload of all workers since the start, and ``sent_bytes/params`` and so on by state; where something is sent
``alignment/…``        and other metrics that the recipe asks for; lists by number
``workers/up``         how many took part
``seconds/step``       wall clock of the local step
=====================  ===============================================================================================

Warnings and knobs are lines of text, the recipe is the configuration. What is no finite number is left out.

One thread for each tracker calls it. The run's own thread folds events into rows, some microseconds a step, and leaves them for
it. While the run goes on a tracker gets `SHARE` of one core and `ROWS_PER_SECOND`; the rest comes when the run is over. A row that waits
too long is left out, which is said at the end, and rows with an evaluation or a measurement stay. A tracker that raises, or that does not
come back within `PATIENCE_SECONDS`, is left alone from then on: a `Warned` in the stream of events (and not in the run's folder) says so.
"""

from __future__ import annotations

import math
import os
import re
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lab.events import (
    Adapted,
    ClientsScored,
    Clipped,
    Drifted,
    Ended,
    Evaluated,
    Event,
    KnobChanged,
    Measured,
    Sent,
    Started,
    Stepped,
    Warned,
)
from lab.ground.errors import plain
from lab.recipes.recipe import Recipe
from lab.runs.folder import RunFolder
from lab.runs.table import measured, of_adapted, of_updates, over_clients, rms
from lab.runs.trackers.tracker import Tracker, tracker

DEFAULT = "ISTHMUS_TRACK"  # environment variable: trackers, separated by commas, of runs that name none
MOST_WORKERS = 64  # whose losses are kept one by one
MOST_ROWS = 4096  # that wait for a tracker; of more every second one is left out
SHARE = 0.01  # of one core for a tracker, while the run goes on
ROWS_PER_SECOND = 20  # likewise: some have processes of their own, whose time the share does not see
PAUSE_SECONDS = 0.5  # between two looks at whether there is something to do
PATIENCE_SECONDS = 30.0  # with a call that does not come back

Track = str | Tracker | Sequence[str | Tracker]


@dataclass
class Row:
    """What a tracker is given of one local step."""

    step: int
    values: dict[str, float] = field(default_factory=dict)
    notes: list[tuple[int, str, bool]] = field(default_factory=list)  # step, text, whether it is a warning; said before
    rare: bool = False  # has what there is not in every step


class Fold:
    """Events in, rows out: each when an event of a later step says that it is complete."""

    def __init__(self) -> None:
        self.recipe: Mapping[str, Any] = {}
        self._lr: float | None = None
        self._row: Row | None = None
        self._bytes: dict[str, int] = {}
        self._notes: list[tuple[int, str, bool]] = []

    def add(self, event: Event) -> Iterator[Row]:
        """Take in an event; yield the row that is complete by now, if there is one."""
        match event:
            case Started():
                self.recipe = event.recipe
                self._lr = _inner_lr(event.recipe)
            case Stepped():
                yield from self._new_row(event.step)
                self._put(event.step, self._of_step(event))
            case Sent():
                self._bytes[event.state] = self._bytes.get(event.state, 0) + event.bytes_all
                self._put(event.step, {f"sent_bytes/{event.state}": self._bytes[event.state]})
                self._put(event.step, {"sent_bytes/total": sum(self._bytes.values())})
            case Evaluated():
                scores = {f"validation/{name}": value for name, value in event.scores.items()}
                of_it = {"validation/loss": event.loss, "drift/after_average": event.drift}
                self._put(event.step, scores | of_it, rare=True)
            case Drifted():
                both = {"drift/to_mean": event.to_mean_W, "drift/to_shared": event.to_shared_W}
                self._put(event.step, {name: rms(x) for name, x in both.items()}, rare=True)
            case ClientsScored():
                of_all = over_clients(event)
                self._put(event.step, {name.replace("_", "/", 1): x for name, x in of_all}, rare=True)
            case Clipped():
                of_all = of_updates(event)
                self._put(event.step, {name.replace("_", "/", 1): x for name, x in of_all}, rare=True)
            case Adapted():
                self._put(event.step, {n.replace("_", "/", 1): x for n, x in of_adapted(event)}, rare=True)
            case Measured():
                self._put(event.step, {_plain(name): x for name, x in measured(event)}, rare=True)
            case Warned():
                self._notes.append((event.step, event.message, True))
            case KnobChanged():
                self._notes.append((event.step, f"from step {event.step} on: {event.knob} = {event.value}", False))
            case Ended():
                if event.message:
                    self._notes.append((event.step, f"{event.status}: {event.message}", True))
                yield from self._new_row(event.step + 1)
                if self._notes:
                    yield Row(event.step, notes=self._notes)

    def _new_row(self, step: int) -> Iterator[Row]:
        if self._row is not None:
            ready = self._row
            ready.notes = [note for note in self._notes if note[0] <= ready.step]
            self._notes = [note for note in self._notes if note[0] > ready.step]
            yield ready
        self._row = Row(step)

    def _put(self, step: int, values: Mapping[str, float | None], rare: bool = False) -> None:
        if self._row is None:
            self._row = Row(step)
        self._row.rare |= rare
        self._row.values |= {name: x for name, x in values.items() if x is not None and math.isfinite(x)}

    def _of_step(self, event: Stepped) -> dict[str, float | None]:
        values: dict[str, float | None] = {
            "loss/mean": event.loss,
            "workers/up": event.num_up,
            "seconds/step": event.seconds,
        }
        if self._lr is None:
            values["learning_rate/factor"] = event.lr
        else:
            values["learning_rate"] = event.lr * self._lr
        if 1 < len(event.loss_W) <= MOST_WORKERS:
            values |= {f"loss/worker_{w}": x for w, x in enumerate(event.loss_W)}
        return values


def _inner_lr(recipe: Mapping[str, Any]) -> float | None:
    """The learning rate of the inner optimizer, where the recipe's method has one that is called so."""
    inner = recipe["method"].get("inner") if isinstance(recipe["method"], Mapping) else None
    lr = inner.get("lr") if isinstance(inner, Mapping) else None
    return float(lr) if isinstance(lr, int | float) else None


def _plain(name: str) -> str:
    """A name that every tracker takes."""
    return re.sub(r"[^\w./ -]", "_", name)


class Sink:
    """One tracker and one run. `add` never waits for the tracker; `close` does for a while.

    Parameters
    ----------
    name
        what warnings call the tracker.
    run
        the name of the run there.
    resume
        whether to go on with what the tracker has of this run.
    """

    def __init__(self, tracker: Tracker, name: str, run: str, resume: bool):
        self.tracker, self.name, self.run, self.resume = tracker, name, run, resume
        self.problems: deque[str] = deque()  # one line each, for the reader of the run
        self._fold = Fold()
        self._rows: deque[Row] = deque()
        self._every, self._left_out = 1, 0  # steps of which one is kept, and how many rows were left out
        self._lock = threading.Lock()  # guards the rows
        self.status = "stopped"  # how the run ended
        self._over, self._done = threading.Event(), threading.Event()
        self._dead = False  # nothing more is given to it
        self._called: float | None = None  # when the call began that goes on at present
        self._thread = threading.Thread(target=self._work, name=f"track {name} {run}", daemon=True)

    # in the run's thread

    def add(self, event: Event) -> None:
        """Take in an event of the run."""
        if self._dead:
            return
        try:
            for row in self._fold.add(event):
                self._keep(row)
        except Exception as error:  # an event like none before it
            return self._give_up(f"cannot be told of {type(event).__name__} ({type(error).__name__}: {error})")
        if isinstance(event, Started) and self._thread.ident is None:
            self._thread.start()
        elif isinstance(event, Ended):
            self.status = event.status
        called = self._called
        if called is not None and time.monotonic() - called > PATIENCE_SECONDS:
            self._give_up(f"has not answered for {PATIENCE_SECONDS:g} s")

    def _keep(self, row: Row) -> None:
        with self._lock:
            if self._dead:
                return
            if not self._rows:
                self._every = 1
            if row.step % self._every and not (row.rare or row.notes):
                self._left_out += 1
                return
            self._rows.append(row)
            if len(self._rows) > MOST_ROWS:
                self._every *= 2
                kept = [r for r in self._rows if r.rare or r.notes or r.step % self._every == 0]
                kept = kept[-MOST_ROWS:]
                self._left_out += len(self._rows) - len(kept)
                self._rows = deque(kept)

    def close(self, patience: float | None = None) -> None:
        """The run is over: let the tracker write the rest, and end it."""
        patience = PATIENCE_SECONDS if patience is None else patience
        self._over.set()
        if self._thread.ident is None or self._dead:
            return
        while not self._done.wait(0.02):
            called = self._called
            if called is not None and time.monotonic() - called > patience:
                return self._give_up(f"has not answered for {patience:g} s")
        if self._left_out:
            self.problems.append(
                f"{self.name} was slower than the run: of {self._left_out:,} steps it has nothing, of every evaluation it has all"
            )
            self._left_out = 0

    def _give_up(self, why: str) -> None:
        with self._lock:
            if self._dead:
                return
            self._dead = True
            self._rows.clear()
        self.problems.append(plain(f"{self.name} {why}: it gets nothing more of this run, which goes on without it"))

    # in its own thread

    def _work(self) -> None:
        try:
            last = self._call(self.tracker.start, self._fold.recipe, self.run, self.resume)
            spent, given = 0.0, 0
            while not self._dead:
                row = self._next()
                if row is None:
                    if self._over.wait(PAUSE_SECONDS) and not self._rows:
                        break
                    continue
                before = time.thread_time()
                self._give(row, last)
                spent += time.thread_time() - before
                given += 1
                if spent > SHARE * PAUSE_SECONDS or given >= ROWS_PER_SECOND * PAUSE_SECONDS:
                    self._over.wait(max(spent / SHARE, given / ROWS_PER_SECOND))
                    spent, given = 0.0, 0
            if not self._dead:
                self._call(self.tracker.finish, self.status)
        except BaseException as error:  # whatever it is, it is not the run's
            self._give_up(f"failed ({type(error).__name__}: {error})")
        finally:
            self._done.set()

    def _next(self) -> Row | None:
        with self._lock:
            return self._rows.popleft() if self._rows else None

    def _give(self, row: Row, last: int) -> None:
        """What the tracker has already, of a run that goes on, it is not given again."""
        for step, text, warning in row.notes:
            if step > last:
                self._call(self.tracker.note, text, step, warning)
        if row.step > last and row.values:
            self._call(self.tracker.log, row.values, row.step)

    def _call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        self._called = time.monotonic()
        try:
            return function(*arguments)
        finally:
            self._called = None


def sinks(track: Track | None, recipe: Recipe, folder: RunFolder | None) -> list[Sink]:
    """The sinks of a run for the trackers that somebody asked for.

    Parameters
    ----------
    track
        a tracker, by name or as an object, or several. None: those that the environment variable ``ISTHMUS_TRACK`` names.
    folder
        of the run. Where it has events, the tracker goes on with what it has of the run of this name.

    Raises
    ------
    RecipeError
        for a tracker that there is not, or that is not installed.
    """
    if track is None:
        track = [name for name in os.environ.get(DEFAULT, "").split(",") if name]
    several: Sequence[str | Tracker] = track if isinstance(track, Sequence) and not isinstance(track, str) else [track]
    if folder is None:
        run, resume = f"{recipe.id}-{uuid.uuid4().hex[:6]}", False
    else:
        place = folder.path
        run = f"live-{place.name}" if place.parent.name == "live" else place.name
        resume = (place / "events.jsonl").exists()
    run = re.sub(r"[^\w.-]", "-", run)
    return [
        Sink(tracker(one), one.partition(":")[0], run, resume)
        if isinstance(one, str)
        else Sink(one, type(one).__name__, run, resume)
        for one in several
    ]


def set_default(names: Sequence[str]) -> None:
    """From now on runs that name no tracker have these, here and in processes that this one starts. Raises RecipeError as `sinks`."""
    for name in names:
        tracker(name)
    if names:
        os.environ[DEFAULT] = ",".join(names)


def tracked(events: Iterable[Event], sinks: Sequence[Sink]) -> Generator[Event, None, None]:
    """The same events, each given to the sinks; what goes wrong there comes as a `Warned` among them.

    Before the last event the trackers have what came before it, or have been given up.
    """
    step, over = 0, False
    try:
        for event in events:
            for sink in sinks:
                sink.add(event)
            step = getattr(event, "step", step)
            if isinstance(event, Ended):
                for sink in sinks:
                    sink.close()
                over = True
            for sink in sinks:
                while sink.problems:
                    yield Warned(step, sink.problems.popleft())
            yield event
    except Exception:
        for sink in sinks:
            sink.status = "failed"
        raise
    finally:
        for sink in () if over else sinks:
            sink.close(PATIENCE_SECONDS / 6)  # somebody may wait who has interrupted it
