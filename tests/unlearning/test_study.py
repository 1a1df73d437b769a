"""The study as a record: all its cells, once each; and the command."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import lab
from lab.cli import main
from lab.events import CellDone, Event, Redirected, Steered, Unlearned
from lab.systems.unlearning.study import FEDERATED, FITTED, Unlearning, cells, unlearn
from tests.support.texts import fails

TINY = (
    "model.dim=16",
    "model.num_layers=3",
    "model.num_heads=2",
    "model.mlp_dim=64",
    "steps=2",
    "schedule.warmup=0",
    "batch_size=4",
    "eval_windows=4",
    'data={"name":"facts","subjects":8,"attributes":3,"repeats":3,"references":6}',
)
SMALL: dict[str, Any] = {"overrides": TINY, "seeds": (1,), "epochs": 1, "clients": 2, "deep": 1}


def said(record: Any, part: str) -> list[Unlearned]:
    return [e for e in record.events if isinstance(e, Unlearned) and e.part == part]


def test_every_cell_is_done_once_and_says_what_came_of_it(tmp_path: Path) -> None:
    settings = Unlearning(**SMALL)
    told: list[Event] = []
    record = unlearn(settings, tmp_path, tell=told.append)
    assert list(record.cells) == list(cells(settings, tmp_path))
    assert [e.name for e in said(record, "lunar")] == list(FITTED)
    assert [e.name for e in said(record, "rival")] == list(settings.rivals)
    assert [e.name for e in said(record, "federation")] == list(FEDERATED)
    assert [e.name for e in said(record, "sequence")] == ["1", "2"]
    assert {e.name for e in said(record, "attack")} >= {
        "skip the block",
        "four bits",
        "5 learned again",
        "refusals counted",
    }
    assert all(0 <= e.scores["accuracy"] <= 1 for e in said(record, "probe"))
    (before,) = said(record, "before")
    assert before.scores["deviation"] == pytest.approx(
        100 * (before.scores["recall_forget"] ** 2 + (1 - before.scores["recall_retain"]) ** 2) ** 0.5
    )
    assert [type(e) for e in told if isinstance(e, Steered | Redirected)] == [Steered, Redirected]
    matrix = 16 * 64
    assert {e.scores["weights"] for e in said(record, "lunar")} == {matrix, 2 * matrix}
    # 2 and 6 subjects, of each 3 questions of 7 tokens, with answers of 2
    rows = {e.name: e.scores["rows"] for e in said(record, "lunar")}
    assert rows["closed form"] == rows["AdamW"] == 2 * 3 * 7 + 6 * 3 * (7 + 2)
    assert rows["closed form, prompts alone"] == 8 * 3 * 7
    assert rows["last token"] == 8 * 3
    up = {e.name: e.scores["bytes_up"] for e in said(record, "federation")}
    assert up["average"] == up["sum"] == up["average, 3 rounds"] / 3 == 2 * 4 * matrix
    assert up["exact"] == 2 * 8 * (64 * 64 + matrix)
    again = lab.unlearn(SMALL, tmp_path, tell=told.append)
    assert again.events == record.events
    assert sum(isinstance(e, CellDone) for e in told) == 2 * len(record.cells)


def test_the_command_does_the_same(tmp_path: Path) -> None:
    options = [x for o in TINY for x in ("-o", f"overrides=[{','.join(map(_quoted, TINY))}]")][:2]
    few = [
        "-o",
        "seeds=[1]",
        "-o",
        "rivals=[]",
        "-o",
        'fitted=["closed form"]',
        "-o",
        "clients=0",
        "-o",
        "attacked=false",
    ]
    done = CliRunner().invoke(main, ["unlearn", *options, *few, "--runs", str(tmp_path)])
    assert done.exit_code == 0, done.output
    assert "seed 1, lunar, closed form, block" in done.output
    assert "deviation" in done.output
    assert "record: " in done.output
    wrong = CliRunner().invoke(main, ["unlearn", "-o", 'fitted=["closed"]', "--runs", str(tmp_path)])
    assert wrong.exit_code == 2
    assert "fitted: there is no 'closed': use some of closed form" in wrong.output


def _quoted(text: str) -> str:
    return '"' + text.replace('"', '\\"') + '"'


def test_what_is_wrong_is_said_in_one_line() -> None:
    with fails("recipe diloco trains on something else than data=facts"):
        Unlearning(recipe="diloco").recipe_of(0)
    with fails("rivals: there is no 'sga': use some of gradient_ascent"):
        Unlearning(rivals=("sga",))
    with fails("seeds and fitted: give at least one of each"):
        Unlearning(seeds=())
