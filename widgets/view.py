"""Views: folds of events into pictures, drawn while a run goes on and left behind as one picture when it has ended.

A new view says which events it reads, folds them, and makes pictures of what it has::

    class Losses(View):
        title = "Does it learn?"
        reads = (Started, Stepped)

        def __init__(self) -> None:
            self.columns = Columns()

        def fold(self, event: Event) -> None:
            if isinstance(event, Started):  # a run begins: so does the fold
                self.columns = Columns()
            self.columns.add(event)

        def pictures(self) -> list[Picture]:
            line = Series("workers' mean", self.columns.step, self.columns.loss)
            return [Lines("How well does it fit?", "local step", "loss, nats per token", [line])]

    train(recipe, folder, each=Losses())  # in a notebook: live, then at rest
    Losses.of(RunFolder(folder).events())  # afterwards: at rest at once

The same call does the right thing everywhere. In front of a person (JupyterLab and its like) a canvas is drawn, at most `RATE`
times a second, in at most `SHARE` of the run's time, and only when the fold has changed. When the run has ended, one output
of plotly, SVG and text takes its place, which a saved notebook keeps. Where a program executes the notebook, and in a
terminal, there is only that last output.

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
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, Self

import anywidget
import traitlets
from ipykernel.zmqshell import ZMQInteractiveShell
from IPython.core.getipython import get_ipython
from IPython.display import display, update_display

from lab.events import Ended, Event, Started
from widgets.boards import Board
from widgets.pictures import Note, Picture, bundle

RATE = 8  # drawings a second, at most
SHARE = 0.05  # of the run's time that drawing may take


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

    _screen: Screen | None = None
    _changed = False
    _at_rest = False
    _dropped: Note | None = None

    @classmethod
    def of(cls, events: Iterable[Event]) -> Self:
        """The view of a run that is over, with default options. It shows itself as the last line of a cell."""
        return cls().replay(events)

    def replay(self, events: Iterable[Event]) -> Self:
        """Take in all events of a stored run; nothing is drawn meanwhile."""
        for event in events:
            if isinstance(event, self.reads):
                self.fold(event)
        self._at_rest = True
        return self

    def board(self) -> Board:
        """All pictures as one, to be saved or shown elsewhere."""
        return Board(self.title, [self._dropped] if self._dropped else self.pictures())

    def save(self, path: str | Path) -> None:
        """Write a ``.svg``, or a ``.html`` that is interactive and needs no network."""
        self.board().save(path)

    def __call__(self, event: Event) -> None:
        self.add(event)

    def add(self, event: Event) -> None:
        """Take in one event of a run that goes on, and draw if it is time."""
        if self._dropped:
            return
        try:
            if self._at_rest and isinstance(event, Started):  # a new run, in a new place
                self._screen, self._at_rest = None, False
            if isinstance(event, self.reads):
                self.fold(event)
                self._changed = True
            if isinstance(event, Ended) or self._at_rest:
                self.rest()
                return
            here = threading.current_thread() is threading.main_thread()
            screen = self._place() if here else self._screen  # a thread has no cell to show anything in
            if self._changed and screen is not None and screen.is_due():
                screen.draw(self.board)
                self._changed = False
        except Exception as error:
            self._drop(error)

    def show(self) -> None:
        """Appear in this cell: live while a run goes on, at rest afterwards."""
        if self._at_rest:
            Screen("batch" if surroundings() != "terminal" else "terminal").rest(self.board())
        elif self._screen is None:
            self._place()
        else:
            self._screen.show()

    _ipython_display_ = show

    def rest(self) -> None:
        """Come to rest: what was live becomes one picture that needs no kernel, and nothing more is drawn of this run.

        `Ended` does this by itself.
        """
        if not self._at_rest:
            self._place().rest(self.board())
            self._at_rest = True

    def _place(self) -> Screen:
        if self._screen is None:
            self._screen = Screen(surroundings())
        return self._screen

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


class Canvas(anywidget.AnyWidget):
    """Draws the board that it was given last. That is its whole state, so a page that is loaded again has it at once."""

    _esm = Path(__file__).with_name("view.js")
    board = traitlets.Dict().tag(sync=True)


class Screen:
    """A place in the output of a cell: a canvas in live ``surroundings``, nothing elsewhere, and one picture at the end."""

    def __init__(self, where: str, clock: Callable[[], float] = time.monotonic):
        self.where, self.clock = where, clock
        self.canvas = Canvas() if where == "live" else None
        self.display_id = uuid.uuid4().hex
        self.next = -math.inf  # when it may be drawn again
        self.show()

    def show(self) -> None:
        if self.canvas is not None:
            forms = self.canvas._repr_mimebundle_()
            data = forms[0] if isinstance(forms, tuple) else forms
            display(data, raw=True, display_id=self.display_id)

    def is_due(self) -> bool:
        return self.canvas is not None and self.clock() >= self.next

    def draw(self, board: Callable[[], Board]) -> None:
        if self.canvas is not None:
            began = self.clock()
            self.canvas.board = board().spec()
            ended = self.clock()
            self.next = max(began + 1 / RATE, ended + (ended - began) / SHARE)

    def rest(self, board: Board) -> None:
        """One output for good. The canvas stays behind it for a page that was loaded again and no longer knows the cell."""
        forms = bundle(board)
        if self.canvas is not None:
            self.canvas.board = board.spec() | {"at_rest": True}
            update_display(forms, raw=True, display_id=self.display_id)
        elif self.where == "batch":
            display(forms, raw=True, display_id=self.display_id)
        else:
            print(forms["text/plain"])


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
