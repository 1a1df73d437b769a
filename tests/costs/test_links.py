"""Links as they are: two directions, jitter, links that several share, and rates that change; each worked by hand, and against the closed forms."""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from lab.cli import main
from lab.costs.link_traces import read_trace
from lab.costs.links import Bottleneck, Lane, Link, Queue
from lab.costs.network import NETWORKS, OPTIONS, Bill, Meter, Network, described, network
from lab.events import Sent
from lab.ground.config import checked
from lab.ground.errors import RecipeError
from lab.recipes.recipe import Recipe
from lab.runs.columns import Columns
from lab.runs.knobs import named_network, network_fields
from lab.runs.plan import plan
from tests.support import ROOT
from widgets import CommunicationBudget
from widgets.forecasts import forecast

S = 1000  # bytes of a payload
B = 8000.0  # bits per second: one payload takes one second


def sent(step: int, workers: tuple[int, ...], op: str = "all_reduce", num_bytes: int = S) -> Sent:
    return Sent(step, op, "params", workers, {"all": num_bytes})


def seconds(net: Network, op: str, n: int) -> float:
    return net.price([sent(1, tuple(range(n)), op)], num_workers=n, steps=1).total_seconds


# topology, op, workers -> seconds. Up one payload a second, down four; the server, where it is named, sixteen either way.
DIRECTIONS = [
    ("ring", "all_reduce", 4, 1.5),  # what is passed on goes up and down at once, and up is slower
    ("ring", "all_gather", 4, 3.0),
    ("ring", "gather", 4, 1.0),  # each goes up once; down at the one who gathers, four take a second as well
    ("ring", "gather", 8, 2.0),
    ("all_to_all", "all_reduce", 4, 3.0),
    ("server", "all_reduce", 4, 1.0 + 0.25),
    ("server", "all_reduce", 32, 2.0 + 2.0),
    ("server", "all_gather", 4, 1.0 + 1.0),
    ("server", "broadcast", 4, 0.25),
    ("server", "gather", 4, 1.0),
    ("mailbox", "all_reduce", 3, 1.0 + 0.5),  # one upload, two downloads
    ("mailbox", "broadcast", 3, 1.0 + 0.25),
    ("mailbox", "gather", 3, 1.0 + 0.75),
]


@pytest.mark.parametrize(("topology", "op", "n", "expected"), DIRECTIONS)
def test_up_and_down_differ(topology: Any, op: str, n: int, expected: float) -> None:
    of_server = 16 * B if topology == "server" else None
    net = Network(B, topology=topology, down_bits_per_second=4 * B, server_bits_per_second=of_server)
    assert seconds(net, op, n) == pytest.approx(expected)
    assert seconds(replace(net, down_bits_per_second=B), op, n) == seconds(
        replace(net, down_bits_per_second=None), op, n
    )


def test_a_server_is_linked_as_a_worker_is() -> None:
    """What comes to it goes down its own link, four payloads a second; what it sends goes up, one a second."""
    net = Network(B, topology="server", down_bits_per_second=4 * B)
    assert seconds(net, "all_reduce", 8) == pytest.approx(2.0 + 8.0)


def test_directions_of_single_workers() -> None:
    """Worker 1 has half of all in both directions, worker 2 an eighth downwards; from a place, where all read two payloads."""
    net = Network(B, topology="mailbox", down_bits_per_second=4 * B, links={1: B / 2}, down_links={2: B / 2})
    one = {w: net.price([sent(1, (0, w))], num_workers=3, steps=1).total_seconds for w in (1, 2)}
    assert one == {1: pytest.approx(2.0 + 2.0), 2: pytest.approx(1.0 + 2.0)}


