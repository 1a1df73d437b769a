"""A site that does not come in time is down, whoever is there goes on, and the run is that of the scenario that this was.

Some recipes have their turn here; ``ISTHMUS_ALL_MAILBOXES=1`` gives all of them.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from lab.events import Started, WorkersChanged
from lab.ground.errors import Diverged, RecipeError
from lab.processes.deadline import Deadline, Missed, Verdict
from lab.processes.mailbox import Mailbox
from lab.processes.messages import Seal
from lab.processes.places import Folder
from lab.processes.post import Post
from lab.recipes.recipe import Recipe
from lab.recipes.scenario import Outage, Scenario
from lab.runs.again import as_it_was
from lab.runs.folder import RunFolder
from lab.runs.meetings import check_deadline
from lab.runs.sites import check_mailbox
from lab.runs.trainer import Trainer
from tests.support import ROOT
from tests.support.compared import check
from tests.support.late_sites import RECIPES
from tests.support.launched import SMALL, begun
from tests.support.listed import LISTED
from tests.support.posts import RUN, SUM
from tests.support.recipes import corpus, recipe
from tests.support.stories import read, tell

pytestmark = pytest.mark.processes
ALL = bool(os.environ.get("ISTHMUS_ALL_MAILBOXES"))
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT)}


# --- runs ----------------------------------------------------------------------------------------------------------------


def left_out(out: Path, num: int, victim: int, how: str, names: list[str]) -> Path:
    command = [sys.executable, "-m", "tests.support.late_sites", str(out), str(num), str(victim), how, *names]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=1000 if ALL else 250)
    logs = "".join(log.read_text()[-2000:] for log in sorted(out.glob("site-*.log")))
    assert done.returncode == 0, (done.stdout, done.stderr[-2000:], logs)
    return out


def without_scenario(out: Path, name: str) -> None:
    first, *rest = read(out, name)
    first["recipe"].pop("scenario")
    (out / f"{name}.jsonl").write_text("".join(json.dumps(e) + "\n" for e in (first, *rest)))


@pytest.mark.slow
@pytest.mark.timeout(1100 if ALL else 300)
@pytest.mark.parametrize(
    ("num", "victim", "how", "some"),
    [
        (2, 1, "held", ["des_loc outer", "ddp topk"]),
        (4, 2, "killed", ["fedit", "streaming_diloco three"]),
        (2, 1, "poisoned", ["diloco"]),
    ],
)
def test_the_run_is_that_of_the_scenario_that_it_was(
    num: int, victim: int, how: str, some: list[str], tmp_path: Path
) -> None:
    """It is out from before the first step of which nobody has heard, and back with a round; events, numbers and checkpoints."""
    names = [*RECIPES] if ALL else some
    out, one = left_out(tmp_path, num, victim, how, names), tmp_path / "one"
    one.mkdir()
    each = 4 // num
    for name in names:
        changed = [e for e in RunFolder(out / name).events() if isinstance(e, WorkersChanged)]
        workers = list(range(victim * each, (victim + 1) * each))
        assert [(e.left, e.returned) for e in changed] == [(workers, []), ([], workers)], name
        again = as_it_was(RunFolder(out / name))
        assert [o.worker for o in again.scenario.outages] == workers
        tell(Trainer(again, corpus=corpus()).events(RunFolder(one / name)), one, name)
        for folder in (out, one):
            without_scenario(folder, name)
        check(one, out, name)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_site_that_is_killed_for_good_ends_nothing(tmp_path: Path) -> None:
    """The command line: the other site comes to the end, and one process has the same run from what is written of it."""
    options = ["--mailbox", str(tmp_path / "box"), "--deadline", "0.5"]
    folder, launcher = begun(tmp_path, *options)
    import psutil

    for site in psutil.Process(launcher.pid).children(recursive=True):
        if site.environ().get("RANK") == "1":
            site.kill()
    _, said = launcher.communicate(timeout=120)
    assert launcher.returncode == 0, said
    assert "site 1 of 2 was lost: the others go on without it" in said
    command = [sys.executable, "-m", "lab", "scenario", str(folder.path)]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=60)
    again = Recipe.of(json.loads(done.stdout))
    assert again == as_it_was(folder)
    assert {o.worker for o in again.scenario.outages} >= {2, 3} if again.num_workers == 4 else again.scenario.outages
    here = [e for e in Trainer(again).events() if isinstance(e, WorkersChanged)]
    there = [e for e in folder.events() if isinstance(e, WorkersChanged)]
    assert here == there


# --- words ---------------------------------------------------------------------------------------------------------------


class Clock:
    """One that a test sets."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


