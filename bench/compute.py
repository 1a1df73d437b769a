"""Ways to compute the same gradients: all workers at once, bfloat16, batches in parts; on the CPU and, where there is one, a GPU.

Each ratio is seconds of a step, that way ÷ workers one by one in float32 on the same device.
"""

from __future__ import annotations

import json
import resource
import statistics
import sys
import time
from collections.abc import Iterator
from typing import Any

import torch

from bench.common import child, ratio
from lab.recipes.recipe import Recipe
from lab.runs.trainer import Trainer

SHAPES: dict[str, dict[str, Any]] = {
    "nano, 4 workers, batch 8, context 64": {"model": "nano", "num_workers": 4, "batch_size": 8, "context": 64},
    "nano, 32 workers, batch 4, context 32": {"model": "nano", "num_workers": 32, "batch_size": 4, "context": 32},
    "micro, 4 workers, batch 8, context 128": {"model": "micro", "num_workers": 4, "batch_size": 8, "context": 128},
}
WAYS: dict[str, dict[str, Any]] = {
    "one by one": {"vectorised": False},
    "at once": {"vectorised": True},
    "bf16": {"vectorised": False, "mixed_precision": "bf16"},
    "bf16, at once": {"vectorised": True, "mixed_precision": "bf16"},
    "in 4 parts": {"vectorised": False, "accumulate": 4},
}


def steps(shape: dict[str, Any], compute: dict[str, Any]) -> Iterator[float]:
    """Seconds of each local step of Local Adam that never syncs."""
    method = {"name": "local_adam", "sync_every": 1_000_000}
    rest = {"steps": 1_000_000, "eval_every": 0, "checkpoint_every": 0, "corpus": "grammar?tokens=200000"}
    recipe = Recipe.of({"method": method, "compute": compute} | rest | shape)
    for event in Trainer(recipe).events():
        if event.kind == "stepped":
            yield event.seconds


def measure(shape: dict[str, Any], device: str, rounds: int) -> list[list[float]]:
    """Of every way the seconds of a step, round by round."""
    ways = [steps(shape, compute | {"device": device}) for compute in WAYS.values()]
    for way in ways:
        for _ in range(3):
            next(way)
    seen = []
    for k in range(rounds):
        order = list(range(len(ways)))[:: 1 if k % 2 else -1]
        row = [0.0] * len(ways)
        for i in order:
            began, count = time.perf_counter(), 0
            while count < 3 or time.perf_counter() - began < 0.7:
                next(ways[i])
                count += 1
            row[i] = (time.perf_counter() - began) / count
        seen.append(row)
    return seen


def peak(shape: dict[str, Any], compute: dict[str, Any]) -> int:
    """Bytes of memory that a process takes at most for four steps."""
    way = steps(shape, compute)
    for _ in range(4):
        next(way)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main(rounds: int = 9) -> None:
    for device in ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",):
        for label, shape in SHAPES.items():
            rows = list(
                zip(*child("bench.compute", measure={"shape": shape, "device": device, "rounds": rounds}), strict=True)
            )
            print(f"{device}, {label}: one by one {statistics.median(rows[0]) * 1000:.1f} ms a step")
            for name, row in list(zip(WAYS, rows, strict=True))[1:]:
                print(f"  {name} / one by one: {ratio(row, rows[0])}", flush=True)
    shape = {"model": "micro", "num_workers": 2, "batch_size": 64, "context": 128}
    base = child("bench.compute", peak={"shape": shape | {"batch_size": 1}, "compute": {}})
    whole, parts = (child("bench.compute", peak={"shape": shape, "compute": {"accumulate": n}}) for n in (1, 8))
    print(
        f"micro, 2 workers, batch 64: memory beyond batch 1, in 8 parts / whole: {(parts - base) / (whole - base):.2f}×"
    )
    if not torch.cuda.is_available():
        print("no GPU here: not measured on one")


if __name__ == "__main__":
    ((what, arguments),) = json.loads(sys.argv[1]).items()
    print(json.dumps(globals()[what](**arguments)))
