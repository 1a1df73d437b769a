"""Panel and cockpit without a browser: what their buttons, fields and switches do to runs, and what they say."""

from __future__ import annotations

import html
import re
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import ipywidgets
import pytest

from lab import cli
from lab.costs.network import NETWORKS, duration
from lab.events import Ended, Event, KnobChanged, Sent, Started, Stepped, WorkersChanged
from lab.ground.errors import LabError
from lab.recipes.recipe import Recipe
from lab.runs.folder import RunFolder
from lab.runs.knobs import network_fields
from lab.runs.live import replay, start
from lab.runs.plan import Plan, plan
from lab.runs.trainer import Trainer
from tests.support.recipes import corpus, recipe
from tests.support.stories import PATIENCE, until
from widgets.cockpits import COUNTING, Cockpit, Debounce, RunSetup, to_html
from widgets.communication_budget import CommunicationBudget
from widgets.panel import MOST_TOGGLES, Controls, NetworkFollower, Status, Whole
from widgets.training import progress
from widgets.training_losses import Losses

pytestmark = pytest.mark.usefixtures("nothing_left_behind")


@pytest.fixture(autouse=True)
def forecasts_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("widgets.cockpits.DELAY", 3600.0)
    monkeypatch.setattr(Debounce, "ask", lambda self: None)


def inside(widget: Any) -> list[Any]:
    return [widget, *(w for child in getattr(widget, "children", ()) for w in inside(child))]


# --- the panel -------------------------------------------------------------------------------------------------------


@pytest.fixture
def paused() -> tuple[Any, Controls]:
    run = start(recipe({"name": "des_loc", "sync_every": {"params": 2, "exp_avg": 3}}), keep=False, paused=True)
    controls = Controls(run)
    run.watch(controls)
    until(lambda: run.status == "paused")
    return run, controls


def test_buttons_step_and_stop(paused: tuple[Any, Controls]) -> None:
    run, controls = paused
    controls.buttons["step"].click()
    until(lambda: run.t == 1 and run.status == "paused")
    controls.buttons["sync"].click()
    until(lambda: run.t == 2 and run.status == "paused")
    until(lambda: "paused at step 2 of 6" in controls.line.value)
    controls.buttons["stop"].click()
    run.wait(PATIENCE)
    assert run.status == "stopped"
    until(lambda: "stopped at step 2 of 6" in controls.line.value)
    assert all(button.disabled for button in controls.buttons.values())


def test_knobs_turn_the_run(paused: tuple[Any, Controls]) -> None:
    """Each field leaves word with the run; a switch kills and revives; the events have it."""
    run, controls = paused
    controls.lr.value = 2.0
    controls.periods["params"].value = "5"
    controls.network.value = "10Mbit"
    controls.workers[1].value = False
    controls.buttons["step"].click()
    until(lambda: run.t == 1 and run.status == "paused")
    until(lambda: controls.workers[1].description == "worker 1 down")
    controls.workers[1].value = True
    controls.buttons["resume"].click()
    columns = run.wait(PATIENCE)
    turned = [(e.knob, e.value) for e in columns.turned if e.knob != "paused"]
    assert ("lr", 2.0) in turned
    assert ("sync_every", {"params": 5, "exp_avg": 3}) in turned
    assert ("network", network_fields("10Mbit")) in turned
    assert [v for k, v in turned if k == "down"] == [[1], []]
    until(lambda: controls.workers[1].description == "worker 1 up")


def test_what_is_refused_is_said_and_put_back(paused: tuple[Any, Controls]) -> None:
    """One line, as text, for screen readers too; the field shows again what is true; the next word clears it."""
    run, controls = paused
    controls.periods["params"].value = "-4"
    assert controls.periods["params"].value == "2"
    assert "params every = -4" in controls.problem.value
    controls.periods["params"].value = "3.7"
    assert controls.periods["params"].value == "2"
    assert "params every = 3.7 is no whole number" in html.unescape(controls.problem.value)
    run.stop()
    run.finished.wait(PATIENCE)
    controls.lr.value = 2.0
    assert controls.lr.value == 1.0
    assert "is over (stopped)" in controls.problem.value
    assert 'role="alert"' in controls.problem.value
    controls.buttons["pause"].click()
    assert controls.problem.value == ""


