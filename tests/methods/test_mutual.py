"""Mutual learning of a general and a group model: a step by hand, means by group, bytes, FedAvg in its corner; groups of clients."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import lab
from lab.engine.optim import AdamW, Optimizer
from lab.events import Event, GroupsScored, from_json, to_json
from lab.methods.fedprox import FedProx
from lab.methods.mutual import Mutual
from lab.models.distillation import apart
from lab.models.in_groups import add_groups_, group_models, without_groups_
from lab.recipes.notes import notes
from lab.recipes.recipe import Recipe
from lab.runs.data import groups_of
from lab.runs.trainer import Trainer, dry_run
from tests.support.texts import fails

PLAIN = Optimizer("SGD", 0.1)
SENSORS: dict[str, Any] = {
    "data": {"name": "sensors", "people": 2, "rooms": 1, "windows": 4, "length": 16},
    "model": {"name": "mlp", "hidden": []},
    "split": "by:person+sensor",
    "groups": "sensor",
    "num_workers": 4,
    "batch_size": 6,
    "steps": 4,
    "dtype": "float64",
    "eval_every": 0,
    "checkpoint_every": 0,
    "compute": {"vectorised": False},
}


def sensors(method: Any, **changes: Any) -> Recipe:
    return Recipe.of(SENSORS | {"method": method} | changes)


def trained(r: Recipe) -> Trainer:
    trainer = Trainer(r)
    for _ in trainer.events():
        pass
    return trainer


def softmax(z: np.ndarray) -> np.ndarray:
    e = np.exp(z - z.max(1, keepdims=True))
    return np.asarray(e / e.sum(1, keepdims=True))


def slope(own: np.ndarray, other: np.ndarray, y: np.ndarray, share: float, T: float, first: str) -> np.ndarray:
    """∂L/∂logits ``[B, C]`` of one model, written out: of the divergence with itself first, p·(ln p − ln q − KL) / T, or (p − q) / T."""
    p, q, one = softmax(own / T), softmax(other / T), np.eye(own.shape[1])[y]
    if first == "own":
        far = np.log(p) - np.log(q)
        toward = p * (far - (p * far).sum(1, keepdims=True)) / T
    else:
        toward = (p - q) / T
    return np.asarray((share * T**2 * toward + (1 - share) * (softmax(own) - one)) / len(y))


@pytest.mark.parametrize("first", ["own", "other"])
def test_two_steps_by_hand(first: Any) -> None:
    """A linear map, SGD: in the first step both models are one, in the second they are not; each learns from what the other says."""
    share, T, lr = 0.3, 2.0, 0.1
    trainer = Trainer(sensors(Mutual(3, share, T, first, PLAIN), steps=2))
    params, data = trainer.fleet.params, trainer.setup.data
    assert data is not None
    names = [n for n in params.names() if not n.startswith("groups.")]
    weight, bias = (next(n for n in names if n.endswith(end)) for end in ("weight", "bias"))
    by_hand = {}
    for w, group in enumerate(["sensor-0", "sensor-1"] * 2):
        cells = [(at + weight, at + bias) for at in ("", f"groups.{group}.")]
        F, G = ([params.cell(n, w).numpy().copy() for n in pair] for pair in cells)
        assert all(np.array_equal(f, g) for f, g in zip(F, G, strict=True))
        for t in (1, 2):
            x, y = (z.numpy() for z in data.batches.get(w, t))
            x = x.reshape(len(x), -1)
            zF, zG = (x @ m[0].T + m[1] for m in (F, G))
            for m, z, other in ((F, zF, zG), (G, zG, zF)):
                d = slope(z, other, y, share, T, first)
                m[0] -= lr * d.T @ x
                m[1] -= lr * d.sum(0)
            if t == 1:
                G[0] += 0.01  # from now on they are two
        by_hand[w] = cells, F, G
    for event in trainer.events():
        if event.kind == "stepped" and event.step == 1:
            for w in range(4):
                params.cell(by_hand[w][0][1][0], w).add_(0.01)
    for w, (cells, F, G) in by_hand.items():
        for names_of, model in zip(cells, (F, G), strict=True):
            for name, value in zip(names_of, model, strict=True):
                assert np.allclose(params.cell(name, w).numpy(), value, rtol=1e-12, atol=1e-12), (w, name)


def test_targets_that_do_not_count_and_numbers() -> None:
    """−100 is left out; of numbers, (F − G)² / 2T². The other is taken as it is."""
    own, other = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64).unbind()
    own.requires_grad_()
    some = apart(own, other, torch.tensor([1, -100, 0]), 1.0, "own")
    assert torch.equal(some, apart(own[[0, 2]], other[[0, 2]], torch.tensor([1, 0]), 1.0, "own"))
    assert float(apart(own, other, torch.full((3,), -100), 1.0, "own").detach()) == 0.0
    numbers = apart(own, other, torch.zeros(3, 4), 2.0, "own")
    assert float(numbers.detach()) == pytest.approx(float((own - other).square().mean().detach()) / 8)


@pytest.mark.parametrize("weight", ["samples", "uniform"])
def test_general_over_all_and_groups_within(weight: Any) -> None:
    """After a round the server's F is the mean over all clients, G_m that over its own; a group of which nobody is up keeps its model."""
    away = {"outages": [{"worker": w, "first": 3, "last": 4} for w in (1, 3)]}  # of sensor 1, in the second round
    data = {**SENSORS["data"], "sensors_of": [[0, 1], [0, 1]]}
    trainer = Trainer(sensors(Mutual(2, 0.5, inner=PLAIN, weight=weight), scenario=away, data=data))
    before: dict[str, Tensor] = {}
    for event in trainer.events():
        if event.kind != "stepped" or event.step % 2:
            continue
        params, server, n_W = trainer.fleet.params, trainer.state.shared["params"], trainer.state.samples_W
        up = [0, 1, 2, 3] if event.step == 2 else [0, 2]
        for name in params.names():
            holders = [w for w in params.layout.blocks[params.layout.place[name][0]].everywhere if w in up]
            assert n_W is not None
            counts = [float(n_W[w]) if weight == "samples" else 1.0 for w in holders]
            if holders:
                cells = [c * params.cell(name, w) for c, w in zip(counts, holders, strict=True)]
                assert torch.allclose(server[name][0], sum(cells[1:], cells[0]) / sum(counts), rtol=1e-12, atol=1e-14)
            else:
                assert name.startswith("groups.sensor-1")
                assert torch.equal(server[name][0], before[name])
        before = {name: server[name][0].clone() for name in params.names()}


