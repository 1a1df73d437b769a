"""A run that goes on in the background while its cell has returned: look at it, pause it, step it, turn its knobs, stop it.

::

    run = lab.start("des_loc", views=[Losses()])
    run.pause(); run.step(); run.step_sync(); run.resume()
    run.set(lr=0.5, sync_every={"params": 64}); run.kill(3); run.revive(3)
    columns = await run  # in a notebook; run.wait() in a script

Three threads have to do with a run. Its own takes the events of `lab.runs.trainer.Trainer` and appends them to one list. The pump,
one for all runs, hands what is new to every view, at most `RATE` times a second. Whoever calls the methods of `Run` only
leaves word, which the run's thread reads between two local steps. No thread prints.
"""

from __future__ import annotations

import asyncio
import atexit
import concurrent.futures
import contextlib
import math
import sys
import threading
import time
import traceback
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from functools import partial
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from lab.costs.network import Network
from lab.data import corpora
from lab.events import Ended, Event, KnobChanged, Sent, Started, Stepped
from lab.ground.config.references import CELL, is_reference
from lab.ground.errors import LabError, RecipeError, one_of
from lab.ground.files import located, numbered, shown, working_folder, working_in
from lab.ground.seeds.surroundings import one_core_
from lab.processes.peers import check_timeout, share_out
from lab.recipes.recipe import Recipe
from lab.runs.columns import Columns
from lab.runs.finished import check_finished
from lab.runs.folder import RunFolder, find_run
from lab.runs.knobs import STOP, validate_knob
from lab.runs.launch import events_over_processes
from lab.runs.sites import check_mailbox
from lab.runs.track import Sink, Track, sinks, tracked
from lab.runs.trainer import Trainer

if TYPE_CHECKING:
    import pandas as pd

RATE = 8.0  # batches a second that a view is given, at most
IDLE = 1.0  # seconds between two calls of a view while nothing happens: it may have put off drawing the last batch
LIVE = Path("runs/live")  # runs that a hand may touch; their numbers need not follow from their recipes alone
DISPLAYS = "isthmus.displays"  # entry points: what shows runs in notebooks, where nothing has called `register_display`


class EventSink(Protocol):
    """What can be fed with the events of a run: a view, or anything else. Without events it may finish what it put off."""

    def add(self, *events: Event) -> object: ...


Display = Callable[["Run", Sequence[EventSink]], object]
"""Shows a run, and views of it, in the cell that is being executed. Without views it shows what it thinks fit."""

_DISPLAYS: list[Display] = []


def register_display(display: Display) -> None:
    """From now on runs are shown by ``display``, for one by `Run.panel`."""
    _DISPLAYS[:] = [display]


def _display() -> Display:
    """Return the registered display, else that of an installed package, else one that prints a line of text."""
    if not _DISPLAYS:
        _DISPLAYS.extend([point.load() for point in entry_points(group=DISPLAYS)][:1])
    return _DISPLAYS[0] if _DISPLAYS else _in_words


def _in_words(run: Run, views: Sequence[EventSink]) -> None:
    print(
        f"{run!r}; run.columns has what it did so far. Nothing that is installed shows runs: import widgets for pictures"
    )
    run.watch(*views)


class Interrupted(asyncio.CancelledError):
    """Raised where waiting for a run was interrupted, which stops the run; the message says how to go on."""

    def _render_traceback_(self) -> list[str]:  # what IPython asks for
        return [f"Interrupted: {self}"]


class InterruptedWait(KeyboardInterrupt):
    """As `Interrupted`, for scripts and for `Run.wait` in a cell."""

    def _render_traceback_(self) -> list[str]:
        return [f"Interrupted: {self}"]


Events = Callable[["Run"], Iterator[Event]]  # what happens in a run, as its thread makes it


