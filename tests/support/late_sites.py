"""Sites with a deadline, one of which misses it: held until the others have left it out, or killed and started again after that.

python -m tests.support.late_sites FOLDER SITES VICTIM held|killed|poisoned NAME…: the victim, before it says anything in local step `LATE`, waits
until all others have come to that meeting, and then until it is down (or ends with SIGKILL's suddenness, and is started again when it is
down). Poisoned, it is not late: the first numbers that it sends then are none. The first site waits for its return before step `BACK`. The deadline is on a clock that stands still but while the victim is held, so
that nobody is late because the machine is busy. As `lost_sites` otherwise.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import accelerate  # noqa: F401
import torch
from torch import Tensor

from lab.processes import mailbox
from lab.processes.deadline import Deadline
from lab.processes.environment import MAILBOX
from lab.processes.peers import join
from lab.processes.places import Folder
from lab.processes.post import Post
from lab.recipes.recipe import Recipe
from lab.runs.folder import RunFolder
from lab.runs.meetings import Meetings, check_deadline
from lab.runs.site_folder import SiteFolder, invite
from lab.runs.trainer import Trainer
from tests.support.cases import OVER_PROCESSES
from tests.support.lost_sites import LOST
from tests.support.recipes import corpus
from tests.support.stories import tell

DEADLINE, LATE, BACK, STEPS = 0.2, 4, 8, 10
RECIPES = {
    name: OVER_PROCESSES[of].but(scenario={"catch_up": catch_up}, steps=STEPS)
    for name, of, catch_up in (
        ("ddp topk", "ddp topk", "params"),
        ("des_loc outer", "des_loc outer", "all"),
        ("diloco", "diloco", "params"),
        ("fedit", "fedit", "all"),
        ("lordo", "lordo", "all"),
        ("photon FedAdam", "photon FedAdam, storm", "all"),
        ("streaming_diloco three", "streaming_diloco three", "all"),
        ("experts on all", "experts on all", "all"),
        ("buffers averaged", "buffers averaged, storm", "all"),
        ("noloco", "noloco", "all"),
    )
}


class Stage:
    """What happens in one run, as files that all sites see."""

    def __init__(self, out: Path, name: str, num: int, victim: int):
        self.out, self.name, self.num, self.victim = out, name, num, victim

    @property
    def held(self) -> Path:
        return self.out / f"{self.name} held"

    def said(self, sender: int, word: str) -> list[Path]:
        return [*(self.out / f"{self.name} box").glob(f"*/from-{sender}/{word}")]

    def left_out(self) -> bool:
        """Whether a verdict has left the victim out."""
        over = self.out / f"{self.name} left out"
        if not over.exists() and any(self.victim in verdict["down"] for verdict in self.verdicts()):
            over.touch()
        return over.exists()

    def verdicts(self) -> Iterator[dict[str, Any]]:
        for path in self.said(0, "verdict.*"):
            with contextlib.suppress(FileNotFoundError):  # nobody needs it any more
                yield json.loads(path.read_bytes().partition(b"\n")[2])

    def clock(self) -> Callable[[], float]:
        seconds, last = 0.0, time.monotonic()

        def read() -> float:
            nonlocal seconds, last
            now = time.monotonic()
            if self.held.exists() and not self.left_out():
                seconds += now - last
            last = now
            return seconds

        return read


def wait_for(there: Callable[[], object]) -> None:
    while not there():
        time.sleep(0.005)


def live(stage: Stage, recipe: Recipe, how: str, first_life: bool) -> None:
    """What a site does."""
    world = join(4, timeout_seconds=100.0)
    assert world.post is not None
    assert world.post.deadline is not None
    world.post.keeps, world.post.clock = True, stage.clock()
    meetings = Meetings(world, world.post.deadline)
    trainer = Trainer(recipe, corpus=corpus(), world=world, meetings=meetings)
    if world.index == stage.victim and first_life:
        poison(stage, trainer) if how == "poisoned" else None
        hold(stage, world.post, trainer, how)
    if world.first:
        await_return(stage, world.post.deadline, trainer)
    folder = SiteFolder(world, RunFolder(stage.out / stage.name) if world.first else None, world.post)
    events = list(trainer.events(folder))
    if world.first:
        tell(events, stage.out, stage.name)


def poison(stage: Stage, trainer: Trainer) -> None:
    data = mailbox._data

    def spoilt(x: Tensor) -> bytes:
        if x.is_floating_point() and trainer.t >= LATE - 1 and not stage.held.exists():
            stage.held.touch()
            x = torch.full_like(x, torch.nan)
        return data(x)

    mailbox._data = spoilt


def hold(stage: Stage, post: Post, trainer: Trainer, how: str) -> None:
    say = post.say

    def late(word: str, data: bytes) -> None:
        if how != "poisoned" and word.startswith("here.") and trainer.t >= LATE - 1 and not stage.held.exists():
            others = [p for p in range(stage.num) if p != stage.victim]
            wait_for(lambda: all(stage.said(p, word) for p in others))
            stage.held.touch()
            if how == "killed":
                os._exit(LOST)
            wait_for(stage.left_out)
        if word.startswith("back."):
            wait_for(lambda: any(v["counts"] and v["step"] > LATE for v in stage.verdicts()))
        say(word, data)

    post.say = late  # type: ignore[method-assign]


def await_return(stage: Stage, deadline: Deadline, trainer: Trainer) -> None:
    step = trainer.next_step

    def later():  # type: ignore[no-untyped-def]
        if trainer.t == BACK - 1:
            wait_for(lambda: not deadline.away or stage.said(stage.victim, "back.*"))
        return step()

    trainer.next_step = later  # type: ignore[method-assign]


def forked(stage: Stage, recipe: Recipe, site: int, how: str, first_life: bool) -> int:
    if pid := os.fork():
        return pid
    try:
        log = os.open(stage.out / f"site-{site}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.environ["RANK"] = str(site)
        print(f"--- {stage.name}", flush=True)
        live(stage, recipe, how, first_life)
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)
    os._exit(0)


def run_one(out: Path, name: str, num: int, victim: int, how: str) -> Iterator[str]:
    """A run; yields what went wrong."""
    stage, box, recipe = Stage(out, name, num, victim), out / f"{name} box", RECIPES[name]
    check_deadline(recipe, num, DEADLINE, 100.0)
    os.environ |= {MAILBOX: str(box), "WORLD_SIZE": str(num), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    invite(Folder(box), None, RunFolder(out / name), recipe, num, False, DEADLINE)
    sites = {forked(stage, recipe, p, how, True): p for p in range(num)}
    while sites:
        pid, status = os.wait()
        site, code = sites.pop(pid), os.waitstatus_to_exitcode(status)
        if code == LOST and site == victim and how == "killed":
            wait_for(stage.left_out)
            sites[forked(stage, recipe, site, how, False)] = site
        elif code:
            yield f"{name}: site {site} ended with {code}"
            for other in sites:
                os.kill(other, 9)
    if not stage.held.exists():
        yield f"{name}: the victim was never late"
    left = [str(path) for path in box.rglob("*") if path.is_file() and path.name != "run"]
    if left:
        yield f"{name}: left behind: {left[:3]}"


def main(out: Path, num: int, victim: int, how: str, names: list[str]) -> None:
    wrong = [line for name in names or [*RECIPES] for line in run_one(out, name, num, victim, how)]
    print(*wrong, sep="\n")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4], sys.argv[5:])