def test_bytes_by_hand() -> None:
    """Each model has 80 · 6 + 6 = 486 numbers; both go down at the beginning of a round and up at its end, each under its own name."""
    r = sensors(Mutual(2), steps=4)
    sent = list(dry_run(r))
    assert sent == list(trained(r).comm.ledger)
    of = {(e.step, e.op, e.state): [] for e in sent}
    for e in sent:
        of[e.step, e.op, e.state] += [(e.workers, e.bytes_each)]
    each = 8 * (5 * 16 * 6 + 6)
    assert of == {
        (step, op, state): [((0, 1, 2, 3), each)] if state == "params" else [((0, 2), each), ((1, 3), each)]
        for step, op in ((1, "broadcast"), (2, "reduce"), (3, "broadcast"), (4, "reduce"))
        for state in ("params", "group")
    }


@pytest.mark.parametrize("inner", [PLAIN, AdamW(1e-2)], ids=lambda i: i.name)
def test_without_distillation_both_are_fedavg(inner: Optimizer) -> None:
    """α = 0: F goes the way of FedAvg over all, bit for bit, also with clients sampled; G_m that of FedAvg over its group alone."""
    for scenario in ({}, {"sample": 3, "sample_every": 2}):
        both = trained(sensors(Mutual(2, 0.0, inner=inner, max_norm=0.5), scenario=scenario))
        fedavg = trained(sensors(FedProx(2, 0.0, inner, weight="samples", max_norm=0.5), scenario=scenario))
        mine, theirs = both.state.shared["params"], fedavg.state.shared["params"]
        for name in theirs.names():
            assert torch.equal(mine[name], theirs[name])
            for w in range(4):
                assert torch.equal(both.fleet.params.cell(name, w), fedavg.fleet.params.cell(name, w))
    both = trained(sensors(Mutual(2, 0.0, inner=inner)))
    away = {"outages": [{"worker": w, "last": 4} for w in (1, 3)]}
    alone = trained(sensors(FedProx(2, 0.0, inner, weight="samples"), scenario=away))
    for name in alone.state.shared["params"].names():
        mine = both.state.shared["params"][f"groups.sensor-0.{name}"]
        assert torch.equal(mine, alone.state.shared["params"][name])
        assert not torch.equal(mine, both.state.shared["params"][name])


