"""The canvas of a view that is live: what the page holds, and the little that is sent to keep it so.

The page (`view.js`) holds a *board* (title, controls, panels: what `Board.spec` says) and *columns*, which are arrays of
float32 with a number each. Where a panel would list many numbers it names a column instead.

kernel to page:

``board`` (a synced trait)
    all of it, ``columns`` included. It is packed when a page asks: when it is opened or loaded again, never while a run
    goes on before its eyes.
``{"seq": s, "head": {…}, "num": n, "panels": [[k, {…}], …], "columns": [[number, start], …], "gone": […]}``
    what changed: fields of the head, fields of panel k of n, and, in a buffer a column, its numbers from ``start`` on,
    which take the place of whatever lay there. Messages are counted. One that the board contained already (``seq`` is not
    more than the board's) is passed over; where one is missing the page asks for the board.
``{"error": words}``
    what a control was given is not allowed.
``{"rest": forms, "id": …}``
    the answer to ``rest``.

page to kernel:

``{"choose": name, "value": text}``
    a control was used.
``{"ask": "board"}``
    the page missed a message: the trait is sent again.
``{"ask": "rest"}``
    the run is over and the page still shows the canvas, since it was loaded again meanwhile and no longer knows its cell:
    it writes the picture that it gets into its notebook by itself.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anywidget
import numpy as np
import traitlets

from lab.runs.growing import Growing
from widgets.boards import Board


class Canvas(anywidget.AnyWidget):
    """Draws boards. ``choose`` is called when the person at the page uses a control; a ValueError is shown there."""

    _esm = Path(__file__).with_name("view.js")
    board = traitlets.Any().tag(sync=True, to_json=lambda _, canvas: canvas.packed())

    def __init__(self, choose: Callable[[str, str], None] = lambda name, value: None):
        self.lock = threading.RLock()  # a page may ask while a run draws
        self.choose, self.head, self.forms = choose, dict[str, Any](), dict[str, Any]()
        self.panels: list[dict[str, Any]] = []
        self.columns: dict[
            int | tuple[int], _Column
        ] = {}  # by identity, or by place where a list is made anew each time
        self.made, self.seq = 0, 0
        super().__init__()
        self.on_msg(self._asked)

    def draw(self, board: Board, **head: Any) -> None:
        """Send what is new since the last time; ``head`` is shown with the title."""
        with self.lock:
            used: dict[int | tuple[int], _Column] = {}

            def held(numbers: Growing | list[Any]) -> int:
                key = id(numbers) if isinstance(numbers, Growing) else (len(used),)
                column = used.get(key) or self.columns.get(key)
                if column is None:
                    self.made += 1
                    column = _Column(self.made)
                column.numbers, used[key] = numbers, column
                return column.number

            spec = board.spec(held)
            panels, new_head = spec.pop("panels"), spec | head
            message: dict[str, Any] = {"seq": self.seq + 1, "num": len(panels), "columns": [], "panels": []}
            if changed := _changed(self.head, new_head):
                message["head"] = changed
            for k, panel in enumerate(panels):
                if fields := _changed(self.panels[k] if k < len(self.panels) else {}, panel):
                    message["panels"].append([k, fields])
            buffers = []
            for column in used.values():
                if (new := column.new()) is not None:
                    message["columns"].append([column.number, column.size - len(new)])
                    buffers.append(new.tobytes())
            if gone := [column.number for key, column in self.columns.items() if key not in used]:
                message["gone"] = gone
            nothing = not (message["panels"] or buffers or gone or "head" in message or len(panels) < len(self.panels))
            self.head, self.panels, self.columns = new_head, panels, used
            if not nothing:
                self.seq += 1
                self.send(message, buffers)

    def packed(self) -> dict[str, Any]:
        """The whole board, with the columns as bytes, as far as they were sent."""
        with self.lock:
            columns = {str(column.number): column.sent().tobytes() for column in self.columns.values()}
            return {"seq": self.seq, "head": self.head, "panels": self.panels, "columns": columns}

    def _asked(self, _: Any, content: dict[str, Any], buffers: Any) -> None:
        if content.get("ask") == "board":
            self.send_state("board")
        elif content.get("ask") == "rest":
            self.send({"rest": self.forms, "id": self.model_id})
        elif "choose" in content:
            try:
                self.choose(content["choose"], str(content["value"]))
            except ValueError as error:
                self.send({"error": str(error)})


class _Column:
    """Numbers that the page holds under a number, as far as they were sent."""

    def __init__(self, number: int):
        self.number, self.size = number, 0
        self.numbers: Growing | list[Any] = []
        self.whole = np.empty(0, np.float32)  # of a list: as it was sent

    def new(self) -> np.ndarray | None:
        """What was not sent yet: the end of numbers that grow, all of a list that changed, None if there is nothing."""
        if isinstance(self.numbers, Growing):
            fresh = self.numbers.values[self.size :].astype(np.float32)
            self.size = len(self.numbers)
            return fresh if len(fresh) else None
        now = np.array([np.nan if v is None else v for v in self.numbers], dtype=np.float32)
        if np.array_equal(now, self.whole, equal_nan=True):
            return None
        self.whole, self.size = now, len(now)
        return now

    def sent(self) -> np.ndarray:
        if isinstance(self.numbers, Growing):
            return self.numbers.values[: self.size].astype(np.float32)
        return self.whole


def _changed(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in new.items() if key not in old or old[key] != value}
