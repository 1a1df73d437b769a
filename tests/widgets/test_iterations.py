"""Iterations of a model's body: what the probe finds by hand, and what `Iterations` says and draws of it."""

from __future__ import annotations

import pytest
import torch

from lab.events import Ended, Evaluated, Iterated, from_json, to_json
from lab.models.abbie import AbbIEModule
from lab.recipes.recipe import Recipe
from lab.runs.trainer import Trainer
from tests.support.pictures import check_forms_agree, check_well_formed, iterated
from widgets import Iterations, Lines
from widgets.pictures import Note

LOOK = Iterated(30, 2, [1, 2, 4], [1.5, 1.25, None], [0.5, 0.25, 0.125, 0.0625], [0.25, 0.75, 0.875, 1.0])
VIEWS = {
    "whole": Iterations.of(iterated()),
    "long": Iterations.of(iterated(looks=300)),
    "one look": Iterations.of(iterated(looks=1)),
    "by hand": Iterations.of([LOOK]),
    "nothing yet": Iterations.of(iterated(looks=0)),
}


@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS.keys())
def test_all_forms_are_well_formed_and_agree(view: Iterations) -> None:
    for p in [view.board(), *view.pictures()]:
        check_well_formed(p)
        check_forms_agree(p)


def test_one_sentence_with_numbers_that_are_drawn_below() -> None:
    said, losses, over_time, change, settled = Iterations.of([LOOK]).pictures()
    assert isinstance(said, Note)
    assert said.words == (
        "Step 30: the loss is 1.5 with 1, 1.25 with 2, none with 4 iterations, least with 2; it was trained with 2. After 2 of 4 the likeliest "
        "token is the final one for 75.0% of targets"
    )
    assert isinstance(losses, Lines)
    assert isinstance(over_time, Lines)
    assert isinstance(change, Lines)
    assert isinstance(settled, Lines)
    assert [list(losses.series[0].x)[:2], list(losses.series[0].y)[:2]] == [[1, 2], [1.5, 1.25]]
    assert over_time.names == ["1 iteration", "2 iterations", "4 iterations"]
    assert list(change.series[0].y) == LOOK.change_K
    assert list(settled.series[0].y) == LOOK.settled_K


def test_an_event_reads_back_as_it_was_written() -> None:
    assert from_json(to_json(LOOK)) == LOOK


def test_the_probe_by_hand() -> None:
    """Losses are those of the model with so many iterations; the change and what has settled are counted token by token."""
    recipe = Recipe.of(
        "abbie",
        [
            "steps=4",
            "method.sync_every=2",
            "eval_every=4",
            "eval_windows=6",
            "batch_size=2",
            "context=16",
            "dtype=float64",
            "schedule.warmup=0",
        ],
    ).but(model={"name": "abbie", "dim": 16, "looks": [1, 2, 5]}, corpus="grammar?tokens=20000")
    trainer = Trainer(recipe)
    events = list(trainer.events())
    (seen,) = [e for e in events if isinstance(e, Iterated)]
    (evaluated,) = [e for e in events if isinstance(e, Evaluated)]
    assert isinstance(events[-1], Ended)
    assert (seen.trained, seen.iterations) == (2, [1, 2, 5])
    assert seen.loss_R[1] == pytest.approx(evaluated.loss)

    module, data = trainer.fleet.whole_model(trainer.agreed()).eval(), trainer.setup.data
    assert isinstance(module, AbbIEModule)
    assert data is not None
    ids, targets = (torch.cat(x) for x in zip(*data.validation, strict=True))
    likeliest, direction = [], []
    with torch.no_grad():
        for r in range(1, 6):
            module.iterations = r
            if r in seen.iterations:
                assert seen.loss_R[seen.iterations.index(r)] == pytest.approx(float(module.loss(ids, targets)))
            likeliest.append(module(ids).argmax(-1).flatten().tolist())
            states = [h / h.norm(dim=-1, keepdim=True) for h, _ in module.states(ids)]
            direction.append(float((states[-1] - states[-2]).norm(dim=-1).mean()))
    assert seen.change_K == pytest.approx(direction)
    tokens = list(zip(*likeliest, strict=True))
    for k in range(5):
        assert seen.settled_K[k] == pytest.approx(sum({*row[k:]} == {row[-1]} for row in tokens) / len(tokens))
