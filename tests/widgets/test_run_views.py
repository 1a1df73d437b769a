"""The five views of a run: what they fold is what the events, the ledger and the dry run say; their forms and menus agree."""

from __future__ import annotations

import base64
import json
import math
import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lab.costs.network import NETWORKS, Meter, Network, Turn
from lab.engine.comm import Meeting
from lab.engine.ledger import Ledger
from lab.engine.stack import Stack
from lab.events import Drifted, Ended, Evaluated, Event, KnobChanged, Sent, Started, Stepped, from_json, to_json
from lab.recipes.recipe import Recipe
from lab.runs.columns import Columns
from lab.runs.growing import Extent
from lab.runs.trainer import Trainer
from tests.support.pictures import (
    Place,
    by_client,
    compared,
    endless,
    federation,
    iterated,
    levelled,
    masked,
    orchestrated,
    pseudo_labelled,
    routing,
    weighed,
)
from widgets import (
    AgentGraph,
    CommunicationBudget,
    Drift,
    Fairness,
    Growing,
    Iterations,
    Lines,
    Losses,
    MaskAgreement,
    PrivacyLevels,
    PseudoLabels,
    RankSegments,
    RoutingStability,
    SampleWeights,
    SyncCalendar,
    Underperformers,
    View,
    Workers,
)
from widgets.canvas import Canvas
from widgets.colours import COLOURS
from widgets.communication_budget import Budget
from widgets.forecasts import forecast
from widgets.menus import with_menu
from widgets.pictures import MAX_POINTS, stored
from widgets.sync_calendar import MISSED
from widgets.timelines import Calendar

RECIPE = Recipe.of(
    "des_loc",
    [
        "steps=24",
        "context=16",
        "batch_size=1",
        "eval_every=6",
        "eval_windows=2",
        "schedule.warmup=0",
        'method.sync_every={"params":4,"exp_avg":8,"exp_avg_sq":12}',
        'scenario={"outages":[{"worker":3,"first":6,"last":9},{"worker":1,"last":3}],"slow":{"2":2.5}}',
    ],
)


@pytest.fixture(scope="module")
def events() -> list[Event]:
    """A real run of four workers: one late, one that goes down, one slow."""
    return list(Trainer(RECIPE).events())


@pytest.fixture(scope="module")
def columns(events: list[Event]) -> Columns:
    return Columns.of(events)


def views() -> list[View]:
    return [Losses(), CommunicationBudget(RECIPE, budget="1 MB"), SyncCalendar(RECIPE), Drift(), Workers(RECIPE)]


# --- numbers that grow -----------------------------------------------------------------------------------------------


@given(
    st.lists(st.one_of(st.none(), st.floats(allow_nan=False, width=32), st.integers(-5, 5)), max_size=200), st.data()
)
def test_growing_numbers_are_the_list_and_its_extremes(numbers: list[float | None], data: Any) -> None:
    """Whenever it is looked at; a view of its values stays as it was when more come."""
    held, finite = Growing(), [v for v in numbers if v is not None and math.isfinite(v)]
    early = data.draw(st.integers(0, len(numbers)))
    held.extend(numbers[:early])
    seen, before = held.values, held.extent
    held.extend(numbers[early:])
    assert len(held) == len(numbers)
    np.testing.assert_array_equal(np.asarray(held), np.array([np.nan if v is None else v for v in numbers]))
    np.testing.assert_array_equal(seen, held.values[:early])
    assert before | held.extent == held.extent == Extent.of(held.values)
    if finite:
        assert (held.extent.low, held.extent.high) == (min(finite), max(finite))
        assert held.extent.low_positive == min((v for v in finite if v > 0), default=math.inf)
        assert held.extent.whole == all(float(v).is_integer() for v in finite)


# --- one run as lines ------------------------------------------------------------------------------------------------


def in_numbers(columns: Columns) -> dict[str, np.ndarray]:
    """By hand: loss, tokens and bytes after each step, all in one go."""
    loss, up = np.array(columns.loss_W, dtype=float), np.array([[x is not None for x in row] for row in columns.loss_W])
    sent = [sum(r.bytes_all for r in columns.ledger if r.step == t) for t in columns.step]
    assert columns.started is not None
    return {
        "steps": np.array(columns.step),
        "loss": np.where(up, loss, 0).sum(1) / up.sum(1),
        "tokens": np.cumsum(up.sum(1) * columns.started.tokens_per_step / columns.num_workers),
        "bytes": np.cumsum(sent),
    }


@pytest.mark.parametrize("every", [1, 7, 10**6], ids=["looked at after every event", "now and then", "at the end"])
def test_curves_are_what_the_columns_say(events: list[Event], every: int) -> None:
    """However often they are looked at while the run goes on."""
    columns = Columns()
    for k, event in enumerate(events):
        columns.add(event)
        if k % every == every - 1:
            assert len(columns.curves.steps) == len(columns.step)
            assert len(columns.payload_bytes) == len(columns.step)
    curves, expected = columns.curves, in_numbers(columns)
    assert curves.steps.values.tolist() == columns.step
    np.testing.assert_array_equal(curves.bytes.values, expected["bytes"])
    np.testing.assert_array_equal(columns.payload_bytes, expected["bytes"])
    np.testing.assert_array_equal(curves.tokens.values, expected["tokens"])
    np.testing.assert_allclose(curves.loss.values, expected["loss"])
    for w in range(4):
        assert [None if math.isnan(x) else x for x in curves.loss_W[w].values] == [row[w] for row in columns.loss_W]
    at = dict(zip(columns.step, range(len(columns.step)), strict=True))
    for along, name in ((curves.eval_steps, "steps"), (curves.eval_tokens, "tokens"), (curves.eval_bytes, "bytes")):
        assert along.values.tolist() == [expected[name][at[s]] for s in columns.eval_step]
    assert curves.eval_loss.values.tolist() == columns.eval_loss
    for w in range(4):
        assert curves.bytes_W[w] == columns.ledger.total_bytes(w)
    assert {(s,): b for s, b in curves.bytes_by_state.items()} == columns.ledger.by("state")


