"""Runs on disk: what is damaged is noticed and named, what is killed goes on; events and scenarios as plain data."""

from __future__ import annotations

import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lab.events import (
    KINDS,
    Checkpointed,
    Ended,
    Evaluated,
    Event,
    Sent,
    Started,
    Stepped,
    Warned,
    WorkersChanged,
    from_json,
    to_json,
)
from lab.ground.errors import LabError, RecipeError
from lab.ground.files import write_atomically
from lab.recipes.scenario import Outage, Scenario
from lab.runs.columns import Columns
from lab.runs.export import export_run
from lab.runs.folder import KEEP, RunFolder, find_run
from lab.runs.trainer import Trainer, train
from tests.support import ROOT
from tests.support.recipes import TEXT, corpus, recipe
from tests.support.stories import story

# --- damaged checkpoints ---------------------------------------------------------------------------------------------


def cut_off(path: Path, r: Any, after: int) -> RunFolder:
    """A run folder as it is when its process dies after a step."""
    folder = RunFolder(path)
    stream = Trainer(r, corpus=corpus()).events(folder)
    next(e for e in stream if isinstance(e, Checkpointed) and e.step == after)
    stream.close()  # type: ignore[attr-defined]
    return folder


def truncate(file: Path) -> None:
    os.truncate(file, file.stat().st_size // 2)


def empty(file: Path) -> None:
    os.truncate(file, 0)


def flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[-5] ^= 1
    file.write_bytes(data)


def lose_digest(file: Path) -> None:
    file.with_suffix(".json").unlink()


def edit_digest(file: Path) -> None:
    digest = json.loads(file.with_suffix(".json").read_text())
    digest["sha256"] = "0" * 64
    file.with_suffix(".json").write_text(json.dumps(digest))


def garble_digest(file: Path) -> None:
    file.with_suffix(".json").write_text('{"sha')


def list_for_digest(file: Path) -> None:
    file.with_suffix(".json").write_text("[]")


DAMAGES = [truncate, empty, flip, lose_digest, edit_digest, garble_digest, list_for_digest]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> list[Event]:
    """The story of the run that never stopped."""
    path = tmp_path_factory.mktemp("whole")
    train(recipe(), path)
    return story(RunFolder(path).events())


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda d: d.__name__)
def test_a_damaged_checkpoint_is_named_and_passed_over(
    damage: Callable[[Path], None], tmp_path: Path, whole: list[Event]
) -> None:
    """The newest checkpoint is damaged: a warning names it, the one before is used, the result is the same."""
    folder = cut_off(tmp_path, recipe(), 4)
    damage(folder.checkpoint_file(4))
    assert folder.last_step_saved() == 3
    trainer = Trainer(recipe(), corpus=corpus())
    events = list(trainer.events(RunFolder(tmp_path)))
    notes = [e.message for e in events if isinstance(e, Warned)]
    assert len(notes) == 2
    assert re.search(r"step-000004\.safetensors is damaged \(.+\): going back", notes[0])
    assert notes[1] == "resumed after step 3"
    assert story(events) == whole
    assert story(RunFolder(tmp_path).events()) == whole


def test_all_checkpoints_damaged(tmp_path: Path, whole: list[Event]) -> None:
    """Nothing to go back to: every one is named, the run says that it starts again, and ends the same."""
    folder = cut_off(tmp_path, recipe(), 4)
    for step in (3, 4):
        flip(folder.checkpoint_file(step))
    events = list(Trainer(recipe(), corpus=corpus()).events(RunFolder(tmp_path)))
    notes = [e.message for e in events if isinstance(e, Warned)]
    assert [
        bool(re.search(p, n))
        for p, n in zip(["000004.*damaged", "000003.*damaged", "starting again"], notes, strict=True)
    ]
    assert "no whole checkpoint is left: starting again from the beginning" in notes
    assert story(events) == whole == story(RunFolder(tmp_path).events())


