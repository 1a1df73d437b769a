"""Explorables: sentence, picture and exercise say the same, and what they say is what the events of the stored runs say."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

import lab
from lab.cli import main
from lab.costs.network import human
from lab.engine.fleet import Fleet
from lab.engine.ledger import Ledger
from lab.engine.state import State
from lab.events import Covered, Drifted, Evaluated, Event, Placed, Sent, Started, Truncated
from lab.ground.errors import RecipeError
from lab.methods.lora_factors import Adapters
from lab.methods.lora_rounds import coverage, mean_of_holders
from lab.methods.prelort import PreLort
from lab.methods.zero_padding import ZeroPadding
from lab.models.lora import LoRA, adapt_
from lab.study import explorables
from lab.study.bench import Bench
from lab.study.teaching import NOT_YET, OPEN, RIGHT
from lab.study.toy_adapters import Regression
from tests.support.recipes import recipe
from widgets import Board, Lines, Series
from widgets.explorables import Exercise, Explorable, Place, Prediction, Slip, expert_traffic, local_steps, nested_ranks
from widgets.explorables.explorable import changes
from widgets.explorables.pieces import number_in
from widgets.explorables.stored_runs import FOLDER, OURS, events_of, record
from widgets.resting import plain_script

MADE: dict[str, Explorable] = {}


@pytest.fixture(params=OURS)
def x(request: pytest.FixtureRequest) -> Explorable:
    return made(request.param)


def made(name: str) -> Explorable:
    found = MADE.get(name) or explorables.explorable(name)
    assert isinstance(found, Explorable)
    return MADE.setdefault(name, found)


def kinds(events: list[Event], kind: type) -> list[Any]:
    return [e for e in events if isinstance(e, kind)]


# --- what holds of each of them --------------------------------------------------------------------------------------


def test_pages_are_small(x: Explorable) -> None:
    page = x.page()
    assert len(page.encode()) - len(plain_script()) < 400_000
    assert not re.search(r"""(src|href)=["'](?!https://arxiv\.org)""", page)
    for k in range(len(x.places)):
        assert "{" not in x.says(k)
        assert x.says(k) in x.text()


def test_stored_runs_are_small_and_whole() -> None:
    """Less than 200 kB for all; those that are there are those that are asked for."""
    assert sum(file.stat().st_size for file in FOLDER.rglob("*.xz")) < 200_000
    for name in OURS:
        module = __import__(f"widgets.explorables.{name}", fromlist=["recipes"])
        asked = {f"{r.id}.jsonl.xz" for r in module.recipes()}
        assert {file.name for file in (FOLDER / name).iterdir()} == asked


def test_axes_stay_while_a_reader_drags_or_plays(x: Explorable) -> None:
    """Of every picture, the same at all places and moments; what moves is what is drawn."""
    axes: list[list[Any]] = [
        [
            (p.get("x", {}).get("ticks"), p.get("y", {}).get("ticks")) if isinstance(p.get("x"), dict) else None
            for p in board.spec()["panels"]
        ]
        for place in (x.places[0], x.places[-1])
        for board in (next(iter(place.moments.values())), list(place.moments.values())[-1])
    ]
    assert all(other == axes[0] for other in axes[1:])


def test_a_page_holds_every_board(x: Explorable) -> None:
    """Put together again from what the page holds: base and changes, columns and all."""
    page = x.page()
    (text,) = re.findall(r'id="worked-out">(.*?)</script>', page, flags=re.S)
    data = json.loads(text.replace("<\\/", "</"))
    for place, packed in zip(x.places, data["places"], strict=True):
        assert packed["value"] == place.value
        for board, change in zip(list(place.moments.values())[::9], packed["moments"][::9], strict=True):
            got, spec = applied(packed["board"], change), board.spec()
            assert got["answer"] == spec["answer"] == board.answer
            assert [p["title"] for p in got["panels"]] == [p["title"] for p in spec["panels"]]
            for mine, theirs in zip(got["panels"], spec["panels"], strict=True):
                for key in ("until", "dots", "links", "values", "bars"):
                    assert mine.get(key) == theirs.get(key)


