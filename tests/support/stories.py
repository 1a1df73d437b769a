"""What runs did, to be compared; and waiting for those that go on in the background."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from lab.events import Event, to_json
from lab.testing.resume import story

__all__ = ["PATIENCE", "close_events", "read", "same", "story", "tell", "until"]

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
