"""What clients make of the federation's model: against plain torch, each client by itself, and without a trace in the run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lab.events import Adapted, ClientsScored, Event, Sent, Stepped, from_json, to_json
from lab.ground.errors import RecipeError
from lab.probes.adaptation import rows_at_once
from lab.recipes.adaptation import Adaptation
from lab.recipes.notes import notes
from lab.recipes.recipe import Recipe
from lab.runs.columns import Columns
from lab.runs.folder import RunFolder
from lab.runs.launch import train_over_processes
from lab.runs.plan import plan
from lab.runs.track import Fold
from lab.runs.trainer import Trainer
from tests.support.recipes import corpus, normed, recipe
from tests.support.stop_and_go import stop_and_go

WAYS = ("fine_tuning", "frozen_base", "ewc", "kd")
ALL: dict[str, Any] = {
    "ways": WAYS,
    "steps": 3,
    "local_steps": 5,
    "head": ["2.*"],
    "strength": 2.0,
    "temperature": 1.5,
    "share": 0.3,
}
RATE = 0.1  # of an adaptation, by default


def federation(adaptation: Any = ALL, **changes: Any) -> Recipe:
    """12 clients with 8 examples each, two of them held out, of whom 3 take part in a round of two local steps."""
    base: dict[str, Any] = {
        "method": {"name": "local_sgd", "sync_every": 2},
        "model": "tests.support.parts:net",
        "data": "tests.support.parts:blobs",
        "split": "draw:8:0.5",
        "num_workers": 3,
        "clients": {"num": 12, "held_out": 0.25},
        "adaptation": adaptation,
        "steps": 7,
        "batch_size": 3,
        "dtype": "float64",
        "eval_every": 0,
        "checkpoint_every": 1,
    }
    return Recipe.of(base | changes)


def adapted(events: list[Event]) -> list[Adapted]:
    return [e for e in events if isinstance(e, Adapted)]


def values_of(trainer: Trainer) -> dict[str, Tensor]:
    agreed = trainer.agreed()
    return {n: agreed[n][0].clone() for n in agreed.names()}


def module(values: dict[str, Tensor]) -> nn.Sequential:
    with torch.device("meta"):
        net = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 3))
    net.load_state_dict({n: x.clone() for n, x in values.items()}, assign=True)
    return net.requires_grad_(True)


def by_hand(trainer: Trainer, values: dict[str, Tensor], client: int, way: str, steps: int) -> tuple[float, float]:
    """A client's model in plain torch, from these values: its loss and accuracy on what the client holds out."""
    data = trainer.setup.data
    assert data is not None
    assert data.held_out is not None
    net, teacher = module(values), module(values)
    fisher = {n: torch.zeros_like(p) for n, p in net.named_parameters()}
    for t in range(1, steps + 1):
        x, y = data.batches.get(client, t)
        if t == 1 and way == "ewc":
            for k in range(len(x)):
                grads = torch.autograd.grad(F.cross_entropy(net(x[k : k + 1]), y[k : k + 1]), [*net.parameters()])
                for n, g in zip(fisher, grads, strict=True):
                    fisher[n] += g.square() / len(x)
        loss = F.cross_entropy(net(x), y)
        if way == "kd":
            p, q = (teacher(x) / 1.5).softmax(1).detach(), (net(x) / 1.5).softmax(1)
            loss = 0.3 * 1.5**2 * loss + 0.7 * (p * (p / q).log()).sum(1).mean()
        net.zero_grad()
        loss.backward()
        with torch.no_grad():
            for n, p in net.named_parameters():
                if way == "frozen_base" and not n.startswith("2."):
                    continue
                pull = 2.0 * fisher[n] * (p - values[n])
                p -= RATE * (p.grad + pull)  # type: ignore[operator]
    x, y = data.held_out.take(data.held_out.shards[client])
    with torch.no_grad():
        return float(F.cross_entropy(net(x), y)), float((net(x).argmax(1) == y).double().mean())


def test_against_plain_torch() -> None:
    """Every client, before and after each way, and its own model from the first values of the run."""
    trainer = Trainer(federation())
    begun = trainer.fleet.params
    first = {n: begun[n][0].clone() for n in begun.names()}
    (found,) = adapted(list(trainer.events()))
    agreed = values_of(trainer)
    assert found.step == 7
    assert found.clients == list(range(12))
    assert (found.steps, found.local_steps, [*found.after_C]) == (3, 5, list(WAYS))
    for k, client in enumerate(found.clients):
        for way in found.ways:
            loss, accuracy = by_hand(trainer, agreed, client, way, 0 if way == "none" else 3)
            assert found.scores_C(way, "loss")[k] == pytest.approx(loss, rel=1e-10), (client, way)
            assert found.scores_C(way, "accuracy")[k] == accuracy
        loss, accuracy = by_hand(trainer, first, client, "fine_tuning", 5)
        assert found.local_C["loss"][k] == pytest.approx(loss, rel=1e-10)
        assert found.local_C["accuracy"][k] == accuracy
    assert len({tuple(found.scores_C(way, "loss")) for way in found.ways}) == 5