def test_the_laws_in_groups() -> None:
    """Isolation, several processes, plans, absent workers, resuming: with workers that hold different models."""
    found = lab.testing.check_method(Mutual(2), {"groups": [[0, 2], [1]]})
    found.assert_all()
    named = {f.law: f.outcome for f in found.findings}
    for law in ("isolation", "dry run", "processes", "resume", "hearing"):
        assert named[law] == "passed"


def scored(r: Recipe) -> tuple[Trainer, list[GroupsScored]]:
    trainer, seen = Trainer(r), list[Event]()
    seen += trainer.events()
    return trainer, [e for e in seen if isinstance(e, GroupsScored)]


def test_scores_by_group_are_those_of_the_models() -> None:
    """What the event says, worked out again: native by group, the full test by F, each G_m, and the mean of all probabilities."""
    r = sensors(Mutual(2, inner=AdamW(3e-2)), clients={"held_out": 0.25}, eval_windows=24, steps=6)
    trainer, (event,) = scored(r)
    assert from_json(to_json(event)) == event
    model = trainer.fleet.whole_model(trainer.agreed())
    groups, data = group_models(model), trainer.setup.data
    assert data is not None
    assert data.held_out is not None
    assert event.groups == {"sensor-0": [0, 2], "sensor-1": [1, 3]} == {k: list(v) for k, v in groups_of(r).items()}

    def probabilities(of: list[nn.Module], x: Tensor) -> Tensor:
        with torch.no_grad():
            return torch.stack([m(x).softmax(1) for m in of]).mean(0)

    x, y = (torch.cat(z) for z in zip(*data.validation, strict=True))
    for which, some in (
        ("general", [model]),
        ("ensemble", [model, *groups.values()]),
        ("group sensor-1", [groups["sensor-1"]]),
    ):
        right = (probabilities(some, x).argmax(1) == y).double().mean()
        assert event.full[which]["accuracy"] == pytest.approx(float(right))
    for name, clients in event.groups.items():
        index = np.concatenate([data.held_out.shards[c] for c in clients])
        x, y = data.held_out.take(index)
        for which, some in (("general", [model]), ("group", [groups[name]]), ("both", [model, groups[name]])):
            p = probabilities(some, x)
            assert event.native[name][which]["accuracy"] == pytest.approx(float((p.argmax(1) == y).double().mean()))
            loss = -p[torch.arange(len(y)), y].log().mean()
            assert event.native[name][which]["loss"] == pytest.approx(float(loss))
    mean = event.mean_native("accuracy")
    assert mean["both"] == pytest.approx(np.mean([of["both"]["accuracy"] for of in event.native.values()]))


def test_any_method_is_scored_by_group() -> None:
    _, (event,) = scored(sensors(FedProx(2, 0.0, PLAIN), clients={"held_out": 0.25}))
    assert {*event.full} == {"general"}
    assert {name: {*of} for name, of in event.native.items()} == {"sensor-0": {"general"}, "sensor-1": {"general"}}
    _, (event,) = scored(sensors(FedProx(2, 0.0, PLAIN), groups={"first": [0, 1], "second": [2, 3]}))
    assert event.native == {"first": {}, "second": {}}  # nobody holds out anything
    assert event.groups == {"first": [0, 1], "second": [2, 3]}


