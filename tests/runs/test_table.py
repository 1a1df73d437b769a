"""A run as a table: each column by hand and against the run's own columns, and what files keep of it."""

from __future__ import annotations

import dataclasses
import io
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner

import lab
from lab.cli import main
from lab.events import Drifted, Ended, Evaluated, Event, KnobChanged, Measured, Sent, Started, Stepped, Warned
from lab.ground.errors import RecipeError
from lab.runs import table
from lab.runs.columns import Columns
from lab.runs.trainer import train
from tests.support.recipes import recipe
from tests.support.stories import PATIENCE

BIG = 2**53 + 1  # bytes that no float64 holds
STORY: list[Event] = [
    Started(2, recipe().to_dict(), 10, [10] * 3, 48, None, 1.0, {}),
    Warned(0, "before the first step"),
    Stepped(1, [1.0, None, 4.0], 0.5, 0.25),
    Sent(1, "all_reduce", "params", (0, 2), {"mlp": BIG}),
    Sent(1, "broadcast", "exp_avg", (2,), {"mlp": 30}),
    Drifted(1, [3.0, None, 4.0], [None, None, None]),
    KnobChanged(2, "sync_every", {"params": 64}),
    Stepped(2, [None, None, None], 0.25, 0.5),
    Evaluated(2, 2.5, 0.125, {"accuracy": 0.75}),
    Measured(2, "alignment", {"cosine": [0.5], "norms": [1.0, None]}),
    Warned(2, "one"),
    Warned(2, "two"),
    Stepped(3, [1.0, 2.0, 3.0], 1.0, 0.5),
    Sent(3, "all_reduce", "params", (0, 1, 2), {"mlp": 100}),
    Ended(3, "stopped", ""),
]
NULL = None
WANT: dict[str, list[Any]] = {
    "step": [0, 1, 2, 3],
    "loss": [NULL, 2.5, NULL, 2.0],
    "loss_worker_0": [NULL, 1.0, NULL, 1.0],
    "loss_worker_1": [NULL, NULL, NULL, 2.0],
    "loss_worker_2": [NULL, 4.0, NULL, 3.0],
    "num_up": [NULL, 2, 0, 3],
    "lr_factor": [NULL, 0.5, 0.25, 1.0],
    "seconds": [NULL, 0.25, 0.5, 0.5],
    "tokens": [0, 32, 32, 80],
    "sent_bytes": [0, 2 * BIG + 30, 0, 300],
    "sent_bytes_params": [0, 2 * BIG, 0, 300],
    "sent_bytes_exp_avg": [0, 30, 0, 0],
    "payload_bytes": [0, 2 * BIG + 30, 2 * BIG + 30, 2 * BIG + 330],
    "validation_loss": [NULL, NULL, 2.5, NULL],
    "validation_accuracy": [NULL, NULL, 0.75, NULL],
    "drift_to_mean": [NULL, math.sqrt(12.5), NULL, NULL],
    "drift_after_average": [NULL, NULL, 0.125, NULL],
    "alignment_cosine": [NULL, NULL, 0.5, NULL],
    "alignment_norms_0": [NULL, NULL, 1.0, NULL],
    "knob_sync_every": [NULL, NULL, '{"params": 64}', NULL],
    "warning": ["before the first step", NULL, "one\ntwo", NULL],
}
WHOLE = {"step", "tokens", "sent_bytes", "sent_bytes_params", "sent_bytes_exp_avg", "payload_bytes"}


def plain(frame: pd.DataFrame) -> dict[str, list[Any]]:
    return {name: [None if pd.isna(x) else x for x in frame[name]] for name in frame.columns}


def test_every_column_by_hand() -> None:
    """Null is what was not measured, bytes are whole numbers of any size, and each column has its unit."""
    frame = Columns.of(STORY).frame()
    assert plain(frame) == WANT
    assert list(frame.columns) == list(WANT)
    assert {name for name in frame.columns if frame[name].dtype == np.int64} == WHOLE
    assert frame["num_up"].dtype == "Int64"
    assert frame.attrs["status"] == "stopped"
    assert frame.attrs["recipe"] == recipe().to_dict()
    units = frame.attrs["units"]
    assert list(units) == list(frame.columns)
    assert (units["sent_bytes_params"], units["seconds"], units["num_up"]) == ("bytes", "seconds", "workers")
    assert (units["loss_worker_1"], units["validation_loss"]) == ("as the task counts it",) * 2
    assert units["validation_accuracy"] == units["alignment_cosine"] == "as the metric or score has it"


