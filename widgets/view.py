"""Views: folds of events into pictures, drawn while a run goes on and left behind as one picture when it has ended.

A new view says which events it reads, folds them, and makes pictures of what it has (`docs/write_your_own_view.md`)::

    class Pace(View):
        title = "How fast does it train?"
        reads = (Started, Stepped)

        def __init__(self) -> None:
            self.step, self.seconds = Growing(), Growing()

        def fold(self, event: Event) -> None:
            if isinstance(event, Started):  # a run begins: so does the fold
                self.step, self.seconds = Growing(), Growing()
            if isinstance(event, Stepped):
                self.step.append(event.step)
                self.seconds.append(event.seconds)

        def pictures(self) -> list[Picture]:
            line = Series("this process", self.step, self.seconds)
            return [Lines("How long does a local step take?", "local step", "seconds", [line])]

        def answer(self) -> str:
            last = f"{self.seconds[-1]:.3g} seconds" if len(self.seconds) else "not known: no step has been taken yet"
            return f"The last step took {last}."

    train(recipe, folder, each=Pace())  # in a notebook: live, then at rest
    Pace.of(RunFolder(folder).events())  # afterwards: at rest at once

The same call does the right thing everywhere. In front of a person (JupyterLab and its like) a canvas is drawn
(`widgets.canvas`), at most `RATE` times a second, in at most `SHARE` of the time for all views together, and only when the
fold has changed. When the run has ended, one output takes its place, which a saved notebook keeps.
Where a program executes the notebook, and in a terminal, there is only that last output.

It appears in the cell that feeds it the first event. A run in a thread has no cell: there, the view appears in the cell that
shows it, as its last line or with ``view.show()``.
"""

from __future__ import annotations

import math
import threading
import time
import traceback
import uuid
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, Self
from weakref import WeakSet

from ipykernel.zmqshell import ZMQInteractiveShell
from IPython.core.getipython import get_ipython
from IPython.display import display, update_display

from lab.events import Ended, Event, Started
from widgets.boards import Board
from widgets.canvas import Canvas
from widgets.menus import padded, with_menu
from widgets.moments import Moments
from widgets.pictures import Figure, Note, Picture, bundle
from widgets.resting import MIME, document, packed

RATE = 8  # drawings of a view a second, at most
SHARE = 0.02  # of the time that drawing all views together may take
BRIEF, WHOLE = "the answer", "all pictures"  # what a view that leads can show
UNDRAWN = "What is here while the run goes on needs a front end with ipywidgets. When it has ended there is a picture."
LIVELY = 60  # seconds after its last drawing until a view no longer counts among them


@dataclass(frozen=True)
class Control:
    """A choice that a person has while looking: it sets the attribute ``name`` of the view.

    With ``options`` it is a menu, also at rest; without, a line to type in, and ``hint`` says what.
    """

    name: str
    label: str
    value: str
    options: Sequence[str] = ()
    hint: str = ""


