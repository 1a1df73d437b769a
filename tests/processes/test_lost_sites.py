"""A site that is lost comes back alone, while the others wait, and the run ends bit for bit like one that nobody touched.

Some recipes have their turn here, each with another site lost; ``ISTHMUS_ALL_MAILBOXES=1`` gives all of them, and thirty kills of one run.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import torch

from lab.events import Event, Warned
from lab.ground.errors import LabError, RecipeError
from lab.processes.invitation import Invitation
from lab.processes.peers import PeerLost
from lab.processes.places import Folder
from lab.recipes.recipe import Recipe
from lab.runs.folder import RunFolder
from lab.runs.launch import prepare
from lab.runs.site_folder import invite
from lab.runs.sites import check_mailbox, join_run
from tests.support import ROOT
from tests.support.cases import OVER_PROCESSES
from tests.support.launched import SMALL, begun, unbroken
from tests.support.lost_sites import MOVING
from tests.support.stories import close_events, read, story

pytestmark = pytest.mark.processes
ALL = bool(os.environ.get("ISTHMUS_ALL_MAILBOXES"))
NAMES = [*OVER_PROCESSES][3 :: 1 if ALL else 30]
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT)}


def through_a_place(out: Path, num: int, victim: int, step: int = 4, names: list[str] = NAMES) -> Path:
    command = [sys.executable, "-m", "tests.support.lost_sites", str(out), str(num), str(victim), str(step), *names]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=2000 if ALL else 250)
    logs = "".join(log.read_text()[-2000:] for log in sorted(out.glob("site-*.log")))
    assert done.returncode == 0, (done.stdout, done.stderr[-2000:], logs)
    return out


@pytest.fixture(scope="module")
def untouched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return through_a_place(tmp_path_factory.mktemp("untouched"), 2, -1)


@pytest.fixture(scope="module", params=[0, 1])
def lost(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return through_a_place(tmp_path_factory.mktemp("lost"), 2, request.param)


@pytest.mark.slow
@pytest.mark.timeout(2100 if ALL else 300)
def test_a_lost_site_changes_not_one_bit(untouched: Path, lost: Path) -> None:
    """Its last life begins with what it kept after step 3, and after step 4 the other one has only waited."""
    for name in NAMES:
        want, got = ([without_seconds(e) for e in read(out, name)] for out in (untouched, lost))
        assert got == want, name
        check_bits(RunFolder(untouched / name), RunFolder(lost / name))


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_site_comes_back_with_the_keys_that_hide_what_it_said(tmp_path: Path) -> None:
    """It has said its public key and a part of a sum: what it says next has to hide behind the same key."""
    names = ["fedprox, secure sum"]
    calm, lost = (through_a_place(tmp_path / f"{victim}", 2, victim, names=names) for victim in (-1, 0))
    want, got = ([without_seconds(e) for e in read(out, names[0])] for out in (calm, lost))
    assert got == want
    check_bits(RunFolder(calm / names[0]), RunFolder(lost / names[0]))


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_site_comes_back_alone_to_experts_that_have_moved(tmp_path: Path) -> None:
    """One of four: it takes up its copies without a word, and adds as much as before to what was last seen of each expert."""
    outs = {who: tmp_path / str(who) for who in (-1, 2)}
    for who, out in outs.items():
        out.mkdir()
        through_a_place(out, 4, who, 6, [*MOVING])
    (name,) = MOVING
    want = [without_seconds(e) for e in read(outs[-1], name)]
    apart = [e["divergence_LE"] for e in want if e["kind"] == "routed"]
    assert apart[5] == apart[6], "both looks are between two averages"
    assert apart[5][0][0] > 0
    assert [without_seconds(e) for e in read(outs[2], name)] == want
    check_bits(RunFolder(outs[-1] / name), RunFolder(outs[2] / name))


def without_seconds(event: dict[str, object]) -> dict[str, object]:
    return {key: x for key, x in event.items() if key != "seconds"}


def check_bits(one: RunFolder, other: RunFolder) -> None:
    (first, _), (second, _) = one.load(), other.load()
    assert first is not None
    assert second is not None
    assert first.extra == second.extra
    assert first.tensors.keys() == second.tensors.keys()
    assert all(torch.equal(x, second.tensors[key]) for key, x in first.tensors.items())


# --- killed at any moment ------------------------------------------------------------------------------------------------


def sites_of(launcher: subprocess.Popen[str]) -> dict[int, psutil.Process]:
    found: dict[int, psutil.Process] = {}
    for process in psutil.Process(launcher.pid).children(recursive=True):
        with contextlib.suppress(psutil.Error):
            found[int(process.environ().get("RANK", "-1"))] = process
    return found


def told(folder: RunFolder) -> list[Event]:
    return [e for e in story(folder.events()) if not (isinstance(e, Warned) and "resumed after" in e.message)]


@pytest.mark.slow
@pytest.mark.timeout(1500 if ALL else 300)
def test_sites_that_are_killed_at_random_moments_come_back_alone(tmp_path: Path) -> None:
    kills, draw = 30 if ALL else 3, random.Random(0)
    steps = 40 * kills
    box = str(tmp_path / "box")
    folder, launcher = begun(tmp_path, "--mailbox", box, "--restarts", "99", steps=steps)
    lives: dict[int, set[int]] = {0: set(), 1: set()}
    for _ in range(kills):
        time.sleep(draw.uniform(0.0, 3.0))
        victim, there = draw.randrange(2), sites_of(launcher)
        while victim not in there and launcher.poll() is None:  # it is being started again
            time.sleep(0.05)
            there = sites_of(launcher)
        if victim not in there:
            break
        for p in lives:
            lives[p] |= {there[p].pid} if p in there else set()
        there[victim].kill()
    _, said = launcher.communicate(timeout=1000 if ALL else 200)
    assert launcher.returncode == 0, said
    assert said.count("was lost, so it starts again, alone") >= (kills if ALL else 1), said
    alone = RunFolder(tmp_path / "alone")
    prepare(alone, folder.recipe(), 2)
    command = [sys.executable, "-m", "lab", "resume", str(alone.path), "--processes", "2", "--mailbox", box]
    assert subprocess.run(command, env=ENVIRONMENT, capture_output=True, timeout=1000).returncode == 0
    assert told(folder) == told(alone)
    check_bits(folder, alone)


def test_without_restarts_the_command_ends_with_one_line_and_goes_on_where_it_was(tmp_path: Path) -> None:
    options = ("--mailbox", str(tmp_path / "box"))
    folder, launcher = begun(tmp_path, *options)
    sites_of(launcher)[1].kill()
    _, said = launcher.communicate(timeout=60)
    assert launcher.returncode == PeerLost.exit_code
    assert "process 1 of 2 was killed by SIGKILL: the run has stopped; go on with: lab resume" in said
    run = json.loads((tmp_path / "box/run").read_bytes().partition(b"\n")[2])["run"]
    command = [sys.executable, "-m", "lab", "resume", str(folder.path), "--processes", "2", *options]
    assert subprocess.run(command, env=ENVIRONMENT, capture_output=True, timeout=100).returncode == 0
    assert json.loads((tmp_path / "box/run").read_bytes().partition(b"\n")[2]) | {"run": run, "ended": True} == (
        json.loads((tmp_path / "box/run").read_bytes().partition(b"\n")[2])
    ), "the same run has gone on"
    assert close_events(told(folder), unbroken())


# --- joining from elsewhere ----------------------------------------------------------------------------------------------


@contextlib.contextmanager
def started(*words: str, at: Path) -> Iterator[subprocess.Popen[str]]:
    at.mkdir(exist_ok=True)
    command = [sys.executable, "-m", "lab", *words]
    with subprocess.Popen(
        command, cwd=at, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def test_another_machine_joins_by_the_place_alone(tmp_path: Path) -> None:
    """It has another working directory, and is not told the recipe; signed."""
    box, options = f"file://{tmp_path}/box", [x for o in SMALL for x in ("-o", o)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(ENVIRONMENT, "ISTHMUS_SECRET", "nobody else knows this")
        run = ["run", "des_loc", *options, "--processes", "2", "--mailbox", box, "--site", "0"]
        with (
            started("join", box, "--site", "1", at=tmp_path / "b") as second,
            started(*run, at=tmp_path / "a") as first,
        ):
            said, errors = second.communicate(timeout=100)
            assert first.wait(30) == 0, first.communicate()
    assert second.returncode == 0, errors
    assert said.splitlines()[-1] == "site 1: done, 40 steps"
    (folder,) = (tmp_path / "a/runs").iterdir()
    assert close_events(told(RunFolder(folder)), unbroken())
    assert not (tmp_path / "b/runs").exists()


def test_who_joins_what_is_not_there_is_told_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(LabError, match=r"there is no run in mailbox .* begin one with lab run"):
        join_run(str(tmp_path), 1, timeout_seconds=1.0)
    assert capsys.readouterr().err.count(f"lab: no run in mailbox {tmp_path} yet: waiting for one, up to 1 s\n") == 1
    Invitation.new(2, Recipe.of("des_loc", SMALL).to_dict()).put(Folder(tmp_path), None)
    with pytest.raises(RecipeError, match=r"--site 0: the run .* has only site 1 to join \(site 0 has the run folder"):
        join_run(str(tmp_path), 0)
    with pytest.raises(RecipeError, match="--site 2: the run"):
        join_run(str(tmp_path), 2)


def test_a_place_cannot_name_code_to_run(tmp_path: Path) -> None:
    for part in ("method", "model", "data"):
        raw = Recipe.of("des_loc", SMALL).to_dict() | {part: {"name": "this:that"}}
        Invitation.new(2, raw).put(Folder(tmp_path), None)
        with pytest.raises(RecipeError, match=f"{part} this:that is code that is not the lab's own"):
            join_run(str(tmp_path), 1, timeout_seconds=1.0)
    assert "this" not in sys.modules


def test_what_sites_cannot_be_told_is_said_in_one_line(tmp_path: Path) -> None:
    recipe = Recipe.of("des_loc", [*SMALL, "checkpoint_every=0"])
    with pytest.raises(RecipeError, match="with checkpoint_every=0 no site keeps what it would come back with"):
        check_mailbox(str(tmp_path), 2, recipe, restarts=1)
    with pytest.raises(RecipeError, match="--site 2 is for a run with --mailbox and with --processes of 3 or more"):
        check_mailbox(str(tmp_path), 2, recipe, sites=[2])


def test_a_run_goes_on_in_its_place_until_it_cannot(tmp_path: Path) -> None:
    """Another recipe, another number of sites, or an end, and another run begins there; what was said in the old one goes."""
    box, folder, recipe = Folder(tmp_path / "box"), RunFolder(tmp_path / "run"), Recipe.of("des_loc", SMALL)
    one = invite(box, None, folder, recipe, 2, anew=False)
    box.put(f"{one.run}/from-1/all.0", b"what was said")
    assert invite(box, None, folder, recipe, 2, anew=False) == one
    assert box.names(one.run)
    for change in (
        lambda: invite(box, None, folder, recipe, 4, anew=False),
        lambda: invite(box, None, folder, recipe.but(seed=7), 4, anew=False),
        lambda: invite(box, None, folder, recipe.but(seed=7), 4, anew=True),
    ):
        before, now = Invitation.found(box, None), change()
        assert before is not None
        assert now.run != before.run
        assert not box.names(before.run)
    now.over().put(box, None)
    assert invite(box, None, folder, recipe.but(seed=7), 4, anew=False).run != now.run
