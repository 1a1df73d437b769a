"""Scores by client: against each client's examples looked at one by one, and without a trace in the run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lab.data.shards import Portion
from lab.events import ClientsScored, Event, Seated, Sent, Stepped, from_json, to_json
from lab.probes import fairness
from lab.probes.fairness import means, sample, spread
from lab.recipes.recipe import Recipe
from lab.runs import build
from lab.runs.columns import Columns
from lab.runs.folder import RunFolder
from lab.runs.track import Fold
from lab.runs.trainer import Trainer
from tests.support.parts import blobs
from tests.support.recipes import corpus, recipe
from tests.support.stop_and_go import stop_and_go

HEAD = ("2.*",)


def federation(**changes: Any) -> Recipe:
    """12 clients with 8 examples each, two of them held out, of whom 3 take part in a round of two local steps."""
    base: dict[str, Any] = {
        "method": {"name": "local_sgd", "sync_every": 2},
        "model": "tests.support.parts:net",
        "data": "tests.support.parts:blobs",
        "split": "draw:8:0.5",
        "num_workers": 3,
        "clients": {"num": 12, "held_out": 0.25, "personal": HEAD},
        "steps": 13,
        "batch_size": 3,
        "dtype": "float64",
        "eval_every": 4,
        "checkpoint_every": 1,
    }
    return Recipe.of(base | changes)


def scored(events: list[Event]) -> list[ClientsScored]:
    return [e for e in events if isinstance(e, ClientsScored)]


def by_hand(trainer: Trainer, client: int, own: dict[str, Tensor]) -> tuple[float, float]:
    """Loss and accuracy of the agreed model, with some parameters of a client's own, on what the client holds out."""
    data = trainer.setup.data
    assert data is not None
    assert data.held_out is not None
    agreed = trainer.agreed()
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 3))
    model.load_state_dict({name: own.get(name, agreed[name][0]) for name in model.state_dict()}, assign=True)
    index = torch.from_numpy(data.held_out.shards[client])
    x, y = blobs().train.inputs[index].double(), blobs().train.targets[index]
    with torch.no_grad():
        return float(nn.functional.cross_entropy(model(x), y)), float((model(x).argmax(1) == y).double().mean())


def heads(trainer: Trainer) -> dict[int, dict[str, Tensor]]:
    """What every client that had a turn keeps of its head: in its row, or in the store."""
    seating, fleet = trainer.built.roll_call.seating, trainer.fleet
    assert seating is not None
    found = {}
    (i,) = [i for i, b in enumerate(fleet.layout.blocks) if b.personal]
    block = fleet.layout.blocks[i]
    for client, kept in seating.store.get(range(12)).items():
        weight, bias = kept[f"params/{i}"].split([24, 3])
        found[client] = {"2.weight": weight.view(3, 8), "2.bias": bias}
    for w, client in enumerate(trainer.state.clients_W):
        found[client] = {name: fleet.params.cell(name, w).clone() for name in block.names}
    return found


@pytest.mark.parametrize("changes", [{}, {"scored": 5}, {"personal": ()}])
def test_every_score_is_that_of_a_clients_own_examples(changes: dict[str, Any]) -> None:
    r = federation()
    trainer = Trainer(r.but(clients=r.to_dict()["clients"] | changes))
    last = scored(list(trainer.events()))[-1]
    personal, whom = changes.get("personal", HEAD), sample(12, changes.get("scored", 256), r.seed)
    assert last.step == 13
    shared = {c: by_hand(trainer, c, {}) for c in range(12)}
    for k, name in enumerate(("loss", "accuracy")):
        want = np.array([shared[c][k] for c in whom])
        assert last.shared[name]["num"] == len(whom)
        assert last.shared[name]["mean"] == pytest.approx(want.mean())
        assert last.shared[name]["std"] == pytest.approx(want.std())
        assert last.shared[name]["p0"] == pytest.approx(want.min())
        assert last.shared[name]["p75"] == pytest.approx(np.percentile(want, 75))
        assert last.shared_C[name] == pytest.approx([shared[c][k] for c in last.clients])
    assert last.clients == trainer.state.clients_W
    if not personal:
        assert last.own == last.gain == last.own_C == {}
        return
    own = {c: by_hand(trainer, c, head) for c, head in heads(trainer).items()}
    assert {*last.clients} < own.keys()
    for k, (name, sign) in enumerate((("loss", -1), ("accuracy", 1))):
        there = [c for c in whom if c in own]
        want = np.array([own[c][k] for c in there])
        assert last.own[name]["num"] == last.gain[name]["num"] == len(there)
        assert last.own[name]["mean"] == pytest.approx(want.mean())
        gain = sign * (want - [shared[c][k] for c in there])
        assert last.gain[name]["p50"] == pytest.approx(np.median(gain))
        assert last.gain[name]["share"] == pytest.approx((gain > 0).mean())
        assert last.own_C[name] == pytest.approx([own[c][k] for c in last.clients])


