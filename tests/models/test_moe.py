"""A GPT with experts: the layer against hand-worked numbers and its naive form, ghosts, residents, balance, shapes."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lab.engine.fleet import Fleet
from lab.ground.errors import RecipeError
from lab.models import moe
from lab.models.gpt import rotate
from lab.models.moe import SIZES, Mix, MoE, MoEModule, chunks_of, mix_naive
from tests.support.bench import F64, close, drawn

TINY = MoE(dim=8, num_layers=2, num_heads=2, num_experts=4, top_k=2)
LN3 = math.log(3)

KINDS = [
    {"gate": "sigmoid"},
    {"gate": "softmax"},
    {"gate": "softmax", "renormalise": True},
    {"gate": "sigmoid", "balance_kind": "entropy"},
    {"gate": "softmax", "balance_kind": "entropy"},
    {"gate": "sigmoid", "balance": 0.0},
]


def tensors(num_tokens: int, c: MoE, num_held: int) -> list[Tensor]:
    """x, a router of all experts, ups, downs: leaves with gradients."""
    shapes = [(num_tokens, c.dim), (c.num_experts, c.dim)]
    shapes += [(c.width, c.dim)] * num_held + [(c.dim, c.width)] * num_held
    return [drawn(*s, purpose=("moe", i)).requires_grad_() for i, s in enumerate(shapes)]


def built(c: MoE = TINY, resident: Any = None, **more: Any) -> MoEModule:
    module = replace(c, **more).build(11, 6, 0, resident).to(F64)
    assert isinstance(module, MoEModule)
    return module


def batch(seed: str = "ids") -> tuple[Tensor, Tensor]:
    ids = (drawn(3, 7, purpose=(seed,)).abs() * 100).long() % 11
    return ids[:, :-1], ids[:, 1:]


def gradients(module: MoEModule) -> dict[str, Tensor]:
    module.zero_grad(set_to_none=False)
    module.loss(*batch()).backward()
    return {n: p.grad.clone() for n, p in module.named_parameters() if p.grad is not None}


# --- one layer -------------------------------------------------------------------------------------------------------


def test_a_step_worked_by_hand() -> None:
    """x = (1, 2); gates 3/4, 1/2, 1/4, of which the first two are chosen; SiLU(ln 3) = 3/4 · ln 3."""
    c = MoE(dim=2, num_heads=1, num_experts=3, expert_dim=1, top_k=2, balance=0)
    x = torch.tensor([[1.0, 2.0]], dtype=F64, requires_grad=True)
    router = torch.tensor([[LN3, 0], [0, 0], [-LN3, 0]], dtype=F64, requires_grad=True)
    ups = [torch.tensor([row], dtype=F64, requires_grad=True) for row in ([LN3, 0], [0, LN3 / 2], [9, 9])]
    downs = [torch.tensor([[a], [b]], dtype=F64, requires_grad=True) for a, b in ((1, 2), (-1, 0), (9, 9))]
    y, _, logits, chosen = Mix.apply(x, router, c, range(3), True, *ups, *downs)
    E = 0.75 * LN3  # what SiLU gives in both chosen experts
    assert close(y, torch.tensor([[0.75 * E - 0.5 * E, 0.75 * 2 * E]], dtype=F64))
    assert close(logits, torch.tensor([[LN3, 0, -LN3]], dtype=F64))
    assert chosen.tolist() == [[0, 1]]
    y[0, 0].backward()  # L = gate_0 · E − gate_1 · E
    assert close(downs[0].grad, torch.tensor([[0.75 * E], [0]], dtype=F64))
    assert close(downs[1].grad, torch.tensor([[0.5 * E], [0]], dtype=F64))
    slope = 0.75 * (1 + LN3 * 0.25)  # SiLU'(ln 3) = σ · (1 + ln 3 · (1 − σ)), σ = 3/4
    assert close(ups[0].grad, 0.75 * slope * torch.tensor([[1, 2]], dtype=F64))
    assert close(ups[1].grad, -0.5 * slope * torch.tensor([[1, 2]], dtype=F64))
    d0, d1 = 0.75 * 0.25 * E, -0.5 * 0.5 * E  # of the logits
    assert close(router.grad, torch.tensor([[d0, 2 * d0], [d1, 2 * d1], [0, 0]], dtype=F64))
    dx = torch.tensor([[d0 * LN3 + 0.75 * slope * LN3, -0.5 * slope * LN3 / 2]], dtype=F64)
    assert close(x.grad, dx)
    assert not ups[2].grad.any()
    assert not downs[2].grad.any()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("held", [(0, 1, 2, 3, 4), (1, 4), (2,), ()])
@pytest.mark.parametrize("chunk_bytes", [1, 700, 1 << 20])
def test_fast_is_naive(kind: dict[str, Any], held: tuple[int, ...], chunk_bytes: int, monkeypatch: Any) -> None:
    """Outputs, balance loss and all gradients, with ghosts and without, however experts share a chunk."""
    monkeypatch.setattr(moe, "CHUNK_BYTES", chunk_bytes)
    c = MoE(dim=6, num_heads=1, num_experts=5, expert_dim=3, **kind)
    leaves = tensors(17, c, len(held))
    ups, downs = leaves[2 : 2 + len(held)], leaves[2 + len(held) :]
    seen = []
    for y, balance in (
        mix_naive(leaves[0], leaves[1], c, held, True, ups, downs),
        Mix.apply(leaves[0], leaves[1], c, held, True, *ups, *downs)[:2],
    ):
        loss = (y * drawn(17, 6, purpose=("to",))).sum() + 3 * balance
        seen.append((y, balance, *torch.autograd.grad(loss, leaves, allow_unused=True)))
    for naive, fast in zip(*seen, strict=True):
        assert close(torch.zeros_like(fast) if naive is None else naive, fast, 1e-12)
    assert bool(seen[0][1]) == bool(c.balance)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("held", [(0, 1, 2, 3), (0, 2)])
def test_gradcheck(kind: dict[str, Any], held: tuple[int, ...]) -> None:
    c = MoE(dim=4, num_heads=1, num_experts=4, expert_dim=2, **{"balance": 0.5} | kind)

    def f(*leaves: Tensor) -> tuple[Tensor, Tensor]:
        return Mix.apply(leaves[0], leaves[1], c, held, True, *leaves[2:])[:2]

    if c.balance_kind == "entropy" or not c.balance:
        assert torch.autograd.gradcheck(f, tensors(5, c, len(held)))
    else:  # the load is taken as given, so the balance loss is left to the formula below
        assert torch.autograd.gradcheck(lambda *leaves: f(*leaves)[0], tensors(5, c, len(held)))


def test_experts_without_tokens() -> None:
    """Their gradients are zeros, not None, and everybody else's do not notice."""
    c = MoE(dim=4, num_heads=1, num_experts=3, expert_dim=2, top_k=1, balance=0)
    leaves = tensors(6, c, 3)
    with torch.no_grad():
        leaves[0].abs_()
        leaves[1].copy_(torch.tensor([[-1.0], [1.0], [-2.0]]).expand(3, 4))  # all tokens go to expert 1
    y = Mix.apply(leaves[0], leaves[1], c, range(3), True, *leaves[2:])[0]
    y.sum().backward()
    assert [bool(leaf.grad.any()) for leaf in leaves[2:]] == [False, True, False] * 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_other_dtypes(dtype: torch.dtype) -> None:
    c = MoE(dim=8, num_heads=1, num_experts=4, expert_dim=8, top_k=4)  # all, so that rounding changes no choice
    exact = [leaf.detach().to(dtype).to(F64).requires_grad_() for leaf in tensors(9, c, 4)]
    short = [leaf.detach().to(dtype).requires_grad_() for leaf in exact]
    seen = []
    for leaves in (exact, short):
        y, balance, _, chosen = Mix.apply(leaves[0], leaves[1], c, range(4), True, *leaves[2:])
        (y.square().sum() + balance).backward()
        seen.append((chosen.sort(1).values, y, balance, *(leaf.grad for leaf in leaves)))
    assert torch.equal(seen[0][0], seen[1][0])
    tolerance = 1e-5 if dtype == torch.float32 else 0.03
    for a, b in zip(seen[0][1:], seen[1][1:], strict=True):
        assert b.dtype == dtype
        assert float(((a - b.to(F64)).norm() / a.norm()).detach()) < tolerance


