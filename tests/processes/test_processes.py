"""One run over 1, 2 and 4 processes is the same run: losses, events, ledgers, checkpoints; and what happens when one is lost."""

from __future__ import annotations

import math
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch

import lab
from lab.events import Checkpointed, Event, KnobChanged, Started, Warned
from lab.ground.errors import RecipeError
from lab.processes.peers import PeerLost, network_to
from lab.recipes.recipe import Recipe
from lab.runs.control import Once
from lab.runs.folder import RunFolder
from lab.runs.launch import _lost, prepare, train_over_processes
from lab.runs.trainer import Trainer, train
from tests.support import ROOT
from tests.support.cases import OVER_PROCESSES
from tests.support.compared import check, run_over
from tests.support.launched import SMALL, begun, cut_off, unbroken
from tests.support.recipes import corpus
from tests.support.stories import close_events, story, tell

pytestmark = pytest.mark.processes
DOCUMENT = (ROOT / "docs/processes.md").read_text()
RESUMED = (
    "des_loc outer, storm",
    "experts on two",
    "experts that move, outer",
    "flora",
    "prelort sample, outer, zero",
    "lordo error feedback",
    "photon kept Nesterov, drawn",
    "lordo, drawn",
    "local_sgd reset, drawn",
    "ddp topk",
    "clients who go down",
    "hetlora, federation",
    "lordo, federation",
    "scaffold, federation",
    "streaming_diloco three",
    "des_loc outer, storm, measured",
    "experts that move, measured",
    "buffers averaged, storm",
    "buffers of the first",
    "buffers of a server",
)


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("one")
    for name, recipe in OVER_PROCESSES.items():
        tell(Trainer(recipe, corpus=corpus()).events(RunFolder(out / name)), out, name)
    return out