def test_a_distribution_by_hand() -> None:
    values = np.array([3.0, np.nan, *range(4, 22), 1.0, 2.0])  # 1 … 21
    losses, accuracies = spread(values, low_is_good=True), spread(values, low_is_good=False)
    assert losses["num"] == 21
    assert losses["worst_tenth"] == 20.0  # of 21, 20, 19
    assert accuracies["worst_tenth"] == 2.0
    assert (losses["p0"], losses["p5"], losses["p50"], losses["p95"], losses["p100"]) == (1.0, 2.0, 11.0, 20.0, 21.0)
    assert (losses["mean"], losses["std"]) == (11.0, pytest.approx(np.sqrt(440 / 12)))
    assert spread(np.array([np.nan]), low_is_good=True) == {"num": 0}
    owner = np.array([0, 2, 2, 0, 3])
    np.testing.assert_array_equal(
        means(np.array([1.0, 4.0, np.nan, 2.0, np.nan]), owner, 4), [1.5, np.nan, 4.0, np.nan]
    )


def test_whom_it_looks_at_is_drawn_once() -> None:
    assert sample(12, 0, 0).tolist() == sample(12, 12, 0).tolist() == list(range(12))
    some = sample(10**7, 100, 3)
    assert len({*some.tolist()}) == 100
    assert (np.diff(some) > 0).all()
    assert np.array_equal(some, sample(10**7, 100, 3))
    assert not np.array_equal(some, sample(10**7, 100, 4))


def test_nobody_trains_on_what_it_holds_out() -> None:
    data = Trainer(federation()).setup.data
    assert data is not None
    assert data.held_out is not None
    order = data.batches.order  # type: ignore[attr-defined]
    for client in range(12):
        trained = {i for t in range(1, 30) for i in order.items(client, t).tolist()}
        held_out = {*data.held_out.shards[client].tolist()}
        assert held_out
        assert not trained & held_out
        assert len(trained) == data.samples_W[client]


def test_looking_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def told() -> list[Any]:
        events = Trainer(federation()).events()
        return [e.loss_W if isinstance(e, Stepped) else e for e in events if isinstance(e, Stepped | Sent)]

    with_it = told()
    probes_of = build.probes_of
    kinds = lambda *given: [p for p in probes_of(*given) if not isinstance(p, fairness.FairnessProbe)]  # noqa: E731
    monkeypatch.setattr(build, "probes_of", kinds)
    assert told() == with_it