def test_a_module_answers_as_before() -> None:
    """Also one that calls all its children; a copy for each group, of which the ledger says so."""
    with torch.random.fork_rng(devices=[]):
        module = nn.Sequential(nn.Linear(2, 3), nn.Tanh())
    x = torch.randn(4, 2, generator=torch.Generator().manual_seed(0))
    before = module(x)
    assert torch.equal(add_groups_(module, ["a", "b"])(x), before)
    assert {*group_models(module)} == {"a", "b"}
    assert torch.equal(group_models(module)["a"](x), before)
    assert module.tensor_group("groups.a.0.weight") == "group all"  # type: ignore[operator]
    assert [n for n, _ in without_groups_(module).named_parameters()] == ["0.weight", "0.bias"]
    assert torch.equal(module(x), before)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"groups": [[0, 1], [2]]}, "groups must have every client once, and client 3 is in none"),
        ({"groups": [[0, 1], [1, 2, 3]]}, "client 1 is there 2 times"),
        ({"groups": [[0, 1], [2, 3, 4]]}, "groups has client 4, and the clients are 0 to 3"),
        ({"groups": {"a b": [0]}}, "groups names a group 'a b': use letters, digits, - and _"),
        ({"groups": [[0], []]}, "a group is a list of clients, and has at least one"),
        ({"groups": 3}, "groups = 3 is not allowed: it is a column of the examples"),
        ({"groups": "sensr"}, "groups = 'sensr': unknown column of the examples 'sensr': use one of person, room, sensor"),
        ({"split": "by:person", "num_workers": 2}, "groups = 'sensor': it is what single examples are taken apart by"),
        ({"split": "iid", "groups": "person"}, "groups = 'person': client 0 has examples of person 0 and 1: use a split by"),
        ({"clients": {"num": 4}, "num_workers": 2}, "draw who takes part with scenario.sample"),
        ({"method": Mutual(share=0.5), "lora": {"ranks": [2]}}, "mutual trains two whole models, and lora.ranks asks"),
        ({"compute": {"vectorised": True}}, "compute.vectorised = true does not go with the loss that mutual has of its own"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_said_in_one_line(changes: dict[str, Any], says: str) -> None:
    with fails(says):
        Trainer(sensors(**({"method": Mutual(2)} | changes)))


def test_text_has_no_columns_but_its_clients_can_be_listed() -> None:
    with fails("groups = 'sensor' names a column of examples, which text does not have: list clients"):
        Recipe.of({"groups": "sensor"})
    assert groups_of(Recipe.of({"groups": [[0, 2], [1, 3]]})) == {"A": (0, 2), "B": (1, 3)}
    assert Recipe.of({}).id == Recipe.of({"groups": ""}).id
    with fails("share = 1.5 is not allowed"):
        Mutual(share=1.5)


def test_what_makes_no_difference_is_said() -> None:
    said = notes(sensors(Mutual(9, 0.0, 2.0), groups=""))
    assert any("method.sync_every = 9 is longer than the 4 steps" in note for note in said)
    assert any("method.temperature" in note and "share above 0" in note for note in said)
    assert any("groups is empty" in note for note in said)
    assert notes(sensors(Mutual(2))) == []


def test_the_order_of_tests_and_models_that_is_robust() -> None:
    """Sensors that each confuse two pairs of six: F is better where it sees all of them than where it sees one, by 10 points at least in
    each seed; all models together are better than F alone, by 2 points on average. What luck decides is left to the notebook."""
    gains = []
    for seed in (1, 2):
        data = {
            "name": "sensors",
            "people": 2,
            "rooms": 1,
            "windows": 30,
            "length": 32,
            "noise": 0.5,
            "person": 0.2,
            "room": 0.2,
        }
        r = sensors(
            Mutual(5, inner=AdamW(0.02), inner_states="kept"),
            data=data | {"seed": seed},
            model={"name": "conv1d", "channels": [16, 16], "kernel": 7},
            seed=seed,
            steps=80,
            batch_size=24,
            eval_windows=4096,
            dtype="float32",
            clients={"held_out": 0.2},
        )
        _, (event,) = scored(r)
        full = event.full["general"]["accuracy"]
        assert full - event.mean_native("accuracy")["general"] > 0.1
        gains.append(event.full["ensemble"]["accuracy"] - full)
    assert np.mean(gains) > 0.02
