"""Every view answers its question in one sentence, whose numbers are those of its pictures, in every form."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import pytest

import widgets
from lab.events import Event, KnobChanged, Started, Stepped
from lab.recipes.recipe import Recipe
from lab.runs.trainer import Trainer
from tests.support.pictures import (
    audited,
    branched,
    by_client,
    compared,
    federation,
    iterated,
    levelled,
    masked,
    orchestrated,
    pseudo_labelled,
    routing,
    unlearned,
    weighed,
)
from widgets import (
    AgentGraph,
    Board,
    CommunicationBudget,
    Drift,
    Fairness,
    FederationTree,
    Iterations,
    Knobs,
    Lines,
    Losses,
    MaskAgreement,
    PrivacyLevels,
    PseudoLabels,
    RankSegments,
    RoutingStability,
    SampleWeights,
    StyleLeak,
    SyncCalendar,
    Underperformers,
    Unlearning,
    View,
    Workers,
)
from widgets.pages import page
from widgets.pictures import Note

SMALL = [
    "model=nano",
    "corpus=grammar?tokens=20000",
    "steps=12",
    "context=8",
    "batch_size=1",
    "eval_every=4",
    "eval_windows=2",
]
STORM = 'scenario={"outages":[{"worker":3,"first":6,"last":9},{"worker":1,"last":3}],"slow":{"2":2.5}}'
RECIPE = Recipe.of(
    "des_loc", [*SMALL, "schedule.warmup=0", 'method.sync_every={"params":2,"exp_avg":4,"exp_avg_sq":6}', STORM]
)
UNITS = {"%": 0.01, "B": 1.0, "kB": 1e3, "MB": 1e6, "GB": 1e9, "ms": 1e-3, "min": 60.0, "h": 3600.0}
NUMBER = re.compile(r"(?<![\w#])-?\d[\d,]*(?:\.\d+)?(?:e[-+]?\d+)?(?: (?:%|B|kB|MB|GB|ms|min|h)(?!\w))?")


def numbers(sentence: str) -> list[float]:
    """All numbers of a sentence, in its order, with shares from 0 to 1, bytes and seconds."""
    found = [m.group().replace(",", "").split() for m in NUMBER.finditer(sentence)]
    return [float(number) * UNITS[unit[0]] if unit else float(number) for number, *unit in found]


@cache
def trained() -> list[Event]:
    return list(Trainer(RECIPE).events())


def turned() -> list[Event]:
    started = next(e for e in trained() if isinstance(e, Started))
    out: list[Event] = [started]
    for t in range(1, 9):
        out += [KnobChanged(t, "lr", 0.5 if t == 3 else 1.0)] if t in (3, 6) else []
        out.append(Stepped(t, [1.0] * 4, 1.0, 0.1))
    return out


def levels() -> PrivacyLevels:
    view = PrivacyLevels()
    for split in ("", "by:person", "by:person+sensor"):
        view.replay(levelled(split, 0, 4), split)
    return view


def picture(view: View, title: str) -> Any:
    return next(p for p in view.pictures() if p.title.startswith(title))


def ends(lines: Lines) -> dict[str, tuple[float, float]]:
    """The last point of each line that is not faint."""
    return {s.name: s.last for s in lines.series if not s.faint and s.last}


def drawn_losses(view: View) -> list[float]:
    (line,) = [s for s in picture(view, "How low").series if s.name == "agreed model"]
    return [line.y[-1], line.x[-1], abs(line.y[-1] - line.y[0]), line.x[0]]


def drawn_budget(view: View) -> list[float]:
    sent, time = ends(picture(view, "How many bytes")), ends(picture(view, "How long"))
    step, payload = sent["payload"]
    return [step, RECIPE.steps, payload, sent["wire"][1], 100, next(iter(time.values()))[1]]


def drawn_drift(view: View) -> list[float]:
    line = next(s for s in picture(view, "How far apart").series if not s.faint)
    return [line.x[-1], line.y[-1], line.y[0], line.x[0]]


def drawn_fairness(view: View) -> list[float]:
    at = ends(picture(view, "How is the loss"))
    assert isinstance(view, Fairness)
    assert view.last is not None
    num = sum(picture(view, "Who has which loss").series[0].y[1:-1:2])
    return [
        num,
        at["shared, mean"][0],
        at["shared, mean"][1],
        at["shared, worst tenth"][1],
        view.last.gain["loss"]["share"],
    ]


def drawn_tree(view: View) -> list[float]:
    graph = picture(view, "Who belongs")
    workers, nodes = [d.value for d in graph.dots if d.below], [d.value for d in graph.dots if not d.below]
    step = numbers(graph.title)[-1]
    return [step, len(workers), len(nodes), float(np.mean(workers)), min(workers), max(workers), nodes[0]]


def drawn_iterations(view: View) -> list[float]:
    line = picture(view, "What is the loss").series[0]
    k = int(np.nanargmin(line.y))
    trained_with = numbers(picture(view, "What is the loss").x)[0]
    step = numbers(picture(view, "What is the loss").title)[-1]
    return [step, line.x[k], line.y[k], line.y[0] - line.y[k], line.x[0], trained_with]


def drawn_knobs(view: View) -> list[float]:
    calendar = picture(view, "Which knob")
    return [len(calendar.rows), len(calendar.marks), min(m.steps[0] for m in calendar.marks)]


def drawn_masks(view: View) -> list[float]:
    agree, grown = ends(picture(view, "How far do masks")), ends(picture(view, "How much grows"))
    return [
        agree["two clients, mean"][0],
        agree["two clients, mean"][1],
        agree["two clients, least"][1],
        grown["weights"][1],
    ]


def drawn_levels(view: View) -> list[float]:
    values = picture(view, "Accuracy by level").values
    return [len(values), max(values), min(values), 100 * (max(values) - min(values))]


def drawn_labels(view: View) -> list[float]:
    assert isinstance(view, PseudoLabels)
    assert view.last is not None
    lines = picture(view, "How many get")
    right = next(s for s in lines.series if s.name == "right")
    at = ends(lines)
    return [at["right"][0], at["with a label"][1], view.last.examples, at["right"][1], right.y[0], right.x[0]]


def drawn_segments(view: View) -> list[float]:
    energy, cover = picture(view, "Which segments"), picture(view, "How many clients")
    name, (step, share) = [*ends(energy).items()][-1]
    low, high = map(int, re.findall(r"\d+", name))
    return [low, high, share, cover.values[-1][-1], cover.high, step]


def drawn_routing(view: View) -> list[float]:
    (step, churn), *_ = ends(picture(view, "How many choices")).values()
    dead = picture(view, "How many experts are dead")
    of = int(re.findall(r"\d+", dead.y)[0])
    return [churn, step, dead.series[-1].last[1], of, 0.01]


def drawn_weights(view: View) -> list[float]:
    by_domain = sorted(ends(picture(view, "Whose samples")).values(), key=lambda end: -end[1])
    effective = ends(picture(view, "How much of the data"))["effective"][1]
    return [by_domain[0][0], by_domain[0][1], by_domain[-1][1], effective]


def drawn_leak(view: View) -> list[float]:
    lines = picture(view, "How many texts pass")
    line, band = lines.series[-1], lines.bands[-1]
    return [line.y[-1], line.x[-1], 0.95, band.low[-1], band.high[-1], lines.floor[0]]


def drawn_calendar(view: View) -> list[float]:
    calendar = picture(view, "Who computes")
    times: dict[str, set[int]] = {}
    for m in calendar.marks:
        if m.to is None:
            times.setdefault(m.name, set()).update(int(x) for x in m.steps)
    assert isinstance(view, SyncCalendar)
    return [calendar.now, calendar.last, *(len(times[state]) for state in view.done.states)]


def drawn_alone(view: View) -> list[float]:
    assert isinstance(view, Underperformers)
    assert view.last is not None
    bars = picture(view, "How many would")
    of = int(bars.labels[0].split(" of ")[1])
    return [bars.values[0], of, min(bars.values[1:]), view.last.step]


def drawn_unlearning(view: View) -> list[float]:
    (forget, retain) = next(s.last for s in picture(view, "Recall after").series if s.name == "closed form")
    attacks = picture(view, "What do attacks")
    return [forget, retain, max(v for n, v in zip(attacks.names, attacks.values, strict=True) if n != "no attack")]


def drawn_agents(view: View) -> list[float]:
    assert isinstance(view, AgentGraph)
    assert view.shown is not None
    cost = next(s for s in picture(view, "What does a right").series if s.name == "nexa")
    k = [round(y, 6) for y in cost.y].index(round(view.shown.accuracy, 6))
    return [
        view.shown.questions,
        view.shown.num_agents,
        cost.y[k],
        view.shown.right_drafts / view.shown.questions,
        cost.x[k],
    ]


def drawn_workers(view: View) -> list[float]:
    bars, calendar = picture(view, "How many steps did"), picture(view, "Who does what")
    spans = [m for m in calendar.marks if m.to is not None and not m.faint]
    length = {
        name: sum(b - a + 1 for m in spans if m.name == name for a, b in zip(m.steps, m.to, strict=True))
        for name in {m.name for m in spans}
    }
    return [
        calendar.now,
        calendar.last,
        sum(bars.values),
        sum(length.values()),
        len(bars.values),
        length["down"],
        length["not there yet"],
        length["computes slowly"],
    ]


# What is fed to each view, and the numbers of its pictures in the order in which the sentence says them.
CASES: dict[type[View], tuple[Callable[[], Iterable[Event]], Callable[[View], Sequence[float]]]] = {
    AgentGraph: (orchestrated, drawn_agents),
    CommunicationBudget: (trained, drawn_budget),
    Drift: (trained, drawn_drift),
    Fairness: (by_client, drawn_fairness),
    FederationTree: (branched, drawn_tree),
    Iterations: (iterated, drawn_iterations),
    Knobs: (turned, drawn_knobs),
    Losses: (trained, drawn_losses),
    MaskAgreement: (masked, drawn_masks),
    PrivacyLevels: (list, drawn_levels),
    PseudoLabels: (pseudo_labelled, drawn_labels),
    RankSegments: (federation, drawn_segments),
    RoutingStability: (lambda: routing(layers=1), drawn_routing),
    SampleWeights: (weighed, drawn_weights),
    StyleLeak: (audited, drawn_leak),
    SyncCalendar: (trained, drawn_calendar),
    Underperformers: (compared, drawn_alone),
    Unlearning: (unlearned, drawn_unlearning),
    Workers: (trained, drawn_workers),
}


def fed(kind: type[View]) -> View:
    return levels() if kind is PrivacyLevels else kind.of(CASES[kind][0]())


def test_every_exported_view_has_an_answer_that_is_checked_here() -> None:
    exported = [getattr(widgets, name) for name in widgets.__all__]
    views = {x for x in exported if isinstance(x, type) and issubclass(x, View) and x is not View}
    assert views == set(CASES)
    assert [v.__name__ for v in views if "answer" not in vars(v)] == []


@pytest.mark.parametrize("kind", CASES, ids=lambda kind: kind.__name__)
def test_numbers_of_the_sentence_are_those_of_the_pictures(kind: type[View]) -> None:
    view = fed(kind)
    assert view._dropped is None
    assert numbers(view.answer()) == pytest.approx([float(x) for x in CASES[kind][1](view)], rel=6e-3, abs=1e-6)


@pytest.mark.parametrize("kind", CASES, ids=lambda kind: kind.__name__)
def test_it_is_one_sentence_above_the_pictures_in_every_form(kind: type[View]) -> None:
    view = fed(kind)
    says, board = view.answer(), view.board()
    assert says.endswith(".")
    assert ". " not in says
    assert 30 < len(says) <= 150
    assert board.answer == says
    assert board.text().split("\n")[:2] == [view.title, says]
    assert board.spec()["answer"] == says
    svg = ET.fromstring(board.svg())
    assert [e.text for e in svg if e.tag.endswith("desc")] == [says]
    lines = [e.text for e in svg if e.tag.endswith("}text")][1:]
    assert " ".join(str(line) for line in lines) == says
    first = board.plotly()["layout"]["annotations"][0]["text"]
    assert first.replace("<br>", " ").replace("&#x27;", "'") == says


@pytest.mark.parametrize("kind", CASES, ids=lambda kind: kind.__name__)
def test_before_anything_has_come_it_says_so(kind: type[View]) -> None:
    says = kind().answer()
    assert re.match(r"(No|Nobody|Nothing)\b", says)
    assert numbers(says) == []
    assert not re.search(r"\b(nan|None|inf)\b", says)


@pytest.mark.parametrize("kind", [k for k in CASES if k not in (PrivacyLevels, Knobs)], ids=lambda kind: kind.__name__)
def test_it_is_whole_at_every_moment_and_moves(kind: type[View]) -> None:
    """After every event of a run: no number that is none, and in the end another sentence than at first."""
    view, said = kind(), list[str]()
    for event in CASES[kind][0]():
        if isinstance(event, view.reads):
            view.fold(event)
            if not said or len(said) < 400:
                said.append(view.answer())
    assert not [s for s in said if re.search(r"\b(nan|None|inf)\b", s)]
    assert len(set(said)) > 1


def test_a_page_begins_with_the_answers_of_its_views(tmp_path: Path) -> None:
    view = fed(Drift)
    cell = nbformat.v4.new_code_cell("view", outputs=[nbformat.v4.new_output("display_data", data=view.bundle())])
    nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell("# A page"), cell])
    nbformat.write(nb, tmp_path / "a.ipynb")
    page(tmp_path / "a.ipynb", tmp_path / "a.html")
    html = (tmp_path / "a.html").read_text(encoding="utf-8")
    assert (
        html.index("A page")
        < html.index(f"<strong>{view.title}</strong> {view.answer()}</li>")
        < html.index('<figure class="board">')
    )


def test_a_picture_where_there_is_no_answer_has_no_line_for_one() -> None:
    note = Note("?", "nothing")
    plain, answered = Board("?", [note]), Board("?", [note], "1 of 2.")
    assert plain.height(960) < answered.height(960)
    assert plain.text() == "?\n\n?\nnothing"
    assert "<desc>" not in plain.svg()
