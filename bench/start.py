"""From the command to the first step, with the tokenised text in the cache."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def first_step_seconds() -> float:
    """Start ``lab run`` and wait until the first step stands in the event stream."""
    with tempfile.TemporaryDirectory() as runs:
        command = [sys.executable, "-m", "lab.cli", "run", "diloco", "-o", "steps=100000", "--runs", runs]
        began = time.perf_counter()
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            while True:
                for events in Path(runs).glob("*/events.jsonl"):
                    if '"kind":"stepped"' in events.read_text():
                        return time.perf_counter() - began
                time.sleep(0.01)
        finally:
            process.kill()
            process.wait()


def main() -> None:
    first_step_seconds()
    seen = [first_step_seconds() for _ in range(5)]
    bare = [_seconds([sys.executable, "-c", "import torch"]) for _ in range(5)]
    helps = [_seconds([sys.executable, "-m", "lab.cli", "--help"]) for _ in range(5)]
    print(
        f"lab run, command to first step: {statistics.median(seen):.2f} s "
        f"(of which importing torch {statistics.median(bare):.2f} s); ratio {statistics.median(seen) / statistics.median(bare):.2f}×"
    )
    print(f"lab --help: {statistics.median(helps):.2f} s")


def _seconds(command: list[str]) -> float:
    began = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began


if __name__ == "__main__":
    print(json.dumps(first_step_seconds()))
