"""WorldLM: what it reduces to, attention by hand, residuals and their routes, private workers, and the toy of nine workers."""

from __future__ import annotations

import functools
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from lab.engine.optim import AdamW, Optimizer
from lab.ground.errors import RecipeError
from lab.ground.seeds import generator
from lab.methods import Method
from lab.methods.fedprox import FedProx
from lab.methods.hierfavg import HierFAVG
from lab.methods.local_sgd import LocalSGD
from lab.methods.worldlm import Privacy, WorldLM, layer_of
from lab.recipes.recipe import Recipe
from lab.study.toy_federations import NUM, SWAPPED, TREE, federations
from tests.support.bench import Bench, batch, close, other
from tests.support.listed import SGD

KEY = ("out",)  # of the little net: the other two tensors are its backbone


def key_of(bench: Bench, worker: int) -> Tensor:
    return bench.state.local["params"].cell("out", worker).flatten().clone()


def node_key(bench: Bench, state: str = "params") -> Tensor:
    return bench.state.shared[state]["out"][0].flatten().clone()


# --- what it reduces to -----------------------------------------------------------------------------------------------


def test_without_key_layers_under_one_root_it_is_fedavg_bit_for_bit() -> None:
    lab = Bench(WorldLM(3, key_layers=(), inner=SGD, weight="uniform")).run(9)
    prox = Bench(FedProx(3, 0.0, SGD, "kept", max_norm=1.0)).run(9)
    assert torch.equal(lab.shared("params"), prox.shared("params"))
    assert torch.equal(lab.shared("params"), Bench(LocalSGD(3, SGD)).run(9).of(0))
    assert lab.records == prox.records


@pytest.mark.parametrize("tree", ["2", "2x2", [0, [1, [2, 3]]]], ids=str)
def test_without_key_layers_it_is_hierfavg_bit_for_bit(tree: Any) -> None:
    lab = Bench(WorldLM(2, (2,), tree, key_share=0.0, inner=AdamW(3e-2)), 4).run(9)
    hier = Bench(HierFAVG(2, (2,), tree, AdamW(3e-2)), 4).run(9)
    assert all(torch.equal(lab.shared(name), hier.shared(name)) for name in hier.state.shared)
    assert all(torch.equal(lab.of(w), hier.of(w)) for w in range(4))
    assert lab.records == hier.records


def test_personal_layers_of_local_sgd_are_fedper() -> None:
    """A round of FedPer: the base becomes the mean over clients, and each goes on with the head that it has."""
    lab = Bench(LocalSGD(2, SGD), personal=lambda n: n == "out").run(2)
    alone = Bench(LocalSGD(9, SGD), 3).run(2)  # as far as they came by themselves
    base = torch.stack([alone.of(w)[:16] for w in range(3)]).mean(0)
    for w in range(3):
        assert close(lab.of(w)[:16], base)
        assert torch.equal(lab.of(w)[16:], alone.of(w)[16:])


# --- attention --------------------------------------------------------------------------------------------------------


def test_uniform_attention_is_the_mean_of_the_candidates() -> None:
    """At the root of three workers: itself and its children. At a worker, when it fetches: its own and the root's."""
    bench = Bench(WorldLM(1, key_layers=KEY, temperature=None, inner=SGD))
    start = node_key(bench)
    bench.run(1)
    own = [key_of(bench, w) for w in range(3)]
    assert close(node_key(bench), (start + sum(own)) / 4)
    root = node_key(bench)
    bench.state.schedule = lambda t: 0.0
    bench.run(1)
    for w in range(3):
        assert close(key_of(bench, w), (own[w] + root) / 2)
        assert bench.state.local["attention"].cell("out", w).tolist() == [0.5, 0.5, 0.0]


def test_in_a_tree_a_node_attends_to_its_parent_as_well() -> None:
    bench = Bench(WorldLM(1, (2,), [[0, 1], [2]], key_layers=KEY, temperature=None, residuals=0, inner=SGD))
    start = node_key(bench)
    bench.run(1)
    assert close(node_key(bench, "node.A"), (2 * start + key_of(bench, 0) + key_of(bench, 1)) / 4)
    assert close(node_key(bench, "node.B"), (2 * start + key_of(bench, 2)) / 3)
    assert torch.equal(node_key(bench), start)
    a = bench.state.facts["attention"]["A"]["out"]
    assert a == dict.fromkeys(["own", "parent", "0", "1"], 0.25)


