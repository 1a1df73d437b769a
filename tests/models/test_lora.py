"""Adapters: equal to peft's, nested by prefix, absent where a client does not reach, exported and read back."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lab.ground.errors import RecipeError
from lab.models.gpt import GPT
from lab.models.lora import LoRA, LoRALinear, adapt_, adapters, cut_to, prefix_losses, weighted
from tests.support.bench import F64, drawn

SMALL = GPT(dim=8, num_layers=2, num_heads=2)


def gpt(lora: LoRA, rank: int | None = None, seed: int = 0) -> Any:
    """A tiny GPT in float64 with adapters whose B is not zero."""
    model: Any = SMALL.build(11, 6, 0).double()
    adapt_(model, lora, rank or lora.bounds[-1], seed)
    fill_(model)
    return model.double()


@torch.no_grad()
def fill_(model: nn.Module) -> None:
    for path, adapter in adapters(model).items():
        for m, B in enumerate(adapter.lora_B):
            B.copy_(drawn(*B.shape, purpose=("B", path, m)))


IDS = torch.randint(11, (3, 6), generator=torch.Generator().manual_seed(0))
TARGETS = torch.randint(11, (3, 6), generator=torch.Generator().manual_seed(1))
BOTH = LoRA(ranks=(1, 2, 4), targets=("attention.qkv", "mlp.0"))


def test_the_formula_written_out() -> None:
    """y = W·x + b + s·B·A·x with A and B put together from their segments."""
    with torch.random.fork_rng():
        base = nn.Linear(5, 3).double()
    model = nn.Sequential(copy.deepcopy(base))
    adapt_(model, LoRA(ranks=(1, 3), targets=("0",), scale=0.7), 3)
    adapter: Any = model[0]
    adapter.double()
    fill_(model)
    assert [tuple(p.shape) for p in adapter.lora_A] == [(1, 5), (2, 5)]
    assert [tuple(p.shape) for p in adapter.lora_B] == [(3, 1), (3, 2)]
    A, B = torch.cat(list(adapter.lora_A)), torch.cat(list(adapter.lora_B), 1)
    x = drawn(4, 5, purpose="x")
    assert torch.allclose(model(x), base(x) + 0.7 * x @ A.T @ B.T, rtol=1e-13, atol=1e-13)
    assert {n for n, p in model.named_parameters() if not p.requires_grad} == {"0.weight", "0.bias"}


def test_equals_peft() -> None:
    """The same factors in ``peft``'s LoRA give the same output, and the same gradients."""
    peft = pytest.importorskip("peft", reason="needs the extra hf: pip install 'isthmus[hf]'")
    mine = gpt(LoRA(ranks=(2, 4), scale=0.5))
    theirs: Any = SMALL.build(11, 6, 0).double()
    config = peft.LoraConfig(r=4, lora_alpha=2, target_modules=["qkv"], lora_dropout=0.0)
    with torch.random.fork_rng():
        theirs = peft.inject_adapter_in_model(config, theirs).double()
    for path, adapter in adapters(mine).items():
        A, B = adapter.factors()
        other = theirs.get_submodule(path)
        with torch.no_grad():
            other.lora_A["default"].weight.copy_(A)
            other.lora_B["default"].weight.copy_(B)
    assert torch.allclose(mine(IDS), theirs(IDS), rtol=1e-13, atol=1e-13)
    mine.loss(IDS, TARGETS).backward()
    theirs.loss(IDS, TARGETS).backward()
    for path, adapter in adapters(mine).items():
        grads = torch.cat([p.grad for p in adapter.lora_A])
        assert torch.allclose(grads, theirs.get_submodule(path).lora_A["default"].weight.grad, atol=1e-14)


def test_adapters_that_are_zero_change_nothing() -> None:
    plain: Any = SMALL.build(11, 6, 0)
    adapted: Any = adapt_(SMALL.build(11, 6, 0), BOTH, 4)
    assert torch.equal(plain(IDS), adapted(IDS))
    assert not any(torch.equal(a.lora_A[0], torch.zeros_like(a.lora_A[0])) for a in adapters(adapted).values())


def test_a_client_of_low_rank_has_tensors_of_low_rank_only() -> None:
    """And what it has, begins as the prefix of what the largest client has."""
    large, small = adapt_(SMALL.build(11, 6, 0), BOTH, 4, seed=3), adapt_(SMALL.build(11, 6, 0), BOTH, 2, seed=3)
    for path, adapter in adapters(small).items():
        assert [len(A) for A in adapter.lora_A] == [1, 1]
        A, _ = adapter.factors()
        assert torch.equal(A, adapters(large)[path].factors()[0][:2])
    trained = sum(p.numel() for p in small.parameters() if p.requires_grad)
    assert trained == sum(2 * (a.weight.shape[0] + a.weight.shape[1]) for a in adapters(small).values())


