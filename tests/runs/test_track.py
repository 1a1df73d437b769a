"""Trackers: what they are given, each in its own store, and that none of them stops, slows or changes a run."""

from __future__ import annotations

import errno
import json
import math
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import lab
import lab.runs.track
from lab.cli import main
from lab.events import (
    Drifted,
    Ended,
    Evaluated,
    Event,
    KnobChanged,
    Measured,
    Sent,
    Started,
    Stepped,
    Warned,
)
from lab.ground.errors import RecipeError
from lab.runs.columns import Columns
from lab.runs.track import Fold, Row, Sink, tracked
from lab.runs.trackers.tracker import TRACKERS, tracker
from lab.runs.trainer import train
from tests.support.recipes import recipe
from tests.support.stories import PATIENCE, story, until

pytestmark = pytest.mark.usefixtures("nothing_left_behind")


@dataclass
class Kept:
    """A tracker that keeps all that it is given."""

    has: int = 0  # the last step that it says it has
    recipe: Mapping[str, Any] = field(default_factory=dict)
    name: str = ""
    resumed: bool | None = None
    rows: list[tuple[int, dict[str, float]]] = field(default_factory=list)
    notes: list[tuple[int, str, bool]] = field(default_factory=list)
    status: str | None = None
    thread: int = 0

    def start(self, recipe: Mapping[str, Any], name: str, resume: bool) -> int:
        self.recipe, self.name, self.resumed, self.thread = recipe, name, resume, threading.get_ident()
        return self.has

    def log(self, values: Mapping[str, float], step: int) -> None:
        self.rows.append((step, dict(values)))

    def note(self, text: str, step: int, warning: bool) -> None:
        self.notes.append((step, text, warning))

    def finish(self, status: str) -> None:
        self.status = status

    def column(self, name: str) -> list[tuple[int, float]]:
        return [(step, values[name]) for step, values in self.rows if name in values]


# --- what a tracker is given -----------------------------------------------------------------------------------------

PLAIN = recipe().to_dict()
STORY: list[Event] = [
    Started(2, PLAIN, 10, [10] * 3, 48, None, 1.0, {}),
    Warned(0, "a note at the start"),
    Stepped(1, [1.0, None, 4.0], 0.5, 0.25),
    Sent(1, "all_reduce", "params", (0, 2), {"mlp": 100, "norm": 20}),
    Sent(1, "broadcast", "exp_avg", (2,), {"mlp": 30}),
    Drifted(1, [3.0, None, 4.0], [None, None, None]),
    KnobChanged(2, "lr", 0.5),
    Stepped(2, [None, None, None], 0.25, 0.5),
    Evaluated(2, 2.5, 0.125, {"accuracy": 0.75}),
    Measured(2, "alignment", {"cos θ": [0.5], "norms": [1.0, None, 3.0]}),
    Stepped(3, [1.0, 2.0, math.inf], 1.0, 0.5),
    Sent(3, "all_reduce", "params", (0, 1, 2), {"mlp": 100}),
    Ended(3, "failed", "loss of worker 2 is inf"),
]


def test_every_value_by_hand() -> None:
    """Means and root mean squares over those that are up, bytes since the start, lists by number, no number that is not finite."""
    fold = Fold()
    rows = [row for event in STORY for row in fold.add(event)]
    rate = PLAIN["method"]["inner"]["lr"]
    first = {
        "loss/mean": 2.5,
        "loss/worker_0": 1.0,
        "loss/worker_2": 4.0,
        "workers/up": 2,
        "seconds/step": 0.25,
        "learning_rate": 0.5 * rate,
        "sent_bytes/params": 240,
        "sent_bytes/exp_avg": 30,
        "sent_bytes/total": 270,
        "drift/to_mean": math.sqrt(12.5),
    }
    second = {
        "workers/up": 0,
        "seconds/step": 0.5,
        "learning_rate": 0.25 * rate,
        "validation/loss": 2.5,
        "validation/accuracy": 0.75,
        "drift/after_average": 0.125,
        "alignment/cos θ": 0.5,
        "alignment/norms/0": 1.0,
        "alignment/norms/2": 3.0,
    }
    third = {
        "loss/worker_0": 1.0,
        "loss/worker_1": 2.0,
        "workers/up": 3,
        "seconds/step": 0.5,
        "learning_rate": rate,
        "sent_bytes/params": 540,
        "sent_bytes/total": 570,
    }
    assert rows == [
        Row(1, first, [(0, "a note at the start", True)], rare=True),
        Row(2, second, [(2, "from step 2 on: lr = 0.5", False)], rare=True),
        Row(3, third, [(3, "failed: loss of worker 2 is inf", True)]),
    ]


