"""Attacks on unlearned models: what each does, on models whose answer is known."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from lab.models.gpt import GPT
from lab.systems.unlearning.attacks import probe, refused_subjects, relearned, reversing, rounded_, skipping
from lab.systems.unlearning.lunar import Edit, Lunar, Request, unlearn_
from lab.systems.unlearning.metrics import extraction_strength
from lab.systems.unlearning.places import Places
from lab.systems.unlearning.rivals import Pairs
from tests.support.forgetting import D, gpt, prompts, request


def edits(*layers: int) -> list[Edit]:
    vector = torch.arange(D, dtype=torch.float64)
    return [Edit(layer, "", (layer + 1) * vector, torch.zeros(0), (0, 0)) for layer in layers]


def states(places: Places, prompt: Tensor) -> Tensor:
    """What goes into the last norm, ``[T, d]``."""
    seen: list[Tensor] = []
    handle = places.model.norm.register_forward_pre_hook(lambda m, args: seen.append(args[0]))  # type: ignore[union-attr, operator]
    with torch.no_grad():
        places.model(prompt[None])
    handle.remove()
    return seen[0][0]


def test_reversing_takes_the_vector_off_at_the_tokens_of_a_prompt() -> None:
    places, prompt = Places.of(gpt()), prompts(4, 1)[3]
    plain = states(places, prompt)
    with reversing(places, edits(2), 4):
        less = plain - states(places, prompt)
    torch.testing.assert_close(
        less, torch.cat([3 * torch.arange(D).double().expand(4, -1), torch.zeros(2, D).double()])
    )


def test_reversing_undoes_an_edit_that_was_met_exactly() -> None:
    """Three rows and twelve columns: the stream behind the block is then what it was before the edit, and so is all that follows."""
    places = Places.of(gpt())
    r = Request([prompts(1, 1)[0]], [], prompts(4, 3))
    before = places.model(r.forget[0][None]).detach()
    made = unlearn_(places, r, Lunar(layers=(1,), ridge=1e-11))
    assert not torch.allclose(places.model(r.forget[0][None]), before, atol=1e-4)
    with reversing(places, made, 3):
        torch.testing.assert_close(places.model(r.forget[0][None]), before, rtol=1e-3, atol=1e-6)


def test_skipping_leaves_the_edited_blocks_out() -> None:
    places, prompt = Places.of(gpt()), prompts(4, 1)[3]
    with skipping(places, edits(0, 2), 4):
        found = states(places, prompt)
    places.model.blocks = nn.ModuleList([places.blocks[1]])
    torch.testing.assert_close(found, states(places, prompt))


def test_four_bits_are_fifteen_levels_of_each_row() -> None:
    model = nn.utils.skip_init(nn.Linear, 5, 2)
    with torch.no_grad():
        model.bias.fill_(0.3)
        model.weight.copy_(torch.tensor([[7.0, -7.0, 3.4, 3.6, 0.4], [0.0, 14.0, -1.1, -0.9, 6.9]]))
    bias = model.bias.clone()
    rounded_(model)
    assert model.weight.tolist() == [[7, -7, 3, 4, 0], [0, 14, -2, 0, 6]]
    assert torch.equal(model.bias, bias)
    with torch.no_grad():
        model.weight.zero_()
    rounded_(model)
    assert not model.weight.any()


def test_learning_again_is_of_a_copy() -> None:
    model = GPT(dim=16, num_layers=1, num_heads=2).build(9, 8, seed=1).double()
    before = [p.detach().clone() for p in model.parameters()]
    again = relearned(model, Pairs([torch.tensor([1, 2])], [torch.tensor([5, 6, 7])]), steps=40, lr=1e-2)
    assert extraction_strength(again, torch.tensor([1, 2]), torch.tensor([5, 6, 7])) == 1
    assert extraction_strength(model, torch.tensor([1, 2]), torch.tensor([5, 6, 7])) < 1
    assert all(torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True))


@pytest.mark.parametrize("inside", [False, True])
def test_a_probe_reads_what_is_there_and_nothing_else(inside: bool) -> None:
    """The class is the last token: a state has it. Classes that are drawn have nothing to do with it, and are not told from new prompts."""
    places, some = Places.of(gpt()), prompts(120, 8)
    last = [int(p[-1]) for p in some]
    found = probe(places, 1, (some[:80], last[:80]), (some[80:], last[80:]), inside)
    assert found.accuracy == 1
    assert found.commonest < 0.3
    drawn = torch.randint(4, (120,), generator=torch.Generator().manual_seed(0)).tolist()
    assert probe(places, 1, (some[:80], drawn[:80]), (some[80:], drawn[80:]), inside).accuracy < 0.6


def test_a_probe_inside_sees_no_edit_of_its_block() -> None:
    """It looks before the MLP; behind the block the edit is seen."""
    places, some = Places.of(gpt()), prompts(40, 8)
    classes = [int(p[-1]) % 3 for p in some]
    known, asked = (some[:25], classes[:25]), (some[25:], classes[25:])
    before = [probe(places, 1, known, asked, True), places.last_states(some)[1]]
    unlearn_(places, request(), Lunar(layers=(1,), ridge=1e-9))
    assert probe(places, 1, known, asked, True) == before[0]
    assert not torch.allclose(places.last_states(some)[1], before[1])  # type: ignore[arg-type]


def test_subjects_are_suspected_of_whose_questions_many_are_refused() -> None:
    subjects = [0, 0, 1, 1, 2, 2, 3, 3]
    refuses = [True, True, True, False, False, False, True, True]
    found = refused_subjects(subjects, refuses, unlearned=[0, 2])
    assert found.suspected == (0, 1, 3)
    assert (found.precision, found.recall) == (1 / 3, 1 / 2)
    assert refused_subjects(subjects, refuses, [0], share=1.0).suspected == (0, 3)
    nothing = refused_subjects(subjects, [False] * 8, [0])
    assert (nothing.precision, nothing.recall, nothing.suspected) == (0, 0, ())