def posts(folder: Path, num: int, clock: Clock) -> list[Post]:
    made = [
        Post(Folder(folder), Seal(RUN), p, num, 1000.0, note=lambda line: None, deadline_seconds=10.0)
        for p in range(num)
    ]
    for post in made:
        post.clock = clock
    return made


def deadline(post: Post) -> Deadline:
    assert post.deadline is not None
    return post.deadline


def met(post: Post, value: float, dies: bool = False) -> tuple[Verdict | None, float]:
    """One meeting: a sum of one number among those who are there."""
    here = deadline(post)
    here.prepare()
    missed, x = None, torch.tensor([value])
    try:
        Mailbox([*here.here].index(post.index), here.here, post).allreduce([x], SUM).wait()
    except Missed as what:
        missed = what
    return here.conclude(1, missed, True, dict), float(x)


def all_of(tasks: list[Any]) -> list[Any]:
    with ThreadPoolExecutor(len(tasks)) as pool:
        return [f.result() for f in [pool.submit(task) for task in tasks]]


def later(clock: Clock, there: Any) -> None:
    """Let the deadline pass as soon as somebody waits."""
    done = threading.Event()
    while not there():
        done.wait(0.002)
    clock.seconds += 11.0


def said(folder: Path, *words: str) -> bool:
    return all((folder / RUN / word).exists() for word in words)


def test_a_meeting_to_which_all_come_counts(tmp_path: Path) -> None:
    sites = posts(tmp_path, 3, Clock())
    for n in range(3):
        got = all_of([lambda s=s, n=n: met(s, s.index + n) for s in sites])
        assert got == [(Verdict(1, True, [], [], None), 3.0 + 3 * n)] * 3


def test_who_does_not_come_is_down_for_all_and_reads_so(tmp_path: Path) -> None:
    clock = Clock()
    sites = posts(tmp_path, 3, clock)
    words = ("from-0/all.0", "from-1/all.0")
    first, second, _ = all_of(
        [lambda: met(sites[0], 1.0), lambda: met(sites[1], 2.0), lambda: later(clock, lambda: said(tmp_path, *words))]
    )
    assert first[0] == second[0]
    assert (first[0].counts, first[0].down) == (False, [2])
    assert first[0].why == {"2": "did not come within 10 s"}
    again = all_of([lambda: met(sites[0], 1.0), lambda: met(sites[1], 2.0)])
    assert [(v.counts, x) for v, x in again] == [(True, 3.0)] * 2
    verdict, x = met(sites[2], 4.0)  # late: it is not even asked
    assert (verdict, x) == (first[0], 4.0)
    assert not said(tmp_path, "from-2/all.0")
    back = all_of(
        [
            lambda: deadline(sites[2]).ask_to_come_back(),
            lambda: met_until_back(sites[0]),
            lambda: met_until_back(sites[1]),
        ]
    )
    assert back[0]["verdict"]["back"] == [2]
    assert all_of([lambda s=s: met(s, 1.0)[1] for s in sites]) == [3.0] * 3


def met_until_back(post: Post) -> None:
    while deadline(post).away:
        met(post, 1.0)


def test_a_message_that_comes_between_the_looks_of_two_sites_is_in_both_sums_or_in_none(tmp_path: Path) -> None:
    """Site 1 has waited in vain when site 2 comes; the first has not: nobody's sum counts until all have the same."""
    clock = Clock()
    sites = posts(tmp_path, 3, clock)

    def second() -> Any:
        here = deadline(sites[1])
        here.prepare()
        here.enter()
        Mailbox(1, range(3), sites[1]).allreduce([torch.tensor([2.0])], SUM)
        return here.conclude(1, Missed([2]), True, dict)

    verdicts = all_of([lambda: met(sites[0], 1.0)[0], second, lambda: met(sites[2], 4.0)[0]])
    assert verdicts == [Verdict(1, False, [], [], {})] * 3, "nobody is down, and all meet again"
    assert all_of([lambda s=s: met(s, 1.0) for s in sites]) == [(Verdict(1, True, [], [], None), 3.0)] * 3


def test_the_first_site_says_after_its_return_what_it_said_before(tmp_path: Path) -> None:
    """Site 2 was left out; the first is lost, comes back, and finds the messages of site 2 there: it stays left out."""
    clock = Clock()
    sites = posts(tmp_path, 3, clock)
    words = ("from-0/all.0", "from-1/all.0")
    first, *_ = all_of(
        [lambda: met(sites[0], 1.0), lambda: met(sites[1], 2.0), lambda: later(clock, lambda: said(tmp_path, *words))]
    )
    sites[2].say("here.0", b"null")
    sites[2].put("all.0", bytes(4))
    sites[2].say("said.0", b"{}")
    again = posts(tmp_path, 3, clock)[0]
    assert met(again, 1.0)[0] == first[0]
    assert list(deadline(again).here) == [0, 1]