def test_a_method_without_a_rate_gives_the_factor() -> None:
    fold = Fold()
    own = PLAIN | {"method": {"name": "my_method"}}
    rows = [row for event in (Started(2, own, 1, [1], 8, None, 1.0, {}), *STORY[2:]) for row in fold.add(event)]
    assert rows[0].values["learning_rate/factor"] == 0.5
    assert "learning_rate" not in rows[0].values


def test_a_run_is_told_as_its_columns_have_it() -> None:
    """Of a real run every step once and in order; the numbers are those of the columns, and the run is what it was without."""
    kept, asked = Kept(), recipe(metrics=("gradients",), metrics_every=2)
    columns = train(asked, track=kept)
    assert kept.recipe == asked.to_dict()
    assert kept.name.startswith(asked.id)
    assert (kept.resumed, kept.status) == (False, "done")
    assert kept.thread != threading.get_ident()
    assert [step for step, _ in kept.rows] == columns.step
    assert [x for _, x in kept.column("loss/mean")] == list(columns.loss)
    assert kept.column("validation/loss") == list(zip(columns.eval_step, columns.eval_loss, strict=True))
    assert [x for _, x in kept.column("loss/worker_1")] == [row[1] for row in columns.loss_W]
    by_state = columns.ledger.by("state")
    assert {state: kept.column(f"sent_bytes/{state}")[-1][1] for (state,) in by_state} == {
        state: num for (state,), num in by_state.items()
    }
    assert kept.column("sent_bytes/total")[-1][1] == columns.payload_bytes[-1]
    assert [step for step, values in kept.rows if any(name.startswith("gradients/") for name in values)] == [2, 4, 6]
    assert not columns.warnings
    alone = train(asked)
    assert (alone.loss_W, alone.ledger.records, alone.eval_loss) == (
        columns.loss_W,
        columns.ledger.records,
        columns.eval_loss,
    )


def test_a_live_run_tells_its_knobs_and_warnings() -> None:
    kept = Kept()
    run = lab.start(recipe(), track=[kept], paused=True)
    run.set(lr=0.5)
    run.resume()
    columns = run.wait(PATIENCE)
    assert [step for step, _ in kept.rows] == columns.step
    assert (1, "from step 1 on: lr = 0.5", False) in kept.notes
    factor = dict(kept.column("learning_rate"))
    assert factor[6] == columns.lr[-1] * recipe().method.inner.lr == 0.5 * recipe().method.inner.lr
    assert kept.name == f"live-{run.name}"
    assert columns.ended is not None
    assert isinstance(run.events[-1], Ended)


def test_what_a_tracker_has_already_it_is_not_given_again(tmp_path: Path) -> None:
    """A run that was cut off after step 4 goes on: a tracker that has five steps gets the sixth, an empty one gets all."""

    class Enough(Exception):
        pass

    def stop(event: Event) -> None:
        if isinstance(event, Stepped) and event.step == 4:
            raise Enough

    before = Kept()
    with pytest.raises(Enough):
        train(recipe(), tmp_path / "run", track=before, each=stop)
    assert (before.name, before.resumed) == ("run", False)
    assert before.status == "stopped"
    has, empty = Kept(has=5), Kept()
    train(recipe(), tmp_path / "run", track=[has, empty])
    assert (has.name, has.resumed) == ("run", True)
    assert [step for step, _ in has.rows] == [6]
    assert [step for step, _ in empty.rows] == [1, 2, 3, 4, 5, 6]
    assert has.column("sent_bytes/total") == empty.column("sent_bytes/total")[-1:]
    again = Kept()  # of what is finished, too
    train(recipe(), tmp_path / "run", track=again)
    assert [(step, values) for step, values in again.rows] == empty.rows


