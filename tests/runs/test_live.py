"""A run in the background: pausing, stepping, knobs, its end, replay. No browser, no notebook."""

from __future__ import annotations

import asyncio
import concurrent.futures
import dataclasses
import math
import subprocess
import sys
import threading
import traceback
from collections.abc import Iterable
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
import torch

import lab.runs.live
from lab.costs.network import NETWORKS
from lab.engine.optim import AdamW
from lab.events import Checkpointed, Ended, Event, KnobChanged, Sent, Started, Stepped, WorkersChanged
from lab.ground.errors import Diverged, LabError, RecipeError
from lab.methods import METHODS, declared
from lab.probes.evaluation import Evaluator
from lab.recipes.scenario import Outage, Scenario
from lab.runs.columns import Columns
from lab.runs.folder import RunFolder
from lab.runs.knobs import validate_knob
from lab.runs.live import DISPLAYS, Pump, Run, register_display, replay, start
from lab.runs.trainer import Trainer, train
from tests.support.recipes import corpus, recipe
from tests.support.stories import PATIENCE, story, until

pytestmark = pytest.mark.usefixtures("nothing_left_behind")


def held(run: Run, t: int) -> None:
    """Wait until the run has paused, and that must be after step ``t``."""
    until(lambda: run.status == "paused" or run.finished.is_set())
    assert (run.status, run.t) == ("paused", t)


def told(events: Iterable[Event]) -> list[Event]:
    """The story without pauses and checkpoints, which stopping adds."""
    return [
        e
        for e in story(events)
        if not isinstance(e, Checkpointed) and not (isinstance(e, KnobChanged) and e.knob == "paused")
    ]


