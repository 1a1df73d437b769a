"""Questions to predict, the slider behind them, and the view of knobs: what they say, show and keep. No browser."""

from __future__ import annotations

from typing import Any

import pytest

import widgets.questions
from lab.events import Ended, KnobChanged, Started, Stepped
from lab.recipes.recipe import Recipe
from lab.runs.folder import RunFolder
from lab.runs.knobs import network_fields
from lab.study import predictions
from lab.study.predictions import Prediction
from tests.support import ROOT
from widgets.knobs import Knobs
from widgets.menus import SLIDER, with_slider
from widgets.pictures import Bars, Note
from widgets.questions import Question, _Asking
from widgets.resting import MIME
from widgets.timelines import Calendar

STORED = ROOT / "notebooks/stored/turned"
PLACES = {
    f"K = {k}": Bars("How many?", "bytes", ["DDP", "other"], [64, 64 / k], ["64 B", f"{64 // k} B"]) for k in (2, 4, 8)
}


def number(prediction: Any = None) -> Question:
    return Question("How many?", "period", PLACES, "K = 4", 16.0, "B", prediction=prediction)


def choice(prediction: Any = None) -> Question:
    options = ["too few", "enough"]
    return Question("Enough?", "period", PLACES, "K = 4", "enough", options=options, prediction=prediction)


@pytest.mark.parametrize(
    ("question", "words"),
    [
        (number(), "the lab finds 16 B"),
        (number(16), "your prediction is right"),
        (number(14), "your prediction is close"),
        (number("24"), "your prediction is too high"),
        (number(64), "your prediction is 4 times too high"),
        (number(1), "your prediction is 16 times too low"),
        (choice(), "the lab finds enough"),
        (choice("enough"), "right: you said enough, the lab finds enough"),
        (choice("too few"), "not so: you said too few, the lab finds enough"),
    ],
)
def test_prediction_and_truth_stand_beside_each_other(question: Question, words: str) -> None:
    """In every form that a notebook keeps, with the picture of the place in question."""
    forms = question.bundle()
    assert question.verdict() == words
    for form in (forms["text/plain"], forms["image/svg+xml"], forms[MIME]["packed"]):
        assert words in form
        assert ("your prediction" in form) == ("your prediction" in words) or question.prediction is not None
        assert "16 B" in form


@pytest.mark.parametrize("words", ["", "many", "-3", "0", "nan", "inf"])
def test_what_is_no_prediction(words: str) -> None:
    question = number()
    with pytest.raises(ValueError, match="no number greater than 0"):
        question.predict(words)
    assert question.prediction is None


def test_mistakes_of_whoever_asks() -> None:
    with pytest.raises(ValueError, match="use K = 2, K = 4, K = 8"):
        Question("?", "period", PLACES, "K = 3", 1.0)
    with pytest.raises(ValueError, match="none of the options"):
        Question("?", "period", PLACES, "K = 4", "enough", options=["few"])
    with pytest.raises(ValueError, match="choose one of too few, enough"):
        choice("some")


def test_the_slider_turns_each_figure_into_each_other() -> None:
    """Every step holds what differs from one place to another, and the height, which JupyterLab would forget."""
    figure = number(64).plotly()
    (slider,) = figure["layout"]["sliders"]
    assert [step["label"] for step in slider["steps"]] == list(PLACES)
    assert slider["active"] == 1
    plain = number(64).board().plotly()["layout"]
    assert figure["layout"]["height"] == plain["height"] + SLIDER
    assert figure["layout"]["margin"]["b"] == plain["margin"]["b"] + SLIDER
    for step, k in zip(slider["steps"], (2, 4, 8), strict=True):
        styles, layout, touched = step["args"]
        assert layout == {"height": figure["layout"]["height"]}
        assert touched == [1]  # the prediction stays
        assert styles == {"x": [[64, 64 / k]], "text": [["64 B", f"{64 // k} B"]]}
    with pytest.raises(ValueError, match="the same traces"):
        with_slider({"a": PLACES["K = 2"].plotly(), "b": Note("?", "").plotly()}, "a", "x")


def shown(monkeypatch: pytest.MonkeyPatch, where: str) -> tuple[list[Any], list[Any]]:
    displayed, updated = list[Any](), list[Any]()
    monkeypatch.setattr(widgets.questions, "surroundings", lambda: where)
    monkeypatch.setattr(widgets.questions, "display", lambda forms, **_: displayed.append(forms))
    monkeypatch.setattr(widgets.questions, "update_display", lambda forms, **_: updated.append(forms))
    return displayed, updated


