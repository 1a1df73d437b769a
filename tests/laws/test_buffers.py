"""The laws with a model that has buffers: what they are worth is in the recipe's hand, and no method has to know of them."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lab.costs.calendar import calendar
from lab.events import Sent, Stepped
from lab.ground.errors import RecipeError
from lab.methods import METHODS, Method
from lab.recipes.recipe import Recipe
from lab.recipes.scenario import Outage, Scenario
from lab.runs.build import build
from lab.runs.trainer import Trainer, dry_run
from lab.testing.method_laws import exceptions
from tests.support.cases import SERVED
from tests.support.listed import LISTED
from tests.support.recipes import corpus, normed
from tests.support.stop_and_go import stop_and_go

AWAY = Scenario(outages=(Outage(worker=1, first=3, last=4), Outage(worker=2, last=1)))
AVERAGED: dict[str, Any] = {"kind": "averaged", "every": 2}
ADAPTED = {"lora": {"ranks": [2], "targets": ["hidden"]}}
CASES: dict[str, tuple[Method, Any, dict[str, Any]]] = {
    **{name: (LISTED[name], AVERAGED, {}) for name in LISTED if name in METHODS},
    "ddp first": (LISTED["ddp"], "first", {}),
    "diloco first": (LISTED["diloco"], "first", {}),
    "diloco local": (LISTED["diloco"], "local", {}),
    "diloco frozen": (LISTED["diloco"], "frozen", {}),
    "fedit": (SERVED["fedit"].method, AVERAGED, ADAPTED),
    "fedit in rounds": (SERVED["fedit"].method, "averaged", ADAPTED),
    "prelort": (SERVED["prelort"].method, AVERAGED, {"lora": {"ranks": [1, 2, 1], "targets": ["hidden"]}}),
    "clients": (LISTED["diloco"], AVERAGED, {"clients": {"num": 5}}),
}
every_case = pytest.mark.parametrize("name", CASES)


def case(name: str, **changes: Any) -> Recipe:
    method, buffers, more = CASES[name]
    return normed(method, buffers=buffers, **more, **changes)


def own(trainer: Trainer, worker: int) -> dict[str, Tensor]:
    return {name: x.clone() for name, x in trainer.fleet.modules[worker].named_buffers()}


@every_case
def test_dry_run_is_the_run(name: str) -> None:
    r = case(name, scenario=AWAY, codecs={"buffers": "bfloat16"} if "averaged" in str(CASES[name][1]) else {})
    real = [e for e in Trainer(r, corpus=corpus()).events() if isinstance(e, Sent)]
    planned, in_short = dry_run(r), list(calendar(build(r, dry=True).dry_run()))
    assert in_short == planned
    if "dry run" in exceptions(r.method):  # of what it sends itself
        real, planned = ([e for e in sent if e.state == "buffers"] for sent in (real, planned))
    assert planned == real
    sends = CASES[name][1] not in ("local", "frozen")
    assert any(r.state == "buffers" for r in real) == sends


@every_case
def test_down_is_still_and_silent_and_back_listens_first(name: str) -> None:
    """Buffers of a worker that is away neither move nor travel; what it missed it gets before it computes again."""
    r = case(name, scenario=AWAY, steps=5)
    trainer = Trainer(r, corpus=corpus())
    seen: dict[int, list[dict[str, Tensor]]] = {}
    for event in trainer.events():
        if isinstance(event, Stepped):
            seen[event.step] = [own(trainer, w) for w in range(3)]
    for t, key in itertools.product((3, 4), seen[2][1]):
        assert torch.equal(seen[t][1][key], seen[2][1][key]), (t, key)
    moves = CASES[name][1] != "frozen"
    assert torch.equal(seen[4][0]["norms.0.running_mean"], seen[2][0]["norms.0.running_mean"]) != moves
    sent = [x for x in trainer.comm.ledger if x.state == "buffers"]
    assert not [x for x in sent if x.step in (3, 4) and 1 in x.workers]
    back = [x for x in sent if x.step == 5 and 1 in x.workers]
    assert bool(back) == (CASES[name][1] not in ("local", "frozen"))
    assert all(x.op == "broadcast" for x in back[:1])


@every_case
def test_resume_is_never_stopped(name: str, tmp_path: Path) -> None:
    stop_and_go(case(name, scenario=AWAY, steps=5), tmp_path)


@every_case
def test_what_is_agreed_on(name: str) -> None:
    """The model is evaluated, and written down, with the means of the workers; or the server's; or the first worker's."""
    trainer = Trainer(case(name), corpus=corpus())
    list(trainer.events())
    model = dict(trainer.fleet.whole_model(trainer.agreed()).named_buffers())
    here = [own(trainer, w) for w in range(3)]
    for key in ("norms.0.running_mean", "norms.0.running_var"):
        want = torch.stack([of[key] for of in here]).mean(0)
        if CASES[name][1] == "first":
            want = here[0][key]
            assert not torch.equal(here[0][key], here[1][key])
        elif trainer.state.served:
            want = trainer.state.shared["buffers"][key][0]
        assert torch.allclose(model[key], want, rtol=1e-14, atol=0), key
        synced = CASES[name][1] not in ("first", "local") and not trainer.state.served
        assert torch.equal(here[0][key], here[1][key]) == synced, key


def test_a_recipe_of_before_has_its_id() -> None:
    """What is not asked for is not written down; a kind alone may be written as a text."""
    assert "buffers" not in Recipe.of("ddp").to_dict()
    r = Recipe.of("ddp", ["buffers=averaged", "buffers.every=8"])
    assert r.to_dict()["buffers"] == {"kind": "averaged", "every": 8}
    assert Recipe.of(r.to_dict()).id == r.id != Recipe.of("ddp").id


def test_clients_bring_no_buffers_of_their_own() -> None:
    """Another client sits in a row in each round; nobody would keep what was its own."""
    r = normed("diloco", clients={"num": 5})
    with pytest.raises(RecipeError, match="nobody keeps a client's own buffers: set buffers=averaged"):
        Trainer(r)
    Trainer(r.but(model=r.to_dict()["model"] | {"norm": "group"}))


def test_bytes_of_resnet18_by_hand() -> None:
    """Twenty BatchNorms with 4,800 channels: two numbers of four bytes for each channel, and twenty counts of eight."""
    of = {"model": "resnet18", "num_workers": 2, "steps": 1, "dtype": "float32"}
    first, averaged = (normed("ddp", buffers=kind, **of) for kind in ("first", "averaged"))
    sent = [x for x in dry_run(first) if x.state == "buffers"]
    assert [(x.op, x.workers, x.payload_bytes) for x in sent] == [
        ("broadcast", (1,), {"norm": 2 * 4800 * 4}),
        ("broadcast", (1,), {"norm": 20 * 8}),
    ]
    (one,) = [x for x in dry_run(averaged) if x.state == "buffers"]
    assert (one.op, one.workers, one.payload_bytes) == ("all_reduce", (0, 1), {"norm": 38_400})