def test_old_checkpoints_go(tmp_path: Path) -> None:
    """Only the last two are kept, each with its digest, and no temporary file is left."""
    folder = cut_off(tmp_path, recipe(), 5)
    names = sorted(p.name for p in (tmp_path / "checkpoints").iterdir())
    assert KEEP == 2
    assert names == [f"step-00000{t}.{end}" for t in (4, 5) for end in ("json", "safetensors")]
    assert folder.last_step_saved() == 5


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Until the rename the old content is there, whole."""
    file = tmp_path / "file"
    write_atomically(file, b"old")

    def fail(*_: Any) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="no space"):
        write_atomically(file, b"new")
    assert file.read_bytes() == b"old"


# --- the event file --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("torn", ['{"kind": "stepped", "st', '{"kind": "ended"}', "\x00\x00"])
def test_a_torn_last_line_is_left_out(torn: str, tmp_path: Path, whole: list[Event]) -> None:
    """A line without its end was being written when the process died: readers do not see it, and resuming drops it."""
    folder = cut_off(tmp_path, recipe(), 4)
    before = list(folder.events())
    with open(tmp_path / "events.jsonl", "a", encoding="utf-8") as file:
        file.write(torn)
    assert list(RunFolder(tmp_path).events()) == before
    assert RunFolder(tmp_path).ended() is None
    train(recipe(), tmp_path)
    assert story(RunFolder(tmp_path).events()) == whole


def test_how_a_run_ended(tmp_path: Path) -> None:
    """None before the end, the last event after it, also where a line is long."""
    assert RunFolder(tmp_path / "none").ended() is None
    assert cut_off(tmp_path / "cut", recipe(), 3).ended() is None
    train(recipe(), tmp_path / "done")
    assert RunFolder(tmp_path / "done").ended() == Ended(6, "done", "")
    folder = RunFolder(tmp_path / "long")
    folder.open(recipe())
    last = Ended(3, "failed", "x" * 4_000)
    folder.append(last)
    folder.close()
    assert RunFolder(tmp_path / "long").ended() == last
    folder = RunFolder(tmp_path / "many workers")
    folder.open(recipe())
    folder.append(Stepped(1, [0.1234567890123] * 3000, 1.0, 0.1))
    folder.close()
    assert RunFolder(tmp_path / "many workers").ended() is None


def test_a_second_writer_is_refused(tmp_path: Path) -> None:
    """One process writes a run; another is told so, changes nothing, and may write when the first is done."""
    r = recipe()
    first = RunFolder(tmp_path)
    stream = Trainer(r, corpus=corpus()).events(first)
    next(e for e in stream if isinstance(e, Stepped))
    code = f"""
import sys
from lab.ground.errors import LabError
from lab.recipes.recipe import Recipe
from lab.runs.folder import RunFolder
try:
    RunFolder({str(tmp_path)!r}).open(Recipe.of({str(tmp_path / "recipe.json")!r}))
except LabError as error:
    print(error)
    sys.exit(7)
"""
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert other.returncode == 7, other.stderr
    assert "being written by another process" in other.stdout
    with pytest.raises(LabError, match="being written"):
        next(Trainer(r, corpus=corpus()).events(RunFolder(tmp_path)))
    for _ in stream:
        pass
    assert RunFolder(tmp_path).ended() == Ended(6, "done", "")
    RunFolder(tmp_path).open(r)


def test_runs_are_found_by_the_beginning_of_their_id(tmp_path: Path) -> None:
    """A path, an id or its beginning names a run, the newest of several; where there is none it says what there is."""
    for name in ("ddp-3w-aaaa", "ddp-3w-abbb", "diloco-3w-cccc"):
        folder = RunFolder(tmp_path / name)
        folder.open(recipe())
        folder.close()
    assert find_run("dil", tmp_path).path == tmp_path / "diloco-3w-cccc"
    assert find_run(str(tmp_path / "ddp-3w-aaaa")).exists
    assert find_run("ddp-3w-ab", tmp_path).recipe().id == recipe().id
    os.utime(tmp_path / "ddp-3w-abbb" / "events.jsonl", (1, 1))
    assert find_run("ddp", tmp_path).path == tmp_path / "ddp-3w-aaaa"
    os.utime(tmp_path / "ddp-3w-aaaa" / "events.jsonl", (0, 0))
    assert find_run("ddp", tmp_path).path == tmp_path / "ddp-3w-abbb"
    with pytest.raises(RecipeError, match=r"no run called 'x'.*diloco-3w-cccc"):
        find_run("x", tmp_path)


def test_a_run_of_the_shell_is_found_from_a_notebook_and_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The nearest ``runs`` first, then those of the project around; nothing beyond the project, and none with a path of its own."""
    for place, name in (("outside", "a"), ("outside/project", "b"), ("outside/project/notebooks", "c")):
        folder = RunFolder(tmp_path / place / "runs" / f"run-{name}")
        folder.open(recipe())
        folder.close()
    project = tmp_path / "outside/project"
    (project / "pyproject.toml").touch()
    monkeypatch.chdir(project / "notebooks")
    assert find_run("run-b").path.resolve() == project / "runs/run-b"
    assert find_run("run").path.resolve() == project / "notebooks/runs/run-c"
    monkeypatch.chdir(project)
    assert find_run("run-c").path.resolve() == project / "notebooks/runs/run-c"
    for name, runs in (("run-a", "runs"), ("run-c", project / "runs")):
        with pytest.raises(RecipeError, match="no run called"):
            find_run(name, runs)


# --- killed for real -------------------------------------------------------------------------------------------------

