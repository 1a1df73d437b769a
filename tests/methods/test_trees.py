"""Trees of federations: what a tree may be, HierFAVG by hand, who talks with whom, and what links between nodes cost."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from lab.costs.network import Link, Network, network
from lab.engine.optim import AdamW, Optimizer
from lab.events import Sent
from lab.ground.errors import RecipeError
from lab.methods.fedprox import FedProx
from lab.methods.hierfavg import HierFAVG
from lab.methods.local_sgd import LocalSGD
from lab.methods.tree import tree_of
from lab.recipes.notes import notes
from lab.recipes.recipe import Recipe
from lab.runs.plan import plan
from tests.support.bench import Bench, close
from tests.support.listed import SGD
from tests.support.points import START, point

PLAIN = Optimizer("SGD", 0.1)
NINE = [[0, 1, 2], [3, 4, 5], [6, 7, 8]]

# --- what a tree may be -----------------------------------------------------------------------------------------------


def test_three_ways_to_write_the_same_tree() -> None:
    by_list, by_form = tree_of(NINE, 9), tree_of("3", 9)
    by_name = tree_of({"A": [0, 1, 2], "B": [3, 4, 5], "C": [6, 7, 8]}, 9)
    assert by_list == by_form == by_name
    assert [(n.name, n.parent, n.leaves, n.height) for n in by_list.values()] == [
        ("root", None, tuple(range(9)), 2),
        ("A", "root", (0, 1, 2), 1),
        ("B", "root", (3, 4, 5), 1),
        ("C", "root", (6, 7, 8), 1),
    ]
    assert by_list.parent_of_W() == ["A"] * 3 + ["B"] * 3 + ["C"] * 3


def test_a_tree_may_be_deep_and_uneven() -> None:
    tree = tree_of([4, {"near": [[0, 1], [2]], "far": [3]}], 5)
    assert [(n.name, n.workers, n.nodes, n.height) for n in tree.values()] == [
        ("root", (4,), ("A",), 4),
        ("A", (), ("near", "far"), 3),
        ("near", (), ("near.A", "near.B"), 2),
        ("near.A", (0, 1), (), 1),
        ("near.B", (2,), (), 1),
        ("far", (3,), (), 1),
    ]
    assert tree_of("2x2", 8)["root"].height == 3
    assert tree_of("", 3)["root"].workers == (0, 1, 2)


@pytest.mark.parametrize(
    ("tree", "says"),
    [
        ([[0, 1], [1, 2]], "worker 1 is in it 2 times"),
        ([[0, 1]], "worker 2 is not in it"),
        ([[0, 1], [2, 3]], "has worker 3, and the workers are 0 to 2"),
        ([[0, 1], []], "has [] in it"),
        ({"a": [0], "b": 1}, "a node is a list of them, [1]"),
        ({"a b": [0, 1, 2]}, "use letters"),
        ({"a": [0], "b": {"a": [1, 2]}}, "two nodes with the name 'a'"),
        ("threes", "as in [[0,1],[2,3]]"),
        ([[0, True], [2]], "has True in it"),
        ([0, [1, 2.0]], "has 2.0 in it"),
    ],
)
def test_a_tree_that_is_none_is_refused_in_one_line(tree: Any, says: str) -> None:
    with pytest.raises(RecipeError) as error:
        Recipe.of({"method": {"name": "hierfavg", "tree": tree}, "num_workers": 3})
    assert says in str(error.value)
    assert "\n" not in str(error.value)


def test_a_nest_without_end_is_refused() -> None:
    nest: Any = [0, 1, 2]
    for _ in range(40):
        nest = [nest]
    with pytest.raises(RecipeError, match="more than 16 levels"):
        HierFAVG(tree=nest)


def test_clients_that_take_turns_have_no_place_in_a_tree() -> None:
    spec: dict[str, Any] = {"method": {"name": "hierfavg"}, "num_workers": 3, "clients": {"num": 9}}
    Recipe.of(spec)  # all under one root
    with pytest.raises(RecipeError, match="clients take turns"):
        Recipe.of(spec | {"method": {"name": "hierfavg", "tree": "2"}})


def test_workers_that_hold_different_tensors_are_refused() -> None:
    spec = {"method": {"name": "hierfavg", "tree": "2"}, "lora": {"ranks": [1, 2, 2], "targets": ["attention.qkv"]}}
    with pytest.raises(RecipeError, match="workers that hold the same tensors"):
        plan(Recipe.of(spec | {"num_workers": 3}))


# --- HierFAVG by hand -------------------------------------------------------------------------------------------------

# Worker w sees a/2 · (x − c)² with (a, c) = CURVE[w], in every step.
CURVE = [(1.0, 0.0), (3.0, 2.0), (0.5, -1.0), (2.0, 4.0)]
SAMPLES = [3, 1, 2, 2]


def of_points(method: Any, **changes: Any) -> Bench:
    bench = Bench(method, 4, build=point, batch=lambda w, t: CURVE[w], **changes)  # type: ignore[arg-type,return-value]
    bench.state.samples_W = SAMPLES
    return bench


def values(bench: Bench) -> list[float]:
    return [float(bench.of(w)) for w in range(4)]


def test_one_cloud_round_of_hierfavg_in_numbers() -> None:
    """Two rounds of one step at the edge, from 1 with η = 0.1; the cloud counts (0, 1) as 3 + 1 and (2, 3) as 2 + 2.

    Step 1: 1 − 0.1·1 = 0.9 and 1 − 0.3·(1 − 2) = 1.3, so edge A = (3·0.9 + 1.3)/4 = 1; 1 − 0.05·2 = 0.9 and 1 + 0.2·3 = 1.6, so
    edge B = 1.25. Step 2: from 1 again 0.9 and 1.3, so A = 1; from 1.25: 1.25 − 0.05·2.25 = 1.1375 and 1.25 + 0.2·2.75 = 1.8, so
    B = 1.46875, and the cloud (4·1 + 4·1.46875)/8 = 1.234375. Step 3 starts from there.
    """
    bench = of_points(HierFAVG(1, (2,), [[0, 1], [2, 3]], PLAIN, max_norm=None))
    assert values(bench.run(1)) == pytest.approx([0.9, 1.3, 0.9, 1.6], rel=1e-15)
    assert float(bench.shared("node.A")) == pytest.approx(1.0, rel=1e-15)
    assert float(bench.shared("node.B")) == pytest.approx(1.25, rel=1e-15)
    assert float(bench.shared("params")) == START
    assert values(bench.run(1)) == pytest.approx([0.9, 1.3, 1.1375, 1.8], rel=1e-15)
    assert float(bench.shared("params")) == pytest.approx(1.234375, rel=1e-15)
    x = 1.234375
    assert values(bench.run(1)) == pytest.approx([x - 0.1 * a * (x - c) for a, c in CURVE], rel=1e-14)


@pytest.mark.parametrize("weight", ["samples", "uniform"])
@pytest.mark.parametrize("tree", [[[0, 1], [2, 3]], [[0], [1, 2, 3]], [0, [1, [2, 3]]]], ids=str)
def test_hierfavg_with_period_one_above_is_fedavg(tree: Any, weight: Any) -> None:
    """Whatever the tree: where every level agrees in every round, it is the mean over all workers."""
    lab = Bench(HierFAVG(2, (1,), tree, AdamW(3e-2), weight=weight), 4)
    flat = Bench(HierFAVG(2, (1,), "", AdamW(3e-2), weight=weight), 4)
    lab.state.samples_W = flat.state.samples_W = SAMPLES
    assert all(close(lab.run(7).of(w), flat.run(7 * (w == 0)).of(w), 1e-11) for w in (0,))
    assert close(lab.shared("params"), flat.shared("params"), 1e-11)
    other = Bench(HierFAVG(2, (2,), tree, AdamW(3e-2), weight=weight), 4)
    other.state.samples_W = SAMPLES
    assert not close(other.run(7).of(0), lab.of(0), 1e-6)


def test_under_one_root_it_is_fedavg_bit_for_bit() -> None:
    """FedProx without a pull, and what workers of Local SGD begin their rounds with."""
    lab = Bench(HierFAVG(3, (), "", SGD, weight="uniform")).run(9)
    prox = Bench(FedProx(3, 0.0, SGD, "kept", max_norm=1.0)).run(9)
    local = Bench(LocalSGD(3, SGD)).run(9)
    assert torch.equal(lab.shared("params"), prox.shared("params"))
    assert torch.equal(lab.shared("params"), local.of(0))
    assert lab.records == prox.records


def test_swapping_two_leaves_relabels_the_result() -> None:
    """Workers 1 and 2 in each other's places, with each other's data: the same numbers under other names."""

    def bench(tree: Any, deal: dict[int, int]) -> Bench:
        from tests.support.bench import other

        return Bench(HierFAVG(2, (2,), tree, AdamW(3e-2), weight="uniform"), 4, batch=other(deal)).run(6)

    lab, swapped = bench([[0, 1], [2, 3]], {}), bench([[0, 2], [1, 3]], {1: 2, 2: 1})
    for w, v in enumerate([0, 2, 1, 3]):
        assert close(lab.of(w), swapped.of(v))
    assert close(lab.shared("params"), swapped.shared("params"))
    assert not close(lab.of(0), bench([[0, 2], [1, 3]], {}).of(0), 1e-6)


# --- who talks with whom ----------------------------------------------------------------------------------------------


def records(bench: Bench, t: int) -> list[tuple[str, int, tuple[int, ...]]]:
    return [(r.op, r.level, r.workers) for r in bench.records if r.step == t]


def test_the_ledger_knows_the_level_of_every_byte() -> None:
    bench = Bench(HierFAVG(2, (2,), NINE, SGD), 9).run(5)
    edge = [("reduce", 0, (6, 7, 8)), ("reduce", 0, (3, 4, 5)), ("reduce", 0, (0, 1, 2))]
    fetched = [("broadcast", 0, workers) for _, _, workers in reversed(edge)]
    assert records(bench, 1) == [("broadcast", 1, (0, 3, 6)), *fetched]
    assert records(bench, 2) == edge
    assert records(bench, 3) == fetched
    assert records(bench, 4) == [*edge, ("gather", 1, (0, 3, 6))]
    assert records(bench, 5) == records(bench, 1)
    assert {r.bytes_each for r in bench.records} == {8 * 24}
    assert bench.comm.ledger.by("level") == {(0,): 8 * 24 * 9 * 5, (1,): 8 * 24 * 3 * 3}


def test_only_those_who_are_up_count_and_stand_for_their_node() -> None:
    """Worker 0 is down from the second step on, both workers of B in the first cloud round: A alone makes the cloud's model."""
    bench = of_points(HierFAVG(1, (2,), [[0, 1], [2, 3]], PLAIN, max_norm=None))
    for t, up in enumerate([[True] * 4, [False, True, False, False], [False, True, True, True]], 1):
        back = [w for w in range(4) if up[w] and not bench.fleet.up[w]]
        bench.fleet.up, bench.state.returned = up, back
        bench.run(1)
        if t == 2:
            assert records(bench, 2) == [("broadcast", 0, (1,)), ("reduce", 0, (1,)), ("gather", 1, (1,))]
            assert float(bench.shared("params")) == float(bench.shared("node.A")) == float(bench.of(1))
    assert records(bench, 3)[:3] == [("broadcast", 1, (1, 2)), ("broadcast", 0, (1,)), ("broadcast", 0, (2, 3))]


