"""Runs in which clients are away, or late: what they receive, that they do not count, and that a plan knows it beforehand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from lab.costs.calendar import calendar
from lab.costs.network import Network, Turn
from lab.events import Seated, Sent, Stepped, WorkersChanged
from lab.ground.errors import RecipeError
from lab.recipes.recipe import Recipe
from lab.recipes.selection import Selection, slowness
from lab.runs.build import build
from lab.runs.columns import Columns
from lab.runs.data import shape_of
from lab.runs.folder import RunFolder
from lab.runs.plan import plan
from lab.runs.trainer import Trainer, dry_run
from lab.study.trace import of_plan, of_run
from tests.support.listed import LISTED
from tests.support.recipes import corpus, recipe
from tests.support.stop_and_go import stop_and_go
from widgets.forecasts import forecast

AWAY = ["client,first_round,last_round", *(f"{c},{1 + c % 4},{3 + c % 4}" for c in range(10))]
SOME = {"num": 12, "spread": 0.8, "wait_for": 3, "deadline": 2.0}


def federation(**changes: Any) -> Recipe:
    """12 clients with 8 examples each, of whom 4 are asked for a round of two local steps."""
    base: dict[str, Any] = {
        "method": {"name": "local_sgd", "sync_every": 2, "max_norm": None, "inner": {"name": "SGD", "lr": 0.1}},
        "model": "tests.support.parts:net",
        "data": "tests.support.parts:blobs",
        "num_workers": 4,
        "clients": SOME,
        "steps": 16,
        "batch_size": 3,
        "dtype": "float64",
        "eval_every": 0,
        "checkpoint_every": 1,
        "schedule": {"warmup": 0},
    }
    return Recipe.of(base | changes)


@pytest.fixture
def away(tmp_path: Path) -> str:
    """A file that leaves fewer clients than rows in some rounds."""
    path = tmp_path / "up.csv"
    path.write_text("\n".join(AWAY))
    return str(path)


def by_plain_torch(trainer: Trainer) -> dict[str, torch.Tensor]:
    """The federation written out: whoever is asked and not late trains a copy of the model; the server takes their mean."""
    r, data = trainer.recipe, trainer.setup.data
    assert data is not None
    chosen = Selection(r.clients, r.num_workers, r.seed, data.samples_W)
    server = r.model.module(shape_of(r, data), r.seed).double()
    for number in range(r.steps // 2):
        selected, trained = chosen.of_round(number), list[dict[str, torch.Tensor]]()
        for row, client in enumerate(selected.clients):
            if row in selected.late:
                continue
            own = r.model.module(shape_of(r, data), r.seed).double()
            own.load_state_dict(server.state_dict())
            optimizer = torch.optim.SGD(own.parameters(), lr=0.1)
            for t in (2 * number + 1, 2 * number + 2):
                optimizer.zero_grad()
                x, y = data.batches.get(client, t)
                nn.functional.cross_entropy(own(x), y).backward()
                optimizer.step()
            trained.append(own.state_dict())
        if trained:
            server.load_state_dict({n: torch.stack([x[n] for x in trained]).mean(0) for n in trained[0]})
    return server.state_dict()


def _turns(r: Recipe) -> list[Turn]:
    seating = build(r, dry=True).roll_call.seating
    assert seating is not None
    return seating.turns


def options(name: str, away: str) -> dict[str, Any]:
    return {
        "late": SOME,
        "away": {"num": 12, "available": away},
        "late and away": SOME | {"available": away},
        "by size": SOME | {"sampling": "size"},
        "by night": SOME | {"available": "day_night:1", "round_hours": 5},
        "all late": {"num": 12, "spread": 3.0, "deadline": 0.02},
    }[name]


OPTIONS = ("late", "away", "late and away", "by size", "by night", "all late")


@pytest.mark.parametrize("name", OPTIONS)
def test_the_model_is_that_of_those_who_counted(name: str, away: str) -> None:
    trainer = Trainer(federation(clients=options(name, away), split="size:1"))
    events = list(trainer.events())
    seats = [e for e in events if isinstance(e, Seated)]
    assert len(seats) == 8
    if "late" in name:
        assert any(e.late for e in seats)
    if "away" in name:
        assert min(len(e.clients) for e in seats) < 4
    want, agreed = by_plain_torch(trainer), trainer.agreed()
    for n in want:
        torch.testing.assert_close(agreed[n][0], want[n], rtol=1e-9, atol=1e-12)


def test_who_is_late_receives_and_does_nothing_more(away: str) -> None:
    """Bytes and losses of every round, from what `Seated` says of it."""
    events = list(Trainer(federation(clients=SOME | {"available": away})).events())
    seats = {e.step: e for e in events if isinstance(e, Seated)}
    for step, seated in seats.items():
        asked, counted = (
            tuple(range(len(seated.clients))),
            [w for w in range(len(seated.clients)) if w not in seated.late],
        )
        in_round = [e for e in events if isinstance(e, Sent) and e.step in (step, step + 1)]
        assert [(e.op, e.step, e.workers) for e in in_round] == [
            ("broadcast", step, asked),
            ("all_reduce", step + 1, tuple(counted)),
        ]
        for stepped in (e for e in events if isinstance(e, Stepped) and e.step in (step, step + 1)):
            assert [w for w, x in enumerate(stepped.loss_W) if x is not None] == counted
    up = list(range(4))
    for e in events:
        if isinstance(e, WorkersChanged):
            assert {*e.up} == {*up} - {*e.left} | {w for w in e.up if w not in up}
            assert not {*e.left} & {*e.up}
            up = e.up
        if isinstance(e, Stepped):
            assert [w for w, x in enumerate(e.loss_W) if x is not None] == up


def test_who_is_late_keeps_what_it_had(tmp_path: Path) -> None:
    """A head of one's own changes in no round in which one does not count, and is not written down."""
    trainer = Trainer(federation(clients=SOME | {"personal": ("2.*",), "num": 6}, steps=24))
    counted: dict[int, int] = {}  # the last round of each
    number = -1
    for event in trainer.events(RunFolder(tmp_path)):
        if isinstance(event, Seated):
            number += 1
            counted |= {c: number for w, c in enumerate(event.clients) if w not in event.late}
            last = event
    seating = trainer.built.roll_call.seating
    assert seating is not None
    over = {c: n for c, n in counted.items() if n < number}
    now = {c for w, c in enumerate(last.clients) if w not in last.late}
    assert seating.store._where.keys() >= over.keys()
    assert {c: seating.store._where[c][0] for c in over if c not in now} == {
        c: n for c, n in over.items() if c not in now
    }
    assert {c for w, c in enumerate(last.clients) if w in last.late} <= {*range(6)}