class Run:
    """A run in the background. Made by `start` and `replay`."""

    def __init__(self, recipe: Recipe, name: str, folder: RunFolder | None, events: Events):
        self.recipe, self.name, self.folder = recipe, name, folder
        self.events: list[Event] = []  # all that happened so far; only ever appended to
        self.t = 0  # finished local steps
        self.knobs: dict[str, Any] = {}  # as they were asked for, if they ever were (`lab.runs.knobs`)
        self.problems: list[str] = []  # views that were dropped
        self.notebook_cell = _notebook_cell()
        self.place = working_folder()  # what names of files in the recipe are relative to, wherever cells change to
        self.is_replay = False
        self._columns, self._folded, self._folding = Columns(), 0, threading.Lock()
        self._word = threading.Condition()  # guards all that follows
        self._wanted: dict[str, Any] = {}  # knobs to be turned before the next step
        self._left: float = math.inf  # steps until it pauses
        self._until_sync = self._synced = False
        self._held = self._stopping = False
        self._error: BaseException | None = None
        self._traceback: Any = None
        self.finished = threading.Event()  # nothing more will happen
        self.over: concurrent.futures.Future[None] = concurrent.futures.Future()  # and all views have seen it
        self._thread = threading.Thread(target=self._drive, args=(events,), name=f"run {name}", daemon=True)

    # looking

    @property
    def columns(self) -> Columns:
        """Everything so far as columns. They stay as they are until you ask again."""
        with self._folding:
            for event in self.events[self._folded :]:
                self._columns.add(event)
                self._folded += 1
            return self._columns

    @property
    def status(self) -> str:
        """``starting``, ``running``, ``paused``, ``done``, ``stopped`` or ``failed``."""
        if self.finished.is_set():
            last = self.events[-1] if self.events else None
            return last.status if isinstance(last, Ended) else "failed"
        if self._held:
            return "paused"
        return "running" if self.events else "starting"

    def frame(self) -> pd.DataFrame:
        """Everything so far as a table, a row for each local step (`lab.runs.table`)."""
        return self.columns.frame()

    def __repr__(self) -> str:
        return f"{self.name}: {self.status}, step {self.t:,} of {self.recipe.steps:,}"

    def watch(self, *views: EventSink) -> None:
        """Feed more sinks: first with all events so far, then with new ones."""
        PUMP.feed(self, views)

    def panel(self, *views: EventSink) -> Any:
        """Buttons, and the pictures of these views (default: a standard set), in the cell that calls this."""
        _PANELS[self._key] = _notebook_cell()
        return _display()(self, views)

    def _ipython_display_(self) -> None:
        self.panel()

    # pausing

    def pause(self) -> None:
        """Wait before the next local step."""
        self._say(0)

    def step(self, n: int = 1) -> None:
        """``n`` local steps more, then pause."""
        if n < 1:
            raise RecipeError(f"step({n}): give a number of local steps, 1 or more")
        with self._word:
            self._say(n + (self._left if math.isfinite(self._left) else 0))

    def step_sync(self) -> None:
        """Go on up to and with the next local step in which workers synchronise, then pause."""
        self._say(math.inf, until_sync=True)

    def resume(self) -> None:
        """Go on after a pause."""
        self._say(math.inf)

    def stop(self) -> None:
        """End before the next local step. What there is stays; `start` goes on from there."""
        with self._word:
            self._stopping = True
            self._word.notify_all()

    def _say(self, steps: float, until_sync: bool = False) -> None:
        with self._word:
            self._left, self._until_sync, self._synced = steps, until_sync, False
            self._word.notify_all()

    # knobs

    def set(
        self,
        *,
        lr: float | None = None,
        sync_every: int | Mapping[str, int] | None = None,
        network: str | Network | Mapping[str, Any] | None = None,
        **others: object,
    ) -> None:
        """Set knobs before the next local step.

        Parameters
        ----------
        lr
            a factor on the learning rate (1: as the recipe has it).
        sync_every
            local steps between two syncs: a number, or for some states of several, ``{"params": 64}``.
        network
            what views price on.
        others
            none: what else is given is refused, with the names that there are.

        Raises
        ------
        RecipeError
            for a knob that there is not, a value that is not allowed, or one that makes no sense with this method. Then nothing is set.
        LabError
            if the run is over, or a replay.
        """
        given = {"lr": lr, "sync_every": sync_every, "network": network}
        if others:
            raise RecipeError(one_of("knob", next(iter(others)), given))
        with self._word:
            self._ask_for({knob: value for knob, value in given.items() if value is not None})

    def kill(self, worker: int) -> None:
        """A worker is down from the next local step on, until it is revived. It neither computes nor sends."""
        with self._word:
            self._ask_for({"down": [*self.knobs.get("down", ()), worker]})

    def revive(self, worker: int) -> None:
        """A worker that was killed comes back before the next local step and first receives what it missed."""
        with self._word:
            down = self.knobs.get("down", [])
            if worker not in down:
                raise RecipeError(f"worker {worker} was not killed: revive brings back {down or 'nobody at present'}")
            self._ask_for({"down": [w for w in down if w != worker]})

    def _ask_for(self, knobs: Mapping[str, Any]) -> None:
        """Note knobs to be set before the next step. Call with the lock ``_word`` held."""
        if self.is_replay:
            raise LabError("a replay shows what happened: its knobs cannot be turned")
        if self.finished.is_set() or self._stopping:
            raise LabError(f"{self.name} is over ({self.status}): start a run to turn its knobs")
        full = {knob: validate_knob(self.recipe, knob, value, self.knobs) for knob, value in knobs.items()}
        self._wanted |= full
        self.knobs |= full
        self._word.notify_all()

    # the end

    def wait(self, timeout: float | None = None) -> Columns:
        """Wait for the end, in a script. Raises what the run raised.

        Raises
        ------
        TimeoutError
            after ``timeout`` seconds.
        InterruptedWait
            a KeyboardInterrupt, after it has stopped the run.
        """
        try:
            self.over.result(timeout)
        except concurrent.futures.TimeoutError:
            raise TimeoutError(f"{self} after {timeout} s") from None
        except KeyboardInterrupt:
            self.stop()
            self.over.result()
            raise InterruptedWait(self._how_to_go_on()) from None
        return self._outcome()

    def __await__(self) -> Generator[Any, None, Columns]:
        """The end, in a notebook: the columns, or what the run raised.

        Interrupted (or cancelled), it stops the run, keeps its results and raises `Interrupted`, a CancelledError.
        """
        return self._until_over().__await__()

    async def _until_over(self) -> Columns:
        over = asyncio.wrap_future(self.over)
        try:
            while (
                not over.done()
            ):  # a kernel that is interrupted notices when its loop wakes up, so it does now and then
                await asyncio.wait({over}, timeout=0.2)
        except asyncio.CancelledError:
            self.stop()
            with contextlib.suppress(asyncio.CancelledError):  # interrupted once more
                await asyncio.wait({over})  # the present step, and a checkpoint
            raise Interrupted(self._how_to_go_on()) from None
        return self._outcome()

    def _how_to_go_on(self) -> str:
        """Return one line that says how to go on with a run that was stopped by an interrupt."""
        if not self.finished.is_set():
            return f"{self.name} stops as soon as its present step is done (run.status says when)"
        if self.status == "done":
            return f"{self.name} is done all the same: run.columns has all of it"
        if self.status == "failed":
            return f"{self.name} had failed by then: {getattr(self.events[-1], 'message', '')}"
        where = f"after step {self.t:,} of {self.recipe.steps:,}"
        if self.is_replay:
            return f"the {self.name} was stopped {where}: start it again with lab.replay"
        if self.folder is None:
            return f"{self.name} was stopped {where}, and nothing of it is on disk: lab.start begins anew"
        return (
            f"{self.name} was stopped {where}; what it did is in {shown(self.folder.path)}, and the same lab.start goes on from "
            "there"
        )

    @property
    def _key(self) -> tuple[str, Path | None]:
        return self.name, None if self.folder is None else self.folder.path

    def _outcome(self) -> Columns:
        if self._error is not None:
            raise self._error.with_traceback(self._traceback)
        return self.columns

    # in the run's own thread

    def _drive(self, events: Events) -> None:
        one_core_()
        try:
            with working_in(self.place):
                for event in events(self):
                    self._take(event)
        except BaseException as error:
            self._error, self._traceback = error, error.__traceback__
            if not self.events or not isinstance(self.events[-1], Ended):
                self.events.append(Ended(self.t, "failed", f"{type(error).__name__}: {error}"))
        finally:
            self.finished.set()
            PUMP.hurry()

    def _take(self, event: Event) -> None:
        match event:
            case Stepped():
                self.t = event.step
            case Sent() if event.op != "broadcast":
                self._synced = True
            case KnobChanged():
                with self._word:
                    if event.knob not in self._wanted:
                        self.knobs[event.knob] = event.value
        self.events.append(event)
        PUMP.news()

    def knob_source(self, t: int, still: Callable[[], bool] | None = None) -> Iterator[tuple[str, Any]]:
        """Called before local step ``t``: waits while the run is paused; yields the knobs to set.

        ``still()`` is asked now and then; where it is False, waiting ends.
        """

        def said() -> bool:
            return bool(self._wanted or self._left or self._stopping)

        while True:
            with self._word:
                if self._until_sync and self._synced:
                    self._left, self._until_sync = 0, False
                while self._held and not self._word.wait_for(said, None if still is None else IDLE):
                    if still is not None and not still():
                        return
                wanted, self._wanted = self._wanted, {}
                before, self._held = self._held, not self._left and not self._stopping
                go = not self._held and not wanted
                if go:
                    self._left -= 1
            yield from wanted.items()
            if self._held != before:
                yield "paused", self._held
            if go:
                return

    def sleep(self, seconds: float) -> None:
        """Sleep for ``seconds``, or until the run is stopped; used by replays."""
        with self._word:
            self._word.wait_for(lambda: self._stopping, seconds)

    @property
    def stopping(self) -> bool:
        return self._stopping