def test_a_node_of_which_nobody_was_there_fetches_when_one_is_back() -> None:
    """In the midst of a round of the cloud: first its parent's model, then the worker."""
    bench = of_points(HierFAVG(1, (4,), [[0, 1], [2, 3]], PLAIN, weight="uniform", max_norm=None))
    bench.fleet.up = [True, True, False, False]
    bench.run(4)
    cloud = float(bench.shared("params"))
    assert cloud != START
    bench.run(1)
    bench.fleet.up, bench.state.returned = [True, True, False, True], [3]
    bench.run(1)
    assert [r for r in records(bench, 6) if 3 in r[2]] == [
        ("broadcast", 1, (3,)),
        ("broadcast", 0, (3,)),
        ("reduce", 0, (3,)),
    ]
    assert float(bench.of(3)) == pytest.approx(cloud - 0.1 * 2.0 * (cloud - 4.0))


def test_codecs_are_for_what_workers_hand_in() -> None:
    from lab.engine.codecs import codec

    bench = Bench(HierFAVG(1, (1,), "2", SGD), 4, codecs={"params": codec("bfloat16")}).run(1)
    sizes = {(r.op, r.level): r.bytes_each for r in bench.records}
    assert sizes == {("broadcast", 0): 192, ("broadcast", 1): 192, ("reduce", 0): 48, ("gather", 1): 192}


