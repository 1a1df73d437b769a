"""Other views of the same examples, and examples that a server has for itself."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from lab.data.augmented import Augmentation, drawn_for, shifted
from lab.data.tasks.dealt import deal
from lab.data.tasks.labelled import taken_off
from lab.data.tasks.tensors import Classification
from lab.ground.errors import RecipeError
from lab.ground.seeds import generator
from tests.support.parts import blobs, pictures


def images(num: int = 6) -> Tensor:
    return torch.randn(num, 2, 5, 8, generator=generator(0, "images"), dtype=torch.float64)


def test_an_example_is_moved_and_the_edge_fills_up() -> None:
    x = torch.arange(10.0).view(2, 1, 5)
    moved = shifted(x, torch.tensor([2, -1]), 2)
    assert moved.tolist() == [[[0, 0, 0, 1, 2]], [[6, 7, 8, 9, 9]]]
    tall = shifted(x.view(2, 1, 5, 1), torch.tensor([0, 3]), 2)
    assert tall.flatten(1).tolist() == [[0, 1, 2, 3, 4], [5, 5, 5, 5, 6]]


def test_how_far_how_much_and_how_noisy() -> None:
    """Of many draws the ends are as the options say; each example has its own."""
    x = torch.arange(20.0, dtype=torch.float64).expand(400, 1, 20).contiguous()
    by = {int(10 - row[0, 10]) for row in Augmentation(shift=0.15)(x, 0)}
    assert by == {-3, -2, -1, 0, 1, 2, 3}
    factors = Augmentation(scale=0.2)(x, 0)[:, 0, 1]
    assert 0.8 <= float(factors.min()) < 0.81
    assert 1.19 < float(factors.max()) <= 1.2
    noise = (Augmentation(noise=0.5)(x, 0) - x).flatten()
    assert float(noise.std()) == pytest.approx(0.5 * float(x[0].std(correction=0)), rel=0.05)
    assert float(noise.mean()) == pytest.approx(0, abs=0.2)


def test_equal_batches_have_equal_views_and_others_have_others() -> None:
    change, x = Augmentation(0.2, 0.2, 0.1), images()
    assert torch.equal(change(x, 3, "strong", 7), change(x.clone(), 3, "strong", 7))
    assert change(x, 3, "strong", 7).dtype == torch.float64
    first = change(x, 3, "strong", 7)
    for other in (change(x, 4, "strong", 7), change(x, 3, "strong", 8), change(x, 3, "weak", 7)):
        assert not torch.equal(first, other)
    other = x.clone()
    other[0, 0, 0, 0] += 1e-12
    assert float((first - change(other, 3, "strong", 7)).abs().max()) > 1e-3
    for dtype in (torch.float32, torch.bfloat16):
        assert change(x.to(dtype), 3).dtype == dtype


def test_with_zeros_nothing_is_done_and_flat_examples_do_not_move() -> None:
    x = images()
    assert Augmentation()(x, 0) is x
    assert torch.equal(Augmentation(shift=0.5)(x.flatten(1), 0), x.flatten(1))
    with pytest.raises(RecipeError, match="tokens or categories cannot be moved or made noisy"):
        Augmentation(noise=0.1)(torch.zeros(2, 3, dtype=torch.int64), 0)


def test_draws_follow_from_the_numbers_of_a_batch_and_touch_no_global_generator() -> None:
    x, before = images(), torch.get_rng_state()
    assert torch.equal(
        torch.rand(3, generator=drawn_for(x, 0, "a")), torch.rand(3, generator=drawn_for(x.clone(), 0, "a"))
    )
    assert torch.equal(before, torch.get_rng_state())


# --- what a server has for itself -------------------------------------------------------------------------------------


def rows(x: Tensor) -> set[tuple[float, ...]]:
    return {tuple(row) for row in x.flatten(1).tolist()}


def test_a_server_has_so_many_of_each_class_and_nobody_else_has_them() -> None:
    train = pictures().train
    found, rest = taken_off(train, 3, 5, 0, torch.float64)
    assert found is not None
    inputs, targets = found
    assert inputs.shape == (3, 5, 1, 4, 4)
    assert inputs.dtype == torch.float64
    assert torch.equal(targets, torch.arange(3)[:, None].expand(3, 5))
    own, others = rows(inputs.float().flatten(0, 1)), rows(rest.inputs)
    assert own | others == rows(train.inputs)
    assert not own & others
    assert len(own) == 15
    for c in range(3):
        assert rows(inputs[c].float()) <= rows(train.inputs[train.targets == c])


def test_they_are_the_same_for_every_split_and_number_of_clients_and_others_with_another_seed() -> None:
    task = blobs()
    one = deal(task, num_workers=3, batch_size=4, labelled=4).labelled
    two = deal(task, num_workers=5, batch_size=2, split="dirichlet:0.5", labelled=4, batches_seed=9).labelled
    other = deal(task, num_workers=3, batch_size=4, labelled=4, split_seed=1).labelled
    assert one is not None
    assert two is not None
    assert other is not None
    assert torch.equal(one[0], two[0])
    assert not torch.equal(one[0], other[0])
    plain, less = (deal(task, num_workers=3, batch_size=4, labelled=num, share_held_out=0.25) for num in (0, 4))
    assert plain.labelled is None
    assert sum(less.samples_W) < sum(plain.samples_W)
    assert less.held_out is not None
    whole = rows(less.batches.examples.inputs)
    assert not whole & rows(one[0].flatten(0, 1))
    assert rows(less.held_out.take(less.held_out.shards[1])[0]) <= whole


def test_groups_and_stored_integers_stay_what_they_are() -> None:
    x, y = np.arange(24, dtype=np.uint8).reshape(12, 1, 2), np.arange(12) % 2
    task = Classification((x, y), (x, y), 2, groups=np.arange(12) // 4, held_out_groups=np.arange(12) // 4)
    found, rest = taken_off(task.train, 2, 2, 0, torch.float32)
    assert found is not None
    inputs, _ = found
    assert rest.groups is not None
    assert torch.equal(rest.groups, rest.inputs[:, 0, 0].long() // 2 // 4)
    assert rest.inputs.dtype == task.train.inputs.dtype
    assert inputs.flatten(0, 1).shape == (4, 1, 2)


def test_there_have_to_be_more_of_every_class() -> None:
    x, y = torch.zeros(9, 2), torch.tensor([0, 0, 0, 0, 0, 0, 1, 1, 1])
    train = Classification((x, y), (x, y), 2).train
    with pytest.raises(RecipeError, match="of class 1 there are 3: use at most 2"):
        taken_off(train, 2, 3, 0, torch.float32)