@pytest.mark.parametrize("similarity", ["cos", "dot", "distance"])
@pytest.mark.parametrize("reference", ["initial", "parent", "weights"])
def test_attention_by_its_formula(similarity: Any, reference: Any) -> None:
    """softmax(sim/τ) over own, parent's and children's, and ε of the way there, in float64."""
    method = WorldLM(
        1, (2,), [[0, 1], [2]], 0.3, KEY, similarity, reference, 0.7, 0.6, residuals=0, inner=Optimizer("SGD", 0.5)
    )
    bench = Bench(method).run(2)
    initial = bench.state.shared["initial"]["out"][0].flatten().clone()
    bench.run(1)  # the nodes have fetched from the root, and take in what their workers hand in
    parent, mine = node_key(bench), node_key(bench, "node.A")
    bench.run(1)
    own = mine  # nothing has been fetched in the fourth step: it is the second of the root's round
    children = [key_of(bench, 0), key_of(bench, 1)]
    K = torch.stack([own, node_root_before(bench, parent), *children])
    origin = {"initial": initial, "parent": parent, "weights": torch.zeros_like(own)}[reference]
    delta = K - origin
    if similarity == "cos":
        like = [float(d @ delta[0] / (d.norm() * delta[0].norm())) if d.norm() > 0 else 0.0 for d in delta]
    elif similarity == "dot":
        like = [float(d @ delta[0]) / math.sqrt(len(own)) for d in delta]
    else:
        like = [-float((d - delta[0]).norm()) for d in delta]
    e = [math.exp(x / 0.7) for x in like]
    a = [x / sum(e) for x in e]
    assert [*bench.state.facts["attention"]["A"]["out"].values()] == pytest.approx(a, rel=1e-9)
    mixed = own + 0.6 * sum(x * (k - own) for x, k in zip(a, K, strict=True))
    assert close(node_key(bench, "node.A"), mixed, 1e-10)


def node_root_before(bench: Bench, parent: Tensor) -> Tensor:
    """The root's key layers as its children saw them: it takes its own mean after them."""
    return parent


def test_key_layers_are_the_last_of_those_that_the_model_numbers() -> None:
    assert layer_of("blocks.11.mlp.0.weight") == ("blocks.11", True)
    assert layer_of("head.weight") == ("head", False)
    method = {"name": "worldlm"}
    with pytest.raises(RecipeError, match=r"'heads\.\*' fits no parameter"):
        Bench(WorldLM(key_layers=("heads.*",)))
    with pytest.raises(RecipeError, match="no backbone is left"):
        Bench(WorldLM(key_layers=("*",)))
    with pytest.raises(RecipeError, match=r"method\.privacy names worker 5"):
        Recipe.of({"method": method | {"privacy": {"5": {}}}, "num_workers": 3})


def test_swapping_two_leaves_relabels_the_result() -> None:
    """Workers 1 and 2 in each other's places, with each other's data, residuals and all."""

    def bench(tree: Any, deal: dict[int, int]) -> Bench:
        return Bench(WorldLM(2, (2,), tree, key_layers=KEY, inner=AdamW(3e-2)), 4, batch=other(deal)).run(9)

    lab, swapped = bench([[0, 1], [2, 3]], {}), bench([[0, 2], [1, 3]], {1: 2, 2: 1})
    assert all(close(lab.of(w), swapped.of(v), 1e-10) for w, v in enumerate([0, 2, 1, 3]))
    assert close(lab.shared("params"), swapped.shared("params"), 1e-10)
    assert not close(lab.of(0), bench([[0, 2], [1, 3]], {}).of(0), 1e-6)


# --- residuals --------------------------------------------------------------------------------------------------------


