"""Clients and workers: who sits in which row, what clients keep between their turns, and what never leaves them."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx

from lab.events import Seated, Sent, Stepped
from lab.ground.errors import Damaged, RecipeError
from lab.recipes.recipe import Recipe
from lab.recipes.replay import Replayed, shortened
from lab.runs.client_store import ClientStore
from lab.runs.folder import RunFolder
from lab.runs.trainer import Trainer
from tests.support.listed import LISTED
from tests.support.recipes import corpus, recipe
from tests.support.stop_and_go import stop_and_go

HEAD = ("2.*",)


def federation(**changes: Any) -> Recipe:
    """12 clients with 8 examples each, of whom 3 take part in a round of two local steps."""
    base: dict[str, Any] = {
        "method": {"name": "local_sgd", "sync_every": 2, "inner_states": "kept", "max_norm": None},
        "model": "tests.support.parts:net",
        "data": "tests.support.parts:blobs",
        "num_workers": 3,
        "clients": {"num": 12},
        "steps": 16,
        "batch_size": 3,
        "dtype": "float64",
        "eval_every": 0,
        "checkpoint_every": 1,
        "schedule": {"warmup": 0},
    }
    return Recipe.of(base | changes)


def by_plain_torch(trainer: Trainer, kept: bool, personal: bool) -> dict[int, dict[str, torch.Tensor]]:
    """Every client with a module and an optimizer of its own, written out; what each has after its last round."""
    r, data = trainer.recipe, trainer.setup.data
    assert data is not None
    first = {n: p.detach().double() for n, p in r.model.module(_shape(trainer), r.seed).named_parameters()}
    server = {n: x.clone() for n, x in first.items()}
    modules: dict[int, nn.Module] = {}
    optimizers: dict[int, torch.optim.Optimizer] = {}
    for begin in range(1, r.steps + 1, 2):
        clients = r.clients.drawn((begin - 1) // 2, r.num_workers, r.seed)
        for c in clients:
            if c not in modules:
                modules[c] = r.model.module(_shape(trainer), r.seed).double()
            own = dict(modules[c].named_parameters())
            if c not in optimizers or not kept:
                optimizers[c] = torch.optim.AdamW(own.values(), lr=r.method.inner.lr, **r.method.inner.options)
            with torch.no_grad():
                for n, p in own.items():
                    if not (personal and n.startswith("2.")):
                        p.copy_(server[n])
            for t in (begin, begin + 1):
                x, y = data.batches.get(c, t)
                optimizers[c].zero_grad()
                nn.functional.cross_entropy(modules[c](x), y).backward()
                optimizers[c].step()
        for n in server:
            server[n] = torch.stack([dict(modules[c].named_parameters())[n].detach() for c in clients]).mean(0)
    return {c: {n: p.detach() for n, p in m.named_parameters()} for c, m in modules.items()} | {-1: server}


def _shape(trainer: Trainer) -> Any:
    from lab.runs.data import shape_of

    return shape_of(trainer.recipe, trainer.setup.data)


@pytest.mark.parametrize("personal", [False, True])
@pytest.mark.parametrize("kept", [False, True])
def test_a_federation_is_what_plain_torch_makes_of_it(kept: bool, personal: bool, tmp_path: Path) -> None:
    """Clients that come and go, their optimizers fresh or kept, their heads shared or their own."""
    clients = {"num": 12, "inner_states": "kept" if kept else "fresh", "personal": HEAD if personal else ()}
    trainer = Trainer(federation(clients=clients))
    seated = [e.clients for e in trainer.events(RunFolder(tmp_path)) if isinstance(e, Seated)]
    assert len(seated) == 8
    assert all(len({*row}) == 3 for row in seated)
    assert len({c for row in seated for c in row}) > 6  # others than the first three have had their turn
    want = by_plain_torch(trainer, kept, personal)
    for w, c in enumerate(seated[-1]):
        for name in trainer.fleet.layout.place:
            goal = want[c][name] if personal and name.startswith("2.") else want[-1][name]
            torch.testing.assert_close(trainer.fleet.params.cell(name, w), goal, rtol=1e-9, atol=1e-12)
    if personal:
        (i,) = [i for i, b in enumerate(trainer.fleet.layout.blocks) if b.personal]
        seating = trainer.built.roll_call.seating
        assert seating is not None
        away = {c for row in seated[:-1] for c in row} - {*seated[-1]}
        kept_by = seating.store.get(sorted(away))
        assert kept_by.keys() == away
        block = trainer.fleet.layout.blocks[i]
        for c in away:
            goal = torch.cat([want[c][name].flatten() for name in block.names])
            torch.testing.assert_close(kept_by[c][f"params/{i}"], goal, rtol=1e-9, atol=1e-12)


def test_what_is_personal_is_not_sent() -> None:
    """Payload by hand: all but the head, down at the beginning of a round and up at its end, for three clients."""
    trainer = Trainer(federation(clients={"num": 12, "personal": HEAD}))
    sent = [e for e in trainer.events() if isinstance(e, Sent)]
    shared = (3 * 8 + 8) * 8  # bytes of the first map in float64
    assert {(e.op, e.state, e.bytes_each) for e in sent} == {
        ("broadcast", "params", shared),
        ("all_reduce", "params", shared),
    }
    assert sum(e.bytes_all for e in sent) == 8 * 3 * 2 * shared


@pytest.mark.parametrize("name", ["des_loc", "diloco", "noloco"])
def test_as_many_clients_as_workers_are_workers(name: str) -> None:
    """All take part, all the time: nothing is received, and nothing changes."""
    plain, seated = (
        Trainer(recipe(LISTED[name], clients={"num": num}, checkpoint_every=0), corpus=corpus()) for num in (0, 3)
    )
    (losses, sent), (losses_too, sent_too) = (
        ([e.loss_W for e in events if isinstance(e, Stepped)], [e for e in events if isinstance(e, Sent)])
        for events in (list(plain.events()), list(seated.events()))
    )
    assert losses == losses_too
    assert sent == sent_too


@pytest.mark.parametrize("inner_states", ["fresh", "kept"])
def test_resumed_is_never_stopped(inner_states: str, tmp_path: Path) -> None:
    stop_and_go(federation(steps=8, clients={"num": 12, "inner_states": inner_states, "personal": HEAD}), tmp_path)


def _flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)


TORN: dict[str, Callable[[Path], object]] = {
    "a bit": _flip,
    "cut": lambda file: os.truncate(file, file.stat().st_size // 2),
    "empty": lambda file: os.truncate(file, 0),
    "longer": lambda file: file.write_bytes(file.read_bytes() + b"\0"),
    "digest lost": lambda file: file.with_suffix(".json").unlink(),
    "digest cut": lambda file: os.truncate(file.with_suffix(".json"), 20),
    "clients changed": lambda file: file.with_suffix(".json").write_bytes(
        file.with_suffix(".json").read_bytes().replace(b'"clients"', b'"clientz"')
    ),
    "lost": lambda file: file.unlink(),
}


@pytest.mark.parametrize("how", TORN)
def test_a_torn_store_is_named(how: str, tmp_path: Path) -> None:
    r = federation(clients={"num": 12, "personal": HEAD})
    for event in Trainer(r).events(RunFolder(tmp_path)):
        if isinstance(event, Stepped) and event.step == 11:
            break
    file = tmp_path / "clients" / "round-2.safetensors"
    whole = {f: f.read_bytes() for f in (file, file.with_suffix(".json"))}
    TORN[how](file)
    says = "is missing" if how == "lost" else "holds what clients of round 2 keep, and is not what was written"
    with pytest.raises(Damaged, match=rf"round-2\.safetensors {says}.* put it back, or begin anew"):
        list(Trainer(r).events(RunFolder(tmp_path)))
    for f, data in whole.items():
        f.write_bytes(data)
    assert [e for e in Trainer(r).events(RunFolder(tmp_path)) if isinstance(e, Stepped)][-1].step == 16


@pytest.mark.parametrize("every", [2, 3, 5, 7])
def test_it_goes_on_from_wherever_a_checkpoint_is_old(every: int, tmp_path: Path) -> None:
    """Stopped after any step, also long after the last checkpoint, when files that nobody needs any more have been removed."""
    r = federation(clients={"num": 5, "personal": HEAD}, steps=24, checkpoint_every=every)
    folder = RunFolder(tmp_path / "whole")
    for event in Trainer(r).events(folder):
        if isinstance(event, Stepped):
            folder.flush()
            shutil.copytree(folder.path, tmp_path / f"stopped-{event.step}")
    want = [e.loss_W for e in folder.events() if isinstance(e, Stepped)]
    for step in range(every, r.steps + 1):
        again = list(Trainer(r).events(RunFolder(tmp_path / f"stopped-{step}")))
        assert [e.loss_W for e in again if isinstance(e, Stepped)] == want, step


def test_what_is_newer_than_the_checkpoint_may_be_torn(tmp_path: Path) -> None:
    """It is made again: a process that was killed while it wrote a round goes back to before it."""
    r = federation(clients={"num": 12, "personal": HEAD})
    for event in Trainer(r).events(RunFolder(tmp_path)):
        if isinstance(event, Stepped) and event.step == 11:
            break
    want = [e.loss_W for e in Trainer(r).events() if isinstance(e, Stepped)]
    newest = max((tmp_path / "clients").glob("*.safetensors"), key=lambda f: int(f.stem.split("-")[1]))
    assert newest.stem == "round-4"  # of the round before the one that is on
    newest.with_name("round-5.safetensors").write_bytes(newest.read_bytes()[:100])
    newest.with_name("round-5.json").write_text("{")
    got = [e.loss_W for e in Trainer(r).events(RunFolder(tmp_path)) if isinstance(e, Stepped)]
    assert got == want


def test_the_disk_is_waited_for_when_a_checkpoint_comes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And not in every round: of the files that are still there each, with its digest, once; of a run without checkpoints none."""
    waited, fsync = list[int](), os.fsync
    monkeypatch.setattr(os, "fsync", lambda file: waited.append(os.fstat(file).st_ino) or fsync(file))

    def names() -> list[str]:
        """The files that were waited for, in order."""
        there = {file.stat().st_ino: file for file in tmp_path.rglob("*") if file.is_file()}
        found = [there[number].relative_to(tmp_path).as_posix() for number in waited]
        waited.clear()
        return found

    store = ClientStore(tmp_path)
    for number in range(3):
        store.put(number, {0: {"x": torch.ones(2)}})
    store.tidy(before=2)
    assert names() == []
    store.settle()
    store.settle()
    assert names() == [f"round-{number}.{end}" for number in (1, 2) for end in ("safetensors", "json")]
    ends = federation(method={"name": "scaffold", "sync_every": 2}, steps=4, checkpoint_every=4)
    list(Trainer(ends).events(RunFolder(tmp_path / "run")))
    found = [name.split("/")[1] for name in names() if name.count("/") == 2]
    assert found[:2] == ["clients"] * 2
    assert "checkpoints" in found[2:]
    list(Trainer(ends.but(checkpoint_every=0)).events(RunFolder(tmp_path / "other")))
    assert not [name for name in names() if "clients" in name]