def test_the_environment_names_trackers_for_runs_that_name_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in the processes of a sweep; what a run asks for itself stands."""
    made = Kept()
    monkeypatch.setattr(lab.runs.track, "tracker", lambda name: {"trackio": made}[name])
    monkeypatch.setenv("ISTHMUS_TRACK", "trackio")
    train(recipe(), track=())
    assert made.status is None
    train(recipe())
    assert made.status == "done"


# --- trackers that fail ----------------------------------------------------------------------------------------------


class Nuisance(Kept):
    """Does something bad in one of its functions."""

    def __init__(self, where: str, how: Callable[[], Any]):
        self.where, self.how = where, how
        super().__init__()

    def bad(self, where: str) -> Any:
        return self.how() if where == self.where else None

    def start(self, recipe: Mapping[str, Any], name: str, resume: bool) -> int:
        Kept.start(self, recipe, name, resume)
        bad = self.bad("start")
        return 0 if self.where != "start" else bad

    def log(self, values: Mapping[str, float], step: int) -> None:
        Kept.log(self, values, step)
        if len(self.rows) == 3:
            self.bad("log")

    def note(self, text: str, step: int, warning: bool) -> None:
        self.bad("note")

    def finish(self, status: str) -> None:
        self.bad("finish")
        Kept.finish(self, status)


def raises(error: BaseException) -> Callable[[], Any]:
    def do() -> Any:
        raise error

    return do


FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
ERRORS = [ValueError("two\nlines"), FULL, SystemExit(3), KeyboardInterrupt()]


def warnings(events: list[Event]) -> list[str]:
    return [e.message for e in events if isinstance(e, Warned)]


@pytest.fixture(scope="module")
def untouched() -> list[Event]:
    return _run(recipe(), None)


def _run(asked: lab.Recipe, track: Any) -> list[Event]:
    seen: list[Event] = []
    train(asked, track=track, each=seen.append)
    return seen


@pytest.mark.parametrize("where", ["start", "log", "finish"])
@pytest.mark.parametrize("error", ERRORS, ids=lambda e: type(e).__name__)
def test_a_tracker_that_raises_is_left_alone(where: str, error: BaseException, untouched: list[Event]) -> None:
    """The run is the same, one line says what went wrong, and another tracker beside it gets everything."""
    other = Kept()
    seen = _run(recipe(), [Nuisance(where, raises(error)), other])
    assert story(seen) == story(untouched)
    assert isinstance(seen[-1], Ended)
    (line,) = warnings(seen)
    assert line.startswith(f"Nuisance failed ({type(error).__name__}")
    assert "which goes on without it" in line
    assert "\n" not in line
    assert [step for step, _ in other.rows] == [1, 2, 3, 4, 5, 6]
    assert other.status == "done"


def test_a_note_that_fails_is_a_tracker_that_fails(untouched: list[Event]) -> None:
    run = lab.start(recipe(), track=Nuisance("note", raises(FULL)), paused=True)
    run.set(lr=1.5)
    run.resume()
    columns = run.wait(PATIENCE)
    assert len(columns.step) == 6
    (line,) = [w.message for w in columns.warnings]
    assert "No space left on device" in line


def test_an_answer_that_is_no_step_is_a_failure() -> None:
    seen = _run(recipe(), Nuisance("start", lambda: "yesterday"))
    (line,) = warnings(seen)
    assert "failed (TypeError" in line


@pytest.mark.parametrize("where", ["start", "log", "finish"])
def test_a_tracker_that_hangs_is_left_alone(
    where: str, untouched: list[Event], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run comes to its end while the call still hangs; that call is never followed by another."""
    monkeypatch.setattr(lab.runs.track, "PATIENCE_SECONDS", 0.2)
    free = threading.Event()
    hangs = Nuisance(where, lambda: free.wait(PATIENCE) and 0)
    try:
        seen = _run(recipe(), hangs)
        assert not free.is_set()
        assert story(seen) == story(untouched)
        (line,) = warnings(seen)
        assert line == (
            "Nuisance has not answered for 0.2 s: it gets nothing more of this run, which goes on without it"
        )
    finally:
        free.set()
    rows = len(hangs.rows)
    until(lambda: not any(t.name.startswith("track Nuisance") for t in threading.enumerate()))
    assert len(hangs.rows) == rows
    assert hangs.status is None or where == "finish"