def test_what_is_counted_is_called_so() -> None:
    """Examples, where a task's steps take those."""
    frame = Columns.of([dataclasses.replace(STORY[0], counted="examples"), *STORY[1:]]).frame()  # type: ignore[type-var]
    assert list(frame["examples"]) == WANT["tokens"]
    assert "tokens" not in frame
    assert frame.attrs["units"]["examples"] == "examples"


def test_a_run_as_its_columns_have_it(tmp_path: Path) -> None:
    """Trained, live, finished and replayed: the same table, of the same numbers as the columns."""
    asked = recipe(metrics=("gradients",), metrics_every=2)
    columns = train(asked, tmp_path / "run")
    frame = columns.frame()
    assert list(frame["step"]) == columns.step
    assert list(frame["loss"]) == list(columns.loss)
    assert list(frame["payload_bytes"]) == list(columns.payload_bytes)
    assert list(frame["tokens"]) == list(columns.curves.tokens.values)
    assert frame["sent_bytes"].sum() == columns.ledger.total_bytes()
    looked = frame.dropna(subset="validation_loss")
    assert list(zip(looked["step"], looked["validation_loss"], strict=True)) == list(
        zip(columns.eval_step, columns.eval_loss, strict=True)
    )
    measured = [name for name in frame.columns if name.startswith("gradients_")]
    assert list(frame.dropna(subset=measured)["step"]) == [2, 4, 6]
    replayed = lab.replay(tmp_path / "run", speed=math.inf)
    replayed.wait(PATIENCE)
    pd.testing.assert_frame_equal(replayed.frame(), frame)


def test_a_table_while_a_run_goes_on() -> None:
    """Before anything has happened it has no rows; what is half done is there as far as it is."""
    assert len(Columns().frame()) == 0
    assert list(Columns.of(STORY[:4]).frame()["sent_bytes"]) == [0, 2 * BIG]
    assert Columns.of(STORY[:4]).frame().attrs["status"] == "unfinished"


def test_parquet_gives_back_the_same(tmp_path: Path) -> None:
    """Types, nulls, bytes beyond 2⁵³, recipe and units."""
    frame = Columns.of(STORY).frame()
    table.write(frame, tmp_path / "run.parquet")
    back = pd.read_parquet(tmp_path / "run.parquet")
    pd.testing.assert_frame_equal(back, frame)
    assert back.attrs == frame.attrs

    import pyarrow.parquet

    plainly = pyarrow.parquet.read_table(tmp_path / "run.parquet")  # for those who have no pandas
    assert {name: plainly[name].to_pylist() for name in plainly.column_names} == WANT
    assert str(plainly.schema.field("payload_bytes").type) == "int64"


def test_csv_gives_back_the_same(tmp_path: Path) -> None:
    """Every number bit for bit, and null as nothing."""
    frame = Columns.of([*STORY[:2], Stepped(1, [0.1, 1 / 3, 1e-300], 1.0, 0.1), *STORY[4:]]).frame()
    table.write(frame, tmp_path / "run.csv")
    kinds = {name: str(frame[name].dtype) for name in frame.columns}
    back = pd.read_csv(tmp_path / "run.csv", dtype=kinds)  # type: ignore[arg-type]
    pd.testing.assert_frame_equal(back, frame, check_exact=True)


def test_the_command_writes_both(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    frame = train(recipe(), "runs/mine").frame()
    for ending in ("csv", "parquet"):
        out = CliRunner().invoke(main, ["table", "mine", "--out", f"t.{ending}"])
        assert (out.exit_code, out.output) == (0, f"6 local steps, {len(frame.columns)} columns: t.{ending}\n")
    pd.testing.assert_frame_equal(pd.read_parquet("t.parquet"), frame)
    out = CliRunner().invoke(main, ["table", "mine"])
    assert out.stdout == Path("t.csv").read_text(encoding="utf-8") == table.to_csv(frame)
    assert list(pd.read_csv(io.StringIO(out.stdout))["step"]) == [1, 2, 3, 4, 5, 6]
    assert json.loads(json.dumps(frame.attrs)) == frame.attrs


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("t.xlsx", "unknown ending of a table's name '.xlsx': use one of .csv, .parquet"),
        ("t", "unknown ending of a table's name '': use one of .csv, .parquet"),
        ("no/t.csv", "cannot write no/t.csv (No such file or directory): give a name in a folder that there is"),
    ],
)
def test_a_file_that_cannot_be(name: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RecipeError) as error:
        table.write(Columns.of(STORY).frame(), Path(name))
    assert str(error.value).startswith(words)
