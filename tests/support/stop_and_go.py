"""A run that is stopped after every step in turn and resumed."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lab.events import Ended, Event, Stepped, Warned
from lab.runs.folder import RunFolder
from lab.runs.trainer import Trainer
from tests.support.recipes import corpus
from tests.support.stories import story


def final(trainer: Trainer) -> dict[str, Tensor]:
    return trainer.snapshot()[0]


def stop_and_go(r: Any, folder: Path) -> None:
    """Stop after every step in turn; each time the rest of the run must be that of a run that never stopped.

    What a run that is killed then leaves behind is what its folder holds at that moment.
    """
    whole, written, heard = Trainer(r, corpus=corpus()), RunFolder(folder / "whole"), list[Event]()
    for event in whole.events(written):
        heard.append(event)
        if isinstance(event, Stepped):
            assert written._file is not None
            written._file.flush()  # later lines than the checkpoint's are there, and have to go
            shutil.copytree(written.path, folder / f"stopped-{event.step}")
    told, want = story(heard), final(whole)
    assert isinstance(told[-1], Ended)
    for stop in range(1, r.steps + 1):
        path = folder / f"stopped-{stop}"
        assert RunFolder(path).last_step_saved() == (stop - 1 or None)
        assert any(isinstance(e, Stepped) and e.step == stop for e in RunFolder(path).events())
        again = Trainer(r, corpus=corpus())
        events = list(again.events(RunFolder(path)))
        assert story(events) == told, stop
        assert events == list(RunFolder(path).events())
        notes = [e.message for e in events if isinstance(e, Warned) and "resumed" in e.message]
        assert notes == ([f"resumed after step {stop - 1}"] if stop > 1 else [])
        got = final(again)
        assert got.keys() == want.keys()
        for key in want:
            assert torch.equal(got[key], want[key]), (stop, key)