def test_softmax_and_renormalised_gates() -> None:
    """Logits ln 4, ln 3, ln 2, ln 1: gates 4/10 and 3/10, or 4/7 and 3/7 of the chosen; known experts only."""
    logits = torch.tensor([[4.0, 3, 2, 1]], dtype=F64).log()
    c = MoE(num_experts=4, gate="softmax")
    assert close(moe.gates_of(logits, c)[1], torch.tensor([[0.4, 0.3]], dtype=F64))
    assert close(moe.gates_of(logits, replace(c, renormalise=True))[1], torch.tensor([[4 / 7, 3 / 7]], dtype=F64))
    assert close(moe.gates_of(logits[:, 1:3], c)[0], torch.tensor([[0.6, 0.4]], dtype=F64))
    assert close(moe.gates_of(logits, MoE(num_experts=4))[1], torch.tensor([[4 / 5, 3 / 4]], dtype=F64))


def test_chunks_cover_every_expert_once() -> None:
    assert chunks_of([3, 3, 3, 9, 1, 0, 2], 6) == [range(2), range(2, 3), range(3, 4), range(4, 7)]
    assert chunks_of([0, 0], 6) == [range(2)]
    assert chunks_of([], 6) == []


# --- balance ---------------------------------------------------------------------------------------------------------