def test_a_run_does_not_wait_for_a_tracker(monkeypatch: pytest.MonkeyPatch) -> None:
    """All steps are done, and seen, while the tracker has not even begun."""
    free, steps = threading.Event(), 0
    slow = Nuisance("start", lambda: free.wait(PATIENCE) and 0)

    def count(event: Event) -> None:
        nonlocal steps
        steps += isinstance(event, Stepped)
        if steps == 6:
            free.set()

    columns = train(recipe(), track=slow, each=count)
    assert [step for step, _ in slow.rows] == columns.step
    assert not columns.warnings


def test_a_run_that_fails_says_so_to_its_tracker() -> None:
    kept = Kept()
    with pytest.raises(ZeroDivisionError):
        for _ in tracked(iter_then(STORY[:4], ZeroDivisionError()), [Sink(kept, "kept", "run", False)]):
            pass
    assert kept.status == "failed"
    kept = Kept()
    list(tracked(STORY, [Sink(kept, "kept", "run", False)]))
    assert (kept.status, kept.notes[-1]) == ("failed", (3, "failed: loss of worker 2 is inf", True))


def iter_then(events: list[Event], error: Exception) -> Iterator[Event]:
    yield from events
    raise error


def test_an_event_like_none_before_costs_the_tracker_and_not_the_run() -> None:
    kept = Kept()
    broken = Started(2, {"method": None}, 1, [1], 8, None, 1.0, {})
    odd = Evaluated(1, "low", 0.0)  # type: ignore[arg-type]
    seen = list(tracked([broken, STORY[2], odd, Ended(1, "done", "")], [Sink(kept, "kept", "run", False)]))
    assert [type(e) for e in seen] == [Started, Stepped, Warned, Evaluated, Ended]
    assert "Evaluated" in warnings(seen)[0]