KILLED = """
import sys
from pathlib import Path
from lab.recipes.recipe import Recipe
from lab.runs.trainer import train
train(Recipe.of(sys.argv[1]), sys.argv[2])
"""


LONG = recipe("diloco", steps=200, eval_every=40, checkpoint_every=7, corpus=TEXT, codecs={"params": "topk:0.3"})


# Of twelve clients three take part in a round of three steps, and keep their moments, their norms and their control variates.
OF_CLIENTS = {"num": 12, "inner_states": "kept", "personal": ["*norm*"]}
WITH_CLIENTS = LONG.but(
    codecs={},
    clients=OF_CLIENTS,
    method={"name": "scaffold", "sync_every": 3, "option": "I", "inner": {"name": "SGDM", "lr": 0.03}},
)
BOTH = {"workers": LONG, "clients": WITH_CLIENTS}


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> dict[str, RunFolder]:
    found = {}
    for name, r in BOTH.items():
        found[name] = RunFolder(tmp_path_factory.mktemp(name))
        train(r, found[name].path)
    return found


@pytest.mark.slow
@pytest.mark.processes
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="this platform has no SIGKILL")
@pytest.mark.parametrize(
    ("name", "after_bytes"),
    [*(("workers", n) for n in (1_500, 6_000, 14_000)), *(("clients", n) for n in (6_000, 20_000, 40_000))],
)
def test_killed_and_resumed(name: str, after_bytes: int, tmp_path: Path, unbroken: dict[str, RunFolder]) -> None:
    """SIGKILL at some moment of a real process; what is resumed from its folder is the run that nobody killed."""
    r = BOTH[name]
    (tmp_path / "recipe.json").write_text(json.dumps(r.to_dict()))
    run, events = tmp_path / "run", tmp_path / "run" / "events.jsonl"
    process = subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path / "recipe.json"), str(run)])
    try:
        deadline = time.monotonic() + 60
        while not (events.exists() and events.stat().st_size >= after_bytes):
            assert process.poll() is None, "the run ended before it could be killed"
            assert time.monotonic() < deadline, "the run never got going"
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
    finally:
        process.kill()
        process.wait()
    assert RunFolder(run).ended() is None
    if name == "clients":
        assert [*(run / "clients").glob("*.safetensors")]
    resumed = train(r, run)
    told = list(unbroken[name].events())
    assert story(RunFolder(run).events()) == story(told)
    want = Columns.of(told)
    assert resumed.loss_W == want.loss_W
    assert resumed.eval_loss == want.eval_loss
    assert resumed.ledger.records == want.ledger.records
    assert len(resumed.step) == 200
    (got, _), (kept, _) = RunFolder(run).load(), unbroken[name].load()
    assert got is not None
    assert kept is not None
    assert got.tensors.keys() == kept.tensors.keys()
    assert all(torch.equal(got.tensors[key], x) for key, x in kept.tensors.items())
    clients = [sorted((folder / "clients").glob("*.safetensors")) for folder in (run, unbroken[name].path)]
    assert [file.name for file in clients[0]] == [file.name for file in clients[1]]
    assert [file.read_bytes() for file in clients[0]] == [file.read_bytes() for file in clients[1]]


# --- events ----------------------------------------------------------------------------------------------------------

anything = st.floats(allow_nan=True, allow_infinity=True)
finite = st.floats(allow_nan=False, allow_infinity=False)
numbers = st.integers(0, 10**9)
small = st.lists(st.integers(0, 99), max_size=5)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | finite | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
events = st.one_of(
    st.builds(
        Started,
        version=numbers,
        recipe=st.dictionaries(st.text(), json_values, max_size=3),
        num_params=numbers,
        params_per_worker=small,
        tokens_per_step=numbers,
        floor_nats=st.none() | finite,
        bytes_per_token=finite,
        environment=st.dictionaries(st.text(), st.text() | numbers, max_size=3),
    ),
    st.builds(Stepped, step=numbers, loss_W=st.lists(st.none() | anything, max_size=5), lr=finite, seconds=finite),
    st.builds(
        Sent,
        step=numbers,
        op=st.text(),
        state=st.text(),
        workers=small.map(tuple),
        payload_bytes=st.dictionaries(st.text(), numbers, max_size=3),
    ),
    st.builds(Evaluated, step=numbers, loss=anything, drift=finite),
    st.builds(WorkersChanged, step=numbers, up=small, returned=small, left=small),
    st.builds(Checkpointed, step=numbers, file=st.text()),
    st.builds(Warned, step=numbers, message=st.text()),
    st.builds(Ended, step=numbers, status=st.sampled_from(["done", "stopped", "failed"]), message=st.text()),
)


