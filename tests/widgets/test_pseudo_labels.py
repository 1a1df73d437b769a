"""`PseudoLabels`: what it says of labels is what the events say, in every form, live or stored; and the probe that writes them."""

from __future__ import annotations

import dataclasses
from functools import partial

import numpy as np
import pytest
import torch

from lab.events import PseudoLabelled, from_json, to_json
from lab.probes.labels import DRAWN, MOST, principal
from lab.recipes.recipe import Recipe
from lab.runs.columns import Columns
from lab.runs.trainer import Trainer
from tests.support.listed import LABELLED
from tests.support.parts import blobs
from tests.support.pictures import check_forms_agree, check_well_formed, pseudo_labelled
from widgets import PseudoLabels
from widgets.graphs import Graph
from widgets.pictures import Lines, Note

LOOK = PseudoLabelled(
    30, 200, 150, 120, 260, 0.25, [[0.5, -0.5, 1, 1], [0.25, 0.5, 0, 2], [-0.5, 0.1, -1, 2]], [[0.4, -0.4, 1]], 0.625
)
VIEWS: dict[str, PseudoLabels] = {
    "whole": PseudoLabels.of(pseudo_labelled()),
    "long": PseudoLabels.of(pseudo_labelled(looks=300, latents=False)),
    "without latents": PseudoLabels.of(pseudo_labelled(latents=False)),
    "one look": PseudoLabels.of(pseudo_labelled(looks=1)),
    "by hand": PseudoLabels.of([LOOK]),
    "no label at all": PseudoLabels.of([dataclasses.replace(LOOK, labelled=0, right=0)]),
    "nothing yet": PseudoLabels.of(pseudo_labelled(looks=0)),
}


@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS.keys())
def test_all_forms_are_well_formed_and_agree(view: PseudoLabels) -> None:
    assert view._dropped is None
    for p in [view.board(), *view.pictures()]:
        check_well_formed(p)
        check_forms_agree(p)


def test_one_sentence_with_numbers_that_are_drawn_below() -> None:
    said, shares, places = PseudoLabels.of(
        [dataclasses.replace(LOOK, step=10, labelled=100, right=70), LOOK]
    ).pictures()
    assert isinstance(said, Note)
    assert said.words == (
        "At step 30, 150 of 200 examples of clients get a label (75.0%), 120 of them the right one (80.0%). The server has taken 260 steps "
        "on its own. Since step 10 the share of right ones has moved by +10.0 points."
    )
    assert isinstance(shares, Lines)
    assert {s.name: [*s.points[1]] for s in shares.series} == {"right": [0.7, 0.8], "with a label": [0.5, 0.75]}
    assert isinstance(places, Graph)
    assert len(places.dots) == 4
    assert [d.value for d in places.dots] == [1, 0, None, 1]
    assert [d.words for d in places.dots[1:3]] == [
        "an example of a client: label 0, true class 2",
        "an example of a client: no label, true class 2",
    ]
    assert [link.name for link in places.links] == ["wrong label"] * 2 + ["anchor of the server"] * 2
    assert (
        places.x
        == "first two principal components: 3 examples, 1 with a wrong label, and 1 anchors; 62% of the variance"
    )
    assert places.dots[1].y < places.dots[0].y  # larger coordinates are further up
    assert places.dots[1].x < places.dots[0].x


def test_where_nobody_gets_a_label_the_line_has_a_gap() -> None:
    view = VIEWS["no label at all"]
    words, shares, _ = view.pictures()
    assert "the right one" not in words.words  # type: ignore[union-attr]
    assert np.isnan(view.accuracy[0])
    assert isinstance(shares, Lines)


def test_a_new_run_begins_anew() -> None:
    view = PseudoLabels.of(pseudo_labelled(looks=4))
    assert len(view.replay(pseudo_labelled(looks=2, latents=False)).step) == 2
    assert view.drawn is None


def test_an_event_reads_back_as_it_was_written() -> None:
    assert from_json(to_json(LOOK)) == LOOK
    assert LOOK.accuracy == 0.8
    assert LOOK.coverage == 0.75


def looked(name: str) -> tuple[Trainer, Columns]:
    recipe = Recipe.of(
        {
            "method": LABELLED[name],
            "data": partial(blobs, num=600, seed=4),
            "model": {"name": "mlp", "hidden": [4]},
            "server": {"labelled": 3},
            "num_workers": 3,
            "steps": 5,
            "eval_every": 4,
            "checkpoint_every": 0,
        }
    )
    trainer = Trainer(recipe)
    return trainer, Columns.of(trainer.events())


@pytest.mark.parametrize("name", ["fedanchor", "fixmatch all"])
def test_a_probe_counts_what_is_right_and_is_small(name: str) -> None:
    """After the first step and every round; all examples again by hand, after the last look."""
    trainer, columns = looked(name)
    looks = columns.pseudo_labelled
    assert [x.step for x in looks] == [1, 2, 4]
    assert looks[-1].server_steps == trainer.state.facts["server_steps"] == 1 + 2
    source = trainer.setup.data.batches.examples  # type: ignore[union-attr]
    every = len(source) / MOST
    index = torch.tensor([int(i * every) for i in range(MOST)])
    inputs, targets = source.take(index)
    with torch.no_grad():
        labels = trainer.recipe.method.labels(trainer.state, trainer.fleet.whole_model(trainer.agreed()), inputs)  # type: ignore[attr-defined]
    assert looks[-1].examples == looks[-1].labelled == MOST
    assert looks[-1].right == int((labels == targets).sum())
    assert [bool(x.points) for x in looks] == ([True, False, True] if name == "fedanchor" else [False] * 3)
    if name == "fedanchor":
        assert len(looks[-1].points) == DRAWN
        assert len(looks[-1].anchors) == 9
        assert max(len(to_json(x)) for x in looks) < 5000


def test_principal_components_are_those_of_the_variance() -> None:
    rng = np.random.default_rng(0)
    z = rng.standard_normal((40, 6)) * np.array([5, 3, 1, 0.5, 0.2, 0.1])
    places, share = principal(z, 30)
    values, axes = np.linalg.eigh(np.cov(z.T, bias=True))
    assert share == pytest.approx(values[-2:].sum() / values.sum())
    for k in (0, 1):
        along = (z - z.mean(0)) @ axes[:, -1 - k]
        assert np.allclose(np.abs(places[:, k]), np.abs(along))
        assert places[30, k] >= 0
    flat, all_of_it = principal(np.zeros((3, 1)), 3)
    assert flat.shape == (3, 2)
    assert all_of_it == 1.0
