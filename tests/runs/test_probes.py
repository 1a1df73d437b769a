"""Probes are a list, see a set-up and never the trainer, and what has memory saves itself."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from lab.engine.checkpoint import Checkpoint, Part, Piece, Rows
from lab.engine.comm import Meeting
from lab.engine.world import OneProcess
from lab.events import Event, Measured, Sent, Stepped, to_bytes
from lab.ground.errors import RecipeError
from lab.methods.local_adam import LocalAdam
from lab.probes.drift import DriftProbe
from lab.probes.evaluation import EvaluationProbe
from lab.probes.measure import NoiseProbe
from lab.probes.probe import Agreed, Probe, Setup
from lab.processes.events import with_all_workers
from lab.runs import build
from lab.runs.folder import RunFolder
from lab.runs.trainer import Trainer
from tests.support.recipes import corpus, recipe
from tests.support.stories import story


class LargestStep(Probe):
    """A look of one's own: the largest change of any parameter since the step before, told every second step."""

    def __init__(self, setup: Setup):
        self.setup, self.averages = setup, 0
        self.before = [x.clone() for x in setup.fleet.params.blocks]

    def due(self, t: int) -> bool:
        return t % 2 == 0

    def before_average(self, meeting: Meeting) -> None:
        self.averages += meeting.state == "params"

    def after_step(self, t: int, agreed: Agreed) -> Iterator[Event]:
        now = self.setup.fleet.params.blocks
        largest = max(float((a - b).abs().max()) for a, b in zip(now, self.before, strict=True))
        self.before = [x.clone() for x in now]
        if self.due(t):
            yield Measured(t, "largest step", {"averages": [self.averages], "all": [largest]})

    def json(self) -> dict[str, Any]:
        return {"largest step": self.averages}

    def load_json(self, values: dict[str, Any], step: int) -> None:
        self.averages = values.get("largest step", 0)  # checkpoints of before this probe do not have it

    def tensors(self) -> Iterable[Piece]:
        return [Piece(f"watch/before {i}", x) for i, x in enumerate(self.before)]

    def wanted(self, keys: Sequence[str]) -> dict[str, Rows]:
        return {key: None for key in keys if key.startswith("watch/before ")}

    def load_tensors(self, tensors: Mapping[str, Tensor], step: int) -> None:
        self.before = [tensors[f"watch/before {i}"] for i in range(len(self.before))]


def test_the_probes_of_a_run_are_a_list_made_from_its_recipe() -> None:
    quiet = Trainer(recipe("local_adam"), corpus=corpus())
    assert list(map(type, quiet.probes)) == [EvaluationProbe, DriftProbe]
    measured = Trainer(recipe("local_adam", metrics=["noise"]), corpus=corpus())
    assert list(map(type, measured.probes)) == [NoiseProbe, EvaluationProbe, DriftProbe]
    assert Trainer(recipe("local_adam"), dry=True).probes == []


def test_a_probe_of_ones_own_looks_and_is_checkpointed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It changes no number; stopped anywhere and resumed, it goes on with what it remembered."""
    r = recipe("local_adam", steps=6, checkpoint_every=3)
    plain = story(Trainer(r, corpus=corpus()).events())
    probes_of = build.probes_of
    monkeypatch.setattr(build, "probes_of", lambda *given: [*probes_of(*given), LargestStep(given[0])])
    whole = story(Trainer(r, corpus=corpus()).events())
    told = [e for e in whole if isinstance(e, Measured)]
    assert [e.step for e in told] == [2, 4, 6]
    assert [e for e in whole if e not in told] == plain
    averages = len({e.step for e in whole if isinstance(e, Sent) and e.state == "params"})
    assert told[-1].values["averages"] == [averages]
    stream = Trainer(r, corpus=corpus()).events(RunFolder(tmp_path))
    next(e for e in stream if isinstance(e, Stepped) and e.step == 4)
    stream.close()  # type: ignore[attr-defined]
    again = story(Trainer(r, corpus=corpus()).events(RunFolder(tmp_path)))
    assert [e for e in again if isinstance(e, Measured)] == told


def test_what_is_to_be_remembered_is_added_in_one_place() -> None:
    """A part that the list of parts has is in every checkpoint, and gets back what it gave."""

    class Diary(Part):
        def __init__(self) -> None:
            self.pages, self.ink = ["first"], torch.arange(3.0)

        def json(self) -> dict[str, Any]:
            return {"pages": self.pages}

        def load_json(self, values: dict[str, Any], step: int) -> None:
            self.pages = values["pages"]

        def tensors(self) -> Iterable[Piece]:
            return [Piece("diary/ink", self.ink)]

        def wanted(self, keys: Sequence[str]) -> dict[str, Rows]:
            return {"diary/ink": None} if "diary/ink" in keys else {}

        def load_tensors(self, tensors: Mapping[str, Tensor], step: int) -> None:
            self.ink = tensors["diary/ink"]

    run, diary = Trainer(recipe("ddp"), corpus=corpus()), Diary()
    run.built.parts.append(diary)
    tensors, extra = run.snapshot()
    kept = {key: x.clone() for key, x in tensors.items()}
    diary.pages, diary.ink = [], torch.zeros(3)
    run.restore(Checkpoint(0, 0, kept, extra))
    assert (diary.pages, diary.ink.tolist()) == (["first"], [0.0, 1.0, 2.0])


def test_a_probe_sees_a_set_up_and_cannot_change_it() -> None:
    (evaluation, _) = Trainer(recipe("ddp"), corpus=corpus()).probes
    assert isinstance(evaluation, EvaluationProbe)
    assert {f.name for f in dataclasses.fields(evaluation.setup)} >= {
        "recipe",
        "fleet",
        "state",
        "comm",
        "world",
        "data",
    }
    with pytest.raises(dataclasses.FrozenInstanceError):
        evaluation.setup.recipe = None  # type: ignore[misc, assignment]


@dataclasses.dataclass(frozen=True)
class Sized:
    """An event of a probe of one's own."""

    step: int
    norm_W: list[float | None]
    kind: ClassVar[str] = "sized"


def test_an_event_that_nobody_could_read_again_is_never_written() -> None:
    with pytest.raises(TypeError, match=r"Sized is no part of lab\.events\.Event: add it there"):
        to_bytes(Sized(1, [1.0]))  # type: ignore[arg-type]


def test_every_list_by_worker_is_joined_with_those_of_other_processes() -> None:
    """Each process gives the values of its own workers; events of any class, and not lists of other things."""

    class SecondOfTwo(OneProcess):
        num = 2

        def all_gather_json(self, value: Any, about_bytes: int = 0) -> list[Any]:
            return [[0, [[0.5, None], [7.0, 8.0]]], value]

    mine: list[Any] = [
        Stepped(3, [None, None, 2.5, None], 1.0, 0.1),
        Sent(3, "all_reduce", "params", (0, 3), {"layers": 8}),
    ]
    joined = with_all_workers([*mine, Sized(3, [None, None, 9.0, 10.0])], [2, 3], SecondOfTwo())  # type: ignore[list-item]
    assert joined == [Stepped(3, [0.5, None, 2.5, None], 1.0, 0.1), mine[1], Sized(3, [7.0, 8.0, 9.0, 10.0])]


def test_a_step_that_returns_no_losses_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LocalAdam, "step", lambda self, s, grad, comm, t: None)
    with pytest.raises(RecipeError, match="step of method local_adam returned no losses: end it with return loss_W"):
        list(Trainer(recipe("local_adam"), corpus=corpus()).events())
