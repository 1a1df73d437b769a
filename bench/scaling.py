"""Does a worker-step cost the same with 64 workers as with 2?"""

from __future__ import annotations

import json
import sys

from bench.common import child, ratio
from bench.fleet import rate, whole_run

WORKERS = (2, 8, 32, 64)


def measure(workers: list[int], seconds: float, rounds: int) -> list[list[float]]:
    """Tokens per second of each fleet; they take turns inside one process."""
    shape = {"model": "nano", "context": 64, "batch_size": 8}
    runs = [whole_run(shape | {"num_workers": w}) for w in workers]
    for steps in runs:
        rate(steps, 1.0)  # warm up
    return [[rate(steps, seconds) for steps in runs] for _ in range(rounds)]


def main(rounds: int = 8, seconds: float = 1.5) -> None:
    seen = child("bench.scaling", workers=WORKERS, seconds=seconds, rounds=rounds)
    print("cost of one worker-step in a DiLoCo run, relative to 2 workers (d=64, 2 layers, context 64, batch 8):")
    by_count = list(zip(*seen, strict=True))
    print("  " + ", ".join(f"{w} workers {ratio(by_count[0], by_count[k])}" for k, w in enumerate(WORKERS) if k))


if __name__ == "__main__":
    print(json.dumps(measure(**json.loads(sys.argv[1]))))
