"""Prices: closed forms for every topology, and what must never happen when a link gets better."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from lab.costs.network import DEVICES, NETWORKS, Bill, Network, described, network, step_seconds
from lab.events import Sent
from lab.ground.errors import RecipeError
from lab.methods.des_loc import DESLOC
from lab.methods.local_adam import LocalAdam
from tests.support.bench import Bench

S, L = 1000, 0.5  # payload in bytes, latency in seconds
B = 8000.0  # bits per second: one payload takes one second
SERVER = 32_000.0  # four payloads a second


def net(topology: str, **changes: Any) -> Network:
    fields: dict[str, Any] = {"bits_per_second": B, "latency_seconds": L, "server_bits_per_second": SERVER}
    return Network(topology=topology, **(fields | changes))


def sent(
    step: int, workers: tuple[int, ...], num_bytes: int = S, op: str = "all_reduce", state: str = "params"
) -> Sent:
    return Sent(step, op, state, workers, {"all": num_bytes})


def price(records: list[Sent], n: Network, steps: int = 1, workers: int = 4, **more: Any) -> Bill:
    return n.price(records, num_workers=workers, steps=steps, **more)


def test_frames_on_an_ethernet() -> None:
    """A payload of two full segments: two frames of 1514 and one acknowledgement of 66; time grows with it, latency does not."""
    records = [sent(1, (0, 1), 2 * 1448)]
    plain, framed = price(records, net("ring")), price(records, net("ring", framing="ethernet"))
    assert framed.wire_bytes_W.sum() == pytest.approx(2 * (2 * 1514 + 66))  # both hand theirs to the other
    growth = (framed.total_seconds - 2 * L) / (plain.total_seconds - 2 * L)
    assert growth == pytest.approx((2 * 1514 + 66) / (2 * 1448))


def test_clients_of_other_speeds_take_their_turns() -> None:
    """Two workers that wait for each other after steps 2 and 4; from step 3 on others sit there. A link that takes no time."""
    free = Network(bits_per_second=1e30)
    records = [sent(2, (0, 1)), sent(4, (0, 1))]
    turns = [(1, (1.0, 3.0)), (3, (2.0, 0.5))]
    bill = price(records, free, steps=5, workers=2, compute_seconds=1.0, turns=turns)
    np.testing.assert_allclose(bill.at_step, [0, 3, 6, 8, 10, 12])
    bill = price(records, free, steps=5, workers=2, compute_seconds=1.0, turns=turns, slow={1: 8.0})
    np.testing.assert_allclose(bill.at_step, [0, 24, 48, 52, 56, 60])
    alone = price([sent(4, (1,), op="gather")], free, steps=4, workers=2, compute_seconds=1.0, turns=turns)
    np.testing.assert_allclose(alone.at_step, [0, 3, 6, 6.5, 7])  # worker 0 is at 1, 2, 4, 6


# topology, op, n workers -> seconds, bytes on all wires (in payloads S). B = one payload a second, the server four.
FORMS = [
    ("ring", "all_reduce", 2, 1.0 + 2 * L, 2),
    ("ring", "all_reduce", 4, 1.5 + 6 * L, 6),
    ("ring", "all_gather", 4, 3.0 + 3 * L, 12),
    ("ring", "broadcast", 3, 1.0 + L, 3),
    ("ring", "gather", 4, 1.0 + L, 4),
    ("ring", "gather", 8, 2.0 + L, 8),
    ("all_to_all", "all_reduce", 4, 3.0 + L, 12),
    ("all_to_all", "all_gather", 4, 3.0 + L, 12),
    ("all_to_all", "broadcast", 3, 1.0 + L, 3),
    ("server", "all_reduce", 2, 2.0 + 2 * L, 4),  # the workers' links are the narrow ones
    ("server", "all_reduce", 8, 4.0 + 2 * L, 16),  # the server's link is
    ("server", "all_gather", 4, 1.0 + 4.0 + 2 * L, 20),
    ("server", "broadcast", 2, 1.0 + L, 2),
    ("server", "broadcast", 8, 2.0 + L, 8),
    ("server", "gather", 8, 2.0 + L, 8),
]


@pytest.mark.parametrize(("topology", "op", "n", "seconds", "payloads"), FORMS)
def test_closed_forms(topology: str, op: str, n: int, seconds: float, payloads: int) -> None:
    """Seconds and wire bytes of one collective, worked out by hand."""
    bill = price([sent(1, tuple(range(n)), op=op)], net(topology), workers=n)
    assert bill.total_seconds == pytest.approx(seconds)
    assert bill.communication_seconds == pytest.approx(seconds)
    assert bill.wire_bytes_W.sum() == pytest.approx(payloads * S)
    assert np.allclose(bill.wire_bytes_W, payloads * S / n)
    assert bill.wire_bytes_by_state == {"params": pytest.approx(payloads * S)}


@pytest.mark.parametrize("topology", ["ring", "all_to_all"])
def test_alone_nothing_travels(topology: str) -> None:
    """Among one worker there is nobody to send to; a server is still somebody."""
    for op in ("all_reduce", "all_gather", "gather"):
        bill = price([sent(1, (0,), op=op)], net(topology), workers=1)
        assert bill.total_seconds == 0
        assert bill.wire_bytes_W.tolist() == [0]
    assert price([sent(1, (0,))], net("server"), workers=1).total_seconds == pytest.approx(2.0 + 2 * L)


@pytest.mark.parametrize("topology", ["ring", "server", "all_to_all"])
def test_the_slowest_link_that_takes_part_decides(topology: str) -> None:
    """A narrow link slows the collectives of its worker, and no others."""
    plain, narrow = net(topology, latency_seconds=0), net(topology, latency_seconds=0, links={2: B / 10})
    with_two, without = [sent(1, (0, 1, 2))], [sent(1, (0, 1, 3))]
    assert price(with_two, narrow).total_seconds == pytest.approx(10 * price(with_two, plain).total_seconds)
    assert price(without, narrow).total_seconds == price(without, plain).total_seconds


def test_overlap_hides_its_part() -> None:
    """α of the communication hides behind computation: (1 − α) of it is left, and the bytes are the same."""
    records = [sent(t, (0, 1, 2, 3)) for t in (1, 2)]
    bills = {a: price(records, net("ring", overlap=a), steps=2, compute_seconds=3.0) for a in (0.0, 0.25, 1.0)}
    one = 2 * (1.5 + 6 * L)
    assert {a: b.total_seconds for a, b in bills.items()} == pytest.approx({a: 6 + (1 - a) * one for a in bills})
    assert all(np.array_equal(b.wire_bytes_W, bills[0.0].wire_bytes_W) for b in bills.values())


def test_waiting_happens_at_syncs_alone() -> None:
    """A worker three times slower costs its own time up to each sync, once, however many steps lie in between."""
    free = net("ring", latency_seconds=0, bits_per_second=1e15)
    everyone = [sent(4, (0, 1)), sent(8, (0, 1))]
    bill = price(everyone, free, steps=8, workers=2, compute_seconds=1.0, slow={1: 3.0})
    assert bill.total_seconds == pytest.approx(24.0)
    assert bill.at_step[[0, 4, 8]] == pytest.approx([0.0, 12.0, 24.0])
    nobody = price([], free, steps=8, workers=2, compute_seconds=1.0, slow={1: 3.0})
    assert nobody.at_step == pytest.approx(3.0 * np.arange(9))
    assert nobody.communication_seconds == 0


def test_who_does_not_take_part_does_not_wait() -> None:
    """Workers 0 and 1 sync while slow worker 2 runs on by itself: the end is its own, not theirs on top."""
    free = net("ring", latency_seconds=0)
    bill = price([sent(2, (0, 1))], free, steps=4, workers=3, compute_seconds=1.0, slow={2: 5.0})
    assert bill.total_seconds == pytest.approx(20.0)


def test_a_fast_worker_that_is_ahead_does_not_pay_a_slow_ones_pace() -> None:
    """After a long receipt at fast worker 0, slow worker 1 is done with its steps first: step t ends with the later one.

    Worker 0: 1 s a step and 10 s of receiving in step 1. Worker 1: 3 s a step. Nobody waits for anybody.
    """
    bill = price(
        [sent(1, (0,), 10 * S, op="broadcast")],
        net("ring", latency_seconds=0),
        steps=3,
        workers=2,
        compute_seconds=1.0,
        slow={1: 3.0},
    )
    assert bill.at_step == pytest.approx([0.0, 11.0, 12.0, 13.0])
    assert bill.total_seconds == pytest.approx(13.0)


def test_what_leaves_together_is_one_transfer() -> None:
    """Three states averaged in one step pay their bytes and one latency; in three steps they pay three latencies."""
    names, all4 = ("params", "exp_avg", "exp_avg_sq"), (0, 1, 2, 3)
    together = price([sent(3, all4, state=s) for s in names], net("ring"), steps=3)
    apart = price([sent(i + 1, all4, state=s) for i, s in enumerate(names)], net("ring"), steps=3)
    assert together.total_seconds == pytest.approx(3 * 1.5 + 6 * L)
    assert apart.total_seconds == pytest.approx(3 * (1.5 + 6 * L))
    assert together.wire_bytes_by_state == apart.wire_bytes_by_state
    assert set(together.wire_bytes_by_state) == set(names)


# --- the papers' own formulas ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [2, 4, 16])
def test_photons_topologies(n: int) -> None:
    """Server N·S/B_s each way, all-to-all (N−1)·S/B, ring 2(N−1)/N·S/B: the ring alone does not grow with N."""
    bandwidth, server = B / 8, SERVER / 8
    records, wide = [sent(1, tuple(range(n)))], {"latency_seconds": 0.0}
    seconds = {t: price(records, net(t, **wide), workers=n).total_seconds for t in ("ring", "all_to_all")}
    assert seconds["ring"] == pytest.approx(2 * (n - 1) / n * S / bandwidth)
    assert seconds["all_to_all"] == pytest.approx((n - 1) * S / bandwidth)
    assert seconds["ring"] < 2 * S / bandwidth
    served = price(records, net("server", **wide), workers=n).total_seconds
    assert served == pytest.approx(2 * max(n * S / server, S / bandwidth))


def test_des_locs_time_model() -> None:
    """t = T·t_step + (T/K_x + T/K_u + T/K_v) · 2d/B · (1 − 1/M), from the ledger of a dry run.

    The paper adds a latency for every state; here states of one step travel together, so that syncs pay it.
    """
    steps, workers, kx, ku, kv = 24, 4, 2, 6, 12
    d = 8 * 24  # bytes of the toy perceptron
    records = Bench(DESLOC({"params": kx, "exp_avg": ku, "exp_avg_sq": kv}), workers, device="meta").run(steps).records
    model = steps * 0.25 + (steps / kx + steps / ku + steps / kv) * 2 * d / (B / 8) * (1 - 1 / workers)
    quiet = price(records, net("ring", latency_seconds=0), steps=steps, compute_seconds=0.25)
    assert quiet.total_seconds == pytest.approx(model)
    late = price(records, net("ring"), steps=steps, compute_seconds=0.25)
    assert late.total_seconds == pytest.approx(model + steps / kx * 2 * (workers - 1) * L)
    local_adam = Bench(LocalAdam(kx), workers, device="meta").run(steps).records
    ratio = price(local_adam, net("ring", latency_seconds=0), steps=steps).total_seconds / (quiet.communication_seconds)
    assert ratio == pytest.approx((3 / kx) / (1 / kx + 1 / ku + 1 / kv))


def test_step_seconds() -> None:
    """Six operations per parameter and token at the part of the peak that training reaches."""
    h100 = DEVICES["h100"]
    assert step_seconds(10**9, 10**6, "h100") == pytest.approx(6e15 / (h100.peak * h100.reached))


def test_names() -> None:
    """Networks and devices go by name; a wrong one is told the right ones."""
    assert network("1Gbit") is network(" 1gbit") is NETWORKS["1Gbit"]
    with pytest.raises(RecipeError, match=r"unknown network '1Gbitt'.*did you mean '1Gbit'"):
        network("1Gbitt")
    for spelled, bits, seconds in (
        ("3Mbit", 3e6, 0.0),
        ("3Mbit,20ms", 3e6, 0.02),
        ("0.5 gbit/s, 1.5 s", 5e8, 1.5),
        ("1e3kbit,5us", 1e6, 5e-6),
    ):
        assert network(spelled) == Network(bits_per_second=bits, latency_seconds=seconds)
        assert network(described(network(spelled)).replace("no latency", "0 ms")) == network(spelled)
    for wrong in (
        "3Mbid",
        "Mbit",
        "-3Mbit",
        "1e400Mbit",
        "3Mbit,20",
        "3Mbit,-2ms",
        "3Mbit,20min",
        "1.2.3Mbit",
        "",
    ):
        with pytest.raises(RecipeError, match=r"unknown network .*3Mbit,20ms"):
            network(wrong)
    with pytest.raises(RecipeError, match="must be greater than 0"):
        network("0Mbit,20ms")
    assert described(network("100Mbit")) == "100 Mbit/s, 30 ms"
    with pytest.raises(RecipeError, match=r"unknown device 'h10'.*did you mean 'h100'"):
        step_seconds(1, 1, "h10")


# --- what must hold for any ledger -----------------------------------------------------------------------------------

NUM = 4
groups = st.lists(st.integers(0, NUM - 1), min_size=1, max_size=NUM, unique=True).map(lambda w: tuple(sorted(w)))
record = st.builds(
    sent,
    st.integers(1, 9),
    groups,
    st.integers(0, 10_000),
    st.sampled_from(["all_reduce", "all_gather", "broadcast", "gather"]),
    st.sampled_from(["params", "exp_avg"]),
)
ledgers = st.lists(record, max_size=8).map(lambda r: sorted(r, key=lambda x: x.step))
networks = st.builds(
    Network,
    bits_per_second=st.floats(1e3, 1e6),
    latency_seconds=st.floats(0, 2),
    topology=st.sampled_from(["ring", "server", "all_to_all"]),
    links=st.dictionaries(st.integers(0, NUM - 1), st.floats(1e3, 1e6), max_size=2),
    server_bits_per_second=st.none() | st.floats(1e3, 1e6),
    overlap=st.floats(0, 1),
)
paces = st.dictionaries(st.integers(0, NUM - 1), st.floats(1, 10), max_size=NUM)
compute = st.floats(0, 5)


def total(records: list[Sent], n: Network, seconds: float, slow: dict[int, float]) -> float:
    return price(records, n, steps=10, workers=NUM, compute_seconds=seconds, slow=slow).total_seconds


AHEAD = [sent(2, (0,), 10 * S, op="broadcast"), sent(5, (0, 1))]  # fast worker 0 is ahead, then waits for slow worker 1


@given(ledgers, networks, compute, paces)
@example(AHEAD, Network(bits_per_second=B), 1.0, {1: 3.0})
def test_time_never_runs_back(records: list[Sent], n: Network, seconds: float, slow: dict[int, float]) -> None:
    """Step t is not finished before step t − 1, the last step is the end, and the parts add up to the whole."""
    bill = price(records, n, steps=10, workers=NUM, compute_seconds=seconds, slow=slow)
    assert bill.at_step[0] == 0
    assert len(bill.at_step) == 11
    assert (np.diff(bill.at_step) >= -1e-9).all()
    assert bill.at_step[-1] == bill.total_seconds
    assert bill.total_seconds == pytest.approx(bill.communication_seconds + bill.compute_seconds)
    assert bill.wire_bytes_W.sum() == pytest.approx(sum(bill.wire_bytes_by_state.values()))


@given(ledgers, networks, compute, paces)
def test_nobody_finishes_before_the_slowest_has_computed(
    records: list[Sent], n: Network, seconds: float, slow: dict[int, float]
) -> None:
    """The end lies between the slowest worker's own computing, and that plus all communication one after another."""
    alone = 10 * seconds * max(slow.get(w, 1.0) for w in range(NUM))
    bill = price(records, n, steps=10, workers=NUM, compute_seconds=seconds, slow=slow)
    assert alone * (1 - 1e-9) <= bill.total_seconds <= (alone + bill.communication_seconds) * (1 + 1e-9) + 1e-9


@given(ledgers, networks, compute, paces, st.floats(1, 100))
def test_better_is_never_slower(
    records: list[Sent], n: Network, seconds: float, slow: dict[int, float], by: float
) -> None:
    """More bandwidth, less latency, more overlap, less payload, faster workers: none makes a run take longer."""
    now = total(records, n, seconds, slow) * (1 + 1e-9) + 1e-9
    wider = dataclasses.replace(
        n,
        bits_per_second=n.bits_per_second * by,
        server_bits_per_second=(n.server_bits_per_second or n.bits_per_second) * by,
        links={w: b * by for w, b in n.links.items()},
    )
    assert total(records, wider, seconds, slow) <= now
    assert total(records, dataclasses.replace(n, latency_seconds=n.latency_seconds / by), seconds, slow) <= now
    assert total(records, dataclasses.replace(n, overlap=1 - (1 - n.overlap) / by), seconds, slow) <= now
    smaller = [dataclasses.replace(r, payload_bytes={"all": int(r.payload_bytes["all"] / by)}) for r in records]
    assert total(smaller, n, seconds, slow) <= now
    assert total(records[:-1], n, seconds, slow) <= now
    assert total(records, n, seconds / by, slow) <= now
    assert total(records, n, seconds, {}) <= now