class Seen:
    """Takes everything in."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def add(self, *events: Event) -> None:
        self.events += events


# --- pausing and stepping --------------------------------------------------------------------------------------------


def test_pause_step_and_resume(tmp_path: Path) -> None:
    """Each takes effect within one step, which the events name; the numbers are those of a run that nobody touched."""
    r = recipe({"name": "diloco", "sync_every": 4}, steps=12)
    run = start(r, paused=True)
    held(run, 0)
    run.step()
    until(lambda: run.t == 1)
    held(run, 1)
    run.step(2)
    until(lambda: run.t == 3)
    held(run, 3)
    run.step_sync()
    until(lambda: run.t >= 4)
    held(run, 4)
    run.step_sync()
    until(lambda: run.t >= 8)
    held(run, 8)
    pauses = [(e.step, e.value) for e in run.events if isinstance(e, KnobChanged)]
    assert pauses[:3] == [(1, True), (1, False), (2, True)]
    assert pauses[-2:] == [(5, False), (9, True)]
    run.resume()
    columns = run.wait(PATIENCE)
    assert run.status == "done"
    assert columns.step == list(range(1, 13))
    assert told(run.events) == told(Trainer(r, corpus=corpus()).events())
    assert list(RunFolder(Path("runs/live") / r.id).events()) == run.events


def test_stopped_and_started_again(tmp_path: Path) -> None:
    """A run that was stopped between two checkpoints goes on from where it stopped, as if it never had."""
    r = recipe(steps=9, checkpoint_every=4)
    run = start(r, folder=tmp_path / "run", paused=True)
    run.step(6)
    until(lambda: run.t == 6)
    held(run, 6)
    run.stop()
    assert len(run.wait(PATIENCE).step) == 6
    assert run.status == "stopped"
    assert run.events[-1] == Ended(6, "stopped", "")
    assert RunFolder(tmp_path / "run").last_step_saved() == 6
    with pytest.raises(LabError, match="is over"):
        run.set(lr=2.0)
    again = start(r, folder=tmp_path / "run")
    again.wait(PATIENCE)
    assert told(again.events) == told(Trainer(r, corpus=corpus()).events())
    assert told(RunFolder(tmp_path / "run").events()) == told(again.events)
    third = start(r, folder=tmp_path / "run")  # shown again
    assert told(third.wait(PATIENCE) and third.events) == told(again.events)
    fourth = start(r, folder=tmp_path / "run", again=True, views=[])
    fourth.wait(PATIENCE)
    assert fourth.folder is not None
    assert fourth.folder.path == tmp_path / "run-2"


def test_stopped_before_the_first_step(tmp_path: Path) -> None:
    r = recipe()
    run = start(r, folder=tmp_path / "run", paused=True)
    held(run, 0)
    run.stop()
    run.wait(PATIENCE)
    assert (run.status, run.t) == ("stopped", 0)
    assert told(start(r, folder=tmp_path / "run").wait(PATIENCE) and RunFolder(tmp_path / "run").events()) == told(
        Trainer(r, corpus=corpus()).events()
    )


def test_a_folder_of_another_recipe_is_refused(tmp_path: Path) -> None:
    start(recipe(), folder=tmp_path / "run").wait(PATIENCE)
    with pytest.raises(RecipeError, match="another recipe"):
        start(recipe(seed=1), folder=tmp_path / "run")


# --- watching --------------------------------------------------------------------------------------------------------


def test_being_watched_changes_nothing(tmp_path: Path) -> None:
    """Terminal and background, with views: the same events; every view sees all of them, in order, also a late one."""
    seen, late = Seen(), Seen()
    run = start(recipe(), folder=tmp_path / "live", views=[seen])
    columns = run.wait(PATIENCE)
    train(recipe(), tmp_path / "plain")
    assert story(run.events) == story(RunFolder(tmp_path / "plain").events())
    assert seen.events == run.events
    assert columns.loss_W == Columns.of(run.events).loss_W
    run.watch(late)
    until(lambda: len(late.events) == len(run.events))
    assert late.events == run.events


def test_a_view_that_raises_is_dropped() -> None:
    """The run and the other views go on, and the run says what happened."""

    class Bad:
        def add(self, *events: Event) -> None:
            if any(isinstance(e, Sent) for e in events):
                raise ZeroDivisionError("oh")

    seen = Seen()
    run = start(recipe({"name": "diloco", "sync_every": 2}), keep=False, views=[Bad(), seen])
    run.wait(PATIENCE)
    assert run.status == "done"
    assert seen.events == run.events
    (problem,) = run.problems
    assert problem.startswith("Bad was dropped: ZeroDivisionError: oh (test_live.py, line")


def test_the_pump_hands_over_batches() -> None:
    """However fast events come, a view is given them at most eight times a second; time spent by views counts."""
    now, waits, batches = [0.0], [], []

    def pause(seconds: float) -> None:
        waits.append(seconds)
        now[0] += seconds

    class Slow:
        def add(self, *events: Event) -> None:
            batches.append(len(events))
            now[0] += 0.05  # drawing

    pump = Pump(clock=lambda: now[0], pause=pause)
    pump._thread = object()  # type: ignore[assignment]  # turned by hand
    run = Run(recipe(), "by hand", None, lambda run: iter(()))
    pump.feed(run, [Slow()])
    for k in range(10):
        run.events += [Stepped(100 * k + i, [1.0], 1.0, 0.0) for i in range(100)]
        pump.deliver_and_rest()
    assert batches == [100] * 10
    assert waits == [pytest.approx(0.075)] * 10
    assert now[0] == pytest.approx(10 / 8)
    pump.deliver_and_rest()
    assert batches[10:] == [0]  # nothing new: time to finish what was put off
    run.finished.set()
    pump.deliver_and_rest()
    assert run.over.done()
    assert not pump._feeds
    assert not pump._runs

    late = Seen()  # a cell that makes its views after a short run has ended
    pump.feed(run, [late])
    assert not run.over.done()
    pump.deliver_and_rest()
    assert run.over.done()
    assert late.events == run.events


def test_columns_stay_until_asked_again() -> None:
    run = start(recipe(), keep=False, paused=True)
    held(run, 0)
    columns = run.columns
    run.resume()
    run.wait(PATIENCE)
    assert len(run.columns.step) == 6
    assert columns is run.columns


# --- the end ---------------------------------------------------------------------------------------------------------


def test_a_corpus_that_is_not_there_is_refused_at_once() -> None:
    """Before a run begins; IPython shows the line alone."""
    with pytest.raises(RecipeError, match="unknown corpus 'nonsense'") as raised:
        start(recipe(corpus="nonsense:abc"), keep=False)
    assert raised.value._render_traceback_() == [f"RecipeError: {raised.value}"]


def test_columns_in_one_line() -> None:
    run = start(recipe(), keep=False)
    line = repr(run.wait(PATIENCE))
    assert line.startswith("<Columns of 6 local steps, done, validation loss ")
    assert line.endswith(f"{run.columns.ledger.total_bytes():,} bytes sent>")


def test_what_the_run_raised_is_raised(tmp_path: Path) -> None:
    """By `wait` and `await`, as often as asked, with the traceback of the place where it happened."""
    r = recipe(method={"name": "diloco", "inner": {"name": "SGD", "lr": 1e30}}, dtype="float32")
    run = start(r, folder=tmp_path / "run")
    for _ in range(2):
        with pytest.raises(Diverged, match="loss of worker") as caught:
            run.wait(PATIENCE)
        places = [frame.name for frame in traceback.extract_tb(caught.value.__traceback__)]
        assert places.count("_flush") == 1

    async def wait() -> Columns:
        return await run

    with pytest.raises(Diverged):
        asyncio.run(wait())
    assert run.status == "failed"
    assert RunFolder(tmp_path / "run").ended() == run.events[-1]


def test_an_error_of_our_own_is_not_swallowed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Views still learn that it is over."""

    def broken(self: Evaluator, model: object) -> None:
        raise ZeroDivisionError("in the loop")

    monkeypatch.setattr(Evaluator, "loss", broken)
    seen = Seen()
    run = start(recipe(), keep=False, views=[seen])
    with pytest.raises(ZeroDivisionError, match="in the loop"):
        run.wait(PATIENCE)
    assert seen.events[-1] == Ended(2, "failed", "ZeroDivisionError: in the loop")


