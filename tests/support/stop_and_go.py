"""A run that is stopped after every step in turn and resumed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lab.events import Warned
from lab.runs.folder import RunFolder
from lab.testing import resume
from lab.testing.resume import story
from tests.support.recipes import corpus


def stop_and_go(r: Any, folder: Path) -> None:
    """`lab.testing.resume.stop_and_go`, on the text of the tests; and what is on disk then says from where it went on."""
    resume.stop_and_go(r, folder, corpus())
    told = story(RunFolder(folder / "whole").events())
    for stop in range(1, r.steps + 1):
        events = list(RunFolder(folder / f"stopped-{stop}").events())
        assert story(events) == told
        notes = [e.message for e in events if isinstance(e, Warned) and "resumed" in e.message]
        assert notes == ([f"resumed after step {stop - 1}"] if stop > 1 else [])
