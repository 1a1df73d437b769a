"""Two processes in which every listed method trains twice: in the lab's loop, and in one of its own.

python -m tests.support.own_loops MODELS FOLDER, with MASTER_PORT set: with so many models in each of two forked processes (with several,
the methods alone and not their variants). What differs by a single bit ends them with an error.
"""

from __future__ import annotations

import os
import sys
import traceback
from pathlib import Path

import torch

import lab
from lab.ground.errors import RecipeError
from lab.methods import METHODS, declared
from lab.processes.peers import join
from lab.runs.folder import RunFolder
from lab.runs.trainer import Trainer
from tests.support.listed import LISTED
from tests.support.own_loop import differences, loop, modules, seen
from tests.support.recipes import corpus, recipe

SOME = ("des_loc", "diloco", "mt_dao two momenta", "streaming_diloco three", "noloco")  # that are cut off and go on


def run_all(each: int, out: Path) -> None:
    """What each process does."""
    world = join(2 * each, timeout_seconds=60.0)
    for name, method in LISTED.items():
        if declared(method).server or (each > 1 and name not in METHODS):
            continue
        r = recipe(method, num_workers=2 * each, eval_every=0)
        trainer = Trainer(r, corpus=corpus(), world=world)
        events = list(trainer.events())
        data = trainer.setup.data
        assert data is not None
        models = modules(r, each, data.vocab_size)
        sync = lab.attach(models, method, steps=r.steps)
        loop(sync, data, r.steps)
        sync.close()
        assert differences(trainer, sync) == [], (name, differences(trainer, sync))
        assert seen(sync.events) == seen(events), name
        assert list(sync.ledger) == list(trainer.comm.ledger), name
        agreed = trainer.agreed()
        for key, x in sync.agreed().items():
            assert key in ("cos", "sin") or torch.equal(x, agreed[key][0]), (name, key)
        if name in SOME:
            cut_off(name, each, out, trainer)
    disagreeing(world.index, out)


def cut_off(name: str, each: int, out: Path, trainer: Trainer) -> None:
    """A loop that ends after step 3 and goes on from its folder is the one that never stopped."""
    data, r = trainer.setup.data, trainer.recipe
    assert data is not None
    for until in (3, r.steps):
        sync = lab.attach(modules(r, each, data.vocab_size), r.method, steps=r.steps, folder=out / name)
        assert sync.t == (0 if until == 3 else 3)
        loop(sync, data, until)
        if until == 3:
            sync.save()
    sync.close()
    assert differences(trainer, sync) == [], name
    if sync.world.first:
        assert list(RunFolder(out / name).events()) == sync.events


def disagreeing(index: int, out: Path) -> None:
    """What is wrong in one process is said in all of them."""
    said = []
    for model, options in (
        (torch.nn.Linear(2, 2 + index), {}),
        ([torch.nn.Linear(2, 2) for _ in range(1 + index)], {}),
        (torch.nn.Linear(2, 2), {"sync_every": {"params": 2 + index}}),
        (torch.nn.Linear(2, 2, dtype=torch.float16 if index else torch.float32), {}),
    ):
        try:
            lab.attach(model, "des_loc", **options)
        except RecipeError as error:
            said.append(str(error))
    other = torch.nn.Linear(2, 2)
    torch.nn.init.constant_(other.weight, float(index))
    sync = lab.attach(other, "ddp", folder=out / "others")
    assert torch.equal(other.weight, torch.zeros(2, 2)), "all start from the values of worker 0"
    sync.step()
    sync.close()
    (out / f"said-{index}.txt").write_text("\n".join(said) + "\n")


def forked(rank: int, each: int, out: Path) -> int:
    """A process of this rank; its id."""
    if pid := os.fork():
        return pid
    try:
        log = os.open(out / f"process-{rank}.log", os.O_WRONLY | os.O_CREAT)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        run_all(each, out)
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)
    os._exit(0)


if __name__ == "__main__":
    each, out = int(sys.argv[1]), Path(sys.argv[2])
    os.environ |= {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in [forked(rank, each, out) for rank in range(2)]]
    print(codes)
    sys.exit(any(codes))