def balance_by_formula(c: MoE, logits: Tensor, chosen: Tensor) -> Tensor:
    """As the papers write it, token by token."""
    if c.balance_kind == "entropy":
        mean = sum(row.softmax(0) for row in logits) / len(logits)
        return c.balance * sum(m * m.log() for m in mean)
    p = torch.sigmoid(logits) if c.gate == "sigmoid" else torch.softmax(logits, 1)
    E, total = logits.shape[1], torch.zeros((), dtype=F64)
    for i in range(E):
        f_i = sum(i in row for row in chosen.tolist()) / chosen.numel()
        total = total + f_i * sum(row[i] / row.sum() for row in p) / len(p)
    return c.balance * E * total


@pytest.mark.parametrize("kind", KINDS[:5])
def test_balance_by_formula(kind: dict[str, Any]) -> None:
    """Value and gradient; from logits of an even routing the load form gives exactly the coefficient."""
    c = MoE(dim=6, num_heads=1, num_experts=5, expert_dim=3, balance=0.3, **kind)
    leaves = tensors(7, c, 5)
    _, balance, logits, chosen = Mix.apply(leaves[0], leaves[1], c, range(5), True, *leaves[2:])
    assert close(logits, leaves[0] @ leaves[1].T, 1e-12)
    expected = balance_by_formula(c, leaves[0] @ leaves[1].T, chosen)
    assert close(balance, expected, 1e-12)
    for a, b in zip(torch.autograd.grad(balance, leaves[:2]), torch.autograd.grad(expected, leaves[:2]), strict=True):
        assert a.any()
        assert close(a, b, 1e-12)
    one = torch.eye(6, dtype=F64)  # each token to an expert of its own
    even = Mix.apply(one, one, replace(c, num_experts=6, top_k=1), (), True)[1]
    assert close(even, torch.tensor(0.3 if c.balance_kind == "load" else -0.3 * math.log(6), dtype=F64), 1e-12)


@pytest.mark.parametrize("num_layers", [1, 3])
@pytest.mark.parametrize("top_k", [1, 2])
def test_the_balance_of_hugging_face(num_layers: int, top_k: int) -> None:
    """``balance = c · top_k / num_layers``: for one layer, and for any number of layers alike, theirs to rounding."""
    from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

    coefficient = 0.02
    c = MoE(dim=6, num_heads=1, num_experts=5, expert_dim=3, gate="softmax", top_k=top_k)
    c = replace(c, balance=coefficient * top_k / num_layers)
    x, router, *experts = tensors(40, c, 5)
    _, balance, logits, _ = Mix.apply(x, router, c, range(5), True, *experts)
    theirs = coefficient * load_balancing_loss_func((logits,) * num_layers, 5, top_k)
    assert float((num_layers * balance).detach()) == pytest.approx(float(theirs), rel=1e-6)  # they count in float32


