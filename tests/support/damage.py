"""Damage for run folders, drawn from a seed: what disks, editors, copying tools and people do to the files of a run."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

Draw = random.Random


def files_of(folder: Path) -> list[Path]:
    """All files of a run that are there, those that are read most often more than once."""
    found = sorted(p for p in folder.rglob("*") if p.is_file() and not p.is_symlink())
    return [p for p in found for _ in range({"events.jsonl": 4, "knobs.jsonl": 2, "lock": 0}.get(p.name, 1))]


def _some(draw: Draw, folder: Path, suffix: str = "") -> Path:
    return draw.choice([p for p in files_of(folder) if p.name.endswith(suffix)])


def _changed(file: Path, change: Callable[[bytes], bytes]) -> str:
    file.write_bytes(change(file.read_bytes()))
    return file.name


# --- one file --------------------------------------------------------------------------------------------------------


def truncate(draw: Draw, folder: Path, _: Path) -> str:
    return _changed(_some(draw, folder), lambda data: data[: draw.randrange(len(data) + 1)])


def truncate_to_a_line(draw: Draw, folder: Path, _: Path) -> str:
    def cut(data: bytes) -> bytes:
        lines = data.splitlines(keepends=True)
        return b"".join(lines[: draw.randrange(len(lines))])

    return _changed(_some(draw, folder, ".jsonl"), cut)


def flip_a_bit(draw: Draw, folder: Path, _: Path) -> str:
    def flip(data: bytes) -> bytes:
        out = bytearray(data)
        if out:
            out[draw.randrange(len(out))] ^= 1 << draw.randrange(8)
        return bytes(out)

    return _changed(_some(draw, folder), flip)


def change_a_digit(draw: Draw, folder: Path, _: Path) -> str:
    """As by hand: still JSON, other numbers."""

    def change(data: bytes) -> bytes:
        places = [i for i, c in enumerate(data) if 48 <= c < 58]
        if not places:
            return data
        i = draw.choice(places)
        return data[:i] + bytes([48 + (data[i] - 48 + draw.randint(1, 9)) % 10]) + data[i + 1 :]

    return _changed(draw.choice([p for p in files_of(folder) if p.suffix != ".safetensors"]), change)


def zeros(draw: Draw, folder: Path, _: Path) -> str:
    """As a file system leaves them after the power has gone."""

    def fill(data: bytes) -> bytes:
        start = draw.randrange(len(data) + 1)
        end = min(len(data), start + draw.choice([1, 8, 512, 4096]))
        return data[:start] + bytes(end - start) + data[end:]

    return _changed(_some(draw, folder), fill)


def delete_a_file(draw: Draw, folder: Path, _: Path) -> str:
    file = _some(draw, folder)
    file.unlink()
    return file.name


def empty_a_file(draw: Draw, folder: Path, _: Path) -> str:
    return _changed(_some(draw, folder), lambda data: b"")


def another_encoding(draw: Draw, folder: Path, _: Path) -> str:
    file = _some(draw, folder, draw.choice([".json", ".jsonl"]))
    how = draw.choice(["utf-16", "utf-8-sig", "cp037"])
    return _changed(file, lambda data: data.decode("latin-1").encode(how, "replace"))


def garbage_at_the_end(draw: Draw, folder: Path, _: Path) -> str:
    tail = draw.choice(
        [
            b"\n",
            b"{}\n",
            b"null\n",
            b"[1,2]\n",
            b"\xff\xfe\n",
            b'{"kind":"ended","step":1,"status":"done","message":""}\n',
        ]
    )
    return _changed(_some(draw, folder), lambda data: data + tail)


# --- lines -----------------------------------------------------------------------------------------------------------


def _lines(draw: Draw, folder: Path, change: Callable[[list[bytes]], None]) -> str:
    def changed(data: bytes) -> bytes:
        lines = data.splitlines(keepends=True)
        change(lines)
        return b"".join(lines)

    return _changed(_some(draw, folder, ".jsonl"), changed)


def swap_lines(draw: Draw, folder: Path, _: Path) -> str:
    def swap(lines: list[bytes]) -> None:
        i, j = draw.randrange(len(lines)), draw.randrange(len(lines))
        lines[i], lines[j] = lines[j], lines[i]

    return _lines(draw, folder, swap)


def delete_a_line(draw: Draw, folder: Path, _: Path) -> str:
    return _lines(draw, folder, lambda lines: lines.pop(draw.randrange(len(lines))) and None)


def repeat_a_line(draw: Draw, folder: Path, _: Path) -> str:
    return _lines(draw, folder, lambda lines: lines.insert(draw.randrange(len(lines)), draw.choice(lines)))


def foreign_line(draw: Draw, folder: Path, other: Path) -> str:
    theirs = (other / "events.jsonl").read_bytes().splitlines(keepends=True)

    def put(lines: list[bytes]) -> None:
        lines[draw.randrange(len(lines))] = draw.choice(theirs)

    return _lines(draw, folder, put)


def a_line_without_its_checksum(draw: Draw, folder: Path, _: Path) -> str:
    def strip(lines: list[bytes]) -> None:
        i = draw.randrange(len(lines))
        lines[i] = lines[i].rpartition(b',"crc":')[0] + b"}\n"

    return _lines(draw, folder, strip)


# --- files of another run, or in another place -----------------------------------------------------------------------


def of_another_run(draw: Draw, folder: Path, other: Path) -> str:
    """One of its files, in the place of ours."""
    theirs = draw.choice([p for p in files_of(other) if p.suffix != ".safetensors" or p.with_suffix(".json").exists()])
    ours = folder / theirs.relative_to(other)
    shutil.copy(theirs, ours)
    if theirs.suffix == ".safetensors" and draw.random() < 0.7:
        shutil.copy(theirs.with_suffix(".json"), ours.with_suffix(".json"))
    return ours.name


def several_of_another_run(draw: Draw, folder: Path, other: Path) -> str:
    """Its recipe, its events, or all its checkpoints; perhaps two of these."""
    parts = draw.sample(["recipe.json", "events.jsonl", "checkpoints"], draw.choice([1, 2]))
    for part in parts:
        if (folder / part).is_symlink():
            (folder / part).unlink()
        elif part == "checkpoints":
            shutil.rmtree(folder / part)
        (shutil.copytree if part == "checkpoints" else shutil.copy)(other / part, folder / part)
    return " and ".join(parts)


def swap_checkpoints(draw: Draw, folder: Path, _: Path) -> str:
    """The names of two of them, with or without their digests."""
    steps = sorted({p.stem for p in (folder / "checkpoints").glob("step-*.safetensors")})
    if len(steps) < 2:
        return "nothing"
    for suffix in draw.choice([[".json"], [".safetensors"], [".json", ".safetensors"]]):
        one, two = (folder / "checkpoints" / f"{stem}{suffix}" for stem in draw.sample(steps, 2))
        one.rename(folder / "swapped")
        two.rename(one)
        (folder / "swapped").rename(two)
    return " and ".join(steps)


def a_checkpoint_of_a_later_step(draw: Draw, folder: Path, other: Path) -> str:
    file = draw.choice(sorted((other / "checkpoints").glob("step-*.safetensors")))
    for f in (file, file.with_suffix(".json")):
        shutil.copy(f, folder / "checkpoints" / f"step-{draw.choice(['000009', '1000000', '000005'])}{f.suffix}")
    return file.name


def lose_the_checkpoints(draw: Draw, folder: Path, _: Path) -> str:
    shutil.rmtree(folder / "checkpoints")
    return "checkpoints"


def left_by_a_killed_writer(draw: Draw, folder: Path, _: Path) -> str:
    for name in ("checkpoints/.step-000004.safetensors.4711.tmp", ".recipe.json.4711.tmp"):
        (folder / name).write_bytes(b"{")
    return "temporary files"


# --- links -----------------------------------------------------------------------------------------------------------


def a_link(draw: Draw, folder: Path, other: Path) -> str:
    """To a file or a folder that is not of this run: what is behind it must stay as it is."""
    name = draw.choice(
        ["events.jsonl", "knobs.jsonl", "lock", "checkpoints", "recipe.json", "a checkpoint", "a digest"]
    )
    if name.startswith("a "):
        stem = draw.choice(sorted({p.stem for p in (folder / "checkpoints").glob("step-*.safetensors")}))
        name = f"checkpoints/{stem}{'.json' if name == 'a digest' else '.safetensors'}"
    ours, outside = folder / name, other.parent / "outside" / name
    outside.parent.mkdir(parents=True, exist_ok=True)
    source = ours if draw.random() < 0.5 and ours.exists() else other / name
    if not outside.exists() and source.exists():
        (shutil.copytree if source.is_dir() else shutil.copy)(source, outside)
    if ours.is_dir():
        shutil.rmtree(ours)
    ours.unlink(missing_ok=True)
    ours.symlink_to(outside if draw.random() < 0.9 else other.parent / "outside" / "not there")
    return f"{name} as a link"


def another_name_of_the_same_file(draw: Draw, folder: Path, other: Path) -> str:
    """A hard link, as some tools for backups make them."""
    ours = _some(draw, folder)
    outside = other.parent / "outside" / ours.name
    outside.parent.mkdir(parents=True, exist_ok=True)
    outside.unlink(missing_ok=True)
    os.link(ours, outside)
    return f"{ours.name} as a hard link"


def no_file(draw: Draw, folder: Path, _: Path) -> str:
    file = _some(draw, folder)
    file.unlink()
    if draw.random() < 0.5:
        file.mkdir()
    else:
        os.mkfifo(file)
    return f"{file.name} as a folder or a pipe"


DAMAGES = [
    *(
        truncate,
        truncate_to_a_line,
        flip_a_bit,
        flip_a_bit,
        flip_a_bit,
        change_a_digit,
        zeros,
        delete_a_file,
        empty_a_file,
    ),
    *(another_encoding, garbage_at_the_end, swap_lines, delete_a_line, repeat_a_line, foreign_line),
    *(
        a_line_without_its_checksum,
        of_another_run,
        swap_checkpoints,
        lose_the_checkpoints,
        left_by_a_killed_writer,
        no_file,
    ),
]
FOREIGN = [
    *(a_link, a_link, a_link, another_name_of_the_same_file, of_another_run, several_of_another_run),
    *(a_checkpoint_of_a_later_step, swap_checkpoints, truncate, truncate_to_a_line, flip_a_bit, zeros, foreign_line),
]