@pytest.mark.parametrize("name", ["des_loc", "scaffold"])
def test_a_dry_run_knows_who_will_be_late(name: str, away: str) -> None:
    """Record by record; a calendar that leaves out what is alike says the same."""
    clients = {"num": 10, "spread": 0.8, "wait_for": 2, "available": away}
    r = recipe(LISTED[name], clients=clients, checkpoint_every=0, num_workers=4, steps=12)
    trainer = Trainer(r, corpus=corpus())
    sent = [e for e in trainer.events() if isinstance(e, Sent)]
    assert sent == dry_run(r)
    dry = build(r, dry=True).dry_run()
    assert dry.up_TW.shape == (12, 8)  # who is up, and who is asked
    assert list(calendar(dry)) == sent
    received = {e.workers for e in sent if e.op == "broadcast"}
    assert any(len(workers) > 2 for workers in received)  # those that are late as well


@pytest.mark.parametrize("name", ["late and away", "by night"])
def test_resumed_is_never_stopped(name: str, away: str, tmp_path: Path) -> None:
    stop_and_go(federation(steps=8, clients=options(name, away) | {"personal": ("2.*",)}), tmp_path / "runs")


def test_another_file_of_who_is_up_is_refused(away: str, tmp_path: Path) -> None:
    r = federation(clients={"num": 12, "available": away})
    for event in Trainer(r).events(RunFolder(tmp_path / "run")):
        if isinstance(event, Stepped) and event.step == 7:
            break
    Path(away).write_text("\n".join(AWAY[:-1]), encoding="utf-8")
    with pytest.raises(RecipeError, match=r"begun with another table of who is available \('up.csv' has changed\)"):
        list(Trainer(r).events(RunFolder(tmp_path / "run")))


def test_sizes_that_a_plan_cannot_know_are_refused() -> None:
    clients = {"num": 12, "sampling": "size", "wait_for": 2}
    with pytest.raises(RecipeError, match=r"use clients\.sampling=uniform, or split=draw:<n>"):
        dry_run(recipe(clients=clients))
    assert dry_run(recipe(clients=clients, split="draw:3"))
    assert dry_run(recipe(clients={"num": 12, "sampling": "size"}))


def test_all_clients_in_rows_may_take_turns_as_well() -> None:
    """As many clients as rows, of whom the fastest three count: always the same."""
    events = list(Trainer(federation(clients={"num": 4, "wait_for": 3})).events())
    seats = [e for e in events if isinstance(e, Seated)]
    assert {tuple(e.clients) for e in seats} == {(0, 1, 2, 3)}
    assert len({tuple(e.late) for e in seats}) == 1
    assert len(seats[0].late) == 1
    np.testing.assert_array_equal([e.num_up for e in events if isinstance(e, Stepped)], 3)


