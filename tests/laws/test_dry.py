"""A calendar that executes only steps that differ is the ledger of the run, record by record."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch

from lab.costs.calendar import Asked, Calendar, Step, calendar
from lab.costs.network import NETWORKS, Network
from lab.events import Sent
from lab.ground.errors import RecipeError
from lab.methods.des_loc import DESLOC
from lab.recipes.notes import notes
from lab.recipes.presets import PRESETS
from lab.recipes.recipe import Recipe
from lab.recipes.scenario import Outage, Scenario
from lab.runs.build import build
from lab.runs.dry import DryRun
from lab.runs.plan import plan
from lab.runs.trainer import Trainer
from tests.support.cases import OVER_PROCESSES
from tests.support.every import every_name
from tests.support.listed import LISTED
from tests.support.recipes import recipe

ROUGH = {
    "outages": [{"worker": 1, "first": 5, "last": 70}, {"worker": 0, "first": 1, "last": 9}],
    "failure_rate": 0.02,
}
SAMPLED = {"sample": 2, "sample_every": 32, "slow": {"1": 3.0}}


def step_by_step(r: Recipe) -> list[Sent]:
    """The long way: every step is executed."""
    return [e for e in Trainer(r, dry=True).events() if isinstance(e, Sent)]


def same_prices(sent: Calendar, records: list[Sent], r: Recipe) -> None:
    for network in (Network(), Network(topology="server", overlap=0.3), NETWORKS["10Mbit"]):
        given: dict[str, Any] = {"num_workers": r.num_workers, "compute_seconds": 0.01, "slow": r.scenario.slow}
        short, long = sent.price(network, **given), network.price(records, steps=r.steps, **given)
        np.testing.assert_allclose(short.at_step, long.at_step, rtol=1e-12)
        np.testing.assert_allclose(short.wire_bytes_W, long.wire_bytes_W, rtol=1e-12)
        assert short.communication_seconds == pytest.approx(long.communication_seconds, rel=1e-9)
        assert short.wire_bytes_by_state == pytest.approx(long.wire_bytes_by_state)


def check(r: Recipe) -> Calendar:
    sent, records = calendar(build(r, dry=True).dry_run()), step_by_step(r)
    assert list(sent) == records
    assert [sent.total_bytes(w) for w in range(r.num_workers)] == [
        sum(x.bytes_each for x in records if w in x.workers and not x.level) for w in range(r.num_workers)
    ]
    same_prices(sent, records, r)
    return sent


SMALL = [n for n in PRESETS if n not in ("fomoe_104B", "fomoe_1.8B")]


@pytest.mark.parametrize("scenario", [{}, ROUGH, SAMPLED], ids=["calm", "rough", "sampled"])
@pytest.mark.parametrize("name", SMALL)
def test_every_preset(name: str, scenario: dict[str, Any]) -> None:
    r = Recipe.of(name)
    if r.clients.num and scenario is SAMPLED:
        pytest.skip("its clients are drawn already")
    if r.num_workers == 1 and scenario:
        pytest.skip("it has one worker, and these scenarios speak of others")
    check(r.but(steps=130, schedule={}, scenario=scenario))


@every_name
def test_every_listed_method(name: str) -> None:
    storm = Scenario(outages=(Outage(worker=1, first=3, last=4), Outage(worker=2, last=2)), failure_rate=0.1)
    for scenario in (Scenario(), storm):
        check(recipe(LISTED[name], steps=60, scenario=scenario))


@pytest.mark.parametrize("name", [n for n in OVER_PROCESSES if "storm" not in n and n not in LISTED])
def test_experts_that_move_clients_of_different_rank_codecs(name: str) -> None:
    check(OVER_PROCESSES[name].but(steps=40))


def test_steps_that_are_alike_are_executed_once() -> None:
    """Three periods without a common factor: eight kinds of steps, of which a cycle would be 32 · 97 · 193 steps."""
    r = recipe(DESLOC(sync_every={"params": 32, "exp_avg": 97, "exp_avg_sq": 193}), steps=1_300_000)
    dry = build(r, dry=True).dry_run()
    executed: list[int] = []
    real = dry.dry_step
    dry.dry_step = lambda number, t: executed.append(number) or real(number, t)  # type: ignore[method-assign, func-returns-value]
    sent = calendar(dry)
    assert len(executed) < 20
    assert len(sent.kinds) == 8
    for state, period in r.method.sync_every.items():
        assert sum(n for n, kind in zip(sent.times, sent.kinds, strict=True) if state in {x.state for x in kind}) == (
            r.steps // period
        )
    assert sent.kinds[sent.which_T[32 * 97 * 193 - 1]] == sent.kinds[-1]
    assert {x.state for x in sent.kinds[-1]} == set(r.method.sync_every)


@dataclass(frozen=True)
class Odd:
    """Uses the number of its step in every way that there is, and sends accordingly."""

    inner: Any = field(default_factory=lambda: DESLOC().inner)

    def init(self, s: Any) -> None:
        s.optimizers["inner"] = self.inner.over(s.local["params"], s.grads)

    def step(self, s: Any, grad: Any, comm: Any, t: int) -> Any:
        loss_W = grad(s)
        self.inner.step_(s, t)
        for name, due in (
            ("a", t % 4 == 1),
            ("b", (t * 3 + 1) // 7 % 5 == 2),
            ("c", 10 < t <= 20 or t > 53),
            ("d", not t % 6),
            ("e", math.sqrt(t) > 6.5),  # a float of it
            ("f", str(t).endswith("3")),
            ("g", t in {17, 29, 31}),
            ("h", range(100)[t] > 57),
            ("i", torch.arange(100)[t] == 40),
            ("j", t / 2 > 29.4),
            ("k", divmod(t - 1, 8)[1] >= 7 and -t % 3 == 0 and abs(3 - t) > 5),
            ("l", t.bit_length() == 5),
            ("m", max(t, 30) % 11 == 0),
            ("n", (60 - t) % 10**30 == 5),  # beyond 64 bits
        ):
            if due:
                comm.mean_(s.local["params"], name)
        return loss_W


def test_whatever_a_method_does_with_the_number_of_its_step(monkeypatch: pytest.MonkeyPatch) -> None:
    def trainer() -> Trainer:
        made = Trainer(recipe("des_loc", steps=60), dry=True)
        made.knobs.method = Odd()
        return made

    records = [e for e in trainer().events() if isinstance(e, Sent)]
    sent = calendar(trainer().built.dry_run())
    assert list(sent) == records
    assert {r.state for r in records} == set("abcdefghijklmn")


def test_questions_and_answers() -> None:
    asked = Asked()
    t = Step(12, asked)
    assert t % 4 == 0
    assert not t > 20
    assert asked.alike(np.arange(1, 25)).nonzero()[0].tolist() == [3, 7, 11, 15, 19]
    assert asked.all
    assert f"{t}" == "12"
    assert not asked.all


def test_a_ledger_as_a_calendar() -> None:
    r = recipe("des_loc", steps=20, scenario=Scenario(outages=(Outage(worker=0, first=5, last=7),)))
    records = step_by_step(r)
    assert list(Calendar.of(records, r.steps)) == records


@pytest.mark.parametrize("name", ["des_loc", "fomoe", "prelort", "noloco", "streaming_diloco"])
def test_a_plan_is_that_of_the_ledger(name: str) -> None:
    """Totals and prices of a plan from all records, worked out one by one."""
    r = Recipe.of(name).but(steps=200)
    p = plan(r)
    ledger = step_by_step(r)
    assert p.ledger == ledger
    busiest = p.payload_bytes_W.index(max(p.payload_bytes_W))
    for s in p.states:
        mine = [x for x in ledger if (x.state, x.op) == (s.state, s.op) and busiest in x.workers]
        assert (s.times, s.total_bytes) == (len({x.step for x in mine}), sum(x.bytes_each for x in mine))
    whole = r.but(codecs={}, placement={})
    if r.lora.ranks:
        whole = whole.but(lora=vars(r.lora) | {"ranks": r.lora.bounds[-1:], "train": "both"})
    ddp = step_by_step(whole.but(method={"name": "ddp", "inner": vars(r.method.inner)}))
    assert p.ddp_bytes == sum(x.bytes_each for x in ddp if busiest in x.workers)
    net = NETWORKS["10Mbit"]
    given: dict[str, Any] = {"num_workers": r.num_workers, "steps": r.steps, "compute_seconds": p.seconds_per_step}
    assert next(f.ddp_hours for f in p.forecasts if f.network == "10Mbit") == pytest.approx(
        net.price(ddp, **given).total_seconds / 3600
    )


def test_a_plan_of_a_million_steps_and_of_the_largest_model_executes_few(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    real = DryRun.dry_step
    monkeypatch.setattr(DryRun, "dry_step", lambda self, n, t: calls.append(n) or real(self, n, t))
    p = plan(Recipe.of("des_loc").but(steps=1_000_000))
    assert p.states[0].times == 1_000_000 // Recipe.of("des_loc").method.sync_every["params"]
    assert len(calls) < 30


def test_a_plan_says_what_it_assumes() -> None:
    """Both numbers of a link, the device, whether a worker fits into it, and no gain where nothing is sent."""
    alone = plan(Recipe.of("des_loc").but(steps=5, schedule={})).to_text()
    assert "nothing is sent in this run" in alone
    assert "×" not in alone.split("gain")[1]
    large = plan(Recipe.of("des_loc_13B").but(steps=256, schedule={}), {"slow": NETWORKS["10Mbit"]})
    assert not large.fits
    assert "10 Mbit/s, 50 ms" in large.to_text()
    assert "one h100 a worker" in large.to_text()
    assert "does not fit" in large.to_text()
    several = plan(Recipe.of("des_loc_13B").but(steps=256, schedule={}), {}, devices_per_worker=8)
    assert several.fits
    with pytest.raises(RecipeError, match="unknown device"):
        plan(Recipe.of("des_loc"), device="h10")


def test_a_plan_of_sampled_clients_says_what_the_others_cost() -> None:
    r = Recipe.of("photon").but(num_workers=2000, steps=64, schedule={}, scenario={"sample": 10, "sample_every": 64})
    assert "all 2,000 together 4.6 GB" in plan(r, {}).to_text()
    assert any("10 of 2,000 workers: memory" in note for note in notes(r))
    assert not any("memory" in note for note in notes(r.but(num_workers=12)))
