"""A method in a file of its own, outside of the lab: registered by the decorator, and then like any other; no other file is touched."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from click.testing import CliRunner

from lab.cli import main
from lab.events import Placed, Sent
from lab.ground.config import config
from lab.ground.errors import RecipeError
from lab.methods import METHODS, declared, method, name_of
from lab.methods.diloco import DiLoCo
from lab.methods.fomoe import FoMoE
from lab.methods.local_sgd import LocalSGD
from lab.models.moe import MoE
from lab.recipes.notes import notes
from lab.recipes.recipe import Recipe
from lab.recipes.scenario import Outage, Scenario
from lab.runs.columns import Columns
from lab.runs.knobs import validate_knob
from lab.runs.plan import plan
from lab.runs.trainer import Trainer, train
from tests.support.recipes import corpus, recipe
from tests.support.stop_and_go import stop_and_go

HEAD = """
from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from lab.ground.config import Period, RecipeView, config
from lab.engine.comm import Communicator
from lab.engine.optim import AdamW, Optimizer, forget_
from lab.engine.state import Grad, State
from lab.ground.errors import RecipeError
from lab.methods import method
"""

# A server keeps the model; clients fetch it at the beginning of a round, or when they are back, and hand in what became of it.
RELAY = '''
@method("relay", server=True)
@config
class Relay:
    """FedAvg with a server that keeps the model."""

    sync_every: Period = 2
    inner: Optimizer = Field(default_factory=lambda: AdamW(lr=3e-3))
    slow: bool = False

    @property
    def averages(self) -> tuple[str, ...]:
        return ("params",)

    def check(self, recipe: RecipeView) -> None:
        if self.slow and recipe.num_workers > 3:
            raise RecipeError("method.slow = true is for at most 3 workers: leave it out")

    def notes(self, recipe: RecipeView):
        if self.slow:
            yield "method.slow = True makes no difference"

    def init(self, s: State) -> None:
        s.optimizers["inner"] = self.inner.over(s.local["params"], s.grads)
        s.shared["params"] = s.local["params"].first()

    def step(self, s: State, grad: Grad, comm: Communicator, t: int) -> Tensor:
        begins = (t - 1) % self.sync_every == 0
        to = [w for w, up in enumerate(s.fleet.up) if up and (begins or w in s.returned)]
        if to:
            comm.broadcast_(s.shared["params"], s.local["params"], "params", to=to)
        loss_W = grad(s)
        self.inner.step_(s, t)
        if t % self.sync_every == 0:
            agreed = s.shared["params"]
            s.shared["params"] = comm.mean(s.local["params"], "params", fallback=agreed, to_server=True)
        return loss_W
'''

# Experts change workers between rounds: what FoMoE does, without its other states.
NOMADS = '''
@method("nomads", moves_experts=True)
@config
class Nomads:
    """Experts that move, with a plain mean of the parameters."""

    sync_every: Period = 2
    inner: Optimizer = Field(default_factory=lambda: AdamW(lr=1e-2))

    @property
    def averages(self) -> tuple[str, ...]:
        return ("params",)

    def init(self, s: State) -> None:
        s.optimizers["inner"] = self.inner.over(s.local["params"], s.grads)
        s.shared["params"] = s.local["params"].first()

    def step(self, s: State, grad: Grad, comm: Communicator, t: int) -> Tensor:
        if s.experts is not None and s.experts.redraw_(t, self.sync_every):
            arrived = s.fleet.hold_(s.experts.holders, t)
            comm.send_(s.shared["params"], s.local["params"], "params", arrived)
            forget_(s.optimizers["inner"], s.local["params"], arrived)
        loss_W = grad(s)
        self.inner.step_(s, t, s.experts.warmup(self.sync_every) if s.experts is not None else 0)
        if t % self.sync_every == 0:
            s.shared["params"] = comm.mean(s.local["params"], "params", fallback=s.shared["params"])
            s.local["params"].copy_(s.shared["params"], s.fleet.up)
        return loss_W
'''

# A loss of its own: the model's, and a penalty on the logits.
QUIET = '''
@method("quiet", own_loss=True)
@config
class Quiet:
    """Local SGD of the model's loss and a penalty on large logits."""

    sync_every: Period = 2
    penalty: float = 0.1
    inner: Optimizer = Field(default_factory=lambda: AdamW(lr=3e-3))

    @property
    def averages(self) -> tuple[str, ...]:
        return ("params",)

    def fixed_periods(self, recipe: RecipeView) -> str | None:
        return "the periods of quiet are fixed while it whispers" if self.penalty == 0.5 else None

    def init(self, s: State) -> None:
        s.optimizers["inner"] = self.inner.over(s.local["params"], s.grads)

    def step(self, s: State, grad: Grad, comm: Communicator, t: int) -> Tensor:
        loss_W = grad(s, lambda module, w, ids, targets: module.loss(ids, targets) + self.penalty * module(ids).square().mean())
        self.inner.step_(s, t)
        if t % self.sync_every == 0:
            comm.mean_(s.local["params"], "params")
        return loss_W