# --- starting --------------------------------------------------------------------------------------------------------

_RUNS: list[Run] = []  # those that may still be going on
_PANELS: dict[tuple[str, Path | None], tuple[str, str] | None] = {}  # the cell that a run's panel was last shown in
_STARTING = threading.Lock()


def start(
    recipe: Recipe | str | Mapping[str, Any],
    overrides: Sequence[str] = (),
    *,
    name: str | None = None,
    folder: str | Path | None = None,
    views: Sequence[EventSink] = (),
    again: bool = False,
    keep: bool = True,
    paused: bool = False,
    accept_new_text: bool = False,
    track: Track | None = None,
    processes: int = 1,
    restarts: int = 0,
    timeout_seconds: float = 600.0,
    mailbox: str | None = None,
) -> Run:
    """Run a recipe in the background; returns at once. What goes on under its name, in its folder or from an earlier
    execution of the same cell is stopped first.

    Parameters
    ----------
    recipe, overrides
        a recipe, or what `Recipe.of` makes one from: ``lab.start("des_loc", ["steps=64"])``.
    name, folder
        default: the recipe's id, and ``runs/live/<id>``. A run that is there goes on, or is shown again if it is done.
    views, track
        fed from the first event on: views (`Run.watch` and `Run.panel` add others), trackers such as ``"trackio"`` (`lab.runs.track`).
    again, keep
        run anew, in a folder beside that of the earlier run; ``keep=False``: nothing is written.
    paused, accept_new_text
        wait before the first step until `Run.step` or `Run.resume`; go on also with another text than that of the run there.
    processes, restarts, timeout_seconds, mailbox
        spread the workers over so many processes; go on so often when one is lost, or silent for so long; how else than by sockets they talk.

    Raises
    ------
    RecipeError
        for a recipe that is wrong, or a folder that holds the run of another.
    """
    recipe = Recipe.of(recipe, overrides)
    corpora.check(recipe.corpus)
    run_folder = RunFolder(_path(recipe, folder, again)) if keep else None
    if run_folder is not None:
        run_folder.check_recipe(recipe)
    events: Events = partial(_trained, accept_new_text)
    if processes != 1 or mailbox is not None:
        events = _over(recipe, run_folder, processes, restarts, timeout_seconds, accept_new_text, mailbox)
    events = partial(_tracked, sinks(track, recipe, run_folder), events)
    return _begin(Run(recipe, name or recipe.id, run_folder, events), views, paused)


