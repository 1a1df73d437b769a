"""`FederationTree`: what it says of a tree is what the events say, in every form; and what the probe says is so."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch

from lab.events import Branched, Evaluated, Event, Sent, from_json, to_json
from lab.recipes.recipe import Recipe
from lab.runs.trainer import Trainer
from tests.support.pictures import branched, check_forms_agree, check_well_formed
from widgets import FederationTree, Lines, Matrix
from widgets.federation_tree import HANDED_IN, RESIDUAL, SILENT
from widgets.graphs import Graph
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
        "so far: 0.002 MB of workers, 0.002 MB 1 level above"
    )
    assert isinstance(tree, Graph)
    assert {d.words for d in tree.dots} == {
        "root: loss 2",
        "A: loss 1.5\nlast handed in at step 10\n5% of its attention goes to root\nresiduals of 2 of B",
        "B: loss 1.75\nlast handed in at step 10\n5% of its attention goes to root",
        "worker 0 of A: loss 1\nlast handed in at step 10\n10% of its attention goes to A",
        "worker 1 of A: loss 1.25\nlast handed in at step 10\n10% of its attention goes to A",
        "worker 2 of B: loss 1.5\nhas not handed in yet\n10% of its attention goes to B",
        "worker 3 of B: loss 1.75\nhas not handed in yet\n10% of its attention goes to B",
    }
    assert [d.label for d in tree.dots][::3] == [["root", "2"], ["0", "1"], ["3", "1.75"]]
    assert tree.x == "lines: who handed in when it last was time; width: attention to the key layers above"
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


def family(nodes: list[str], parents: list[str], parent_W: list[str], **seen: Any) -> Branched:
    """A tree, as it is told at step 40."""
    nothing: dict[str, Any] = {"attention": {}, "attention_W": [{} for _ in parent_W], "routes": {}}
    losses = {"loss_N": [1.23] * len(nodes), "loss_W": [2.34] * len(parent_W)}
    return Branched(40, nodes, parents, parent_W, **losses | nothing | seen)


def drawn(*events: Event) -> Graph:
    graph = FederationTree.of(events).pictures()[1]
    assert isinstance(graph, Graph)
    check_well_formed(graph)
    check_forms_agree(graph)
    return graph


def test_a_line_says_who_handed_in_when_it_last_was_time() -> None:
    """A node with workers and a node below it; nodes have the seats of workers; what is fetched does not count."""
    told = family(["root", "A", "B"], ["", "root", "A"], ["root", "A", "B", "B"])
    sent = [
        Sent(10, "reduce", "params", (0, 1, 2, 3), {"mlp": 8}),
        Sent(10, "gather", "params", (2,), {"mlp": 8}, 1),
        Sent(20, "reduce", "params", (1, 2), {"mlp": 8}),
        Sent(20, "gather", "params", (1,), {"mlp": 8}, 2),
        Sent(21, "broadcast", "params", (0, 1, 2, 3), {"mlp": 8}),
    ]
    graph = drawn(*sent, told)
    ends = {link.points[-1]: link.name for link in graph.links}
    who = [ends.get((dot.x, dot.y)) for dot in graph.dots]  # nodes, then workers
    assert who == [None, HANDED_IN, SILENT, SILENT, HANDED_IN, HANDED_IN, SILENT]
    heights = [dot.y for dot in graph.dots]
    assert heights == pytest.approx([0, 1 / 3, 2 / 3, 1, 1, 1, 1])
    assert {link.name for link in drawn(told).links} == {SILENT}


def test_wider_lines_are_more_attention_and_residuals_go_to_other_branches() -> None:
    shares = [0.0, 0.5, 1.0, 0.25]
    told = family(
        ["root", "A", "B"],
        ["", "root", "root"],
        ["A", "A", "B", "B"],
        attention={"A": {"head": {"own": 0.5, "parent": 0.5}}, "B": {"head": {"own": 1.0, "parent": 0.0}}},
        attention_W=[{"head": [1 - x, x]} for x in shares],
        routes={"A": {"head": [["B", "3"]], "body": [["B", "3"]]}},
    )
    graph = drawn(told)
    at = [(dot.x, dot.y) for dot in graph.dots]
    width = {link.points[-1]: link.width for link in graph.links if link.name == SILENT}
    assert [width[place] for place in at[1:]] == [4.5, 1.0, 1.0, 4.5, 8.0, 3.0]
    (routed,) = [link for link in graph.links if link.name == RESIDUAL]
    assert (routed.points[0], routed.points[-1]) == (at[1], at[-1])


@pytest.mark.parametrize("per_node", [[12], [4, 4, 4], [1] * 12, [13], [2] * 12, [100, 29]], ids=str)
def test_labels_do_not_touch_or_are_left_out_and_it_is_said(per_node: list[int]) -> None:
    names = [f"node-{k}" for k in range(len(per_node))]
    below = [name for name, num in zip(names, per_node, strict=True) for _ in range(num)]
    graph = drawn(family(["root", *names], ["", *["root"] * len(names)], below))
    num, workers = sum(per_node), [d for d in graph.dots if d.below]
    assert len(workers) == (num if num <= 128 else 0)
    assert all(d.label for d in workers) == (num <= 12 or num > 128)
    assert (f"{num} workers have no label" in graph.x) == (12 < num <= 128)
    assert (f"{num} workers are not drawn" in graph.x) == (num > 128)
    unnamed = sum(not d.label for d in graph.dots if not d.below)
    assert (f"{unnamed} nodes have no label" in graph.x) == bool(unnamed)
    room = 600 - 24 - 78  # pixels for what is drawn, and 6.8 of a letter
    taken = []
    for d in graph.dots:
        wide = 6.8 * max(map(len, d.label), default=0)
        left, right = (-wide / 2, wide / 2) if d.below else (-8, (12 if d.label else 8) + wide)
        if d.label:
            taken.append((d.y, room * d.x + left, room * d.x + right))
    for (y, _, end), (other, begin, _) in pairwise(sorted(taken)):
        assert y != other or begin > end
    assert max(end for *_, end in taken) <= 600 - 24 - 60  # the colour bar begins after it


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
