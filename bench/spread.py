"""Simulating over several processes of one thread each ÷ in one process with as many threads: seconds of the same steps."""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from lab.events import Stepped
from lab.recipes.recipe import Recipe
from lab.runs import child
from lab.runs.folder import RunFolder
from lab.runs.launch import prepare

SHAPES = {
    "nano, context 64, batch 4": ["model=nano", "context=64", "batch_size=4"],
    "micro, context 128, batch 8": ["model=micro", "context=128", "batch_size=8"],
}
ROUNDS, WARM_UP = 3, 8


def seconds(recipe: Recipe, processes: int) -> float:
    """Of a step, the mean over all but the first ones, in a fresh command."""
    with tempfile.TemporaryDirectory() as path:
        folder = RunFolder(Path(path) / "run")
        prepare(folder, recipe, processes)
        command = child.command("lab", "resume", str(folder.path), "--processes", str(processes))
        subprocess.run(command, check=True, capture_output=True)
        return statistics.mean([e.seconds for e in folder.events() if isinstance(e, Stepped)][WARM_UP:])


def main(processes: int = 2) -> None:
    for shape, options in SHAPES.items():
        for method in ("des_loc", "ddp"):
            for workers in (2, 8):
                steps = WARM_UP + 24
                more = ["corpus=grammar?tokens=100000", f"num_workers={workers}", f"steps={steps}", "eval_every=0"]
                recipe = Recipe.of(method, [*options, *more, "checkpoint_every=0"])
                rounds = [(seconds(recipe, 1), seconds(recipe, processes)) for _ in range(ROUNDS)]
                ratios = [several / one for one, several in rounds]
                print(
                    f"{method:<8} {shape}, {workers} workers: {processes} processes / 1 process = {statistics.median(ratios):.2f}× "
                    f"({min(ratios):.2f} … {max(ratios):.2f}; one process: {statistics.median([a for a, _ in rounds]) * 1000:.0f} ms "
                    "a step)",
                    flush=True,
                )


if __name__ == "__main__":
    main(*(int(x) for x in sys.argv[1:]))
