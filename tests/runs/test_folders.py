"""Run folders that were damaged, mixed up or linked: what is not as it was written is named, and never shown or trained on.

ISTHMUS_DAMAGES sets how many are drawn (of each of two kinds).
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import random
import re
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from safetensors import safe_open
from safetensors.torch import save

from lab.cli import main
from lab.events import VERSION, Checkpointed, Ended, Event, Started, Stepped, Warned, to_bytes
from lab.ground.errors import Damaged, LabError, RecipeError, plain
from lab.ground.files import write_atomically
from lab.runs.columns import Columns
from lab.runs.folder import KEEP, RunFolder, find_run, stored
from lab.runs.lines import Log, Vouched, last_lines, pieces
from lab.runs.live import replay
from lab.runs.shared_folder import SharedFolder
from lab.runs.trainer import Trainer, train
from tests.support.damage import DAMAGES, FOREIGN
from tests.support.recipes import corpus, recipe
from tests.support.stories import story

NUM = int(os.environ.get("ISTHMUS_DAMAGES", "24"))


def lab(*arguments: str) -> Result:
    return CliRunner().invoke(main, arguments)


# --- runs to be damaged ----------------------------------------------------------------------------------------------

KNOBS: dict[int, dict[str, Any]] = {2: {"lr": 0.5}, 4: {"sync_every": {"params": 2}}, 5: {"lr": 2.0, "down": [1]}}


def trainer(r: Any, knobs: dict[int, dict[str, Any]] | None = None) -> Trainer:
    made = Trainer(r, corpus=corpus())
    made.knob_source = lambda t: (knobs or {}).get(t, {}).items()
    return made


def cut_off(path: Path, r: Any, after: int, knobs: dict[int, dict[str, Any]] | None = None) -> RunFolder:
    """A run folder as it is when its process dies just after a local step, with all of its events on the disk."""
    folder = RunFolder(path)
    stream = trainer(r, knobs).events(folder)
    next(e for e in stream if isinstance(e, Stepped) and e.step == after)
    stream.close()  # type: ignore[attr-defined]
    return folder


@dataclasses.dataclass
class Case:
    """A folder, and what its run says when nobody stops it."""

    path: Path
    whole: list[Event]
    other: Path  # the folder of a run of another seed

    @property
    def written(self) -> list[Event]:
        return list(RunFolder(self.path).events())


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> list[Case]:
    base = tmp_path_factory.mktemp("cases")
    out = []
    r = recipe("diloco", seed=1, checkpoint_every=2)
    for name, knobs, after in (
        ("cut", None, 5),
        ("done", None, None),
        ("knobs", KNOBS, 5),
        ("knobs, done", KNOBS, None),
    ):
        other = base / f"other of {name}"
        list(trainer(r.but(seed=0), knobs).events(RunFolder(other)))
        list(trainer(r, knobs).events(RunFolder(base / name / "whole")))
        whole = story(RunFolder(base / name / "whole").events())
        if after is None:
            out.append(Case(base / name / "whole", whole, other))
        else:
            out.append(Case(cut_off(base / name / "cut", r, after, knobs).path, whole, other))
    return out


# --- any damage ------------------------------------------------------------------------------------------------------


def everything(folder: Path) -> dict[str, bytes | str]:
    """All files below a folder and what is in them."""
    out: dict[str, bytes | str] = {}
    for p in sorted(folder.rglob("*")):
        kind = "link" if p.is_symlink() else "folder" if p.is_dir() else "file" if p.is_file() else "pipe"
        out[str(p.relative_to(folder))] = p.read_bytes() if kind == "file" else kind
    return out


def is_prefix(some: list[Event], of: list[Event]) -> bool:
    return [to_bytes(e) for e in some] == [to_bytes(e) for e in of[: len(some)]]


def vouched_for(case: Case) -> int:
    """How many events the newest checkpoint counts on."""
    written = case.written
    return max(i for i, e in enumerate(written) if isinstance(e, Checkpointed)) + 1


def survives(case: Case, runs: Path, do: Callable[[Path], str], once: bool = True) -> dict[str, bool]:
    """Damage a copy of a run, try every command, and see that nothing wrong came of it; which of them ended well.

    What an earlier version wrote has no checksums: there, other numbers cannot always be told from right ones. Not ``once``: where
    two files were damaged, one of them cannot always be made good from the other.
    """
    sealed = RunFolder(case.path).started().version > 1  # type: ignore[union-attr]
    folder, other = runs / "run", runs / "elsewhere" / "other"
    shutil.copytree(case.path, folder)
    shutil.copytree(case.other, other)
    written, before_damage = case.written, everything(folder)
    what = do(folder)
    outside, damaged = everything(runs / "elsewhere"), everything(folder)
    changed = damaged != before_damage
    ended = {}

    def tried(*arguments: str) -> Result:
        out = lab(*arguments, "--runs", str(runs))
        assert out.exception is None or isinstance(out.exception, SystemExit), (what, arguments, out.exception)
        assert out.exit_code in (0, 1, 2), (what, arguments, out.output)
        said = [line for line in out.stderr.splitlines() if line.startswith("lab: ")]
        assert len(said) == (out.exit_code != 0), (what, arguments, out.output)
        ended[arguments[0]] = out.exit_code == 0
        return out

    listed = tried("list")
    replayed = tried("replay", "run", "--speed", "inf")
    compared = tried("compare", "run", "--json")
    assert everything(folder) == damaged, f"{what}: looking at a run has changed it"
    if replayed.exit_code == 0:  # then what was shown is the run, or its beginning
        events = list(RunFolder(folder).events())
        if sealed:
            assert is_prefix(events, written), what
            assert len(events) >= vouched_for(case) or not once or not RunFolder(folder)._vouched(), what
        if compared.exit_code == 0:
            (row,) = json.loads(compared.stdout)
            assert row["payload_bytes"] == Columns.of(events).ledger.total_bytes()
    else:
        assert changed, (what, replayed.output)
    row = next((line for line in listed.stdout.splitlines() if line.startswith("  run ")), "")
    if "validation loss" in row and sealed:
        losses = {f"{e.loss:.4f}" for e in written if e.kind == "evaluated"}  # type: ignore[union-attr]
        (told,) = re.findall(r"validation loss ([\d.]+)", row)
        assert told in losses, (what, row)

    whole_before = {name: data for name, data in damaged.items() if name.startswith("checkpoints/step-")}
    resumed = tried("resume", "run")
    if resumed.exit_code == 0:
        if sealed and (once or damaged.get("knobs.jsonl") == before_damage.get("knobs.jsonl")):
            assert story(RunFolder(folder).events()) == case.whole, what
        if "already finished" not in resumed.stdout:
            assert not [name for name in everything(folder) if name.endswith(".tmp")], what
        assert tried("resume", "run").exit_code == 0
    else:
        assert changed, (what, resumed.output)
        after = everything(folder)
        assert {name: after.get(name) for name in whole_before} == whole_before, f"{what}: a checkpoint was lost"
        assert after.get("events.jsonl") == damaged.get("events.jsonl"), f"{what}: the events were changed"
    assert everything(runs / "elsewhere") == outside, f"{what}: something outside of the folder was changed"
    return ended


@pytest.mark.parametrize("number", range(NUM))
def test_no_damage_gives_other_numbers(number: int, cases: list[Case], tmp_path: Path) -> None:
    """Truncations, flips, swaps, deletions over every file: no traceback, no other numbers, nothing lost that is whole."""
    draw = random.Random(f"damage {number}")
    case = draw.choice(cases)

    def do(folder: Path) -> str:
        damage = draw.choice(DAMAGES)
        return f"{number}: {damage.__name__} {damage(draw, folder, folder.parent / 'elsewhere' / 'other')}"

    survives(case, tmp_path, do)


@pytest.mark.parametrize("number", range(NUM))
def test_no_foreign_file_and_no_link_gets_in_or_out(number: int, cases: list[Case], tmp_path: Path) -> None:
    """Links, files of other runs, short or flipped logs: nothing outside is written, never another run's numbers."""
    draw = random.Random(f"foreign {number}")
    case, damages = draw.choice(cases), [draw.choice(FOREIGN) for _ in range(draw.choice([1, 1, 2]))]

    def do(folder: Path) -> str:
        other = folder.parent / "elsewhere" / "other"
        return f"{number}: " + ", ".join(f"{d.__name__} {d(draw, folder, other)}" for d in damages)

    survives(case, tmp_path, do, once=len(damages) == 1)