def test_what_the_last_step_sent_so_far_is_counted(events: list[Event]) -> None:
    """In the midst of a step its payload is in the columns already; the curve waits until the step has sent all."""
    columns, last = Columns(), next(k for k, e in reversed(list(enumerate(events))) if isinstance(e, Sent))
    for event in events[: last + 1]:
        columns.add(event)
    assert columns.payload_bytes[-1] == columns.ledger.total_bytes()
    assert len(columns.curves.bytes) == len(columns.step) - 1
    columns.close()
    assert columns.curves.bytes[-1] == columns.ledger.total_bytes()


def test_curves_are_priced_as_the_columns_are(events: list[Event], columns: Columns) -> None:
    """At the end exactly as the ledger is priced afterwards; in mid-run on whatever network was asked for last."""
    growing = Columns()
    for k, event in enumerate(events):
        growing.add(event)
        if k == len(events) // 2:
            growing.priced(NETWORKS["10Mbit"])
            price = growing.priced(NETWORKS["1Gbit"])
            assert growing.priced(NETWORKS["1Gbit"]) is price
            now = Columns.of(events[: k + 1])
            np.testing.assert_allclose(
                price.seconds.values, now.price(NETWORKS["1Gbit"]).at_step[now.step][: len(price.seconds)]
            )
    for name, network in NETWORKS.items():
        price, bill = growing.priced(network), columns.price(network)
        np.testing.assert_allclose(price.seconds.values, bill.at_step[columns.step], err_msg=name)
        np.testing.assert_allclose(price.meter.wire_bytes_W, bill.wire_bytes_W)
        assert price.wire_bytes[-1] == pytest.approx(bill.wire_bytes_W.sum())
        assert price.meter.wire_bytes_by_state == pytest.approx(bill.wire_bytes_by_state)
        np.testing.assert_array_equal(price.eval_seconds.values, price.seconds.values[columns.eval_row])


@pytest.mark.parametrize("every", [1, 5, 40])
def test_a_price_goes_on_as_the_run_does(events: list[Event], columns: Columns, every: int) -> None:
    """Looked at often or seldom, so that rows are priced one by one or many at once: the same in the end."""
    growing, network = Columns(), NETWORKS["10Mbit"]
    for k, event in enumerate(events):
        growing.add(event)
        if k % every == every - 1:
            growing.priced(network, compute_seconds=0.0)
    price, bill = growing.priced(network, compute_seconds=0.0), columns.price(network, 0.0)
    np.testing.assert_allclose(price.seconds.values, bill.at_step[columns.step])
    np.testing.assert_allclose(price.meter.wire_bytes_W, bill.wire_bytes_W)
    assert price.meter.wire_bytes_by_state == pytest.approx(bill.wire_bytes_by_state)


records = st.builds(
    Sent,
    step=st.integers(1, 12),
    op=st.sampled_from(["all_reduce", "all_gather", "broadcast", "gather"]),
    state=st.sampled_from(["params", "exp_avg"]),
    workers=st.sets(st.integers(0, 3), min_size=1).map(lambda w: tuple(sorted(w))),
    payload_bytes=st.builds(lambda n: {"mlp": n}, st.integers(1, 10**6)),
)


TURNS: list[Turn] = [(1, (1.0, 2.0, 0.0, 1.0)), (3, (4.0, 0.5, 1.0, 1.0)), (8, (1.0, 1.0, 1.0, 1.0))]
RECORD = Sent(1, "all_reduce", "params", (0, 2), {"mlp": 1000})  # of some workers, so that others go on by themselves


@given(st.lists(records, max_size=12), st.sampled_from(["ring", "server", "all_to_all"]), st.floats(0, 1))
def test_a_meter_read_at_every_step_shows_the_bill(sent: list[Sent], topology: Any, overlap: float) -> None:
    network = Network(bits_per_second=1e6, latency_seconds=0.01, topology=topology, overlap=overlap, links={2: 1e5})
    sent.sort(key=lambda r: r.step)
    given_to = {"num_workers": 4, "compute_seconds": 0.3, "slow": {1: 2.0}, "turns": TURNS}
    bill = network.price(sent, steps=14, **given_to)
    meter = Meter(network, **given_to)
    at_step = [meter.until(t, [r for r in sent if r.step == t])[0] for t in range(1, 15)]
    np.testing.assert_allclose(at_step, bill.at_step[1:])
    assert meter.communication_seconds == pytest.approx(bill.communication_seconds)


