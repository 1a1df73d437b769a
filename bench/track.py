"""What does a tracker cost? The same run with each tracker that is installed, and without, in turns; and what a step of a sink takes."""

from __future__ import annotations

import contextlib
import json
import os
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

from bench.common import SHAPES, child, ratio
from lab.events import Event, Stepped
from lab.recipes.recipe import Recipe
from lab.runs.track import Sink, tracked
from lab.runs.trackers.tracker import TRACKERS, Tracker
from lab.runs.trackers.tracker import tracker as tracker_named
from lab.runs.trainer import Trainer


def own_stores(folder: str) -> None:
    """Each tracker writes into this folder and nowhere else."""
    os.chdir(folder)
    os.environ |= {"TRACKIO_DIR": f"{folder}/trackio", "WANDB_MODE": "offline", "WANDB_DIR": folder}
    os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{folder}/mlflow.db"


def rates(shape: dict[str, Any], tracker: str, blocks: int, seconds: float) -> dict[str, Any]:
    """Steps a second in blocks that take turns: one with the tracker, one without. Two runs of a recipe, one of them tracked.

    The run that is not looked at stands still, and so does the tracker. What begins (a database, a process of the tracker's own) is over
    before the first block that counts.
    """
    recipe = Recipe.of("diloco", []).but(**shape, steps=100_000, eval_every=0, checkpoint_every=0)
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(sys.stderr):
        own_stores(folder)
        gated = Gated(tracker_named(tracker))
        sink = Sink(gated, tracker, recipe.id, False)
        runs = {True: tracked(Trainer(recipe).events(), [sink]), False: tracked(Trainer(recipe).events(), [])}
        out: dict[bool, list[float]] = {True: [], False: []}
        for k in range(2 * blocks + 2):
            with_it = k % 2 == 1
            (gated.gate.set if with_it else gated.gate.clear)()
            began, steps = time.perf_counter(), 0
            while time.perf_counter() - began < seconds:
                steps += isinstance(next(runs[with_it]), Stepped)
            if k >= 2:  # the first two warm up
                out[with_it].append(steps / (time.perf_counter() - began))
        waiting, problems = len(sink._rows), list(sink.problems)
        left_out = sink._left_out
        gated.gate.set()
        for run in runs.values():
            run.close()
    return {"with": out[True], "without": out[False], "waiting": waiting, "left_out": left_out, "problems": problems}


class Gated:
    """A tracker that works while its gate is open, so that what it has to do for one block is not done in the next."""

    def __init__(self, tracker: Tracker):
        self.tracker, self.gate = tracker, threading.Event()
        self.start, self.note, self.finish = tracker.start, tracker.note, tracker.finish

    def log(self, values: Mapping[str, float], step: int) -> None:
        self.gate.wait()
        self.tracker.log(values, step)


class Nothing:
    """A tracker that does nothing: what is left is the sink."""

    def start(self, recipe: Any, name: str, resume: bool) -> int:
        return 0

    def log(self, values: Any, step: int) -> None:
        pass

    def note(self, text: str, step: int, warning: bool) -> None:
        pass

    def finish(self, status: str) -> None:
        pass


def folding(shape: dict[str, Any], steps: int = 200) -> tuple[float, float]:
    """Microseconds that a sink takes of the run's thread for a local step, and microseconds of that step."""
    recipe = Recipe.of("diloco", []).but(**shape, steps=steps, eval_every=0, checkpoint_every=0)
    events: list[Event] = list(Trainer(recipe).events())
    times = []
    for _ in range(5):
        sink = Sink(Nothing(), "nothing", "run", False)
        began = time.perf_counter()
        for event in events:
            sink.add(event)
        times.append((time.perf_counter() - began) / steps)
        sink.close()
    return 1e6 * statistics.median(times), 1e6 * statistics.median(e.seconds for e in events if isinstance(e, Stepped))


def main(blocks: int = 10, seconds: float = 2.0) -> None:
    shapes = {"d=64, 2 layers, context 64, batch 8, 4 workers": {"model": "nano", "num_workers": 4}} | SHAPES
    for name, shape in shapes.items():
        took, step = child("bench.track", what="folding", shape=shape)
        print(f"a sink takes {took:.1f} µs of a step's {step:,.0f} µs ({name})")
        for tracker in TRACKERS:
            if find_spec(tracker) is None:
                print(f"  {tracker} is not installed")
                continue
            seen = child("bench.track", what="rates", shape=shape, tracker=tracker, blocks=blocks, seconds=seconds)
            late = f", {seen['waiting']:,} steps still waited, {seen['left_out']:,} were left out"
            print(f"  {tracker}: throughput with it / without it: {ratio(seen['with'], seen['without'])}{late}")
            for problem in seen["problems"]:
                print(f"    {problem}")


if __name__ == "__main__":
    asked = json.loads(sys.argv[1])
    what = asked.pop("what")
    print(json.dumps({"rates": rates, "folding": folding}[what](**asked)))