def test_loss_is_cross_entropy_and_its_gradient_has_the_balance() -> None:
    """Training and eval report the same value, bit for bit; gradients differ by the gradient of the balance loss."""
    module = built(balance=0.7)
    ids, targets = batch()
    loss = module.loss(ids, targets)
    assert float(loss.detach()) == float(F.cross_entropy(module(ids).flatten(0, 1), targets.flatten()).detach())
    training = gradients(module)
    module.zero_grad(set_to_none=False)
    module.run(ids)[1].backward()
    of_balance = {n: p.grad.clone() for n, p in module.named_parameters()}
    module.eval()
    assert float(module.loss(ids, targets).detach()) == float(loss.detach())
    evaluated = gradients(module)
    for name, g in training.items():
        assert close(g, evaluated[name] + of_balance[name], 1e-12)
    assert all(of_balance[f"blocks.{i}.moe.experts.{e}.router"].any() for i in range(2) for e in range(4))
    for name, g in gradients(built(balance=0.0)).items():
        assert torch.equal(g, evaluated[name])


@pytest.mark.parametrize(("kind", "evenly"), [("load", 1.1), ("entropy", 1.4)])
def test_balance_evens_out_the_load(kind: Any, evenly: float) -> None:
    """Steps on the balance loss alone move choices away from the busiest expert."""
    c = MoE(dim=16, num_heads=1, num_experts=8, expert_dim=2, balance=1.0, balance_kind=kind)
    x, router, *_ = tensors(400, c, 0)
    with torch.no_grad():
        x += 0.5
        router[0] += 0.2
    busiest = []
    for _ in range(40):
        _, balance, _, chosen = Mix.apply(x.detach(), router, c, (), True)
        busiest.append(int(torch.bincount(chosen.flatten(), minlength=8).max()) / 100)  # 800 choices of 8 experts
        with torch.no_grad():
            router -= 20 * torch.autograd.grad(balance, router)[0]
    assert busiest[0] > 2
    assert busiest[-1] < evenly


# --- who holds what --------------------------------------------------------------------------------------------------


def as_whole_router(partitioned: MoEModule) -> MoEModule:
    """The same values under mode B's names."""
    module = built(skip_token=True)
    values = dict(partitioned.named_parameters())
    with torch.no_grad():
        for name, p in module.named_parameters():
            columns = [f"{name.removesuffix('router')}experts.{e}.router" for e in range(4)]
            p.copy_(torch.stack([values[n] for n in columns]) if name.endswith("moe.router") else values[name])
    return module


def test_whole_and_partitioned_router_agree_when_all_experts_are_here() -> None:
    a, ids = built(), batch()[0]
    with torch.no_grad():
        for name, p in a.named_parameters():
            p += 0.1 * drawn(*p.shape, purpose=(name,))
    b = as_whole_router(a)
    assert torch.equal(a(ids), b(ids))
    of_a, of_b = gradients(a), gradients(b)
    for i in range(2):
        columns = [of_a.pop(f"blocks.{i}.moe.experts.{e}.router") for e in range(4)]
        assert torch.equal(torch.stack(columns), of_b.pop(f"blocks.{i}.moe.router"))
    assert of_a.keys() == of_b.keys()
    for name, g in of_a.items():
        assert torch.equal(g, of_b[name])


def test_both_routers_start_as_the_same_function() -> None:
    a, b = built(), built(skip_token=True)
    assert torch.equal(a(batch()[0]), b(batch()[0]))


