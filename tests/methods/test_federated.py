"""Federations of adapters: exact aggregation rules, identities between them, bytes, absences, dry runs and resuming."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from lab.engine.comm import Communicator
from lab.engine.fleet import Fleet
from lab.engine.optim import AdamW, Nesterov, Optimizer
from lab.engine.state import State
from lab.events import Covered, Evaluated, Truncated, Warned
from lab.ground.errors import Diverged, RecipeError
from lab.ground.seeds import generator
from lab.methods import METHODS, Method
from lab.methods.fedex_lora import FedExLoRA
from lab.methods.fedit import FedIT
from lab.methods.ffa_lora import FFALoRA
from lab.methods.flexlora import FlexLoRA
from lab.methods.flora import FLoRA
from lab.methods.hetlora import HetLoRA
from lab.methods.lora_factors import Adapters, mean, padded, product_norm, refactored, samples, shares, stacked
from lab.methods.prelort import PreLort
from lab.methods.raflora import RaFLoRA
from lab.methods.zero_padding import ZeroPadding
from lab.models.gpt import GPT
from lab.models.lora import LoRA, adapt_, adapters, cut_to, prefix_losses
from lab.probes.adapters import area
from lab.probes.evaluation import Evaluator
from lab.recipes.recipe import Recipe
from lab.recipes.scenario import Outage, Scenario
from lab.runs.trainer import Trainer, dry_run, train
from lab.study import toy_adapters as toy
from lab.study.bench import Bench
from lab.testing.method_laws import LAWS, exceptions
from lab.testing.report import Law
from lab.testing.subject import Subject
from tests.support.bench import F64, close
from tests.support.cases import SERVED
from tests.support.listed import OF_ADAPTERS
from tests.support.recipes import corpus, recipe
from tests.support.stop_and_go import stop_and_go
from tests.support.stories import story

MODEL = GPT(dim=8, num_layers=1, num_heads=2)
TARGETS = ("attention.qkv", "mlp.0")
SIZES = 8 + 24 + 8 + 32  # Σ (d_in + d_out) of the two maps
SGD = Optimizer("SGD", 0.3)


def tokens(worker: int, t: int) -> tuple[Tensor, Tensor]:
    g = generator(0, "tokens", worker, t)
    return torch.randint(11, (2, 6), generator=g), torch.randint(11, (2, 6), generator=g)


class Federation(Bench):
    """A federated method on tiny language models, driven step by step without text, recipes or events."""

    def __init__(
        self,
        method: Method,
        ranks: tuple[int, ...] = (4, 2, 1),
        samples_W: tuple[int, ...] | None = None,
        communicator: type[Communicator] = Communicator,
        device: str = "cpu",
        batch: Any = tokens,
        **lora: Any,
    ):
        lora.setdefault("train", "B" if isinstance(method, FFALoRA) else "both")
        self.lora = LoRA(ranks=ranks, targets=TARGETS, **lora)
        with torch.device(device):
            self.fleet = Fleet(self.build, len(ranks), device=device, dtype=F64, threads=1)
        self.adapters = Adapters.of(self.lora, len(ranks), list(self.fleet.layout.place))
        state = State.of(self.fleet, adapters=self.adapters, samples_W=samples_W)
        super().__init__(method, state, batch=batch, comm=communicator(self.fleet))

    def build(self, worker: int | None) -> nn.Module:
        rank = self.lora.bounds[-1] if worker is None else self.lora.ranks[worker]
        return adapt_(MODEL.build(11, 6, 0), self.lora, rank)

    def of_client(self, worker: int, target: str) -> tuple[Tensor, Tensor]:
        params = self.state.local["params"]
        A, B = self.adapters.pair(lambda n: params.cell(n, worker), target, self.lora.ranks[worker])
        return A.clone(), B.clone()

    def of_server(self, target: str) -> tuple[Tensor, Tensor]:
        A, B = self.adapters.agreed(self.state.shared["params"], target)
        return A.clone(), B.clone()

    def base(self, target: str) -> Tensor:
        return self.fleet.constants[f"{target}.weight"].clone()

    def clients(self) -> dict[str, list[tuple[Tensor, Tensor]]]:
        return {t: [self.of_client(w, t) for w in range(len(self.lora.ranks))] for t in self.adapters.targets}


def short(method: Method) -> Any:
    """Rounds of two steps, and an optimizer that moves B and A far."""
    return dataclasses.replace(method, sync_every=2, inner=AdamW(3e-2))  # type: ignore[type-var]


EVERY: dict[str, Any] = {name: short(METHODS[name]()) for name in OF_ADAPTERS} | {
    "prelort none": PreLort(2, nested="none"),
    "prelort sample": PreLort(2, nested="sample", truncations="powers", inner_states="kept"),
    "prelort sandwich": PreLort(2, nested="sandwich", omega="last", uncovered="zero"),
    "prelort matryoshka": PreLort(2, nested="matryoshka", omega="rank", weight="uniform"),
    "prelort outer": PreLort(2, outer=Nesterov()),
    "hetlora unpruned": HetLoRA(2, gamma=1.0, decay=0.0),
}
EQUAL = ("fedit", "fedex_lora")  # defined for equal ranks
every = pytest.mark.parametrize("name", EVERY)


def ranks_for(name: str) -> tuple[int, ...]:
    return (2, 2, 2) if name in EQUAL else (4, 2, 1)


OF_RANKS = ("solitude", "relabelling", "equal workers", "schedule")  # laws of workers that hold the same


@every
@pytest.mark.parametrize("law", LAWS, ids=LAWS.names())
def test_law(law: Law[Subject], name: str) -> None:
    """Federations keep what `tests/laws` asks of all methods; their clients have different ranks, where they may."""
    lora = {"ranks": ranks_for(name), "targets": ["hidden.0", "head"], "train": "B" if name == "ffa_lora" else "both"}
    finding = law.check(Subject(EVERY[name], {"lora": lora}), exceptions(EVERY[name]))
    silent = (
        (law.name in OF_RANKS and name not in EQUAL)
        or (law.name == "plain optimizer" and name != "prelort sample")  # a server's state moves one client as well
        or (law.name == "dry run" and name == "hetlora")
    )
    assert finding.outcome == ("not applicable" if silent else "passed"), finding.says


# --- algebra ----------------------------------------------------------------------------------------------------------


def pairs(*ranks: int, d_in: int = 6, d_out: int = 5) -> list[tuple[Tensor, Tensor]]:
    g = generator(0, "pairs", *ranks)
    return [
        (torch.randn(r, d_in, generator=g, dtype=F64), torch.randn(d_out, r, generator=g, dtype=F64)) for r in ranks
    ]


@pytest.mark.parametrize("ranks", [(1, 2, 1), (4, 3, 4)])  # a thin core, and more rank than there is room for
def test_stacking_and_refactoring(ranks: tuple[int, ...]) -> None:
    """Stacks have the product Σ p·B·A exactly; refactored, it is the best of its rank (Eckart and Young), in order."""
    some, p = pairs(*ranks), [0.5, 0.2, 0.3]
    A, B = stacked(some, p)
    whole = sum(w * b @ a for w, (a, b) in zip(p, some, strict=True))
    assert torch.allclose(B @ A, whole, rtol=1e-13)
    S = torch.linalg.svdvals(whole)
    for rank in (1, 2, 5):
        a, b = refactored((A, B), rank)
        assert float(torch.linalg.norm(b @ a - whole)) == pytest.approx(
            float(S[rank:].square().sum().sqrt()), abs=1e-12
        )
        assert torch.allclose(a @ a.T, torch.eye(len(a), dtype=F64), atol=1e-12)
    assert torch.allclose(torch.linalg.vector_norm(b, dim=0), S[: b.shape[1]], atol=1e-12)


def test_norms_and_shares() -> None:
    (pair,) = pairs(3)
    assert product_norm(pair) == pytest.approx(float(torch.linalg.norm(pair[1] @ pair[0])))
    assert shares({4: 1.0, 7: 3.0}) == {4: 0.25, 7: 0.75}
    assert shares({1: 0.0, 2: 0.0}) == {1: 0.5, 2: 0.5}
    assert samples([5, 0, 15], [0, 2], "samples") == {0: 0.25, 2: 0.75}
    assert samples([5, 0, 15], [0, 2], "uniform") == {0: 0.5, 2: 0.5}
    assert area([1, 2, 4], [0.0, 1.0, 1.0]) == pytest.approx((0.5 + 2.0) / 3)
    assert area([4], [0.7]) == 0.7


# --- one round of each, written out -----------------------------------------------------------------------------------


def expected(method: Any, handed: list[tuple[Tensor, Tensor]], ranks: tuple[int, ...], n: list[float]) -> Any:
    """(A, B, what is added to W₀) after the aggregation rule of the paper, rank index by rank index, with dense products."""
    r_max, bounds = max(ranks), sorted(set(ranks))
    p = [x / sum(n) for x in n]
    zero = torch.zeros(handed[0][1].shape[0], handed[0][0].shape[1], dtype=F64)
    if isinstance(method, PreLort | FFALoRA | FedIT):
        A, B = torch.zeros_like(padded(handed[0], r_max)[0]), torch.zeros_like(padded(handed[0], r_max)[1])
        for j in range(r_max):
            who = [k for k, r in enumerate(ranks) if r > j]
            for k in who:
                A[j] += n[k] / sum(n[i] for i in who) * handed[k][0][j]
                B[:, j] += n[k] / sum(n[i] for i in who) * handed[k][1][:, j]
        return A, B, zero
    if isinstance(method, ZeroPadding):
        return *mean([padded(h, r_max) for h in handed], p), zero
    if isinstance(method, HetLoRA):
        raise NotImplementedError
    whole = sum(w * b @ a for w, (a, b) in zip(p, handed, strict=True))
    if isinstance(method, FLoRA):
        return None, torch.zeros(len(zero), r_max, dtype=F64), whole
    if isinstance(method, FedExLoRA):
        A, B = mean(handed, p)
        return A, B, whole - B @ A
    if isinstance(method, RaFLoRA):
        whole = torch.zeros_like(zero)
        for low, high in zip([0, *bounds], bounds, strict=False):
            who = [k for k, r in enumerate(ranks) if r >= high]
            for k in who:
                A, B = handed[k]
                whole += n[k] / sum(n[i] for i in who) * B[:, low:high] @ A[low:high]
    U, S, Vt = torch.linalg.svd(whole)
    return None, (U[:, :r_max] * S[:r_max]) @ Vt[:r_max], zero  # only the product is unique


RULES = ["prelort", "fedit", "zero_padding", "flora", "flexlora", "fedex_lora", "raflora"]


@pytest.mark.parametrize("counts", [None, (3, 1, 8)], ids=["alike", "counted"])
@pytest.mark.parametrize("name", RULES)
def test_one_round_by_hand(name: str, counts: Any) -> None:
    """After a round the server has what the paper's formula says, from the factors that the clients had."""
    ranks, method = ranks_for(name), EVERY[name]
    lab = Federation(method, ranks, counts, scale=0.7)
    n = [1.0, 1.0, 1.0] if counts is None or name == "fedex_lora" else [float(c) for c in counts]
    base = {t: lab.base(t) for t in lab.adapters.targets}
    lab.run(2)
    handed = lab.clients()  # who handed in keeps its own until the next round
    for target in lab.adapters.targets:
        A, B, added = expected(method, handed[target], ranks, n)
        mine_A, mine_B = lab.of_server(target)
        assert torch.allclose(lab.base(target) - base[target], 0.7 * added, rtol=1e-10, atol=1e-14)
        if name in ("flexlora", "raflora"):
            assert torch.allclose(mine_B @ mine_A, B, rtol=1e-9, atol=1e-13)
        else:
            assert A is None or torch.allclose(mine_A, A, rtol=1e-12)
            assert torch.allclose(mine_B, B, rtol=1e-12, atol=1e-15)