def applied(was: Any, to: dict[str, Any]) -> Any:
    """What `changed` in explorable.js does."""
    if "=" in to:
        return to["="]
    keyed = dict(enumerate(was)) if isinstance(was, list) else dict(was)
    for key, inner in to.items():
        at: Any = int(key) if isinstance(was, list) else key
        keyed[at] = applied(keyed[at], inner)
    return list(keyed.values()) if isinstance(was, list) else keyed


@pytest.mark.parametrize(
    ("was", "now"),
    [
        ({"a": 1, "b": [{"c": 2}, {"c": 3}]}, {"a": 1, "b": [{"c": 2}, {"c": 4}]}),
        ([1, 2, 3], [1, 2, 4]),
        (["a", "b"], ["a", "b", "c"]),
        ({"a": {"x": 1}}, {"a": {"y": 1}}),
        ({"a": None}, {"a": {"=": 1}}),
    ],
)
def test_changes_lead_from_one_to_the_other(was: Any, now: Any) -> None:
    change = changes(was, now)
    assert change is not None
    assert applied(was, change) == now
    assert changes(now, now) is None


def test_exercises_tell_what_was_confused(x: Explorable) -> None:
    """The right answer is right however it is written; each slip has a hint of its own, and none of them gives the answer away."""
    e = x.exercise
    assert e.check(f"{e.right:.12g}").right
    assert e.check(f"{1.004 * e.right:.12g}").right
    assert not e.check(f"{1.006 * e.right:.12g}").right
    assert len(e.told_apart) >= 6
    for slip in e.told_apart:
        said = e.check(f"{slip.value:.12g}")
        assert said.verdict == NOT_YET
        assert slip.hint in said.hints
        assert not re.search(rf"(?<![\d,.]){e.right:,g}(?![\d,.])", slip.hint)
    assert "too much" in e.check(str(1.3717 * e.right)).hints[0]
    assert "too little" in e.check(str(e.right / 1.3717)).hints[0]
    assert e.check(" ").verdict == OPEN
    assert e.check("much").verdict == NOT_YET


def test_forms_in_a_notebook(x: Explorable) -> None:
    """A frame that holds the page, and words where frames are not shown."""
    forms = x._repr_mimebundle_()
    assert "srcdoc" in forms["text/html"]
    told = forms["text/html"].partition("</iframe>")[2]
    assert all(x.places[k].value in told for k in range(len(x.places)))
    assert x.question in forms["text/plain"]


# --- local steps and drift -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("k", range(len(local_steps.EVERY)))
def test_local_steps_are_those_of_the_events(k: int) -> None:
    """Sentence and pictures, from the events themselves."""
    every, x = local_steps.EVERY[k], made("local_steps")
    runs = {e: events_of("local_steps", local_steps.recipe_of(e)) for e in (every, 1)}
    sent = {e: Ledger(kinds(run, Sent)).total_bytes(0) for e, run in runs.items()}
    apart = {}
    for e, run in runs.items():
        before = [d for d in kinds(run, Drifted) if d.step % e == 0 and d.step > 64]
        rms = [math.sqrt(sum(v * v for v in d.to_mean_W) / 4) for d in before]
        apart[e] = sum(rms) / len(rms)
    loss = {e: kinds(run, Evaluated)[-1].loss for e, run in runs.items()}
    numbers = x.places[k].numbers
    assert numbers["bytes"] == human(sent[every])
    assert numbers["apart"] == f"{apart[every]:.3g}"
    assert numbers["loss"] == f"{loss[every]:.3f}"
    if every > 1:
        assert numbers["less"].startswith(f"{sent[1] / sent[every]:.3g} times fewer bytes")
        assert numbers["farther"].startswith(f"{apart[every] / apart[1]:.2g} times the distance")
        assert numbers["worse"].startswith(
            f"{abs(round(loss[every], 3) - round(loss[1], 3)):.3f} {'more' if loss[every] > loss[1] else 'less'}"
        )
    (started,) = kinds(runs[every], Started)
    assert sent[every] == local_steps.payload_bytes(started.num_params, 128, every)

    drifted = {d.step: d for d in kinds(runs[every], Drifted)}
    most = max(max(d.to_mean_W) for r in local_steps.recipes() for d in kinds(events_of("local_steps", r), Drifted))
    for t in (2, 64, 90, 128):
        around, lines, paid = x.places[k].moments[f"step {t}"].pictures
        _, *dots = around.dots
        farthest = [math.hypot(dot.x - 0.5, dot.y - 0.5) for dot in dots]
        assert farthest == pytest.approx([0.5 * d / most for d in drifted[t].to_mean_W], abs=0.001)
        assert lines.until == t
        assert lines.series[0].y[t - 1] == drifted[t].to_mean_W[0]
        assert paid.series[-1].last == (sent[every], loss[every])