def test_ghosts_take_no_part() -> None:
    """Mode B: choices are those of the whole router; what ghosts would have added is missing, and they learn nothing."""
    c = replace(TINY, skip_token=True)
    whole, part = built(c), built(c, [[1, 3]] * 2)
    ids = batch()[0]
    whole(ids)
    part(ids)
    first, same = whole.routing()[0], part.routing()[0]
    assert torch.equal(first.selected, same.selected)
    assert (same.known, same.resident) == ((0, 1, 2, 3), (1, 3))

    x = drawn(18, 8, purpose=("x",))
    layer, values = part.blocks[0].moe, dict(whole.named_parameters())
    y = layer(x.view(3, 6, 8))[0].view(18, 8)
    chosen = layer.routing().selected
    for n in range(18):
        by_hand = torch.zeros(8, dtype=F64)
        for e in set(chosen[n].tolist()) & {1, 3}:
            up, down = (values[f"blocks.0.moe.experts.{e}.{w}"] for w in ("up", "down"))
            gate = torch.sigmoid(x[n] @ values["blocks.0.moe.router"][e])
            by_hand = by_hand + gate * (down @ F.silu(up @ x[n]))
        assert close(y[n], by_hand, 1e-12)

    main = gradients(part.eval())
    trained = gradients(part.train())
    for i in range(2):
        rows = main[f"blocks.{i}.moe.router"].any(1).tolist()
        assert rows == [False, True, False, True]
        assert trained[f"blocks.{i}.moe.router"].any(1).all()  # the balance loss reaches them


def test_a_token_with_ghosts_alone_keeps_its_residual_stream() -> None:
    """Exactly, and with finite gradients, although a LayerNorm follows; so does a layer without any expert."""
    c = replace(TINY, skip_token=True, top_k=1)
    block = built(c, [[2], [2]]).blocks[0]
    x = drawn(3, 6, 8, purpose=("x",)).requires_grad_()
    cos = sin = torch.ones(6, 2, dtype=F64)
    after = block(x, cos, sin)[0]
    before = x + block.attention_out_norm(block.attention(block.attention_norm(x), cos, sin))
    alone = (block.moe.routing().selected != 2).all(1).view(3, 6)
    assert 0 < int(alone.sum()) < 18
    assert torch.equal((after == before).all(-1), alone)
    after.square().sum().backward()
    assert all(p.grad.isfinite().all() for p in [x, *block.parameters()])

    empty = built(c, [[], []])
    assert not any("experts" in name for name, _ in empty.named_parameters())
    y, _ = empty.blocks[0].moe(x)
    assert torch.equal(y, torch.zeros_like(x))
    grads = gradients(empty)
    assert all(g.isfinite().all() for g in grads.values())
    assert grads["embedding"].any()


def test_fewer_residents_than_choices() -> None:
    """Mode A: k' = min(k, N_le), and ids are global."""
    module = built(num_experts=6, expert_dim=4, top_k=3, resident=[[5, 2], [0, 1, 3, 4]])
    assert module.routing() == []
    module(batch()[0])
    first, second = module.routing()
    assert first.selected.shape == (18, 2)
    assert set(first.selected.flatten().tolist()) == {2, 5}
    assert (first.known, first.resident) == ((2, 5), (2, 5))
    assert second.selected.shape == (18, 3)
    assert set(second.selected.flatten().tolist()) <= {0, 1, 3, 4}
    assert first.selected.dtype == torch.int64
    assert not first.mean_gate.requires_grad
    for routing, layer in zip((first, second), module.blocks, strict=True):
        logits = layer.moe.last[0]
        assert close(routing.mean_gate, torch.sigmoid(logits).mean(0), 1e-12)
        best = torch.tensor(routing.known)[logits.argmax(1)]
        assert torch.equal(routing.selected[:, 0], best)


