"""FoMoE: placements, experts that move, and the method against one worker after another written out in plain PyTorch."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from lab.engine.comm import Communicator, Meeting
from lab.engine.fleet import Fleet
from lab.engine.optim import AdamW, Nesterov, Optimizer
from lab.engine.outer import descend_
from lab.engine.stack import Layout, Stack
from lab.engine.state import State
from lab.events import Placed, Routed, Saturated, Sent, Warned
from lab.ground.errors import RecipeError
from lab.ground.seeds import generator
from lab.methods.fomoe import FoMoE
from lab.models.moe import MoE
from lab.probes.routing import balance
from lab.recipes.placement import Experts, Placement, fixed_map, moved, random_map, resident
from lab.recipes.recipe import Recipe
from lab.recipes.scenario import Outage, Scenario
from lab.runs.folder import RunFolder
from lab.runs.trainer import Trainer, dry_run, train
from lab.study.bench import Bench
from tests.support.bench import F64, batch, close, fill_
from tests.support.recipes import TEXT
from tests.support.stories import story

# --- placements ------------------------------------------------------------------------------------------------------

biregular = st.tuples(st.integers(1, 8), st.integers(1, 24), st.integers(1, 8)).filter(
    lambda m: m[2] <= m[0] and m[1] * m[2] % m[0] == 0  # workers, experts, overlap
)


def is_biregular(workers_E: list[list[int]], overlap: int, num_workers: int) -> bool:
    each = Counter(w for workers in workers_E for w in workers)
    share = len(workers_E) * overlap // num_workers
    copies = all(len(set(ws)) == len(ws) == overlap and ws == sorted(ws) for ws in workers_E)
    return copies and all(each[w] == share for w in range(num_workers))


@given(biregular, st.integers(0, 99))
def test_every_expert_has_its_copies_and_every_worker_its_share(shape: tuple[int, int, int], seed: int) -> None:
    num_workers, num_experts, overlap = shape
    Placement(overlap=overlap).check_table(num_experts, num_workers)
    assert is_biregular(fixed_map(num_experts, overlap, num_workers), overlap, num_workers)
    assert is_biregular(random_map(num_experts, overlap, num_workers, generator(seed)), overlap, num_workers)


@given(biregular)
def test_fixed_groups_are_as_few_as_can_be(shape: tuple[int, int, int]) -> None:
    """Where O_e divides M, the workers fall into M/O_e groups that hold the same experts."""
    num_workers, num_experts, overlap = shape
    if num_workers % overlap == 0:
        groups = {tuple(workers) for workers in fixed_map(num_experts, overlap, num_workers)}
        assert len(groups) == num_workers // overlap


@pytest.mark.parametrize("shape", [(4, 8, 2), (4, 8, 1), (6, 9, 2), (5, 5, 3)])
def test_by_chance_every_pair_is_equally_likely(shape: tuple[int, int, int]) -> None:
    """Over many draws each worker holds each expert with probability O_e/M, and draws are independent."""
    num_workers, num_experts, overlap = shape
    draws, held = 400, torch.zeros(num_experts, num_workers)
    stayed = 0
    placement = Placement(overlap=overlap, kind="random")
    before = placement.table(1, num_experts, num_workers, 0, 0)
    for draw in range(1, draws + 1):
        table = placement.table(1, num_experts, num_workers, 0, draw)
        for e, workers in enumerate(table[0]):
            held[e, workers] += 1
        stayed += num_experts * overlap - moved(before, table)
        before = table
    p = overlap / num_workers
    spread = (p * (1 - p) / draws) ** 0.5
    assert float((held / draws - p).abs().max()) < 5 * spread
    # A copy is missing from the next table with probability 1 − O_e/M (P in the paper's cost model).
    assert stayed / (draws * num_experts * overlap) == pytest.approx(p, abs=5 * spread)


def test_tables_follow_the_options() -> None:
    def table(draw: int = 0, seed: int = 0, **options: Any) -> list[list[list[int]]]:
        return Placement(overlap=2, **options).table(3, 8, 4, seed, draw)

    assert table() == table(draw=5) == table(seed=9)  # fixed
    assert table()[0] == table()[1] == table()[2]
    assert table(layers="apart")[0] != table(layers="apart")[1]
    assert table(kind="random") == table(kind="random")
    assert table(kind="random") != table(1, kind="random")
    assert table(kind="random") != table(seed=1, kind="random")
    assert table(kind="random")[0] != table(kind="random")[1]
    assert table(kind="random", layers="alike")[0] == table(kind="random", layers="alike")[1]
    everywhere = Placement(kind="random").table(2, 8, 4, 0, 7)
    assert everywhere == [[[0, 1, 2, 3]] * 8] * 2


def test_residents_and_movers_by_hand() -> None:
    before, after = [[[0, 1], [1, 2], [0, 2]]], [[[0, 1], [0, 2], [1, 2]]]
    assert [resident(before, w) for w in range(3)] == [[[0, 2]], [[0, 1]], [[1, 2]]]
    assert moved(before, after) == 2  # expert 1 comes to worker 0, expert 2 to worker 1


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"placement": {"overlap": 5}}, "at most num_workers = 4"),
        ({"placement": {"overlap": 0}}, "placement.overlap = 0"),
        ({"placement": {"overlap": 1}, "num_workers": 3}, "use an overlap of 3"),
        ({"placement": {"overlap": 2}, "model": "nano"}, "placement.overlap = 2 is for models with experts"),
        ({"placement": {"kind": "random"}, "model": "nano"}, "placement.kind = 'random' is for models with experts"),
        ({"placement": {"kind": "random"}}, "set placement.overlap, for example to 2"),
        ({"placement": {"overlap": 2, "every": 3}}, "set placement.kind=random"),
        ({"placement": {"overlap": 2, "warmup": 3}}, "set placement.kind=random"),
        ({"placement": {"overlap": 2, "kind": "random"}, "method": "diloco"}, "use method fomoe"),
        ({"model": {"num_experts": 4, "top_k": 5}}, "top_k = 5"),
        ({"model": "moe-nana"}, "did you mean 'moe-nano'?"),
        ({"method": {"name": "fomoe", "sync_every": {"exp_avg": 3}}}, "no 'params'"),
        ({"method": {"name": "fomoe", "sync_every": {"params": 3, "exp_avgs": 3}}}, "did you mean 'exp_avg'?"),
    ],
)
def test_bad_input_is_one_line(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(RecipeError) as error:
        Recipe.of({"method": "fomoe", "model": "moe-nano", "num_workers": 4} | changes)
    assert words in str(error.value)
    assert "\n" not in str(error.value)


# --- the method against plain PyTorch --------------------------------------------------------------------------------


class Sites(nn.Module):
    """Two layers of four experts each on top of a dense map: y = out · (h + Σ_e down_e tanh(up_e h)), h = inp x."""

    def __init__(self, held: list[list[int]]):
        super().__init__()
        self.inp = nn.Parameter(torch.empty(3, 3, dtype=F64))
        self.blocks = nn.ModuleList()
        for experts in held:
            layer = nn.Module()
            layer.moe = nn.Module()
            layer.moe.experts = nn.ModuleDict()
            for e in experts:
                layer.moe.experts[str(e)] = nn.Module()
                layer.moe.experts[str(e)].up = nn.Parameter(torch.empty(2, 3, dtype=F64))
                layer.moe.experts[str(e)].down = nn.Parameter(torch.empty(3, 2, dtype=F64))
            self.blocks.append(layer)
        self.out = nn.Parameter(torch.empty(2, 3, dtype=F64))

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        h = x @ self.inp.T
        for layer in self.blocks:
            for expert in layer.moe.experts.values():
                h = h + torch.tanh(h @ expert.up.T) @ expert.down.T / 4
        return (h @ self.out.T - y).square().mean()

    @staticmethod
    def tensor_group(name: str) -> str:
        return "experts" if "experts" in name else "dense"

    @staticmethod
    def tensor_unit(name: str) -> str | None:
        path = name.split(".")
        return f"{path[1]}.{path[4]}" if "experts" in name else None


ALL = [list(range(4))] * 2


class Federation(Bench):
    """FoMoE on `Sites`, through the lab's fleet and communicator."""

    def __init__(self, method: FoMoE, placement: Placement, num_workers: int = 4, device: str = "cpu", **options: Any):
        self.experts = Experts(placement, 2, 4, num_workers, 0)

        def build(worker: int | None) -> nn.Module:
            if worker is None:
                return fill_(Sites(ALL))
            return Sites(resident(self.experts.table, worker))

        with torch.device(device):
            self.fleet = Fleet(build, num_workers, device=device, dtype=F64, threads=1, movable=self.experts.movable)
        state = State.of(self.fleet, experts=self.experts)
        super().__init__(method, state, batch=batch, comm=Communicator(self.fleet, **options))

    def of(self, worker: int, state: str = "params") -> dict[str, Tensor]:
        stack = self.state.local[state]
        names = [n for n in stack.names() if worker in stack.layout.blocks[stack.layout.place[n][0]].holders]
        return {n: stack.cell(n, worker).clone() for n in names}


