"""Sums, differences, parts and rows of stacks, against plain tensors; and what is left out where there are no numbers."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lab.engine.stack import Layout, Stack, frozen, layout_like
from lab.engine.state import has_numbers, numeric

SHAPES = {"a": (2, 3), "b": (), "c": (4,), "d": (2, 2)}
HOLDERS = {"a": (0, 1, 2), "b": (0, 1, 2), "c": (0, 2), "d": (1,)}
UP = [True, False, True]


def stack(seed: int, device: str = "cpu", agreed: bool = False) -> Stack:
    """Of three workers, in three blocks; ``agreed``: one copy of each."""
    layout = Layout.of(HOLDERS, {n: torch.Size(shape) for n, shape in SHAPES.items()}, lambda name: "all")
    draw = torch.Generator().manual_seed(seed)
    rows = [1 if agreed else len(b.holders) for b in layout.blocks]
    blocks = [
        torch.randn(n, b.numel, generator=draw, dtype=torch.float64) for n, b in zip(rows, layout.blocks, strict=True)
    ]
    return Stack(layout, [x.to(device) for x in blocks])


def copies(x: Stack) -> dict[str, Tensor]:
    return {name: x[name].clone() for name in x.names()}


def test_tensors_of_one_holder_set_lie_side_by_side() -> None:
    x = stack(0)
    assert [b.names for b in x.layout.blocks] == [("a", "b"), ("c",), ("d",)]
    assert {n: tuple(x[n].shape) for n in SHAPES} == {n: (len(HOLDERS[n]), *shape) for n, shape in SHAPES.items()}
    assert x.flat("a").shape == (3, 6)
    assert x.flat("b").data_ptr() == x["b"].data_ptr(), "views"
    with pytest.raises(KeyError, match="worker 1 does not hold c"):
        x.cell("c", 1)


@pytest.mark.parametrize("agreed", [False, True])
def test_sums_differences_and_maps_are_those_of_the_tensors(agreed: bool) -> None:
    """Copies with copies, and copies with an agreed state, which is added to each of them."""
    x, y = stack(0), stack(1, agreed=agreed)
    before = copies(x)
    for name in SHAPES:
        assert torch.equal((x + y)[name], x[name] + y[name])
        assert torch.equal((x - y)[name], x[name] - y[name])
        assert torch.equal(x.map(lambda a, b: a * b.exp(), y)[name], x[name] * y[name].exp())
        assert torch.equal(x.zeros_like()[name], torch.zeros_like(x[name]))
        assert torch.equal(x[name], before[name]), "nothing is done in place"
    assert (x - y).layout is x.layout
    assert x.clone().blocks[0].data_ptr() != x.blocks[0].data_ptr()


def test_a_part_is_a_copy_and_can_be_put_back() -> None:
    x = stack(0)
    some, before = x.select(["c", "b"]), copies(x)
    assert set(some.names()) == {"b", "c"}
    assert all(torch.equal(some[n], x[n]) for n in some.names())
    for block in some.blocks:
        block.add_(1.0)
    assert all(torch.equal(x[n], before[n]) for n in SHAPES)
    x.put_(some, UP)
    assert torch.equal(x["b"], before["b"] + torch.tensor([1.0, 0.0, 1.0]))
    assert torch.equal(x["c"], before["c"] + 1.0), "worker 1, who is down, does not hold it"
    assert torch.equal(x["a"], before["a"])


def test_an_agreed_state_goes_to_those_that_are_marked() -> None:
    for take in (Stack.copy_, Stack.put_):
        x, agreed = stack(0), stack(1, agreed=True)
        before = copies(x)
        take(x, agreed, UP)
        for name, holders in HOLDERS.items():
            for row, w in enumerate(holders):
                assert torch.equal(x[name][row], agreed[name][0] if UP[w] else before[name][row])


def test_zero_at_some_workers_and_at_all() -> None:
    x = stack(0)
    before = copies(x)
    x.zero_(UP)
    assert not x["a"][[0, 2]].any()
    assert torch.equal(x["a"][1], before["a"][1])
    assert torch.equal(x["d"], before["d"])
    x.zero_()
    assert not any(b.any() for b in x.blocks)


def test_rows_of_workers_that_are_down_are_frozen() -> None:
    x, y = stack(0), stack(1)
    before = copies(x), copies(y)
    with frozen([x, y], UP):
        for s in (x, y):
            for block in s.blocks:
                block.zero_()
    for s, was in zip((x, y), before, strict=True):
        assert torch.equal(s["a"][1], was["a"][1])
        assert torch.equal(s["d"], was["d"])
        assert not s["a"][[0, 2]].any()
        assert not s["c"].any()


def test_a_layout_with_other_shapes_has_the_same_holders() -> None:
    x = stack(0)
    layout = layout_like(x, ["c", "a"], lambda name: (len(name), 5))
    assert {n: layout.blocks[i].everywhere for n, (i, _) in layout.place.items()} == {"c": (0, 2), "a": (0, 1, 2)}
    assert Stack.zeros(layout, torch.device("cpu"), torch.float64)["c"].shape == (2, 1, 5)


# --- no numbers ------------------------------------------------------------------------------------------------------


def test_in_a_dry_run_shapes_stay_what_they_are() -> None:
    """No operation asks anything of tensors without numbers: models of any size are planned in no time."""
    x, y = stack(0, "meta"), stack(1, "meta", agreed=True)

    def never(*_: Tensor) -> Tensor:
        raise AssertionError("called")

    assert x.dry
    assert not stack(0).dry
    assert x + y is x
    assert x - y is x
    assert x.map(never, y) is x
    x.copy_(y, UP)
    x.put_(y, UP)
    assert [tuple(b.shape) for b in x.select(["b"]).blocks] == [(3, 1)]


def test_what_is_numeric_is_left_out_where_an_argument_has_no_numbers() -> None:
    calls: list[bool] = []

    @numeric
    def move_(x: object, y: object = None) -> None:
        """Moves."""
        calls.append(torch.is_grad_enabled())

    dry, real = stack(0, "meta"), stack(0)
    with torch.enable_grad():
        for arguments in ((dry,), (real, dry), (dry.blocks[0],), ({0: {"a": dry.blocks[0]}}, real)):
            move_(*arguments)
        move_(real, y=dry)
        assert calls == []
        for arguments in ((real,), (real, 3), (real.blocks[0],), ({0: {"a": real.blocks[0]}, 1: {}},), ({},)):
            move_(*arguments)
    assert calls == [False] * 5, "and without gradients"
    assert move_.__doc__ == "Moves."
    assert has_numbers(3)


def test_only_what_returns_nothing_can_be_numeric() -> None:
    def total(x: Stack) -> float:
        return float(x.blocks[0].sum())

    with pytest.raises(TypeError, match="total: a numeric function works in place and returns None"):
        numeric(total)  # type: ignore[arg-type]