'''
AWAY = Scenario(outages=(Outage(worker=1, first=2, last=3),))
NAMES = ("relay", "nomads", "quiet")


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """A module with the three, as somebody would have it beside a script of theirs."""
    (tmp_path / "my_methods.py").write_text(HEAD + RELAY + NOMADS + QUIET)
    monkeypatch.syspath_prepend(tmp_path)
    yield importlib.import_module("my_methods")
    sys.modules.pop("my_methods")


def tiny(name: str, **changes: Any) -> Recipe:
    experts = {
        "model": MoE(dim=8, num_layers=2, num_heads=2, num_experts=4, expert_dim=4, top_k=2),
        "placement": {"overlap": 2, "kind": "random"},
        "num_workers": 4,
        "routing_every": 2,
    }
    return recipe({"name": name}, **({"scenario": AWAY} | (experts if name == "nomads" else {}) | changes))


def refused(call: Callable[[], Any]) -> str:
    with pytest.raises(RecipeError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_it_is_found_by_its_name_and_as_an_object(own: ModuleType) -> None:
    r = tiny("relay")
    assert r.method == own.Relay()
    assert type(r.method) is own.Relay
    assert Recipe.of(r.to_dict()) == r == recipe(own.Relay(), scenario=AWAY)
    assert r.id.startswith("relay-3w-")
    assert [declared(METHODS[name]).server for name in NAMES] == [True, False, False]
    assert "did you mean 'relay'" in refused(lambda: tiny("relai"))
    assert "unknown option 'method.sync_evry'" in refused(lambda: recipe({"name": "quiet", "sync_evry": 2}))


@pytest.mark.parametrize("name", NAMES)
def test_it_trains_and_its_dry_run_sends_the_same(own: ModuleType, name: str) -> None:
    r = tiny(name)
    columns = train(r)
    assert columns.ended is not None
    assert columns.ended.status == "done"
    assert columns.loss[-1] < columns.loss[0]
    planned = plan(r)
    assert planned.served == (name == "relay")
    assert planned.ledger == [e for e in Trainer(r, corpus=corpus()).events() if isinstance(e, Sent)]
    assert sum(planned.payload_bytes_W) == columns.ledger.total_bytes() > 0


@pytest.mark.parametrize("name", NAMES)
def test_it_is_stopped_and_resumed(own: ModuleType, name: str, tmp_path: Path) -> None:
    stop_and_go(tiny(name), tmp_path)


def test_its_experts_move(own: ModuleType) -> None:
    events = list(Trainer(tiny("nomads"), corpus=corpus()).events())
    assert [e.step for e in events if isinstance(e, Placed)] == [1, 3, 5]


def test_its_own_loss_is_what_it_trains(own: ModuleType) -> None:
    """Without the penalty it is Local SGD; with it every loss that it reports is larger, and so it ends elsewhere."""

    def run(m: Any) -> Columns:
        return train(recipe(m, steps=4))

    plain = run(LocalSGD(2, own.Quiet().inner, max_norm=None))
    assert run(own.Quiet(penalty=0.0)).loss_W == plain.loss_W
    assert run(own.Quiet()).loss[0] > plain.loss[0]


def test_recipes_ask_what_it_declares(own: ModuleType) -> None:
    sampled = Scenario(sample=2, sample_every=3)
    assert "midst of rounds of 2 steps" in refused(lambda: tiny("relay", scenario=sampled))
    assert tiny("quiet", scenario=sampled).scenario == sampled  # no server: no rounds that begin with it
    one_pass = {"vectorised": True}
    assert "does not go with the loss that quiet has of its own" in refused(lambda: tiny("quiet", compute=one_pass))
    assert tiny("relay", compute=one_pass).compute.vectorised
    others = tiny("nomads").to_dict() | {"method": {"name": "quiet"}}
    assert "quiet does not do: use method fomoe or nomads" in refused(lambda: Recipe.of(others))
    assert "at most 3 workers" in refused(lambda: recipe({"name": "relay", "slow": True}, num_workers=4))
    assert notes(recipe({"name": "relay", "slow": True})) == ["method.slow = True makes no difference"]
    assert any("nothing is ever synchronised" in line for line in notes(recipe({"name": "quiet", "sync_every": 99})))


def test_knobs_ask_whether_its_periods_can_change(own: ModuleType) -> None:
    assert "its rounds begin with what clients fetch" in refused(
        lambda: validate_knob(tiny("relay"), "sync_every", 3, {})
    )
    assert "where experts move" in refused(lambda: validate_knob(tiny("nomads"), "sync_every", 3, {}))
    assert validate_knob(tiny("quiet"), "sync_every", 3, {}) == 3
    whispers = recipe({"name": "quiet", "penalty": 0.5})
    assert "while it whispers" in refused(lambda: validate_knob(whispers, "sync_every", 3, {}))
    trainer = Trainer(tiny("quiet"), corpus=corpus())
    trainer.knob_source = lambda t: [("sync_every", 3)] if t == 3 else []
    assert [e.step for e in trainer.events() if isinstance(e, Sent) and e.op == "all_reduce"] == [2, 3, 6]


def test_the_command_line_has_it_too(own: ModuleType) -> None:
    told = CliRunner().invoke(main, ["plan", "diloco", "-o", "method=relay", "-o", "steps=32"])
    assert told.exit_code == 0, told.output
    assert "relay: 4 workers" in told.output
    assert "with a server" in told.output
    assert re.search(
        r"\n  relay +FedAvg with a server that keeps the model\.\n", CliRunner().invoke(main, ["list"]).output
    )


# --- what is refused -------------------------------------------------------------------------------------------------


class Unregistered(DiLoCo):
    pass


def test_a_class_without_the_decorator_is_refused_in_one_line() -> None:
    assert refused(lambda: Recipe(method=Unregistered())) == (
        "method Unregistered is not registered, so that no recipe can name it: write @method('unregistered') from lab.methods "
        "above its class"
    )
    assert "is not registered" in refused(lambda: name_of(Unregistered()))
    assert name_of(DiLoCo()) == "diloco"  # its parent is


@pytest.mark.parametrize(
    ("decorate", "says"),
    [
        (lambda: method("diloco")(Unregistered), "the name belongs to lab.methods.diloco.DiLoCo, choose another"),
        (lambda: method("My Method")(Unregistered), "is no name for Unregistered: use small letters"),
        (lambda: method(Unregistered), '@method above Unregistered has no name: write @method("fed_prox")'),  # type: ignore[arg-type]
        (lambda: method("mine")(object), "write @config from lab.ground.config above object"),
        (lambda: method("mine")(config(type("Bare", (), {}))), "Bare lacks inner, sync_every, averages, init, step"),
    ],
)
def test_what_is_no_method_is_not_registered(decorate: Callable[[], Any], says: str) -> None:
    before = dict(METHODS)
    assert says in refused(decorate)
    assert before == METHODS


def test_a_cell_that_is_run_again_replaces_its_class(monkeypatch: pytest.MonkeyPatch) -> None:
    """And an object of the former class is not taken for one of the present."""

    def cell() -> type[Any]:
        return method("of_a_cell")(type("OfACell", (FoMoE,), {"__module__": __name__}))

    monkeypatch.setitem(METHODS, "of_a_cell", cell())
    former = METHODS["of_a_cell"]()
    assert name_of(former) == "of_a_cell"
    present = cell()
    assert METHODS["of_a_cell"] is present
    assert name_of(present()) == "of_a_cell"
    assert "no longer what 'of_a_cell' stands for" in refused(lambda: Recipe(method=former))


def test_a_class_may_move_from_a_cell_into_a_file_and_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """Under its own name; neither a class of another name nor one of the lab's gives way."""

    def at(module: str, name: str = "Moved") -> type[Any]:
        return method("moved")(type(name, (FoMoE,), {"__module__": module}))

    monkeypatch.setitem(METHODS, "moved", at("__main__"))
    in_cell = METHODS["moved"]()
    kept = Recipe(method=in_cell)
    for module in ("my_moved", "__main__", "my_moved"):
        moved = at(module)
        assert METHODS["moved"] is moved
    assert "no longer what 'moved' stands for: make the object anew" in refused(lambda: name_of(in_cell))
    assert "no longer what 'moved' stands for: make the object anew" in refused(lambda: kept.but(steps=3))
    for module, name in (("another_file", "Moved"), ("__main__", "Other")):
        assert "the name belongs to my_moved.Moved, choose another" in refused(lambda: at(module, name))  # noqa: B023
    of_cell = type("DiLoCo", (DiLoCo,), {"__module__": "__main__"})
    assert "the name belongs to lab.methods.diloco.DiLoCo" in refused(lambda: method("diloco")(of_cell))