@pytest.mark.parametrize("skip_token", [False, True])
def test_a_module_has_the_tensors_of_its_experts_alone(skip_token: bool) -> None:
    held = [[0, 3], [1]]
    module = built(skip_token=skip_token, num_shared_experts=2, resident=held)
    names = dict(module.named_parameters())
    norms = ("attention_norm", "attention_out_norm", "moe_norm", "moe_out_norm")
    expected = {"embedding", "embedding_norm.weight", "norm.weight"}
    for i, ids in enumerate(held):
        expected |= {f"blocks.{i}.{n}.weight" for n in norms}
        expected |= {f"blocks.{i}.attention.{n}.weight" for n in ("qkv", "out")}
        expected |= {f"blocks.{i}.moe.shared.{n}" for n in ("up", "down")}
        expected |= {f"blocks.{i}.moe.router"} if skip_token else set()
        parts = ("up", "down") if skip_token else ("up", "down", "router")
        expected |= {f"blocks.{i}.moe.experts.{e}.{n}" for e in ids for n in parts}
    assert set(names) == expected
    D, width = 8, 8
    dense = 11 * D + 2 * D + 2 * (4 * D * D + 4 * D + 2 * 2 * width * D + (4 * D if skip_token else 0))
    assert sum(p.numel() for p in names.values()) == dense + 3 * (2 * D * width + (0 if skip_token else D))
    groups = {
        "embedding": "embedding",
        "embedding_norm.weight": "norm",
        "blocks.1.moe_out_norm.weight": "norm",
        "blocks.1.attention.qkv.weight": "attention",
        "blocks.0.moe.shared.up": "shared",
        "blocks.0.moe.experts.3.down": "experts",
        "blocks.0.moe.experts.3.router": "experts",
        "blocks.0.moe.router": "router",
    }
    assert {n: MoEModule.tensor_group(n) for n in groups} == groups
    assert MoEModule.tensor_unit("blocks.3.moe.experts.17.up") == "3.17"
    for name in names:
        part_of_expert = ".experts." in name
        assert (MoEModule.tensor_unit(name) is not None) == part_of_expert


@pytest.mark.parametrize("skip_token", [False, True])
def test_initial_values_depend_on_seed_and_name_alone(skip_token: bool) -> None:
    whole, part = (dict(built(skip_token=skip_token, resident=r).named_parameters()) for r in (None, [[1], [0, 2]]))
    assert len(part) < len(whole)
    for name, p in part.items():
        assert torch.equal(p, whole[name])
    other = dict(replace(TINY, skip_token=skip_token).build(11, 6, 1).named_parameters())
    for name, p in other.items():
        assert torch.equal(p.to(F64), whole[name]) == ("norm" in name)


def test_initial_scales() -> None:
    """Gates near one half, and expert outputs far above the epsilon of the LayerNorm behind them."""
    module = SIZES["moe-nano"].build(64, 32)
    module(torch.arange(64).view(2, 32))
    for routing in module.routing():
        assert (routing.mean_gate - 0.5).abs().max() < 0.05
        assert len(routing.selected.unique()) == 8
    x = F.layer_norm(torch.randn(64, 64, generator=torch.Generator().manual_seed(0)), (64,))
    y = module.blocks[0].moe(x.view(2, 32, 64))[0]
    assert float(y.detach().var(-1).min()) > 1e-3


# --- the model -------------------------------------------------------------------------------------------------------


def test_model_by_formula() -> None:
    """x + m · LN(F(LN(x))) for both branches, m = depth_base / layers; LN after the embedding and before the tied logits."""
    module = built(depth_base=3, num_shared_experts=1)
    v = {n: p + 0.1 * drawn(*p.shape, purpose=(n,)) for n, p in module.named_parameters()}
    ids = batch()[0]

    def norm(x: Tensor, name: str) -> Tensor:
        x = x - x.mean(-1, keepdim=True)
        return x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt() * v[f"{name}.weight"]

    def attention(x: Tensor, name: str) -> Tensor:
        q, k, values = (x @ v[f"{name}.qkv.weight"].T).view(3, 6, 3, 2, 4).permute(2, 0, 3, 1, 4)
        angle = torch.arange(6)[:, None] * 10_000.0 ** (-torch.arange(2) / 2)
        q, k = (rotate(t, angle.cos().to(F64), angle.sin().to(F64)) for t in (q, k))
        scores = (q @ k.transpose(-1, -2) / 2).masked_fill(torch.ones(6, 6).triu(1).bool(), -torch.inf)
        return (scores.softmax(-1) @ values).transpose(1, 2).reshape(3, 6, 8) @ v[f"{name}.out.weight"].T

    def experts(x: Tensor, name: str) -> Tensor:
        def one(part: str) -> Tensor:
            return F.silu(x @ v[f"{name}.{part}.up"].T) @ v[f"{name}.{part}.down"].T

        p = torch.stack([torch.sigmoid(x @ v[f"{name}.experts.{e}.router"]) for e in range(4)], -1)
        p = p * (p >= p.sort(descending=True).values[..., 1:2])  # the two largest
        return one("shared") + sum(p[..., e : e + 1] * one(f"experts.{e}") for e in range(4))

    x = norm(v["embedding"][ids], "embedding_norm")
    for i in range(2):
        b = f"blocks.{i}."
        x = x + 1.5 * norm(attention(norm(x, b + "attention_norm"), b + "attention"), b + "attention_out_norm")
        x = x + 1.5 * norm(experts(norm(x, b + "moe_norm"), b + "moe"), b + "moe_out_norm")
    expected = norm(x, "norm") @ v["embedding"].T
    with torch.no_grad():
        for name, p in module.named_parameters():
            p.copy_(v[name])
    assert close(module(ids), expected, 1e-6)  # cosines are kept in float32


