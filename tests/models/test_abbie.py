"""AbbIE: a plain GPT where one goes through it once, its recursion by hand, causal, cached, and bounded or not."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import lab
from lab.ground.errors import RecipeError
from lab.models.abbie import AbbIE, AbbIEModule, Past
from lab.models.gpt import GPTModule
from lab.models.shape import Shape
from lab.runs.plan import plan

SHAPE = Shape(vocab_size=11, context=16)
FORMS: list[dict[str, Any]] = [{"form": "D"}, {"form": "D", "skip": "between"}, {"form": "C"}, {"form": "0pt"}]
IDS = torch.randint(11, (2, 9), generator=torch.Generator().manual_seed(0))


def made(dtype: torch.dtype = torch.float64, large: bool = False, **options: Any) -> AbbIEModule:
    """Small; ``large``: with blocks that add as much as there is."""
    module = AbbIE(dim=16, num_heads=2, **options).module(SHAPE, 3).to(dtype)
    assert isinstance(module, AbbIEModule)
    if large:
        with torch.no_grad():
            for p in module.blocks.parameters():
                if p.dim() == 2:
                    p.mul_(8)
    return module


def by_hand(m: AbbIEModule, ids: Tensor, r: int) -> Tensor:
    """The recursion as it is written, with numbers that grow."""
    c, T = m.shape, ids.shape[1]
    cos, sin = m.cos[:T], m.sin[:T]
    h = m.embedding[ids]
    head, body, tail = m.blocks[: c.head], m.blocks[c.head : c.head + c.body], m.blocks[c.head + c.body :]
    for block in head:
        h = block(h, cos, sin)
    first, h = h, torch.zeros_like(h) if c.form == "0pt" else h
    for k in range(r):
        before = h
        if c.form == "0pt":
            h = torch.cat((h, first), -1) @ m.inject.weight.T
        for block in body:
            h = block(h, cos, sin)
        if c.form == "D" and (c.skip == "all" or k > 0):
            h = h + before
    for block in tail:
        h = block(h, cos, sin)
    return m.norm(h) @ m.embedding.T  # type: ignore[no-any-return]


@pytest.mark.parametrize("options", FORMS)
@pytest.mark.parametrize("r", [1, 2, 3, 7])
def test_the_recursion_by_hand(options: dict[str, Any], r: int) -> None:
    module = made(large=True, **options)
    module.iterations = r
    torch.testing.assert_close(module(IDS), by_hand(module, IDS, r), rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("options", FORMS[:3])
def test_it_has_the_parameters_of_the_plain_model(options: dict[str, Any]) -> None:
    module = made(**options)
    plain = AbbIE(dim=16, num_heads=2).plain.module(SHAPE, 3).double()
    mine, theirs = dict(module.named_parameters()), dict(plain.named_parameters())
    assert list(mine) == list(theirs)
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)


@pytest.mark.parametrize("options", FORMS[1:3])
def test_one_iteration_is_the_plain_model_bit_for_bit(options: dict[str, Any]) -> None:
    module = made(torch.float32, **options)
    module.iterations = 1
    plain = AbbIE(dim=16, num_heads=2).plain.module(SHAPE, 3)
    assert isinstance(plain, GPTModule)
    assert torch.equal(module(IDS), plain(IDS))


def test_units_change_no_bit_and_keep_numbers_small() -> None:
    """In float32 the same as numbers that grow, to the last bit; in float16 finite where those are not."""
    module = made(torch.float32, large=True)
    module.iterations = 12
    with torch.no_grad():
        *_, (h, unit) = module.states(IDS)
        assert unit == 2.0**-12
        grown = by_states(module, IDS, 12)
        assert torch.equal(h / unit, grown)
        assert h.abs().max() < 10 * module.embedding.abs().max() * 8
        half = made(torch.float16, large=True)
        half.iterations = 24
        assert half(IDS).isfinite().all()
        assert not by_states(half, IDS, 24).isfinite().all()


def by_states(m: AbbIEModule, ids: Tensor, r: int) -> Tensor:
    """The last state of D, numbers as they grow."""
    cos, sin, h = m.cos[: ids.shape[1]], m.sin[: ids.shape[1]], m.embedding[ids]
    h = m.blocks[0](h, cos, sin)
    for _ in range(r):
        h = m.blocks[2](m.blocks[1](h, cos, sin), cos, sin) + h
    return h  # type: ignore[no-any-return]


@pytest.mark.parametrize("options", FORMS)
@pytest.mark.parametrize("r", [1, 2, 5])
def test_no_token_sees_a_later_one(options: dict[str, Any], r: int) -> None:
    module = made(large=True, **options)
    module.iterations = r
    other = IDS.clone()
    other[:, 5] = (other[:, 5] + 1) % 11
    before, after = module(IDS), module(other)
    assert torch.equal(before[:, :5], after[:, :5])
    assert not torch.equal(before[:, 5], after[:, 5])


def test_gradients_come_from_every_iteration() -> None:
    """The gradient of a body that two iterations share is the sum of those of two bodies with the same values."""
    module, names = made(large=True), ("blocks.1", "blocks.2")
    apart = AbbIE(dim=16, num_heads=2).deeper.module(SHAPE, 3).double()
    assert isinstance(apart, GPTModule)
    source = dict(module.named_parameters())
    with torch.no_grad():
        for name, p in apart.named_parameters():
            i = int(name.split(".")[1]) if name.startswith("blocks") else -1
            to = {0: 0, 1: 1, 2: 2, 3: 1, 4: 2, 5: 3}.get(i)
            p.copy_(source[name if to is None else name.replace(f"blocks.{i}", f"blocks.{to}")])
    T = IDS.shape[1]
    h = apart.blocks[0](apart.embedding[IDS], apart.cos[:T], apart.sin[:T])
    for first, second in ((1, 2), (3, 4)):
        h = apart.blocks[second](apart.blocks[first](h, apart.cos[:T], apart.sin[:T]), apart.cos[:T], apart.sin[:T]) + h
    logits = apart.norm(apart.blocks[5](h, apart.cos[:T], apart.sin[:T])) @ apart.embedding.T
    apart.criterion(logits[:, :-1], IDS[:, 1:]).backward()
    module.criterion(module(IDS)[:, :-1], IDS[:, 1:]).backward()
    theirs = {n: p.grad for n, p in apart.named_parameters()}
    for name in names:
        for rest in ("attention.qkv.weight", "mlp.2.weight"):
            twin = name.replace("1", "3") if "1" in name else name.replace("2", "4")
            both = [theirs[f"{n}.{rest}"] for n in (name, twin)]
            assert all(g is not None and g.abs().max() > 0 for g in both)
            torch.testing.assert_close(source[f"{name}.{rest}"].grad, both[0] + both[1])  # type: ignore[operator]


@pytest.mark.parametrize("options", FORMS)
@pytest.mark.parametrize("r", [1, 2, 4])
def test_what_is_cached_is_what_is_computed_anew(options: dict[str, Any], r: int) -> None:
    module, past = made(large=True, **options), Past()
    module.iterations = r
    with torch.no_grad():
        parts = [module.continue_(IDS[:, at : at + n], past) for at, n in ((0, 4), (4, 1), (5, 3), (8, 1))]
        torch.testing.assert_close(torch.cat(parts, 1), module(IDS))
        want = IDS
        for _ in range(5):
            want = torch.cat((want, module(want)[:, -1:].argmax(-1)), 1)
    assert torch.equal(module.generate(IDS, 5), want[:, 9:])


def changes(module: AbbIEModule, r: int) -> list[float]:
    """How far the direction of the state moves in each iteration."""
    module.iterations = r
    with torch.no_grad():
        unit = [h / h.norm(dim=-1, keepdim=True) for h, _ in module.states(IDS)]
    return [float((b - a).norm(dim=-1).mean()) for a, b in zip(unit[:-1], unit[1:], strict=True)]


def test_the_state_of_D_settles_and_that_of_C_does_not() -> None:
    """Its change halves with each iteration of D. Of C it falls as 1/k at most: after 16 it is still a tenth of the first."""
    settling, wandering = changes(made(large=True), 16), changes(made(large=True, form="C"), 16)
    assert all(0.3 < b / a < 0.7 for a, b in zip(settling[4:], settling[5:], strict=False))
    assert settling[15] < 1e-3 * settling[0]
    assert wandering[15] > 0.02 * wandering[0]


def test_bad_options_are_refused_in_one_line() -> None:
    for options, says in (
        ({"form": "C", "skip": "between"}, "is of form D"),
        ({"looks": [2, 1]}, "must rise"),
        ({"iterations": 0}, "greater than or equal to 1"),
        ({"dim": 15}, "even multiple of num_heads"),
    ):
        with pytest.raises(RecipeError, match=says):
            lab.Recipe.of("diloco").but(model={"name": "abbie", **options})


def test_a_plan_counts_what_is_computed_twice() -> None:
    """As much computing as a deeper GPT, but for its parameters, which it does not have."""
    found = {}
    for name, model in (
        ("abbie", AbbIE()),
        ("plain", AbbIE().plain),
        ("deeper", AbbIE().deeper),
    ):
        found[name] = plan(lab.Recipe.of("diloco").but(model=model))
    assert found["abbie"].num_params == found["plain"].num_params < found["deeper"].num_params
    assert found["abbie"].seconds_per_step == pytest.approx(found["deeper"].seconds_per_step)