def test_a_residual_goes_to_where_it_fits() -> None:
    """Three federations with data of three kinds, workers 0 and 3 in each other's: each gets to the other federation."""
    method = WorldLM(4, (1,), SWAPPED, key_layers=KEY, inner=AdamW(3e-2))
    bench = Bench(method, NUM, batch=lambda w, t: batch(w // 3, 1)).run(12)
    routes, misfits = bench.state.facts["routes"], bench.state.facts["misfits"]
    assert misfits["A"]["out"] == {"0": "3"}
    assert misfits["B"]["out"] == {"0": "0"}
    assert routes["A"]["out"] == [["B", "0"]]
    assert routes["B"]["out"] == [["A", "3"]]
    bench.run(1)
    handed = bench.state.shared["residual.A.0"]["out"][0]
    assert bench.state.facts["residuals"] == {"A": 1, "B": 1, "C": 1}
    assert handed.shape == (2, 4)


def test_bytes_are_those_of_backbone_key_layers_and_residuals() -> None:
    """16 numbers of backbone, 8 of key layers; residuals up to the cap, and one less than a node has children."""
    for cap, sent in ((0, 0), (1, 1), (2, 2), (5, 2)):
        bench = Bench(WorldLM(1, (1,), TREE, key_layers=KEY, residuals=cap, inner=SGD), NUM).run(2)
        by = bench.comm.ledger.by("op", "state", "level")
        assert by["reduce", "params", 0] == 2 * NUM * 16 * 8
        assert by["gather", "key_layers", 0] == 2 * NUM * 8 * 8
        assert by["gather", "params", 1] == 2 * 3 * 16 * 8
        assert by["gather", "key_layers", 1] == 2 * 3 * 8 * 8
        assert by.get(("gather", "residuals", 1), 0) == 2 * 3 * sent * 8 * 8
        down = min(cap, 2 * sent)
        assert by.get(("broadcast", "residuals", 1), 0) == 3 * down * 8 * 8  # none in the first round
        assert by.get(("broadcast", "residuals", 0), 0) == NUM * down * 8 * 8


# --- private workers --------------------------------------------------------------------------------------------------


def test_a_private_worker_hands_in_a_short_way_with_noise_and_trains_as_before() -> None:
    plain = Bench(WorldLM(2, key_layers=(), inner=SGD, weight="uniform")).run(2)
    start = Bench(WorldLM(2, key_layers=(), inner=SGD)).of(0)
    for noise in (0.0, 0.5):
        method = WorldLM(2, key_layers=(), inner=SGD, weight="uniform", privacy={1: Privacy(0.01, noise)}, noise_seed=3)
        lab = Bench(method).run(2)
        assert torch.equal(lab.of(1), plain.of(1))  # what it has itself is not changed
        way = plain.of(1) - start
        assert way.norm() > 0.01
        g = generator(3, "privacy", 1, 2)
        sizes = [b.numel for b in lab.fleet.layout.blocks]
        drawn = torch.cat([torch.randn(n, generator=g, dtype=torch.float64) for n in sizes])
        handed = start + way * (0.01 / way.norm()) + noise * 0.01 * in_model_order(lab, drawn)
        assert close(lab.shared("params"), (plain.of(0) + handed + plain.of(2)) / 3, 1e-12)
        assert torch.equal(lab.shared("params"), Bench(method).run(2).shared("params"))


def in_model_order(bench: Bench, by_block: Tensor) -> Tensor:
    """Numbers in the order of blocks, as `Bench.of` lists them."""
    layout, parts, at = bench.fleet.layout, {}, 0
    for block in layout.blocks:
        for name, first, shape in zip(block.names, block.offsets, block.shapes, strict=True):
            parts[name] = by_block[at + first : at + first + shape.numel()]
        at += block.numel
    return torch.cat([parts[name] for name in bench.state.local["params"].names()])


# --- nine workers in three federations --------------------------------------------------------------------------------


STEPS, INNER, SEEDS = 20, AdamW(1e-2), (0, 1)


def world(**changes: Any) -> WorldLM:
    fields: dict[str, Any] = {"tree": TREE, "key_layers": ("second*",), "inner": INNER, "residuals": 0}
    return WorldLM(STEPS, (2,), **(fields | changes))


@functools.cache
def errors(what: str) -> list[float]:
    """The mean over workers for each seed, of 40 examples each."""
    method: Method = {
        "fedavg": HierFAVG(STEPS, (1,), "", INNER),
        "hierfavg": HierFAVG(STEPS, (2,), TREE, INNER),
        "fedper": LocalSGD(STEPS, INNER),
        "mean": world(temperature=None),
        "attention": world(),
        "sharp": world(temperature=0.005),
    }[what]
    personal = ("second",) if what == "fedper" else ()
    return [sum(federations(method, seed=seed, rounds=10, personal=personal)) / NUM for seed in SEEDS]


def test_keeping_what_is_ones_own_wins_by_a_wide_margin() -> None:
    """With every seed less than 0.65 of the error of FedAvg and HierFAVG, by attention as by plain means of key layers."""
    for tree in ("mean", "attention"):
        for flat in ("fedavg", "hierfavg"):
            assert all(a < 0.65 * b for a, b in zip(errors(tree), errors(flat), strict=True)), (tree, flat)


def test_too_sharp_an_attention_is_fedper() -> None:
    """All attention to one's own: the error is that of FedPer within 5 %, and attention at τ = 0.1 is better than both."""
    for sharp, per, mild in zip(errors("sharp"), errors("fedper"), errors("attention"), strict=True):
        assert sharp == pytest.approx(per, rel=0.05)
        assert mild < min(sharp, per)