def test_directions_of_levels() -> None:
    """Nodes of a tree: up in two seconds, down two payloads in four, over the link of the node above, which is like theirs; workers without levels talk over the slowest of each direction."""
    net = Network(8 * B, topology="server", levels=(Link(B / 2, 0.25, 2 * B),))
    above = Sent(1, "all_reduce", "params", (0, 1), {"all": S}, level=1)
    assert net.price([above], num_workers=2, steps=1).total_seconds == pytest.approx(2.0 + 2 * S * 8 / (B / 2) + 0.5)
    assert net.slowest == Network(B / 2, 0.25, topology="server", down_bits_per_second=2 * B)


# --- rates over time ---------------------------------------------------------------------------------------------------


def test_a_transfer_ends_where_the_integral_of_the_rate_reaches_its_bytes() -> None:
    """1000 B/s until 2 s, nothing until 5 s, then 500 B/s."""
    lane = Lane([0.0, 2.0, 5.0], [1000.0, 0.0, 500.0])
    for begin, num_bytes, end in (
        (0.0, 500, 0.5),
        (1.0, 1000, 2.0),
        (1.0, 1500, 6.0),
        (3.0, 250, 5.5),
        (0.0, 4000, 9.0),
        (7.0, 0, 7.0),
    ):
        assert lane.end(begin, num_bytes) == pytest.approx(end)
    assert lane.end(1.0, 1500, factor=0.5) == pytest.approx(
        5.0 + 2 * 1000 / 500 * 1.0
    )  # 500 until 2 s, then half as fast


def test_a_run_on_a_trace() -> None:
    """A step computes for a second and averages one payload. Worker 1's link falls to a quarter at 3 s: 1–2, 3–7, 8–12."""
    trace = ((0.0, 1, B, B), (3.0, 1, B / 4, B / 4))
    net = Network(8 * B, trace=trace)
    bill = net.price([sent(t, (0, 1)) for t in (1, 2, 3)], num_workers=2, steps=4, compute_seconds=1.0)
    assert bill.at_step.tolist() == pytest.approx([0.0, 2.0, 7.0, 12.0, 13.0])
    assert bill.communication_seconds == pytest.approx(9.0)
    assert bill.wire_bytes_W.tolist() == [3 * S, 3 * S]


def test_both_directions_of_a_trace() -> None:
    """Through a server: up at one payload a second; when what comes down begins, its rate has just fallen to a tenth."""
    net = Network(100 * B, topology="server", trace=((0.0, 0, B, B), (1.0, 0, B, B / 10)))
    bill = net.price([sent(1, (0,))], num_workers=1, steps=1)
    assert bill.total_seconds == pytest.approx(1.0 + 10.0)


def test_before_its_first_line_a_link_is_as_the_network_says() -> None:
    net = Network(B, trace=((10.0, 0, B / 10, B / 10),))
    assert net.price([sent(1, (0, 1))], num_workers=2, steps=1).total_seconds == pytest.approx(1.0)


TOPOLOGIES: Any = st.sampled_from(["ring", "server", "all_to_all", "mailbox"])
RECORDS = st.builds(
    sent,
    st.integers(1, 9),
    st.lists(st.integers(0, 3), min_size=1, max_size=4, unique=True).map(lambda w: tuple(sorted(w))),
    st.sampled_from(["all_reduce", "all_gather", "broadcast", "gather", "reduce"]),
    st.integers(0, 10_000),
)
LEDGERS = st.lists(RECORDS, max_size=8).map(lambda records: sorted(records, key=lambda r: r.step))
RATES = st.floats(1e3, 1e6)


def priced(records: list[Sent], net: Network) -> Bill:
    return net.price(records, num_workers=4, steps=10, compute_seconds=0.5, slow={1: 2.0})