@pytest.mark.parametrize("name", ["late", "late and away", "spread"])
def test_a_round_takes_as_long_as_those_it_waits_for(name: str, away: str) -> None:
    """The clocks of all rows, written out; a run that is priced as it grows, at its end, and before it began."""
    clients = {"num": 12, "spread": 0.8} if name == "spread" else options(name, away)
    r = federation(clients=clients, steps=12)
    columns, growing = Columns(), Columns()
    free = Network(bits_per_second=1e30)
    for event in Trainer(r).events():
        columns.add(event)
        growing.add(event)
        price = growing.priced(free, compute_seconds=2.0)
    clock, want = np.zeros(4), list[float]()
    for e in columns.seated:
        slow = np.zeros(4)
        slow[: len(e.clients)] = slowness(r.clients, e.clients, r.seed)
        asked = [w < len(e.clients) for w in range(4)]
        counted = [a and w not in e.late for w, a in enumerate(asked)]
        if e.late:  # over when three are there, or at twice the time of the median client
            slow[e.late] = 2.0 if sum(counted) < min(3, len(e.clients)) else 0.0
        for who in (
            asked,
            counted,
        ):  # the model is received at the end of the first step, and handed in after the second
            clock += 2.0 * slow
            clock[who] = clock[who].max()
            want.append(clock.max())
    np.testing.assert_allclose(columns.price(free, 2.0).at_step[1:], want)
    np.testing.assert_allclose(price.seconds.values, want)
    sent = calendar(build(r, dry=True).dry_run())
    bill = sent.price(free, num_workers=4, compute_seconds=2.0, turns=_turns(r))
    np.testing.assert_allclose(bill.at_step[1:], want)


def test_traces_and_forecasts_know_who_is_late_and_how_fast(away: str) -> None:
    """A trace has the seconds of each row's client; a forecast has as many rows as there are."""
    r = federation(clients=options("late and away", away), steps=12)
    columns = Columns.of(Trainer(r).events())
    planned, ran = of_plan(r, "laptop"), of_run(columns, "mine")
    threads = columns.started.environment["threads"]  # type: ignore[union-attr]
    for e in columns.seated:
        slow = slowness(r.clients, e.clients, r.seed)
        want = [slow[w] if w < len(e.clients) and w not in e.late else 0.0 for w in range(4)]
        for row in (e.step - 1, e.step):
            np.testing.assert_allclose(
                planned.seconds_TW[row], plan(r, device="laptop").seconds_per_step * np.array(want)
            )
            np.testing.assert_allclose(ran.seconds_TW[row], columns.seconds[row] * threads / 4 * np.array(want))
    planned_steps = [e for e in forecast(r).events() if isinstance(e, Stepped)]
    up = [[x is not None for x in row] for row in columns.loss_W]
    assert [[x is not None for x in e.loss_W] for e in planned_steps] == up


def test_a_plan_prices_the_speeds_of_clients() -> None:
    """Without a spread every round is as fast as the median client; with one it waits for its slowest."""
    even, uneven = (plan(federation(clients={"num": 12, "spread": s}, steps=64), device="laptop") for s in (0.0, 0.8))
    slowest = [max(pace) for _, pace in _turns(uneven.recipe)]
    assert len(slowest) == 32
    for a, b in zip(even.forecasts, uneven.forecasts, strict=True):
        assert b.compute_hours / a.compute_hours == pytest.approx(np.mean(slowest), rel=1e-6)
        assert b.communication_hours == pytest.approx(a.communication_hours)


@pytest.mark.parametrize("method", ["local_sgd", "diloco"])
def test_who_comes_back_in_mid_round_leaves_the_others_alone(method: str) -> None:
    """Row 1 is away for the whole second round of four steps, or for its first two: the others do the same in it."""

    def losses(last: int) -> list[list[float | None]]:
        r = federation(
            method={"name": method, "sync_every": 4},
            clients={"num": 12},
            scenario={"outages": [{"worker": 1, "first": 5, "last": last}]},
            steps=8,
        )
        return [e.loss_W for e in Trainer(r).events() if isinstance(e, Stepped)]

    whole, half = losses(8), losses(6)
    assert [x[1] is None for x in whole] == [False] * 4 + [True] * 4
    assert [x[1] is None for x in half] == [False] * 4 + [True] * 2 + [False] * 2
    assert [[x[w] for w in (0, 2, 3)] for x in whole] == [[x[w] for w in (0, 2, 3)] for x in half]