def test_the_agreed_model_is_scored_in_one_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many clients there are; and their indices are worked out once."""
    passes: list[int] = []
    of: list[int] = []
    by_example, one = type(blobs()).by_example, Portion.of
    monkeypatch.setattr(
        type(blobs()), "by_example", lambda s, m, x, y: (passes.append(len(x)), by_example(s, m, x, y))[1]
    )
    monkeypatch.setattr(Portion, "of", lambda s, c: (of.append(c) if s.held_out else None, one(s, c))[1])
    clients = {"num": 200, "held_out": 0.5, "scored": 0}
    events = list(Trainer(federation(split="draw:4", clients=clients, eval_every=5)).events())
    assert [e.shared["loss"]["num"] for e in scored(events)] == [200] * 3
    assert passes == [400] * 3
    assert sorted(of) == list(range(200))


def test_a_task_without_scores_by_example_is_asked_for_each_client(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = scored(list(Trainer(federation()).events()))
    monkeypatch.delattr(type(blobs()), "by_example")
    one_by_one = scored(list(Trainer(federation()).events()))
    assert len(whole) == len(one_by_one) == 4
    for a, b in zip(whole, one_by_one, strict=True):
        assert b.shared.keys() > a.shared.keys() == {"loss", "accuracy"}  # the others of the task as well
        for name in a.shared:
            assert b.shared[name] == pytest.approx(a.shared[name])
            assert b.own[name] == pytest.approx(a.own[name])
            assert b.shared_C[name] == pytest.approx(a.shared_C[name])


def test_of_text_a_client_has_windows_of_its_own() -> None:
    r = recipe("local_sgd", clients={"num": 7, "held_out": 0.2}, checkpoint_every=0, eval_windows=3)
    trainer = Trainer(r, corpus=corpus())
    last = scored(list(trainer.events()))[-1]
    data = trainer.setup.data
    assert data is not None
    assert data.held_out is not None
    model = trainer.fleet.whole_model(trainer.agreed())
    want = []
    for client in range(7):
        index = data.held_out.shards[client]
        assert len(index) > 3  # of which three are looked at
        ids, targets = data.held_out.take(index[np.arange(3) * len(index) // 3])
        want.append(float(model.loss(ids, targets)))  # type: ignore[operator]
    assert last.shared["loss"]["mean"] == pytest.approx(np.mean(want))
    assert last.shared_C["loss"] == pytest.approx([want[c] for c in last.clients])


def test_workers_hold_out_as_well() -> None:
    """Where all take part all the time, each worker is a client."""
    r = federation(clients={"held_out": 0.25, "personal": HEAD}, steps=4)
    trainer = Trainer(r)
    (last,) = scored(list(trainer.events()))
    assert last.clients == [0, 1, 2]
    block = next(b for b in trainer.fleet.layout.blocks if b.personal)
    for w in range(3):
        head = {name: trainer.fleet.params.cell(name, w).clone() for name in block.names}
        assert (last.own_C["loss"][w], last.own_C["accuracy"][w]) == pytest.approx(by_hand(trainer, w, head))


def test_where_each_worker_ends_with_a_model_of_its_own_that_is_scored() -> None:
    method = {"name": "worldlm", "sync_every": 2, "tree": "2", "key_layers": ["0.*"]}
    trainer = Trainer(federation(method=method, clients={"held_out": 0.25}, num_workers=4, steps=4))
    (last,) = scored(list(trainer.events()))
    for w in range(4):
        own = {name: trainer.fleet.params.cell(name, w).clone() for name in trainer.fleet.params.names()}
        assert last.own_C["loss"][w] == pytest.approx(by_hand(trainer, w, own)[0])
        assert last.shared_C["loss"][w] == pytest.approx(by_hand(trainer, w, {})[0])
        assert last.own_C["loss"][w] != last.shared_C["loss"][w]


def test_who_is_late_or_has_nothing_is_left_out() -> None:
    clients = {"num": 12, "held_out": 0.25, "personal": HEAD, "spread": 1.0, "wait_for": 2}
    events = list(Trainer(federation(clients=clients)).events())
    seats = [e for e in events if isinstance(e, Seated)]
    assert scored(events)[-1].clients == [c for w, c in enumerate(seats[-1].clients) if w not in seats[-1].late]
    nobody = scored(list(Trainer(federation(split="draw:1")).events()))[-1]  # one example each: none to hold out
    assert (nobody.clients, nobody.shared, nobody.own) == ([], {}, {})


def test_the_log_does_not_grow_with_clients() -> None:
    """One line for a thousand times as many clients has the same numbers of numbers in it."""

    def line(num: int) -> ClientsScored:
        clients = {"num": num, "held_out": 0.25, "personal": HEAD}
        return scored(list(Trainer(federation(split="draw:8", clients=clients)).events()))[-1]

    few, many = line(12), line(12_000)
    assert few.shared["loss"].keys() == many.shared["loss"].keys()
    assert many.shared["loss"]["num"] == 256
    assert len(to_json(many)) < 1.1 * len(to_json(few))
    assert from_json(to_json(many)) == many


def test_resumed_is_never_stopped(tmp_path: Path) -> None:
    stop_and_go(federation(steps=7, eval_every=2), tmp_path)


def test_columns_keep_them(tmp_path: Path) -> None:
    events = list(Trainer(federation()).events(RunFolder(tmp_path)))
    columns = Columns.of(RunFolder(tmp_path).events())
    assert columns.clients_scored == scored(events)
    table = columns.frame().set_index("step")
    for e in columns.clients_scored:
        assert table.loc[e.step, "clients_accuracy_mean"] == e.shared["accuracy"]["mean"]
        assert table.loc[e.step, "clients_loss_worst_tenth"] == e.shared["loss"]["worst_tenth"]
        assert table.loc[e.step, "clients_own_loss_mean"] == e.own["loss"]["mean"]
    assert np.isnan(table.loc[1, "clients_accuracy_mean"])
    fold = Fold()
    rows = {row.step: row.values for event in RunFolder(tmp_path).events() for row in fold.add(event)}
    last = columns.clients_scored[-1]
    assert rows[13]["clients/own_accuracy_worst_tenth"] == last.own["accuracy"]["worst_tenth"]
    assert rows[13]["clients/loss_mean"] == last.shared["loss"]["mean"]