@given(
    st.lists(st.lists(records, max_size=3), min_size=1, max_size=3),
    st.lists(st.integers(0, 2), min_size=1, max_size=12),
    st.sampled_from(["ring", "server", "all_to_all"]),
    st.floats(0, 1),
    st.booleans(),
    st.sampled_from([(), TURNS, [(4, (3.0, 1.0, 1.0, 1.0))]]),
)
def test_many_steps_at_once_cost_what_they_cost_one_by_one(
    kinds: list[list[Sent]], which: list[int], topology: Any, overlap: float, everybody: bool, turns: list[Turn]
) -> None:
    """Where every transfer is among all workers, which is priced in one go, and where it is not; and what comes after."""
    network = Network(bits_per_second=1e6, latency_seconds=0.01, topology=topology, overlap=overlap, links={2: 1e5})
    if everybody:
        kinds = [[replace(r, workers=(0, 1, 2, 3)) for r in kind] for kind in kinds]
    steps, rows = np.arange(1, len(which) + 1), np.array([k % len(kinds) for k in which])
    given_to = {"num_workers": 4, "compute_seconds": 0.3, "slow": {1: 2.0}, "turns": turns}
    single, at_once = Meter(network, **given_to), Meter(network, **given_to)
    expected = [(single.until(t, kinds[k])[-1], sum(single.wire_bytes_W)) for t, k in zip(steps, rows, strict=True)]
    seconds, wire = at_once.through(steps, rows, kinds)
    np.testing.assert_allclose(np.stack([seconds, wire], 1), expected)
    for t in (len(which) + 1, len(which) + 4):
        np.testing.assert_allclose(at_once.until(t, [RECORD]), single.until(t, [RECORD]))
    assert at_once.communication_seconds == pytest.approx(single.communication_seconds)
    np.testing.assert_allclose(at_once.wire_bytes_W, single.wire_bytes_W)
    assert at_once.wire_bytes_by_state == pytest.approx(single.wire_bytes_by_state)


# --- losses ----------------------------------------------------------------------------------------------------------


def test_losses_on_every_axis(events: list[Event], columns: Columns) -> None:
    view = Losses.of(events)
    for x in view.controls()[0].options:
        view.choose("x", x)
        (lines,) = view.pictures()
        mean, agreed = (s for s in lines.series if not s.faint)
        network = NETWORKS.get(x.removeprefix("seconds on "))
        along = in_numbers(columns)[x] if network is None else columns.price(network).at_step[columns.step]
        np.testing.assert_allclose(np.asarray(mean.x), along)
        np.testing.assert_allclose(np.asarray(mean.y), columns.loss)
        assert agreed.y.values.tolist() == columns.eval_loss
        assert [s.name for s in lines.series if s.faint] == [f"worker {w}" for w in range(4)]
    with pytest.raises(ValueError, match="miles"):
        view.choose("x", "miles")
    with pytest.raises(ValueError, match="x = 'miles'"):
        Losses(x="miles")
    assert view.x == x


def test_runs_are_compared_on_shared_axes(events: list[Event], monkeypatch: pytest.MonkeyPatch) -> None:
    """One picture for both, live and afterwards; it comes to rest with the last of them."""
    place, view = Place(monkeypatch, "live"), Losses(x="bytes")
    lanes = [view.lane("A"), view.lane("B")]
    shorter = [e for e in events if isinstance(e, Started | Ended) or getattr(e, "step", 99) <= 12]
    for k, event in enumerate(events):
        lanes[0].add(event)
        if k < len(shorter):
            lanes[1].add(shorter[k])
        assert len(place.changed) == (k == len(events) - 1)
    assert len(place.shown) == 1
    (live,) = view.pictures()
    (after,) = Losses.compare({"A": events, "B": shorter}, "bytes").pictures()
    assert live.spec() == after.spec()
    assert live.names == ["A", "B"]
    assert live.log_x
    assert live.axes()[0].high >= math.log10(view.runs["A"].curves.bytes[-1])


def test_many_workers_have_no_line_each(events: list[Event]) -> None:
    started = next(e for e in events if isinstance(e, Started))
    many = Started(**vars(started) | {"recipe": started.recipe | {"num_workers": 64}})
    view = Losses.of([many, Stepped(1, [2.0] * 64, 1.0, 0.1), Stepped(2, [1.0] * 64, 1.0, 0.1)])
    (lines,) = view.pictures()
    assert [s.name for s in lines.series] == ["workers' mean", "agreed model"]


# --- budget ----------------------------------------------------------------------------------------------------------


def bars(view: View, title: str) -> dict[str, float]:
    found = next(p for p in view.pictures() if p.title.startswith(title))
    return dict(zip(found.names, found.values, strict=True))


def test_the_budget_shows_the_ledger_and_the_bill(events: list[Event], columns: Columns) -> None:
    view = CommunicationBudget(RECIPE).replay(events)
    for name in ("1Gbit", "10Mbit"):
        view.choose("network", name)
        bill = columns.price(NETWORKS[name], compute_seconds=0.0)
        by_state, by_worker = bars(view, "Which state"), bars(view, "Who sent")
        for (state,), payload in columns.ledger.by("state").items():
            assert by_state[f"{state} payload"] == payload
            assert by_state[f"{state} wire"] == pytest.approx(bill.wire_bytes_by_state[state])
        for w in range(4):
            assert by_worker[f"w{w} payload"] == columns.ledger.total_bytes(w)
            assert by_worker[f"w{w} wire"] == pytest.approx(bill.wire_bytes_W[w])
        planned, measured = next(p for p in view.pictures() if p.title.startswith("How long")).series
        np.testing.assert_allclose(measured.y.values, bill.at_step[1:])
        np.testing.assert_allclose(planned.y.values, measured.y.values)  # the dry run foresaw all of it