# --- what links cost --------------------------------------------------------------------------------------------------


def test_levels_are_priced_on_their_own_links_one_after_the_other() -> None:
    """1,000 bytes at 8 kbit/s inside (1 s) and 0.8 kbit/s between (10 s, and 2 s of latency): both federations at once, then the gather."""
    sent = [
        Sent(1, "reduce", "params", (0, 1), {"a": 1000}),
        Sent(1, "reduce", "params", (2, 3), {"a": 1000}),
        Sent(1, "gather", "params", (0, 2), {"a": 1000}, 1),
    ]
    net = Network(bits_per_second=8e3, topology="server", server_bits_per_second=1e9, levels=(Link(800.0, 2.0),))
    bill = net.price(sent, num_workers=4, steps=1)
    assert bill.total_seconds == pytest.approx(
        1.0 + 2 * 10.0 + 2.0
    )  # the cloud's own link is as its children's: one after the other
    as_one = Network(bits_per_second=8e3, topology="server", server_bits_per_second=1e9).price(
        sent, num_workers=4, steps=1
    )
    assert as_one.total_seconds == pytest.approx(1.0 + 1.0)
    assert bill.wire_bytes_W.sum() == as_one.wire_bytes_W.sum() == 6000


def test_a_network_of_levels_is_spelled_from_below() -> None:
    net = network("10Gbit:100Mbit,30ms:3Mbit")
    assert (net.bits_per_second, net.levels) == (10e9, (Link(100e6, 0.03), Link(3e6)))
    assert (net.slowest.bits_per_second, net.slowest.latency_seconds) == (3e6, 0.03)
    with pytest.raises(RecipeError, match="network"):
        network("10Gbit:fast")


