"""The event log at scale: what writing it takes of a run, and how long a stored run of 100,000 steps takes to open."""

from __future__ import annotations

import json
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from bench.common import child
from lab.events import Ended, Evaluated, Event, Sent, Started, Stepped
from lab.recipes.recipe import Recipe
from lab.runs.columns import Columns
from lab.runs.folder import RunFolder
from lab.runs.trainer import Trainer

STEPS = 100_000
SHAPES: dict[str, dict[str, Any]] = {
    "nano (d=64, 2 layers), 4 workers": {},
    "the smallest there is (d=8, 1 layer), 2 workers": {
        "model": {"dim": 8, "num_layers": 1, "num_heads": 2},
        "num_workers": 2,
        "batch_size": 1,
        "context": 8,
    },
}


def writing(shape: dict[str, Any], steps: int, rounds: int) -> list[float]:
    """The part of the run's time that `RunFolder.append` takes (turning into JSON, writing, flushing), in each round.

    Measured by a clock around every call, in the run itself, so that a busy machine hits both alike.
    """
    recipe = Recipe.of("diloco").but(**shape, steps=steps, eval_every=0, checkpoint_every=0)
    shares = []
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as path:
            folder, spent = RunFolder(path), 0.0
            append = folder.append

            def timed(event: Event, append: Any = append) -> None:
                nonlocal spent
                began = time.perf_counter()
                append(event)
                spent += time.perf_counter() - began

            folder.append = timed  # type: ignore[method-assign]
            began = 0.0
            for event in Trainer(recipe).events(folder):
                if isinstance(event, Stepped) and event.step == 1:  # the first step warms up
                    began, spent = time.perf_counter(), 0.0
            shares.append(spent / (time.perf_counter() - began))
    return shares


def made_up(path: Path, steps: int = STEPS, num_workers: int = 4) -> None:
    """A run folder as a long run leaves it: every step a loss of each worker and a transfer, every thousandth a look."""
    draw = random.Random(0)
    recipe = Recipe.of("ddp").but(steps=steps, num_workers=num_workers)
    folder = RunFolder(path)
    folder.open(recipe)
    folder.append(Started(1, recipe.to_dict(), 1000, [1000] * num_workers, 2048, None, 1.0, {"threads": 2}))
    for t in range(1, steps + 1):
        folder.append(Stepped(t, [6 * draw.random() for _ in range(num_workers)], 1.0, draw.random() / 100))
        groups = {"embedding": 65_536, "attention": 131_072, "mlp": 262_144, "norm": 1024}
        folder.append(Sent(t, "all_reduce", "grads", tuple(range(num_workers)), groups))
        if t % 1000 == 0:
            folder.append(Evaluated(t, 6 * draw.random(), 0.0))
    folder.append(Ended(steps, "done", ""))
    folder.close()


def opening(path: str) -> dict[str, float]:
    """Seconds until a person who opens a stored run sees it, after the imports: read, folded and drawn, by view.

    ``kept`` draws what a notebook keeps: a figure for every choice of the view's menu.
    """
    from widgets import CommunicationBudget, Drift, Losses, SyncCalendar, View, Workers, losses

    def whole(view: type[View], kept: bool) -> float:
        began = time.perf_counter()
        shown = view.of(RunFolder(path).events())
        shown.bundle() if kept else shown.board().svg()
        return time.perf_counter() - began

    began = time.perf_counter()
    losses({"run": Columns.of(RunFolder(path).events())}).svg()
    out = {"columns and their losses": time.perf_counter() - began}
    for view in (Losses, CommunicationBudget, SyncCalendar, Drift, Workers):
        out[f"{view.__name__}, a picture"] = whole(view, False)
        out[f"{view.__name__}, kept"] = whole(view, True)
    return out


def main(rounds: int = 5) -> None:
    for label, shape in SHAPES.items():
        shares = child("bench.live", what="writing", shape=shape, steps=300, rounds=rounds)
        print(f"{label}: writing events takes {statistics.median(shares):.2%} of the run (most: {max(shares):.2%})")
    with tempfile.TemporaryDirectory() as path:
        began = time.perf_counter()
        made_up(Path(path))
        wrote = time.perf_counter() - began
        size = (Path(path) / "events.jsonl").stat().st_size
        print(f"{STEPS:,} steps of 4 workers: {2 * STEPS:,} events, {size / 1e6:.0f} MB, written in {wrote:.2f} s")
        seen = [child("bench.live", what="opening", path=path) for _ in range(rounds)]
    print("read, folded and drawn:")
    for name in seen[0]:
        each = [s[name] for s in seen]
        print(f"  {name}: {statistics.median(each):.2f} s (rounds {min(each):.2f} … {max(each):.2f})")


if __name__ == "__main__":
    arguments = json.loads(sys.argv[1])
    print(json.dumps(globals()[arguments.pop("what")](**arguments)))