def test_the_forecast_is_there_before_the_run(events: list[Event], columns: Columns) -> None:
    view = CommunicationBudget(RECIPE)
    planned = next(s for s in view.pictures()[0].series if s.name == "payload, planned")
    np.testing.assert_array_equal(planned.y.values, columns.payload_bytes)
    assert forecast(RECIPE).sent == tuple(columns.ledger)
    assert forecast(RECIPE) is forecast(Recipe.of(RECIPE.to_dict()))


def test_a_forecast_does_not_know_what_was_turned_by_hand_since(events: list[Event]) -> None:
    view = CommunicationBudget(RECIPE, budget="100 GB")
    half = len(events) // 2
    view.replay(events[:half])
    assert "by the forecast;" in view.answer()
    for event in (KnobChanged(4, "lr", 2.0), KnobChanged(5, "sync_every", {"params": 2}), KnobChanged(6, "down", [0])):
        view.fold(event)
    assert "by the forecast from before sync periods were turned by hand in step 5; by step" in view.answer()


@pytest.mark.parametrize("budget", ["300 kB", "0.9 MB", "1.2 MB", "50 MB", "0.05 s", "0.5 min", "2 h"])
@pytest.mark.parametrize("part", [0.0, 0.5, 1.0])
def test_when_the_budget_runs_out(budget: str, part: float, events: list[Event], columns: Columns) -> None:
    """The first step after which more was (or will be) spent, found by looking at every step."""
    view = CommunicationBudget(RECIPE, network="10Mbit", budget=budget).replay(events[: int(len(events) * part)])
    asked = Budget.of(budget)
    spent = columns.payload_bytes if asked.in_bytes else columns.price(NETWORKS["10Mbit"], 0.0).at_step[1:]
    step = next((s for s, x in zip(columns.step, spent, strict=True) if x > asked.amount), None)
    done = len(view.run.curves.bytes)
    words = "enough to the end" if step is None else f"spent at step {step}"
    told = view.pictures()[0 if asked.in_bytes else 1]
    said = told.floor[1] if told.floor else told.title
    counted = budget + " of payload" * asked.in_bytes
    assert said.endswith(f"{counted}: {'' if step is None or step <= done else 'will be '}{words}")
    assert said in told.text()


@pytest.mark.parametrize("words", ["20 parsecs", "MB", "-3 MB", "0 h", "1e3", "3 MB 4"])
def test_a_budget_that_is_not_one_says_what_is_allowed(words: str) -> None:
    view = CommunicationBudget(budget="20 MB")
    with pytest.raises(ValueError, match=r"as in 20 MB or 1\.5 h"):
        view.choose("budget", words)
    assert view.budget == "20 MB"
    with pytest.raises(ValueError, match="as in"):
        CommunicationBudget(budget=words)
    view.choose("budget", " ")
    assert Budget.of(view.budget) is None
    with pytest.raises(ValueError, match="network = 'tin'"):
        CommunicationBudget(network="tin")


# --- calendar, workers, drift ----------------------------------------------------------------------------------------


def spans(calendar: Calendar, row: int, name: str, faint: bool = False) -> set[int]:
    marks = [m for m in calendar.marks if (m.row, m.name, m.faint) == (row, name, faint)]
    return {t for m in marks for a, b in zip(m.at, m.to, strict=True) for t in range(a, b + 1)}


def strokes(calendar: Calendar, row: int, name: str, faint: bool = False) -> list[int]:
    return [int(t) for m in calendar.marks if (m.row, m.name, m.faint) == (row, name, faint) for t in m.at]


def test_the_calendar_is_the_plan_filled_in(events: list[Event], columns: Columns) -> None:
    """Before the run it is all faint; afterwards what was planned took place, and both are what ledger and scenario say."""
    (before,) = SyncCalendar(RECIPE).pictures()
    assert all(m.faint for m in before.marks)
    (after,) = SyncCalendar(RECIPE).replay(events).pictures()
    up_TW = RECIPE.scenario.trace(4, 24, RECIPE.seed).numpy()
    for w in range(4):
        computed = {t + 1 for t in np.flatnonzero(up_TW[:, w]).tolist()}
        assert (
            spans(after, w, "computes")
            == spans(after, w, "computes", True)
            == spans(before, w, "computes", True)
            == computed
        )
        mine = [r for r in columns.ledger if w in r.workers]
        for state in ("params", "exp_avg", "exp_avg_sq"):
            steps = sorted({r.step for r in mine if r.state == state and r.op != "broadcast"})
            assert (
                strokes(after, w, state) == strokes(after, w, state, True) == strokes(before, w, state, True) == steps
            )
        assert strokes(after, w, MISSED) == sorted({r.step for r in mine if r.op == "broadcast"})
    assert (after.now, before.now, after.last) == (24, None, 24)
    assert [m.faint for m in after.legend] == [False] * 5
    assert SyncCalendar().pictures()[0].text().endswith("to look ahead with.")


def test_many_workers_share_a_row() -> None:
    recipe = Recipe.of("diloco", ["steps=8", "num_workers=40", "method.sync_every=4", "schedule.warmup=0"])
    (calendar,) = SyncCalendar(recipe).pictures()
    assert calendar.rows == ["40 workers"]
    assert strokes(calendar, 0, "params", True) == [4, 8]
    assert Workers(recipe.but(num_workers=80)).pictures() == []  # every worker is there and none is slow
    whole = Workers(recipe.but(num_workers=80, scenario={"slow": {"1": 2.0}})).pictures()[0]
    assert len(whole.rows) == 64
    assert "first 64 of 80" in whole.title