def test_a_plan_tells_levels_apart() -> None:
    spec = {"method": {"name": "hierfavg", "sync_every": 4, "tree": "3", "rounds": [3]}, "num_workers": 9, "steps": 24}
    found = plan(Recipe.of(spec), {"both": network("10Gbit:10Mbit,30ms"), "slow": network("10Mbit,30ms")})
    each = found.states[0].bytes_each
    assert [(s.op, s.level, s.times) for s in found.states] == [
        ("broadcast", 0, 6),
        ("reduce", 0, 6),
        ("broadcast", 1, 2),
        ("gather", 1, 2),
    ]
    assert found.payload_bytes_W == [12 * each] * 9
    assert "on links 1 level above those of workers" in found.to_text()
    both, slow = found.forecasts
    assert both.communication_hours < 0.5 * slow.communication_hours
    assert both.ddp_hours == pytest.approx(slow.ddp_hours)  # whose ring goes over the slow links


def test_who_knows_no_levels_sends_over_the_slowest_link() -> None:
    """DDP gains nothing over itself, and links above the root of a tree slow nobody down."""
    spec: dict[str, Any] = {"num_workers": 9, "steps": 24}
    levels, further = network("10Gbit,1ms:10Mbit,30ms"), network("10Gbit,1ms:10Mbit,30ms:1Mbit,1s")
    trees = spec | {"method": {"name": "hierfavg", "sync_every": 4, "tree": "3"}}
    for own in ("ddp", {"name": "local_sgd", "sync_every": 4}, {"name": "hierfavg", "sync_every": 4, "tree": ""}):
        with_levels, slow = plan(
            Recipe.of(spec | {"method": own}), {"levels": levels, "slow": levels.slowest}
        ).forecasts
        assert with_levels == replace(slow, network="levels")
        assert own != "ddp" or with_levels.total_hours == pytest.approx(with_levels.ddp_hours)
    with_levels, with_more = plan(Recipe.of(trees), {"levels": levels, "more": further}).forecasts
    assert with_more == replace(with_levels, network="more")


def test_a_root_that_never_averages_is_noted() -> None:
    spec: dict[str, Any] = {"num_workers": 4, "steps": 24}
    for name in ("hierfavg", "worldlm"):
        method = {"name": name, "sync_every": 4, "rounds": [7], "tree": "2"}
        (note,) = [line for line in notes(Recipe.of(spec | {"method": method})) if "root" in line]
        assert "28 local steps" in note
        assert not [x for x in notes(Recipe.of(spec | {"method": method | {"rounds": [6]}})) if "root" in x]