def test_the_store_forgets_what_nobody_needs(tmp_path: Path) -> None:
    store = ClientStore(tmp_path)
    for number in range(4):
        store.put(number, {c: {"x": torch.tensor([number, c])} for c in (0, 1, number + 10)})
    store.put(4, {c: {"x": torch.tensor([4, c])} for c in (0, 1, 10, 11)})
    assert {c: kept["x"].tolist() for c, kept in store.get([0, 10, 12, 99]).items()} == {
        0: [4, 0],
        10: [4, 10],
        12: [2, 12],
    }
    store.tidy(before=4)
    assert len(list(tmp_path.glob("*.safetensors"))) == 5  # a checkpoint of round 4 may still go back to them
    store.tidy(before=5)
    assert sorted(f.stem for f in tmp_path.glob("*.safetensors")) == ["round-2", "round-3", "round-4"]
    again = ClientStore(tmp_path)
    again.open([2, 3], 4)  # as it was before round 4
    assert {c: kept["x"].tolist() for c, kept in again.get([1, 12, 13]).items()} == {
        1: [3, 1],
        12: [2, 12],
        13: [3, 13],
    }
    assert not (tmp_path / "round-4.safetensors").exists()


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"clients": {"num": 2}}, "clients.num = 2 is less than num_workers = 3"),
        ({"scenario": {"sample": 2}}, "leave out scenario.sample"),
        ({"clients": {"num": 12, "personal": ["hed.*"]}}, "'hed.*' fits no parameter: there are 0.weight, 0.bias"),
        ({"clients": {"num": 12, "personal": ["*"]}}, "leaves no parameter that is trained together"),
        ({"clients": {"num": 1000}}, "would get no data"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(RecipeError, match=says.replace("*", r"\*")):
        Trainer(federation(**changes))


def test_small_models_of_many_clients_are_computed_in_one_pass_which_changes_no_number() -> None:
    """Eight rows and more: the one-pass path, chosen by a rule, against each worker by itself."""
    r = federation(num_workers=8, clients={"num": 12, "personal": HEAD}, steps=6, checkpoint_every=0)
    at_once, each = Trainer(r), Trainer(r.but(compute={"vectorised": False}))
    assert at_once.built.grad.vectorised is not None
    assert each.built.grad.vectorised is None
    losses = [[e.loss_W for e in trainer.events() if isinstance(e, Stepped)] for trainer in (at_once, each)]
    torch.testing.assert_close(torch.tensor(losses[0]), torch.tensor(losses[1]), rtol=1e-12, atol=1e-14)
    for mine, theirs in zip(at_once.fleet.params.blocks, each.fleet.params.blocks, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-11, atol=1e-13)
    assert Trainer(federation()).built.grad.vectorised is None  # three rows: each by itself


def test_a_pass_that_is_replayed_gives_the_same_bit_for_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also when somebody is down, so that there are other shapes, and over both threads."""
    r = Recipe.of(
        {
            "method": {"name": "local_sgd", "sync_every": 2},
            "model": {"name": "mlp", "hidden": [8]},
            "data": "digits",
            "split": "draw:6",
            "num_workers": 9,
            "clients": {"num": 40},
            "steps": 12,
            "batch_size": 4,
            "scenario": {"failure_rate": 0.05},
            "eval_every": 0,
            "checkpoint_every": 0,
            "schedule": {"warmup": 0},
        }
    )
    runs = []
    for passes in (1_000, 3):
        monkeypatch.setattr("lab.recipes.replay.PASSES", passes)
        trainer = Trainer(r)
        runs.append(([e.loss_W for e in trainer.events() if isinstance(e, Stepped)], trainer))
    assert runs[0][0] == runs[1][0]
    vectorised = runs[1][1].built.grad.vectorised
    assert vectorised is not None
    assert all(isinstance(one, Replayed) and len(one.written) > 1 for one in vectorised.passes)
    for mine, theirs in zip(runs[0][1].fleet.params.blocks, runs[1][1].fleet.params.blocks, strict=True):
        assert torch.equal(mine, theirs)


def test_a_list_of_operations_is_shortened_by_those_that_do_nothing_or_do_it_twice() -> None:
    def one(x: torch.Tensor) -> torch.Tensor:
        same = x.detach().view(2, 3).expand(2, 3) * 1
        return (same + 2).exp() + (x + 2).exp() + x.expand(4, 2, 3).sum(0)

    def over(x: torch.Tensor) -> torch.Tensor:
        y = x * 1
        return y.add_(1) + x

    x = torch.arange(6.0).view(2, 3)
    for function, num in ((one, 6), (over, 3)):  # the second writes over what would be its operand
        short = shortened(make_fx(function)(x))
        assert sum(node.op == "call_function" for node in short.graph.nodes) == num, short.code
        assert torch.equal(short(x), function(x))


def test_who_is_down_at_the_end_of_a_round_keeps_what_it_did_before(tmp_path: Path) -> None:
    """Worker 1 is down in the last step of every round: its client's head has moved all the same."""
    outages = [{"worker": 1, "first": t, "last": t} for t in range(2, 17, 2)]
    trainer = Trainer(federation(clients={"num": 12, "personal": HEAD}, scenario={"outages": outages}))
    seated = [e.clients for e in trainer.events(RunFolder(tmp_path)) if isinstance(e, Seated)]
    (i,) = [i for i, b in enumerate(trainer.fleet.layout.blocks) if b.personal]
    seating = trainer.built.roll_call.seating
    assert seating is not None
    there = {row[1] for row in seated[:-1]} - {c for row in seated for w, c in enumerate(row) if w != 1}
    assert there  # some were never in another row
    for kept in seating.store.get(sorted(there)).values():
        assert not torch.equal(kept[f"params/{i}"], seating.first[f"params/{i}"])