def test_every_worker_does_one_thing_in_every_step(events: list[Event]) -> None:
    scenario = {"sample": 2, "sample_every": 6, "outages": [{"worker": 0, "first": 3, "last": 5}], "slow": {"1": 3.0}}
    sampled = RECIPE.but(scenario=scenario)
    up_TW = sampled.scenario.trace(4, 24, sampled.seed).numpy()
    started = next(e for e in events if isinstance(e, Started))
    stream: list[Event] = [Started(**vars(started) | {"recipe": sampled.to_dict()})]
    stream += [Stepped(t, [1.0 if up else None for up in row], 1.0, 0.1) for t, row in enumerate(up_TW, 1)]
    for recipe, told in ((RECIPE, events), (sampled, stream)):
        view = Workers(recipe).replay(told)
        calendar, taken = view.pictures()
        up_TW = recipe.scenario.trace(4, 24, recipe.seed).numpy()
        for w in range(4):
            names = {m.name for m in calendar.marks if m.row == w and m.to is not None}
            parts = {name: spans(calendar, w, name) for name in names}
            assert sum(map(len, parts.values())) == 24
            assert set().union(*parts.values()) == set(range(1, 25))
            computes = parts.get("computes", set()) | parts.get("computes slowly", set())
            assert computes == {t + 1 for t in np.flatnonzero(up_TW[:, w]).tolist()}
            assert taken.values[w] == len(computes)
            assert ("computes slowly" in parts) == (w in recipe.scenario.slow)
    late = Workers.of(events).pictures()[0]
    assert spans(late, 1, "not there yet") == {1, 2, 3}
    assert spans(late, 3, "down") == {6, 7, 8, 9}
    assert strokes(late, 1, MISSED) == [4]
    assert "not sampled" in {m.name for m in calendar.marks}
    half = Workers(RECIPE).replay(events[: len(events) // 2]).pictures()[0]
    assert not spans(half, 0, "computes") & spans(half, 0, "computes", True)
    assert spans(half, 0, "computes") | spans(half, 0, "computes", True) == set(range(1, 25))


def root(x: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(x))))


@pytest.mark.parametrize("method", ["local_adam", "diloco", "streaming_diloco", "noloco", "ddp"])
def test_drift_is_measured_before_the_average(method: str) -> None:
    """Of every worker that is up, from their mean and from the shared parameters, worked out in float64 by hand."""
    recipe = RECIPE.but(
        method=method, steps=10, eval_every=7, scenario={"outages": [{"worker": 3, "first": 3, "last": 6}]}
    )
    recipe = recipe if method == "ddp" else Recipe.of(recipe, ["method.sync_every=5"])
    trainer, seen = Trainer(recipe), dict[int, tuple[list[float | None], list[float | None]]]()
    params, fleet = trainer.state.local["params"], trainer.fleet

    def look(t: int) -> None:
        rows = {
            w: np.concatenate([params[n][w].double().numpy().ravel() for n in params.names()])
            for w in range(4)
            if fleet.up[w]
        }
        mean = np.mean(list(rows.values()), axis=0)
        shared = {
            n: s[n][0].double().numpy().ravel()
            for key, s in trainer.state.shared.items()
            if key.split(".")[0] == "params"
            for n in s.names()
        }
        agreed = np.concatenate([shared[n] for n in params.names()]) if shared else None
        seen[t] = (
            [root(rows[w] - mean) if w in rows else None for w in range(4)],
            [root(rows[w] - agreed) if w in rows and agreed is not None else None for w in range(4)],
        )

    def observer(meeting: Meeting) -> None:
        if meeting.state == "params" and trainer.comm.t not in seen:
            look(trainer.comm.t)

    trainer.comm.subscribe(observer)
    drifted = []
    for event in trainer.events():
        if isinstance(event, Drifted):
            drifted.append(event)
            if event.step not in seen:  # an evaluation between two averages
                look(event.step)
    expected = [5, 7, 10] if method in ("local_adam", "diloco") else [7, 10]  # a mean of all between evaluations
    if method != "streaming_diloco":  # which sends one of its fragments in between
        assert [e.step for e in drifted] == expected
    assert {7, 10} <= {e.step for e in drifted}
    for event in drifted:
        for told, true in zip((event.to_mean_W, event.to_shared_W), seen[event.step], strict=True):
            assert [x is None for x in told] == [x is None for x in true]
            assert [x for x in told if x is not None] == pytest.approx(
                [x for x in true if x is not None], rel=1e-3, abs=1e-9
            )
    if method in ("local_adam", "diloco"):
        assert all(max(x for x in e.to_mean_W if x is not None) > 0 for e in drifted)


