"""Buffers that training moves (BatchNorm): each worker's own, evaluated by their means, and in every checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lab.engine.world import OneProcess
from lab.events import Evaluated, Stepped, Warned
from lab.models import gpt
from lab.probes import buffers
from lab.recipes.recipe import Recipe
from lab.runs.export import trained
from lab.runs.folder import RunFolder
from lab.runs.trainer import Trainer
from tests.support.recipes import TINY, corpus, recipe
from tests.support.stories import story


class Norm(nn.Module):
    """A BatchNorm over all positions, which a GPT gets where it has its dropout."""

    def __init__(self, dim: int):
        super().__init__()
        self.norm = nn.BatchNorm1d(dim, momentum=0.2)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x.flatten(0, 1)).view_as(x)  # type: ignore[no-any-return]


@pytest.fixture
def normed(monkeypatch: pytest.MonkeyPatch) -> Recipe:
    init = gpt.GPTBlock.__init__

    def with_norm(self: gpt.GPTBlock, c: gpt.GPT) -> None:
        init(self, c)
        self.dropout = Norm(c.dim)

    monkeypatch.setattr(gpt.GPTBlock, "__init__", with_norm)
    return recipe("local_sgd", model=TINY, dtype="float32", steps=6, eval_every=3, checkpoint_every=3)


NAME = "blocks.0.dropout.norm.running_mean"


def test_the_model_is_evaluated_with_the_means_of_the_buffers(normed: Recipe) -> None:
    """The first statistics are of no text at all: with them the loss would be that of another model."""
    trainer = Trainer(normed, corpus=corpus())
    events = list(trainer.events())
    own = [dict(m.named_buffers()) for m in trainer.fleet.modules]
    assert all(own[0][NAME].abs().max() > 0 for _ in own)
    assert not torch.equal(own[0][NAME], own[1][NAME])
    model: Any = trainer.fleet.whole_model(trainer.agreed())
    found = dict(model.named_buffers())
    mean = torch.stack([b[NAME] for b in own]).double().mean(0).float()
    assert torch.equal(found[NAME], mean)
    assert int(found[NAME.replace("running_mean", "num_batches_tracked")]) == 12  # it is passed twice a step
    assert torch.equal(found["cos"], trainer.fleet.constants["cos"])
    last = [e for e in events if isinstance(e, Evaluated)][-1]
    with torch.no_grad():
        ids, targets = (torch.cat(part) for part in zip(*trainer.setup.data.validation, strict=True))
        assert last.loss == pytest.approx(float(model.loss(ids, targets)), rel=1e-6)
    (note,) = [e for e in events if isinstance(e, Warned) and "buffers" in e.message]
    assert note.step == 3
    assert "3 buffers that training moves" in note.message
    assert "evaluated with their means" in note.message
    assert all(
        torch.equal(dict(m.named_buffers())[NAME], b[NAME]) for m, b in zip(trainer.fleet.modules, own, strict=True)
    )


def test_a_run_goes_on_with_its_buffers(normed: Recipe, tmp_path: Path) -> None:
    """A resumed run evaluates what one that never stopped evaluates, and what is exported has the means as well."""
    whole = list(story(Trainer(normed, corpus=corpus()).events(RunFolder(tmp_path / "whole"))))
    for event in (events := Trainer(normed, corpus=corpus()).events(RunFolder(tmp_path / "cut"))):
        if isinstance(event, Stepped) and event.step == 5:
            events.close()
    again = Trainer(normed, corpus=corpus())
    assert [e for e in story(again.events(RunFolder(tmp_path / "cut"))) if not isinstance(e, Warned)] == [
        e for e in whole if not isinstance(e, Warned)
    ]
    exported = dict(trained(RunFolder(tmp_path / "cut")).named_buffers())
    assert torch.equal(exported[NAME], dict(again.fleet.whole_model(again.agreed()).named_buffers())[NAME])


def test_who_is_away_has_no_say(normed: Recipe) -> None:
    trainer = Trainer(normed, corpus=corpus())
    list(trainer.events())
    found = buffers.means(trainer.fleet, [True, False, False], OneProcess())
    assert torch.equal(found[NAME], dict(trainer.fleet.modules[0].named_buffers())[NAME])


def test_looking_moves_no_buffer(normed: Recipe) -> None:
    """What is measured along a run takes forward passes of its own, which leave no trace."""
    plain, measured = (
        Trainer(r, corpus=corpus()) for r in (normed, normed.but(metrics=["activations", "noise"], metrics_every=1))
    )
    list(plain.events())
    list(measured.events())
    for one, other in zip(plain.fleet.modules, measured.fleet.modules, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one.buffers(), other.buffers(), strict=True))


def test_models_whose_buffers_stay_say_nothing() -> None:
    trainer = Trainer(recipe(steps=2), corpus=corpus())
    assert not [e for e in trainer.events() if isinstance(e, Warned) and "buffers" in e.message]
    assert trainer.fleet.agreed_buffers == {}
    assert not [key for key in trainer.snapshot()[0] if key.startswith("buffer/")]
