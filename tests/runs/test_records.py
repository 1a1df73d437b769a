"""Work that is not a training run, cell by cell: what is whole is never done again, and nothing damaged is read."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import ClassVar

import pytest
import torch

from lab.events import CellDone, Event, Warned
from lab.ground.config import Count, config, given
from lab.ground.errors import Damaged, LabError, RecipeError
from lab.ground.files import locked
from lab.runs.folder import Busy
from lab.runs.records import Record, Work, fill, identity


@config
class Counting:
    kind: ClassVar[str] = "counting"
    to: Count = 3
    seed: int = 0


def counting(done: list[str], upto: int = 3, fails_at: int | None = None) -> dict[str, Work]:
    """Cells 0, 1, …: each yields two events, and notes that it was done."""

    def cell(number: int) -> Callable[[Record], Iterator[Event]]:
        def work(record: Record) -> Iterator[Event]:
            done.append(str(number))
            yield Warned(number, f"after {len(record.cells)} cells")
            if number == fails_at:
                raise RuntimeError("no")
            yield Warned(number, "end")

        return work

    return {f"cell {number}": cell(number) for number in range(upto)}


def said(record: Record) -> list[Event]:
    """Events without how long cells took."""
    return [CellDone(e.step, e.cell, 0.0) if isinstance(e, CellDone) else e for e in record.events]


def test_whole_cells_are_not_done_again_and_half_ones_are(tmp_path: Path) -> None:
    done: list[str] = []
    with pytest.raises(RuntimeError):
        fill(Counting(), counting(done, fails_at=1), tmp_path)
    assert done == ["0", "1"]
    path = tmp_path / "records" / identity(Counting())
    assert list(Record(path).cells) == ["cell 0"]
    told: list[Event] = []
    record = fill(Counting(), counting(done), tmp_path, tell=told.append)
    assert done == ["0", "1", "1", "2"]
    assert told == record.events == Record(path).events
    untouched = fill(Counting(), counting([]), tmp_path / "elsewhere")
    assert said(record) == said(untouched)


def test_settings_name_the_record_and_again_begins_anew(tmp_path: Path) -> None:
    done: list[str] = []
    first = fill(Counting(), counting(done), tmp_path)
    other = fill(Counting(seed=1), counting(done), tmp_path)
    assert first.path != other.path
    assert first.settings == {"kind": "counting", "to": 3, "seed": 0}
    fill(Counting(), counting(done), tmp_path)
    assert len(done) == 6
    named = [fill(Counting(), counting([]), tmp_path, inputs={"preset": steps}).path for steps in (1, 2)]
    assert len({first.path, *named}) == 3
    again = fill(Counting(), counting(done), tmp_path, again=True)
    assert len(done) == 9
    assert said(again) == said(first)


def test_what_was_not_written_is_not_read(tmp_path: Path) -> None:
    record = fill(Counting(), counting([]), tmp_path)
    file = record.path / "events.jsonl"
    data = file.read_bytes()
    file.write_bytes(data[:-9])  # the writer was killed within its last line
    assert list(Record(record.path).cells) == ["cell 0", "cell 1"]
    file.write_bytes(data.replace(b"after 1", b"after 7"))
    with pytest.raises(Damaged, match="line 4 is damaged"):
        Record(record.path)
    file.write_bytes(data)
    (record.path / "settings.json").write_text("[")
    with pytest.raises(Damaged, match=r"settings.json cannot be read"):
        _ = record.settings


def test_one_writer_at_a_time(tmp_path: Path) -> None:
    record = fill(Counting(), counting([]), tmp_path)
    lock = locked(record.path / "lock")
    assert lock is not None
    with lock, pytest.raises(Busy, match="another process"):
        fill(Counting(), counting([]), tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(LabError, match="cannot write"):
        fill(Counting(), counting([]), tmp_path / "file")


def test_tensors_are_kept_and_vouched_for(tmp_path: Path) -> None:
    def leave(record: Record) -> Iterator[Event]:
        record.keep("weights", {"w": torch.arange(6.0).reshape(2, 3).T})
        yield Warned(0, "left")

    record = fill(Counting(), {"leave": leave}, tmp_path)
    assert torch.equal(record.kept("weights")["w"], torch.arange(6.0).reshape(2, 3).T)
    file = record.path / "files" / "weights.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"\1")
    with pytest.raises(Damaged, match="cannot be used"):
        record.kept("weights")
    with pytest.raises(Damaged, match="missing"):
        record.kept("others")


@pytest.mark.processes
def test_a_record_in_small_form_is_read_and_not_done(tmp_path: Path) -> None:
    done: list[str] = []
    small, told = tmp_path / "small", list[Event]()
    first = fill(Counting(), counting(done), tmp_path / "a", stored=small)
    again = fill(Counting(), counting(done), tmp_path / "b", stored=small, tell=told.append)
    assert done == ["0", "1", "2"]
    assert again.events == told == first.events
    assert again.cells == first.cells
    assert again.path == tmp_path / "b/records" / first.path.name
    assert not (tmp_path / "b").exists()
    assert [file.name for file in small.iterdir()] == [f"{first.path.name}.jsonl.xz"]
    fill(Counting(), counting(done), tmp_path / "b", stored=small, again=True)
    assert done == ["0", "1", "2"] * 2
    with pytest.raises(RuntimeError):
        fill(Counting(seed=1), counting(done, fails_at=1), tmp_path / "a", stored=small)
    assert len([*small.iterdir()]) == 1  # half a record is none


def test_a_small_file_that_is_not_the_record_is_refused(tmp_path: Path) -> None:
    fill(Counting(), counting([]), tmp_path, stored=tmp_path / "small")
    file = tmp_path / "small" / f"{identity(Counting())}.jsonl.xz"
    with pytest.raises(Damaged, match=r"is only part of a record: remove it, and it is made anew"):
        fill(Counting(), counting([], upto=4), tmp_path, stored=tmp_path / "small")
    file.rename(tmp_path / "small" / f"{identity(Counting(seed=1))}.jsonl.xz")
    with pytest.raises(Damaged, match=r"is a record of other settings: remove it, and it is made anew"):
        fill(Counting(seed=1), counting([]), tmp_path, stored=tmp_path / "small")


def test_a_process_that_is_killed_loses_one_cell(tmp_path: Path) -> None:
    def killed(record: Record) -> Iterator[Event]:
        yield Warned(2, "begun")
        os.kill(os.getpid(), signal.SIGKILL)

    process = multiprocessing.get_context("fork").Process(
        target=fill, args=(Counting(), counting([], 2) | {"cell 2": killed}, tmp_path)
    )
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    done: list[str] = []
    record = fill(Counting(), counting(done), tmp_path)
    assert done == ["2"]
    assert list(record.cells) == ["cell 0", "cell 1", "cell 2"]


def test_options_of_settings_are_checked_in_one_line() -> None:
    assert given(Counting, ["to=5", "seed=2"]) == Counting(5, 2)
    with pytest.raises(RecipeError, match="to = 0 is not allowed"):
        given(Counting, ["to=0"])
    with pytest.raises(RecipeError, match="too"):
        given(Counting, ["too=1"])
    with pytest.raises(RecipeError, match="write key=value"):
        given(Counting, ["to"])
    with pytest.raises(RecipeError, match="has a value already"):
        given(Counting, ["to=1", "to.x=2"])