@given(LEDGERS, TOPOLOGIES, st.none() | RATES, st.none() | RATES, st.floats(0, 1), st.floats(0, 2))
def test_what_does_not_change_costs_what_the_closed_forms_say(
    records: list[Sent], topology: Any, down: float | None, server: float | None, overlap: float, latency: float
) -> None:
    """A trace that says the same all the time, and a link that is shared and has room for all."""
    plain = Network(
        3e4,
        latency,
        topology,
        {2: 1e4},
        server,
        overlap=overlap,
        down_bits_per_second=down,
        down_links={3: 2e4},
    )
    cut = tuple((t, w, plain.up_of(w), plain.down_of(w)) for w in range(4) for t in (0.0, 1.7, 40.0))
    for net in (
        replace(plain, trace=cut),
        replace(plain, bottlenecks=(Bottleneck(1e30),)),
        replace(plain, trace=cut[:5]),
    ):
        expected, found = priced(records, plain), priced(records, net)
        np.testing.assert_allclose(found.at_step, expected.at_step)
        assert found.communication_seconds == pytest.approx(expected.communication_seconds)
        assert found.wire_bytes_W.tolist() == expected.wire_bytes_W.tolist()
        assert found.wire_bytes_by_state == expected.wire_bytes_by_state


@st.composite
def changing(draw: st.DrawFn) -> Network:
    times = st.lists(st.floats(0, 30), min_size=1, max_size=4, unique=True).map(sorted)
    trace = tuple((t, w, draw(RATES), draw(RATES)) for w in draw(st.sets(st.integers(0, 3))) for t in draw(times))
    shared = draw(st.sampled_from([(), (Bottleneck(2e4),), (Bottleneck(1e5, (0, 2)), Bottleneck(3e4, (1, 2)))]))
    draws = {"jitter_seconds": draw(st.sampled_from([0.0, 0.3])), "spread": draw(st.sampled_from([0.0, 0.7]))}
    return Network(5e4, 0.1, draw(TOPOLOGIES), trace=trace, bottlenecks=shared, overlap=draw(st.floats(0, 1)), **draws)


@given(LEDGERS, changing())
def test_step_by_step_and_all_at_once(records: list[Sent], net: Network) -> None:
    """Time never runs back; a ledger that grows costs what the whole one does, and the same a second time."""
    bill = priced(records, net)
    assert (np.diff(bill.at_step) >= -1e-9).all()
    assert bill.total_seconds == pytest.approx(bill.communication_seconds + bill.compute_seconds)
    assert priced(records, net).at_step.tolist() == bill.at_step.tolist()
    of_steps = [tuple(r for r in records if r.step == t) for t in range(1, 11)]
    one, many = (Meter(net, 4, 0.5, {1: 2.0}) for _ in range(2))
    np.testing.assert_allclose([one.until(t, of_steps[t - 1])[-1] for t in range(1, 11)], bill.at_step[1:])
    parts = [many.through(np.arange(a + 1, b + 1), np.arange(a, b), of_steps) for a, b in ((0, 4), (4, 10))]
    np.testing.assert_allclose(np.concatenate([p[0] for p in parts]), bill.at_step[1:])
    assert parts[1][1][-1] == pytest.approx(bill.wire_bytes_W.sum())


@given(LEDGERS, changing().filter(lambda net: not net.bottlenecks), st.floats(1, 10))
def test_wider_is_never_slower(records: list[Sent], net: Network, by: float) -> None:
    wider = replace(
        net, bits_per_second=net.bits_per_second * by, trace=tuple((t, w, u * by, d * by) for t, w, u, d in net.trace)
    )
    assert priced(records, wider).total_seconds <= priced(records, net).total_seconds * (1 + 1e-9)


# --- links that are shared ---------------------------------------------------------------------------------------------


def test_all_go_through_one_link() -> None:
    """Four workers in a ring send 1.5 payloads each, six together, through a link of two payloads a second."""
    assert seconds(Network(B, bottlenecks=(Bottleneck(2 * B),)), "all_reduce", 4) == pytest.approx(3.0)
    assert seconds(Network(B, bottlenecks=(Bottleneck(8 * B),)), "all_reduce", 4) == pytest.approx(1.5)
    both = Network(B, topology="server", server_bits_per_second=1e9, bottlenecks=(Bottleneck(2 * B),))
    assert seconds(both, "all_reduce", 4) == pytest.approx(2.0 + 2.0, rel=1e-3)


