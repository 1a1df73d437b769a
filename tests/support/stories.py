"""What runs did, to be compared; and waiting for those that go on in the background."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from lab.events import Event, Started, Stepped, Warned, to_json


def story(events: Iterable[Event]) -> list[Event]:
    """What a run did: its events without the clock, the machine and what it says about being resumed."""
    told: list[Event] = []
    for event in events:
        if isinstance(event, Stepped):
            event = dataclasses.replace(event, seconds=0.0)
        elif isinstance(event, Started):
            event = dataclasses.replace(event, environment={})
        elif isinstance(event, Warned):
            continue
        told.append(event)
    return told


PATIENCE = 60.0  # seconds


def until(true: Callable[[], bool]) -> None:
    """Wait."""
    deadline = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def tell(events: Iterable[Event], out: Path, name: str) -> None:
    """Write a story as JSON lines."""
    (out / f"{name}.jsonl").write_text("".join(to_json(e) + "\n" for e in story(events)))


def read(out: Path, name: str) -> list[Any]:
    return [json.loads(line) for line in (out / f"{name}.jsonl").read_text().splitlines()]


def same(a: Any, b: Any, tolerance: float) -> bool:
    if isinstance(a, float) and isinstance(b, float):
        return abs(a - b) <= tolerance * max(1.0, abs(a))
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(same(x, y, tolerance) for x, y in zip(a, b, strict=True))
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k], tolerance) for k in a)
    return bool(a == b)


def close_events(a: list[Event], b: list[Event]) -> bool:
    return same([json.loads(to_json(e)) for e in a], [json.loads(to_json(e)) for e in b], 1e-10)
