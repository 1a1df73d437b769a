"""Runs that are launched over processes, as soon as they have begun."""

from __future__ import annotations

import functools
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from lab.events import Event
from lab.recipes.recipe import Recipe
from lab.runs.folder import RunFolder
from lab.runs.launch import prepare
from lab.runs.trainer import train
from tests.support import ROOT
from tests.support.stories import story


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def cut_off(run: Path, to: Path) -> None:
    """The same run as if it had been stopped before its last checkpoint."""
    shutil.copytree(run, to)
    last = sorted((to / "checkpoints").glob("*.safetensors"))[-1]
    last.unlink()
    assert RunFolder(to).last_step_saved() == 3


SMALL = ["corpus=grammar?tokens=8000", "batch_size=2", "context=16", "dtype=float64", "steps=40", "checkpoint_every=4"]


def begun(tmp_path: Path, *options: str, steps: int = 40) -> tuple[RunFolder, subprocess.Popen[str]]:
    """``lab resume --processes 2`` of a small run, in a process of its own, as soon as it has saved something."""
    folder = RunFolder(tmp_path / "run")
    prepare(folder, Recipe.of("des_loc", [*SMALL, f"steps={steps}"]), 2)
    command = [sys.executable, "-m", "lab", "resume", str(folder.path), "--processes", "2", *options]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    started = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while folder.last_step_saved() is None:
        assert started.poll() is None, started.communicate()
        time.sleep(0.02)
    return folder, started


@functools.cache
def unbroken() -> list[Event]:
    """What the small run does when nobody ends it; trained once for all tests of a process."""
    with tempfile.TemporaryDirectory() as folder:
        train(Recipe.of("des_loc", SMALL), folder)
        return story(RunFolder(Path(folder)).events())