def test_only_those_behind_it() -> None:
    """Workers 0 and 1 share a link of half a payload a second: among them four seconds, with one of them two, without them one."""
    net = Network(B, bottlenecks=(Bottleneck(B / 2, (0, 1)),))
    of = {pair: net.price([sent(1, pair)], num_workers=4, steps=1).total_seconds for pair in ((0, 1), (1, 2), (2, 3))}
    assert of == {(0, 1): pytest.approx(4.0), (1, 2): pytest.approx(2.0), (2, 3): pytest.approx(1.0)}


def test_groups_that_send_at_the_same_time_take_turns() -> None:
    """Two pairs, each two payloads through a link of two a second: one second each, one after the other; apart they would need one."""
    records = [sent(1, (0, 1)), sent(1, (2, 3))]
    net = Network(B, bottlenecks=(Bottleneck(2 * B),))
    assert net.price(records, num_workers=4, steps=1).total_seconds == pytest.approx(2.0)
    assert replace(net, bottlenecks=()).price(records, num_workers=4, steps=1).total_seconds == pytest.approx(1.0)


def test_who_is_there_first_does_not_wait_for_those_before_it_in_the_ledger() -> None:
    """A slow pair sends from 10 s on; the other pair, whose record stands after it, has long been through."""
    net = Network(B, bottlenecks=(Bottleneck(2 * B),))
    records = [sent(1, (0, 1)), sent(1, (2, 3)), sent(2, (2, 3))]
    bill = net.price(records, num_workers=4, steps=2, compute_seconds=1.0, slow={0: 10.0})
    assert bill.at_step.tolist() == pytest.approx([0.0, 11.0, 21.0])  # 2 and 3 are at 2 s, then 4 s


def test_what_is_free_in_between_is_used() -> None:
    """Taken from 1 to 2 and from 3 to 5: two bytes from 0 on go through at 0–1 and 2–3; one more from 2.5 on only at 5."""
    queue = Queue(1.0, [(1.0, 2.0), (3.0, 5.0)])
    assert queue.end(0.0, 2.0) == 3.0
    assert queue.busy == [(0.0, 5.0)]
    assert queue.end(2.5, 1.0) == 6.0
    assert queue.end(0.5, 0.0) == 0.5
    queue.forget(6.0)
    assert queue.busy == []


# --- jitter ------------------------------------------------------------------------------------------------------------


def test_jitter_lengthens_by_its_mean() -> None:
    """A worker that fetches in each of 4,000 steps, with latencies longer by 0.2 s in the mean: 800 s, four standard errors off at most."""
    num = 4000
    records = [sent(t, (0,), "broadcast") for t in range(1, num + 1)]
    plain = Network(B, topology="server", server_bits_per_second=1e12)
    late = replace(plain, jitter_seconds=0.2).price(records, num_workers=1, steps=num).total_seconds
    assert late - num == pytest.approx(0.2 * num, abs=4 * 0.2 * num**0.5)
    spread = np.diff(replace(plain, spread=0.5).price(records, num_workers=1, steps=num).at_step)
    assert np.median(spread) == pytest.approx(1.0, abs=0.05)
    assert np.log(spread).std() == pytest.approx(0.5, rel=0.1)


def test_jitter_is_of_the_seed() -> None:
    """Of the step and the worker as well: what else was sent, or is left out, changes nothing of it."""
    net = Network(B, jitter_seconds=1.0, spread=0.5)
    records = [sent(t, (0, 1)) for t in (1, 2, 5)]

    def took(net: Network, records: list[Sent]) -> list[float]:
        return np.diff(net.price(records, num_workers=2, steps=5).at_step).tolist()

    first = took(net, records)
    assert took(net, records) == first
    assert took(replace(net, seed=1), records) != first
    assert took(net, records[2:])[4] == pytest.approx(first[4])
    assert len({*first} - {0.0}) == 3


