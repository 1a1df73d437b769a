"""Exercises: right answers pass, each slip gets its own hint, nonsense a clear line; the stored run is what it says."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from lab.events import KnobChanged, Sent
from lab.ground.errors import RecipeError
from lab.recipes.recipe import Recipe
from lab.runs.columns import Columns
from lab.runs.folder import RunFolder
from lab.runs.live import replay
from lab.runs.plan import plan
from lab.runs.trainer import Trainer
from lab.study.teaching import (
    KNOB_CHANGES,
    NOT_YET,
    OPEN,
    STORED,
    Checked,
    _byte_slips,
    _oracle,
    _outer_slips,
    check_outer_step,
    check_periods,
    check_sent_bytes,
    record,
    with_knobs,
)
from tests.support import ROOT

# The exercises of the notebook.
BYTES = Recipe.of("des_loc").but(
    steps=100, method={"name": "des_loc", "sync_every": {"params": 8, "exp_avg": 24, "exp_avg_sq": 32}}
)
COPY, WORKERS = plan(BYTES).states[0].bytes_each, BYTES.num_workers
RIGHT_BYTES = (12 + 4 + 3) * COPY
PAPER, BUDGET = Recipe.of("des_loc_13B"), 400e9
FOLDER = ROOT / "notebooks/stored/turned"


def says(checked: Checked, *words: str) -> None:
    """Not right, with these words in it, and without the solution."""
    assert checked.verdict == NOT_YET
    text = repr(checked)
    for word in words:
        assert word in text, text
    assert str(RIGHT_BYTES) not in text.replace(",", "")


# --- how many bytes? -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("answer", [RIGHT_BYTES, float(RIGHT_BYTES), RIGHT_BYTES * 1.004, 8.74e6])
def test_the_right_number_of_bytes(answer: float) -> None:
    """Three digits are enough."""
    assert check_sent_bytes(answer, BYTES).right


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (8 * RIGHT_BYTES, "8 bits are a byte"),
        (RIGHT_BYTES / 8, "8 bits are a byte"),
        (WORKERS * RIGHT_BYTES, "all workers hand over together"),
        (RIGHT_BYTES / WORKERS, "do not divide by the workers"),
        (1.5 * RIGHT_BYTES, "a link of a ring"),
        (1.5 * WORKERS * RIGHT_BYTES, "all links of a ring"),
        (RIGHT_BYTES / 2, "16 bits"),
        (15 * COPY, "only 2 of 3 states"),
        (16 * COPY, "only 2 of 3 states"),
        (7 * COPY, "only 2 of 3 states"),
        (12 * COPY, "one state alone"),
        (100 * COPY, "as DDP sends"),
        (300 * COPY, "all states in every step"),
        (36 * COPY, "Local Adam"),
        (3 * COPY, "one sync of every state"),
        (22 * COPY, "the first comes after a whole period"),
        ((100 / 8 + 100 / 24 + 100 / 32) * COPY, "round the number of syncs"),
        (RIGHT_BYTES / 1e6, "looks like MB"),
        (RIGHT_BYTES / 2**20, "looks like M"),
        (RIGHT_BYTES / 1.024, "1,000 bytes"),
        (RIGHT_BYTES * 1.048576, "1,000,000 bytes"),
        (1.23 * RIGHT_BYTES, "too much"),
        (0.77 * RIGHT_BYTES, "too little"),
    ],
)
def test_slips_in_counting(answer: float, words: str) -> None:
    says(check_sent_bytes(answer, BYTES), words)


def test_slips_with_one_value_are_all_told() -> None:
    """Numbers instead of bytes and the share of one of four workers are the same value: both are said."""
    told = check_sent_bytes(RIGHT_BYTES / 4, BYTES)
    says(told, "float32", "do not divide", "Several slips")


def test_no_slip_of_the_exercise_passes_for_right() -> None:
    """The numbers of the notebook tell all slips from the solution, apart from none."""
    slips = [value for value, _ in _byte_slips(BYTES, plan(BYTES))]
    assert len(slips) > 30
    assert not [value for value in slips if check_sent_bytes(value, BYTES).right]


@pytest.mark.parametrize("answer", ["8 MB", -1, 0, math.nan, math.inf, True, [1]])
def test_no_number_at_all(answer: Any) -> None:
    says(check_sent_bytes(answer, BYTES), "is no number of bytes")


@pytest.mark.parametrize("answer", [None, ...])
def test_not_answered_yet(answer: Any) -> None:
    for told in (
        check_sent_bytes(answer, BYTES),
        check_periods(answer, PAPER, BUDGET),
        check_outer_step(lambda *_: answer),
        check_outer_step(lambda shared, local_W, velocity: (shared, ...)),
    ):
        assert told.verdict == OPEN
        assert repr(told).startswith("Not answered yet: ")


def test_a_recipe_with_several_answers_is_no_exercise() -> None:
    for recipe in (
        BYTES.but(scenario={"outages": [{"worker": 1, "first": 1, "last": 60}]}),
        BYTES.but(steps=4, schedule={}),
    ):
        with pytest.raises(RecipeError, match="no exercise"):
            check_sent_bytes(1, recipe)


# --- which periods fit? ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "periods",
    [
        {"params": 307, "exp_avg": 1536, "exp_avg_sq": 1536},
        {"params": 384, "exp_avg": 768, "exp_avg_sq": 1536},
        {"exp_avg_sq": 1536, "params": 500, "exp_avg": 500},
    ],
)
def test_periods_that_fit(periods: dict[str, int]) -> None:
    """Seven copies of 51.4 GB, however they are dealt out."""
    told = check_periods(periods, PAPER, BUDGET)
    assert told.right
    assert "% of the budget" in repr(told)


@pytest.mark.parametrize(
    ("periods", "words"),
    [
        ({"params": 100, "exp_avg": 768, "exp_avg_sq": 1536}, ("over the budget, by a factor of 2.3", "params takes")),
        ({"params": 768, "exp_avg": 768, "exp_avg_sq": 128}, ("over the budget", "exp_avg_sq takes")),
        ({"params": 31, "exp_avg": 384, "exp_avg_sq": 768}, ("over the budget", "if the budget were in bits")),
        ({"params": 73, "exp_avg": 384, "exp_avg_sq": 768}, ("over the budget", "that of all 4 workers")),
        ({"params": 768, "exp_avg": 768, "exp_avg_sq": 1536}, ("36% of the budget is left",)),
        ({"params": 768, "exp_avg": 1536, "exp_avg_sq": 384}, ("some moment travels more often",)),
        ({"params": 307, "exp_avg": 1536}, ("exp_avg_sq would never be averaged",)),
        ({"params": 220}, ("exp_avg and exp_avg_sq would never",)),
        ({"params": 256, "exp_avg": 1536, "exp_avg_sq": 2000}, ("exp_avg_sq would never travel", "1,536 steps")),
        ({"params": 0, "exp_avg": 1, "exp_avg_sq": 1}, ("sync_every.params = 0 is not allowed",)),
        ({"params": 1.5, "exp_avg": 2, "exp_avg_sq": 2}, ("is not allowed",)),
        ({"params": 9, "exp_avg": 9, "exp_avg_sq": 9, "grads": 9}, ("grads",)),
        (256, ("is one value",)),
        ("params", ("is one value",)),
    ],
)
def test_slips_with_periods(periods: Any, words: tuple[str, ...]) -> None:
    says(check_periods(periods, PAPER, BUDGET), *words)


def test_far_below_the_budget() -> None:
    """Divided by 8, or shared by four workers, a budget allows so little; with none of both, it says how much is left."""
    one_copy_each = dict.fromkeys(("params", "exp_avg", "exp_avg_sq"), PAPER.steps)
    sent = 3 * plan(PAPER).states[0].bytes_each
    says(check_periods(one_copy_each, PAPER, 8.1 * sent), "divided by 8")
    says(check_periods(one_copy_each, PAPER, 4.1 * sent), "a budget of its own")
    says(check_periods(one_copy_each, PAPER, 2 * sent), "50% of the budget is left")
    assert check_periods(one_copy_each, PAPER, 2 * sent, at_least=0.4).right


# --- an update rule --------------------------------------------------------------------------------------------------


def test_right_outer_steps() -> None:
    """The oracle itself; the rule written out; and one whose velocity is scaled by the rate."""

    def scaled(x: Any, local_W: Any, v: Any) -> Any:
        g = 0.7 * (x - local_W.mean(0))
        v = 0.9 * v + g
        return x - g - 0.9 * v, v

    assert check_outer_step(_oracle(0.7, 0.9)).right
    assert check_outer_step(scaled).right
    assert check_outer_step(_oracle(1.0, 0.5), lr=1.0, momentum=0.5).right


def test_the_oracle_is_the_outer_step_of_the_lab() -> None:
    """Two rounds of DiLoCo as the trainer takes them."""
    recipe = Recipe.of("diloco").but(
        model={"dim": 8, "num_layers": 1, "num_heads": 1},
        corpus="grammar?tokens=20000",
        steps=4,
        batch_size=2,
        context=8,
        eval_windows=2,
        schedule={},
        method={"name": "diloco", "sync_every": 2},
    )
    trainer, seen = Trainer(recipe), []
    trainer.comm.subscribe(lambda meeting: seen.append([block.clone() for block in meeting.stack.blocks]))
    agreed = [trainer.state.shared["params"].blocks[0][0].clone()]
    for event in trainer.events():
        if isinstance(event, Sent):
            agreed.append(trainer.state.shared["params"].blocks[0][0].clone())
    shared, velocity = agreed[0], torch.zeros_like(agreed[0])
    assert len(seen) == len(agreed) - 1 >= 2
    rule = _oracle(0.7, 0.9)
    for (local_W, *_), after in zip(seen, agreed[1:], strict=True):
        shared, velocity = rule(shared, local_W, velocity)
        torch.testing.assert_close(shared, after)


def test_slips_in_the_outer_step() -> None:
    """Each wrong rule gets its own hint: no other slip, and not the solution, gives the same."""
    for wrong, hint in _outer_slips(0.7, 0.9):
        assert check_outer_step(wrong).hints == (hint,)


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        (lambda x, local_W, v: x, "two tensors"),
        (lambda x, local_W, v: (x, 3), "two tensors"),
        (lambda x, local_W, v: (x - 0.7 * (x - local_W), v), "average over the workers"),
        (lambda x, local_W, v: (x / 0, v), "no longer finite"),
        (lambda x, local_W, v: x.nothing, "raised AttributeError"),
        (lambda x: x, "raised TypeError"),
        (lambda x, local_W, v: _oracle(0.7, 0.9)(x, local_W, v / 2), "the first 1 of 4 rounds"),
        (lambda x, local_W, v: (x + 3 * (x - local_W.mean(0)), v), "away from where the workers went"),
        (lambda x, local_W, v: (x - 0.1 * (x - local_W.mean(0)), v), "the first round already differs"),
    ],
)
def test_rules_that_are_none(rule: Any, words: str) -> None:
    says(check_outer_step(rule), words)


# --- the run that is replayed ----------------------------------------------------------------------------------------


def test_the_stored_run_sends_what_its_recipe_and_knobs_say() -> None:
    """A dry run with the same knobs gives the same ledger; knobs are events in it, at the steps where they were turned."""
    stored = RunFolder(FOLDER)
    recipe, columns = stored.recipe(), Columns.of(stored.events())
    assert recipe == Recipe.of(STORED)
    assert {t.step: t.knob for t in columns.turned} == {t: knob for t, knobs in KNOB_CHANGES.items() for knob in knobs}
    assert stored.knobs_after(0).keys() == KNOB_CHANGES.keys()
    dry = with_knobs(Trainer(recipe, dry=True), KNOB_CHANGES).events()
    assert [e for e in dry if isinstance(e, Sent)] == columns.ledger.records
    assert columns.ended is not None
    assert columns.ended.status == "done"
    assert sum(f.stat().st_size for f in FOLDER.iterdir()) < 100_000


def test_the_stored_run_is_replayed_without_training(monkeypatch: pytest.MonkeyPatch) -> None:
    """All at once: the same events, no trainer, and nothing is written beside it."""
    monkeypatch.setattr("lab.runs.live.Trainer", None)
    before = sorted(FOLDER.iterdir())
    run = replay(FOLDER, speed=math.inf)
    run.wait(60)
    assert run.events == list(RunFolder(FOLDER).events())
    assert sorted(FOLDER.iterdir()) == before


def test_recording_turns_the_knobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The way in which the stored run was made, on a smaller one."""
    small = {"model": {"dim": 8, "num_layers": 1, "num_heads": 1}, "corpus": "grammar?tokens=20000", "steps": 6}
    monkeypatch.setattr(
        "lab.study.teaching.STORED", STORED | small | {"batch_size": 2, "context": 8, "eval_windows": 2, "schedule": {}}
    )
    monkeypatch.setattr("lab.study.teaching.KNOB_CHANGES", {3: {"lr": 2.0}, 5: {"lr": 1.0, "down": [1]}})
    run = record(tmp_path / "run")
    turned = [(e.step, e.knob, e.value) for e in run.events() if isinstance(e, KnobChanged)]
    assert turned == [(3, "lr", 2.0), (5, "lr", 1.0), (5, "down", [1])]