def _over(
    recipe: Recipe,
    folder: RunFolder | None,
    processes: int,
    restarts: int,
    timeout_seconds: float,
    accept_new_text: bool,
    mailbox: str | None,
) -> Events:
    """The events of a run over processes. Raises RecipeError where they cannot do what this one could."""
    check_mailbox(mailbox, processes, recipe, restarts)
    share_out(recipe.num_workers, processes)
    check_timeout(timeout_seconds)
    for what, own in recipe.own.items():
        if own.reference.startswith(f"{CELL}:") or not is_reference(own.reference):
            name = own.reference.split(":")[1]
            raise RecipeError(
                f"{what} {name} is known to this process alone, and others could not import it: write it to a file (a cell that begins "
                f"with %%writefile my_{what}.py), import it from there, or leave processes out"
            )
    if folder is None:
        raise RecipeError("several processes write a run folder: leave keep=False out, or processes")
    return partial(_spread, processes, restarts, timeout_seconds, accept_new_text, mailbox)


def replay(
    run: str | Path,
    speed: float = 1.0,
    *,
    name: str | None = None,
    views: Sequence[EventSink] = (),
    runs: str | Path = "runs",
    paused: bool = False,
) -> Run:
    """Show a stored run again, knobs included: the same events at ``speed`` times the pace of its steps, nothing trained.

    Parameters
    ----------
    run
        its folder, its id, or the beginning of its id.
    speed
        `math.inf`: all at once.

    Raises
    ------
    RecipeError
        if there is no such run.
    """
    if not speed > 0:
        raise RecipeError(f"speed = {speed}: give a number greater than 0, for example 10 for ten times as fast")
    folder = RunFolder(located(find_run(str(run), runs).path))  # it is read little by little
    played = Run(folder.recipe(), name or f"replay of {folder.path.name}", folder, lambda run: _replayed(run, speed))
    played.is_replay = True
    return _begin(played, views, paused)