# --- traces from files, and names --------------------------------------------------------------------------------------


def test_a_trace_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "links.csv"
    path.write_text("time, worker, rate\n0,0,20Mbit\n\n2.5,1,2e6\n7,0,0\n9.5,0,1.5 Mbit/s\n", encoding="utf-8")
    expected = ((0.0, 0, 2e7, 2e7), (2.5, 1, 2e6, 2e6), (7.0, 0, 0.0, 0.0), (9.5, 0, 1.5e6, 1.5e6))
    assert read_trace(str(path)) == expected
    path.write_text("\ufefftime,worker,up,down\n0,3,1Mbit,10Mbit\n", encoding="utf-8")
    assert read_trace(str(path)) == ((0.0, 3, 1e6, 1e7),)
    assert network(f"20Mbit,30ms,trace={path}").trace == read_trace(str(path))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", r"line 1: begins with ''"),
        (
            "worker,time,rate\n",
            r"line 1: begins with 'worker,time,rate': write time,worker,rate or time,worker,up,down",
        ),
        ("time,worker,rate\n\n", r"names no rate"),
        ("time,worker,rate\n0,0,1\n5,0\n", r"line 3: has 2 values: each line has 3, time,worker,rate"),
        ("time,worker,up,down\n0,0,1\n", r"line 2: has 3 values: each line has 4"),
        ("time,worker,rate\nnow,0,1\n", r"line 2: time 'now' is no number of seconds"),
        ("time,worker,rate\n-1,0,1\n", r"line 2: time '-1'"),
        ("time,worker,rate\n0,first,1\n", r"line 2: worker 'first'"),
        ("time,worker,rate\n0,0,fast\n", r"line 2: rate 'fast' is none: write bits per second, as 2e6 or 2Mbit"),
        ("time,worker,rate\n0,0,3Mbid\n", r"line 2: rate '3Mbid'"),
        ("time,worker,rate\n0,0,-3\n", r"line 2: rate '-3'"),
        ("time,worker,rate\n0,0,1\n9,1,1\n\n0,0,2\n", r"line 5: time 0 of worker 0 is not after the one before \(0\)"),
        ("time,worker,rate\n0,0,1\n9,0,0\n", r"line 3: the last rate of worker 0 is 0, so nothing would ever arrive"),
    ],
)
def test_each_mistake_in_a_trace_is_one_line(text: str, says: str, tmp_path: Path) -> None:
    path = tmp_path / "links.csv"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(RecipeError, match=says) as caught:
        read_trace(str(path))
    assert "\n" not in str(caught.value)
    assert "links.csv" in str(caught.value)