@pytest.mark.parametrize(
    ("method", "looks"),
    {
        "local_adam": [5, 10, 11],
        "diloco": [5, 10, 11],
        "diloco int8": [11],
        "noloco": [11],
        "streaming_diloco": [11],
        "sparta": [11],
    }.items(),
)
def test_between_evaluations_looking_takes_no_mean_of_its_own(
    method: str, looks: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would travel over several processes. Where the method makes it anyway, distances are taken from that."""
    name, *int8 = method.split()
    recipe = RECIPE.but(method=name, steps=11, eval_every=0, scenario={}, codecs={"params": "int8"} if int8 else {})
    trainer = Trainer(Recipe.of(recipe, ["method.sync_every=5"]))
    agreed, made = trainer.comm.agreed, set[int]()

    def counted(*what: Any) -> Stack:
        made.add(trainer.comm.t)
        return agreed(*what)

    monkeypatch.setattr(trainer.comm, "agreed", counted)
    assert [e.step for e in trainer.events() if isinstance(e, Drifted)] == looks
    assert made == {11}


def test_drift_is_drawn_as_it_was_recorded(events: list[Event]) -> None:
    looks = [e for e in events if isinstance(e, Drifted)]
    assert [e.step for e in looks] == [4, 6, 8, 12, 16, 18, 20, 24]
    (lines,) = Drift.of(events).pictures()
    assert len(lines.series) == 5
    for w, s in enumerate(lines.series[:4]):
        assert [None if math.isnan(v) else v for v in s.y.values] == [e.to_mean_W[w] for e in looks]
    both = [1.0, None, 3.0]
    view = Drift.of([Drifted(4, both, both)])
    assert [p.series[-1].y[0] for p in view.pictures()] == [math.sqrt(5)] * 2
    assert "No look yet" in Drift.of([]).pictures()[0].text()


# --- all of them -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("k", range(5))
def test_live_and_stored_are_the_same(k: int, events: list[Event], monkeypatch: pytest.MonkeyPatch) -> None:
    """Event by event, in batches, or read back from lines of JSON."""
    Place(monkeypatch, "batch")
    one, batch, stored = views()[k], views()[k], views()[k]
    for event in events:
        one(event)
    for at in range(0, len(events), 7):
        batch.add(*events[at : at + 7])
    stored.replay(from_json(to_json(event)) for event in events)
    assert one.board().spec() == batch.board().spec() == stored.board().spec()


@pytest.mark.parametrize("k", range(5))
def test_the_canvas_holds_the_numbers_of_the_pictures(k: int, events: list[Event]) -> None:
    """After any number of drawings: what was sent, put together as the page does it, is the board."""
    canvas, view, held, sent = Canvas(), views()[k], dict[int, np.ndarray](), [0]

    def send(message: dict[str, Any], buffers: Any = ()) -> None:
        sent[0] += 1
        for gone in message.get("gone", ()):
            held.pop(gone, None)
        for (number, start), data in zip(message["columns"], buffers, strict=True):
            held[number] = np.concatenate([held.get(number, np.empty(0))[:start], np.frombuffer(data, np.float32)])

    canvas.send = send
    for at in range(0, len(events), 5):
        for event in events[at : at + 5]:
            if isinstance(event, view.reads):
                view.fold(event)
        canvas.draw(view.board())
    canvas.draw(view.board())
    assert sent[0] == canvas.seq == canvas.packed()["seq"] < len(events) // 5 + 2
    packed = {int(n): np.frombuffer(b, np.float32) for n, b in canvas.packed()["columns"].items()}
    for number in packed:
        np.testing.assert_array_equal(held.setdefault(number, np.empty(0)), packed[number])
    for picture, panel in zip(view.pictures(), canvas.panels, strict=True):
        if isinstance(picture, Lines):
            for series, s in zip(picture.series, panel["series"], strict=True):
                for name in "xy":
                    np.testing.assert_array_equal(held[s[name]], np.asarray(getattr(series, name), np.float32))
        if isinstance(picture, Calendar):
            for marks, m in zip(picture.marks, panel["marks"], strict=True):
                assert held[m["at"]].tolist() == [float(t) for t in marks.at]


def patchy(steps: int = 3000) -> Iterator[Event]:
    """A long run with gaps of every kind: all workers down for a while, one late, one that misses single steps, one that
    comes and goes, as where clients are sampled; and much to be seen of all of it.
    """
    rng = np.random.default_rng(1)
    killed = {"outages": [{"worker": w, "first": 1000, "last": 1119} for w in range(4)]}
    recipe = Recipe.of(
        "ddp", [f"steps={steps}", "num_workers=4", "schedule.warmup=0", f"scenario={json.dumps(killed)}"]
    )
    yield Started(1, recipe.to_dict(), 10, [10] * 4, 64, None, 1.0, {"threads": 2})
    for t in range(1, steps + 1):
        down = [t < 700, t % 500 == 0, t // 8 % 2 == 0, False]
        up = [not (is_down or 1000 <= t < 1120) for is_down in down]
        losses = [float(v) if is_up else None for v, is_up in zip(2 + rng.normal(0, 0.1, 4), up, strict=True)]
        yield Stepped(t, losses, 1.0, 0.01)
        if any(up):
            who = tuple(w for w in range(4) if up[w])
            yield Sent(t, "all_reduce", "grads", who, {"mlp": 1000})
            drift = [0.1 * v if v else None for v in losses]
            yield Drifted(t, drift, [None if t < 1500 else d for d in drift])
        if t % 5 == 0:
            yield Evaluated(t, 2 + float(rng.normal(0, 0.1)), 0.0)
    yield Ended(steps, "done", "")


def covers(rest: np.ndarray, live: np.ndarray, near: int) -> bool:
    """Every place of ``live`` has one of ``rest`` so near to it."""
    after = np.searchsorted(rest, live).clip(max=len(rest) - 1)
    before = (after - 1).clip(min=0)
    return bool((np.minimum(abs(rest[after] - live), abs(rest[before] - live)) <= near).all())


def assert_rest_is_live(view: View) -> None:
    """What a notebook keeps shows what the canvas showed: no line where nothing is known, no gap where something is, and the
    extremes; to a hundredth of the whole, where lines are faint to a fortieth.
    """
    num_long = 0
    for picture in view.pictures():
        if isinstance(picture, Calendar):
            for marks in picture.marks:
                assert set(marks.steps) <= set(marks.at)
                if len(marks.at):
                    assert covers(np.array(marks.steps), np.asarray(marks.at), picture.last // 100)
        if not isinstance(picture, Lines):
            continue
        for series, trace in zip(picture.series, picture.plotly()["data"][len(picture.bands) :], strict=True):
            size = min(len(series.x), len(series.y))
            x, y = np.asarray(series.x)[:size], np.asarray(series.y)[:size]
            num_long += size > 400
            rest_x, rest_y = series.points
            assert trace["y"] == rest_y
            known, drawn = np.isfinite(y), np.array([v is not None for v in rest_y])
            # Where each point at rest comes from: x grows, and where it stands still the values tell.
            at, after = [], 0
            for a, b in zip(rest_x, rest_y, strict=True):
                same = np.isclose(x[after:], a, rtol=1e-5) & (
                    ~known[after:] if b is None else np.isclose(y[after:], b, rtol=6e-4)
                )
                at.append(after + int(np.argmax(same)))
                assert same.any(), (picture.title, series.name, a, b)
                after = at[-1]
            for k in range(len(at) - 1):
                if drawn[k] and drawn[k + 1]:
                    assert known[at[k] : at[k + 1]].all(), (
                        f"{picture.title} {series.name}: a line over a gap at {rest_x[k]}"
                    )
            if known.any():
                near = 1 + size // (40 if series.faint else 100)
                assert covers(np.array(at)[drawn], np.flatnonzero(known), near), (picture.title, series.name)
                values = [v for v in rest_y if v is not None]
                assert (min(values), max(values)) == pytest.approx((y[known].min(), y[known].max()), rel=1e-3)
            alone = [k for k in np.flatnonzero(drawn) if not (drawn[k - 1 : k].any() or drawn[k + 1 : k + 2].any())]
            if alone and "markers" not in trace["mode"]:
                raise AssertionError(f"{picture.title} {series.name}: {len(alone)} points that plotly does not show")
            assert len(rest_x) <= 2 * MAX_POINTS
    assert num_long or any(isinstance(p, Calendar) for p in view.pictures())


@pytest.mark.parametrize("x", [*Losses()._choices()])
def test_losses_at_rest_show_what_was_live(x: str) -> None:
    view = Losses(x).replay(patchy())
    assert_rest_is_live(view)


@pytest.mark.parametrize("view", [CommunicationBudget(), SyncCalendar(), Drift(), Workers()], ids=lambda v: v.title)
def test_every_view_at_rest_shows_what_was_live(view: View) -> None:
    assert_rest_is_live(view.replay(patchy()))


def test_looks_at_experts_and_adapters_at_rest_are_all_there() -> None:
    """Many looks, some at which everybody is down."""
    experts = RoutingStability.of(routing(layers=2, experts=4, looks=900, down=(0, 1, 2, 3)))
    assert_rest_is_live(experts)
    assert_rest_is_live(RankSegments.of(federation(rounds=900)))
    assert_rest_is_live(Fairness.of(by_client(looks=900)))
    assert_rest_is_live(MaskAgreement.of(masked(rounds=900, alone=(3, 4, 500))))
    assert_rest_is_live(Underperformers.of(compared(looks=900)))
    assert_rest_is_live(Iterations.of(iterated(looks=900)))
    assert_rest_is_live(SampleWeights.of(weighed(looks=900)))
    assert_rest_is_live(AgentGraph.of(orchestrated(updates=900)))
    assert_rest_is_live(PseudoLabels.of(pseudo_labelled(looks=900)))
    assert_rest_is_live(PrivacyLevels.of(levelled("by:person", looks=900)))


def test_nobody_trains_and_the_pictures_say_so() -> None:
    """All workers are down for 120 of 3,000 steps: the mean has that gap, at its place, in plotly and in SVG."""
    (lines,) = Losses.of(patchy()).pictures()
    mean = next(s for s in lines.series if s.name == "workers' mean")
    x, y = mean.points
    gap = [k for k, v in enumerate(y) if v is None]
    assert len(gap) == 1
    assert (x[gap[0] - 1], x[gap[0] + 1]) == (999, 1120)
    (path,) = re.findall(rf'<path d="([^"]+)" stroke="{COLOURS[1]}" stroke-width="20"', lines.svg())
    assert path.count("M") == 2


def test_an_update_is_small_however_long_the_lines_are() -> None:
    """At 10 000 points a line, a twelfth of a second's worth of steps costs at most 10 kB, in every view."""
    sizes: dict[str, list[int]] = {}
    stream = list(endless(10_050))
    for view in (Losses(), Losses("seconds on 10Mbit"), CommunicationBudget(), SyncCalendar(), Drift(), Workers()):
        canvas, seen = Canvas(), sizes.setdefault(f"{view!r}", [])
        canvas.send = lambda message, buffers=(), seen=seen: seen.append(
            len(json.dumps(message)) + sum(map(len, buffers))
        )
        for event in stream:
            if isinstance(event, view.reads):
                view.fold(event)
            if isinstance(event, Sent) and event.step >= 10_000 and event.step % 25 == 0:
                canvas.draw(view.board())
        assert 0 < max(seen[1:]) < 10_000, view
        assert seen[0] > 20 * seen[1] or isinstance(view, Workers | Drift)


def test_long_runs_rest_in_little_room() -> None:
    """All five views in one notebook: at most 300 kB. What is drawn does not grow with a run of more than some hundred steps."""
    stream = list(endless(12_000))
    # indented as Jupyter writes notebooks
    sizes = {
        type(view).__name__: len(json.dumps(view.replay(stream).bundle(), indent=1))
        for view in (Losses(), CommunicationBudget(), SyncCalendar(), Drift(), Workers())
    }
    assert sum(sizes.values()) < 300_000, sizes


def test_a_menu_turns_a_figure_into_every_other(events: list[Event]) -> None:
    """What an entry changes, put into the figure that is shown, gives the figure of that choice, whichever was shown before."""
    for view in (Losses.of(events), CommunicationBudget(RECIPE, budget="1 h").replay(events)):
        control = view.controls()[0]
        figures = {}
        for option in control.options:
            view.choose(control.name, option)
            figures[option] = view.board().plotly()
        view.choose(control.name, control.value)
        figure = untyped(stored(view.plotly()))
        del figure["layout"]["meta"]
        (menu,) = figure["layout"].pop("updatemenus")
        assert [b["label"] for b in menu["buttons"]] == list(control.options)
        assert control.options[menu["active"]] == control.value
        shown = {"data": [leaves(t) for t in figure["data"]], "layout": leaves(figure["layout"])}
        for button in [*menu["buttons"], *menu["buttons"][::-1]]:
            styles, layout, touched = button["args"]
            for key, values in styles.items():
                for k, value in zip(touched, values, strict=True):
                    shown["data"][k][key] = value
            shown["layout"] |= layout
            true = figures[button["label"]]
            assert [known(t) for t in shown["data"]] == [known(leaves(t)) for t in untyped(stored(true))["data"]]
            assert known(shown["layout"]) == leaves(true["layout"])
    with pytest.raises(ValueError, match="same traces"):
        with_menu({"a": figures[option], "b": {"data": [], "layout": {}}}, "a", "x")


def leaves(thing: dict[str, Any], path: str = "") -> dict[str, Any]:
    out: dict[str, Any] = {}
    for key, value in thing.items():
        name = f"{path}.{key}".lstrip(".")
        if isinstance(value, dict):
            out |= leaves(value, name)
        elif isinstance(value, list) and value and isinstance(value[0], dict):
            for k, inner in enumerate(value):
                out |= leaves(inner, f"{name}[{k}]")
        else:
            out[name] = value
    return out


def test_a_table_is_stored_as_one_array_with_its_shape() -> None:
    """Plotly takes no typed arrays within a list: cells would not be seen."""
    z = [[r * 13 + c if r != c else None for c in range(13)] for r in range(3)]
    kept = stored({"data": [{"type": "heatmap", "z": z}], "layout": {}})["data"][0]["z"]
    assert kept["shape"] == "3, 13"
    assert untyped(kept) == z


def untyped(thing: Any) -> Any:
    """With lists in place of plotly's typed arrays."""
    if isinstance(thing, list):
        return [untyped(v) for v in thing]
    if isinstance(thing, dict) and "bdata" in thing:
        numbers = np.frombuffer(base64.b64decode(thing["bdata"]), np.float32)
        numbers = numbers.reshape([int(n) for n in thing.get("shape", str(len(numbers))).split(",")])
        return np.where(np.isnan(numbers), None, numbers.astype(object)).tolist()
    return {key: untyped(value) for key, value in thing.items()} if isinstance(thing, dict) else thing


def known(thing: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in thing.items() if v is not None}


def test_a_control_is_used_while_a_run_goes_on(events: list[Event], monkeypatch: pytest.MonkeyPatch) -> None:
    """From the page: another network at once, and words that are no budget come back as words."""
    Place(monkeypatch, "live")
    view = CommunicationBudget(RECIPE)
    view.add(*events[: len(events) // 2])
    canvas, sent = view._screen.canvas, list[dict[str, Any]]()
    canvas.send = lambda message, buffers=(): sent.append(message)
    assert canvas.head["controls"][0]["value"] == "100Mbit"
    canvas._asked(None, {"choose": "network", "value": "10Mbit"}, [])
    assert canvas.head["controls"][0]["value"] == "10Mbit"
    assert len(sent) == 1
    canvas._asked(None, {"choose": "budget", "value": "lots"}, [])
    assert sent[1]["error"].startswith("budget 'lots'")
    canvas._asked(None, {"choose": "colour", "value": "red"}, [])
    assert "network, budget" in sent[2]["error"]
    view.add(*events[len(events) // 2 :])
    assert "10Mbit" in view.board().text()
    assert canvas.head["at_rest"]
    canvas._asked(None, {"ask": "rest"}, [])
    assert sent[-1] == {"rest": canvas.forms, "id": canvas.model_id}


def test_a_pause_does_not_hide_the_last_events(events: list[Event], monkeypatch: pytest.MonkeyPatch) -> None:
    """`add` without events draws what is new, once it is time."""
    Place(monkeypatch, "live")
    view = Losses()
    view.add(*events[:10])
    view.add(*events[10:20])  # too early
    view._screen.next = -math.inf
    view.add()
    canvas = view._screen.canvas
    drawn = canvas.columns[id(view.runs[""].curves.steps)].size
    assert drawn == len(view.runs[""].curves.steps)
    seq = canvas.seq
    view._screen.next = -math.inf
    view.add()
    assert canvas.seq == seq


def test_the_ledger_of_a_forecast_is_a_ledger(columns: Columns) -> None:
    assert Ledger(forecast(RECIPE).sent).by("state", "worker") == columns.ledger.by("state", "worker")