def test_ffa_by_hand_and_exact() -> None:
    """B̄·A₀ is the mean of the products, A is the same for all and is neither trained nor sent."""
    lab = Federation(EVERY["ffa_lora"], (2, 2, 2)).run(2)
    params = lab.state.local["params"]
    assert all(".lora_B." in n for n in params.names())
    for target in lab.adapters.targets:
        A = lab.fleet.constants[f"{target}.lora_A.0"]
        B = [params.cell(f"{target}.lora_B.0", w) for w in range(3)]
        assert torch.allclose(lab.state.shared["params"][f"{target}.lora_B.0"][0] @ A, sum(b @ A for b in B) / 3)


def test_hetlora_by_hand() -> None:
    """Weights ‖B_k·A_k‖ over their sum, on zero-padded factors, and the regulariser's gradient at the first step."""
    lab = Federation(EVERY["hetlora unpruned"], (4, 2, 1)).run(2)
    handed = lab.clients()
    norm = [
        sum(float(torch.linalg.norm(b @ a)) ** 2 for a, b in (handed[t][k] for t in handed)) ** 0.5 for k in range(3)
    ]
    p = [x / sum(norm) for x in norm]
    for target in lab.adapters.targets:
        A, B = mean([padded(h, 4) for h in handed[target]], p)
        assert torch.allclose(lab.of_server(target)[0], A, rtol=1e-10)
        assert torch.allclose(lab.of_server(target)[1], B, rtol=1e-10)
    method = HetLoRA(2, gamma=0.5, decay=3.0)
    lab = Federation(method, (4, 2, 1)).run(3)
    module: Any = lab.fleet.modules[0]
    tail = sum(
        torch.linalg.norm(a[2:]) * torch.linalg.norm(b[:, 2:])
        for a, b in (x.factors() for x in adapters(module).values())
    )
    assert method.tail(module, 4).item() == pytest.approx(tail.item())
    plain = module.loss(*tokens(0, 1))
    assert method.regularised(lab.state)(module, 0, *tokens(0, 1)).item() == pytest.approx((plain + 3 * tail).item())


