"""One of several processes that run `cases.OVER_PROCESSES`, one recipe after another.

python -m tests.support.over_processes FOLDER, with RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT set. Each recipe has a run folder of
its name; what was begun there is resumed. The first process writes each story as JSON lines beside it.
"""

from __future__ import annotations

import os
import sys
import traceback
from pathlib import Path

from lab.events import to_json
from lab.processes.peers import join
from lab.runs.folder import RunFolder
from lab.runs.shared_folder import SharedFolder
from lab.runs.trainer import Trainer
from tests.support.cases import OVER_PROCESSES
from tests.support.recipes import corpus
from tests.support.stories import tell


def main(out: Path) -> None:
    world = join(4, timeout_seconds=60.0)
    for name, recipe in OVER_PROCESSES.items():
        trainer = Trainer(recipe, corpus=corpus(), world=world)
        held = {w for block in trainer.fleet.layout.blocks for w in block.holders}
        assert held == set(world.mine), "a process has rows of its own workers and no others"
        events = list(trainer.events(SharedFolder(world, trainer, RunFolder(out / name))))
        ledger = [to_json(r) for r in trainer.comm.ledger]
        assert all(theirs == ledger for theirs in world.all_gather_json(ledger)), (
            f"{name}: processes wrote different ledgers"
        )
        if world.first:
            tell(events, out, name)


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1]))
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)  # the others are told by the connection that closes
    os._exit(0)  # gloo's threads may abort an interpreter that is taken down in order (pytorch/pytorch#179291)