def test_bytes_of_local_steps_are_the_ledgers() -> None:
    """Also where the period does not divide the run."""
    planned = lab.plan(lab.Recipe.of("local_sgd", ["steps=10", "schedule.warmup=0", "method.sync_every=4"]))
    assert planned.payload_bytes == local_steps.payload_bytes(planned.num_params, 10, 4)


def test_the_prediction_of_local_steps() -> None:
    """The option that is nearest to what was measured, as a factor."""
    p = made("local_steps").prediction
    (factor,) = re.findall(r"they are ([\d.]+) times as far", p.because)
    near = {words: abs(math.log(float(factor) / f)) for words, f in local_steps.FACTORS.items()}
    assert p.truth == min(near, key=near.__getitem__)
    assert p.verdict(None) == p.because
    assert p.verdict(p.truth).startswith("Right: ")
    assert p.verdict("hardly farther").startswith("Not so: ")


# --- traffic of experts ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("k", range(len(expert_traffic.OVERLAPS)))
def test_traffic_is_that_of_the_ledger(k: int) -> None:
    overlap, x = expert_traffic.OVERLAPS[k], made("expert_traffic")
    run = events_of("expert_traffic", expert_traffic.recipe_of(overlap))
    (started,), placed = kinds(run, Started), kinds(run, Placed)
    sent = [
        e for e in kinds(run, Sent) if e.op == "broadcast" or len(e.workers) > 1
    ]  # nothing leaves a lone holder's site
    later = sum(e.bytes_all for e in sent if e.step > 8) / 8 / 7  # of a site and round
    moved = sum(e.bytes_all for e in sent if e.op == "broadcast") / 8 / 7
    numbers = x.places[k].numbers
    assert numbers["bytes"] == human(later)
    assert numbers["held"] == f"{started.params_per_worker[0]:,}"
    assert numbers["moving"] == f"{100 * moved / later:.3g} %"
    assert numbers["loss"] == f"{kinds(run, Evaluated)[-1].loss:.3f}"
    assert numbers["moved"].split()[0] == f"{sum(p.moved for p in placed) / 7:.0f}"
    for r in range(8):
        held, bars, _ = x.places[k].moments[f"round {r + 1}"].pictures
        there = {(e, m) for e, row in enumerate(held.values) for m, v in enumerate(row) if v}
        (now, *_) = [p for p in reversed(placed) if p.step <= 8 * r + 1]
        assert there == {(e, m) for e, sites in enumerate(now.workers_LE[0]) for m in sites}
        of_round = [e for e in sent if 8 * r < e.step <= 8 * (r + 1)]
        assert bars.values[1] == pytest.approx(sum(e.bytes_all for e in of_round) / 8)
        assert sum(bars.values[2:]) == pytest.approx(bars.values[1])


def test_what_a_site_holds() -> None:
    """The formula of the exercise, against modules that were counted."""
    runs = [expert_traffic.Run.of(o) for o in expert_traffic.OVERLAPS]
    sparse = (runs[-1].held - runs[0].held) * 8 / 7
    dense = runs[-1].held - sparse
    assert [r.held for r in runs] == [expert_traffic.held_numbers(dense, sparse, 8, r.overlap) for r in runs]