def test_what_makes_no_sense_cannot_be_chosen() -> None:
    """No periods for DDP; those of overlapped streaming are shown and fixed, with the reason; a replay has no knobs."""
    ddp = Controls(start(recipe("ddp"), keep=False, paused=True))
    assert not ddp.periods
    r = recipe({"name": "streaming_diloco", "sync_every": 3, "num_fragments": 1})
    streaming = Controls(start(r, keep=False, paused=True))
    assert streaming.periods["params"].disabled
    assert "use method.overlap=0" in streaming.periods["params"].tooltip
    many = Controls(start(recipe(num_workers=MOST_TOGGLES + 1), keep=False, paused=True))
    assert not many.workers
    start(recipe(), folder="stored").wait(PATIENCE)
    shown = Controls(replay("stored", paused=True))
    assert not shown.workers
    assert set(shown.buttons) == set(ddp.buttons)


def test_everything_has_a_name_for_the_keyboard_and_a_screen_reader(paused: tuple[Any, Controls]) -> None:
    """Buttons and fields, no bare pictures to click on: each has a label and a hint."""
    _, controls = paused
    kinds = (ipywidgets.Button, ipywidgets.ToggleButton, ipywidgets.Text, ipywidgets.Dropdown)
    fields = [w for w in inside(controls.widget) if isinstance(w, kinds)]
    assert len(fields) >= 5 + 2 + 1 + 3
    assert all(w.description and w.tooltip for w in fields)


def test_the_line_says_how_far_it_is() -> None:
    run = start(recipe(), keep=False, paused=True)
    status = Status(run)
    status.add(Started(1, {}, 1, [1], 1, None, 1.0, {}), Stepped(3, [1.0, None, 2.0], 1.0, 0.1))
    status.add(Sent(3, "all_reduce", "params", (0, 2), {"all": 500}))
    assert "loss 1.500" in status.text()
    assert "1 kB sent by all" in status.text()
    status.add(Stepped(4, [None, None, None], 1.0, 0.1))
    assert "no worker is up" in status.text()
    assert "loss" not in status.text()
    status.add(Stepped(5, [None, 2.5, None], 1.0, 0.1))
    assert "loss 2.500" in status.text()
    status.add(Ended(5, "failed", "it fell"))
    assert status.text().endswith("it fell")