def test_what_is_better_than_alone() -> None:
    """r_k is a gain for losses and for accuracies; who has no number is in no count."""
    event = Adapted(
        4,
        3,
        5,
        [3, 7, 8, 9],
        {"loss": [1.0, 2.0, None, 0.5], "accuracy": [0.5, 0.5, 1.0, 0.75]},
        {"kd": {"loss": [0.5, 2.5, 1.0, 1.0], "accuracy": [1.0, 0.25, 1.0, 0.75]}},
        {"loss": [0.75, 2.25, 0.5, None], "accuracy": [0.75, 0.5, 0.5, 0.75]},
    )
    assert event.relative_C("none", "loss") == [-0.25, 0.25]
    assert event.relative_C("kd", "loss") == [0.25, -0.25, -0.5]
    assert event.relative_C("none", "accuracy") == [-0.25, 0.0, 0.5, 0.0]
    assert [event.underperformers(w, "accuracy") for w in event.ways] == [1, 1]
    assert event.severity("kd", "loss") == -0.75
    assert event.words("accuracy").splitlines() == [
        "accuracy at step 4: of 4 clients so many would be better off alone (5 local steps, 0.625 on average):",
        "1 with the model as it is, together by 0.25",
        "1 after KD (3 local steps), together by 0.25",
    ]
    assert event.words("f1") == "f1 at step 4: there is no client with a model of its own to compare with"
    assert from_json(to_json(event)) == event


def told(r: Recipe) -> list[Any]:
    trainer = Trainer(r)
    events = [
        e.loss_W if isinstance(e, Stepped) else e
        for e in trainer.events()
        if isinstance(e, Stepped | Sent | ClientsScored)
    ]
    return [*events, {n: x.tolist() for n, x in values_of(trainer).items()}]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"method": {"name": "pafl", "sync_every": 2}},
        {"clients": {"num": 12, "held_out": 0.25, "personal": ["2.*"]}},
        {"model": {"name": "mlp", "hidden": [4], "dropout": 0.5}, "adaptation": ALL | {"head": ["head.*"], "every": 2}},
    ],
)
def test_looking_changes_nothing(changes: Any) -> None:
    """Bit for bit: losses, what is sent, scores, and the model at the end."""
    r = federation(eval_every=3, **changes)
    assert told(federation(**({"eval_every": 3} | changes | {"adaptation": {}}))) == told(r)
    assert not [e for e in Trainer(r).events() if isinstance(e, Sent) and e.step > 7]


def test_buffers_are_those_of_the_model_and_each_client_moves_its_own() -> None:
    changes = {"clients": {"held_out": 0.25}, "adaptation": {"ways": ["fine_tuning"], "steps": 2, "local_steps": 2}}
    r = normed({"name": "local_sgd", "sync_every": 2}, eval_every=0, eval_windows=99, **changes)
    trainer = Trainer(r)
    events = list(trainer.events())
    (found,) = adapted(events)
    running = {n: x.clone() for n, x in trainer.fleet.agreed_buffers.items()}
    plain = list(Trainer(r.but(adaptation={})).events())
    assert [e.loss_W for e in events if isinstance(e, Stepped)] == [e.loss_W for e in plain if isinstance(e, Stepped)]
    model = trainer.fleet.whole_model(trainer.agreed())
    assert running
    assert all(torch.equal(x, dict(model.named_buffers())[n]) for n, x in running.items())
    data = trainer.setup.data
    assert data is not None
    assert data.held_out is not None
    for k, client in enumerate(found.clients):
        x, y = data.held_out.take(data.held_out.shards[client])
        assert found.before_C["loss"][k] == pytest.approx(float(F.cross_entropy(model(x), y)), rel=1e-10)
    copy = trainer.fleet.whole_model(trainer.agreed()).requires_grad_(True).train()
    copy.load_state_dict({n: x.clone() for n, x in copy.state_dict().items()}, assign=True)
    copy.requires_grad_(True)
    for t in (1, 2):
        copy.zero_grad()
        F.cross_entropy(copy(data.batches.get(1, t)[0]), data.batches.get(1, t)[1]).backward()
        with torch.no_grad():
            for p in copy.parameters():
                p -= RATE * p.grad  # type: ignore[operator]
    x, y = data.held_out.take(data.held_out.shards[1])
    assert found.after_C["fine_tuning"]["loss"][1] == pytest.approx(F.cross_entropy(copy.eval()(x), y).item(), rel=1e-9)


