"""Tokens per second: a simulated fleet against one model on the joined batch, and a whole run against the bare fleet."""

from __future__ import annotations

import itertools
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from typing import Any

import torch

from bench.common import SHAPES, child, ratio, take_turns
from lab.engine.fleet import num_cores
from lab.engine.optim import AdamW
from lab.engine.state import State
from lab.models.gpt import SIZES
from lab.models.shape import Shape
from lab.recipes.recipe import Recipe
from lab.runs.build import build_fleet
from lab.runs.folder import RunFolder
from lab.runs.trainer import Trainer


def one_model(shape: dict[str, Any]) -> Iterator[int]:
    """One module, joined batch, all cores inside each operation, fused AdamW. Yields the tokens of each step."""
    torch.set_num_threads(num_cores())
    module = SIZES[shape["model"]].build(256, shape["context"])
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-3, fused=True)
    rows = shape["num_workers"] * shape["batch_size"]
    ids = torch.randint(0, 256, (rows, shape["context"] + 1), generator=torch.Generator().manual_seed(0))
    while True:
        optimizer.zero_grad()
        module.loss(ids[:, :-1], ids[:, 1:]).backward()
        optimizer.step()
        yield rows * shape["context"]


def bare_fleet(shape: dict[str, Any]) -> Iterator[int]:
    """The same tokens as a fleet: every worker its own model and batch, fused AdamW over all, nothing sent or written."""
    torch.set_num_threads(1)
    fleet = build_fleet(Recipe.of(shape), Shape(256, Recipe.of(shape).context))
    s = State.of(fleet)
    inner = AdamW(lr=1e-3)
    s.optimizers["inner"] = inner.over(fleet.params, fleet.grads)
    W, B, T = shape["num_workers"], shape["batch_size"], shape["context"]
    ids = torch.randint(0, 256, (W, B, T + 1), generator=torch.Generator().manual_seed(0))
    for t in itertools.count(1):
        fleet.backward(lambda module, w: module.loss(ids[w, :, :-1], ids[w, :, 1:]))
        inner.step_(s, t)
        yield W * B * T


def whole_run(shape: dict[str, Any]) -> Iterator[int]:
    """DiLoCo through the trainer: real text, clipping, outer step, ledger, events written to disk."""
    recipe = Recipe.of(shape | {"method": {"name": "diloco", "sync_every": 16}, "steps": 100_000, "eval_every": 0})
    with tempfile.TemporaryDirectory() as folder:
        for event in Trainer(recipe.but(checkpoint_every=0)).events(RunFolder(folder)):
            if event.kind == "stepped":
                yield shape["num_workers"] * shape["batch_size"] * shape["context"]


def rate(steps: Iterator[int], seconds: float) -> float:
    """Tokens per second over whole steps (two at least) of about this long."""
    began, tokens, count = time.perf_counter(), 0, 0
    while count < 2 or time.perf_counter() - began < seconds:
        tokens, count = tokens + next(steps), count + 1
    return tokens / (time.perf_counter() - began)


def measure(what: list[str], shape: dict[str, Any], seconds: float, rounds: int) -> list[list[float]]:
    """Rates of one or several candidates that take turns inside one process, round by round."""
    candidates = [globals()[name](shape) for name in what]
    for steps in candidates:
        rate(steps, 1.0)  # warm up
    seen = [[rate(steps, seconds) for steps in (candidates if k % 2 else candidates[::-1])] for k in range(rounds)]
    return [row if k % 2 else row[::-1] for k, row in enumerate(seen)]


def main(rounds: int = 6) -> None:
    for label, shape in SHAPES.items():
        # One intra-op thread against several cannot share a process: spinning threads would hinder the others.
        apart = take_turns(
            {
                what: lambda what=what, shape=shape: child(
                    "bench.fleet", what=[what], shape=shape, seconds=5.0, rounds=1
                )[0][0]
                for what in ("one_model", "bare_fleet")
            },
            rounds,
        )
        together = child("bench.fleet", what=["bare_fleet", "whole_run"], shape=shape, seconds=2.0, rounds=3 * rounds)
        rates = ", ".join(f"{what} {statistics.median(v):,.0f}" for what, v in apart.items())
        print(f"{label}; {num_cores()} cores; tokens/s: {rates}")
        print(f"  fleet / one model on the joined batch, all cores: {ratio(apart['bare_fleet'], apart['one_model'])}")
        bare, whole = zip(*together, strict=True)
        print(f"  whole DiLoCo run, events and ledger / bare fleet: {ratio(whole, bare)}")


if __name__ == "__main__":
    print(json.dumps(measure(**json.loads(sys.argv[1]))))