@pytest.mark.parametrize("init", ["kaiming", "gaussian"])
def test_first_values_do_not_hang_on_the_other_ranks(init: Any) -> None:
    """Rank index 0 … 3 of A is the same whether the largest rank is 4 or 8, and has the variance that it should have."""
    few = adapt_(SMALL.build(11, 6, 0), LoRA(ranks=(4,), init=init), 4)
    many = adapt_(SMALL.build(11, 6, 0), LoRA(ranks=(3, 8), init=init), 8)
    for path, adapter in adapters(few).items():
        A = adapters(many)[path].factors()[0]
        assert torch.equal(adapter.factors()[0], A[:4])
        assert float(A.detach().var()) == pytest.approx(
            1 / 8 / (3 if init == "kaiming" else 1), rel=0.25
        )  # uniform: bound²/3


def test_a_cut_is_the_smaller_adapter() -> None:
    """Cut to rank r, an adapter is the one that has only the first r rank indices, also between segments."""
    model = gpt(BOTH)
    for rank in (1, 2, 3, 4):
        small: Any = SMALL.build(11, 6, 0).double()
        adapt_(small, LoRA(ranks=(rank,), targets=BOTH.targets), rank).double()
        for path, adapter in adapters(small).items():
            A, B = adapters(model)[path].factors(rank)
            with torch.no_grad():
                adapter.lora_A[0].copy_(A)
                adapter.lora_B[0].copy_(B)
        with cut_to(model, rank):
            assert torch.allclose(model(IDS), small(IDS), rtol=1e-13, atol=1e-13)
    assert not torch.equal(model(IDS), small(IDS)[:0])
    with pytest.raises(RecipeError, match="rank 5"), cut_to(model, 5):
        pass


def naive(model: Any, ranks: list[int]) -> Tensor:
    """One pass for each truncation."""
    out = []
    for rank in ranks:
        with cut_to(model, rank):
            out.append(model.loss(IDS, TARGETS))
    return torch.stack(out)


@pytest.mark.parametrize("ranks", [[1, 2, 4], [4], [2, 3]])
def test_one_pass_over_copies_is_one_pass_each(ranks: list[int]) -> None:
    """Losses and gradients of all prefixes at once are those of the naive loop."""
    model = gpt(BOTH)
    weights = torch.tensor([0.2, 0.3, 0.5][: len(ranks)], dtype=F64)
    grads = []
    for losses in (prefix_losses(model, IDS, TARGETS, ranks), naive(model, ranks)):
        model.zero_grad()
        (losses * weights).sum().backward()
        grads.append([losses.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)])
    for a, b in zip(*grads, strict=True):
        assert torch.allclose(a, b, rtol=1e-12, atol=1e-14)


def test_what_copies_share_is_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first product with W₀ has the rows of one copy, later ones those of all."""
    model, rows = gpt(LoRA(ranks=(1, 2, 4))), []
    linear = torch.nn.functional.linear

    def counted(x: Tensor, w: Tensor, *rest: Any) -> Tensor:
        if w.shape == (24, 8):
            rows.append(len(x))
        return linear(x, w, *rest)

    monkeypatch.setattr("lab.models.lora.F.linear", counted)
    prefix_losses(model, IDS, TARGETS, [1, 2, 4])
    assert rows == [3, 9]


def test_targets_that_do_not_count() -> None:
    """Ignored targets leave every prefix's mean over the others."""
    model, some = gpt(BOTH), TARGETS.clone()
    some[:, :4] = -100
    with cut_to(model, 2):
        logits = model(IDS)
    hand = -logits.log_softmax(-1).gather(2, TARGETS[..., None])[:, 4:].mean()
    assert torch.allclose(prefix_losses(model, IDS, some, [1, 2])[1], hand, rtol=1e-12)


def test_weights_of_rank_indices() -> None:
    """y = W·x + s·B·diag(P)·A·x."""
    model = gpt(LoRA(ranks=(1, 3), targets=("attention.qkv",)))
    P = torch.tensor([1.0, 0.5, 0.25], dtype=F64)
    with weighted(model, P):
        got = model(IDS)
    for adapter in adapters(model).values():
        with torch.no_grad():
            for B, w in zip(adapter.lora_B, P.split([1, 2]), strict=True):
                B.mul_(w)
    assert torch.allclose(got, model(IDS), rtol=1e-12, atol=1e-13)


def test_only_B_is_trained_if_so_wanted() -> None:
    model = adapt_(SMALL.build(11, 6, 0), LoRA(ranks=(2,), train="B"), 2)
    assert {n.rsplit(".", 2)[1] for n, p in model.named_parameters() if p.requires_grad} == {"lora_B"}


def test_names_that_fit_nothing() -> None:
    with pytest.raises(RecipeError, match=r"attention\.qky.*attention\.qkv"):
        adapt_(SMALL.build(11, 6, 0), LoRA(ranks=(2,), targets=("attention.qky",)), 2)
    with pytest.raises(RecipeError, match="3 numbers for 4 workers"):
        LoRA(ranks=(1, 2, 3)).ranks_W(4)
    assert LoRA(ranks=(3,)).ranks_W(4) == (3, 3, 3, 3)


def test_groups_name_the_ranks() -> None:
    model: Any = adapt_(SMALL.build(11, 6, 0), BOTH, 4)
    groups = {model.tensor_group(n) for n, _ in model.named_parameters()}
    assert {"ranks 1-1", "ranks 2-2", "ranks 3-4"} <= groups
    assert isinstance(model.get_submodule("blocks.0.attention.qkv"), LoRALinear)