class View:
    """A fold of events into pictures. Feed it by calling it; a view that raises is dropped, and the run goes on."""

    title: ClassVar[str]
    reads: ClassVar[tuple[type, ...]]  # the events that `fold` wants to see

    def fold(self, event: Event) -> None:
        """Take in one event. `Started`, if it is read, begins a new run."""
        raise NotImplementedError

    def pictures(self) -> Sequence[Picture]:
        """What there is to be seen by now."""
        raise NotImplementedError

    def answer(self) -> str:
        """The question of the title answered in one sentence with numbers, true of what is drawn by now; it stands above the pictures.

        Before anything has come it says so.
        """
        return ""

    def controls(self) -> Sequence[Control]:
        """What a person may choose. The first menu is also there at rest."""
        return ()

    leads: ClassVar[bool] = False  # whether the first picture answers the question and the others are shown on demand
    detail = BRIEF  # of a view that leads: how much is shown

    heading = ""  # before the title, where views of several runs stand beside each other
    moments: Moments | None = None  # what happened when, where pictures of several views share one time axis

    _lock: ClassVar = threading.RLock()  # a run feeds views from one thread, a person chooses in another
    _screen: Screen | None = None
    _changed = False
    _at_rest = False
    _resting = False  # it comes to rest, or has: all pictures, in full
    _dropped: Note | None = None
    _several = True  # pictures, when it was drawn last
    _run = ""  # the name of the run that the present event belongs to, for views that compare
    _awaited: frozenset[str] = frozenset()  # runs that have not ended

    @classmethod
    def of(cls, events: Iterable[Event]) -> Self:
        """The view of a run that is over, with default options. It shows itself as the last line of a cell."""
        return cls().replay(events)

    def replay(self, events: Iterable[Event], run: str = "") -> Self:
        """Take in all events of a stored run; nothing is drawn meanwhile."""
        with self._lock:
            self._run = run
            for event in events:
                if isinstance(event, self.reads):
                    self.fold(event)
            self._at_rest = self._resting = True
        return self

    def board(self) -> Board:
        """All pictures as one, to be saved or shown elsewhere."""
        with self._lock:
            title = f"{self.heading} · {self.title}" if self.heading else self.title
            if self._dropped:
                return Board(title, [self._dropped])
            pictures = self.pictures()
            self._several = len(pictures) > 1
            shown = pictures[:1] if self._leads and self.detail == BRIEF else pictures
            if self.moments is not None:
                shown = [self.moments.over(picture, self._compact) for picture in shown]
            return Board(title, shown, self.answer())

    @property
    def _compact(self) -> bool:
        """Whether it moves among others on one screen."""
        return self.moments is not None and not self._resting

    @property
    def _leads(self) -> bool:
        return self.leads or self._compact

    def _controls(self) -> list[Control]:
        more = Control("detail", "show", self.detail, [BRIEF, WHOLE])
        return [*([more] if self._leads and self._several else []), *self.controls()]

    def bundle(self) -> dict[str, Any]:
        """What a notebook keeps: the board, with a menu where there is something to choose."""
        with self._lock:
            forms, (menu, boards) = bundle(self.board()), self._choices_at_rest()
            if menu is not None:
                forms[MIME] = packed({option: board.spec() for option, board in boards.items()}, asdict(menu))
            return forms

    def plotly(self) -> Figure:
        """The same as a plotly figure, to be explored: as the last line of a cell it shows itself where plotly is known."""
        with self._lock:
            menu, boards = self._choices_at_rest()
            if menu is None:
                return self.board().plotly()
            figures = {option: board.plotly() for option, board in boards.items()}
            if menu.name == "detail":
                figures[BRIEF] = padded(figures[BRIEF], figures[WHOLE])
            return with_menu(figures, menu.value, menu.label)

    def _choices_at_rest(self) -> tuple[Control | None, dict[str, Board]]:
        """The first menu, and what each of its options shows; None where there is nothing to choose."""
        self.board()  # which sees how many pictures there are
        menu = next((c for c in self._controls() if c.options), None)
        if menu is None or self._dropped:
            return None, {}
        boards = {}
        for option in menu.options:
            vars(self)[menu.name] = option
            boards[option] = self.board()
        vars(self)[menu.name] = menu.value
        return menu, boards

    def save(self, path: str | Path) -> None:
        """Write a ``.svg``, or a ``.html`` that is interactive and needs no network."""
        if Path(path).suffix == ".html":
            forms = self.bundle()
            Path(path).write_text(document(self.title, forms[MIME], forms["image/svg+xml"]), encoding="utf-8")
        else:
            self.board().save(path)

    def choose(self, name: str, value: str) -> None:
        """Set an option as a control does, and draw at once.

        Raises
        ------
        ValueError
            where there is no such control, or the value is not one that it takes.
        """
        with self._lock:
            control = next((c for c in self._controls() if c.name == name), None)
            if control is None or (control.options and value not in control.options):
                allowed = control.options if control else [c.name for c in self._controls()]
                raise ValueError(f"{value if control else name!r} is not there to choose: {', '.join(allowed)}")
            vars(self)[name] = value
            try:
                board = self.board()
            except ValueError:
                vars(self)[name] = control.value
                raise
            self._draw(board)

    def __call__(self, event: Event) -> None:
        self.add(event)

    def add(self, *events: Event, run: str = "") -> None:
        """Take in events of a run that goes on, in their order, then draw if it is time and something has changed.

        Without events it only draws. ``run`` names one of several runs, for views that compare them.
        """
        with self._lock:
            if self._dropped:
                return
            try:
                for event in events:
                    self._take(event, run)
                here = threading.current_thread() is threading.main_thread()
                screen = self._place() if here and not self._at_rest else self._screen  # a thread has no cell
                if self._changed and not self._at_rest and screen is not None and screen.is_due():
                    self._draw()
            except Exception as error:
                self._drop(error)

    def _take(self, event: Event, run: str) -> None:
        if self._at_rest and isinstance(event, Started):  # a new run, in a new place
            self._screen, self._at_rest, self._resting = None, False, False
        if isinstance(event, self.reads):
            self._run = run
            self.fold(event)
            self._changed = True
        if isinstance(event, Ended):
            self._awaited -= {run}
            if not self._awaited:
                self.rest()

    def lane(self, run: str) -> Lane:
        """The way in for one of several runs that this view compares; it rests when all runs with a lane have ended."""
        self._awaited |= {run}
        return Lane(self, run)

    def show(self) -> None:
        """Appear in this cell: live while a run goes on, at rest afterwards."""
        with self._lock:
            if self._at_rest:
                if surroundings() == "terminal":
                    print(self.board().text())
                else:
                    display(self.bundle(), raw=True, display_id=uuid.uuid4().hex)
                return
            if self._screen is None:
                self._place()
            else:
                self._screen.show()
            try:
                self._draw()
            except Exception as error:
                self._drop(error)

    _ipython_display_ = show

    def rest(self) -> None:
        """Come to rest: what was live becomes one picture that needs no kernel, and nothing more is drawn of this run.

        `Ended` does this by itself.
        """
        with self._lock:
            if not self._at_rest:
                self._resting = True
                self._place().rest(self.board(), self.bundle)
                self._at_rest = True

    def _place(self) -> Screen:
        if self._screen is None:
            self._screen = Screen(surroundings(), choose=self.choose)
            self._changed = True
        return self._screen

    def _draw(self, board: Board | None = None) -> None:
        if self._screen is not None and not self._at_rest:
            self._screen.draw(self.board if board is None else lambda: board, self._controls(), self._compact)
            self._changed = False

    def _drop(self, error: Exception) -> None:
        """Show what went wrong where the pictures were, and take in nothing more."""
        where = traceback.extract_tb(error.__traceback__)[-1]
        self._dropped = Note(
            f"{type(self).__name__} was dropped; the run goes on",
            f"{type(error).__name__}: {error}\n({Path(where.filename).name}, line {where.lineno})",
        )
        try:
            self.rest()
        except Exception:
            self._at_rest = True  # if not even this can be shown, the run matters more than the message