def test_of_too_many_rows_every_second_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tracker that begins late: evenly spaced steps, every evaluation, never more rows than allowed, and one line that says so."""
    monkeypatch.setattr(lab.runs.track, "MOST_ROWS", 16)
    free = threading.Event()
    slow = Nuisance("start", lambda: free.wait(PATIENCE) and 0)
    sink = Sink(slow, "slow", "run", False)
    most = 0

    def events() -> Iterator[Event]:
        nonlocal most
        yield STORY[0]
        for t in range(1, 101):
            yield Stepped(t, [1.0] * 3, 1.0, 0.1)
            if t in (33, 77):
                yield Evaluated(t, 2.0, 0.0)
            most = max(most, len(sink._rows))
        free.set()
        yield Ended(100, "done", "")

    seen = list(tracked(events(), [sink]))
    assert most <= 17
    steps = [step for step, _ in slow.rows]
    assert {33, 77} <= set(steps)
    even = [t for t in steps if t not in (33, 77)]
    assert even == [*range(even[0], 101, even[0])]
    (line,) = warnings(seen)
    assert line == (
        f"slow was slower than the run: of {100 - len(steps)} steps it has nothing, of every evaluation it has all"
    )


# --- trackers that are not there -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TRACKERS)
def test_what_is_not_installed_is_refused_before_anything_trains(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, name, None)  # what is imported from it is not found
    for module in [m for m in sys.modules if m.startswith(f"{name}.") or m == TRACKERS[name][0]]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.chdir(tmp_path)
    for more in ([], ["--processes", "3"]):
        out = CliRunner().invoke(main, ["run", "des_loc", "--track", name, *more])
        assert out.exit_code == 2
        (line,) = out.output.strip().splitlines()
        assert line.startswith(f"lab: {name} is not installed")
        assert f"pip install 'isthmus[{name}]'" in line
    assert not list(tmp_path.iterdir())
    with pytest.raises(RecipeError, match="is not installed"):
        lab.start(recipe(), track=name)


def test_a_tracker_that_there_is_not() -> None:
    with pytest.raises(RecipeError, match=r"unknown tracker 'trackoi': use one of .* \(did you mean 'trackio'\?\)"):
        train(recipe(), track="trackoi")


def test_a_sweep_gives_its_trackers_to_its_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str | None] = []
    monkeypatch.setattr("lab.study.sweep.sweep", lambda *a, **b: seen.append(os.environ.get("ISTHMUS_TRACK")) or 0)
    monkeypatch.setattr(lab.runs.track, "tracker", lambda name: Kept())
    monkeypatch.setenv("ISTHMUS_TRACK", "")
    out = CliRunner().invoke(main, ["sweep", "01_des_loc", "-p", "seeds=0", "--track", "trackio", "--track", "wandb"])
    assert (out.exit_code, seen) == (0, ["trackio,wandb"])


# --- real ones, in their own stores ----------------------------------------------------------------------------------


@dataclass
class Store:
    """A tracker with a store of its own, and how to read that."""

    spec: str
    read: Callable[[str], dict[str, list[tuple[int, float]]]]  # name of the run → values by name
    config: Callable[[str], Any]
    texts: Callable[[str], list[str]]
    status: Callable[[str], str | None] = lambda name: None


def of_tensorboard(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    pytest.importorskip("tensorboard", reason="TensorBoard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    def there(name: str) -> Any:
        return EventAccumulator(str(folder / "events" / name), size_guidance={"scalars": 0, "tensors": 0}).Reload()

    def read(name: str) -> dict[str, list[tuple[int, float]]]:
        found = there(name)
        return {tag: [(e.step, e.value) for e in found.Scalars(tag)] for tag in found.Tags()["scalars"]}

    def text(name: str, tag: str) -> list[str]:
        found = there(name)
        tag = f"{tag}/text_summary"
        tensors = found.Tensors(tag) if tag in found.Tags()["tensors"] else []
        return [e.tensor_proto.string_val[0].decode() for e in tensors]

    def config(name: str) -> Any:
        (only,) = text(name, "recipe")
        return json.loads(only.removeprefix("```json\n").removesuffix("\n```"))

    return Store(
        f"tensorboard:{folder / 'events'}", read, config, lambda name: text(name, "knobs") + text(name, "warnings")
    )


def of_trackio(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    pytest.importorskip("trackio", reason="trackio is not installed")
    from trackio.sqlite_storage import SQLiteStorage

    for module in [m for n, m in sys.modules.items() if n.startswith("trackio") and hasattr(m, "TRACKIO_DIR")]:
        monkeypatch.setattr(module, "TRACKIO_DIR", folder / "trackio")

    def read(name: str) -> dict[str, list[tuple[int, float]]]:
        out: dict[str, list[tuple[int, float]]] = {}
        for row in SQLiteStorage.get_logs("isthmus", name):
            for key, value in row.items():
                if key not in ("timestamp", "step"):
                    out.setdefault(key, []).append((row["step"], value))
        return out

    return Store(
        "trackio",
        read,
        lambda name: SQLiteStorage.get_run_config("isthmus", name),
        lambda name: [a["text"] for a in SQLiteStorage.get_alerts("isthmus", run_name=name)],
    )


def of_mlflow(folder: Path, monkeypatch: pytest.MonkeyPatch, uri: str) -> Store:
    pytest.importorskip("mlflow", reason="MLflow is not installed")
    if uri.startswith("sqlite"):
        pytest.importorskip("alembic", reason="MLflow's database needs sqlalchemy and alembic")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri.format(folder))
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    from mlflow import MlflowClient

    def run(name: str) -> Any:
        client = MlflowClient(uri.format(folder))
        number = client.get_experiment_by_name("isthmus").experiment_id
        (found,) = client.search_runs([number], f"tags.`isthmus.run` = '{name}'")
        return client, found

    def read(name: str) -> dict[str, list[tuple[int, float]]]:
        client, found = run(name)
        metrics = {key: client.get_metric_history(found.info.run_id, key) for key in found.data.metrics}
        return {key: sorted((m.step, m.value) for m in history) for key, history in metrics.items()}

    def texts(name: str) -> list[str]:
        return [text for key, text in run(name)[1].data.tags.items() if key.startswith(("knobs.", "warning."))]

    def config(name: str) -> Any:
        return {"method": {"name": run(name)[1].data.params["method.name"]}}

    return Store("mlflow", read, config, texts, lambda name: run(name)[1].info.status)


def of_wandb(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    pytest.importorskip("wandb", reason="wandb is not installed")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(folder))
    import wandb

    wandb.teardown()  # or it goes on with the environment of the test before
    from tests.support.wandb_files import records

    def newest(name: str) -> list[Any]:
        files = [path / f"run-{name}.wandb" for path in folder.glob(f"wandb/offline-run-*-{name}*")]

        def closed(file: Path) -> bool:  # by a process of its own, some time after the run has been told to finish
            found = records(file) if file.exists() else []
            return bool(found) and found[-1].WhichOneof("record_type") == "exit"

        until(lambda: all(map(closed, files)))
        return records(max(files))  # their names have the second, and then a number

    def read(name: str) -> dict[str, list[tuple[int, float]]]:
        out: dict[str, list[tuple[int, float]]] = {}
        for record in newest(name):
            if record.WhichOneof("record_type") == "history":
                for item in record.history.item:
                    key = item.key or "/".join(item.nested_key)
                    value = json.loads(item.value_json)
                    if not key.startswith("_") and isinstance(value, int | float):
                        out.setdefault(key, []).append((record.history.step.num, value))
        return out

    def config(name: str) -> Any:
        (run,) = [r.run for r in newest(name) if r.WhichOneof("record_type") == "run"][:1]
        return {u.key: json.loads(u.value_json) for u in run.config.update}

    def texts(name: str) -> list[str]:
        out = [r.alert.text for r in newest(name) if r.WhichOneof("record_type") == "alert"]
        items = [i for r in newest(name) if r.WhichOneof("record_type") == "history" for i in r.history.item]
        return out + [json.loads(i.value_json) for i in items if "knobs" in (i.key, *i.nested_key)]

    return Store("wandb", read, config, texts)


STORES: dict[str, Callable[[Path, pytest.MonkeyPatch], Store]] = {
    "tensorboard": of_tensorboard,
    "trackio": of_trackio,
    "mlflow, files": lambda folder, patch: of_mlflow(folder, patch, "{}/mlruns"),
    "mlflow, sqlite": lambda folder, patch: of_mlflow(folder, patch, "sqlite:///{}/mlflow.db"),
    "wandb, offline": of_wandb,
}


@pytest.fixture(params=STORES)
def store(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    return STORES[request.param](tmp_path, monkeypatch)


def same_values(found: Mapping[str, list[tuple[int, float]]], kept: Kept, clock: bool = True) -> None:
    """Every name has every value once, at its step (TensorBoard keeps float32); ``clock``: of the same run, so times are the same."""
    names = {name for _, values in kept.rows for name in values}
    assert names <= set(found)
    for name in names - ({"seconds/step"} if not clock else set()):
        want = kept.column(name)
        assert [step for step, _ in found[name]] == [step for step, _ in want], name
        assert [x for _, x in found[name]] == pytest.approx([x for _, x in want], rel=1e-6), name


def test_a_store_has_all_of_a_run(store: Store, tmp_path: Path) -> None:
    """Values, recipe, warnings and knobs, and how the run ended."""
    kept = Kept()
    run = lab.start(recipe(), folder=tmp_path / "one", track=[store.spec, kept], paused=True)
    run.set(lr=0.5)
    run.resume()
    columns = run.wait(PATIENCE)
    assert not columns.warnings
    same_values(store.read("one"), kept)
    assert store.config("one")["method"]["name"] == "des_loc"
    assert any("from step 1 on: lr = 0.5" in text for text in store.texts("one"))
    assert store.status("one") in (None, "FINISHED")


def test_a_store_has_each_step_once_of_a_run_that_was_cut_off(store: Store, tmp_path: Path) -> None:
    """Stopped, and gone on with: one run there, with the steps of one that never stopped."""
    run = lab.start(recipe(), folder=tmp_path / "two", track=store.spec, paused=True)
    run.step(3)
    until(lambda: run.t == 3)
    run.stop()
    run.wait(PATIENCE)
    assert store.status("two") in (None, "KILLED")
    kept = Kept()
    columns = lab.start(recipe(), folder=tmp_path / "two", track=[store.spec, kept]).wait(PATIENCE)
    assert len(columns.step) == 6
    same_values(store.read("two"), kept)
    assert store.status("two") in (None, "FINISHED")
    train(recipe(), tmp_path / "two", track=store.spec)  # shown again
    same_values(store.read("two"), kept)


def test_a_failed_start_in_a_real_tracker(tmp_path: Path) -> None:
    """A file where TensorBoard's folder is to be."""
    pytest.importorskip("tensorboard", reason="TensorBoard is not installed")
    (tmp_path / "file").write_text("")
    columns = train(recipe(), track=f"tensorboard:{tmp_path / 'file'}")
    (line,) = [w.message for w in columns.warnings]
    assert line.startswith("tensorboard failed (")
    assert len(columns.step) == 6