def test_who_has_come_and_then_falls_silent_is_down(tmp_path: Path) -> None:
    """It has said that it is here, and nothing after that: others say what they lack, and it does not."""
    clock = Clock()
    sites = posts(tmp_path, 3, clock)
    sites[2].say("here.0", b"null")

    def pass_time() -> None:
        later(clock, lambda: said(tmp_path, "from-0/all.0", "from-1/all.0"))
        later(clock, lambda: said(tmp_path, "from-1/said.0"))
        clock.seconds += 11.0

    first, second, _ = all_of([lambda: met(sites[0], 1.0), lambda: met(sites[1], 2.0), pass_time])
    assert first[0] == second[0]
    assert (first[0].counts, first[0].down) == (False, [2])


def test_what_was_said_of_meetings_does_not_pile_up(tmp_path: Path) -> None:
    sites, most = posts(tmp_path, 3, Clock()), {20: 0, 200: 0}
    for post in sites:
        post.keeps = True
        post.begun()
    for n in range(200):
        all_of([lambda s=s: met(s, 1.0) for s in sites])
        for post in sites if n % 5 == 4 else ():
            post.keep(n, bytes(10))
            post.kept_for_good(n)
        files = sum(path.is_file() for path in tmp_path.rglob("*"))
        most = {until: max(x, files) if n < until else x for until, x in most.items()}
    assert most[200] <= most[20] + 3


# --- what cannot be ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"scenario": {"outages": [{"worker": 1, "last": 2}]}}, "has workers that are down at other times"),
        ({"scenario": {"sample": 2, "sample_every": 2}}, "has workers that are down at other times"),
        ({"clients": {"num": 7}}, "clients take turns"),
        ({"metrics": ["rates"]}, "metrics look at all workers"),
        ({"checkpoint_every": 0}, "with checkpoint_every=0"),
        ({"privacy": {"secure_sum": True}}, "privacy.secure_sum has secrets that are lost with a site"),
        (
            {"method": LISTED["local_sgd reset"], "scenario": {"catch_up": "params"}},
            "this method resets them meanwhile",
        ),
    ],
)
def test_runs_that_cannot_go_on_without_a_site_are_refused_in_one_line(changes: dict[str, Any], why: str) -> None:
    of = recipe(
        **({"method": LISTED["fedprox"] if "clients" in changes else LISTED["des_loc"], "num_workers": 4} | changes)
    )
    with pytest.raises(RecipeError, match=f"--deadline 5: .*{why}"):
        check_deadline(of, 2, 5.0, 600.0)


def test_a_deadline_needs_a_place_and_is_far_below_the_timeout(tmp_path: Path) -> None:
    with pytest.raises(
        RecipeError, match="--deadline 5 is for sites that talk through a place: name one with --mailbox"
    ):
        check_mailbox(None, 2, deadline_seconds=5.0)
    small = Recipe.of("des_loc", SMALL)
    with pytest.raises(RecipeError, match="give seconds above 0 and of at most a fifth of --timeout 20"):
        check_mailbox(str(tmp_path), 2, small, deadline_seconds=5.0, timeout_seconds=20.0)


def test_outages_are_read_from_events() -> None:
    """By hand: worker 1 is down in steps 3 to 5 and from 8 to the end, worker 2 joins in step 4."""
    changed = [
        WorkersChanged(1, [0, 1], [], [2]),
        WorkersChanged(3, [0], [], [1]),
        WorkersChanged(4, [0, 2], [2], []),
        WorkersChanged(6, [0, 1, 2], [1], []),
        WorkersChanged(8, [0, 2], [], [1]),
    ]
    scenario = Scenario(slow={1: 2.0}, catch_up="params").as_it_was(changed, 10)
    outages = (Outage(1, 5, 3), Outage(1, 10, 8), Outage(2, 3, 1))
    assert scenario == Scenario(outages=outages, slow={1: 2.0}, catch_up="params")
    whole = recipe(scenario=scenario, steps=10)
    told = [e for e in Trainer(whole, corpus=corpus()).events() if isinstance(e, WorkersChanged | Started)]
    assert told[1:] == changed


def test_nobody_goes_on_without_the_first_site(tmp_path: Path) -> None:
    clock = Clock()
    sites = posts(tmp_path, 2, clock)
    here = deadline(sites[0])
    here.prepare()
    here.enter()
    sites[1].say("said.0", json.dumps({"refused": {"0": "it is not finite"}}).encode())
    with pytest.raises(Diverged, match="site 0 has sent what others refuse"):
        here.conclude(1, None, True, dict)
