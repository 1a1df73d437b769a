"""Predict, then move the slider: a question whose pictures come after the prediction, with the truth beside it."""

from __future__ import annotations

import html
import math
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ipywidgets
from IPython.display import display, update_display

from widgets.boards import Board
from widgets.menus import with_slider
from widgets.panel import STYLE, OwnKeys, bar
from widgets.pictures import Bars, Figure, Note, Picture, bundle
from widgets.resting import MIME, packed
from widgets.static_fallback import StaticFallback
from widgets.view import surroundings

EQUAL, NEAR = 0.02, 0.25  # relative: a prediction so close is called right, or close


@dataclass(eq=False, repr=False)
class Question:
    """A question with a slider. It shows itself as the last line of a cell.

    In front of a person it first asks for a prediction; then one picture takes the place of the widget, with the prediction, the
    truth and a slider that needs no kernel, and a saved notebook keeps it. Where a program executes the notebook, or with a
    ``prediction`` given, there is that picture at once.

    title
        the question, short; the cell above may explain it.
    slider
        what it moves, with its unit.
    places
        the picture at every place of the slider (``K = 64``), all with the same series or rows.
    at
        the place that the question is about.
    truth, unit
        what is right there: a positive number with its unit, or one of the ``options``.
    options
        what can be chosen; without any, a number is asked for.
    prediction
        what was predicted, None before.
    """

    title: str
    slider: str
    places: Mapping[str, Picture]
    at: str
    truth: float | str
    unit: str = ""
    options: Sequence[str] = ()
    prediction: float | str | None = None

    def __post_init__(self) -> None:
        if self.at not in self.places:
            raise ValueError(f"at = {self.at!r} is no place of the slider: use {', '.join(self.places)}")
        if self.options and self.truth not in self.options:
            raise ValueError(f"truth = {self.truth!r} is none of the options: use {', '.join(self.options)}")
        if self.prediction is not None:
            self.predict(self.prediction)

    def predict(self, words: float | str) -> None:
        """Take in a prediction, as it was typed or chosen.

        Raises
        ------
        ValueError
            for what is no positive number, or none of the options; then nothing has changed.
        """
        if self.options:
            if words not in self.options:
                raise ValueError(f"choose one of {', '.join(self.options)}")
            self.prediction = words
            return
        try:
            number = float(words)
        except ValueError:
            number = math.nan
        if not 0 < number < math.inf:
            raise ValueError(f"{words!r} is no number greater than 0: write one, for example 12.5")
        self.prediction = number

    def verdict(self) -> str:
        """Prediction and truth in words."""
        if self.prediction is None:
            return f"the lab finds {self._say(self.truth)}"
        if isinstance(self.truth, str) or isinstance(self.prediction, str):
            right = self.prediction == self.truth
            return f"{'right' if right else 'not so'}: you said {self.prediction}, the lab finds {self.truth}"
        ratio = self.prediction / self.truth
        if abs(ratio - 1) <= NEAR:
            return f"your prediction is {'right' if abs(ratio - 1) <= EQUAL else 'close'}"
        high, factor = ("high", ratio) if ratio > 1 else ("low", 1 / ratio)
        return f"your prediction is {factor:.2g} times too {high}" if factor >= 2 else f"your prediction is too {high}"

    def board(self, place: str | None = None) -> Board:
        """What is to be seen at a place of the slider."""
        return Board(self.title, [self._beside(), self.places[self.at if place is None else place]])

    def bundle(self) -> dict[str, Any]:
        """What a notebook keeps: the pictures of all places behind a slider, and that of ``at`` as SVG and text."""
        forms = bundle(self.board())
        control = {"name": "at", "label": self.slider, "value": self.at, "options": list(self.places), "slider": True}
        forms[MIME] = packed({place: self.board(place).spec() for place in self.places}, control)
        return forms

    def plotly(self) -> Figure:
        """The same as a plotly figure, to be explored."""
        figures = {place: self.board(place).plotly() for place in self.places}
        return with_slider(figures, self.at, self.slider)

    def show(self) -> None:
        """Appear in this cell: ask for the prediction, or show what is so."""
        where = surroundings()
        if where == "live" and self.prediction is None:
            _Asking(self)
        elif where == "terminal":
            print(self.board().text())
        else:
            display(self.bundle(), raw=True)

    _ipython_display_ = show

    def _beside(self) -> Picture:
        if isinstance(self.truth, str):
            return Note("Predicted and found", f"{self.at}: {self.verdict()}")
        rows = [] if self.prediction is None else [("your prediction", float(self.prediction))]
        names, values = zip(*rows, ("the lab", self.truth), strict=True)
        labels = [self._say(value) for value in values]
        return Bars(
            f"{self.at}: {self.verdict()}", self.unit, names, values, labels, colours=(0,) if not rows else (1, 0)
        )

    def _say(self, value: float | str) -> str:
        return value if isinstance(value, str) else f"{value:.4g} {self.unit}"


class _Asking:
    """The widget that asks, and the picture that takes its place."""

    def __init__(self, question: Question):
        self.question, self.display_id = question, uuid.uuid4().hex
        self.title = ipywidgets.HTML(f"<b>{html.escape(question.title)}</b>")
        self.field: Any
        if question.options:
            self.field = ipywidgets.RadioButtons(options=list(question.options), value=None, layout={"width": "auto"})
        else:
            self.field = ipywidgets.Text(placeholder="a number", description=question.unit, layout={"width": "auto"})
            self.field.style.description_width = "initial"
            self.field.on_msg(lambda _, content, buffers: self.commit() if content.get("event") == "submit" else None)
        self.go = ipywidgets.Button(description="Predict, then look", button_style="primary", layout={"width": "auto"})
        self.go.on_click(lambda _: self.commit())
        self.problem = ipywidgets.HTML()
        self.problem.add_class("isthmus-problem")
        words = f"{question.title}\nNo prediction yet: run this cell to predict."
        self.fallback = StaticFallback(words=words)
        rows = [ipywidgets.HTML(STYLE), self.title, bar([self.field, self.go]), self.problem, OwnKeys(), self.fallback]
        self.widget = ipywidgets.VBox(rows)
        self.widget.add_class("isthmus-panel")
        self.fallback.controls = self.widget.model_id
        forms = self.widget._repr_mimebundle_()
        data = dict(forms[0] if isinstance(forms, tuple) else forms)
        display(data | {"text/plain": words}, raw=True, display_id=self.display_id)

    def commit(self) -> None:
        """Look, if there is a prediction."""
        try:
            self.question.predict("" if self.field.value is None else self.field.value)
        except ValueError as error:
            self.problem.value = f'<span role="alert">{html.escape(str(error))}</span>'
            return
        update_display(self.question.bundle(), raw=True, display_id=self.display_id)
        words = f"{self.question.title} {self.question.verdict()}. Run this cell again to see the picture."
        self.title.value = html.escape(words)  # for a page that was loaded again and knows only the widget
        self.fallback.words = words
        self.widget.children = [self.title, self.fallback]
        for widget in (self.field, self.go, self.problem):
            widget.close()
