"""What weights of samples cost, counted both ways, by hand."""

from __future__ import annotations

import pytest

from lab.costs.weighting import scoring
from lab.recipes.recipe import Recipe
from lab.recipes.weighting import Weighting
from lab.runs.plan import plan

SIZE = {"params": 1000.0, "tokens": 512, "context": 32, "steps": 120}
ADAPT = {"by": "adapt", "target": "target", "anchors": 10, "every": 50}


def test_both_ways() -> None:
    """6 N a token to train; looks before steps 1, 51 and 101, of 2 N a token each; or 2 N for every token."""
    cost = scoring(Weighting(**ADAPT), **SIZE)
    assert cost.training == 6 * 1000 * 512 * 120
    assert cost.looks == 3
    assert cost.extra == 2 * 1000 * 10 * 32 * 3
    assert cost.charged == 2 * 1000 * 512 * 120
    assert cost.share_charged == pytest.approx(1 / 3)


def test_a_look_at_ones_own_samples_counts_too() -> None:
    one, two = (scoring(Weighting(**(ADAPT | more)), **SIZE) for more in ({}, {"center": True}))
    assert two.extra == 2 * one.extra


@pytest.mark.parametrize(("every", "looks"), [(0, 1), (1, 120), (10, 12), (120, 1), (119, 2)])
def test_looks_are_those_of_the_run(every: int, looks: int) -> None:
    weighting = Weighting(**(ADAPT | {"every": every}))
    assert scoring(weighting, **SIZE).looks == looks == len({weighting.turn(t) for t in range(1, 121)})


def test_rivals() -> None:
    for by in ("uniform", "random", "lin_upper"):
        assert scoring(Weighting(by=by), **SIZE).extra == scoring(Weighting(by=by), **SIZE).charged == 0
    terms = scoring(Weighting(**(ADAPT | {"by": "bm25"})), **SIZE)
    assert terms.extra == terms.charged == 10 * 32 + 512 * 120
    assert scoring(Weighting(**(ADAPT | {"by": "softmax"})), **SIZE) == scoring(Weighting(**ADAPT), **SIZE)


def test_a_plan_tells_both() -> None:
    r = Recipe.of("ddp", ["corpus=mixture", "context=32", "batch_size=16", "steps=120", "num_workers=2"]).but(
        weighting=ADAPT
    )
    told = plan(r)
    assert told.scoring is not None
    n = told.num_params
    assert told.scoring.extra == 2 * n * 10 * 32 * 3
    assert told.to_dict()["weighting"]["charged_flops"] == 2 * n * 512 * 120
    (line,) = (x for x in told.to_text().splitlines() if x.startswith("weighting"))
    assert "looked at 3 times" in line
    assert "+33.3%" in line
    assert "weighting" not in plan(r.but(weighting={})).to_dict()


def test_with_adapters_the_frozen_model_goes_forward_too() -> None:
    r = Recipe.of("ddp", ["corpus=mixture", "context=32", "num_workers=2", "steps=50", "lora.ranks=[2,2]"]).but(
        weighting=ADAPT
    )
    told, whole = plan(r), plan(r.but(lora={}))
    assert told.scoring is not None
    # as a plan counts them, with the angles of positions
    assert told.scoring.extra == pytest.approx(2 * (told.num_params + whole.num_params) * 10 * 32, rel=0.03)
    assert told.scoring.share_charged > 1 / 3, "training adapters takes less than training all"