def test_hetlora_prunes_when_the_tail_shrinks() -> None:
    """A strong regulariser shrinks tails: ranks fall, what was pruned is not sent any more, and they never reach zero."""
    lab = Federation(HetLoRA(2, Optimizer("SGD", 0.02), gamma=0.5, decay=1.0, max_norm=None), (4, 2, 1))
    for name in lab.state.shared["params"].names():
        lab.state.shared["params"][name].copy_(lab.state.shared["params"][name] + 0.3)
    seen = [list(lab.state.facts["ranks"])]
    for _ in range(6):
        lab.run(2)
        seen.append(list(lab.state.facts["ranks"]))
    assert seen[0] == [4, 2, 1]
    assert seen[-1] != seen[0]
    assert all(1 <= b <= a for early, late in itertools.pairwise(seen) for a, b in zip(early, late, strict=True))
    sent = {r.step: r for r in lab.comm.ledger if r.op == "gather" and 0 in r.workers}
    for t, ranks in enumerate(seen[1:], 1):
        assert sent[2 * t].bytes_each == 8 * ranks[0] * SIZES


# --- identities -------------------------------------------------------------------------------------------------------


def test_segment_wise_is_zero_padding_times_n_over_n_j() -> None:
    counts, ranks = (3, 1, 8), (4, 2, 1)
    one = Federation(PreLort(2, SGD, nested="none"), ranks, counts).run(2)
    other = Federation(ZeroPadding(2, SGD), ranks, counts).run(2)
    factor = torch.tensor([12 / 12, 12 / 4, 12 / 3, 12 / 3], dtype=F64)
    for target in one.adapters.targets:
        (A, B), (C, D) = one.of_server(target), other.of_server(target)
        assert torch.allclose(A, C * factor[:, None], rtol=1e-12)
        assert torch.allclose(B, D * factor, rtol=1e-12)


