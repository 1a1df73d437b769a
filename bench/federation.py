"""Rounds a second of a federation, and its memory, as clients become many; against a plain loop, and against others where installed.

50 clients a round of 100, 1,000 and 10,000; an MLP 64-128-10 on handwritten digits, 20 examples of each client's own, 5 local steps of 10
examples, SGD, the mean of their parameters. The plain loop loads, trains and averages one sampled client after another. Others are measured where ``ISTHMUS_PEERS`` names a
Python that has them (``pip install 'flwr[simulation]' pfl``).
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from bench.common import child, ratio, take_turns
from lab.recipes.recipe import Recipe
from lab.runs.build import build
from lab.runs.folder import RunFolder
from lab.runs.trainer import Trainer

ROWS, STEPS, BATCH, EXAMPLES = 50, 5, 10, 20
COUNTS = (100, 1_000, 10_000)


def recipe(clients: int, rounds: int = 1_000_000) -> Recipe:
    return Recipe.of(
        {
            "method": {"name": "local_sgd", "sync_every": STEPS, "inner": {"name": "SGD", "lr": 0.1}, "max_norm": None},
            "model": {"name": "mlp", "hidden": [128]},
            "data": {"name": "digits", "image": False},
            "split": f"draw:{EXAMPLES}",
            "num_workers": ROWS,
            "clients": {"num": clients},
            "steps": rounds * STEPS,
            "batch_size": BATCH,
            "eval_every": 0,
            "checkpoint_every": 0,
            "schedule": {"warmup": 0},
        }
    )


def lab(clients: int) -> Iterator[None]:
    """Through the trainer: events and ledger written to disk."""
    with tempfile.TemporaryDirectory() as folder:
        done = 0
        for event in Trainer(recipe(clients, 4_000)).events(RunFolder(folder)):
            if event.kind == "stepped":
                done += 1
                if done % STEPS == 0:
                    yield


def plain(clients: int) -> Iterator[None]:
    """One module, one client after another, everything in memory, nothing counted or written; one thread, which is its best here."""
    torch.set_num_threads(1)
    data = build(recipe(clients, 4_000)).setup.data
    assert data is not None
    batches = [[data.batches.get(c, t) for t in range(1, 1 + EXAMPLES // BATCH)] for c in range(clients)]
    own = [[torch.cat(x) for x in zip(*of_client, strict=True)] for of_client in batches]
    net = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))
    params = list(net.parameters())
    shared = [p.detach().clone() for p in params]
    optimizer = torch.optim.SGD(params, lr=0.1, fused=True)
    draws = torch.Generator().manual_seed(0)
    while True:
        total = [torch.zeros_like(x) for x in shared]
        for client in torch.randperm(clients, generator=draws)[:ROWS].tolist():
            with torch.no_grad():
                torch._foreach_copy_(params, shared)
            inputs, targets = own[client]
            for k in range(STEPS):
                if k % (EXAMPLES // BATCH) == 0:
                    order = torch.randperm(EXAMPLES, generator=draws)
                at = order[k % 2 * BATCH : (k % 2 + 1) * BATCH]
                optimizer.zero_grad()
                F.cross_entropy(net(inputs[at]), targets[at]).backward()
                optimizer.step()
            torch._foreach_add_(total, [p.detach() for p in params], alpha=1 / ROWS)
        shared = total
        yield


def rate(what: str, clients: int, seconds: float) -> dict[str, float]:
    """Rounds a second, and the peak of memory that this process has of its own, in a fresh process."""
    rounds = globals()[what](clients)
    for _ in range(120):  # until nothing changes any more
        next(rounds)
    began, count = time.perf_counter(), 0
    while count < 3 or time.perf_counter() - began < seconds:
        next(rounds)
        count += 1
    took = time.perf_counter() - began
    return {"rate": count / took, "peak": float(peak_bytes())}


def peak_bytes() -> int:
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def log_bytes(clients: int, rounds: int = 40) -> float:
    """Bytes of events a round."""
    with tempfile.TemporaryDirectory() as folder:
        for _ in Trainer(recipe(clients, rounds)).events(RunFolder(folder)):
            pass
        return (Path(folder) / "events.jsonl").stat().st_size / rounds


def others() -> dict[str, Callable[[], dict[str, float]]]:
    """Those that the Python named by ``ISTHMUS_PEERS`` has: flwr, pfl. Each in a process of its own."""
    python = os.environ.get("ISTHMUS_PEERS")
    if not python:
        return {}

    def run(name: str, rounds: int) -> dict[str, float]:
        command = [python, str(Path(__file__).parent / "peers" / f"with_{name}.py"), "100", str(rounds)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(done.stderr)
        return dict(json.loads(done.stdout.splitlines()[-1]))

    return {"pfl": lambda: run("pfl", 60), "flower": lambda: run("flower", 10)}


def main(rounds: int = 5, seconds: float = 4.0) -> None:
    candidates: dict[str, Any] = {
        f"lab {n:,}": partial(child, "bench.federation", what="lab", clients=n, seconds=seconds) for n in COUNTS
    }
    candidates["plain loop 100"] = partial(child, "bench.federation", what="plain", clients=100, seconds=seconds)
    candidates |= others()
    seen: dict[str, list[Any]] = take_turns(candidates, rounds)
    for name, found in seen.items():
        per_second = statistics.median(x["rate"] for x in found)
        peak = statistics.median(x["peak"] for x in found) / 1e6
        print(f"{name}: {per_second:.1f} rounds/s, peak {peak:,.0f} MB")
    rates = {name: [x["rate"] for x in found] for name, found in seen.items()}
    peaks = {name: [x["peak"] for x in found] for name, found in seen.items()}
    few, many = f"lab {COUNTS[0]:,}", f"lab {COUNTS[-1]:,}"
    print(f"  seconds a round, {COUNTS[-1]:,} clients / {COUNTS[0]:,}: {ratio(rates[few], rates[many])}")
    print(f"  peak memory, {COUNTS[-1]:,} clients / {COUNTS[0]:,}: {ratio(peaks[many], peaks[few])}")
    print(
        f"  events a round, {COUNTS[-1]:,} clients / {COUNTS[0]:,}: {log_bytes(COUNTS[-1]) / log_bytes(COUNTS[0]):.3f}×"
    )
    for name in [*rates][len(COUNTS) :]:
        print(
            f"  lab / {name}: rounds/s {ratio(rates[few], rates[name])}, peak memory {ratio(peaks[few], peaks[name])}"
        )


if __name__ == "__main__":
    print(json.dumps(rate(**json.loads(sys.argv[1]))))