def test_awaiting(tmp_path: Path) -> None:
    """Other coroutines go on meanwhile; the columns come back; awaiting again is fine."""

    async def both() -> tuple[Columns, int]:
        run, ticks = start(recipe(), keep=False), 0

        async def tick() -> None:
            nonlocal ticks
            while True:
                await asyncio.sleep(0)
                ticks += 1

        ticking = asyncio.ensure_future(tick())
        columns = await run
        ticking.cancel()
        assert await run is columns
        return columns, ticks

    columns, ticks = asyncio.run(both())
    assert len(columns.step) == 6
    assert ticks > 0


def test_an_interrupted_await_stops_the_run_and_keeps_its_results(tmp_path: Path) -> None:
    r = recipe(steps=100_000, eval_every=0, checkpoint_every=0)

    async def interrupted() -> Run:
        run = start(r, folder=tmp_path / "run")

        async def cell() -> None:
            await run

        task = asyncio.ensure_future(cell())
        while run.t < 3:
            await asyncio.sleep(0.001)
        task.cancel()
        with pytest.raises(asyncio.CancelledError) as stopped:
            await task
        (line,) = stopped.value._render_traceback_()  # type: ignore[attr-defined]
        assert line == (
            f"Interrupted: {run.name} was stopped after step {run.t} of 100,000; what it did is in run, and the same "
            "lab.start goes on from there"
        )
        return run

    run = asyncio.run(interrupted())
    assert run.status == "stopped"
    assert run.over.done()
    assert RunFolder(tmp_path / "run").last_step_saved() == run.t
    assert len(run.columns.step) == run.t


def test_an_interrupted_wait_says_how_to_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a script, where Ctrl-C is a KeyboardInterrupt still; of a run that is not kept there is nothing to go on with."""
    run = start(recipe(steps=100_000), keep=False)
    result = run.over.result

    def interrupted(timeout: float | None = None) -> None:
        monkeypatch.setattr(run.over, "result", result)
        raise KeyboardInterrupt

    monkeypatch.setattr(run.over, "result", interrupted)
    with pytest.raises(
        KeyboardInterrupt, match=r"was stopped after step \d+ of 100,000, and nothing of it is on disk"
    ) as stopped:
        run.wait()
    assert stopped.value._render_traceback_() == [f"Interrupted: {stopped.value}"]  # type: ignore[attr-defined]
    assert run.status == "stopped"


def test_a_run_whose_panel_is_elsewhere_says_where_it_is(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Started again from another cell than that of its panel, which says "stopped"; from the same cell all is new anyway."""
    r, line = recipe(steps=3, checkpoint_every=1), "run.panel() shows this one"
    cell = ["first", "1"]
    monkeypatch.setattr(lab.runs.live, "_notebook_cell", lambda: (cell[0], cell[1]))
    start(r, folder="somewhere").wait(PATIENCE)
    start(r, folder="somewhere").wait(PATIENCE)
    assert not capsys.readouterr().out
    monkeypatch.setitem(lab.runs.live._PANELS, start(r, folder="somewhere")._key, ("first", "1"))
    cell[1] = "2"
    start(r, folder="somewhere").wait(PATIENCE)
    assert not capsys.readouterr().out
    cell[0] = "second"
    start(r, folder="somewhere").wait(PATIENCE)
    assert line in capsys.readouterr().out
    start(r, folder="somewhere", again=True).wait(PATIENCE)
    assert not capsys.readouterr().out