def _begin(run: Run, views: Sequence[EventSink], paused: bool) -> Run:
    if paused:
        run.pause()
    with _STARTING:
        before = [r for r in _RUNS if not r.finished.is_set()]
        for other in before:
            if other.name == run.name or _same_folder(run, other) or _same_cell(run, other):
                other.stop()
                other.finished.wait()
        PUMP.feed(run, views)  # which may refuse
        _RUNS[:] = [r for r in before if not r.finished.is_set()] + [run]
        _say_where(run)
        run._thread.start()
    return run


def _say_where(run: Run) -> None:
    """Print where a run goes on, if the panel of the run before it is shown in another cell."""
    if run._key not in _PANELS:
        return
    there = _PANELS[run._key]
    if (
        there is None or run.notebook_cell is None or run.notebook_cell[0] != there[0]
    ):  # in its own cell it is cleared away
        again = "is shown again" if run.folder is not None and run.folder.done else "goes on"
        print(
            f"{run.name} {again} in the background; the panel above is that of the run before: run.panel() shows this one"
        )


def _same_folder(a: Run, b: Run) -> bool:
    return not a.is_replay and a.folder is not None and b.folder is not None and a.folder.path == b.folder.path


def _same_cell(a: Run, b: Run) -> bool:
    return (
        a.notebook_cell is not None
        and b.notebook_cell is not None
        and a.notebook_cell[0] == b.notebook_cell[0]
        and a.notebook_cell[1] != b.notebook_cell[1]
    )


def _path(recipe: Recipe, folder: str | Path | None, again: bool) -> Path:
    path = located(folder if folder is not None else LIVE / recipe.id)
    return next(free for free in numbered(path) if not (again and free.exists()))


def _notebook_cell() -> tuple[str, str] | None:
    """The cell that is being executed, and which execution of it this is; None outside of notebooks that say so."""
    there: Any = sys.modules.get("IPython.core.getipython")  # the lab imports nothing of Jupyter
    shell: Any = there.get_ipython() if there is not None else None
    try:
        request = shell.get_parent()
        return str(request["metadata"]["cellId"]), str(request["header"]["msg_id"])
    except (AttributeError, KeyError, TypeError, LookupError):
        return None


def _tracked(attached: Sequence[Sink], events: Events, run: Run) -> Iterator[Event]:
    return tracked(events(run), attached)


def _trained(accept_new_text: bool, run: Run) -> Iterator[Event]:
    if run.folder is not None and run.folder.done:
        check_finished(run.folder.path, run.recipe, accept_new_text)
        yield from run.folder.events()
        return

    def knobs(t: int) -> Iterator[tuple[str, Any]]:
        yield from run.knob_source(t)
        yield STOP, run.stopping

    yield from Trainer(run.recipe, accept_new_text=accept_new_text, knob_source=knobs).events(run.folder)


def _spread(
    num_processes: int, restarts: int, timeout_seconds: float, accept_new_text: bool, mailbox: str | None, run: Run
) -> Iterator[Event]:
    assert run.folder is not None
    yield from events_over_processes(
        num_processes,
        run.recipe,
        run.folder,
        restarts,
        timeout_seconds,
        run.knob_source,
        lambda: run.stopping,
        accept_new_text,
        mailbox,
    )


def _replayed(run: Run, speed: float) -> Iterator[Event]:
    assert run.folder is not None

    def before(step: int) -> bool:
        for _ in run.knob_source(step):
            pass
        return not run.stopping

    yield from paced(run.folder.events(), speed, before, run.sleep)
    if not isinstance(run.events[-1] if run.events else None, Ended):
        yield Ended(run.t, "stopped", "the replay was stopped" if run.stopping else "what is stored ends here")