def test_where_a_program_runs_it_there_is_the_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same for a person who has predicted already."""
    for where, question in (("batch", number()), ("batch", number(3)), ("live", number(3))):
        displayed, _ = shown(monkeypatch, where)
        question.show()
        assert displayed == [question.bundle()]


def test_in_a_terminal_it_is_told(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    shown(monkeypatch, "terminal")
    number(64).show()
    assert "4 times too high" in capsys.readouterr().out


def asked(monkeypatch: pytest.MonkeyPatch, question: Question) -> tuple[_Asking, list[Any], list[Any], list[Any]]:
    """The form in front of a person: what it displayed, what took its place, and what it sent to its page."""
    displayed, updated = shown(monkeypatch, "live")
    made, sent = list[_Asking](), list[Any]()

    def make(one: Question) -> None:
        made.append(_Asking(one))
        monkeypatch.setattr(made[0], "send", lambda content, buffers=None: sent.append(content))

    monkeypatch.setattr(widgets.questions, "_Asking", make)
    question.show()
    return made[0], displayed, updated, sent


def test_a_person_predicts_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """A form asks, which knows nothing of the answer; nonsense is said to be that; then one picture without a widget takes its place."""
    question = number()
    asking, (forms,), updated, sent = asked(monkeypatch, question)
    assert "application/vnd.jupyter.widget-view+json" in forms
    assert "No prediction yet" in forms["text/plain"]
    known = {
        key: value
        for key, value in asking.get_state().items()
        if key in asking.trait_names(sync=True) and key[0] != "_"
    }
    assert (known["title"], known["unit"], known["options"]) == ("How many?", "B", [])
    assert 16.0 not in known.values()
    assert "16" not in forms["text/plain"]
    assert asking.fallback.controls == asking.model_id
    asking._asked(None, {"predict": "many", "at": None}, [])
    assert "no number greater than 0" in asking.problem
    assert (updated, sent, question.predicted) == ([], [], None)
    asking._asked(None, {"predict": "64", "at": None}, [])
    assert updated == [question.bundle()]
    assert question.prediction == 64
    assert question.predicted is not None
    assert sent == [
        {"say": "How many?: your prediction is 4 times too high.", "prediction": question.predicted.to_json()}
    ]
    assert "4 times too high" in asking.said
    assert asking.fallback.words == asking.said
    asking._asked(None, {"predict": "16", "at": None}, [])  # a second click before the picture is there
    assert question.prediction == 64


def test_a_person_chooses(monkeypatch: pytest.MonkeyPatch) -> None:
    asking, _, updated, _ = asked(monkeypatch, choice())
    asking.commit("")
    assert "choose one of" in asking.problem
    asking.commit("too few")
    assert updated == [asking.question.bundle()]


def test_what_was_predicted_before_is_looked_at_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """With its own time, so that it is no second prediction."""
    asking, _, updated, sent = asked(monkeypatch, number())
    asking._asked(None, {"predict": 64, "at": "2026-11-30T10:00:00+00:00"}, [])
    assert updated[0][predictions.MIME]["at"] == "2026-11-30T10:00:00+00:00"
    assert sent[0]["prediction"]["at"] == "2026-11-30T10:00:00+00:00"


def test_the_output_keeps_what_was_predicted() -> None:
    """A prediction with its time; nothing where a program ran the notebook."""
    assert predictions.MIME not in number().bundle()
    kept = number(64).bundle()[predictions.MIME]
    assert (kept["question"], kept["said"], kept["truth"], kept["unit"]) == ("How many?", 64.0, 16.0, "B")
    assert Prediction.from_json(kept).how == "not so"


# --- knobs -----------------------------------------------------------------------------------------------------------


def test_knobs_of_the_stored_run() -> None:
    """A row for every knob, bars for as long as it was not where the recipe has it."""
    (picture,) = Knobs.of(RunFolder(STORED).events()).pictures()
    assert isinstance(picture, Calendar)
    told = [(picture.rows[m.row], m.name, list(m.at), m.to) for m in picture.marks]
    assert told == [
        ("learning rate", "learning rate × 8", [65], [96]),
        ("sync periods", "params every 32", [129], [192]),
        ("killed", "worker 3 down", [145], [176]),
    ]


def test_every_knob_has_words() -> None:
    """Links by name where they have one; pauses; one period or several; a bar lasts to the step that is there."""
    recipe = Recipe.of("diloco")
    started = Started(1, recipe.to_dict(), 1, [1], 1, None, 1.0, {})
    odd = dict(network_fields("1Gbit") or {}) | {"latency_seconds": 9.0}
    turned = [
        KnobChanged(2, "lr", 2.0),
        KnobChanged(2, "lr", 2**0.5),
        KnobChanged(2, "sync_every", 8),
        KnobChanged(3, "network", network_fields("1Gbit")),
        KnobChanged(4, "network", odd),
        KnobChanged(5, "paused", True),
        KnobChanged(5, "paused", False),
        KnobChanged(6, "down", [0, 2]),
        KnobChanged(7, "sync_every", 16),
    ]
    view = Knobs()
    assert isinstance(view.pictures()[0], Note)
    view.replay([started])
    assert isinstance(view.pictures()[0], Note)
    view.replay([*turned, Stepped(9, [1.0] * 4, 1.0, 0.1), Ended(9, "stopped", "")])
    (picture,) = view.pictures()
    assert isinstance(picture, Calendar)
    assert [(m.name, list(m.at), m.to) for m in picture.marks] == [
        ("learning rate × 1.41", [2], [9]),
        ("a sync every 8", [2], [6]),
        ("workers 0, 2 down", [6], [9]),
        ("1Gbit", [3], [3]),
        ("another link", [4], [9]),
        ("waits", [5], [5]),
    ]
    assert len({m.colour for m in picture.marks}) == 6
    view.replay([started])
    assert isinstance(view.pictures()[0], Note)
