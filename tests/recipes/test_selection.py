"""Who takes part in a round: draws against the same draws written out, times of clients by hand, who is late."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lab.data.shards import Repeated
from lab.ground.errors import RecipeError
from lab.ground.seeds import numpy_generator
from lab.recipes import selection
from lab.recipes.availability import DayNight, availability
from lab.recipes.clients import Clients
from lab.recipes.recipe import Recipe
from lab.recipes.selection import AT_ONCE, Selected, Selection, pace_W, slowness


def csv(folder: Path, *lines: str) -> str:
    path = folder / "up.csv"
    path.write_text("\n".join(lines) + "\n")
    return str(path)


@pytest.fixture
def speeds(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """z of each client, instead of those that are drawn."""
    z = [0.5, -1.0, 2.0, 0.0, -0.25, 1.0]
    monkeypatch.setattr(selection, "_speeds", lambda num, seed: np.array(z, np.float32))
    return z


def test_all_alike_is_numpys_own_draw() -> None:
    clients = Clients(num=1000)
    for number in range(4):
        drawn = numpy_generator(5, "clients", number).choice(1000, 20, replace=False)
        assert Selection(clients, 20, 5).of_round(number) == Selected(sorted(drawn.tolist()), [])


def test_a_hundred_million_clients_cost_what_twenty_cost() -> None:
    """Nothing is made that has as many entries as there are clients."""
    before = selection._speeds.cache_info().currsize
    drawn = Selection(Clients(num=100_000_000, sampling="size"), 20, 0, Repeated(7, 100_000_000)).of_round(3).clients
    assert len({*drawn}) == 20
    assert max(drawn) > 1_000_000
    assert selection._speeds.cache_info().currsize == before


def test_by_size_each_is_drawn_where_the_sum_of_sizes_is_reached() -> None:
    """The draw written out: a place in the row of all examples, and whose example that is; who is there already is passed over."""
    sizes = [5, 1, 30, 4, 10, 2, 8, 20]
    owner = [client for client, size in enumerate(sizes) for _ in range(size)]
    for number in range(20):
        found: list[int] = []
        for place in numpy_generator(3, "clients", number).random(AT_ONCE * 3):
            client = owner[int(place * len(owner))]
            if client not in found:
                found.append(client)
        assert len(found) >= 3
        assert Selection(Clients(num=8, sampling="size"), 3, 3, sizes).of_round(number).clients == sorted(found[:3])


def test_who_has_nearly_everything_is_always_there() -> None:
    sizes = [1] * 500 + [10**9] + [1] * 499
    chosen = Selection(Clients(num=1000, sampling="size"), 4, 0, sizes)
    for number in range(10):
        clients = chosen.of_round(number).clients
        assert len({*clients}) == 4  # the others are found although one in a thousand million draws is theirs
        assert 500 in clients


def test_all_that_are_left_are_drawn_by_their_exponential_clocks() -> None:
    """Sizes so far apart that few are found by tries: the rest in the order of clocks that tick as fast as they are large."""
    sizes, rng = [10**12, 1, 2, 3, 4], numpy_generator(0, "clients", 0)
    for _ in range(selection.TRIES):
        assert (rng.random(AT_ONCE * 3) * 10**12 < 10**12 - 11).all()  # each of them found client 0
    clocks = rng.exponential(size=4) / np.array([1, 2, 3, 4])
    want = sorted([0, *(1 + np.argsort(clocks)[:2]).tolist()])
    assert Selection(Clients(num=5, sampling="size"), 3, 0, sizes).of_round(0).clients == want


def test_times_of_a_file(tmp_path: Path) -> None:
    """Rounds from 1, both included, times that overlap, and after the last round the file from its beginning."""
    path = csv(tmp_path, "client,first_round,last_round", "4,2,3", "0,1,1", "4,1,2", "2,3,4", "0,4,4")
    up = availability(path, 6, 1.0, 0)
    assert up is not None
    by_round = [np.flatnonzero(up.up(np.arange(6), number)).tolist() for number in range(9)]
    assert by_round == [[0, 4], [4], [2, 4], [0, 2], [0, 4], [4], [2, 4], [0, 2], [0, 4]]
    chosen = Selection(Clients(num=6, available=path), 2, 0)
    assert [chosen.of_round(n).clients for n in range(4)] == [[0, 4], [4], [2, 4], [0, 2]]


def test_hours_of_a_file(tmp_path: Path) -> None:
    path = csv(tmp_path, "client, from_hour, to_hour", "1,22.5,30", "0,0,6.5", "1,0,1")
    up = availability(path, 2, 6.5, 0)
    assert up is not None
    # at 0, 6.5, 13, 19.5, 26, 32.5 (2.5 after the end, at 30) o'clock
    assert [up.up(np.arange(2), n).tolist() for n in range(6)] == [
        [True, True],
        [False, False],
        [False, False],
        [False, False],
        [False, True],
        [True, False],
    ]


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        (
            ["client,first,last", "0,1,2"],
            "begins with 'client,first,last': its first line is client,first_round,last_round or",
        ),
        (["client,first_round,last_round"], "names no client"),
        (["client,first_round,last_round", "0,1"], "has lines with 2 numbers: each has three"),
        (["client,first_round,last_round", "0,1,2", "1,x,2"], "could not convert string 'x'"),
        (["client,first_round,last_round", "0,1,2", "6,1,2"], "names client 6 in line 3, but the clients are 0 … 5"),
        (["client,first_round,last_round", "0,1,2", "1.5,1,2"], "names client 1.5 in line 3"),
        (["client,first_round,last_round", "0,0,2"], "line 2: rounds count from 1, and the last is not before"),
        (["client,first_round,last_round", "0,1,2", "0,3,2"], "line 3: rounds count from 1"),
        (["client,from_hour,to_hour", "0,3,3"], "line 2: hours count from 0"),
        (["client,from_hour,to_hour", "0,3,inf"], "line 2: hours count from 0"),
    ],
)
def test_a_file_that_makes_no_sense(lines: Sequence[str], says: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=re.escape(says)) as caught:
        Selection(Clients(num=6, available=csv(tmp_path, *lines)), 2, 0)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="cannot be read: No such file"):
        Selection(Clients(num=6, available=str(tmp_path / "up.csv")), 2, 0)


def test_day_and_night() -> None:
    """Everybody has one night a day, at the same hours every day, shifted by the zone where they live."""
    all_of_them = np.arange(500)
    quarters = DayNight(500, 1, 0.25, 0)
    up = np.array([quarters.up(all_of_them, number) for number in range(4 * 48)])
    assert np.array_equal(up[:96], up[96:])
    began = (up & ~np.roll(up, 1, axis=0)).sum(0)
    assert (began == 2).all()  # one night in each of two days
    assert up[4 * 26].mean() > 0.95  # at 2 o'clock
    assert up[4 * 14].mean() == 0.0
    around = DayNight(500, 24, 1.0, 0)
    shares = [around.up(all_of_them, hour).mean() for hour in range(24)]
    assert 0.2 < min(shares) < max(shares) < 0.5  # a third of the earth
    zone = numpy_generator(0, "day and night").integers(24, size=500)
    for client in range(0, 500, 50):
        hours = [h for h in range(24) if around.up(np.array([client]), h)[0]]
        local = sorted((h + zone[client]) % 24 for h in hours)
        assert set(local) <= {17, 18, 19, 20, 21, 22, 23, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11}
        assert len(local) > 3


def test_late_by_hand(speeds: list[float]) -> None:
    """Rows 0 … 4 of clients 0, 1, 2, 3, 5, whose z are 0.5, −1, 2, 0, 1."""

    def late(**options: Any) -> list[int]:
        clients = Clients(num=6, spread=1.0, **options)
        return selection._late(clients, [0, 1, 2, 3, 5], 0)

    assert late() == []
    assert late(wait_for=3) == [2, 4]
    assert late(wait_for=1) == [0, 2, 3, 4]
    assert late(deadline=1.0) == [0, 2, 4]  # just in time is in time
    assert late(deadline=1.5, wait_for=2) == [0, 2, 4]
    assert late(deadline=3.0, wait_for=4) == [2]
    assert late(deadline=0.3) == [0, 1, 2, 3, 4]
    np.testing.assert_allclose(slowness(Clients(num=6, spread=0.5), [2, 1], 0), [np.e, np.exp(-0.5)])


def test_what_a_round_waits_for_by_hand(speeds: list[float]) -> None:
    e = np.exp

    def pace(late: list[int], **options: Any) -> list[float]:
        return pace_W(Clients(num=6, spread=1.0, **options), [1, 3, 5], late, 4, 0)

    np.testing.assert_allclose(pace([]), [e(-1), 1, e(1), 0])  # the empty row holds up nobody
    np.testing.assert_allclose(pace([2], wait_for=2), [e(-1), 1, 0, 0])  # over when two are there
    np.testing.assert_allclose(pace([2], deadline=2.0), [e(-1), 1, 2, 0])  # the server waits for the third until then
    np.testing.assert_allclose(pace([2], deadline=2.0, wait_for=2), [e(-1), 1, 0, 0])
    np.testing.assert_allclose(pace([1, 2], deadline=0.5, wait_for=2), [e(-1), 0.5, 0.5, 0])


def test_with_equal_speeds_the_first_so_many_count() -> None:
    """Who is first is each one's own luck, the same in all rounds."""
    chosen = Selection(Clients(num=40, wait_for=8), 10, 0)
    order = np.argsort(selection._speeds(40, 0), kind="stable").tolist()
    for number in range(5):
        found = chosen.of_round(number)
        late = [found.clients[w] for w in found.late]
        assert sorted(order.index(c) for c in found.clients)[8:] == sorted(order.index(c) for c in late)


