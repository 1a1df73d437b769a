"""Does a worker-step cost the same with 64 workers as with 2?"""

from __future__ import annotations

import json
import statistics
import sys

from bench.common import child, take_turns

WORKERS = (2, 8, 32, 64)


def main(rounds: int = 5, seconds: float = 4.0) -> None:
    shape = {"model": "nano", "context": 64, "batch_size": 8}
    seen = take_turns(
        {
            str(w): lambda w=w: child("bench.scaling", shape=shape | {"num_workers": w}, seconds=seconds)
            for w in WORKERS
        },
        rounds,
    )
    per_step = {w: statistics.median(1 / r for r in rates) for w, rates in seen.items()}
    print("cost of one worker-step in a DiLoCo run, relative to 2 workers (d=64, 2 layers, context 64, batch 8):")
    print("  " + ", ".join(f"{w} workers {per_step[w] / per_step['2']:.2f}×" for w in per_step))


if __name__ == "__main__":
    from bench.fleet import whole_run

    arguments = json.loads(sys.argv[1])
    print(json.dumps(whole_run(arguments["shape"], arguments["seconds"])))