def test_the_files_of_another_run_are_forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The run folder was removed and the recipe is another: what the log says of that name is the new run."""
    store, kept = of_tensorboard(tmp_path, monkeypatch), Kept()
    train(recipe(steps=8), tmp_path / "a" / "run", track=store.spec)
    train(recipe(seed=1), tmp_path / "b" / "run", track=[store.spec, kept])
    same_values(store.read("run"), kept)


KILLED = """
import os, sys
from lab.events import Stepped
from lab.runs.trainer import train
from tests.support.recipes import recipe

def each(event):
    if isinstance(event, Stepped) and event.step == 40:
        os._exit(9)

train(recipe(steps=60, checkpoint_every=10), sys.argv[1], track=sys.argv[2:], each=each)
"""


@pytest.mark.slow
def test_a_process_that_was_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the middle of a step, with who knows how much handed over: in the end each step is there once."""
    stores = [STORES[name](tmp_path, monkeypatch) for name in ("tensorboard", "trackio")]
    arguments = [str(tmp_path / "three"), *(store.spec for store in stores)]
    env = os.environ | {"TRACKIO_DIR": str(tmp_path / "trackio"), "PYTHONPATH": os.getcwd()}
    from tests.support import ROOT

    done = subprocess.run([sys.executable, "-c", KILLED, *arguments], cwd=ROOT, env=env, capture_output=True)
    assert done.returncode == 9, done.stderr
    kept = Kept()
    columns = train(
        recipe(steps=60, checkpoint_every=10),
        tmp_path / "three",
        track=[*(store.spec for store in stores), kept],
    )
    assert any("resumed after step 30" in w.message for w in columns.warnings)
    for store in stores:
        same_values(store.read("three"), kept, clock=False)


@pytest.mark.slow
@pytest.mark.processes
def test_the_first_of_several_processes_feeds_the_tracker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = of_tensorboard(tmp_path, monkeypatch)
    (tmp_path / "recipe.json").write_text(json.dumps(recipe(num_workers=2).to_dict()))
    command = [sys.executable, "-m", "lab", "run", "recipe.json", "--processes", "2", "--track", store.spec]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (folder,) = [p for p in (tmp_path / "runs").iterdir() if (p / "events.jsonl").exists()]
    columns = Columns.of(lab.find_run(str(folder)).events())
    found = store.read(folder.name)["loss/mean"]
    assert [step for step, _ in found] == columns.step
    assert [x for _, x in found] == pytest.approx(list(columns.loss), rel=1e-6)


def test_every_tracker_can_be_named() -> None:
    for name in TRACKERS:
        pytest.importorskip(name, reason=f"{name} is not installed")
        assert callable(tracker(name).start)
