"""Many rows, and clients that take turns in them: distributions and counts instead of a line for each."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from lab.events import VERSION, Drifted, Ended, Event, Seated, Sent, Started, Stepped
from lab.recipes.recipe import Recipe
from lab.runs.growing import MANY, SPREAD, Spread
from tests.support.pictures import check_forms_agree, check_well_formed
from widgets import Calendar, CommunicationBudget, Drift, Lines, Losses, SyncCalendar, Workers
from widgets.view import View

ROUND = 5  # local steps


def seated(rows: int, rounds: int = 6, clients: int = 10_000) -> Iterator[Event]:
    """Rounds in which, of ``rows`` that are asked, every tenth is late; in every third round the last two rows have nobody."""
    spec = {"num": clients, "spread": 0.5, "wait_for": rows - rows // 10, "available": "day_night"}
    recipe = Recipe(
        num_workers=rows, steps=rounds * ROUND, clients=spec, method={"name": "local_sgd", "sync_every": ROUND}
    )
    yield Started(VERSION, recipe.to_dict(), 10, [10] * rows, 64 * rows, None, 1.0, {"threads": 2})
    rng = np.random.default_rng(0)
    for k in range(rounds):
        there = rows - 2 * (k % 3 == 2)
        late = list(range(9, there, 10))
        yield Seated(k * ROUND + 1, sorted(rng.choice(clients, there, replace=False).tolist()), late)
        up = [w < there and w not in late for w in range(rows)]
        for t in range(k * ROUND + 1, (k + 1) * ROUND + 1):
            losses = (2 / t + rng.normal(0, 0.1, rows)).tolist()
            yield Stepped(t, [x if is_up else None for x, is_up in zip(losses, up, strict=True)], 1.0, 0.01)
            if t == k * ROUND + 1:
                yield Sent(t, "broadcast", "params", tuple(range(there)), {"mlp": 1000})
        yield Sent(t, "all_reduce", "params", tuple(w for w in range(rows) if up[w]), {"mlp": 1000})
        apart = [float(w) if up[w] else None for w in range(rows)]
        yield Drifted(t, apart, [None] * rows)
    yield Ended(rounds * ROUND, "done", "")


VIEWS: dict[str, type[View]] = {v.__name__: v for v in (Losses, Drift, Workers, SyncCalendar, CommunicationBudget)}


@pytest.mark.parametrize("rows", [3, MANY, MANY + 1, 50])
@pytest.mark.parametrize("name", VIEWS)
def test_all_forms_are_well_formed_and_agree(name: str, rows: int) -> None:
    view = VIEWS[name].of(seated(rows))
    assert view._dropped is None
    for p in [view.board(), *view.pictures()]:
        check_well_formed(p)
        check_forms_agree(p)


@pytest.mark.parametrize("name", VIEWS)
def test_what_is_shown_does_not_grow_with_rows_or_clients(name: str) -> None:
    """Of fifty rows as of seventeen, and of two hundred rounds: as much as a page can take in."""

    def size(rows: int, **more: Any) -> int:
        return len(json.dumps(VIEWS[name].of(seated(rows, **more)).bundle()))

    assert size(50, rounds=40) < 1.5 * size(17, rounds=40)
    assert size(50, rounds=40, clients=1_000_000) < 1.05 * size(50, rounds=40)
    assert size(50, rounds=200) < 150_000


def test_a_spread_by_hand() -> None:
    few, many = Spread(), Spread()
    few.append([1.0] * MANY)
    assert not any(len(line) for line in few.lines)
    many.append([*range(100, -1, -1), *[None] * 9])
    many.append([None] * 110)
    many.append([*[None] * 109, 7.0])
    assert [line.values.tolist()[0] for line in many.lines] == [5, 25, 75, 95] == [100 * s for s in SPREAD]
    assert np.isnan([line.values[1] for line in many.lines]).all()
    assert [line.values[2] for line in many.lines] == [7.0] * 4


@pytest.mark.parametrize("view", [Losses, Drift])
def test_of_many_workers_there_are_bands(view: type[View]) -> None:
    few, many = view.of(seated(MANY)).pictures()[0], view.of(seated(MANY + 1)).pictures()[0]
    assert isinstance(few, Lines)
    assert isinstance(many, Lines)
    assert sum(s.faint for s in few.series) == MANY
    assert not any(s.faint for s in many.series)
    assert (len(few.bands), len(many.bands)) == (0, 2)
    assert many.y.endswith("(bands: 90 % and 50 % of workers)")
    outer, inner = many.bands
    events = [e for e in seated(MANY + 1) if isinstance(e, Stepped if view is Losses else Drifted)]
    for k, e in enumerate(events):
        values = sorted(x for x in (e.loss_W if isinstance(e, Stepped) else e.to_mean_W) if x is not None)  # type: ignore[union-attr]
        place = [values[round(share * (len(values) - 1))] for share in SPREAD]
        assert [outer.low[k], inner.low[k], inner.high[k], outer.high[k]] == place


def test_who_is_late_and_where_nobody_sits() -> None:
    """In few rows each by itself, in many counted."""
    few = Workers.of(seated(12, rounds=3)).pictures()[0]
    assert isinstance(few, Calendar)
    at = {
        (m.row, m.name): list(zip(m.at, m.to or [], strict=True))
        for m in few.marks
        if m.name != "receives what it missed"
    }
    assert at[9, "too slow for the round"] == [(1, 15)]
    assert at[10, "no client there"] == at[11, "no client there"] == [(11, 15)]
    assert at[11, "computes"] == [(1, 10)]
    (many,) = Workers.of(seated(50, rounds=3)).pictures()
    assert isinstance(many, Lines)
    counts = {s.name: np.asarray(s.y).tolist() for s in many.series}
    assert counts == {
        "computes": [45] * 10 + [44] * 5,
        "too slow for the round": [5] * 10 + [4] * 5,
        "no client there": [0] * 10 + [2] * 5,
    }