def test_a_trace_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="cannot be read: No such file"):
        read_trace(str(tmp_path / "none.csv"))
    (tmp_path / "bytes.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RecipeError, match="no text in UTF-8"):
        read_trace(str(tmp_path / "bytes.csv"))
    with pytest.raises(RecipeError, match="trace, entry 2: the last rate of worker 0 is 0"):
        Network(B, trace=((0.0, 0, 1.0, 1.0), (1.0, 0, 0.0, 1.0)))


def test_a_network_spelled_out() -> None:
    net = network("20Mbit,30ms,down=100Mbit,jitter=5ms,spread=0.3,seed=4,shared=1Gbit,server=2Gbit,overlap=0.5")
    expected = Network(2e7, 0.03, server_bits_per_second=2e9, overlap=0.5, down_bits_per_second=1e8)
    assert net == replace(expected, jitter_seconds=0.005, spread=0.3, seed=4, bottlenecks=(Bottleneck(1e9),))
    assert (
        described(net) == "20 Mbit/s up, 100 Mbit/s down, 30 ms, 5 ms of jitter, rates spread by 0.3, 1 Gbit/s shared"
    )
    assert network("100Mbit,topology=mailbox,framing=ethernet") == replace(
        NETWORKS["100Mbit"], topology="mailbox", framing="ethernet"
    )
    tree = network("1Gbit,jitter=1ms:20Mbit,30ms,down=100Mbit")
    assert tree.levels == (Link(2e7, 0.03, 1e8),)
    assert described(tree).endswith("; above 20 Mbit/s up, 100 Mbit/s down, 30 ms")
    for wrong, says in (
        ("20Mbit,dwn=1Mbit", r"unknown option of network .*did you mean 'down'"),
        ("20Mbit,down=0", "greater than 0"),
        ("20Mbit,down=fast", r"down='fast' is not allowed: write it as down=100Mbit"),
        ("20Mbit,jitter=5", r"jitter='5' is not allowed: write it as jitter=5ms"),
        ("20Mbit,seed=-1", "seed=1"),
        ("20Mbit,topology=star", "topology"),
        ("1Gbit:20Mbit,jitter=1ms", r"unknown option .*use one of down"),
    ):
        with pytest.raises(RecipeError, match=says):
            network(wrong)


# --- where networks are used -------------------------------------------------------------------------------------------

NET = Network(
    1e6, 0.01, down_bits_per_second=3e6, jitter_seconds=0.02, spread=0.2, bottlenecks=(Bottleneck(2e6),),
    trace=((0.0, 1, 5e5, 5e5), (0.6, 1, 1e6, 2e6)),
)  # fmt: skip


def test_plans_forecasts_and_views() -> None:
    """What a plan says is the price of its ledger; what a view draws of a run to come is that without computing."""
    recipe = Recipe.of("des_loc", ["steps=24", "model=nano", "num_workers=2"])
    planned = plan(recipe, {"mine": NET})
    given_to: Any = {"num_workers": 2, "steps": 24}
    bill = NET.price(planned.ledger, compute_seconds=planned.seconds_per_step, **given_to)
    assert planned.forecasts[0].total_hours == pytest.approx(bill.total_seconds / 3600)
    assert planned.forecasts[0].link == described(NET)
    view = CommunicationBudget(recipe=recipe, network="mine", networks={"mine": NET})
    sending = NET.price(planned.ledger, **given_to)
    (_, time, *_) = view.pictures()
    drawn = next(s for s in time.series if s.name == "planned")  # type: ignore[attr-defined]
    np.testing.assert_allclose(np.asarray(drawn.y), sending.at_step[1:])
    columns = Columns.of(forecast(recipe).events())
    columns.close()
    np.testing.assert_allclose(columns.price(NET, 0.0).at_step, sending.at_step)


def test_the_page_on_links(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Its commands and its code run as they are printed; every option of a network is in its table, and no other."""
    page = (ROOT / "docs/links.md").read_text(encoding="utf-8")
    assert re.findall(r"^\| `(\w+)=", page, flags=re.M) == sorted(OPTIONS, key=lambda o: page.index(f"`{o}="))
    monkeypatch.chdir(tmp_path)
    for block in re.findall(r"```python\n(.*?)```", page, flags=re.S):
        exec(compile(block, "docs/links.md", "exec"), {})
    commands = [line for block in re.findall(r"```sh\n(.*?)```", page, flags=re.S) for line in block.splitlines()]
    assert commands
    for command in commands:
        out = CliRunner().invoke(main, shlex.split(command)[1:])
        assert out.exit_code == 0, f"{command}: {out.output}"


def test_a_network_in_a_stored_knob() -> None:
    fields = network_fields(NET)
    assert checked(Network, json.loads(json.dumps(fields)), "network") == NET
    assert named_network(fields) is None
    plain = network_fields("100Mbit")
    assert plain is not None
    assert named_network(plain) == "100Mbit"
    assert named_network({key: plain[key] for key in ("bits_per_second", "latency_seconds", "topology")}) == "100Mbit"
    assert named_network({"bits_per_second": -1}) is None
    assert named_network(None) is None