# --- nested ranks ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("k", range(len(nested_ranks.BOUNDS)))
def test_ranks_are_those_of_the_events(k: int) -> None:
    rank, x = nested_ranks.BOUNDS[k], made("nested_ranks")
    runs = {rule: events_of("nested_ranks", nested_ranks.recipe_of(rule)) for rule in nested_ranks.METHODS}
    looks = {rule: kinds(run, Truncated) for rule, run in runs.items()}
    (started,) = kinds(runs["PreLort"], Started)
    covered = kinds(runs["PreLort"], Covered)[-1]
    holder = next(w for w, r in enumerate(nested_ranks.RANKS) if r == rank)
    fetched = [
        e.bytes_each
        for e in kinds(runs["PreLort"], Sent)
        if e.op == "broadcast" and e.step == 1 and holder in e.workers
    ]
    numbers = x.places[k].numbers
    assert numbers["held"] == f"{started.params_per_worker[holder]:,}"
    assert numbers["bytes"] == human(sum(fetched)) == human(4 * started.params_per_worker[holder])
    assert numbers["num"] == str(len(covered.contributors_M[k]))
    assert numbers["mass"] == f"{100 * covered.mass_M[k]:.3g} %"
    for field, lost, rule in (("loss", "beyond", "PreLort"), ("padded", "diluted", "zeros")):
        last = looks[rule][-1]
        assert last.bounds_M[k] == rank
        assert numbers[field] == f"{last.loss_M[k]:.3f}"
        share = sum(last.energy_M[k + 1 :])
        assert numbers[lost] == ("under 0.01 %" if 0 < share < 1e-4 else f"{100 * share:.3g} %")
    for r in (0, 3, 7):
        held, beyond, worth = x.places[k].moments[f"round {r + 1}"].pictures
        assert [[v > 0 for v in row] for row in held.values] == [
            [w in covered.contributors_M[m] for m in range(len(nested_ranks.BOUNDS))] for w in range(10)
        ]
        assert beyond.until == looks["PreLort"][r].step
        for rule, line in zip(runs, beyond.series, strict=True):
            assert line.y[r] == pytest.approx(sum(looks[rule][r].energy_M[k + 1 :]))
        for rule, line in zip(runs, worth.series, strict=False):
            assert list(line.y) == looks[rule][r].loss_M
        assert worth.series[-1].last == (rank, looks["PreLort"][r].loss_M[k])


def test_the_mean_of_a_segment_is_the_labs() -> None:
    """The exercise, as PreLort and as zero-padding do it: three clients of rank 16, 8 and 4 with 30, 10 and 60 examples."""
    e, got = made("nested_ranks").exercise, []
    for method in (PreLort(), ZeroPadding()):
        lora = LoRA(ranks=(16, 8, 4), targets=("map",), scale=1.0)
        fleet = Fleet(
            lambda w, lora=lora: adapt_(Regression(16), lora, 16 if w is None else lora.ranks[w], 0), 3, threads=1
        )
        state = State.of(fleet, adapters=Adapters.of(lora, 3, list(fleet.layout.place)), samples_W=(30, 10, 60))
        bench = Bench(method, state, batch=lambda worker, t: (torch.eye(16), torch.eye(16)))
        (name,) = (n for n in fleet.layout.place if n == "map.lora_A.1")
        for worker, value in enumerate((0.8, 0.4)):
            state.local["params"].cell(name, worker).fill_(value)
        mean_of_holders(state, bench.comm, "samples")
        share = coverage(state, "samples")[fleet.layout.place[name][0]]
        got.append(float(state.shared["params"][name].mean()) * (share if isinstance(method, ZeroPadding) else 1))
        bench.close()
    assert e.check(f"{got[0]:.7g}").right
    assert "with a zero" in e.check(f"{got[1]:.7g}").hints[0]


# --- what somebody else's may be -------------------------------------------------------------------------------------


BOARD = Board("B", [Lines("Up?", "x", "y", [Series("up", [1, 2, 3], [1.0, 2.0, 3.0])], until=2)], "Says.")
ASKS = Prediction("?", ["yes", "no"], "yes", "It is.")
TASK = Exercise(
    "How many?",
    "bytes",
    8.0,
    [Slip(1.0, "one"), Slip(64.0, "twice"), Slip(64.0, "also"), Slip(8.0, "right")],
    "so",
    "think",
)
OWN = Explorable(
    "own",
    "Own?",
    "?",
    ASKS,
    "With {dragged} it is {n}.",
    "what",
    [Place("one", {"n": "1"}, {"now": BOARD})],
    0,
    "moment",
    ["Because."],
    TASK,
    [],
    "Made.",
)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"sentence": "It is {n}."}, "no {dragged}"),
        ({"sentence": "{dragged} {m}"}, "lacks numbers of the sentence: m"),
        ({"start": 1}, "none of 1 places"),
        ({"places": [*OWN.places, Place("two", {"n": "2"}, {"then": BOARD})]}, "other moments"),
    ],
)
def test_what_does_not_fit_is_said(change: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=re.escape(says)):
        replace(OWN, **change)