def test_waiting_has_a_limit() -> None:
    run = start(recipe(), keep=False, paused=True)
    with pytest.raises(TimeoutError, match=r"des_loc-3w.* after 0\.01 s"):
        run.wait(0.01)


def test_what_shows_a_run_is_registered(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """By a call; else by an installed package, which is imported only then; else a line says how far it is."""
    run = start(recipe(steps=2), keep=False)
    run.wait(PATIENCE)
    shown: list[Any] = []
    monkeypatch.setattr(lab.runs.live, "_DISPLAYS", [])
    register_display(lambda run, views: shown.append((run, views)))
    run.panel("a view")  # type: ignore[arg-type]
    assert shown == [(run, ("a view",))]
    monkeypatch.setattr(lab.runs.live, "_DISPLAYS", [])
    offered = EntryPoint("some", f"{__name__}:shown_by_a_package", DISPLAYS)
    monkeypatch.setattr(lab.runs.live, "entry_points", lambda group: [offered] if group == DISPLAYS else [])
    run._ipython_display_()
    assert capsys.readouterr().out == f"a package shows {run.name}\n"
    monkeypatch.setattr(lab.runs.live, "_DISPLAYS", [])
    monkeypatch.setattr(lab.runs.live, "entry_points", lambda group: [])
    run._ipython_display_()
    assert f"{run.name}: done, step 2 of 2" in capsys.readouterr().out


def shown_by_a_package(run: Run, views: object) -> None:
    print(f"a package shows {run.name}")


@pytest.mark.parametrize("same", ["name", "folder", "cell"])
def test_starting_again_stops_the_earlier_run_first(same: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same name, the same folder, or the same cell executed again; a loop inside one cell starts several."""
    cells = iter([("cell 1", "a"), ("cell 1", "a"), ("cell 1" if same == "cell" else "cell 2", "b")])
    monkeypatch.setattr(lab.runs.live, "_notebook_cell", lambda: next(cells))
    long = recipe(steps=100_000, eval_every=0)
    names = {"name": ["x", "y", "x"], "folder": ["x", "y", "z"], "cell": ["x", "y", "z"]}[same]
    folders = {"name": ["f", "g", "h"], "folder": ["f", "g", "f"], "cell": ["f", "g", "h"]}[same]
    first, second, third = (
        start(long, name=name, folder=tmp_path / folder, paused=True)
        for name, folder in zip(names, folders, strict=True)
    )
    assert first.status == "stopped"
    assert second.status != "stopped" or same == "cell"
    assert not third.finished.is_set()


LEFT = """
import lab
from lab.recipes.recipe import Recipe
run = lab.start(Recipe.of({recipe!r}), folder={folder!r})
while run.t < 3:
    pass
"""


@pytest.mark.processes
def test_a_run_that_nobody_waits_for_does_not_keep_the_program(tmp_path: Path) -> None:
    """The program ends by itself, without a word, and what was trained is not lost."""
    r = recipe(steps=100_000, eval_every=0, checkpoint_every=1)
    code = LEFT.format(recipe=r.to_dict(), folder=str(tmp_path / "run"))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=PATIENCE, check=True)
    assert (done.stdout, done.stderr) == ("", "")
    events = list(RunFolder(tmp_path / "run").events())
    steps = [e.step for e in events if isinstance(e, Stepped)]
    assert len(steps) >= 3
    saved = RunFolder(tmp_path / "run").last_step_saved()
    assert saved is not None
    assert saved >= steps[-1] - 1


# --- knobs -----------------------------------------------------------------------------------------------------------


def turned_at(r: Any, script: dict[int, dict[str, Any]]) -> Trainer:
    """A trainer whose knobs are turned before given steps."""
    trainer = Trainer(r, corpus=corpus())
    trainer.knob_source = lambda t: script.get(t, {}).items()
    return trainer


SCRIPT: dict[int, dict[str, Any]] = {
    3: {"lr": 0.5},
    5: {"sync_every": {"params": 3}, "down": [1]},
    6: {"lr": 2.0, "network": "10Mbit"},
    8: {"down": []},
}


@pytest.mark.parametrize("crash", [4, 5, 6, 7, 9])
def test_knobs_outlive_a_crash(crash: int, tmp_path: Path) -> None:
    """A run whose knobs were turned, killed after any step and resumed by nobody's hand, is the run that never stopped."""
    r = recipe(steps=10, checkpoint_every=4)
    script = {step: knobs for step, knobs in SCRIPT.items() if step <= crash}
    whole = story(turned_at(r, script).events(RunFolder(tmp_path / "whole")))
    stream = turned_at(r, SCRIPT).events(RunFolder(tmp_path / "cut"))
    next(e for e in stream if isinstance(e, Stepped) and e.step == crash)
    stream.close()  # type: ignore[attr-defined]
    stream = Trainer(r, corpus=corpus()).events(RunFolder(tmp_path / "cut"))
    next(e for e in stream if isinstance(e, Stepped) and e.step == max(5, crash - 1))
    stream.close()  # type: ignore[attr-defined]  # and once more
    assert story(Trainer(r, corpus=corpus()).events(RunFolder(tmp_path / "cut"))) == whole
    assert story(RunFolder(tmp_path / "cut").events()) == whole
    assert [e.step for e in whole if isinstance(e, KnobChanged)] == [s for s, knobs in script.items() for _ in knobs]


def test_knobs_are_turned_and_written(tmp_path: Path) -> None:
    """Through the handle: before the next step, with the step as an event, in full, on disk as well."""
    run = start(recipe("diloco", steps=8), folder=tmp_path, paused=True)
    run.set(sync_every=4)
    run.step(2)
    until(lambda: run.t == 2)
    held(run, 2)
    run.set(lr=0.5, sync_every={"params": 3}, network="10Mbit")
    run.kill(1)
    until(lambda: run.knobs == {e.knob: e.value for e in run.events if isinstance(e, KnobChanged)})
    run.resume()
    columns = run.wait(PATIENCE)
    by_hand = [(e.step, e.knob, e.value) for e in columns.turned if e.knob != "paused"]
    assert by_hand[0] == (1, "sync_every", 4)
    assert sorted(by_hand[1:4]) == [(3, "down", [1]), (3, "lr", 0.5), (3, "sync_every", 3)] or len(by_hand) == 5
    assert {(s, k) for s, k, _ in by_hand} == {
        (1, "sync_every"),
        (3, "lr"),
        (3, "sync_every"),
        (3, "network"),
        (3, "down"),
    }
    assert columns.lr == [1.0, 1.0, *[0.5] * 6]
    assert sorted({e.step for e in columns.ledger}) == [3, 6]
    assert [None in losses for losses in columns.loss_W] == [False, False, *[True] * 6]
    assert run.events == list(RunFolder(tmp_path).events())


def test_a_learning_rate_turned_before_the_first_step_is_that_of_the_recipe() -> None:
    """Half the rate by the knob is half the rate in the recipe, bit for bit (a factor of two is exact)."""
    half = recipe(method={"name": "local_adam", "sync_every": 2, "inner": AdamW(lr=3e-3 * 0.5)})
    whole = recipe(method={"name": "local_adam", "sync_every": 2, "inner": AdamW(lr=3e-3)})
    a = Columns.of(turned_at(whole, {1: {"lr": 0.5}}).events())
    b = Columns.of(Trainer(half, corpus=corpus()).events())
    assert a.loss_W == b.loss_W
    assert a.eval_loss == b.eval_loss
    assert a.lr == [0.5] * 6


def test_killing_and_reviving_is_an_outage() -> None:
    """By hand or by the scenario: the same losses, the same bytes, the same events."""
    by_hand = list(turned_at(recipe(steps=9), {3: {"down": [1]}, 5: {"down": [1, 2]}, 6: {"down": []}}).events())
    by_plan = recipe(
        steps=9, scenario=Scenario(outages=(Outage(worker=1, first=3, last=5), Outage(worker=2, first=5, last=5)))
    )
    planned = list(Trainer(by_plan, corpus=corpus()).events())

    def essence(events: list[Event]) -> list[Event]:
        return [e for e in story(events) if not isinstance(e, Started | KnobChanged)]

    assert essence(by_hand) == essence(planned)
    assert any(isinstance(e, WorkersChanged) and e.returned for e in by_hand)
    assert any(isinstance(e, Sent) and e.op == "broadcast" and e.step == 6 for e in by_hand)


def test_periods_change_when_syncs_fall() -> None:
    """DES-LOC: periods of 2 and 3, from step 5 on 4 and 3: syncs at those steps and no others."""
    r = recipe(method={"name": "des_loc", "sync_every": {"params": 2, "exp_avg": 3}}, steps=12)
    columns = Columns.of(turned_at(r, {5: {"sync_every": {"params": 4}}}).events())
    steps = columns.ledger.by("state", "step")
    assert sorted(s for state, s in steps if state == "params") == [2, 4, 8, 12]
    assert sorted(s for state, s in steps if state == "exp_avg") == [3, 6, 9, 12]
    (turned,) = columns.turned
    assert turned == KnobChanged(5, "sync_every", {"params": 4, "exp_avg": 3})


def test_a_knob_turned_to_where_it_stands_changes_nothing() -> None:
    r = recipe()
    present = dict(r.method.sync_every)
    script = {2: {"lr": 1.0, "down": [], "network": None}, 4: {"sync_every": present, "lr": 1}, 5: {"paused": False}}
    assert story(turned_at(r, script).events()) == story(Trainer(r, corpus=corpus()).events())
    assert (
        story(turned_at(r, {1: {"network": "10Mbit"}}).events())[1:] != story(Trainer(r, corpus=corpus()).events())[1:]
    )


def test_revive_undoes_kill_alone() -> None:
    run = start(recipe(), keep=False, paused=True)
    with pytest.raises(RecipeError, match="worker 1 was not killed"):
        run.revive(1)
    run.kill(1)
    run.kill(2)
    run.revive(1)
    assert run.knobs["down"] == [2]


@pytest.mark.parametrize(
    ("method", "knob", "value", "says"),
    [
        ("des_loc", "rate", 1.0, "unknown knob 'rate': use one of lr, sync_every"),
        ("des_loc", "lr", 0.0, "lr = 0.0: give a factor"),
        ("des_loc", "lr", math.nan, "lr = nan: give a factor"),
        ("des_loc", "lr", "fast", "lr = 'fast': give a factor"),
        ("des_loc", "sync_every", {"params": 0}, "method.sync_every.params = 0 is not allowed"),
        ("des_loc", "sync_every", {"velocity": 3}, "unknown state of AdamW in sync_every 'velocity'"),
        ("diloco", "sync_every", {"exp_avg": 3}, "diloco has one period"),
        ("diloco", "sync_every", "often", "method.sync_every = 'often' is not allowed"),
        ("ddp", "sync_every", 3, "ddp sends in every step"),
        ("demo", "sync_every", 3, "demo sends in every step"),
        ("streaming_diloco", "sync_every", 3, "use method.overlap=0"),
        ("fedit", "sync_every", 3, "its rounds begin with what clients fetch"),
        ("des_loc", "down", [7], "there is no worker 7: the workers are 0 … 2"),
        ("des_loc", "network", "56k", "unknown network '56k'"),
        ("des_loc", "network", {"bits_per_second": -1}, "network.bits_per_second = -1 is not allowed"),
    ],
)
def test_a_knob_that_makes_no_sense_is_refused_in_one_line(method: str, knob: str, value: Any, says: str) -> None:
    r = recipe(method, lora={"ranks": [2], "targets": ["attention.qkv"]} if declared(METHODS[method]).server else {})
    with pytest.raises(RecipeError) as caught:
        validate_knob(r, knob, value, {})
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_network_is_written_as_its_fields() -> None:
    known = NETWORKS["10Mbit"]
    assert validate_knob(recipe(), "network", "10Mbit", {}) == validate_knob(recipe(), "network", known, {})
    with_links = dataclasses.replace(known, links={1: 1e6})
    again = validate_knob(recipe(), "network", with_links, {})
    assert validate_knob(recipe(), "network", again, {}) == again


def test_adopt_can_be_joined_late_by_hand() -> None:
    """Killed before the first step, a worker comes back without a second moment: its first step makes one, and moves nothing."""
    inner = {"name": "ADOPT", "lr": 1e-3, "options": {"betas": [0.9, 0.99]}}
    r = recipe({"name": "local_adam", "inner": inner}, steps=6, scenario=Scenario(catch_up="params"))
    trainer, seen = turned_at(r, {1: {"down": [1]}, 3: {"down": []}}), dict[int, torch.Tensor]()
    for event in trainer.events():
        if isinstance(event, Stepped):
            seen[event.step] = trainer.fleet.params.blocks[0][1].clone()
        if isinstance(event, WorkersChanged) and event.step == 3:
            seen[0] = trainer.fleet.params.blocks[0][1].clone()  # what it was sent
            assert event.returned == [1]
    assert torch.equal(seen[3], seen[0])
    assert 0 < float((seen[4] - seen[3]).abs().max()) < 1e-3


# --- replay ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    list(turned_at(recipe(steps=10), SCRIPT).events(RunFolder(tmp_path / "stored")))
    return tmp_path / "stored"


def test_a_replay_is_the_run(stored: Path) -> None:
    """At once or at its own pace: the same events, so the same fold, knobs included."""
    seen = Seen()
    shown = replay(stored, math.inf, views=[seen])
    columns = shown.wait(PATIENCE)
    assert seen.events == shown.events == list(RunFolder(stored).events())
    assert columns.turned[0] == KnobChanged(3, "lr", 0.5)
    assert shown.status == "done"


def test_a_replay_can_be_paused_and_stepped_but_not_turned(stored: Path) -> None:
    shown = replay(stored, math.inf, paused=True)
    until(lambda: shown.status == "paused")
    shown.step(4)
    until(lambda: shown.t == 4)
    held(shown, 4)
    with pytest.raises(LabError, match="a replay shows what happened"):
        shown.set(lr=2.0)
    with pytest.raises(LabError, match="a replay shows what happened"):
        shown.kill(1)
    shown.step_sync()
    until(lambda: shown.t >= 6)
    held(shown, 6)
    shown.stop()
    shown.wait(PATIENCE)
    assert shown.events[-1] == Ended(6, "stopped", "the replay was stopped")
    assert shown.events[:-1] == list(RunFolder(stored).events())[: len(shown.events) - 1]


def test_the_pace_of_a_replay(stored: Path) -> None:
    """Twice as fast means half of the recorded seconds between steps."""
    slept: list[float] = []
    events = [
        dataclasses.replace(e, seconds=100.0) if isinstance(e, Stepped) else e for e in RunFolder(stored).events()
    ]
    assert list(lab.runs.live.paced(events, 2.0, sleep=slept.append)) == events
    assert [round(s) for s in slept] == [50 * k for k in range(1, 11)]  # nobody slept, so it falls behind ever more


def test_a_replay_of_nothing() -> None:
    with pytest.raises(RecipeError, match="no run called 'x'"):
        replay("x")
    with pytest.raises(RecipeError, match="speed = 0"):
        replay("x", 0)


def test_a_notebook_waits_for_the_one_beside_it(tmp_path: Path) -> None:
    """Two notebooks of a sweep need the same run: one trains it, the other waits, then reads it."""
    from widgets.training import _when_free

    r = recipe(steps=4)
    run = start(r, folder=tmp_path / "run", paused=True)
    held(run, 0)
    waiting: concurrent.futures.Future[Columns] = concurrent.futures.Future()
    thread = threading.Thread(
        target=lambda: waiting.set_result(_when_free(r, tmp_path / "run", lambda event: None, 0.01))
    )
    thread.start()
    run.step(2)
    until(lambda: run.t == 2)
    assert not waiting.done()
    run.resume()
    run.wait(PATIENCE)
    assert waiting.result(PATIENCE).step == [1, 2, 3, 4]
    thread.join(PATIENCE)
