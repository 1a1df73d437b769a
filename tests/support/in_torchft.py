"""One of two processes that meet through torchft; the first starts what leads its quorum. Prints JSON.

python -m tests.support.in_torchft INDEX LIGHTHOUSE|- STORE_FILE: the trajectories of torchft's own DiLoCo and LocalSGD on the tiny problem of
`tests.support.bench` (after each local step, this replica's parameters), and those of runs of the lab whose averages go through torchft's
process group.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torchft.local_sgd import DiLoCo, LocalSGD
from torchft.manager import Manager
from torchft.process_group import ProcessGroupGloo

from lab.events import to_json
from lab.processes.peers import ManyProcesses
from lab.recipes.recipe import Recipe
from lab.runs.trainer import Trainer
from tests.support.bench import batch, build, flat
from tests.support.recipes import corpus, recipe
from tests.support.stories import story

STEPS, PERIOD, LR, OUTER = 12, 4, 1e-2, {"lr": 0.7, "momentum": 0.9, "nesterov": True}
METHODS: dict[str, Any] = {
    "des_loc": {"name": "des_loc", "sync_every": {"params": 2, "exp_avg": 3, "exp_avg_sq": 4}},
    "diloco": {"name": "diloco", "sync_every": 2},
    "ddp": {"name": "ddp"},
}
TIMEOUT = timedelta(seconds=60)


def of_two(method: Any) -> Recipe:
    return recipe(num_workers=2, eval_every=3, checkpoint_every=0).but(method=method)


def trajectory(manager: Manager, model: torch.nn.Module, how: Callable[..., Any], index: int) -> list[list[float]]:
    """What this replica has after each local step; its worker sees the batches of that number."""
    inner = torch.optim.AdamW(model.parameters(), lr=LR, betas=(0.9, 0.95), weight_decay=0.0)
    seen = []
    with how(manager, model, inner):
        for t in range(1, STEPS + 1):
            inner.zero_grad()
            model.loss(*batch(index, t)).backward()  # type: ignore[operator]
            inner.step()
            seen.append(flat(model).tolist())
    return seen


def diloco(manager: Manager, model: torch.nn.Module, inner: torch.optim.Optimizer) -> DiLoCo:
    return DiLoCo(manager, [model], inner, torch.optim.SGD(model.parameters(), **OUTER), PERIOD)


def local_sgd(manager: Manager, model: torch.nn.Module, inner: torch.optim.Optimizer) -> LocalSGD:
    return LocalSGD(manager, model, inner, PERIOD)


def managed(index: int, lighthouse: str, how: Callable[..., Any], name: str) -> list[list[float]]:
    model = build(None)
    state: dict[str, Any] = {}
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    manager = Manager(
        pg=ProcessGroupGloo(TIMEOUT),
        load_state_dict=state.update,
        state_dict=lambda: dict(state),
        min_replica_size=2,
        use_async_quorum=False,
        timeout=TIMEOUT,
        quorum_timeout=TIMEOUT,
        connect_timeout=TIMEOUT,
        rank=0,
        world_size=1,
        store_addr="127.0.0.1",
        store_port=store.port,
        lighthouse_addr=lighthouse,
        replica_id=f"{name}-{index}",
        hostname="127.0.0.1",
        init_sync=False,  # both have the same values
    )
    try:
        return trajectory(manager, model, how, index)
    finally:
        manager.shutdown()


def through_its_group(index: int, file: str) -> dict[str, list[str]]:
    """Stories of runs of the lab, which put their tensors into torchft's group."""
    dist.init_process_group("gloo", init_method=f"file://{file}", rank=index, world_size=2)
    port = [0]
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False) if index == 0 else None
    port[0] = store.port if store is not None else 0
    dist.broadcast_object_list(port, 0)
    group = ProcessGroupGloo(TIMEOUT)
    group.configure(f"127.0.0.1:{port[0]}/lab", str(index), index, 2)
    group.register("torchft")
    world = ManyProcesses(2)
    world._group = lambda processes: group  # type: ignore[method-assign, assignment, return-value]
    found = {}
    for name, method in METHODS.items():
        trainer = Trainer(of_two(method), corpus=corpus(), world=world)
        found[name] = [to_json(e) for e in story(trainer.events())]
    dist.barrier()
    return found


def main(index: int, lighthouse: str, file: str) -> None:
    torch.set_num_threads(1)
    if index == 0:
        from torchft.coordination import LighthouseServer

        server = LighthouseServer(bind="127.0.0.1:0", min_replicas=2, join_timeout_ms=100, quorum_tick_ms=10)
        Path(f"{file}.lighthouse.new").write_text(server.address(), encoding="utf-8")
        os.replace(f"{file}.lighthouse.new", f"{file}.lighthouse")
        lighthouse = server.address()
    found: dict[str, Any] = {
        "diloco": managed(index, lighthouse, diloco, "diloco"),
        "local_sgd": managed(index, lighthouse, local_sgd, "local_sgd"),
        "stories": through_its_group(index, file),
    }
    print(json.dumps(found), flush=True)
    os._exit(0)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], sys.argv[3])