@dataclass(frozen=True)
class Lane:
    """One of several runs of a view that compares them. It is fed and shown like a view of its own."""

    view: View
    run: str

    def __call__(self, event: Event) -> None:
        self.add(event)

    def add(self, *events: Event) -> None:
        self.view.add(*events, run=self.run)

    def show(self) -> None:
        self.view.show()

    _ipython_display_ = show

    def rest(self) -> None:
        self.view.rest()


class Screen:
    """A place in the output of a cell: a canvas in live ``surroundings``, nothing elsewhere, and one picture at the end."""

    made: ClassVar[WeakSet[Screen]] = WeakSet()

    def __init__(
        self,
        where: str,
        clock: Callable[[], float] = time.monotonic,
        work: Callable[
            [], float
        ] = time.thread_time,  # what drawing took: time in which others had the processor does not count
        choose: Callable[[str, str], None] = lambda name, value: None,
    ):
        self.where, self.clock, self.work = where, clock, work
        self.canvas = Canvas(choose) if where == "live" else None
        self.display_id = uuid.uuid4().hex
        self.drawn, self.next = -math.inf, -math.inf  # when it was, and when it may be again
        Screen.made.add(self)
        self.show()

    def show(self) -> None:
        if self.canvas is not None:
            forms = self.canvas._repr_mimebundle_()
            data, metadata = forms if isinstance(forms, tuple) else (forms, {})  # which says to Colab what draws it
            display({**(data or {}), "text/plain": UNDRAWN}, metadata=metadata, raw=True, display_id=self.display_id)
        elif self.where == "batch":
            BATCH.show(self.display_id)

    def is_due(self) -> bool:
        return self.canvas is not None and self.clock() >= self.next

    def draw(self, board: Callable[[], Board], controls: Sequence[Control] = (), compact: bool = False) -> None:
        if self.canvas is not None:
            began, worked = self.clock(), self.work()
            self.canvas.draw(board(), controls=[asdict(c) for c in controls], compact=compact)
            self.drawn = ended = self.clock()
            took = self.work() - worked
            num_live = sum(abs(ended - screen.drawn) < LIVELY for screen in Screen.made)  # they share `SHARE`
            self.next = max(began + 1 / RATE, ended + took * num_live / SHARE)

    def rest(self, board: Board, forms: Callable[[], dict[str, Any]]) -> None:
        """One output for good. The canvas stays behind it for a page that was loaded again and no longer knows the cell."""
        if self.canvas is not None:
            self.drawn = -math.inf
            self.canvas.forms = forms()
            self.canvas.draw(board, controls=[], at_rest=True)
            update_display(self.canvas.forms, raw=True, display_id=self.display_id)
        elif self.where == "batch":
            BATCH.update(self.display_id, forms())
        else:
            print(board.text())