@pytest.fixture(scope="module")
def four(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("four")
    run_over(4, out, machines=4)  # so these talk by gloo, and the two of the next fixture by Unix sockets
    return out


@pytest.fixture(scope="module")
def two(four: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("two")
    for name in RESUMED:
        cut_off(four / name, out / name)
    run_over(2, out)
    return out


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize("name", OVER_PROCESSES)
def test_four_processes_of_one_worker_are_one_process_of_four(name: str, one: Path, four: Path) -> None:
    check(one, four, name)


SMALL_TALK = 700  # bytes: losses and events, as JSON


def said(out: Path, name: str, num: int) -> list[np.ndarray]:
    """All longer messages of processes that are not the server's, as the highest bytes of 64-bit numbers."""
    messages = [m for p in range(1, num) for m in torch.load(out / f"wire-{name}-{p}.pt", weights_only=True)]
    long = [x.numpy() for op, x in messages if len(x) > SMALL_TALK and op != "all_gather"]
    return [x[: len(x) // 8 * 8].reshape(-1, 8)[:, 7] for x in long]


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize("method", ["fedprox", "photon"])
def test_what_processes_say_in_a_secure_sum_is_noise(method: str, four: Path, two: Path) -> None:
    """Whatever `torch.distributed` is given to send, over gloo and over sockets, has all bytes equally often; of a plain sum it has not."""

    def odd(high: np.ndarray) -> float:
        """How far the frequencies of 256 bytes are from equal ones, in standard deviations."""
        counts, expected = np.bincount(high, minlength=256), len(high) / 256
        return float((((counts - expected) ** 2 / expected).sum() - 255) / math.sqrt(2 * 255))

    for out, num in ((four, 4), (two, 2)):
        hidden, plain = said(out, f"hidden-{method}", num), said(out, f"plain-{method}", num)
        assert len(hidden) == len(plain) >= num - 1
        assert all(abs(odd(x)) < 6 for x in hidden)
        assert all(odd(x) > 60 for x in plain)
        assert abs(odd(np.concatenate(hidden))) < 6


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize("name", OVER_PROCESSES)
def test_two_processes_of_two_workers_are_one_process_of_four(name: str, one: Path, two: Path) -> None:
    check(one, two, name)
    resumed = [e.message for e in RunFolder(two / name).events() if isinstance(e, Warned) and "resumed" in e.message]
    assert resumed == (["resumed after step 3"] if name in RESUMED else [])


@pytest.mark.slow
@pytest.mark.parametrize("name", RESUMED)
def test_a_checkpoint_of_four_processes_resumes_on_one(name: str, one: Path, four: Path, tmp_path: Path) -> None:
    """(That it resumes on two is part of what two processes ran, and on four …)"""
    cut_off(four / name, tmp_path / name)
    tell(Trainer(OVER_PROCESSES[name], corpus=corpus()).events(RunFolder(tmp_path / name)), tmp_path, name)
    check(one, tmp_path, name)


# --- one is lost -----------------------------------------------------------------------------------------------------


def kill(launcher: subprocess.Popen[str], process: int) -> None:
    for child in psutil.Process(launcher.pid).children(recursive=True):
        if child.environ().get("RANK") == str(process):
            child.kill()
            return
    raise AssertionError("there is no such process")


def test_a_killed_process_ends_the_run_with_one_line_and_one_process_can_go_on(tmp_path: Path) -> None:
    folder, launcher = begun(tmp_path)
    kill(launcher, 1)
    _, said = launcher.communicate(timeout=60)
    assert launcher.returncode == PeerLost.exit_code
    (line,) = [line for line in said.splitlines() if line.startswith("lab: ")]
    assert "process 1 of 2 was killed by SIGKILL" in line
    assert f"lab resume {folder.path}" in line
    assert "Traceback" not in said
    assert folder.last_step_saved() not in (None, 40)
    train(folder.recipe(), folder.path)
    assert close_events(story(folder.events()), unbroken())


def test_with_restarts_a_killed_process_changes_nothing(tmp_path: Path) -> None:
    """The first process is killed, which writes the run."""
    folder, launcher = begun(tmp_path, "--restarts", "1")
    kill(launcher, 0)
    assert launcher.wait(timeout=100) == 0, launcher.communicate()
    assert close_events(story(folder.events()), unbroken())
    assert any(isinstance(e, Warned) and "resumed after" in e.message for e in folder.events())


def test_ctrl_c_says_one_line(tmp_path: Path) -> None:
    """A terminal interrupts all processes at once; one speaks."""
    folder, launcher = begun(tmp_path, steps=100_000)
    for process in (launcher, *psutil.Process(launcher.pid).children(recursive=True)):
        process.send_signal(signal.SIGINT)
    _, said = launcher.communicate(timeout=60)
    assert launcher.returncode == 130
    lines = [line for line in said.splitlines() if "parameters," not in line]
    assert lines == [f"stopped; go on with: lab resume {folder.path} --processes 2"]


def test_a_run_ends_with_the_command_that_started_it(tmp_path: Path) -> None:
    """Also where that is killed and can say nothing: the first process says how to go on."""
    folder, launcher = begun(tmp_path, steps=100_000)
    children = psutil.Process(launcher.pid).children(recursive=True)
    launcher.kill()
    _, alive = psutil.wait_procs(children, timeout=30)
    assert not alive
    assert f"has gone; go on with: lab resume {folder.path}" in launcher.communicate(timeout=10)[1]
    assert folder.ended() is None


@pytest.mark.parametrize(
    ("failures", "said"),
    [
        ({0: (75, 10), 1: (-9, 10)}, "process 1 of 2 was killed by SIGKILL"),
        ({0: (-11, 11), 1: (-15, 12)}, "process 0 of 2 was killed by SIGSEGV"),
        ({0: (75, 10), 1: (-9, 41)}, "process 1 of 2 did not answer within 5 s"),
        ({0: (-15, 10), 1: (-15, 10)}, "a process of 2 was ended by SIGTERM"),
        ({0: (75, 10), 1: (-15, 10)}, "a process of 2 ended, or did not answer within 5 s"),
    ],
)
def test_what_became_of_a_process(failures: dict[int, tuple[int, float]], said: str) -> None:
    """Those that did not answer are killed by the launcher, half a minute later than the others are ended."""
    assert _lost(failures, 2, 5.0) == said


def test_a_script_reads_along(tmp_path: Path) -> None:
    """`over` hands out the events of processes that it has started, folds them, and says why a run ended."""
    seen: list[Event] = []
    columns = train_over_processes(2, Recipe.of("des_loc", SMALL), tmp_path / "run", each=seen.append)
    assert seen == list(RunFolder(tmp_path / "run").events())
    assert close_events(story(seen), unbroken())
    assert columns.ended is not None
    assert columns.eval_loss
    again = train_over_processes(2, Recipe.of("des_loc", SMALL), tmp_path / "run")
    assert again.eval_loss == columns.eval_loss
    with pytest.raises(RecipeError, match=r"holds a run of another recipe"):
        train_over_processes(2, Recipe.of("ddp", SMALL), tmp_path / "run")


def test_the_launcher_of_notebooks_runs_it(tmp_path: Path) -> None:
    """The block of the documents, in a process that has trained with threads before, as a notebook's kernel has."""
    (block,) = re.findall(r"```python\n(from accelerate import notebook_launcher\n.*?)```", DOCUMENT, flags=re.S)
    block = block.replace("num_processes=4", "num_processes=2")
    code = f"""
import lab
recipe = lab.Recipe.of("des_loc", {SMALL!r})
lab.train(recipe, "runs/one")
{block}"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    one, two = (list(RunFolder(tmp_path / "runs" / name).events()) for name in ("one", "real"))
    assert close_events(story(one), story(two))
    assert isinstance(two[0], Started)
    assert two[0].environment["processes"] == 2


# --- a hand on it ----------------------------------------------------------------------------------------------------


def by_hand(folder: Path, processes: int) -> list[Event]:
    """A run that is paused, stepped, turned, and stopped, always at the same steps; then one process trains the rest."""
    run = lab.start(Recipe.of("des_loc", SMALL), folder=folder, processes=processes, paused=True)

    def paused_after(t: int) -> None:
        while not (run.t == t and run.status == "paused"):
            assert not run.finished.wait(0.01), run.events[-1:]

    paused_after(0)
    run.step(3)
    paused_after(3)
    run.kill(1)
    run.set(lr=0.5)
    run.step(2)
    paused_after(5)
    run.revive(1)
    run.set(sync_every={"params": 3})
    run.step_sync()  # on its own period of 3
    paused_after(6)
    run.stop()
    run.wait(60)
    assert run.status == "stopped"
    train(run.recipe, folder)
    return [e for e in story(RunFolder(folder).events()) if not (isinstance(e, KnobChanged) and e.knob == "paused")]


def test_knobs_are_turned_at_the_same_step_in_all_processes(tmp_path: Path) -> None:
    several, one = by_hand(tmp_path / "several", 2), by_hand(tmp_path / "one", 1)
    assert [e.knob for e in several if isinstance(e, KnobChanged)] == ["down", "lr", "down", "sync_every"]
    assert close_events(one, several)


ALONE = """
import lab, sys
from lab.recipes.recipe import Recipe
run = lab.start(Recipe.of("des_loc", sys.argv[2:]), folder=sys.argv[1], processes=2, paused=True)
run.step(3)
while not (run.t == 3 and run.status == "paused"):
    run.finished.wait(0.01)
print("paused", flush=True)
run.wait()
"""


def test_when_whoever_started_it_is_gone_the_run_stops_with_a_checkpoint(tmp_path: Path) -> None:
    """A notebook's kernel is killed while its run is paused; nothing is left behind, and one process trains the rest."""
    folder = RunFolder(tmp_path / "run")
    command = [sys.executable, "-c", ALONE, str(folder.path), *SMALL]
    started = subprocess.Popen(command, env=os.environ | {"PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE)
    assert started.stdout is not None
    assert started.stdout.readline() == b"paused\n"
    left = psutil.Process(started.pid).children(recursive=True)
    assert left
    started.kill()
    started.communicate()
    _, alive = psutil.wait_procs(left, timeout=60)
    assert not alive
    assert folder.last_step_saved() == 3
    ended = folder.ended()
    assert ended is not None
    assert ended.status == "stopped"
    train(folder.recipe(), folder.path)
    theirs, ours = (
        [e for e in events if not isinstance(e, KnobChanged | Checkpointed)]
        for events in (story(folder.events()), unbroken())
    )
    assert close_events(theirs, ours)


# --- what it says ----------------------------------------------------------------------------------------------------


def test_what_several_processes_cannot_run_is_refused(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    with pytest.raises(
        RecipeError, match="4 workers cannot be shared out evenly over 3 processes: use 1, 2, 4 processes"
    ):
        prepare(folder, OVER_PROCESSES["ddp"], 3)
    with pytest.raises(RecipeError, match="over 0 processes"):
        prepare(folder, OVER_PROCESSES["ddp"], 0)
    with pytest.raises(RecipeError, match="timeout of nan seconds"):
        prepare(folder, OVER_PROCESSES["ddp"], 2, float("nan"))
    with pytest.raises(RecipeError, match="over 3 processes"):
        lab.start(OVER_PROCESSES["ddp"], folder=folder.path, processes=3)
    assert not folder.exists


def test_a_run_that_the_processes_refuse_leaves_nothing(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "lab", "run", "des_loc", *(x for o in SMALL for x in ("-o", o))]
    command += ["-o", "dtype=float32", "-o", "compute.device=cuda", "--processes", "2"]
    done = subprocess.run(
        command, cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("lab: compute.device = 'cuda', but Accelerate finds nothing better than cpu")
    assert not list((tmp_path / "runs").iterdir())


def test_processes_talk_over_the_network_that_leads_to_the_first() -> None:
    """By the name of a machine gloo would take 127.0.0.1 on many."""
    assert network_to("localhost") is None
    assert network_to("no.such.host.invalid") is None
    for name, addresses in psutil.net_if_addrs().items():
        for a in addresses:
            if a.family == socket.AF_INET and not a.address.startswith("127."):
                assert network_to(a.address) == name


def test_events_are_told_once_through_a_restart(tmp_path: Path) -> None:
    """Whoever listens hears every event once, though a restart begins with all of them and does some steps again."""
    train(OVER_PROCESSES["des_loc outer"], tmp_path)
    events = list(RunFolder(tmp_path).events())
    half, once, heard = len(events) // 2, Once(), list[Event]()
    for generation in (events[:half], events[: half - 4], events[: half + 3], events):
        once.again()
        heard += [e for event in generation for e in once.new(event)]
    assert heard == events