def test_paper_sizes() -> None:
    """The table's parameters, on meta: embedding, 4d² of attention, 8d² of experts and a router of N_e·d a layer, norms."""
    said = {"fomoe-54M": 54.4e6, "fomoe-153M": 153e6, "fomoe-1.8B": 1.82e9, "fomoe-13B": 13.3e9, "fomoe-104B": 104e9}
    for name, about in said.items():
        c = SIZES[name]
        assert c.width * c.num_experts == 4 * c.dim
        assert (c.num_heads * 64, c.top_k * 4) == (c.dim, c.num_experts)
        with torch.device("meta"):
            module = c.build(256, 2048)
        count = sum(p.numel() for p in module.parameters())
        layer = 12 * c.dim**2 + c.num_experts * c.dim + 4 * c.dim
        assert count == c.dim * (200_019 + 2) + c.num_layers * layer
        assert count == pytest.approx(about, rel=0.005)
    assert sum(p.numel() for p in SIZES["moe-nano"].build(256, 64).parameters()) == 116_352


def test_workers_of_a_fleet() -> None:
    """Gradients pile up in the views of the stacks, for each worker those of a plain module; threads change nothing."""
    held = [None, [[0, 1], [2]], [[1, 2, 3], [2, 3]]]

    def build(worker: int | None) -> MoEModule:
        module = TINY.build(11, 6, 0, None if worker is None else held[worker])
        assert isinstance(module, MoEModule)
        return module

    fleets = [Fleet(build, 3, dtype=F64, threads=threads) for threads in (1, 2)]
    for fleet in fleets:
        for _ in range(3):
            loss_W = fleet.backward(lambda module, w: module.loss(*batch(f"worker {w}")))
    for w in range(3):
        plain = build(w).to(F64)
        loss = plain.loss(*batch(f"worker {w}"))
        loss.backward()
        assert float(loss_W[w]) == pytest.approx(float(loss.detach()), rel=1e-6)  # a fleet keeps cosines in float64
        for name, p in plain.named_parameters():
            assert close(fleets[0].grads.cell(name, w), p.grad, 1e-6)
            assert torch.equal(fleets[0].grads.cell(name, w), fleets[1].grads.cell(name, w))
            assert dict(fleets[1].modules[w].named_parameters())[name].grad.data_ptr() == (
                fleets[1].grads.cell(name, w).data_ptr()
            )
    for fleet in fleets:
        fleet.close()


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"top_k": 9}, "top_k = 9"),
        ({"dim": 36, "num_heads": 4}, "num_heads = 4 does not fit"),
        ({"renormalise": True}, "gate=softmax"),
        ({"num_experts": 300, "top_k": 1}, "leaves nothing of 4·dim = 256"),
    ],
)
def test_what_does_not_fit_together(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        MoE(**fields)


@pytest.mark.parametrize(
    ("resident", "said"),
    [
        ([[0]], "names experts of 1 layers"),
        ([[0], [4]], r"resident\[1\] = \[4\] is not allowed: use distinct ids from 0 to 3"),
        ([[0, 0], [1]], r"resident\[0\] = \[0, 0\]"),
        ([[0], []], r"resident\[1\] is empty"),
    ],
)
def test_residents_that_cannot_be(resident: list[list[int]], said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        TINY.build(11, 6, 0, resident)