def test_every_line_of_progress_says_that_nobody_trains(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Under a cell and in a terminal too: no loss of earlier steps, no loss of 0, and no tokens that nobody computed."""
    shown: list[str] = []

    class Handle:
        def update(self, forms: dict[str, str], raw: bool) -> None:
            shown.append(forms["text/plain"])

    monkeypatch.setattr("widgets.training.display", lambda *_, **__: Handle())
    monkeypatch.setattr("widgets.training.get_ipython", object)
    events = [
        Started(1, {}, 1, [1], 30, None, 1.0, {}),
        Stepped(1, [1.0, 2.0, 3.0], 1.0, 0.1),
        Stepped(2, [None] * 3, 1.0, 0.1),
    ]
    line = progress("storm", recipe())
    told = cli._Terminal(recipe(), RunFolder("storm"))
    for event in events:
        line.shown = told.said = -1e9  # type: ignore[attr-defined]
        line(event)
        told(event)
    said = capsys.readouterr().out.splitlines()
    for first, second in ((shown[0], shown[1]), (said[0], said[1])):
        assert "loss 2.000" in first
        assert "no worker is up" in second
        assert "loss" not in second
    assert "300 tokens/s" in said[0]
    assert " 0 tokens/s" in said[1]


def test_views_go_over_to_another_link() -> None:
    budget = CommunicationBudget(network="1Gbit")
    budget.add(*Trainer(recipe(), corpus=corpus()).events())
    NetworkFollower([budget]).add(KnobChanged(3, "network", network_fields(NETWORKS["10Mbit"])))
    assert budget.network == "10Mbit"
    NetworkFollower([budget]).add(KnobChanged(4, "network", {"bits_per_second": 5.0}), WorkersChanged(1, [], [], []))
    assert budget.network == "10Mbit"


# --- the cockpit -----------------------------------------------------------------------------------------------------


def setup(given: Recipe) -> RunSetup:
    return Cockpit([given], Path("live")).setups[0]


def test_choosing_makes_the_recipe() -> None:
    """What is given, unless it is changed; another method brings its own preset, and the rest stays."""
    given = recipe("des_loc", steps=8)
    chosen = setup(given)
    assert chosen.recipe == given
    assert set(chosen.periods) == {"params", "exp_avg", "exp_avg_sq"}
    chosen.periods["exp_avg"].value = "5"
    chosen.workers.value = "2"
    assert chosen.recipe == given.but(
        num_workers=2, method={"name": "des_loc", "sync_every": {"params": 32, "exp_avg": 5, "exp_avg_sq": 192}}
    )
    chosen.method.value = "diloco"
    assert list(chosen.periods) == ["params"]
    chosen.periods["params"].value = "3"
    assert (chosen.recipe.method.sync_every, chosen.recipe.num_workers, chosen.recipe.steps) == (3, 2, 8)
    assert chosen.recipe.model == given.model
    chosen.method.value = "ddp"
    assert not chosen.periods
    chosen.method.value = "fomoe"
    assert chosen.recipe.placement.overlap == 2
    chosen.method.value = "des_loc"
    assert chosen.recipe.placement.overlap is None


def test_every_preset_can_be_chosen() -> None:
    chosen = setup(Recipe.of("des_loc"))
    for name in chosen.method.options:
        chosen.method.value = name
        assert chosen.refusals.attempt(lambda: Recipe.of(chosen.recipe.to_dict())), chosen.problem.value


def test_the_forecast_follows_what_is_chosen() -> None:
    """Bytes by state as the dry run counts them, how many times fewer than DDP, and seconds on the link."""
    chosen = setup(recipe({"name": "diloco", "sync_every": 2}, steps=8))
    chosen.foresee()
    expected = plan(chosen.recipe, {"100Mbit": NETWORKS["100Mbit"]}, device="laptop")
    assert chosen.forecast.value == to_html(expected)
    assert "4×" in chosen.forecast.value
    assert "2× fewer than DDP" in chosen.forecast.value
    assert "100Mbit:" in chosen.forecast.value
    chosen.periods["params"].value = "4"
    chosen.network.value = "10Mbit"
    chosen.foresee()
    assert "4× fewer than DDP" in chosen.forecast.value
    assert "10Mbit:" in chosen.forecast.value
    chosen.workers.value = "1"
    chosen.method.value = "fomoe"  # two holders of every expert, but one worker
    chosen.foresee()
    assert "role=" in chosen.problem.value
    assert "DDP" not in chosen.forecast.value  # nothing of what was chosen before


def test_the_forecast_of_another_choice_is_never_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    """From the moment something else is chosen there is no number until its own is there; what fails says so."""
    chosen = setup(recipe({"name": "diloco", "sync_every": 2}, steps=8))
    assert chosen.forecast.value == COUNTING
    for change in (
        lambda: setattr(chosen.method, "value", "local_adam"),
        lambda: setattr(chosen.periods["params"], "value", "4"),
        lambda: setattr(chosen.workers, "value", "2"),
        lambda: setattr(chosen.network, "value", "10Mbit"),
        lambda: setattr(chosen.corpus, "value", "grammar"),
    ):
        chosen.foresee()
        assert "DDP" in chosen.forecast.value
        change()
        assert chosen.forecast.value == COUNTING
        assert chosen.problem.value == ""
    counted = []

    def meanwhile(what: Recipe, *given: Any, **options: Any) -> Plan:
        counted.append(what.num_workers)
        chosen.workers.value = "3"
        return plan(what, *given, **options)

    monkeypatch.setattr("widgets.cockpits.plan", meanwhile)
    chosen.foresee()
    assert chosen.forecast.value == COUNTING
    monkeypatch.undo()
    chosen.foresee()
    assert counted == [2]
    assert "DDP" in chosen.forecast.value
    monkeypatch.setattr("widgets.cockpits.plan", lambda *_, **__: 1 / 0)
    chosen.workers.value = "4"
    chosen.foresee()
    assert "ZeroDivisionError" in chosen.problem.value
    assert "DDP" not in chosen.forecast.value
    assert COUNTING not in chosen.forecast.value


def test_only_the_last_forecast_that_was_asked_for_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """A long count holds up those behind it; of them all but the last are then of no use."""
    chosen = setup(recipe({"name": "diloco", "sync_every": 2}, steps=8))
    counted: list[int] = []
    go_on = threading.Event()

    def slow(what: Recipe, *given: Any, **options: Any) -> Plan:
        counted.append(what.num_workers)
        assert go_on.wait(PATIENCE)
        return plan(what, *given, **options)

    one, asked = threading.Lock(), list[int]()

    class Seen:
        """The lock, and how many have asked for it: each then knows which forecast was asked of it."""

        release = one.release

        def acquire(self, timeout: float) -> bool:
            asked.append(len(asked))
            return one.acquire(timeout=timeout)

    monkeypatch.setattr("widgets.cockpits.plan", slow)
    monkeypatch.setattr("widgets.cockpits.PATIENCE", PATIENCE)  # however busy this machine is
    monkeypatch.setattr("widgets.cockpits._ONE_AT_A_TIME", Seen())
    threads = []
    for k, num in enumerate((2, 3, 4, 5)):
        chosen.workers.value = str(num)
        threads.append(threading.Thread(target=chosen.foresee))
        threads[-1].start()
        until(lambda k=k: len(asked) == k + 1 and counted[:1] == [2])
    go_on.set()
    for thread in threads:
        thread.join(PATIENCE)
    assert counted == [2, 5]
    assert chosen.forecast.value == to_html(plan(chosen.recipe, {"100Mbit": NETWORKS["100Mbit"]}, device="laptop"))


@pytest.mark.parametrize("name", ["des_loc", "ddp", "diloco", "noloco", "streaming_diloco", "sparta", "demo", "fedit"])
def test_one_worker_has_nobody_to_send_to(name: str) -> None:
    """No residue of a subtraction, and no division by what DDP does not send."""
    given = Recipe.of(name, ["num_workers=1", "steps=16", "schedule.warmup=0", "model=nano", "start=", "context=16"])
    said = to_html(plan(given, {"100Mbit": NETWORKS["100Mbit"]}, device="laptop"))
    assert "DDP: 0 s" in said
    assert not re.search(r"\de[-+]", said)


def test_seconds_in_words() -> None:
    said = [duration(s) for s in (0, 3e-9, 0.0123, 0.5, 7.25, 119, 150, 9000, 200_000, 1.5e9)]
    assert said == [
        "0 s",
        "under 1 ms",
        "12.3 ms",
        "0.5 s",
        "7.25 s",
        "119 s",
        "2.5 min",
        "2.5 h",
        "2.31 days",
        "17,361 days",
    ]


@pytest.mark.parametrize(
    ("typed", "number"),
    [("3", 3), (" 12 ", 12), ("1e3", 1000), ("4.0", 4), ("1_000", 1000), ("1,000,000", 1_000_000), ("1 000", 1000)],
)
def test_a_whole_number_is_what_was_typed(typed: str, number: int) -> None:
    field = Whole(7, description="workers")
    field.value = typed
    assert field.number == number


@pytest.mark.parametrize("typed", ["3.7", "", "two", "1e-3", "1,00", "NaN", "inf", "1e400", "0x10", "3 7"])
def test_what_is_no_whole_number_is_refused_as_it_was_typed(typed: str) -> None:
    """Never another number: no sign of it is dropped. The line names the field as the screen does."""
    chosen = setup(recipe("diloco", steps=8))
    for field in (chosen.workers, chosen.steps, chosen.periods["params"]):
        before, field.value = field.value, typed
        chosen.foresee()
        assert field.value == typed
        said = html.unescape(chosen.problem.value)
        assert f"{field.description} = {typed or 'nothing'} is no whole number" in said
        chosen.go.click()
        assert chosen.run is None
        chosen.cockpit.add_setup()  # a second run cannot begin with the same choices, and says so
        assert len(chosen.cockpit.setups) == 1
        field.value = before


def test_errors_use_the_labels_on_the_screen() -> None:
    """Not the names in recipes, which the person at the screen may never have seen."""
    chosen = setup(recipe("des_loc", steps=8))
    for field, label in (
        (chosen.workers, "workers"),
        (chosen.steps, "local steps"),
        (chosen.periods["exp_avg"], "exp_avg every"),
    ):
        before, field.value = field.value, "0"
        chosen.foresee()
        assert f"{label} = 0 is not allowed" in chosen.problem.value
        assert not re.search("num_workers|sync_every|method\\.", chosen.problem.value)
        field.value = before
    chosen.method.value = "diloco"
    chosen.periods["params"].value = "-1"
    chosen.foresee()
    assert "params every = -1 is not allowed" in chosen.problem.value


def test_workers_that_are_up_look_so(paused: tuple[Any, Controls]) -> None:
    """A pressed switch is grey in JupyterLab, as if it could not be used: colour and sign say who is up."""
    _, controls = paused
    assert [(s.button_style, s.icon) for s in controls.workers] == [("success", "check")] * 3
    controls.workers[1].value = False
    controls.buttons["step"].click()
    until(lambda: controls.workers[1].description == "worker 1 down")
    assert [(s.button_style, s.icon) for s in controls.workers] == [
        ("success", "check"),
        ("", "times"),
        ("success", "check"),
    ]


def test_a_forecast_waits_until_nothing_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    """However often it is asked for, it is made once."""
    monkeypatch.undo()
    made: list[int] = []
    debounce = Debounce(lambda: made.append(1), delay=0.05)
    for _ in range(20):
        debounce.ask()
    assert debounce.timer is not None
    debounce.timer.join(PATIENCE)
    assert made == [1]


def test_two_runs_on_shared_axes() -> None:
    """Start, stop, go on, compare: both runs are in one picture, and starting again keeps the other in sight."""
    flight = Cockpit([recipe({"name": "diloco", "sync_every": 2})], Path("live"))
    first = flight.setups[0]
    first.go.click()
    assert first.run is not None
    first.run.wait(PATIENCE)
    assert first.views
    flight.compare.click()
    assert flight.compare.layout.display == "none"
    second = flight.setups[1]
    assert second.recipe == first.recipe
    second.method.value = "local_adam"
    second.go.click()
    assert second.run is not None
    second.run.wait(PATIENCE)
    (lines,) = flight.losses.pictures()
    assert set(flight.losses.runs) == {"A: diloco", "B: local_adam"}
    assert {s.name for s in lines.series} >= {"A: diloco", "B: local_adam"}
    before = first.run
    first.method.value = "ddp"
    first.go.click()  # it is over: anew
    assert first.run is not None
    assert first.run is not before
    first.run.wait(PATIENCE)
    assert set(flight.losses.runs) == {"A: ddp", "B: local_adam"}
    first.go.click()
    assert first.run is not None
    first.run.wait(PATIENCE)
    assert first.run.folder is not None
    assert first.run.folder.path.name.endswith("-2")
    assert first.problem.value == second.problem.value == ""


def test_two_runs_at_once() -> None:
    """One starts while the other goes on: each has pictures of its own sending, and one that names both; so too when the first
    is started anew with another method meanwhile.
    """
    flight = Cockpit([recipe(steps=100_000), recipe("ddp", steps=100_000)], Path("live"))
    first, second = flight.setups

    def under_way(*setups: RunSetup) -> None:
        for setup in setups:
            assert setup.run is not None
            run, begun = setup.run, setup.run.t
            until(lambda run=run, begun=begun: run.t > begun + 20)

    def ended(run: Any) -> None:
        run.stop()
        run.wait(PATIENCE)
        assert run.problems == []

    first.go.click()
    under_way(first)
    second.go.click()
    under_way(first, second)
    assert list(flight.losses.runs) == ["A: des_loc", "B: ddp"]
    before = first.run
    first.method.value = "local_adam"
    first.go.click()
    ended(before)
    under_way(first, second)
    for setup in flight.setups:
        ended(setup.run)
    assert list(flight.losses.runs) == ["B: ddp", "A: local_adam"]
    for setup in flight.setups:
        assert setup.run is not None
        (budget,) = setup.views
        assert isinstance(budget, CommunicationBudget)
        assert budget.run.curves.bytes_by_state == {
            state: b for (state,), b in setup.run.columns.ledger.by("state").items()
        }
        assert budget.board().title == f"{setup.label} · What does it send?"
        assert flight.losses.runs[setup.label].loss.tolist() == setup.run.columns.loss.tolist()
    assert flight.shown() == [flight.losses, *first.views, *second.views]


def test_a_view_shows_one_run() -> None:
    """Two runs cannot feed one view at the same time, nor one run twice, which could only mix things up; one after the other
    they can.
    """
    one, two = start(recipe(), keep=False, paused=True), start(recipe(seed=1), name="two", keep=False, paused=True)
    budget, losses = CommunicationBudget(), Losses()
    one.watch(budget, losses.lane("one"))
    heard: list[Event] = []
    ear = SimpleNamespace(add=lambda *events: heard.extend(events))
    one.watch(ear)
    one.watch(ear)  # it does already
    two.watch(losses.lane("two"))
    with pytest.raises(LabError, match=r"CommunicationBudget shows .* which goes on: give two a view of its own"):
        two.watch(budget)
    with pytest.raises(LabError, match="CommunicationBudget shows"):
        start(recipe(seed=2), name="three", keep=False, views=[budget])
    one.resume()
    one.wait(PATIENCE)
    assert heard == one.events
    two.watch(budget)
    two.resume()
    assert two.wait(PATIENCE).ledger.total_bytes(0) == budget.run.curves.bytes_W[0]


def test_large_type() -> None:
    flight = Cockpit([recipe()], Path("live"))
    flight.large.value = True
    assert "isthmus-large" in flight.widget._dom_classes
    flight.large.value = False
    assert "isthmus-large" not in flight.widget._dom_classes
