"""`FederationTree`: what it says of a tree is what the events say, in every form; and what the probe says is so."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lab.events import Branched, Evaluated, Event, from_json, to_json
from lab.recipes.recipe import Recipe
from lab.runs.trainer import Trainer
from tests.support.pictures import branched, check_forms_agree, check_well_formed
from widgets import FederationTree, Lines, Matrix
from widgets.pictures import Note

VIEWS: dict[str, FederationTree] = {
    "whole": FederationTree.of(branched()),
    "long": FederationTree.of(branched(looks=300)),
    "one look": FederationTree.of(branched(looks=1)),
    "no key layers": FederationTree.of(branched(key=False)),
    "nothing held out": FederationTree.of(branched(held_out=False)),
    "nothing yet": FederationTree.of(branched(looks=0)),
}


@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS.keys())
def test_all_forms_are_well_formed_and_agree(view: FederationTree) -> None:
    assert view._dropped is None
    for p in [view.board(), *view.pictures()]:
        check_well_formed(p)
        check_forms_agree(p)


def test_words_and_pictures_say_the_same() -> None:
    said, tree, losses, attention = FederationTree.of(branched(looks=1)).pictures()
    assert isinstance(said, Note)
    assert said.words == (
        "step 10: 4 workers under 3 nodes; on what workers hold out the model of the root has a loss of 2, their own models 1.375 on "
        "average, from 1 to 1.75; of a worker's attention 90% stays with its own key layers; 1 residual found another federation; over links "
        "so far: 0.002 MB of workers, 0.002 MB 1 above"
    )
    assert isinstance(tree, Note)
    assert tree.words.splitlines() == [
        "root (2.000)",
        "· A (1.500) ← residuals of 2 of B",
        "· · workers 0 (1.000), 1 (1.250)",
        "· B (1.750)",
        "· · workers 2 (1.500), 3 (1.750)",
    ]
    assert isinstance(losses, Lines)
    assert {s.name: np.asarray(s.y).tolist() for s in losses.series} == {
        "workers' own": [1.375],
        "root": [2.0],
        "A": [1.5],
        "B": [1.75],
    }
    assert isinstance(attention, Matrix)
    assert [*attention.rows] == ["A", "B", "worker 0", "worker 1", "worker 2", "worker 3"]
    assert np.asarray(attention.values[0], dtype=float) == pytest.approx([0.9, 0.05, 0.05, 0.0])
    assert attention.values[2][2] is None  # a worker has no children


FIELDS = {
    "corpus": "grammar?dialects=4&families=2&tokens=60000&symbols=8",
    "split": "domain",
    "num_workers": 4,
    "clients": {"held_out": 0.2},
    "batch_size": 4,
    "context": 32,
    "steps": 5,
    "eval_every": 4,
    "eval_windows": 8,
    "checkpoint_every": 0,
    "model": {"dim": 16, "num_layers": 3, "num_heads": 2},
}


def looks(method: dict[str, object]) -> tuple[Trainer, list[Event]]:
    trainer = Trainer(Recipe.of(FIELDS | {"method": {"sync_every": 2, "rounds": [2], "tree": "2"} | method}))
    return trainer, [*trainer.events()]


def test_the_probe_scores_what_workers_have() -> None:
    """Right after the root's round the root's loss is the mean over the workers; a worker's model is its parent's with its own layers."""
    trainer, events = looks({"name": "worldlm"})
    told = [e for e in events if isinstance(e, Branched)]
    assert [e.step for e in told] == [e.step for e in events if isinstance(e, Evaluated)] == [4, 5]
    last, before = told[-1], dict(told[0].attention)
    trainer.state.facts["attention"].clear()  # what was told stays
    assert told[0].attention == before != {}
    assert (last.nodes, last.parents, last.parent_W) == (["root", "A", "B"], ["", "root", "root"], ["A", "A", "B", "B"])
    assert all(from_json(to_json(e)) == e for e in told)
    state, data = trainer.state, trainer.setup.data
    assert data is not None
    assert data.held_out is not None
    model = state.shared["node.B"].clone()
    for name in state.local["own"].names():
        model[name][0].copy_(state.local["own"].cell(name, 3))
    model.layout = trainer.fleet.layout
    index = data.held_out.shards[3]
    index = index[np.arange(8) * len(index) // 8] if len(index) > 8 else index
    with torch.no_grad():
        each = data.held_out.by_example(trainer.fleet.whole_model(model), *data.held_out.take(index))["loss"]  # type: ignore[misc]
    assert last.loss_W[3] == pytest.approx(float(each.mean()), rel=1e-5)
    assert sum(last.mass("A").values()) == pytest.approx(1.0)
    assert sum(last.mass(2).values()) == pytest.approx(1.0, rel=1e-5)
    assert {*last.attention} == {"root", "A", "B"}


def test_without_key_layers_workers_have_their_parents_model() -> None:
    _, events = looks({"name": "hierfavg"})
    last = [e for e in events if isinstance(e, Branched)][-1]
    known = [x for x in last.loss_W if x is not None]
    assert last.loss_N[1] == pytest.approx(sum(known[:2]) / 2)
    assert not last.attention
    assert last.routes == {}
    assert isinstance(FederationTree.of(events).pictures()[2], Lines)
