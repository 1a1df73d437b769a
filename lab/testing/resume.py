"""A run that is stopped after every step in turn and resumed from its checkpoints, each time as if by another process."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Iterable
from itertools import zip_longest
from pathlib import Path

import torch

from lab.data import Corpus
from lab.events import Event, Started, Stepped, Warned, to_json
from lab.recipes.recipe import Recipe
from lab.runs.folder import RunFolder
from lab.runs.trainer import Trainer
from lab.testing.report import Broken


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


def stop_and_go(recipe: Recipe, folder: Path, corpus: Corpus | None = None) -> None:
    """Stop after every step in turn; each time the rest of the run must be that of a run that never stopped, bit for bit.

    What a run that is killed then leaves behind is what its folder holds at that moment. The method of a resumed run is made anew from
    what the recipe says.

    Raises
    ------
    Broken
        where an event or a tensor differs.
    """
    whole, written, heard = Trainer(recipe, corpus=corpus), RunFolder(folder / "whole"), list[Event]()
    for event in whole.events(written):
        heard.append(event)
        if isinstance(event, Stepped):
            written.flush()  # later lines than the checkpoint's are there, and have to go
            shutil.copytree(written.path, folder / f"stopped-{event.step}")
    told, want = story(heard), whole.snapshot()[0]
    for stop in range(1, recipe.steps + 1):
        if RunFolder(folder / f"stopped-{stop}").last_step_saved() != (stop - 1 or None):
            raise Broken(f"stopped after step {stop}, it has no checkpoint of the step before: set checkpoint_every=1")
        again = Trainer(Recipe.of(recipe.to_dict()), corpus=corpus)
        retold = story(again.events(RunFolder(folder / f"stopped-{stop}")))
        if told != retold:
            raise Broken(f"stopped after step {stop} and resumed: {_differ(told, retold)}")
        got = again.snapshot()[0]
        for key in sorted(got.keys() | want.keys()):
            if key not in got or key not in want or not torch.equal(got[key], want[key]):
                raise Broken(f"stopped after step {stop} and resumed: {key} of the last checkpoint is not the same")


def _differ(told: list[Event], retold: list[Event]) -> str:
    """The first loss that is not the same; if all are, the first event."""
    losses = [[e for e in events if isinstance(e, Stepped)] for events in (told, retold)]
    for one, two in zip(*losses, strict=False):
        for w, (x, y) in enumerate(zip(one.loss_W, two.loss_W, strict=True)):
            if x != y:
                return f"the loss of worker {w} in step {one.step} is {y}, and would have been {x}"
    odd = next((pair for pair in zip_longest(told, retold) if pair[0] != pair[1]), (None, None))
    said = [to_json(e) if e is not None else "nothing" for e in odd]
    at = next((i for i, (a, b) in enumerate(zip(*said, strict=False)) if a != b), min(map(len, said)))
    return " has become ".join(f"… {text[max(0, at - 60) : at + 40]} …" for text in said)
