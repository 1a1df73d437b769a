"""Processes killed at random moments of a run that goes on each time: how many were, and whether it ended as if nothing had been."""

from __future__ import annotations

import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from lab.events import Evaluated, Sent, Stepped, Warned
from lab.recipes.recipe import Recipe
from lab.runs import child
from lab.runs.folder import RunFolder
from lab.runs.launch import prepare, train_over_processes

RECIPE = ["corpus=grammar?tokens=8000", "batch_size=4", "context=32", "checkpoint_every=10", "dtype=float64"]


def outcome(folder: RunFolder) -> list[object]:
    """Losses, and everything sent."""
    events = list(folder.events())
    losses = [
        (e.step, e.loss_W if isinstance(e, Stepped) else e.loss) for e in events if isinstance(e, Stepped | Evaluated)
    ]
    return [losses, [e for e in events if isinstance(e, Sent)]]


def killed(num: int, steps: int, seed: int = 0) -> tuple[int, bool, float]:
    """SIGKILL ``num`` times, at random moments, one of two processes by chance. Kills, whether it ends the same bit for bit, seconds."""
    import psutil

    chance, recipe = random.Random(seed), Recipe.of("des_loc", [*RECIPE, f"steps={steps}"])
    with tempfile.TemporaryDirectory() as path:
        folder = RunFolder(Path(path) / "run")
        prepare(folder, recipe, 2)
        command = child.command("lab", "resume", str(folder.path), "--processes", "2", "--restarts", str(num))
        began = time.perf_counter()
        launcher = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        kills, last = 0, -1
        while launcher.poll() is None and kills < num:
            time.sleep(0.05)
            saved = folder.last_step_saved()
            if saved is None or saved == last:  # it has to get on between two kills
                continue
            time.sleep(chance.uniform(0.0, 1.0))
            children = [c for c in psutil.Process(launcher.pid).children() if c.status() != psutil.STATUS_ZOMBIE]
            if children:
                chance.choice(children).kill()
                kills, last = kills + 1, saved
                time.sleep(1.0)
        launcher.wait()
        seconds = time.perf_counter() - began
        resumed = sum(isinstance(e, Warned) and "resumed" in e.message for e in folder.events())
        print(f"exit code {launcher.returncode}; {kills} killed; the last generation's notes: {resumed}", flush=True)
        train_over_processes(2, recipe, Path(path) / "unbroken")
        return kills, outcome(folder) == outcome(RunFolder(Path(path) / "unbroken")), seconds


def main(num: int = 30, steps: int = 4000) -> None:
    kills, same, seconds = killed(num, steps)
    print(f"{kills} processes killed in {seconds:.0f} s; the run ended {'the same' if same else 'DIFFERENTLY'}")


if __name__ == "__main__":
    main(*(int(x) for x in sys.argv[1:]))