def same(a: Any, b: Any) -> bool:
    """Equal, bit for bit, with NaN equal to itself and 0.0 unlike −0.0."""
    if isinstance(a, float) and isinstance(b, float):
        return (math.isnan(a) and math.isnan(b)) or a.hex() == b.hex()
    if isinstance(a, list | tuple):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    return type(a) is type(b) and bool(a == b)


@given(events)
def test_events_read_back_bit_for_bit(event: Event) -> None:
    """One event is one line of strict JSON, and what is read from it is what was written, losses of NaN included."""
    line = to_json(event)
    assert "\n" not in line

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    json.loads(line, parse_constant=refuse)
    again = from_json(line)
    assert type(again) is type(event)
    assert same(vars(again), vars(event))


def test_every_kind_of_event_is_known() -> None:
    """Each kind on disk has its class; reading an unknown one fails rather than guesses."""
    assert {cls.kind for cls in KINDS.values()} == set(KINDS)
    assert len(KINDS) == 34
    with pytest.raises(KeyError):
        from_json('{"kind": "exploded"}')


def test_nothing_is_pickled() -> None:
    """Loading a run must never execute code: no pickle, in whatever disguise, anywhere in the lab."""
    forbidden = re.compile(r"\b(torch\.(load|save)\(|import (c?pickle|dill|joblib|shelve|marshal)\b|allow_pickle=True)")
    sources = [*(ROOT / "lab").rglob("*.py"), *(ROOT / "widgets").rglob("*.py")]
    assert len(sources) > 20
    assert not [(p.name, m.group()) for p in sources for m in [forbidden.search(p.read_text())] if m]


# --- scenarios -------------------------------------------------------------------------------------------------------

scenarios = st.builds(
    Scenario,
    outages=st.lists(
        st.builds(
            lambda worker, first, length: Outage(worker=worker, first=first, last=first + length),
            st.integers(0, 3),
            st.integers(1, 20),
            st.integers(0, 15),
        )
    ).map(tuple),
    sample=st.none() | st.integers(1, 4),
    sample_every=st.integers(1, 9),
    failure_rate=st.sampled_from([0.0, 0.1, 0.9]),
    mean_outage=st.floats(1, 5),
)


@given(scenarios, st.integers(0, 5))
def test_a_trace_is_decided_by_its_seed(scenario: Scenario, seed: int) -> None:
    """The same seed gives the same trace; outages hold; no more workers are up than are sampled."""
    up = scenario.trace(4, 25, seed)
    assert up.shape == (25, 4)
    assert up.dtype == torch.bool
    assert torch.equal(up, scenario.trace(4, 25, seed))
    for o in scenario.outages:
        assert not up[o.first - 1 : o.last, o.worker].any()
    if scenario.sample is not None:
        assert int(up.sum(1).max()) <= scenario.sample
    if not scenario.outages and not scenario.failure_rate:
        assert (up.sum(1) == (scenario.sample or 4)).all()


def test_outages_by_hand() -> None:
    """``first`` and ``last`` are both included and counted from 1; workers not named stay up."""
    up = Scenario(outages=(Outage(worker=1, first=2, last=3), Outage(worker=0, last=1))).trace(2, 4, 0)
    assert up.tolist() == [[False, True], [True, False], [True, False], [True, True]]


def test_sampling_is_uniform_and_afresh() -> None:
    """Each period draws exactly ``sample`` workers and keeps them; in the long run everybody as often."""
    up = Scenario(sample=2, sample_every=5).trace(5, 5000, 3)
    rounds = up.view(1000, 5, 5)
    assert (rounds == rounds[:, :1]).all()
    assert (up.sum(1) == 2).all()
    times = rounds[:, 0].sum(0)
    assert ((times - 400).abs() < 5 * math.sqrt(1000 * 0.4 * 0.6)).all()
    assert not torch.equal(up, Scenario(sample=2, sample_every=5).trace(5, 5000, 4))


def test_failures_have_their_rate_and_length() -> None:
    """In the long run a worker is down the fraction p·m / (1 + p·m) of the time, for failure rate p and mean outage m."""
    p, m = 0.05, 10.0
    up = Scenario(failure_rate=p, mean_outage=m).trace(20, 5000, 1)
    assert float((~up).float().mean()) == pytest.approx(p * m / (1 + p * m), abs=0.02)
    fell = up[:-1] & ~up[1:]
    assert float(fell.sum() / up[:-1].sum()) == pytest.approx(p, abs=0.005)


def test_a_run_without_adapters_is_exported_as_a_whole(tmp_path: Path) -> None:
    train(recipe(), tmp_path / "run")
    with pytest.raises(RecipeError, match="--merged writes the whole model"):
        export_run(RunFolder(tmp_path / "run"), tmp_path / "out")
