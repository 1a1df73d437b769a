"""Sites that run `cases.OVER_PROCESSES` through a mailbox; one of them is lost in each run, and starts again alone.

python -m tests.support.lost_sites FOLDER SITES VICTIM STEP [NAME…]: the victim (−1: nobody) ends without a word in the middle of what
follows local step STEP, with SIGKILL's suddenness, and is started again when that is noticed. Sites are forked, as in `over_processes`.
Each recipe has a run folder of its name, its story beside it, and each site a log.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path

import accelerate  # noqa: F401
import torch._dynamo  # noqa: F401

from lab.engine.optim import Optimizer
from lab.events import Event, Warned
from lab.methods.fomoe import FoMoE
from lab.processes.environment import MAILBOX
from lab.processes.peers import join
from lab.processes.places import Folder
from lab.recipes.placement import Placement
from lab.runs.folder import RunFolder
from lab.runs.site_folder import SiteFolder, invite
from lab.runs.trainer import Trainer
from tests.support.cases import EXPERTS, OVER_PROCESSES, of_four
from tests.support.recipes import corpus
from tests.support.stories import tell

LOST = 9
MEASURED = {  # nothing but what the ledger has, what small values take, and the evaluation at the end
    f"{name}, measured alone": recipe.but(eval_every=0, checkpoint_every=0, steps=8)
    for name, recipe in {
        "ddp": OVER_PROCESSES["ddp"],
        "des_loc": OVER_PROCESSES["des_loc outer"],
        "diloco int8": OVER_PROCESSES["diloco int8"].but(scenario={}),
        "experts on two": OVER_PROCESSES["experts on two"].but(routing_every=0),
    }.items()
}
MOVING = {  # after step 5, with which each site keeps itself, experts are looked at twice before they are averaged again
    "experts that move, looked at between averages": of_four(
        FoMoE(sync_every={"params": 4, "exp_avg": 4, "exp_avg_sq": 4}, inner=Optimizer("AdamW", 1e-2)),
        placement=Placement(overlap=2, kind="random"),
        **(EXPERTS | {"steps": 8, "checkpoint_every": 5, "routing_every": 1}),
    )
}
RECIPES = OVER_PROCESSES | MEASURED | MOVING


def live(out: Path, name: str, last_step: int | None) -> None:
    """What a site does."""
    recipe = RECIPES[name]
    world = join(4, timeout_seconds=100.0)
    assert world.post is not None
    world.post.keeps = recipe.checkpoint_every > 0
    trainer = Trainer(recipe, corpus=corpus(), world=world)
    folder = SiteFolder(world, RunFolder(out / name) if world.first else None, world.post)
    if last_step is not None:
        put = world.post._put

        def put_and_go(message: str, data: bytes, lasting: bool = False, of: str | None = None) -> None:
            put(message, data, lasting, of)
            if trainer.t >= last_step:
                os._exit(LOST)

        world.post._put = put_and_go  # type: ignore[method-assign]
    events = list(trainer.events(folder))
    (out / f"{name} moved {world.index}").write_text(json.dumps(world.post.moved_bytes))
    if world.first:
        tell([e for e in events if not _of_coming_back(e)], out, name)


def _of_coming_back(event: Event) -> bool:
    return isinstance(event, Warned) and "resumed after" in event.message


def forked(out: Path, name: str, site: int, last_step: int | None) -> int:
    if pid := os.fork():
        return pid
    try:
        log = os.open(out / f"site-{site}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.environ["RANK"] = str(site)
        print(f"--- {name}", flush=True)
        live(out, name, last_step)
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)
    os._exit(0)


def run_one(out: Path, name: str, num: int, victim: int, step: int) -> Iterator[str]:
    """A run; yields what went wrong."""
    box = out / f"{name} box"
    os.environ |= {MAILBOX: str(box), "WORLD_SIZE": str(num), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    invite(Folder(box), None, RunFolder(out / name), RECIPES[name], num, anew=False)
    sites = {forked(out, name, p, step if p == victim else None): p for p in range(num)}
    lost = 0
    while sites:
        pid, status = os.wait()
        site, code = sites.pop(pid), os.waitstatus_to_exitcode(status)
        if code == LOST and site == victim and not lost:
            lost += 1
            sites[forked(out, name, site, None)] = site
        elif code:
            yield f"{name}: site {site} ended with {code}"
            for other in sites:
                os.kill(other, 9)
    if lost != (victim >= 0):
        yield f"{name}: the victim was lost {lost} times"
    left = [str(path) for path in box.rglob("*") if path.is_file() and path.name != "run"]
    if left:
        yield f"{name}: left behind: {left[:3]}"


def main(out: Path, num: int, victim: int, step: int, names: list[str]) -> None:
    wrong = [line for name in names or [*OVER_PROCESSES] for line in run_one(out, name, num, victim, step)]
    print(*wrong, sep="\n")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]), sys.argv[5:])
