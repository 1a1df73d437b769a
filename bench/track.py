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
    """Steps a second, and steps a second of processor time (which others on the machine do not change), in blocks that take turns: one
    with the tracker, one without. Two runs of a recipe, one of them tracked.

    The run that is not looked at stands still, and so does the tracker. What begins (a database, a process of the tracker's own) is over
    before the first block that counts.
    """
    recipe = Recipe.of("diloco", []).but(**shape, steps=100_000, eval_every=0, checkpoint_every=0)
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(sys.stderr):
        own_stores(folder)
        gated = Gated(tracker_named(tracker))
        sink = Sink(gated, tracker, recipe.id, False)
        runs = {True: tracked(Trainer(recipe).events(), [sink]), False: tracked(Trainer(recipe).events(), [])}
        out: dict[bool, list[tuple[float, float]]] = {True: [], False: []}
        for k in range(2 * blocks + 2):
            with_it = k % 2 == 1
            (gated.gate.set if with_it else gated.gate.clear)()
            began, spent, steps = time.perf_counter(), time.process_time(), 0
            while time.perf_counter() - began < seconds:
                steps += isinstance(next(runs[with_it]), Stepped)
            if k >= 2:  # the first two warm up
                both = time.perf_counter() - began, time.process_time() - spent
                out[with_it].append((steps / both[0], steps / both[1]))
        waiting, problems = len(sink._rows), list(sink.problems)
        left_out = sink._left_out
        gated.gate.set()
        for run in runs.values():
            run.close()
    return {"with": out[True], "without": out[False], "waiting": waiting, "left_out": left_out, "problems": problems}


class Gated:
    """A tracker that works while its gate is open, so that what it has to do for one block is not done in the next."""

    def __init__(self, tracker: Tracker):
        self.tracker, self.gate, self.started = tracker, threading.Event(), threading.Event()
        self.note, self.finish = tracker.note, tracker.finish

    def start(self, recipe: Mapping[str, Any], name: str, resume: bool) -> int:
        last = self.tracker.start(recipe, name, resume)
        self.started.set()
        return last

    def log(self, values: Mapping[str, float], step: int) -> None:
        self.gate.wait()
        self.tracker.log(values, step)


def costs(shape: dict[str, Any], tracker: str, steps: int = 400) -> tuple[float, float]:
    """Milliseconds of processor time, threads and processes of the tracker's own included: of a row at the tracker, and of a local step.

    Without a clock on the wall, so that others on the machine do not matter.
    """
    import psutil

    def spent() -> float:
        children = sum(sum(child.cpu_times()[:2]) for child in psutil.Process().children(recursive=True))
        return time.process_time() + children

    recipe = Recipe.of("diloco", []).but(**shape, steps=steps, eval_every=0, checkpoint_every=0)
    began = spent()
    events: list[Event] = list(Trainer(recipe).events())
    of_step = spent() - began
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(sys.stderr):
        own_stores(folder)
        gated = Gated(tracker_named(tracker))
        gated.gate.set()
        sink = Sink(gated, tracker, recipe.id, False)
        sink.add(events[0])
        gated.started.wait()
        began = spent()
        for event in events[1:]:
            sink.add(event)
        sink.close()
        of_row = spent() - began
    return 1e3 * of_row / steps, 1e3 * of_step / steps


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
            row, step = child("bench.track", what="costs", shape=shape, tracker=tracker)
            print(
                f"  {tracker}: a row takes {row:.2f} ms of processor time, a local step {step:.2f} ms: {row / step:.1%}"
            )
            late = f", {seen['waiting']:,} steps still waited, {seen['left_out']:,} were left out"
            wall, cpu = (ratio(*([x[i] for x in seen[which]] for which in ("with", "without"))) for i in (0, 1))
            print(f"  {tracker}: throughput with it / without it: {wall}; of processor time: {cpu}{late}")
            for problem in seen["problems"]:
                print(f"    {problem}")


if __name__ == "__main__":
    asked = json.loads(sys.argv[1])
    what = asked.pop("what")
    print(json.dumps({"rates": rates, "folding": folding, "costs": costs}[what](**asked)))
