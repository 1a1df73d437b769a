"""Several processes that run `cases.OVER_PROCESSES`, one recipe after another, and listen to what they say.

python -m tests.support.over_processes FOLDER MACHINES [NAME…], with WORLD_SIZE, MASTER_ADDR and MASTER_PORT set: as many processes as the
world has, as if on so many machines. They are forked, so that torch, and what it imports by itself in a dry run, is imported once for all. Each recipe (default: of all) has a run folder of its
name; what was begun there is resumed. The first process writes each story as JSON lines beside it, and each one its own log.
"""

from __future__ import annotations

import contextlib
import os
import sys
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import accelerate  # noqa: F401
import pytest
import torch
import torch._dynamo  # noqa: F401
import torch.distributed as dist

from lab.events import to_json
from lab.processes.peers import ManyProcesses, join
from lab.runs.folder import RunFolder
from lab.runs.shared_folder import SharedFolder
from lab.runs.trainer import Trainer
from tests.support.cases import OVER_PROCESSES, of_four
from tests.support.listed import LISTED
from tests.support.recipes import corpus
from tests.support.stories import tell


def run_all(out: Path, names: Sequence[str]) -> None:
    """What each process does."""
    world = join(4, timeout_seconds=60.0)
    for name in names:
        recipe = OVER_PROCESSES[name]
        trainer = Trainer(recipe, corpus=corpus(), world=world)
        held = {w for block in trainer.fleet.layout.blocks for w in block.holders}
        assert held == set(world.mine), "a process has rows of its own workers and no others"
        events = list(trainer.events(SharedFolder(world, RunFolder(out / name))))
        ledger = [to_json(r) for r in trainer.comm.ledger]
        assert all(theirs == ledger for theirs in world.all_gather_json(ledger)), (
            f"{name}: processes wrote different ledgers"
        )
        if world.first:
            tell(events, out, name)
    if len(names) == len(OVER_PROCESSES):
        listen_in(world, out)


def listen_in(world: ManyProcesses, out: Path) -> None:
    """What this process puts on the wire in runs that hide updates, and in one that does not: of each message its kind and bytes."""
    for name, secure in (("hidden", True), ("plain", False)):
        for method in ("fedprox", "photon"):
            r = of_four(LISTED[method], privacy={"secure_sum": secure}, checkpoint_every=0, steps=4, eval_every=0)
            with heard() as messages:
                for _ in Trainer(r, corpus=corpus(), world=world).events():
                    pass
            torch.save(messages, out / f"wire-{name}-{method}-{world.index}.pt")


@contextlib.contextmanager
def heard() -> Iterator[list[tuple[str, torch.Tensor]]]:
    """Inside, whatever this process hands to `torch.distributed` to be sent is written down, as bytes."""
    messages: list[tuple[str, torch.Tensor]] = []
    with pytest.MonkeyPatch.context() as patch:
        for name, at in (("send", 0), ("all_reduce", 0), ("all_gather", 1), ("broadcast", 0)):
            call = getattr(dist, name)

            def note(*args: Any, name: str = name, at: int = at, call: Any = call, **options: Any) -> Any:
                messages.append((name, args[at].detach().clone().contiguous().view(-1).view(torch.uint8)))
                return call(*args, **options)

            patch.setattr(dist, name, note)
        yield messages


def forked(rank: int, per_machine: int, out: Path, names: Sequence[str]) -> int:
    """A process of this rank; its id."""
    if pid := os.fork():
        return pid
    try:
        log = os.open(out / f"process-{rank}.log", os.O_WRONLY | os.O_CREAT)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank % per_machine)}
        run_all(out, names)
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)  # the others are told by the connection that closes
    os._exit(0)  # gloo's threads may abort an interpreter that is taken down in order (pytorch/pytorch#179291)


def main(out: Path, machines: int, names: Sequence[str]) -> None:
    num = int(os.environ["WORLD_SIZE"])
    if machines > 1:
        os.environ |= {"LOCAL_WORLD_SIZE": str(num // machines), "GLOO_SOCKET_IFNAME": "lo"}
    processes = [forked(rank, num // machines, out, names or [*OVER_PROCESSES]) for rank in range(num)]
    codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in processes]
    print(codes)
    sys.exit(any(codes))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3:])
