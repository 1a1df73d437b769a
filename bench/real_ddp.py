"""The lab's loop over two processes ÷ a bare script with torch's DistributedDataParallel: same model, batches, optimizer, gloo.

Both take turns in the same two processes, so that what else the machine does meets both.
"""

from __future__ import annotations

import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
MODEL = ["model=micro", "batch_size=8", "context=128", "corpus=grammar?tokens=100000", "num_workers=2"]
STEPS, ROUNDS = 10, 15


def process() -> None:
    """One of the two."""
    import torch
    import torch.distributed as dist

    from lab.events import Stepped
    from lab.processes.peers import join
    from lab.recipes.recipe import Recipe
    from lab.runs.folder import RunFolder
    from lab.runs.shared_folder import SharedFolder
    from lab.runs.trainer import Trainer

    recipe = Recipe.of("ddp", [*MODEL, f"steps={STEPS * (ROUNDS + 1)}", "eval_every=0", "checkpoint_every=0"])
    world = join(2)
    trainer = Trainer(recipe, world=world)
    folder = RunFolder(Path(tempfile.mkdtemp()) / "run") if world.first else None
    events = trainer.events(SharedFolder(world, folder))
    torch.manual_seed(0)
    assert trainer.setup.data is not None
    bare = recipe.model.build(trainer.setup.data.vocab_size, recipe.context)
    model = torch.nn.parallel.DistributedDataParallel(bare)
    inner = recipe.method.inner
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=inner.lr, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.0, fused=True
    )
    batches = [trainer.setup.data.batches.get(world.index, t) for t in range(1, STEPS * (ROUNDS + 1) + 1)]

    def of_lab() -> None:
        done = 0
        while done < STEPS:
            done += isinstance(next(events), Stepped)

    def of_torch(k: int) -> None:
        for ids, targets in batches[k * STEPS : (k + 1) * STEPS]:
            optimizer.zero_grad()
            logits = model(ids)
            torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten()).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()

    ratios, seconds = [], []
    for k in range(ROUNDS + 1):
        took = {}
        for who in ("lab", "torch") if k % 2 else ("torch", "lab"):
            dist.barrier()
            began = time.perf_counter()
            of_lab() if who == "lab" else of_torch(k)
            dist.barrier()
            took[who] = time.perf_counter() - began
        if k:  # the first round warms up
            ratios.append(took["lab"] / took["torch"])
            seconds.append(took["torch"] / STEPS)
    if world.first:
        print(
            f"lab / bare DistributedDataParallel, 2 processes, {sum(p.numel() for p in bare.parameters()):,} parameters: "
            f"{statistics.median(ratios):.3f}× (rounds {min(ratios):.3f} … {max(ratios):.3f}; "
            f"{statistics.median(seconds) * 1000:.0f} ms a step)",
            flush=True,
        )
    dist.barrier()
    os._exit(0)


def main() -> None:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    env = os.environ | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
    env["PYTHONPATH"] = str(ROOT)
    command = [sys.executable, "-c", "from bench.real_ddp import process; process()"]
    started = [subprocess.Popen(command, env=env | {"RANK": str(p), "LOCAL_RANK": str(p)}) for p in range(2)]
    for p in started:
        p.wait()


if __name__ == "__main__":
    main()