def test_predictions_and_exercises_are_checked() -> None:
    with pytest.raises(ValueError, match="none of the options: use yes, no"):
        replace(ASKS, truth="perhaps")
    with pytest.raises(ValueError, match="right = 0"):
        replace(TASK, right=0)
    assert TASK.check("64").hints == ("twice", "also")
    assert TASK.check("8").verdict == RIGHT


@pytest.mark.parametrize(
    ("typed", "number"),
    [
        ("1,472,256", 1472256),
        ("12,5", 12.5),
        ("1 000", 1000),
        (" 3.9e6 ", 3.9e6),
        (".5", 0.5),
        ("1,234", 1234),
        ("1,23,456", math.nan),
        ("0x10", math.nan),
        ("1_000", math.nan),
    ],
)
def test_numbers_as_people_write_them(typed: str, number: float) -> None:
    assert number_in(typed) == pytest.approx(number, nan_ok=True)


@pytest.mark.parametrize(
    ("typed", "unit", "number"),
    [
        ("720 MB", "MB", 720),
        ("7 Million", "million", 7),
        ("28/40", "", 0.7),
        ("1/0", "", math.nan),
        ("7 GB", "MB", math.nan),
    ],
)
def test_with_a_unit_or_as_a_fraction(typed: str, unit: str, number: float) -> None:
    assert number_in(typed, unit) == pytest.approx(number, nan_ok=True)


def test_a_line_is_drawn_up_to_a_moment() -> None:
    """On the axes of the whole line, in all forms."""
    line = Lines("Up?", "x", "y", [Series("up", list(range(20)), [float(v) for v in range(20)])])
    part = replace(line, until=4)
    assert part.axes() == line.axes()
    assert part.spec()["until"] == 4
    assert "until" not in line.spec()
    assert "up: 4 at 4" in part.text()
    assert (len(part.plotly()["data"][0]["y"]), part.plotly()["layout"]["xaxis"]) == (
        5,
        line.plotly()["layout"]["xaxis"],
    )
    (whole_path,), (part_path,) = (re.findall(r'<path d="(M\d+ \d+l[^"]+)"', p.svg()) for p in (line, part))
    assert whole_path.startswith(part_path)
    assert part_path.count("-") == 4  # from point to point, of five


def test_of_what_is_installed(tmp_path: Path) -> None:
    assert set(OURS) <= set(explorables.names())
    written = explorables.write(["local_steps"], tmp_path / "pages")
    assert written == {"local_steps": tmp_path / "pages/local_steps.html"}
    assert "<h1>How long may workers go" in written["local_steps"].read_text(encoding="utf-8")
    with pytest.raises(RecipeError, match=r"there is no explorable 'local_step': .*local_steps"):
        explorables.write(["local_steps", "local_step"], tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_on_the_command_line(tmp_path: Path) -> None:
    """Where each page is; a name that nobody has ends it with code 2."""
    done = CliRunner().invoke(main, ["explore", "nested_ranks", "--out", str(tmp_path)])
    assert (done.exit_code, done.output.strip()) == (0, str(tmp_path / "nested_ranks.html"))
    assert (tmp_path / "nested_ranks.html").is_file()
    assert CliRunner().invoke(main, ["explore", "nested", "--out", str(tmp_path)]).exit_code == 2


def test_stored_runs_can_be_made_anew(tmp_path: Path) -> None:
    """What is missing is trained, once; numbers that were measured are short, counts are as they were."""
    small = recipe("local_sgd", steps=2, eval_every=1)
    assert record("own", [small], tmp_path) == 1
    assert record("own", [small], tmp_path) == 0
    (file,) = (tmp_path / "own").iterdir()
    assert file.name == f"{small.id}.jsonl.xz"