def test_a_client_begins_with_what_it_keeps() -> None:
    """Before adaptation its score is that of the agreed model with its own head, if it has had a turn."""
    r = federation(clients={"num": 12, "held_out": 0.25, "personal": ["2.*"]}, eval_every=7)
    events = list(Trainer(r).events())
    (found,), last = adapted(events), [e for e in events if isinstance(e, ClientsScored)][-1]
    own = dict(zip(last.clients, last.own_C["loss"], strict=True))
    assert len(own) == 3
    for client, loss in own.items():
        assert found.before_C["loss"][found.clients.index(client)] == pytest.approx(loss, rel=1e-12)
    assert last.own["loss"]["num"] > 5  # those who kept something


def test_resumed_is_never_stopped(tmp_path: Path) -> None:
    stop_and_go(federation({"ways": ["ewc"], "steps": 2, "local_steps": 2, "every": 2}, steps=4), tmp_path)


def test_the_purely_local_model_is_trained_once(tmp_path: Path) -> None:
    looks = adapted(list(Trainer(federation(ALL | {"every": 3})).events()))
    assert [e.step for e in looks] == [3, 6, 7]
    assert looks[0].local_C == looks[1].local_C == looks[2].local_C
    assert looks[0].before_C != looks[1].before_C


def test_several_processes_say_the_same(tmp_path: Path) -> None:
    clients = {"num": 12, "held_out": 0.25, "personal": ["2.*"]}
    r = federation(checkpoint_every=0, num_workers=2, clients=clients, steps=3)
    seen: list[Event] = []
    train_over_processes(2, r, tmp_path / "two", each=seen.append)
    (one,), (two,) = adapted(list(Trainer(r).events())), adapted(seen)
    assert one.clients == two.clients
    assert one.local_C == two.local_C
    for way in one.ways:
        assert two.scores_C(way, "loss") == pytest.approx(one.scores_C(way, "loss"), rel=1e-11)


def test_it_is_bounded_by_a_sample() -> None:
    """Of ten thousand clients as much is said, and trained, as of ninety."""

    def event(num: int) -> Adapted:
        few = {"ways": ["fine_tuning"], "steps": 1, "clients": 20}
        return adapted(
            list(Trainer(federation(few, clients={"num": num, "held_out": 0.25}, split="draw:8", steps=2)).events())
        )[0]

    small, large = event(90), event(10_000)
    assert len(small.clients) == len(large.clients) == 20
    assert len(to_json(large)) < 1.1 * len(to_json(small))
    assert max(large.clients) > 90
    assert rows_at_once(3, 100) == 64
    assert rows_at_once(3, 10**9) == 3
    assert adapted(list(Trainer(federation(split="draw:1")).events()))[0].clients == []  # nobody holds out anything


def test_all_at_once_or_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clients in one pass over the stack, in parts of any size, or one after another: the same to rounding."""
    digits = {"model": {"name": "mlp", "hidden": [6]}, "data": "digits", "split": "iid", "num_workers": 2, "steps": 2}
    asked = ALL | {"head": ["head.*"]}
    found = []
    for compute, most in (({}, 64), ({"vectorised": False}, 64), ({"vectorised": True}, 5)):
        monkeypatch.setattr("lab.probes.adaptation.AT_ONCE", most)
        found += adapted(list(Trainer(federation(asked, compute=compute, **digits)).events()))
    for other in found[1:]:
        for way in other.ways:
            assert other.scores_C(way, "loss") == pytest.approx(found[0].scores_C(way, "loss"), rel=1e-10)


def test_of_text_tokens_are_scored() -> None:
    r = recipe(
        "local_sgd",
        clients={"num": 7, "held_out": 0.2},
        adaptation=ALL | {"head": ["*norm*"], "clients": 4},
        checkpoint_every=0,
        eval_windows=3,
    )
    trainer = Trainer(r, corpus=corpus())
    (found,) = adapted(list(trainer.events()))
    assert len(found.clients) == 4
    data, client = trainer.setup.data, found.clients[2]
    assert data is not None
    assert data.held_out is not None
    index = data.held_out.shards[client]
    ids, targets = data.held_out.take(index[np.arange(3) * len(index) // 3])
    logits = trainer.fleet.whole_model(trainer.agreed())(ids)
    assert found.before_C["accuracy"][2] == pytest.approx(float((logits.argmax(-1) == targets).double().mean()))
    assert found.before_C["loss"][2] == pytest.approx(float(F.cross_entropy(logits.flatten(0, 1), targets.flatten())))
    assert all(x != y for x, y in zip(found.before_C["loss"], found.after_C["kd"]["loss"], strict=True))


def test_adapters_are_adapted() -> None:
    """What is frozen stays frozen: clients adapt low-rank factors, by any way."""
    changes: dict[str, Any] = {"lora": {"ranks": [2]}, "clients": {"held_out": 0.2}, "checkpoint_every": 0}
    r = recipe("fedit", adaptation=ALL | {"head": ["*lora_B*"]}, **changes)
    (found,) = adapted(list(Trainer(r, corpus=corpus()).events()))
    assert len({tuple(found.scores_C(way, "loss")) for way in found.ways}) == 5


def test_its_cost_is_in_the_plan() -> None:
    """12 clients × (4 ways × 3 steps + 5 alone); of passes a third more for a teacher's, and one for the Fisher information."""
    p, bare = plan(federation(), {}), plan(federation({}), {})
    assert p.adaptation_steps == 12 * (4 * 3 + 5) == p.to_dict()["adaptation_steps"]
    assert p.adaptation_flops == pytest.approx(12 * (4 * 3 + 1 + 1 + 5) * 6 * 3 * (3 * 8 + 8 * 3), rel=0.3)
    assert (bare.adaptation_steps, bare.adaptation_flops) == (0, 0.0)
    assert p.ledger == bare.ledger
    assert (
        "12 clients, each 4 ways × 3 local steps and 5 local steps alone: 204 local steps beside the 21 of the run"
        in p.to_text()
    )
    assert "adaptation" not in bare.to_text()
    assert plan(federation(ALL | {"every": 3}), {}).adaptation_steps == 12 * (3 * 4 * 3 + 5)


