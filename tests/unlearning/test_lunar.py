"""LUNAR on small models in float64: where it looks, what it fits, and that nothing else changes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from lab.ground.seeds import generator
from lab.models.gpt import GPT
from lab.systems.unlearning.lunar import (
    FITS,
    Lunar,
    Request,
    Score,
    Search,
    best,
    closed,
    layer_scores,
    training_rows,
    undo_,
    unlearn_,
    unlearning_vectors,
)
from lab.systems.unlearning.places import Places
from tests.support.forgetting import MODELS, D, P, V, gpt, prompts, request
from tests.support.texts import fails


@pytest.mark.parametrize("name", MODELS)
def test_exactly_one_matrix_changes(name: str) -> None:
    model = MODELS[name]()
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    (edit,) = unlearn_(model, request(), Lunar(layers=(1,)))
    changed = [n for n, p in model.named_parameters() if not torch.equal(p, before[n])]
    assert [n.removeprefix("model.") for n in changed] == [edit.name.removeprefix("model.").removeprefix("model.")]
    assert edit.layer == 1
    assert "1" in edit.name
    undo_(Places.of(model), [edit])
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())


@pytest.mark.parametrize("name", MODELS)
def test_a_state_is_what_goes_into_the_next_block(name: str) -> None:
    model = MODELS[name]()
    places, some = Places.of(model), prompts(5, 4)
    states = places.last_states(some)
    for k, prompt in enumerate(some):  # one by one, without filling up
        seen: list[Tensor] = []
        handles = [
            block.register_forward_hook(lambda m, args, options, out, seen=seen: seen.append(args[0]), with_kwargs=True)
            for block in places.blocks[1:]
        ]
        places.model(prompt[None])
        for handle in handles:
            handle.remove()
        for layer, x in enumerate(seen):
            torch.testing.assert_close(states[layer, k], x[0, -1], rtol=1e-12, atol=1e-13)
    assert states.shape == (3, 5, D)
    assert states.dtype == torch.float64
    vectors = unlearning_vectors(places, some[:2], some[2:])
    torch.testing.assert_close(vectors, states[:, 2:].mean(1) - states[:, :2].mean(1))


@pytest.mark.parametrize("name", MODELS)
def test_rows_are_the_tokens_of_prompts_and_the_map_joins_them(name: str) -> None:
    places, some = Places.of(MODELS[name]()), prompts(5, 4)
    x, m = places.rows(1, some)
    assert x.shape == (sum(map(len, some)), P)
    assert m.shape == (len(x), D)
    bias = getattr(places.downs[1], "bias", None)
    torch.testing.assert_close(x @ places.matrix(1).T + (0 if bias is None else bias), m)
    last, _ = places.rows(1, some, last=True)
    ends = torch.tensor([len(p) for p in some]).cumsum(0) - 1
    torch.testing.assert_close(last, x[ends])


def test_the_closed_form_is_the_least_squares() -> None:
    """Also with fewer rows than columns, where only the ridge makes it one answer: rows √ρ·I with residual 0 stand for it."""
    g = generator(0, "rows")
    for n in (40, 5):
        x, residual = (torch.randn(n, k, generator=g, dtype=torch.float64) for k in (P, D))
        rows = np.vstack([x.numpy(), np.sqrt(0.3) * np.eye(P)])
        wanted, *_ = np.linalg.lstsq(rows, np.vstack([residual.numpy(), np.zeros((P, D))]), rcond=None)
        found = closed(torch.zeros(D, P), x, residual, Lunar(ridge=0.3))
        np.testing.assert_allclose(found.numpy(), wanted.T, rtol=0, atol=1e-12)


def test_the_closed_form_as_the_paper_writes_it() -> None:
    """W* = Y Xᵀ (X Xᵀ)⁻¹, where rows are many and the ridge is next to nothing."""
    g = generator(4, "rows")
    x, residual = (torch.randn(60, k, generator=g, dtype=torch.float64) for k in (P, D))
    w0 = torch.randn(D, P, generator=g, dtype=torch.float64)
    y = x @ w0.T + residual
    paper = y.T @ x @ torch.linalg.inv(x.T @ x)
    torch.testing.assert_close(w0 + closed(w0, x, residual, Lunar(ridge=1e-12)), paper, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("fit", ["closed", "adamw"])
def test_nothing_to_forget_changes_nothing(fit: str) -> None:
    x = torch.randn(20, P, generator=generator(1, "rows"), dtype=torch.float64)
    w0 = torch.randn(D, P, generator=generator(2, "rows"), dtype=torch.float64)
    assert not FITS[fit](w0, x, torch.zeros(20, D, dtype=torch.float64), Lunar()).any()
    model = gpt()
    before = model.state_dict()["blocks.1.mlp.2.weight"].clone()
    unlearn_(model, request(), Lunar(layers=(1,), fit=fit, coefficient=0.0))  # type: ignore[arg-type]
    assert torch.equal(model.state_dict()["blocks.1.mlp.2.weight"], before)


def test_with_as_many_columns_as_rows_the_stream_goes_exactly_where_it_is_to() -> None:
    """Two prompts of three tokens, one to retain of four: ten rows, twelve columns, and hardly a ridge."""
    model = gpt()
    places = Places.of(model)
    r = Request([p[:3] for p in prompts(2, 1)], [prompts(2, 2)[1]], prompts(4, 3))
    before = places.last_states([*r.forget, *r.retain])[1]
    vector = unlearning_vectors(places, r.forget, r.reference)[1]
    unlearn_(places, r, Lunar(layers=(1,), ridge=1e-11, coefficient=2.0))
    after = places.last_states([*r.forget, *r.retain])[1]
    torch.testing.assert_close(after[:2], before[:2] + 2 * vector, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(after[2:], before[2:], rtol=1e-4, atol=1e-6)


def test_what_is_retained_is_held_while_it_is_answered() -> None:
    """A prompt to forget and one to retain, of three tokens, with an answer of three: nine rows, twelve columns, and hardly a ridge."""
    answer = prompts(1, 7)[0]
    forget, kept, reference = [prompts(2, 1)[0]], [prompts(2, 2)[0]], prompts(4, 3)
    text = [torch.cat([*kept, answer])]

    def moved(r: Request, how: Lunar) -> float:
        places = Places.of(gpt())
        before = places.last_states(text)[1]
        unlearn_(places, r, how)
        return float((places.last_states(text)[1] - before).norm())

    how = Lunar(layers=(1,), ridge=1e-11)
    alone = moved(Request(forget, kept, reference), how)
    held = Request(forget, kept, reference, [answer])
    assert moved(held, how) < 1e-5 < 1e-2 < alone
    assert moved(held, replace(how, rows="prompts")) == alone  # as the code has it
    vector = torch.ones(D, dtype=torch.float64)
    for rows, counts in (("all", (3, 6)), ("prompts", (3, 3)), ("last", (1, 1))):
        assert training_rows(Places.of(gpt()), held, replace(how, rows=rows), 0, vector)[2] == counts
    many = Request(forget, prompts(5, 2), reference, prompts(5, 9))  # each with its own answer, whichever is drawn
    x, _, _ = training_rows(Places.of(gpt()), many, Lunar(retain="equal"), 0, vector)
    wanted = [Places.of(gpt()).rows(0, [torch.cat(pair)])[0] for pair in zip(many.retain, many.answers, strict=True)]
    assert any(torch.equal(x[3:], rows) for rows in wanted)


def test_other_fits_come_near_the_closed_form() -> None:
    g = generator(5, "rows")
    x = torch.randn(200, P, generator=g, dtype=torch.float64)
    low = torch.randn(D, 1, generator=g, dtype=torch.float64) @ torch.randn(1, P, generator=g, dtype=torch.float64) / 10
    w0, residual = torch.randn(D, P, generator=g, dtype=torch.float64), x @ low.T
    wanted = closed(w0, x, residual, Lunar(ridge=1e-6))
    torch.testing.assert_close(wanted, low, rtol=1e-4, atol=1e-5)
    for fit in ("adamw", "lora"):
        found = FITS[fit](w0, x, residual, Lunar(rank=1, epochs=60, decay=0.95, lr=3e-2))
        assert float((found - low).norm() / low.norm()) < 0.02
    assert torch.linalg.matrix_rank(FITS["lora"](w0, x, residual, Lunar(rank=2)), tol=1e-9) == 2


def test_steering_adds_a_vector_behind_a_block_while_the_prompt_is_read() -> None:
    places = Places.of(gpt())
    shift = torch.arange(D, dtype=torch.float64)
    ids = prompts(4, 6)[3][None]
    with torch.no_grad():
        plain = places.model(ids)
        after: list[Tensor] = []
        handle = places.blocks[2].register_forward_pre_hook(lambda m, args: after.append(args[0]))
        places.model(ids)
        with places.steered(1, shift, 4):
            places.model(ids)
        handle.remove()
        torch.testing.assert_close(
            after[1][0] - after[0][0], torch.cat([shift.expand(4, -1), torch.zeros(2, D).double()])
        )
        assert torch.equal(places.model(ids), plain)  # outside, nothing is left of it
        with places.skipped(1):
            skipped = places.model(ids)
        places.blocks[1].mlp[2].weight.zero_()  # type: ignore[index, union-attr, operator]
        places.blocks[1].attention.out.weight.zero_()  # type: ignore[union-attr, operator]
        torch.testing.assert_close(places.model(ids), skipped)


def test_a_search_counts_likeness_to_ignorance_less_likeness_to_ethics() -> None:
    """Answers are told apart by their first token here: 0 and 1 to each of three axes."""
    places, r = Places.of(gpt()), request()
    axes = {"a": [1.0, 0, 0], "b": [0, 1.0, 0], "?": [0, 0, 1.0]}
    search = Search(
        decode=lambda ids: "a" if int(ids[0]) < V // 2 else "b",
        ignorance=["a", "?"],
        ethics=["b", "?"],
        embed=lambda texts: np.array([axes[t] for t in texts]),
        max_tokens=1,
    )
    found = layer_scores(places, r, 1.0, search)
    vectors = unlearning_vectors(places, r.forget, r.reference)
    for score in found:
        first = []
        for prompt in r.forget:
            with places.steered(score.layer, vectors[score.layer], len(prompt)), torch.no_grad():
                first.append(int(places.model(prompt[None])[0, -1].argmax()) < V // 2)
        assert score.ignorance == (first[0]) / 2  # the second question's own ignorance is like neither answer
        assert score.ethics == pytest.approx(sum(not x for x in first) / 4)
    assert best([Score(0, 0.2, 0.1), Score(1, 0.9, 0.1), Score(2, 0.9, 0.1), Score(3, 0.5, 0.0)], 3) == [1, 2, 3]
    edits = unlearn_(places, r, Lunar(top=2), search)
    assert [e.layer for e in edits] == sorted(best(found, 2))


def test_as_many_to_retain_as_to_forget() -> None:
    places = Places.of(gpt())
    vector = torch.ones(D, dtype=torch.float64)
    _, _, (forget, retain) = training_rows(places, request(9), Lunar(retain="equal", rows="last"), 0, vector)
    assert (forget, retain) == (2, 2)
    x, residual, (forget, retain) = training_rows(places, request(0), Lunar(), 0, vector)
    assert (forget, retain) == (len(x), 0)
    assert (residual == 1).all()


def test_later_requests_go_on_from_the_matrix_that_is_there() -> None:
    together, places = gpt(), Places.of(gpt())
    first, second = (Request([p], prompts(3, 2), prompts(4, 3)) for p in prompts(2, 1))
    how = Lunar(layers=(1,))
    (one,) = unlearn_(places, first, how)
    left = places.matrix(1).clone()
    (two,) = unlearn_(places, second, how)
    assert torch.equal(two.before, left)
    assert not torch.equal(one.before, left)
    together.load_state_dict(places.model.state_dict())
    torch.testing.assert_close(Places.of(together).last_states(first.forget), places.last_states(first.forget))


def test_what_is_wrong_is_said_in_one_line() -> None:
    with fails("layers: 3 is not in a model of 3 blocks: use 0 to 2"):
        unlearn_(gpt(), request(), Lunar(layers=(3,)))
    with fails(r"which layers\? Name them"):
        unlearn_(gpt(), request(), Lunar())
    with fails("a request without prompts to forget"):
        Request([], [], prompts(1, 1))
    with fails("1 answers to 2 prompts to retain: give one for each, or none"):
        Request(prompts(1, 1), prompts(2, 2), prompts(1, 1), prompts(1, 1))
    with fails(
        r"model.h.\{l\}.down is in no block of GPTModule: name it with \{l\} for the block's number, for example blocks.\{l\}.attention"
    ):
        Places.of(gpt(), "model.h.{l}.down")
    with fails("blocks.0.mlp is a Sequential and no linear map"):
        Places.of(gpt(), "blocks.{l}.mlp")
    with fails("what blocks.0.mlp.0.weight gives is not added to the stream as it is"):
        Places.of(GPT(dim=D, num_layers=2, num_heads=2, mlp_dim=D).build(V, 16), "blocks.{l}.mlp.0")
    with fails("ridge = 0"):
        Lunar(ridge=0.0)