def written_out(
    method: FoMoE, placement: Placement, steps: int, num_workers: int = 4, up: Callable[[int, int], bool] | None = None
) -> tuple[list[dict[str, Tensor]], list[dict[str, Tensor]], int]:
    """The same as the paper tells it: modules, one torch AdamW for every tensor, dictionaries, loops.

    Returns parameters and first moments of each worker, and the elements sent to workers for experts that came to them.
    """
    options = method.inner.options
    whole = dict(fill_(Sites(ALL)).named_parameters())
    server = {n: p.detach().clone() for n, p in whole.items()}
    velocity = {n: torch.zeros_like(p) for n, p in server.items()}
    tables = [placement.table(2, 4, num_workers, 0, draw) for draw in range(steps + 1)]
    sites, optimizers, born = [], [], []
    for w in range(num_workers):
        site = Sites(resident(tables[0], w))
        site.load_state_dict({n: server[n] for n in dict(site.named_parameters())})
        sites.append(site)
        optimizers.append(
            {n: torch.optim.AdamW([p], lr=method.inner.lr, **options) for n, p in site.named_parameters()}
        )
        born.append(dict.fromkeys(dict(site.named_parameters()), 0))
    period, handed_out = method.sync_every["params"], 0
    for t in range(1, steps + 1):
        rounds, into = divmod(t - 1, period)
        if placement.kind == "random" and t > 1 and into == 0 and rounds % placement.every == 0:
            for w in range(num_workers):
                old, new = dict(sites[w].named_parameters()), Sites(resident(tables[rounds // placement.every], w))
                parameters, kept = dict(new.named_parameters()), optimizers[w]
                optimizers[w] = {}
                for n, p in parameters.items():
                    p.data.copy_(old[n].data if n in old else server[n])
                    optimizers[w][n] = torch.optim.AdamW([p], lr=method.inner.lr, **options)
                    if n in old:
                        optimizers[w][n].load_state_dict(kept[n].state_dict())
                    else:
                        born[w][n], handed_out = t, handed_out + p.numel()
                sites[w] = new
        warmup = period if placement.warmup is None else placement.warmup
        for w in range(num_workers):
            loss = sites[w].loss(*batch(w, t))
            grads = torch.autograd.grad(loss, list(sites[w].parameters()))
            norm = torch.cat([g.flatten() for g in grads]).norm()
            scale = 1.0 if method.max_norm is None else min(1.0, float(method.max_norm / (norm + 1e-6)))
            for (n, p), g in zip(sites[w].named_parameters(), grads, strict=True):
                p.grad = g * scale
                factor = min(1.0, (t - born[w][n] + 1) / warmup) if born[w][n] and warmup else 1.0
                optimizers[w][n].param_groups[0]["lr"] = method.inner.lr * factor
                optimizers[w][n].step()
        for state, every in method.sync_every.items():
            if t % every:
                continue
            for n in server:
                holders = [w for w in range(num_workers) if n in optimizers[w]]
                mine = [dict(sites[w].named_parameters())[n] for w in holders]
                if state == "params":
                    mean = torch.stack([p.data for p in mine]).mean(0)
                    if method.outer is None:
                        server[n] = mean
                    else:
                        delta = server[n] - mean
                        momentum = method.outer.options["momentum"]
                        velocity[n] = momentum * velocity[n] + delta
                        server[n] = server[n] - method.outer.lr * (delta + momentum * velocity[n])
                    for p in mine:
                        p.data.copy_(server[n])
                else:
                    moments = [optimizers[w][n].state[p][state] for w, p in zip(holders, mine, strict=True)]
                    mean = torch.stack(moments).mean(0)
                    for m in moments:
                        m.copy_(mean)
    params = [{n: p.detach() for n, p in site.named_parameters()} for site in sites]
    moments = [
        {n: optimizers[w][n].state[p]["exp_avg"] for n, p in site.named_parameters()} for w, site in enumerate(sites)
    ]
    return params, moments, handed_out


ALL_THREE = {"params": 3, "exp_avg": 3, "exp_avg_sq": 3}
LOCAL_ADAMW = FoMoE(sync_every=ALL_THREE, inner=AdamW(1e-2, weight_decay=0.1))
DILOCO = FoMoE(sync_every={"params": 2}, inner=AdamW(1e-2), outer=Nesterov(), max_norm=0.3)
DES_LOC = FoMoE(sync_every={"params": 2, "exp_avg": 4, "exp_avg_sq": 5}, inner=AdamW(1e-2), max_norm=None)
PLACEMENTS = [
    Placement(overlap=1),
    Placement(overlap=2, layers="apart"),
    Placement(overlap=4),
    Placement(overlap=1, kind="random"),
    Placement(overlap=2, kind="random"),
    Placement(overlap=3, kind="random", every=2, layers="alike"),
    Placement(overlap=2, kind="random", warmup=0),
    Placement(overlap=2, kind="random", warmup=5),
]


@pytest.mark.parametrize("placement", PLACEMENTS, ids=repr)
@pytest.mark.parametrize("method", [LOCAL_ADAMW, DILOCO, DES_LOC], ids=["local_adamw", "diloco", "des_loc"])
def test_every_number_is_that_of_plain_pytorch(method: FoMoE, placement: Placement) -> None:
    """Parameters and moments at every worker, over 14 steps with up to six new tables; and what was handed out."""
    lab = Federation(method, placement).run(14)
    params, moments, handed_out = written_out(method, placement, 14)
    for w in range(4):
        for mine, theirs in ((lab.of(w), params[w]), (lab.of(w, "exp_avg"), moments[w])):
            assert mine.keys() == theirs.keys()
            for n in mine:
                assert close(mine[n], theirs[n]), (w, n)
        seen = {n: p.detach() for n, p in lab.fleet.modules[w].named_parameters()}
        assert seen.keys() == params[w].keys()
        assert all(torch.equal(seen[n], lab.of(w)[n]) for n in seen)
    broadcast = sum(r.bytes_all for r in lab.comm.ledger if r.op == "broadcast")
    assert broadcast == 8 * handed_out
    assert (handed_out > 0) == lab.experts.movable


@pytest.mark.parametrize("method", [LOCAL_ADAMW, DILOCO, DES_LOC], ids=["local_adamw", "diloco", "des_loc"])
def test_every_expert_everywhere_is_the_full_replica(method: FoMoE) -> None:
    """O_e = M, fixed or random, is the same method without any experts, bit for bit."""
    plain = Federation(method, Placement()).run(9)
    for placement in (Placement(overlap=4), Placement(overlap=4, kind="random"), Placement(kind="random")):
        lab = Federation(method, placement).run(9)
        assert lab.comm.ledger.records == plain.comm.ledger.records
        for w in range(4):
            assert all(torch.equal(lab.of(w)[n], x) for n, x in plain.of(w).items())


@pytest.mark.parametrize("placement", PLACEMENTS, ids=repr)
def test_dry_federation_writes_the_same_ledger(placement: Placement) -> None:
    real, dry = (Federation(DES_LOC, placement, device=d).run(12) for d in ("cpu", "meta"))
    assert real.comm.ledger.records == dry.comm.ledger.records


def test_experts_never_visit_workers_that_do_not_hold_them() -> None:
    """Whatever is sent for an expert goes to its present holders alone."""
    lab = Federation(LOCAL_ADAMW, Placement(overlap=1)).run(6)
    assert all("experts" not in r.payload_bytes for r in lab.comm.ledger if len(r.workers) != 1)
    lab = Federation(LOCAL_ADAMW, Placement(overlap=2)).run(6)
    groups = {r.workers for r in lab.comm.ledger if "experts" in r.payload_bytes}
    assert groups == {(0, 2), (1, 3)}


def test_what_stays_is_not_copied_and_what_moves_keeps_one_row() -> None:
    """A new table changes labels: the stacks are the same memory before and after."""
    lab = Federation(LOCAL_ADAMW, Placement(overlap=2, kind="random")).run(3)
    before = [b.data_ptr() for s in lab.state.local.values() for b in s.blocks]
    kept = {(n, w): x for w in range(4) for n, x in lab.of(w).items()}
    arrived = lab.experts.redraw_(4, 3) and lab.fleet.hold_(lab.experts.holders, 4)
    assert arrived
    assert before == [b.data_ptr() for s in lab.state.local.values() for b in s.blocks]
    new = {(n, w) for w in range(4) for n in lab.of(w)} - kept.keys()
    assert len(new) == 2 * len(arrived)  # an expert has two tensors
    for w in range(4):
        assert all(torch.equal(x, kept[n, w]) for n, x in lab.of(w).items() if (n, w) in kept)


def test_a_worker_that_is_down_gets_its_new_experts_when_it_is_back() -> None:
    """Nothing is sent to it meanwhile, and its fresh optimizer state begins with its first own step."""
    lab = Federation(LOCAL_ADAMW, Placement(overlap=2, kind="random")).run(3)
    lab.fleet.up[1] = False
    lab.run(3)
    assert all(1 not in r.workers for r in lab.comm.ledger if r.step > 3)
    came = [(i, b.holders.index(1)) for i, b in enumerate(lab.fleet.layout.blocks) if b.unit and 1 in b.holders]
    came = [(i, row) for i, row in came if lab.fleet.layout.blocks[i].since[row] == 4]
    assert came
    for i, row in came:
        assert not lab.state.local["exp_avg"].blocks[i][row].any()
    lab.fleet.up[1] = True
    lab.run(1)
    for i, row in came:
        if lab.fleet.layout.blocks[i].since[row] == 4:  # still there in the next table
            leaf = next(
                x
                for x in lab.state.optimizers["inner"].param_groups[0]["params"]
                if x.data_ptr() == lab.fleet.params.blocks[i][row].data_ptr()
            )
            assert float(lab.state.optimizers["inner"].state[leaf]["step"]) == 1


def test_an_expert_whose_holders_are_down_stays_as_it_was_agreed() -> None:
    for method in (LOCAL_ADAMW, DILOCO):
        lab = Federation(method, Placement(overlap=2)).run(6)
        held_by = {n: b.holders for b in lab.fleet.layout.blocks for n in b.names}
        before = {n: lab.state.shared["params"][n].clone() for n in held_by}
        lab.fleet.up[0] = lab.fleet.up[2] = False
        lab.run(6)
        for n, holders in held_by.items():
            unmoved = torch.equal(lab.state.shared["params"][n], before[n])
            assert unmoved == (holders == (0, 2)), n


def test_moved_rows_forget_what_error_feedback_owes() -> None:
    from lab.engine.codecs import codec

    method = FoMoE(sync_every={"params": 2}, inner=AdamW(1e-2), outer=Nesterov())
    placement = Placement(overlap=2, kind="random")
    lab = Federation(method, placement, codecs={"params": codec("topk:0.5")}).run(2)
    owed = lab.comm.residuals["params"]
    assert any(b.any() for b in owed.blocks)
    lab.experts.redraw_(3, 2)
    arrived = lab.fleet.hold_(lab.experts.holders, 3)
    lab.comm.send_(lab.state.shared["params"], lab.fleet.params, "params", arrived)
    rows = {(i, row): bool(b[row].any()) for i, b in enumerate(owed.blocks) for row in range(len(b))}
    assert not any(rows[cell] for cell in arrived)
    assert any(owes for cell, owes in rows.items() if cell not in arrived)


# --- with the real model, through recipes ----------------------------------------------------------------------------

MODEL = MoE(dim=8, num_layers=2, num_heads=2, num_experts=4, expert_dim=4, top_k=2)


def recipe(overlap: int | None = 2, kind: str = "random", method: Any = None, **changes: Any) -> Recipe:
    fields: dict[str, Any] = {
        "method": method or FoMoE(sync_every=ALL_THREE, inner=AdamW(1e-2)),
        "model": MODEL,
        "placement": Placement(overlap=overlap, kind=kind),
        "corpus": TEXT,
        "steps": 11,
        "num_workers": 4,
        "batch_size": 2,
        "context": 8,
        "dtype": "float64",
        "eval_every": 4,
        "eval_windows": 4,
        "routing_every": 2,
        "checkpoint_every": 1,
    }
    return Recipe(**(fields | changes))


STORM = Scenario(outages=(Outage(worker=1, first=3, last=8), Outage(worker=3, first=5, last=6)))


@pytest.mark.parametrize("scenario", [Scenario(), STORM], ids=["calm", "storm"])
@pytest.mark.parametrize("outer", [None, Nesterov()], ids=["mean", "nesterov"])
def test_resumed_from_any_step_it_is_the_same_run(outer: Optimizer | None, scenario: Scenario, tmp_path: Path) -> None:
    """Losses, ledger, placements and routing bit for bit, though rows and optimizer states have moved."""
    periods = ALL_THREE if outer is None else {"params": 3}
    whole = recipe(method=FoMoE(sync_every=periods, inner=AdamW(1e-2), outer=outer), scenario=scenario)
    told = story(Trainer(whole).events())
    assert any(isinstance(e, Placed) and e.moved for e in told)
    for event in Trainer(whole).events(RunFolder(tmp_path / "whole")):
        if event.kind == "checkpointed":
            shutil.copytree(tmp_path / "whole", tmp_path / str(event.step))
    for stop in range(1, whole.steps):
        resumed = [e for e in story(Trainer(whole).events(RunFolder(tmp_path / str(stop)))) if e.kind != "checkpointed"]
        assert resumed == told, stop


@pytest.mark.parametrize("skip_token", [False, True], ids=["partitioned", "skip-token"])
@pytest.mark.parametrize("kind", ["fixed", "random"])
@pytest.mark.parametrize("overlap", [1, 2, 4])
@pytest.mark.parametrize("num_workers", [2, 4])
def test_ledger_parameters_and_cost_model_agree_to_the_byte(
    num_workers: int, overlap: int, kind: str, skip_token: bool
) -> None:
    from lab.costs.fomoe import Costs
    from lab.costs.network import Network

    if overlap > num_workers:
        pytest.skip("more copies than workers")
    model = MoE(**(vars(MODEL) | {"skip_token": skip_token}))
    method = FoMoE(sync_every={"params": 2, "exp_avg": 4}, inner=AdamW(1e-2))
    r = recipe(overlap, kind, method, model=model, num_workers=num_workers, steps=8, dtype="float32", routing_every=0)
    trainer = Trainer(r)
    real = [e for e in trainer.events() if isinstance(e, Sent)]
    assert real == dry_run(r)
    vocab = trainer.setup.data.vocab_size  # type: ignore[union-attr]
    T = 1 if kind == "random" and overlap < num_workers else None
    costs = Costs(model=model, M=num_workers, O_e=overlap, T=T, sync_every=method.sync_every, vocab_size=vocab)
    for module in trainer.fleet.modules:
        assert sum(p.numel() for p in module.parameters()) == costs.site_params
    # Rounds of two steps, whose every second also averages the first moment; experts move before all but the first.
    tables = [r.placement.table(2, 4, num_workers, r.seed, draw) for draw in range(4)]
    expected = [0.0] * num_workers
    for i, table in enumerate(tables):
        round_bytes = costs.round_bytes(tables[max(0, i - 1)], table, states=1 + i % 2)
        expected = [a + float(b) for a, b in zip(expected, round_bytes, strict=True)]
    bill = Network(topology="ring").price(real, num_workers=num_workers, steps=8)
    assert bill.wire_bytes_W.tolist() == expected
    if T is None:
        per_round = float(costs.B_dense + costs.B_sparse)
        assert bill.wire_bytes_W.tolist() == pytest.approx([4 * per_round] * num_workers, rel=1e-12)


@pytest.mark.parametrize("skip_token", [False, True], ids=["partitioned", "skip-token"])
@pytest.mark.parametrize("kind", ["fixed", "random"])
def test_every_expert_everywhere_trains_as_the_full_replica_methods(kind: str, skip_token: bool) -> None:
    """O_e = M is Local AdamW and DiLoCo on the same model: the same losses and the same bytes."""
    model = MoE(**(vars(MODEL) | {"skip_token": skip_token}))
    pairs = [
        (FoMoE(sync_every=ALL_THREE, inner=AdamW(1e-2)), {"name": "local_adam", "sync_every": 3}),
        (FoMoE(sync_every={"params": 3}, inner=AdamW(1e-2), outer=Nesterov()), {"name": "diloco", "sync_every": 3}),
    ]
    for mine, theirs in pairs:
        inner = {"inner": {"name": "AdamW", "lr": 1e-2, "options": mine.inner.options}}
        one = train(recipe(4, kind, mine, model=model))
        other = train(recipe(None, "fixed", theirs | inner, model=model))
        assert one.loss_W == other.loss_W
        assert one.eval_loss == other.eval_loss
        assert one.ledger.by("step", "state") == other.ledger.by("step", "state")


def test_skip_token_with_every_expert_everywhere_is_the_partitioned_router() -> None:
    """The same trajectory, once the whole router starts with the columns of the partitioned one."""
    runs = []
    for skip_token in (False, True):
        model = MoE(**(vars(MODEL) | {"skip_token": skip_token}))
        trainer = Trainer(recipe(4, "fixed", model=model, routing_every=0, checkpoint_every=0))
        params = trainer.fleet.params
        if not skip_token:
            start = {n: params[n].clone() for n in params.names()}
        else:
            for name in params.names():
                if name in start:
                    params[name].copy_(start[name])
                else:  # blocks.0.moe.router [H, experts, dim] from blocks.0.moe.experts.3.router [H, dim]
                    columns = [start[name.replace("router", f"experts.{e}.router")] for e in range(4)]
                    params[name].copy_(torch.stack(columns, 1))
            trainer.state.shared["params"] = params.first()
        runs.append([e.loss_W for e in trainer.events() if e.kind == "stepped"])
    assert torch.allclose(torch.tensor(runs[0]), torch.tensor(runs[1]), rtol=1e-12)


def test_an_expert_that_nobody_up_holds_is_named_and_the_run_goes_on() -> None:
    down = Scenario(outages=(Outage(worker=0, first=5, last=9), Outage(worker=2, first=5, last=9)))
    events = list(Trainer(recipe(2, "fixed", scenario=down)).events())
    (warned,) = (e for e in events if isinstance(e, Warned))
    assert warned.step == 5
    assert "holds 4 parts of the model (blocks.0.moe.experts.0, …; workers down: 0, 2)" in warned.message
    assert "last agreed copy" in warned.message
    assert events[-1].kind == "ended"
    assert events[-1].status == "done"  # type: ignore[union-attr]


def test_ddp_on_a_spread_mixture_refuses_to_clip() -> None:
    with pytest.raises(RecipeError, match="max_norm"):
        Trainer(recipe(2, "fixed", "ddp"))


# --- routing ---------------------------------------------------------------------------------------------------------


def test_balance_by_hand() -> None:
    b = balance([4, None, 0, 2])
    assert b.cv == pytest.approx((8 / 3) ** 0.5 / 2)
    assert b.max_over_mean == 2
    assert b.dead == 1
    assert balance([0, 0]).dead == 2


def test_looks_count_every_slot_of_every_worker() -> None:
    """Load adds up to batch × context × k; partitioned routers know their residents alone; ghosts fit the load."""
    for skip_token, overlap in ((False, 1), (False, 2), (True, 2), (True, 1)):
        model = MoE(**(vars(MODEL) | {"skip_token": skip_token}))
        run = train(recipe(overlap, "random", model=model))
        assert [look.step for look in run.routed] == [2, 4, 6, 8, 10]
        tables = {p.step: p.workers_LE for p in run.placed}
        assert sorted(tables) == [1, 4, 7, 10]
        for look in run.routed:
            table = tables[max(s for s in tables if s <= look.step)]
            for w, layers in enumerate(look.load_WLE):
                assert layers is not None
                for layer, load in enumerate(layers):
                    holds = [w in ws for ws in table[layer]]
                    k = model.top_k if skip_token else min(model.top_k, sum(holds))
                    assert sum(x or 0 for x in load) == 2 * 8 * k
                    if not skip_token:
                        assert [x is not None for x in load] == holds
                    ghosts = sum(x or 0 for x, h in zip(load, holds, strict=True) if not h)
                    assert look.ghost_fraction_WL[w] is not None
                    assert look.ghost_fraction_WL[w][layer] == pytest.approx(ghosts / sum(x or 0 for x in load))
            assert all(sum(layer) == 4 * 8 * 2 for layer in look.agreed_load_LE)
            assert all(0 <= e <= 1 + 1e-9 for layers in look.entropy_WL for e in layers or ())
        assert run.routed[0].churn_L == [None, None]
        assert all(c is not None and 0 <= c <= 1 for look in run.routed[1:] for c in look.churn_L)
        assert run.saturated is not None
        assert run.saturated.overlap_RL[-1] == [1.0, 1.0]
        assert run.saturated.steps == [2, 4, 6, 8, 10]


def test_routers_that_do_not_move_do_not_churn() -> None:
    still = FoMoE(sync_every={"params": 3}, inner=Optimizer("SGD", 1e-300))
    run = train(recipe(2, "fixed", still))
    assert all(look.churn_L == [0.0, 0.0] for look in run.routed[1:])
    assert run.saturated is not None
    assert run.saturated.overlap_RL == [[1.0, 1.0]] * len(run.routed)
    assert all(x == 0 for look in run.routed[1:] for layer in look.divergence_LE for x in layer)


def test_divergence_is_measured_before_the_average() -> None:
    """‖copy − mean‖ / ‖mean‖ of an expert's tensors together, mean over its holders, as the last average found them."""
    trainer = Trainer(recipe(2, "fixed", steps=4, routing_every=4))
    seen: dict[str, Tensor] = {}

    def also(meeting: Meeting) -> None:
        if meeting.state == "params":
            seen.update({n: meeting.stack[n].clone() for n in meeting.stack.names()})

    trainer.comm.subscribe(also)
    (routed,) = (e for e in trainer.events() if isinstance(e, Routed))
    for layer, row in enumerate(routed.divergence_LE):
        for e, value in enumerate(row):
            names = [n for n in seen if n.startswith(f"blocks.{layer}.moe.experts.{e}.")]
            copies = torch.cat([seen[n].flatten(1) for n in names], 1)
            mean = copies.mean(0)
            assert value == pytest.approx(float(((copies - mean).norm(dim=1) / mean.norm()).mean()), rel=1e-12)


def test_an_expert_with_one_holder_has_no_divergence() -> None:
    run = train(recipe(1, "fixed"))
    assert all(x is None for look in run.routed for layer in look.divergence_LE for x in layer)


def test_saturation_is_the_share_of_final_choices() -> None:
    from lab.probes.routing import RoutingProbe

    watch = RoutingProbe.__new__(RoutingProbe)
    watch.steps, watch.choices = (
        [1, 2, 3],
        [torch.tensor(c) for c in ([[[0, 1], [2, 3]]], [[[1, 0], [2, 0]]], [[[1, 2], [2, 0]]])],
    )
    saturated = watch.saturated(3)
    assert isinstance(saturated, Saturated)
    assert saturated.overlap_RL == [[0.5], [0.75], [1.0]]


@settings(max_examples=20, deadline=None)
@given(biregular.filter(lambda m: m[0] > 1))
def test_federations_of_any_shape_can_be_planned(shape: tuple[int, int, int]) -> None:
    """Any biregular shape gives a recipe whose dry run goes through."""
    num_workers, num_experts, overlap = shape
    model = MoE(dim=8, num_layers=1, num_heads=2, num_experts=num_experts, expert_dim=4, top_k=1)
    assert dry_run(recipe(overlap, "random", model=model, num_workers=num_workers, steps=7))


def test_an_outer_step_is_the_first_for_some_and_a_later_one_for_others() -> None:
    """Nesterov by hand, where nobody who was up held a tensor when the others moved for the first time."""
    layout = Layout.of({"a": (0,), "b": (1,)}, {"a": torch.Size([2]), "b": torch.Size([2])}, lambda name: "all")
    shared = Stack(layout, [torch.zeros(1, 2, dtype=torch.float64) for _ in range(2)])
    optimizer = Nesterov(0.5, 0.9).over(shared)

    def moved(a: float, b: float) -> Stack:  # E[local − shared], minus the gradient
        return Stack(layout, [torch.full((1, 2), -x, dtype=torch.float64) for x in (a, b)])

    descend_(optimizer, moved(1.0, 0.0), [True, False])
    assert shared["a"][0].tolist() == pytest.approx([-0.5 * (1.0 + 0.9)] * 2)
    assert shared["b"][0].tolist() == [0.0, 0.0]
    descend_(optimizer, moved(2.0, 3.0), [True, True])
    momentum = 0.9 * 1.0 + 2.0
    assert shared["a"][0].tolist() == pytest.approx([-0.95 - 0.5 * (2.0 + 0.9 * momentum)] * 2)
    assert shared["b"][0].tolist() == pytest.approx([-0.5 * (3.0 + 0.9 * 3.0)] * 2)