def paced(
    events: Iterable[Event],
    speed: float,
    before: Callable[[int], bool] = lambda step: True,
    sleep: Callable[[float], None] = time.sleep,
) -> Iterator[Event]:
    """Stored events at ``speed`` times the pace at which their steps were made, while ``before`` each step says go on."""
    due, last = time.monotonic(), 0
    for event in events:
        if not isinstance(event, Started | Ended) and event.step > last:
            asked = time.monotonic()
            if not before(event.step):
                return
            due += time.monotonic() - asked  # a pause is not caught up with
            last = event.step
        if isinstance(event, Stepped):
            due += event.seconds / speed
            if due > time.monotonic():
                sleep(max(0.0, due - time.monotonic()))
        yield event


@atexit.register
def _leave() -> None:
    """At exit: stop the runs that still go on, and give them a few seconds to write."""
    for run in _RUNS:
        run.stop()
    for run in _RUNS:
        run.finished.wait(5)


# --- the pump --------------------------------------------------------------------------------------------------------


class _Feed:
    """How far one `EventSink` has seen one run."""

    def __init__(self, run: Run, view: EventSink):
        self.run, self.view, self.seen = run, view, 0


class Pump:
    """One thread that hands what is new to every view: in batches, at most ``rate`` times a second.

    An `EventSink` that raises is dropped, which is noted in the run's ``problems``; views say so themselves.
    """

    def __init__(
        self,
        rate: float = RATE,
        clock: Callable[[], float] = time.monotonic,
        pause: Callable[[float], object] | None = None,
    ):
        self.rate, self.clock = rate, clock
        self._feeds: list[_Feed] = []
        self._runs: list[Run] = []
        self._lock = threading.Lock()
        self._news, self._hurry = threading.Event(), threading.Event()
        self._pause = pause or self._hurry.wait
        self._thread: threading.Thread | None = None

    def feed(self, run: Run, views: Iterable[EventSink]) -> None:
        """Feed views with a run, from its first event on; those that it feeds already stay as they are.

        Raises
        ------
        LabError
            for one that another run feeds which goes on: it could only mix them up.
        """
        views = list(views)
        with self._lock:
            for feed in self._feeds:
                if feed.run is not run and not feed.run.finished.is_set() and any(feed.view is view for view in views):
                    raise LabError(
                        f"{type(feed.view).__name__} shows {feed.run.name}, which goes on: give {run.name} a view of its own, "
                        "or a lane of a view that compares runs, as in losses = Losses(); losses.lane('A')"
                    )
            here = [feed.view for feed in self._feeds if feed.run is run]
            self._feeds += [_Feed(run, view) for view in views if not any(view is other for other in here)]
            if run not in self._runs:
                self._runs.append(run)
            if run.over.done():  # who waits from now on waits for these views too
                run.over = concurrent.futures.Future()
            if self._thread is None:
                self._thread = threading.Thread(target=self._loop, name="pump", daemon=True)
                self._thread.start()
        self.hurry()

    def news(self) -> None:
        """Wake the pump: there are new events."""
        if not self._news.is_set():
            self._news.set()

    def hurry(self) -> None:
        """Deliver at once: a view was added, or a run is over."""
        self._hurry.set()
        self._news.set()

    def _loop(self) -> None:
        while True:
            self._news.wait(IDLE if self._feeds else None)
            self.deliver_and_rest()

    def deliver_and_rest(self) -> None:
        """Deliver new events, then wait as long as ``rate`` asks for."""
        began = self.clock()
        self._news.clear()
        self._hurry.clear()
        self.deliver()
        self._pause(max(0.0, began + 1 / self.rate - self.clock()))

    def deliver(self) -> None:
        """Give every view the events that it has not seen."""
        with self._lock:
            feeds, over = list(self._feeds), [run for run in self._runs if run.finished.is_set()]
        dropped = [feed for feed in feeds if not self._give(feed)]
        with self._lock:
            self._feeds = [f for f in self._feeds if f not in dropped and (f.run not in over or f not in feeds)]
            fed = {id(f.run) for f in self._feeds}
            self._runs = [run for run in self._runs if run not in over or id(run) in fed]
            for run in over:
                if id(run) not in fed and not run.over.done():
                    run.over.set_result(None)

    def _give(self, feed: _Feed) -> bool:
        batch = feed.run.events[feed.seen :]
        try:
            feed.view.add(*batch)
            feed.seen += len(batch)
        except Exception as error:
            where = traceback.extract_tb(error.__traceback__)[-1]
            feed.run.problems.append(
                f"{type(feed.view).__name__} was dropped: {type(error).__name__}: {error} "
                f"({Path(where.filename).name}, line {where.lineno})"
            )
            return False
        return True


PUMP = Pump()
