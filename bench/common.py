"""Measuring on a machine that others use too: the things compared take turns, each in a process of its own."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

SHAPES = {
    "d=128, 4 layers, context 128, batch 16, 4 workers": {
        "model": "micro",
        "context": 128,
        "batch_size": 16,
        "num_workers": 4,
    },
    "d=64, 2 layers, context 64, batch 8, 32 workers": {
        "model": "nano",
        "context": 64,
        "batch_size": 8,
        "num_workers": 32,
    },
}


def child(module: str, **arguments: Any) -> Any:
    """Call ``module.<what>(**arguments)`` in a fresh process and read the JSON that it prints last."""
    command = [sys.executable, "-m", module, json.dumps(arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def take_turns(candidates: dict[str, Any], rounds: int = 5) -> dict[str, list[float]]:
    """Measure every candidate once per round, so that a busy minute hits all of them."""
    seen: dict[str, list[float]] = {name: [] for name in candidates}
    for k in range(rounds):
        names = list(candidates) if k % 2 == 0 else list(candidates)[::-1]
        for name in names:
            seen[name].append(candidates[name]())
    return seen


def ratio(a: Sequence[float], b: Sequence[float]) -> str:
    """Median of the ratios of each round, and their range."""
    each = [x / y for x, y in zip(a, b, strict=True)]
    return f"{statistics.median(each):.2f}× (rounds {min(each):.2f} … {max(each):.2f})"