@pytest.mark.parametrize("nested", ["none", "sum", "sample", "sandwich", "matryoshka"])
def test_equal_ranks_are_fedit(nested: Any) -> None:
    """With one rank there is one prefix and one segment: numbers and ledger of FedIT, bit for bit."""
    mine = Federation(PreLort(2, nested=nested), (2, 2, 2), (1, 2, 3)).run(5)
    fedit = Federation(FedIT(2), (2, 2, 2), (1, 2, 3)).run(5)
    for target, worker in itertools.product(mine.adapters.targets, range(3)):
        for x, y in zip(mine.of_client(worker, target), fedit.of_client(worker, target), strict=True):
            assert torch.equal(x, y)
    assert mine.comm.ledger.records == fedit.comm.ledger.records
    assert torch.equal(mine.loss_W, fedit.loss_W)


def test_equal_ranks_make_raflora_flexlora() -> None:
    one, other = (Federation(EVERY[n], (2, 2, 2)).run(4) for n in ("raflora", "flexlora"))
    for target in one.adapters.targets:
        for x, y in zip(one.of_server(target), other.of_server(target), strict=True):
            assert torch.allclose(x, y, rtol=1e-9, atol=1e-13)


@every
def test_one_client_is_identity(name: str) -> None:
    """With one client aggregation changes nothing about the model: the run is that of plain training, round after round."""
    method = dataclasses.replace(EVERY[name], outer=None) if name == "prelort outer" else EVERY[name]
    lab = Federation(method, (3,), scale=0.5).run(2)
    for target, handed in lab.clients().items() if name != "ffa_lora" else ():
        A, B = lab.of_server(target)
        added = lab.base(target) - adapt_(MODEL.build(11, 6, 0), lab.lora, 3).get_submodule(target).weight.double()
        assert torch.allclose(0.5 * B @ A + added, 0.5 * handed[0][1] @ handed[0][0], rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize("name", ["flora", "fedex_lora"])
def test_products_are_averaged_without_bias(name: str) -> None:
    """Over several rounds: what all models have in common grows by exactly s·Σ p_k·B_k·A_k."""
    lab = Federation(EVERY[name], ranks_for(name), scale=2.0)
    for _ in range(3):
        before = {t: (lab.base(t), lab.of_server(t)) for t in lab.adapters.targets}
        lab.run(2)
        handed = lab.clients()
        for t, (base, (A, B)) in before.items():
            after = lab.base(t) + 2 * lab.of_server(t)[1] @ lab.of_server(t)[0]
            average = sum(b @ a for a, b in handed[t]) / 3
            assert float((after - base - 2 * average).abs().max()) < 1e-12
            assert (
                name == "flora" or float((B @ A).abs().max()) >= 0
            )  # FedEx: the mean of products replaces the old one


def test_fedit_is_biased_where_A_differ() -> None:
    lab = Federation(EVERY["fedit"], (2, 2, 2)).run(4)
    handed = lab.clients()
    for t in handed:
        A, B = lab.of_server(t)
        assert float((B @ A - sum(b @ a for a, b in handed[t]) / 3).abs().max()) > 1e-6


# --- bytes and memory -------------------------------------------------------------------------------------------------


def by_client(lab: Federation, op: tuple[str, ...]) -> dict[int, int]:
    out: dict[int, int] = {}
    for r in lab.comm.ledger:
        for w in r.workers if r.op in op else ():
            out[w] = out.get(w, 0) + r.bytes_each
    return out


UP, DOWN = ("reduce", "gather"), ("broadcast",)


@pytest.mark.parametrize("name", ["prelort", "zero_padding", "flexlora", "raflora", "hetlora unpruned"])
def test_bytes_per_client(name: str) -> None:
    """r_k·Σ (d_in + d_out) each way and round: three rounds."""
    lab = Federation(EVERY[name], (4, 2, 1)).run(6)
    assert by_client(lab, UP) == {w: 3 * 8 * r * SIZES for w, r in enumerate((4, 2, 1))}
    assert by_client(lab, DOWN) == by_client(lab, UP)


def test_bytes_of_the_others() -> None:
    """FFA sends B alone; FLoRA and FedEx hand the whole stack to everybody."""
    ffa = Federation(EVERY["ffa_lora"], (4, 2, 1)).run(6)
    assert by_client(ffa, UP) == {w: 3 * 8 * r * (24 + 32) for w, r in enumerate((4, 2, 1))} == by_client(ffa, DOWN)
    flora = Federation(EVERY["flora"], (4, 2, 1)).run(6)
    assert by_client(flora, UP) == {w: 3 * 8 * r * SIZES for w, r in enumerate((4, 2, 1))}
    assert by_client(flora, DOWN) == dict.fromkeys(range(3), 3 * 8 * 7 * SIZES)
    fedex = Federation(EVERY["fedex_lora"], (2, 2, 2)).run(6)
    assert by_client(fedex, DOWN) == dict.fromkeys(range(3), 3 * 8 * 6 * SIZES)


def test_a_client_of_rank_one_holds_rank_one_tensors_only() -> None:
    """Parameters, gradients and optimizer states alike: there is no row for what it does not have."""
    lab = Federation(EVERY["prelort"], (4, 2, 1)).run(2)
    for stack in (
        lab.fleet.params,
        lab.fleet.grads,
        lab.state.local["exp_avg"],
        lab.state.local["exp_avg_sq"],
    ):
        held = [
            sum(x[0].numel() for b, x in zip(stack.layout.blocks, stack.blocks, strict=True) if w in b.holders)
            for w in range(3)
        ]
        assert held == [4 * SIZES, 2 * SIZES, SIZES]
    assert sum(b.untyped_storage().nbytes() for b in lab.fleet.params.blocks) == 8 * 7 * SIZES


def test_frozen_weights_are_there_once() -> None:
    lab = Federation(EVERY["flora"], (4, 2, 1)).run(2)
    weights = {lab.fleet.modules[w].get_submodule("blocks.0.attention.qkv").weight.data_ptr() for w in range(3)}
    assert len(weights) == 1


# --- the nested loss --------------------------------------------------------------------------------------------------


def test_the_nested_loss_by_hand() -> None:
    """Truncations, their weights, and each variant against one pass per prefix."""
    method = PreLort()
    assert method.ranks_of(8, (2, 4, 8, 16)) == [2, 4, 8]
    assert PreLort(truncations="powers").ranks_of(12, (12,)) == [1, 2, 4, 8, 12]
    assert PreLort(truncations="powers").ranks_of(8, (8,)) == [1, 2, 4, 8]
    assert PreLort(omega="rank").weights_of([1, 3]) == [0.25, 0.75]
    assert PreLort(omega="last").weights_of([1, 2, 4]) == [0.25, 0.25, 0.5]
    lab = Federation(PreLort(2), (4, 2, 1)).run(3)
    module: Any = lab.fleet.modules[0]
    ids, targets = tokens(0, 9)
    each = prefix_losses(module, ids, targets, [1, 2, 4])

    def loss(**options: Any) -> float:
        return float(PreLort(**options).nested_loss((1, 2, 4), 9)(module, 0, ids, targets))

    assert loss() == pytest.approx(float(each.mean()))
    assert loss(omega="last") == pytest.approx(float((each * torch.tensor([0.25, 0.25, 0.5])).sum()))
    assert loss(nested="none") == pytest.approx(float(each[2]))
    assert loss(nested="sandwich") == pytest.approx(float(each.mean()))  # three prefixes: all of them
    drawn = [loss(nested="sample", prefix_seed=k) for k in range(30)]
    assert {round(x, 9) for x in drawn} == {round(float(x), 9) for x in each}
    P = torch.tensor([1.0, 2 / 3, 1 / 3, 1 / 3], dtype=F64)  # Σ_{r ≥ i} 1/3
    with torch.no_grad():
        for a in adapters(module).values():
            for B, w in zip(a.lora_B, P.split([1, 1, 2]), strict=True):
                B.mul_(w)
        want = float(module.loss(ids, targets))
        for a in adapters(module).values():
            for B, w in zip(a.lora_B, P.split([1, 1, 2]), strict=True):
                B.div_(w)
    assert loss(nested="matryoshka") == pytest.approx(want)


def test_alpha_is_folded_in_and_out() -> None:
    """With α/r scales, what a client hands in acts at the server as it did at the client; with equal ranks nothing differs."""
    lab = Federation(PreLort(2, nested="none"), (4, 1), alpha=4.0).run(1)
    before = {t: lab.of_client(1, t) for t in lab.adapters.targets}
    lab.run(1)
    trained = Federation(PreLort(9, nested="none"), (4, 1), alpha=4.0).run(2)  # the same two steps, nothing handed in
    for t in before:
        _, B = trained.of_client(1, t)  # in its own scale, 4/1
        A0, B0 = trained.of_client(0, t)  # scale 4/4, which is the server's
        got = lab.of_server(t)
        assert torch.allclose(got[1][:, 0], (4 * B[:, 0] + B0[:, 0]) / 2, rtol=1e-12)
        assert torch.allclose(got[0][1:], A0[1:], rtol=1e-12)
    lab.run(1)
    fetched = Federation(PreLort(2, nested="none", inner=Optimizer("SGD", 1e-30)), (4, 1), alpha=4.0)
    fetched.state.shared["params"] = lab.state.shared["params"]
    fetched.run(1)
    for t in before:
        assert torch.allclose(fetched.of_client(1, t)[1] * 4, lab.of_server(t)[1][:, :1], rtol=1e-12)
    same = [Federation(FedIT(2), (2, 2, 2), **k).run(4) for k in ({"alpha": 3.0}, {"scale": 1.5})]
    for t in same[0].adapters.targets:
        assert torch.equal(same[0].of_server(t)[1], same[1].of_server(t)[1])


# --- who takes part ---------------------------------------------------------------------------------------------------


def test_what_nobody_covers() -> None:
    """A segment whose holders are all away keeps its values, or loses its B; the others are averaged over who is there."""
    for uncovered in ("keep", "zero"):
        lab = Federation(PreLort(2, uncovered=uncovered), (4, 2, 1)).run(2)  # type: ignore[arg-type]
        before = {t: lab.of_server(t) for t in lab.adapters.targets}
        lab.fleet.up = [False, True, True]
        lab.run(2)
        for t, (A, B) in before.items():
            a, b = lab.of_server(t)
            assert torch.equal(a[2:], A[2:])
            assert torch.equal(b[:, 2:], B[:, 2:] if uncovered == "keep" else torch.zeros_like(B[:, 2:]))
            assert not torch.equal(b[:, :2], B[:, :2])
            assert torch.allclose(a[1], lab.of_client(1, t)[0][1])  # one holder of segment 2 is left


@every
def test_equal_clients_are_one_client(name: str) -> None:
    """Clients of one rank with the same data are one client: the server's model is that of one alone."""
    same = lambda worker, t: tokens(9, t)  # noqa: E731
    method = EVERY[name]
    crowd, alone = Federation(method, (3, 3, 3, 3), batch=same).run(5), Federation(method, (3,), batch=same).run(5)
    if name in ("prelort sample", "prelort sandwich"):
        return  # they draw by worker
    for t in crowd.adapters.targets if name != "ffa_lora" else ():
        for x, y in zip(crowd.of_server(t), alone.of_server(t), strict=True):
            assert close(x, y, 1e-9)
        assert close(crowd.base(t), alone.base(t), 1e-10)
    assert close(crowd.loss_W[:1], alone.loss_W, 1e-9)


# --- as runs ----------------------------------------------------------------------------------------------------------

STORMY = Scenario(outages=(Outage(worker=1, first=3, last=4), Outage(worker=2, last=2)))
SAMPLED = Scenario(sample=2, sample_every=2)


def run_of(name: str, **changes: Any) -> Recipe:
    lora = LoRA(ranks=ranks_for(name), targets=TARGETS, train="B" if name == "ffa_lora" else "both")
    return recipe(EVERY[name], lora=lora, **changes)


@pytest.mark.parametrize("name", ["prelort", "hetlora", "flora", "fedex_lora"])
def test_resume_with_outages(name: str, tmp_path: Path) -> None:
    stop_and_go(run_of(name, scenario=STORMY), tmp_path)


def test_who_comes_back_in_mid_round_fetches_the_servers_state() -> None:
    scenario = Scenario(outages=(Outage(worker=1, first=3, last=3),))
    trainer = Trainer(run_of("prelort", steps=4, scenario=scenario), corpus=corpus())
    list(trainer.events())
    fetched = [(r.step, r.workers) for r in trainer.comm.ledger if r.op == "broadcast"]
    assert {w for s, who in fetched for w in who if s == 3} == {0, 2}
    assert {w for s, who in fetched for w in who if s == 4} == {1}


def test_only_who_is_sampled_fetches_and_hands_in() -> None:
    r = run_of("prelort", steps=8, scenario=SAMPLED)
    up = SAMPLED.trace(3, 8, r.seed)
    for sent in dry_run(r):
        assert all(up[sent.step - 1, w] for w in sent.workers)
    total = {w: 8 * k * SIZES * int(up[::2, w].sum()) for w, k in enumerate((4, 2, 1))}
    each_way = {
        op: {w: sum(s.bytes_each for s in dry_run(r) if s.op == op and w in s.workers) for w in range(3)}
        for op in ("broadcast", "reduce")
    }
    assert each_way == {"broadcast": total, "reduce": total}


def test_what_is_evaluated_is_the_servers_model_at_every_prefix() -> None:
    """Loss of the whole adapter in `Evaluated` and `Truncated`, of a prefix by hand, AURAC, energy, coverage."""
    trainer = Trainer(run_of("prelort", steps=4, eval_every=4), corpus=corpus())
    events = list(trainer.events())
    (shown,) = [e for e in events if isinstance(e, Evaluated)]
    (cut,) = [e for e in events if isinstance(e, Truncated)]
    covered = [e for e in events if isinstance(e, Covered)]
    assert cut.bounds_M == [1, 2, 4]
    assert cut.loss_M[-1] == shown.loss
    model: Any = trainer.fleet.whole_model(trainer.state.shared["params"])
    with cut_to(model, 2):
        assert cut.loss_M[1] == Evaluator(trainer.setup).loss(model)
    assert cut.aurac["loss"] == pytest.approx(area([1, 2, 4], cut.loss_M))
    assert sum(cut.energy_M) == pytest.approx(1)
    assert sum(cut.spectrum_M) == pytest.approx(1)
    own = [0.0, 0.0, 0.0]
    for a in adapters(model).values():
        A, B = a.factors()
        for m, (low, high) in enumerate([(0, 1), (1, 2), (2, 4)]):
            own[m] += float((B[:, low:high] @ A[low:high]).square().sum())
    assert cut.energy_M == pytest.approx([x / sum(own) for x in own])
    assert [e.step for e in covered] == [2, 4]
    assert covered[0].contributors_M == [[0, 1, 2], [0, 1], [0]]
    counts = trainer.state.samples_W
    assert counts is not None
    assert covered[0].mass_M == pytest.approx([1, (counts[0] + counts[1]) / sum(counts), counts[0] / sum(counts)])
    assert [e.since_M for e in covered] == [[2, 2, 2], [2, 2, 2]]
    assert covered[1].bias > 0


def test_segments_that_wait_are_counted() -> None:
    scenario = Scenario(outages=(Outage(worker=0, first=3, last=6),))
    events = Trainer(run_of("prelort", steps=8, scenario=scenario), corpus=corpus()).events()
    assert [e.since_M for e in events if isinstance(e, Covered)] == [[2, 2, 2], [2, 2, 2], [2, 2, 4], [2, 2, 6]]


def test_a_recipe_and_its_seed_decide_everything() -> None:
    first, second = (story(Trainer(run_of("prelort", steps=4), corpus=corpus()).events()) for _ in range(2))
    assert first == second


def test_the_start_is_read_once(tmp_path: Path) -> None:
    """First values come from the file when the fleet is made; looks at the agreed model are views, and need no file."""
    values = {n: torch.full_like(p, 0.01) for n, p in recipe().model.build(corpus().vocab_size, 8).named_parameters()}
    file = tmp_path / "base.safetensors"
    save_file(values, file)
    trainer = Trainer(run_of("prelort", start=str(file)), corpus=corpus())
    assert (trainer.fleet.constants["blocks.0.attention.qkv.weight"] == torch.tensor(0.01).double()).all()
    file.unlink()
    assert any(isinstance(e, Truncated) for e in trainer.events())


# --- bad input --------------------------------------------------------------------------------------------------------


def test_bad_input_in_one_line() -> None:
    for words, make in {
        r"this method aggregates adapters: set lora\.ranks": lambda: Trainer(recipe(PreLort()), dry=True),
        "fedit is defined for clients of one rank": lambda: Trainer(
            recipe(FedIT(), lora=LoRA(ranks=(1, 2, 4))), dry=True
        ),
        "5 numbers for 3 workers": lambda: recipe(PreLort(), lora=LoRA(ranks=(1, 2, 4, 4, 4))),
        "lora.train = 'both' does not go": lambda: Trainer(recipe(FFALoRA(), lora=LoRA(ranks=(2,))), dry=True),
        "lora.train = 'B' does not go": lambda: Trainer(recipe(PreLort(), lora=LoRA(ranks=(2,), train="B")), dry=True),
        "greater than or equal to 1": lambda: Recipe.of("prelort", ["lora.ranks=[4,0]"]),
        "inner_states = 'reset' is not available": lambda: Trainer(
            recipe(PreLort(inner=Optimizer("ADOPT", 1e-2)), lora=LoRA(ranks=(2,))), dry=True
        ),
        "start = 'nowhere.safetensors' cannot be read": lambda: Trainer(
            recipe("local_adam", start="nowhere.safetensors"), corpus=corpus()
        ),
    }.items():
        with pytest.raises(RecipeError, match=words) as info:
            make()
        assert "\n" not in str(info.value)


# --- the matrix toy ---------------------------------------------------------------------------------------------------


def test_the_matrix_toy() -> None:
    """What is robust in the toy's table, in a shorter run: who starves, what repairs it, what nesting adds, and who wins.

    FLoRA adds to W₀ in every round, so its rank grows: its win at full rank is part of the picture.
    """
    inner = AdamW(3e-2, betas=(0.9, 0.999))

    def run(make: Any, ranks: tuple[int, ...], **options: Any) -> toy.Outcome:
        return toy.regression(make(10, inner, max_norm=None, **options), ranks, rounds=30, d=20)

    mixed, best = (16, 16, 8, 8, 4, 4, 2, 2), toy.best((2, 4, 8, 16))
    padding, segments = run(ZeroPadding, mixed), run(PreLort, mixed, nested="none")
    assert padding.energy[0] > 0.8  # nearly everything in the first two of sixteen
    assert padding.energy[3] < 0.005 < 0.02 < segments.energy[3]
    for r in (4, 8, 16):
        assert segments.loss[r] < 0.85 * padding.loss[r]
    assert run(FLoRA, mixed).loss[16] < 0.1 * min(segments.loss[16], run(FlexLoRA, mixed).loss[16])
    assert padding.bytes_each_way == (30 * 8 * 60 * 40, 30 * 8 * 60 * 40)

    many_large = (16, 16, 16, 16, 16, 16, 4, 2)
    plain, nested = run(PreLort, many_large, nested="none"), run(PreLort, many_large)
    for r in (2, 4):  # nested: each prefix is nearer to the best of its rank
        assert best[r] < nested.loss[r] < plain.loss[r]
        assert nested.loss[r] - best[r] < 0.5 * (plain.loss[r] - best[r])


def test_more_bad_input_in_one_line(tmp_path: Path) -> None:
    """Ranks that a map cannot have, lists that are none, clients that change in mid-round."""
    for words, make in {
        r"lora\.ranks: 9 is more than blocks\.0\.attention\.qkv \(8 to 24\) can have: use at most 8": lambda: Trainer(
            recipe(PreLort(2), lora=LoRA(ranks=(9, 1, 1))), dry=True
        ),
        r"lora\.ranks = 8 is not allowed: it is a list, for example \[8,4,2\]": lambda: Recipe.of(
            "prelort", ["lora.ranks=8"]
        ),
        "changes clients in the midst of rounds of 2 steps: set it to 2": lambda: run_of(
            "prelort", scenario=Scenario(sample=1, sample_every=3)
        ),
    }.items():
        with pytest.raises(RecipeError, match=words) as info:
            make()
        assert "\n" not in str(info.value)


def test_a_run_without_a_whole_round_says_so() -> None:
    r = run_of("prelort", steps=1)
    said = [e.message for e in Trainer(r, corpus=corpus()).events() if isinstance(e, Warned)]
    assert said == ["no round was finished, so nothing was aggregated: set method.sync_every below steps"]


@pytest.mark.parametrize("name", OF_ADAPTERS)
def test_federations_in_bfloat16_keep_what_nobody_moves(name: str) -> None:
    """Decompositions, weights and sums are in float32: 12 rounds of clients that do not move leave the product as it was."""
    method = dataclasses.replace(METHODS[name](), sync_every=1, inner=AdamW(1e-30), max_norm=None)  # type: ignore[type-var]
    lora = LoRA(ranks=(2, 2, 2), targets=TARGETS, train="B" if name == "ffa_lora" else "both")
    r = recipe(method, lora=lora, dtype="bfloat16", steps=12, split="size:3", eval_every=0, checkpoint_every=0)
    trainer = Trainer(r, corpus=corpus())
    generator_ = generator(0, "B")
    before: dict[str, Tensor] = {}
    for key in trainer.state.shared["params"].names():
        x = trainer.state.shared["params"][key][0]
        if ".lora_B." in key:
            x.copy_(torch.randn(x.shape, generator=generator_))
        before[key] = x.clone().float()
    base = {k: x.clone().float() for k, x in trainer.fleet.constants.items()}
    for _ in trainer.events():
        pass
    after = {key: trainer.state.shared["params"][key][0].float() for key in before}
    for target in trainer.state.adapters.targets:
        names = f"{target}.lora_B.0", f"{target}.lora_A.0"
        W = trainer.fleet.constants[f"{target}.weight"].float() - base[f"{target}.weight"]
        if name == "ffa_lora":
            assert torch.equal(after[names[0]], before[names[0]])
            continue
        want, got = (x[names[0]] @ x[names[1]] for x in (before, after))
        if name == "flora":  # a client trains what is new; all that was handed in lies in the maps themselves
            assert float((W / trainer.state.adapters.scale - want).norm() / want.norm()) < 0.05
        else:
            assert float((got - want).norm() / want.norm()) < 0.02, float((got - want).norm() / want.norm())
            assert float(W.norm()) <= 1e-2 * float(want.norm())


@pytest.mark.parametrize("name", ["flexlora", "raflora"])
def test_a_product_that_is_no_longer_finite_is_one_line(name: str, tmp_path: Path) -> None:
    """A server cannot decompose it; that is the run's end, as if a loss had been infinite."""
    r = SERVED[name]
    r = r.but(lora=vars(r.lora) | {"alpha": 1e9}, dtype="float32", steps=12, scenario={})
    r = r.but(method=r.to_dict()["method"] | {"inner": {"name": "SGD", "lr": 1e9}, "max_norm": None})
    with pytest.raises(Diverged, match=r"finite|is nan|is inf"):
        train(r, tmp_path / "run")
