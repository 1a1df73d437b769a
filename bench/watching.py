"""What does it cost to be watched? All five views of one run, fed and drawn as in a notebook, and one update of long lines."""

from __future__ import annotations

import contextlib
import io
import json
import statistics
import sys
import threading
import time
from collections.abc import Sequence
from typing import Any

import zmq
from jupyter_client.session import Session

from bench.common import SHAPES, child, ratio
from lab.events import Drifted, Evaluated, Event, Sent, Started, Stepped
from lab.probes.drift import DriftProbe
from lab.recipes.recipe import Recipe
from lab.runs.trainer import Trainer
from widgets import CommunicationBudget, Drift, Losses, SyncCalendar, View, Workers
from widgets.canvas import Canvas
from widgets.view import RATE, Screen

POINTS = 10_000


class Wire:
    """Sends as a kernel does: JSON, a signature and a socket; and counts."""

    def __init__(self) -> None:
        self.session = Session(key=b"secret")
        self.socket = zmq.Context.instance().socket(zmq.PUB)
        self.socket.bind_to_random_port("tcp://127.0.0.1")
        self.bytes = 0

    def send(self, content: dict[str, Any], buffers: Sequence[bytes] = ()) -> None:
        message = {"comm_id": "0" * 32, "data": {"method": "custom", "content": content}}
        sent = self.session.send(self.socket, "comm_msg", message, buffers=list(buffers))
        self.bytes = len(json.dumps(sent["content"])) + sum(map(len, buffers))


def views(recipe: Recipe) -> list[View]:
    """All of them, each on a canvas that sends."""
    made = [Losses(), CommunicationBudget(recipe, budget="1 GB"), SyncCalendar(recipe), Drift(), Workers(recipe)]
    for view in made:
        with contextlib.redirect_stdout(io.StringIO()):  # where a terminal would name the widget
            view._screen = Screen("live")
        view._screen.canvas.send = Wire().send
    return made


def watched(shape: dict[str, Any], blocks: int, seconds: float) -> dict[str, Any]:
    """One run: blocks in which a pump feeds all views, as a run in a notebook does, take turns with blocks in which nobody looks."""
    recipe = Recipe.of("diloco", []).but(**shape, steps=100_000, eval_every=0, checkpoint_every=0)
    seen, batch = views(recipe.but(steps=1000)), list[Event]()
    lock, on, over = threading.Lock(), threading.Event(), threading.Event()
    spent = [0.0]

    def pump() -> None:
        while not over.wait(1 / RATE):
            if not on.is_set():
                continue
            with lock:
                now = batch.copy()
                batch.clear()
            began = time.thread_time()
            for view in seen:
                view.add(*now)
            spent[0] += time.thread_time() - began

    thread = threading.Thread(target=pump, daemon=True)
    thread.start()
    rates: dict[bool, list[float]] = {True: [], False: []}
    events = Trainer(recipe).events()
    batch.append(next(e for e in events if isinstance(e, Started)))
    for k in range(2 * blocks + 2):
        looked_at = k % 2 == 1
        (on.set if looked_at else on.clear)()
        began, steps = time.perf_counter(), 0
        while time.perf_counter() - began < seconds:
            event = next(events)
            steps += isinstance(event, Stepped)
            if looked_at:
                with lock:
                    batch.append(event)
        if k >= 2:  # the first two warm up
            rates[looked_at].append(steps / (time.perf_counter() - began))
    over.set()
    thread.join()
    return {"watched": rates[True], "alone": rates[False], "share": spent[0] / ((blocks + 1) * seconds)}


def stream(steps: int, num_workers: int = 4) -> list[Event]:
    """A made-up run that sends in every step."""
    recipe = Recipe.of("ddp", [f"steps={steps}", f"num_workers={num_workers}", "schedule.warmup=0"]).to_dict()
    out: list[Event] = [Started(1, recipe, 10, [10] * num_workers, 64, None, 1.0, {"threads": 2})]
    for t in range(1, steps + 1):
        out.append(Stepped(t, [2 + 3 / t + w / 10 for w in range(num_workers)], 1.0, 0.01))
        out.append(Sent(t, "all_reduce", "grads", tuple(range(num_workers)), {"mlp": 1000}))
        if t % 10 == 0:
            out += [Drifted(t, [0.1] * num_workers, [None] * num_workers), Evaluated(t, 2 + 3 / t, 0.0)]
    return out


def updates() -> dict[str, tuple[float, int]]:
    """Kernel milliseconds (median) and bytes (most) of a drawing with 50 new points, at 10 000 points a line."""
    out = {}
    events = stream(POINTS + 2000)
    for view in (Losses(), Losses("seconds on 10Mbit"), CommunicationBudget(), SyncCalendar(), Drift(), Workers()):
        canvas, wire = Canvas(), Wire()
        canvas.send = wire.send
        times, sizes = [], []
        for event in events:
            if isinstance(event, view.reads):
                view.fold(event)
            step = getattr(event, "step", 0)
            if isinstance(event, Sent) and step >= POINTS and step % 50 == 0:
                began = time.perf_counter()
                canvas.draw(view.board())
                times.append(time.perf_counter() - began)
                sizes.append(wire.bytes)
        name = type(view).__name__ + (f" ({view.x})" if isinstance(view, Losses) else "")
        out[name] = 1e3 * statistics.median(times[1:]), max(sizes[1:])
    return out


def look(shape: dict[str, Any]) -> tuple[float, float]:
    """Milliseconds of a step, and of a look at how far the workers are apart."""
    trainer = Trainer(Recipe.of("diloco", []).but(**shape, steps=40, eval_every=0, checkpoint_every=0))
    steps = [e.seconds for e in trainer.events() if isinstance(e, Stepped)]
    watch, times = DriftProbe(trainer.setup), []
    for t in range(1, 21):
        began = time.perf_counter()
        watch.look(t)
        times.append(time.perf_counter() - began)
    return 1e3 * statistics.median(steps), 1e3 * statistics.median(times)


def main(blocks: int = 8, seconds: float = 3.0) -> None:
    shapes = {"d=64, 2 layers, context 64, batch 8, 4 workers": {"model": "nano", "num_workers": 4}} | SHAPES
    for name, shape in shapes.items():
        seen = child("bench.watching", what="watched", shape=shape, blocks=blocks, seconds=seconds)
        print(
            f"a run watched by all views / the same run with nobody looking ({name}): {ratio(seen['watched'], seen['alone'])}"
        )
        print(f"  the views took {seen['share']:.1%} of one core")
        step, once = child("bench.watching", what="look", shape=shape)
        print(f"  one look at the drift: {once:.2f} ms, {once / step:.1%} of a step")
    for name, (milliseconds, num_bytes) in child("bench.watching", what="updates").items():
        print(f"one update at {POINTS:,} points a line, {name}: {milliseconds:.2f} ms, {num_bytes:,} bytes")


if __name__ == "__main__":
    asked = json.loads(sys.argv[1])
    what = asked.pop("what")
    print(json.dumps({"watched": watched, "updates": updates, "look": look}[what](**asked)))