def test_another_process_draws_the_same(tmp_path: Path) -> None:
    clients = {
        "num": 5000,
        "sampling": "size",
        "available": "day_night:2",
        "spread": 0.7,
        "wait_for": 15,
        "deadline": 1.4,
    }
    program = (
        "from lab.recipes.clients import Clients\nfrom lab.recipes.selection import Selection\n"
        f"chosen = Selection(Clients(**{clients}), 20, 9, [1 + c % 7 for c in range(5000)])\n"
        "print([chosen.of_round(n) for n in (3, 0, 11)])"
    )
    out = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    chosen = Selection(Clients(**clients), 20, 9, [1 + c % 7 for c in range(5000)])  # type: ignore[arg-type]
    assert out.strip() == str([chosen.of_round(n) for n in (3, 0, 11)])


@pytest.mark.parametrize(
    ("clients", "says"),
    [
        ({"wait_for": 4}, "clients.wait_for = 4 is more than num_workers = 3"),
        ({"available": "night"}, "clients.available = 'night' is not allowed: use day_night"),
        ({"available": "day_night:0"}, "write day_night, or day_night:<number of time zones>"),
        ({"available": "day_night:2.5"}, "write day_night, or"),
        ({"deadline": 0}, "clients.deadline"),
        ({"spread": -1}, "clients.spread"),
        ({"sampling": "sizes"}, "clients.sampling"),
        ({"num": 10**9}, "clients.num"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(clients: dict[str, Any], says: str) -> None:
    with pytest.raises(RecipeError, match=re.escape(says)):
        Recipe.of({"num_workers": 3, "clients": {"num": 12} | clients})