class Batch:
    """Outputs of a notebook that a program executes.

    Such a program hears what is said while a cell runs. What a thread has to say at another time waits for the end of a cell.
    """

    def __init__(self) -> None:
        self._waiting: dict[str, dict[str, Any]] = {}
        self._listens_to: Any = None

    def show(self, display_id: str, forms: dict[str, Any] | None = None) -> None:
        """Make a place in this cell."""
        shell = get_ipython()
        if shell is not self._listens_to and shell is not None:
            shell.events.register("post_run_cell", lambda _: self.flush())
            self._listens_to = shell
        display(forms or {"text/plain": ""}, raw=True, display_id=display_id)

    def update(self, display_id: str, forms: dict[str, Any]) -> None:
        """Fill it."""
        self._waiting[display_id] = forms
        if threading.current_thread() is threading.main_thread():
            self.flush()

    def flush(self) -> None:
        while self._waiting:
            display_id, forms = self._waiting.popitem()
            update_display(forms, raw=True, display_id=display_id)


BATCH = Batch()


@cache
def surroundings() -> str:
    """``live`` in front of a person, ``batch`` where a program executes the notebook, ``terminal`` outside of notebooks.

    Papermill and nbclient say with every cell that nobody is there to answer a question; that is how they are known.
    """
    shell = get_ipython()
    if not isinstance(shell, ZMQInteractiveShell):
        return "terminal"
    try:
        request: dict[str, Any] = shell.kernel.get_parent("shell")
    except LookupError:  # a thread in an older kernel, which has no request of its own
        return "live"
    return "live" if request.get("content", {}).get("allow_stdin", True) else "batch"
