"""Tokens per second: a simulated fleet against one model on the joined batch, and a whole run against the bare fleet."""

from __future__ import annotations

import json
import statistics
import sys
import time
from typing import Any

import torch

from bench.common import SHAPES, child, ratio, take_turns
from lab.fleet import num_cores


def one_model(shape: dict[str, Any], seconds: float) -> float:
    """One module, joined batch, all cores inside each operation, fused AdamW: tokens per second."""
    torch.set_num_threads(num_cores())
    from lab.models.gpt import size

    module = size(shape["model"]).build(256, shape["context"])
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-3, fused=True)
    rows = shape["num_workers"] * shape["batch_size"]
    ids = torch.randint(0, 256, (rows, shape["context"] + 1), generator=torch.Generator().manual_seed(0))

    def step() -> None:
        optimizer.zero_grad()
        module.loss(ids[:, :-1], ids[:, 1:]).backward()
        optimizer.step()

    return _rate(step, rows * shape["context"], seconds)


def bare_fleet(shape: dict[str, Any], seconds: float) -> float:
    """The same tokens as a fleet: every worker its own model and batch, fused AdamW over all, nothing sent or written."""
    torch.set_num_threads(1)
    from lab.methods import State
    from lab.optim import AdamW
    from lab.recipe import Recipe
    from lab.run import build_fleet

    fleet = build_fleet(Recipe.of(shape), 256)
    s = State.of(fleet)
    inner = AdamW(lr=1e-3)
    s.optimizers["inner"] = inner.over(fleet.params, fleet.grads)
    W, B, T = shape["num_workers"], shape["batch_size"], shape["context"]
    ids = torch.randint(0, 256, (W, B, T + 1), generator=torch.Generator().manual_seed(0))
    t = 0

    def step() -> None:
        nonlocal t
        t += 1
        fleet.backward(lambda module, w: module.loss(ids[w, :, :-1], ids[w, :, 1:]))
        inner.step_(s, t)

    return _rate(step, W * B * T, seconds)


def whole_run(shape: dict[str, Any], seconds: float) -> float:
    """DiLoCo through the trainer: real text, clipping, outer step, ledger, events written to disk."""
    import tempfile

    from lab.recipe import Recipe
    from lab.run import Trainer
    from lab.store import RunFolder

    recipe = Recipe.of(shape | {"method": {"name": "diloco", "sync_every": 16}, "steps": 100_000, "eval_every": 0})
    with tempfile.TemporaryDirectory() as folder:
        events = Trainer(recipe.but(checkpoint_every=0)).events(RunFolder(folder))

        def step() -> None:
            while next(events).kind != "stepped":
                pass

        rate = _rate(step, shape["num_workers"] * shape["batch_size"] * shape["context"], seconds)
        events.close()
    return rate


def _rate(step: Any, tokens: int, seconds: float) -> float:
    for _ in range(3):
        step()
    took = []
    began = time.perf_counter()
    while time.perf_counter() - began < seconds:
        before = time.perf_counter()
        step()
        took.append(time.perf_counter() - before)
    return tokens / statistics.median(took)


def main(rounds: int = 5, seconds: float = 5.0) -> None:
    for label, shape in SHAPES.items():
        seen = take_turns(
            {
                what: lambda what=what, shape=shape: child("bench.fleet", what=what, shape=shape, seconds=seconds)
                for what in ("one_model", "bare_fleet", "whole_run")
            },
            rounds,
        )
        rates = ", ".join(f"{what} {statistics.median(v):,.0f}" for what, v in seen.items())
        print(f"{label}; {num_cores()} cores; tokens/s: {rates}")
        print(f"  fleet / one model on the joined batch, all cores: {ratio(seen['bare_fleet'], seen['one_model'])}")
        print(f"  whole DiLoCo run, events and ledger / bare fleet: {ratio(seen['whole_run'], seen['bare_fleet'])}")


if __name__ == "__main__":
    arguments = json.loads(sys.argv[1])
    print(json.dumps(globals()[arguments["what"]](arguments["shape"], arguments["seconds"])))