def test_columns_tables_and_trackers_have_it(tmp_path: Path) -> None:
    events = list(Trainer(federation()).events(RunFolder(tmp_path)))
    columns = Columns.of(RunFolder(tmp_path).events())
    assert columns.adapted == adapted(events)
    (event,), row = columns.adapted, columns.frame().set_index("step").loc[7]
    assert row["underperformers_ewc_accuracy"] == event.underperformers("ewc", "accuracy")
    assert row["adapted_local_loss"] == pytest.approx(np.mean(event.local_C["loss"]))  # type: ignore[arg-type]
    fold = Fold()
    rows = {row.step: row.values for e in RunFolder(tmp_path).events() for row in fold.add(e)}
    assert rows[7]["underperformers/none_accuracy"] == event.underperformers("none", "accuracy")


def test_recipes_that_do_not_ask_for_it_keep_their_ids() -> None:
    assert "adaptation" not in federation({}).to_dict()
    assert federation({}).id == federation(Adaptation()).id != federation().id


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"clients": {"num": 12}}, r"set clients\.held_out, to 0\.2 for example"),
        ({"adaptation": {"ways": ["fine_tuning", "fine_tuning"]}}, r"names one twice"),
        ({"adaptation": {"ways": ["frozen_base"]}}, r"name what is trained then, by adaptation\.head"),
        ({"adaptation": {"ways": ["tuning"]}}, r"adaptation\.ways\.0 = 'tuning' is not allowed"),
        ({"adaptation": {"steps": 0}}, r"adaptation\.steps = 0 is not allowed"),
        ({"adaptation": {"step": 3}}, r"adaptation\.step"),
        ({"adaptation": ALL | {"head": ["3.*"]}}, r"adaptation\.head = '3\.\*' fits no parameter: there are 0\.weight"),
        (
            {"clients": {"num": 12, "held_out": 0.25, "personal": ["0.*"]}},
            r"frozen_base would freeze 0\.weight, which is each client's own",
        ),
    ],
)
def test_what_does_not_go_together_is_refused(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(RecipeError, match=says) as info:
        Trainer(federation(**({"adaptation": ALL} | changes)))
    assert "\n" not in str(info.value)


def test_what_makes_no_difference_gets_a_note() -> None:
    assert [n for n in notes(federation()) if "adaptation" in n] == []
    assert notes(federation({"strength": 3.0, "every": 2, "head": ["x"], "ways": [], "share": 0.1})) == [
        "adaptation.every = 2 makes no difference without adaptation.ways or local_steps",
        "adaptation.head = ('x',) makes no difference without frozen_base in adaptation.ways",
        "adaptation.strength = 3.0 makes no difference without ewc in adaptation.ways",
        "adaptation.share = 0.1 makes no difference without kd in adaptation.ways",
    ]
    assert notes(federation({"ways": ["fine_tuning"], "every": 9})) == [
        "adaptation.every = 9 is longer than the 7 steps of the run: clients adapt the model after the last step alone"
    ]