def as_before(folder: Path) -> None:
    """Make of a run folder what the version without checksums would have written."""
    log, lengths = [], dict[str, int]()
    for line in (folder / "events.jsonl").read_bytes().splitlines(keepends=True):
        plain_line = re.sub(rb',"crc":"[0-9a-f]{8}"}\n$', b"}\n", line)
        log.append(plain_line.replace(b'"version":%d' % VERSION, b'"version":1', 1) if not log else plain_line)
        if b'"checkpointed"' in line:
            lengths[json.loads(line)["file"]] = sum(map(len, log))
    (folder / "events.jsonl").write_bytes(b"".join(log))
    if (folder / "knobs.jsonl").exists():
        knobs = (folder / "knobs.jsonl").read_bytes()
        (folder / "knobs.jsonl").write_bytes(re.sub(rb',"crc":"[0-9a-f]{8}"}\n', b"}\n", knobs))
    for file in (folder / "checkpoints").glob("*.safetensors"):
        with safe_open(file, framework="pt") as f:
            tensors = {key: f.get_tensor(key) for key in f.keys()}  # noqa: SIM118
            extra = json.loads(f.metadata()["isthmus"])["extra"]
        step = int(file.stem.split("-")[1])
        meta = {"step": step, "events_bytes": lengths[file.name], "extra": extra}
        data = save(tensors, metadata={"isthmus": json.dumps(meta)})
        file.write_bytes(data)
        digest = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
        file.with_suffix(".json").write_text(json.dumps(digest))


@pytest.fixture(scope="module")
def earlier(cases: list[Case], tmp_path_factory: pytest.TempPathFactory) -> list[Case]:
    out = []
    for case in cases:
        path = tmp_path_factory.mktemp("earlier") / "run"
        shutil.copytree(case.path, path)
        as_before(path)
        out.append(dataclasses.replace(case, path=path))
    return out


