"""Predict, then move the slider: a question whose pictures come after the prediction, with the truth beside it."""

from __future__ import annotations

import math
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anywidget
import traitlets
from IPython.display import display, update_display

from lab.study import predictions
from lab.study.predictions import Prediction, now
from widgets.boards import Board
from widgets.menus import with_slider
from widgets.pictures import Bars, Figure, Note, Picture, bundle
from widgets.resting import MIME, packed
from widgets.static_fallback import StaticFallback
from widgets.view import surroundings


@dataclass(eq=False, repr=False)
class Question:
    """A question with a slider. It shows itself as the last line of a cell.

    In front of a person it first asks for a prediction; then one picture takes the place of the widget, with the prediction, the
    truth and a slider that needs no kernel, and a saved notebook keeps it, with what was predicted and when (`lab.study.predictions`). Where a program executes the notebook, or with a
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
    predicted: Prediction | None = field(default=None, init=False)  # the same with its time, as the notebook keeps it

    def __post_init__(self) -> None:
        if self.at not in self.places:
            raise ValueError(f"at = {self.at!r} is no place of the slider: use {', '.join(self.places)}")
        if self.options and self.truth not in self.options:
            raise ValueError(f"truth = {self.truth!r} is none of the options: use {', '.join(self.options)}")
        if self.prediction is not None:
            self.predict(self.prediction)

    def predict(self, words: float | str, at: str | None = None) -> None:
        """Take in a prediction, as it was typed or chosen; ``at`` says when, by default now.

        Raises
        ------
        ValueError
            for what is no positive number, or none of the options; then nothing has changed.
        """
        if self.options:
            if words not in self.options:
                raise ValueError(f"choose one of {', '.join(self.options)}")
            self._take(words, at)
            return
        try:
            number = float(words)
        except ValueError:
            number = math.nan
        if not 0 < number < math.inf:
            raise ValueError(f"{words!r} is no number greater than 0: write one, for example 12.5")
        self._take(number, at)

    def _take(self, said: float | str, at: str | None) -> None:
        self.predicted = Prediction(self.title, said, self.truth, self.unit, at or now())
        self.prediction = said

    def verdict(self) -> str:
        """Prediction and truth in words."""
        if self.prediction is None:
            return f"the lab finds {self._say(self.truth)}"
        how = self.predicted.how if self.predicted is not None else ""
        if isinstance(self.truth, str) or isinstance(self.prediction, str):
            return f"{how}: you said {self.prediction}, the lab finds {self.truth}"
        if how in ("right", "close"):
            return f"your prediction is {how}"
        ratio = self.prediction / self.truth
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
        if self.predicted is not None:
            forms[predictions.MIME] = self.predicted.to_json()
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


class _Asking(anywidget.AnyWidget):
    """The form that asks (`questions.js`), and the picture that takes its place.

    The page sends ``{"predict": words, "at": time or null}``; what is refused stands in ``problem``. What is a prediction is answered by
    ``{"say": words, "prediction": …}``, for whom to announce it and where to keep it, and by the picture.
    """

    _esm = Path(__file__).with_name("questions.js")
    title = traitlets.Unicode().tag(sync=True)
    unit = traitlets.Unicode().tag(sync=True)
    options = traitlets.List(traitlets.Unicode()).tag(sync=True)
    problem = traitlets.Unicode().tag(sync=True)
    said = traitlets.Unicode().tag(sync=True)  # once it is answered

    def __init__(self, question: Question):
        super().__init__(title=question.title, unit=question.unit, options=list(question.options))
        self.question, self.display_id = question, uuid.uuid4().hex
        self.on_msg(self._asked)
        words = f"{question.title}\nNo prediction yet: run this cell to predict."
        self.fallback = StaticFallback(words=words, controls=self.model_id)
        forms = self._repr_mimebundle_()
        data = dict((forms[0] if isinstance(forms, tuple) else forms) or {})
        display(data | {"text/plain": words}, raw=True, display_id=self.display_id)

    def _asked(self, _: Any, content: Mapping[str, Any], buffers: Any) -> None:
        if "predict" in content and not self.said:
            self.commit(content["predict"], content.get("at"))

    def commit(self, words: float | str, at: str | None = None) -> None:
        """Look, if that is a prediction. ``at``: when it was made, if not now."""
        question = self.question
        try:
            question.predict(words, at)
        except ValueError as error:
            self.problem = ""  # said again, also where it is the same
            self.problem = str(error)
            return
        told = f"{question.title}: {question.verdict()}."
        self.send({"say": told, "prediction": question.predicted.to_json() if question.predicted else None})
        update_display(question.bundle(), raw=True, display_id=self.display_id)
        self.said = self.fallback.words = f"{told} Run this cell again to see the picture."