def test_runs_of_the_version_without_checksums_open_and_go_on(earlier: list[Case], tmp_path: Path) -> None:
    """Read, replayed and resumed bit for bit; what is appended has checksums, and a flip in the old lines is noticed by them."""
    for number, case in enumerate(earlier):
        folder = RunFolder(shutil.copytree(case.path, tmp_path / str(number)))
        assert b'"crc"' not in (folder.path / "events.jsonl").read_bytes()
        assert replay(folder.path, speed=float("inf")).wait(60).started is not None
        if folder.done:
            assert [e for e in story(folder.events()) if not isinstance(e, Started)] == case.whole[1:]
            continue
        events = list(trainer(folder.recipe()).events(folder))
        assert [e for e in story(events) if not isinstance(e, Started)] == case.whole[1:]
        assert [e.message for e in events if isinstance(e, Warned)][-1] == "resumed after step 4"
        assert events == list(RunFolder(folder.path).events())
        assert folder.done
        data = bytearray((folder.path / "events.jsonl").read_bytes())
        data[data.index(b'"loss_W":[') + 14] ^= 1
        (folder.path / "events.jsonl").write_bytes(data)
        with pytest.raises(Damaged, match=r"line 1 or one of those after it is damaged"):
            list(folder.events())


@pytest.mark.parametrize("number", range(NUM // 2))
def test_damage_in_a_run_of_an_earlier_version_is_one_line(number: int, earlier: list[Case], tmp_path: Path) -> None:
    draw = random.Random(f"earlier {number}")

    def do(folder: Path) -> str:
        damage = draw.choice(DAMAGES)
        return f"{number}: {damage.__name__} {damage(draw, folder, folder.parent / 'elsewhere' / 'other')}"

    survives(draw.choice(earlier), tmp_path, do)


# --- lines that vouch for themselves ---------------------------------------------------------------------------------


def written(path: Path, num: int) -> list[bytes]:
    log = Log(path)
    for t in range(num):
        log.append(to_bytes(Stepped(t, [t / 7, None], 1.0, 0.25)))
    log.close()
    return path.read_bytes().splitlines(keepends=True)


def read_through(file: Path) -> tuple[bytes, str]:
    """The lines that are given, and what is said of the first that is damaged."""
    got = b""
    try:
        for piece in pieces(file):
            got += piece.lines
    except Damaged as error:
        return got, str(error)
    raise AssertionError("nothing was noticed")


def test_no_bit_of_a_log_can_change_unnoticed(tmp_path: Path) -> None:
    """A bit of each byte, flipped alone: the number of its line is told, and the lines before it are given."""
    lines = written(file := tmp_path / "log", 5)
    data = b"".join(lines)
    ends = [sum(map(len, lines[:i])) for i in range(len(lines))]
    for place in range(len(data)):
        flipped = bytearray(data)
        flipped[place] ^= 1 << place % 8
        file.write_bytes(flipped)
        got, told = read_through(file)
        number = int(told.split(": line ")[1][0])
        line = max(i for i, start in enumerate(ends) if start <= place) + 1
        assert number == line or (number == 1 and line <= 2 and not got), (place, told)
        assert got == b"".join(lines[: number - 1])


def test_lines_that_are_missing_moved_or_foreign_are_noticed(tmp_path: Path) -> None:
    lines, file = written(tmp_path / "log", 6), tmp_path / "log"
    other = written(tmp_path / "other", 7)
    for wrong, number in (
        (lines[:2] + lines[3:], 3),
        (lines[1:], 1),
        ([*lines[:2], lines[3], lines[2], *lines[4:]], 3),
        ([*lines[:3], lines[2], *lines[3:]], 4),
        ([*lines[:3], other[6], *lines[4:]], 4),
        ([*lines[:3], lines[3].rpartition(b',"crc"')[0] + b"}\n", *lines[4:]], 4),
        ([*lines, b"null\n"], 7),
    ):
        file.write_bytes(b"".join(wrong))
        with pytest.raises(Damaged, match=f"line {number} "):
            list(pieces(file))
    file.write_bytes(b"".join(lines) + lines[0][:-1])
    assert b"".join(piece.lines for piece in pieces(file)) == b"".join(lines)  # torn: the writer was killed
    file.write_bytes(b"".join(lines)[:-1] + b"x")  # whole, and its end has become something else
    with pytest.raises(Damaged, match=r"line 6 .*no end"):
        list(pieces(file))


def test_the_end_of_a_log_is_checked_without_its_beginning(tmp_path: Path) -> None:
    lines, file = written(tmp_path / "log", 400), tmp_path / "log"
    for num_bytes in (1, 150, 1000, 10**6):
        got = last_lines(file, num_bytes)
        assert got == lines[-len(got) :]
        assert len(got) == (400 if num_bytes == 10**6 else max(1, len(got)))
    damaged = [*lines[:-3], lines[-3].replace(b"0.25", b"0.35"), *lines[-2:]]
    file.write_bytes(b"".join(damaged))
    with pytest.raises(Damaged, match="line 398 "):
        last_lines(file, 600)
    file.write_bytes(b"".join([lines[0].replace(b"0.25", b"0.35"), *lines[1:]]))
    assert last_lines(file, 600) == lines[-len(last_lines(file, 600)) :]


def test_a_log_that_cannot_be_written_ends_with_a_whole_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What does not fit is not there at all, and what is written later follows on what is there."""
    lines, file = written(tmp_path / "log", 3), tmp_path / "log"
    log, write = Log(file), os.write
    monkeypatch.setattr(os, "write", lambda fd, data: write(fd, data[:10]) if len(data) > 30 else os.close(-1))
    log.append(b'{"kind":"one","some":"more than ten bytes"}')
    with pytest.raises(OSError, match="Bad file"):
        log.flush()
    monkeypatch.undo()
    assert file.read_bytes() == b"".join(lines)
    log.append(b'{"kind":"two"}')
    log.close()
    (piece,) = pieces(file)
    assert piece.lines.splitlines()[-1].startswith(b'{"kind":"two"')
    assert Log(file).sha256 == hashlib.sha256(file.read_bytes()).hexdigest()
    list(pieces(file, Vouched("a checkpoint", file.stat().st_size, Log(file).crc)))
    with pytest.raises(Damaged, match=r"has .* bytes that a checkpoint counts on"):
        list(pieces(file, Vouched("a checkpoint", file.stat().st_size + 1, 0)))


# --- names are numbers, and never patterns ---------------------------------------------------------------------------


def test_the_newest_checkpoint_has_the_largest_number(tmp_path: Path) -> None:
    """At a million steps names no longer sort as text: what is kept and what is gone on from are the newest."""
    folder = RunFolder(tmp_path)
    folder.open(recipe(steps=2_000_000))
    for step in (999_950, 1_000_000, 1_000_050, 1_000_100):
        folder.save(step, {}, {"step": step})
    folder.close()
    checkpoint, notes = folder.load()
    assert checkpoint is not None
    assert (checkpoint.step, checkpoint.extra, notes) == (1_000_100, {"step": 1_000_100}, [])
    assert folder.last_step_saved() == 1_000_100
    assert len(list((tmp_path / "checkpoints").iterdir())) == 2 * KEEP
    folder.checkpoint_file(1_000_100).write_bytes(b"")
    assert folder.last_step_saved() == 1_000_050


def test_runs_are_listed_by_number(tmp_path: Path) -> None:
    for number in (10, 9, 2):
        RunFolder(tmp_path / f"ddp-3w-{number}").write_recipe(recipe())
    assert [run.path.name for run in stored(tmp_path)] == ["ddp-3w-2", "ddp-3w-9", "ddp-3w-10"]
    out = lab("list", "--runs", str(tmp_path)).stdout
    assert re.findall(r"ddp-3w-(\d+)", out) == ["2", "9", "10"]


@pytest.mark.parametrize("command", ["resume", "replay", "compare", "export"])
@pytest.mark.parametrize("name", ["", "**", "*", "[a-z]*", "/no/such/run", "../../*", "\0", "a\x1b[31mb", "x" * 3000])
def test_a_name_is_never_a_pattern(command: str, name: str, tmp_path: Path) -> None:
    """Absolute, empty, starred, unprintable or endless: one line that is short, exit code 2."""
    RunFolder(tmp_path / "runs" / "ddp-3w-aaaa").write_recipe(recipe())
    out = lab(command, name, *(["out"] if command == "export" else []), "--runs", str(tmp_path / "runs"))
    assert out.exit_code == 2
    (line,) = out.stderr.splitlines()
    assert line.startswith("lab: ")
    assert len(line) < 400
    assert line.isprintable()


def test_a_refusal_names_some_of_many_runs(tmp_path: Path) -> None:
    for number in range(500):
        (tmp_path / f"run-{number}").mkdir()
        (tmp_path / f"run-{number}" / "recipe.json").write_text("{}")
    with pytest.raises(RecipeError, match=r"there are run-0, run-1, .* \(500 runs\)$") as told:
        find_run("x", tmp_path)
    assert len(str(told.value)) < 400


# --- what is damaged is named, and what can be had from elsewhere is ------------------------------------------------


def change(file: Path, old: bytes, new: bytes) -> int:
    """In the first line that has it; the number of that line."""
    data = file.read_bytes()
    file.write_bytes(data.replace(old, new, 1))
    return data[: data.index(old)].count(b"\n") + 1


def test_a_damaged_run_stops_no_list_and_no_comparison(cases: list[Case], tmp_path: Path) -> None:
    """Its line is named with its number; the other runs are there."""
    whole = next(case for case in cases if RunFolder(case.path).done)
    for name in ("a", "b", "c"):
        shutil.copytree(whole.path, tmp_path / name)
    b = change(tmp_path / "b" / "events.jsonl", b'"step":2,"loss":', b'"step":2,"lost":')
    c = change(tmp_path / "c" / "events.jsonl", b'"status":"done"', b'"status":"dome"')
    rows = [line.split() for line in lab("list", "--runs", str(tmp_path)).stdout.splitlines()]
    assert {row[0]: row[1] for row in rows if row[0] in "abc"} == {"a": "done", "b": "damaged", "c": "damaged"}
    out = lab("compare", "a", "b", "c", "--runs", str(tmp_path), "--json")
    assert [row["run"] for row in json.loads(out.stdout)] == ["a"]
    assert out.exit_code == 2
    assert re.fullmatch(
        rf"lab: .*b/events.jsonl: line {b} is .*: left out\nlab: .*c/events.jsonl: line {c} .*: left out\n", out.stderr
    )
    assert lab("compare", "a", "b", "--runs", str(tmp_path)).stdout.count("\n") == 3
    out = lab("replay", "b", "--speed", "inf", "--runs", str(tmp_path))
    assert out.exit_code == 2
    assert f"line {b} is damaged" in out.stderr
    shown = replay(tmp_path / "b", speed=float("inf"))
    with pytest.raises(Damaged, match=f"line {b}"):
        shown.wait(60)
    assert len([e for e in shown.events if not isinstance(e, Ended)]) == b - 1


@pytest.mark.parametrize("broken", [b"", b"{", b"[]", b"\xff\xfe", b'{"method": "ddp", "steps": 1e99}', None])
def test_a_broken_recipe_is_taken_from_the_run(broken: bytes | None, cases: list[Case], tmp_path: Path) -> None:
    """From a checkpoint, or else from the events; the run says so, goes on as ever, and writes it anew."""
    for name, lost in (("both", ()), ("events", ("checkpoints",)), ("checkpoints", ())):
        folder = RunFolder(shutil.copytree(cases[0].path, tmp_path / name))
        for part in lost:
            shutil.rmtree(folder.path / part)
        file = folder.path / "recipe.json"
        want = json.loads(file.read_bytes())
        file.unlink()
        if broken is not None:
            file.write_bytes(broken)
        assert folder.recipe().to_dict() == want
        assert "damaged" not in lab("list", "--runs", str(tmp_path)).stdout.split(name)[-1]
        out = lab("resume", name, "--runs", str(tmp_path))
        assert out.exit_code == 0, out.output
        assert re.search(r"note: recipe\.json cannot be used \(.*\): it is taken from (checkpoint|events)", out.stderr)
        assert json.loads(file.read_bytes()) == want
        assert story(folder.events()) == cases[0].whole


def test_a_recipe_that_is_not_that_of_the_run_is_refused(cases: list[Case], tmp_path: Path) -> None:
    """Of another seed, copied over a run that was cut off, or edited: nothing is trained, and nothing changed."""
    shutil.copytree(cases[0].path, tmp_path / "run")
    shutil.copy(cases[0].other / "recipe.json", tmp_path / "run" / "recipe.json")
    before = everything(tmp_path)
    for command in ("resume", "replay", "compare"):
        out = lab(command, "run", "--runs", str(tmp_path))
        assert out.exit_code == 2
        assert re.search(
            r"has parts of two runs: seed is 1 in (checkpoint step.*|events.jsonl) and 0 in recipe.json", out.stderr
        )
    assert everything(tmp_path) == before
    with pytest.raises(RecipeError, match="seed is 1 in checkpoint"):
        train(recipe("diloco", seed=0, checkpoint_every=2), tmp_path / "run")


def test_a_checkpoint_of_another_recipe_is_refused(cases: list[Case], tmp_path: Path) -> None:
    """The checkpoints of seed 0 in the run of seed 1; likewise its events."""
    for part in ("checkpoints", "events.jsonl"):
        folder = tmp_path / part
        shutil.copytree(cases[0].path, folder)
        if part == "checkpoints":
            shutil.rmtree(folder / part)
            shutil.copytree(cases[0].other / part, folder / part)
        else:
            shutil.copy(cases[0].other / part, folder / part)
        before = everything(folder)
        out = lab("resume", part, "--runs", str(tmp_path))
        assert out.exit_code == 2, out.output
        assert len(out.stderr.splitlines()) == 1
        assert everything(folder) | {"lock": b""} == before | {"lock": b""}
    with pytest.raises(RecipeError, match=r"seed is 0 in checkpoint step-000006.safetensors and 1 in recipe.json"):
        RunFolder(tmp_path / "checkpoints").load()


def test_short_events_are_never_filled_up(cases: list[Case], tmp_path: Path) -> None:
    """Fewer bytes than the newest checkpoint counts on: the one before it does. Fewer than that: refused, nothing is changed."""
    lines = (cases[0].path / "events.jsonl").read_bytes().splitlines(keepends=True)
    saved = [i for i, line in enumerate(lines) if b'"checkpointed"' in line]
    for num, good in ((saved[1] - 1, True), (saved[0] + 1, True), (saved[0], False), (1, False), (0, False)):
        folder = RunFolder(shutil.copytree(cases[0].path, tmp_path / str(num)))
        (folder.path / "events.jsonl").write_bytes(b"".join(lines[:num]))
        before = everything(folder.path)
        out = lab("resume", str(num), "--runs", str(tmp_path))
        assert (out.exit_code == 0) == good, out.output
        assert re.search(
            r"has [\d,]+ of the [\d,]+ bytes that checkpoint step-00000[24]\.safetensors counts on", out.stderr
        )
        if good:
            assert story(folder.events()) == cases[0].whole
            assert b"\0" not in (folder.path / "events.jsonl").read_bytes()
        else:
            assert out.exit_code == 2
            assert everything(folder.path) == before | {"lock": b""}


def test_a_flip_that_a_checkpoint_counts_on_is_named(cases: list[Case], tmp_path: Path) -> None:
    folder = RunFolder(shutil.copytree(cases[0].path, tmp_path / "run"))
    line = change(folder.path / "events.jsonl", b'"lr":1.0', b'"lr":1.5')
    out = lab("resume", "run", "--runs", str(tmp_path))
    assert out.exit_code == 2
    assert re.search(rf"line {line} is damaged.*, and checkpoint step-000004\.safetensors counts on it", out.stderr)
    assert folder.last_step_saved() == 4


def test_without_a_checkpoint_damaged_events_are_not_written_over(tmp_path: Path) -> None:
    """A run that took days is not done again because of one bit, unless somebody says so."""
    r = recipe("ddp", checkpoint_every=0)
    train(r, tmp_path / "run")
    line = change(tmp_path / "run" / "events.jsonl", b'"lr":1.0', b'"lr":1.5')
    before = everything(tmp_path)
    with pytest.raises(
        Damaged, match=rf"line {line} is damaged.*there is no checkpoint: remove .*events.jsonl to start again"
    ):
        train(r, tmp_path / "run")
    assert everything(tmp_path) == before
    (tmp_path / "run" / "events.jsonl").unlink()
    train(r, tmp_path / "run")
    assert RunFolder(tmp_path / "run").done


def test_what_a_newer_version_wrote_is_refused(cases: list[Case], tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "events")
    folder.open(r := recipe("diloco"))
    folder.append(Started(VERSION + 1, r.to_dict(), 1, [1], 1, None, 1.0, {}))
    folder.close()
    change(tmp_path / "events" / "events.jsonl", b'"num_params"', b'"params_num"')  # fields that are not known here
    with pytest.raises(RecipeError, match=f"of version {VERSION + 1}, and this Isthmus reads versions up to {VERSION}"):
        list(unsealed(tmp_path / "events").events())


def unsealed(path: Path) -> RunFolder:
    """The same events with checksums as they should be."""
    lines = [re.sub(rb',"crc":"[0-9a-f]{8}"}', b"}", x) for x in (path / "events.jsonl").read_bytes().splitlines()]
    log = Log(path / "events.jsonl", 0)
    for line in lines:
        log.append(line)
    log.close()
    return RunFolder(path)


def test_a_checkpoint_of_a_newer_version_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lab.runs.folder.VERSION", VERSION + 1)
    folder = RunFolder(tmp_path)
    folder.open(recipe())
    folder.save(1, {}, {})
    folder.close()
    monkeypatch.undo()
    with pytest.raises(RecipeError, match=f"step-000001.safetensors is of version {VERSION + 1}"):
        folder.load()


def test_knobs_that_were_damaged_are_never_left_out(cases: list[Case], tmp_path: Path) -> None:
    """A flipped line is named; a file that is missing or short is made good from the events; a torn line goes."""
    case = next(c for c in cases if c.path.parent.name == "knobs")
    folder = RunFolder(shutil.copytree(case.path, tmp_path / "flipped"))
    change(folder.path / "knobs.jsonl", b'"lr","value":2.0', b'"lr","value":3.0')
    before = everything(folder.path)
    out = lab("resume", "flipped", "--runs", str(tmp_path))
    assert out.exit_code == 2
    assert re.search(
        r"knobs.jsonl: line 3 is damaged.*; put it back, or remove it to take the knobs from events", out.stderr
    )
    assert everything(folder.path) == before
    data = (folder.path / "knobs.jsonl").read_bytes()
    for name, left in (("missing", None), ("short", data.splitlines(keepends=True)[0]), ("torn", data[:100])):
        folder = RunFolder(shutil.copytree(case.path, tmp_path / name))
        (folder.path / "knobs.jsonl").unlink()
        if left is not None:
            (folder.path / "knobs.jsonl").write_bytes(left)
        stream = trainer(folder.recipe()).events(folder)  # killed again, before the knob is turned again
        next(stream)
        stream.close()  # type: ignore[attr-defined]
        assert lab("resume", name, "--runs", str(tmp_path)).exit_code == 0
        assert story(folder.events()) == case.whole, name


def test_a_run_that_was_cut_off_before_its_last_word_saves_nothing_twice(cases: list[Case], tmp_path: Path) -> None:
    case = next(c for c in cases if RunFolder(c.path).done)
    folder = RunFolder(shutil.copytree(case.path, tmp_path / "run"))
    lines = (folder.path / "events.jsonl").read_bytes().splitlines(keepends=True)
    assert b'"ended"' in lines[-1]
    (folder.path / "events.jsonl").write_bytes(b"".join(lines[:-1]))
    train(folder.recipe(), folder.path)
    assert story(folder.events()) == case.whole


# --- a disk that is full, and other places where nothing can be written ---------------------------------------------


@contextlib.contextmanager
def files_of_at_most(num_bytes: int) -> Iterator[None]:
    """What `ulimit -f` does: writing beyond that fails, in the middle of a write if need be."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_checkpoint_that_does_not_fit(tmp_path: Path) -> None:
    """One line; the one before it is whole, no temporary file, how it ended is in the events; with room it goes on."""
    r = recipe("diloco", checkpoint_every=2)
    folder = RunFolder(tmp_path / "run")
    stream = trainer(r).events(folder)
    next(e for e in stream if isinstance(e, Checkpointed) and e.step == 2)
    size = folder.checkpoint_file(2).stat().st_size
    with files_of_at_most(size - 1), pytest.raises(LabError, match=r"cannot write .*: make room, then go on with: lab"):
        list(stream)
    assert sorted(everything(tmp_path / "run" / "checkpoints")) == ["step-000002.json", "step-000002.safetensors"]
    assert folder.last_step_saved() == 2
    ended = RunFolder(tmp_path / "run").end()
    assert ended is not None
    assert (ended.step, ended.status) == (4, "failed")
    assert "make room" in ended.message
    train(r, tmp_path / "run")
    train(r, tmp_path / "whole")
    assert story(folder.events()) == story(RunFolder(tmp_path / "whole").events())


@pytest.mark.parametrize("most", [2000, 2300, 2500, 2600, 2700])
def test_events_that_do_not_fit(most: int, tmp_path: Path) -> None:
    r = recipe("ddp", checkpoint_every=0, steps=30, eval_every=0)
    with files_of_at_most(most):
        out = lab("run", write_recipe(tmp_path, r), "--runs", str(tmp_path / "runs"))
    assert out.exit_code == 1
    assert out.stderr.splitlines()[-1].startswith("lab: cannot write ")
    (path,) = (tmp_path / "runs").iterdir()
    ended = RunFolder(path).end()
    assert ended is not None
    assert ended.status == "failed"
    assert isinstance(next(RunFolder(path).events()), Started)
    assert lab("resume", path.name, "--runs", str(tmp_path / "runs")).exit_code == 0


def write_recipe(folder: Path, r: Any) -> str:
    (folder / "given.json").write_text(json.dumps(r.to_dict()))
    return str(folder / "given.json")


def test_a_file_in_the_place_of_a_folder_is_one_line(cases: list[Case], tmp_path: Path) -> None:
    given = write_recipe(tmp_path, recipe())
    (tmp_path / "file").write_text("mine")
    shutil.copytree(cases[1].path, tmp_path / "runs" / "run")
    for arguments in (
        ("run", given, "--runs", str(tmp_path / "file")),
        ("run", given, "--runs", str(tmp_path / "file"), "--processes", "3"),
        ("run", given, "--runs", "/dev/full"),
        ("list", "--runs", str(tmp_path / "file")),
        ("resume", "x", "--runs", str(tmp_path / "file")),
        ("export", "run", str(tmp_path / "file"), "--merged", "--runs", str(tmp_path / "runs")),
        ("export", "run", "/dev/full", "--merged", "--runs", str(tmp_path / "runs")),
        ("export", "run", str(tmp_path / "file" / "deeper"), "--merged", "--runs", str(tmp_path / "runs")),
        ("explore", "--out", str(tmp_path / "file" / "deeper")),
        ("slides", "notebooks/10_lesson_1_rarely.ipynb", "--out", str(tmp_path / "file" / "deeper")),
        ("reproduce", "25_outside_evidence", "--out", str(tmp_path / "file")),
    ):
        out = lab(*arguments)
        assert out.exit_code == 2, (arguments, out.output, out.exception)
        (line,) = out.stderr.splitlines()
        assert line.startswith("lab: ")
    assert (tmp_path / "file").read_text() == "mine"
    with files_of_at_most(1000):
        out = lab("export", "run", str(tmp_path / "out"), "--merged", "--runs", str(tmp_path / "runs"))
    assert out.exit_code == 2
    assert "File too large" in out.stderr
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this platform has no /dev/full")
def test_an_output_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    with open("/dev/full", "w", encoding="utf-8") as full:
        out = subprocess.run(
            [sys.executable, "-m", "lab", "list", "--runs", str(tmp_path)],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
        )
    assert out.returncode == 1
    (line,) = out.stderr.splitlines()
    assert line.startswith("lab: cannot write the output (No space left on device)")


def test_temporary_files_of_killed_writers_go_at_the_next_open(cases: list[Case], tmp_path: Path) -> None:
    folder = RunFolder(shutil.copytree(cases[0].path, tmp_path / "run"))
    left = ["checkpoints/.step-000004.safetensors.4711.tmp", "checkpoints/.step-000004.json.4711.tmp"]
    left += [".recipe.json.4711.tmp", ".events.jsonl.4711.tmp"]
    for name in left:
        (folder.path / name).write_bytes(b"half")
    (folder.path / "checkpoints" / ".mine.tmp").write_bytes(b"of a user")
    assert lab("replay", "run", "--speed", "inf", "--runs", str(tmp_path)).exit_code == 0
    assert all((folder.path / name).exists() for name in left)
    assert lab("resume", "run", "--runs", str(tmp_path)).exit_code == 0
    assert [p.name for p in folder.path.rglob("*.tmp")] == [".mine.tmp"]


def test_a_write_that_fails_leaves_no_temporary_file(tmp_path: Path) -> None:
    write_atomically(tmp_path / "file", b"old")
    with files_of_at_most(100), pytest.raises(OSError, match="too large"):
        write_atomically(tmp_path / "file", b"n" * 101)
    assert everything(tmp_path) == {"file": b"old"}


# --- links -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["events.jsonl", "knobs.jsonl", "lock", "checkpoints"])
def test_a_run_folder_never_writes_outside_of_itself(name: str, cases: list[Case], tmp_path: Path) -> None:
    """A link in it that it would write through is refused; what is behind stays as it is."""
    case = next(c for c in cases if c.path.parent.name == "knobs")
    folder = RunFolder(shutil.copytree(case.path, tmp_path / "runs" / "run"))
    (folder.path / name).rename(tmp_path / "elsewhere")
    (folder.path / name).symlink_to(tmp_path / "elsewhere")
    before = everything(tmp_path)
    out = lab("resume", "run", "--runs", str(tmp_path / "runs"))
    assert out.exit_code == 2
    assert f"{name} is a link to {tmp_path / 'elsewhere'}: a run writes only into its own folder" in out.stderr
    assert everything(tmp_path) == before
    (folder.path / name).unlink()
    (folder.path / name).symlink_to(tmp_path / "not there")
    assert lab("resume", "run", "--runs", str(tmp_path / "runs")).exit_code == 2
    assert not (tmp_path / "not there").exists()


def test_other_names_of_its_files_keep_what_they_had(cases: list[Case], tmp_path: Path) -> None:
    """Hard links, as some backups are made of: the run goes on in files of its own."""
    case = next(c for c in cases if c.path.parent.name == "knobs")
    folder = RunFolder(shutil.copytree(case.path, tmp_path / "run"))
    shutil.copytree(folder.path, tmp_path / "backup", copy_function=os.link)
    before = everything(tmp_path / "backup")
    assert lab("resume", "run", "--runs", str(tmp_path)).exit_code == 0
    assert everything(tmp_path / "backup") == before
    assert story(folder.events()) == case.whole


def test_a_folder_of_runs_that_is_a_link_is_as_good(cases: list[Case], tmp_path: Path) -> None:
    """Where a run lies is the user's choice."""
    shutil.copytree(cases[0].path, tmp_path / "disk" / "run")
    (tmp_path / "runs").symlink_to(tmp_path / "disk")
    assert lab("resume", "run", "--runs", str(tmp_path / "runs")).exit_code == 0


# --- several processes -----------------------------------------------------------------------------------------------


def test_what_the_first_process_refuses_is_an_error_at_all_of_them(cases: list[Case], tmp_path: Path) -> None:
    """They wait for its word, so none is left behind."""

    class One:
        num, index, first, mine = 1, 0, True, (0, 1, 2)

        def all_gather_json(self, value: Any, about_bytes: int = 0) -> list[Any]:
            return [json.loads(json.dumps(value))]

    class Other(One):
        first = False

        def all_gather_json(self, value: Any, about_bytes: int = 0) -> list[Any]:
            assert value is None
            return [["it was refused", 2]]

    folder = RunFolder(shutil.copytree(cases[0].path, tmp_path / "run"))
    line = change(folder.path / "events.jsonl", b'"lr":1.0', b'"lr":1.5')
    r = folder.recipe()
    for world, says in ((One(), f"line {line} is damaged"), (Other(), "it was refused")):
        shared = SharedFolder(world, folder)  # type: ignore[arg-type]
        for do in (lambda s=shared: s.load(r), *([lambda s=shared: s.lock()] if not world.first else [])):
            with pytest.raises(RecipeError, match=says):
                do()


# --- what is printed -------------------------------------------------------------------------------------------------


def test_what_comes_from_a_file_is_printed_as_it_stands(tmp_path: Path) -> None:
    """No escape sequence of a recipe, a name or a note reaches the terminal."""
    evil = "text:\x1b]0;owned\x07\x1b[2J\u202e\n"
    RunFolder(tmp_path / "run\x1b[31m").write_recipe(recipe().but(corpus="grammar"))
    raw = (tmp_path / "run\x1b[31m" / "recipe.json").read_text()
    (tmp_path / "run\x1b[31m" / "recipe.json").write_text(raw.replace('"grammar"', json.dumps(evil)))
    out = lab("list", "--runs", str(tmp_path))
    assert out.exit_code == 0
    assert "\x1b" not in out.stdout
    assert "\u202e" not in out.stdout
    assert "\\x1b]0;owned" in out.stdout
    out = lab("replay", "run", "--runs", str(tmp_path))
    assert "\x1b" not in out.output
    assert plain("größe → 1.5 ×") == "größe → 1.5 ×"
    assert plain("a\nb\udcff") == "a\\nb\\udcff"


def test_a_refusal_is_short(tmp_path: Path) -> None:
    """Whatever was given: its beginning and end are enough, in a shell as in a notebook."""
    out = lab("run", "ddp", "-o", f"steps={'x' * 10**6}", "--runs", str(tmp_path))
    assert out.exit_code == 2
    assert len(out.stderr) < 1100
    assert out.stderr.startswith("lab: steps = 'xxx")
    assert "integer" in out.stderr
    assert len(str(RecipeError("y" * 10**6))) < 1010


@pytest.mark.parametrize("columns", ["40", "60", "200"])
def test_the_list_fits_into_a_narrow_terminal(
    columns: str, cases: list[Case], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(cases[1].path, tmp_path / "diloco-3w-0c2a6bac")
    wide = lab("list", "--runs", str(tmp_path)).stdout
    monkeypatch.setattr("lab.cli.terminal_width", lambda: int(columns))
    narrow = lab("list", "--runs", str(tmp_path)).stdout
    longest = max(len(line) for line in narrow.splitlines() if str(tmp_path) not in line)
    assert longest <= int(columns)
    assert re.sub(r"\s+", "", narrow) == re.sub(r"\s+", "", wide)
