"""Jobs of a cluster: a sweep by submitit's local executor and under a Slurm that is bash, and the batch scripts of docs/slurm.md."""

from __future__ import annotations

import json
import os
import re
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from lab.cli import main
from lab.events import Ended, Evaluated, Stepped
from lab.ground.errors import RecipeError
from lab.recipes.recipe import Recipe
from lab.runs.folder import RunFolder
from lab.runs.trainer import train
from lab.study.claims import claims_in
from lab.study.slurm import Cluster
from tests.support import ROOT

pytest.importorskip("submitit")

TRAINING = """
import os, signal, sys
import psutil
import lab
from lab.events import Stepped
from lab.study.claims import Claim, Claims

small = {"model": "nano", "corpus": "grammar?tokens=8000", "num_workers": 2, "batch_size": 1, "context": 16}
small |= {"method": {"name": "local_sgd", "sync_every": 2}, "eval_windows": 2, "steps": 12, "checkpoint_every": 4, "seed": seed}
first = not os.path.exists(f"{marks}/{seed}")
done = []

def each(event):
    if isinstance(event, Stepped):
        done.append(event.seconds)
        if first and event.step == 9 and how:
            with open(f"{marks}/{seed}", "w") as file:
                print(done[:8], file=file)
            above = [p for p in psutil.Process().parents() if "submitit.core._submit" in p.cmdline()]
            if how == "preempted":
                above[0].send_signal(signal.SIGUSR2)
                import time; time.sleep(60)
            if how == "killed" and seed == 2:
                above[0].kill(); os.kill(os.getppid(), signal.SIGKILL); os._exit(1)

run = lab.train(lab.Recipe.of(small), f"{marks}/run{seed}{how}", each=each)
before = "nothing" if first else open(f"{marks}/{seed}").read().strip()
kept = "the first 8" if before == str(run.seconds[:8]) else "none"  # of the steps: seconds are never the same again
Claims("job", (Claim("Paper", "it ends", "here", f"{run.eval_loss[-1]!r} with {kept} kept", "inconclusive"),))
"""


def notebook(path: Path) -> Path:
    def cell(code: str, *tags: str) -> dict[str, Any]:
        of = {"metadata": {"tags": list(tags)}, "outputs": [], "execution_count": None, "id": f"c{len(code)}"}
        return {"cell_type": "code", "source": code} | of

    cells = [
        cell('seed: int = 1  # of what\nhow: str = ""  # it ends\nmarks: str = ""  # where', "parameters"),
        cell(TRAINING),
    ]
    python = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    path.write_text(
        json.dumps({"cells": cells, "metadata": python, "nbformat": 4, "nbformat_minor": 5}), encoding="utf-8"
    )
    return path


def measured(out: Path) -> list[str]:
    found = [claims_in(json.loads(file.read_text(encoding="utf-8"))) for file in sorted(out.glob("job-*.ipynb"))]
    return sorted(claims.rows[0].measured for claims in found if claims is not None)


def sweep(tmp_path: Path, how: str, *options: str, seeds: str = "1") -> Any:
    source = notebook(tmp_path / "job.ipynb")
    parameters = ["-p", f"seed={seeds}", "-p", f"how={how}" if how else 'how=""', "-p", f"marks={tmp_path}"]
    return CliRunner().invoke(main, ["sweep", str(source), *parameters, "--out", str(tmp_path / f"out{how}"), *options])


def alone(seed: int) -> float:
    small: dict[str, Any] = {
        "model": "nano",
        "corpus": "grammar?tokens=8000",
        "num_workers": 2,
        "batch_size": 1,
        "context": 16,
    }
    small |= {
        "method": {"name": "local_sgd", "sync_every": 2},
        "eval_windows": 2,
        "steps": 12,
        "checkpoint_every": 4,
        "seed": seed,
    }
    return train(Recipe.of(small)).eval_loss[-1]


@pytest.mark.slow
@pytest.mark.processes
@pytest.mark.timeout(600)
def test_a_job_that_is_preempted_goes_on_from_its_checkpoint(tmp_path: Path) -> None:
    """Put back in the middle of a run, after step 9: the second time it has the first 8 from its checkpoint, and ends with the same number."""
    out = sweep(tmp_path, "preempted", "--slurm", "--cluster", "local", "--time", "30")
    assert out.exit_code == 0, out.output
    assert measured(tmp_path / "outpreempted") == [f"{alone(1)!r} with the first 8 kept"]
    again = sweep(tmp_path, "preempted", "--slurm", "--cluster", "local")
    assert "1 already done" in again.output


SLURM = {
    # An array: each task by bash, in the background, with Slurm's variables.
    "sbatch": """last=$(sed -n 's/^#SBATCH --array=0-\\([0-9]*\\).*/\\1/p' "$1")
grep '^#SBATCH' "$1" >> "$FAKE/asked"
id=$((1000 + $(ls "$FAKE" | wc -l)))
touch "$FAKE/job$id"
for task in $(seq 0 "${last:-0}"); do
  [ -z "$last" ] || export SLURM_ARRAY_JOB_ID=$id SLURM_ARRAY_TASK_ID=$task SLURM_ARRAY_TASK_COUNT=$((last + 1))
  SLURM_JOB_ID=$((id + task)) SLURM_NTASKS=1 SLURM_JOB_NUM_NODES=1 SLURM_NODEID=0 SLURM_PROCID=0 SLURM_LOCALID=0 \\
    bash "$1" > "$FAKE/said$task" 2>&1 &
done
echo "Submitted batch job $id"
""",
    # On every node (of which both are here), what stands behind the options.
    "srun": """while [[ "$1" == --* ]]; do [[ "$1" == --unbuffered ]] && shift || shift 2; done
for node in $(seq 1 $((SLURM_JOB_NUM_NODES - 1))); do SLURM_NODEID=$node "$@" & done
SLURM_NODEID=0 "$@"
code=$?
wait
exit $code
""",
    "sacct": "echo 'JobID|State|NodeList'\n",
    "scontrol": '[ "$1" = show ] && echo 127.0.0.1 || echo "$@" >> "$FAKE/scontrol"\n',
}


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Slurm's commands, as far as they are needed here, in front of all others; what they were asked lies in the folder."""
    programs, kept = tmp_path / "bin", tmp_path / "asked of slurm"
    programs.mkdir()
    kept.mkdir()
    for name, text in SLURM.items():
        (programs / name).write_text(f"#!/bin/bash\n{text}", encoding="utf-8")
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{Path(sys.executable).parent}:{os.environ['PATH']}")
    monkeypatch.setenv("FAKE", str(kept))
    return kept


@pytest.mark.slow
@pytest.mark.processes
@pytest.mark.timeout(600)
def test_a_sweep_as_an_array_of_jobs(tmp_path: Path, slurm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two tasks, one of which is killed: it is named, submitted again alone by the same command, and both end as they would anywhere."""
    monkeypatch.setattr("lab.study.slurm.SETTLE_SECONDS", 8.0)
    asks = ("--slurm", "--partition", "short", "--time", "30", "--cpus", "2", "--gpus", "1", "--sbatch", "account=abc")
    monkeypatch.setattr("submitit.slurm.slurm.SlurmInfoWatcher.is_done", lambda self, job, mode="standard": gone(job))

    def gone(number: str) -> bool:
        """Whether nothing of a task runs any more."""
        return subprocess.run(["pgrep", "-f", f"submitit.core._submit {tmp_path}"], capture_output=True).returncode == 1

    first = sweep(tmp_path, "killed", *asks, seeds="1,2")
    assert first.exit_code == 1, first.output
    (line,) = [x for x in first.stderr.splitlines() if x.startswith("failed:")]
    assert re.match(r"failed: job with seed=2 how=killed .*: its job \d+_1 ended without a word", line)
    asked = (slurm / "asked").read_text()
    for option in ("partition=short", "time=30", "cpus-per-task=2", "gpus-per-node=1", "account=abc", "array=0-1%2"):
        assert f"#SBATCH --{option}" in asked
    assert "signal=USR2@" in asked
    jobs = tmp_path / "outkilled/slurm"
    assert stat.S_IMODE(jobs.stat().st_mode) == 0o700
    again = sweep(tmp_path, "killed", *asks, seeds="1,2")
    assert again.exit_code == 0, again.output
    assert "2 combinations, 1 already done" in again.output
    expected = sorted([f"{alone(1)!r} with none kept", f"{alone(2)!r} with the first 8 kept"])
    assert measured(tmp_path / "outkilled") == expected


def test_what_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RecipeError, match="--cluster local"):
        Cluster().executor(tmp_path)
    monkeypatch.setattr("lab.study.slurm.find_spec", lambda name: None)
    with pytest.raises(RecipeError, match=r"pip install 'isthmus\[slurm\]'"):
        Cluster().executor(tmp_path)
    out = CliRunner().invoke(main, ["sweep", "01_des_loc", "-p", "seeds=0", "--slurm", "--sbatch", "account"])
    assert out.exit_code == 2
    assert "write KEY=VALUE" in out.stderr


# --- the batch scripts -------------------------------------------------------------------------------------------------


def script(kind: str, tmp_path: Path) -> Path:
    """One of the page, as a file."""
    page = (ROOT / "docs/slurm.md").read_text(encoding="utf-8")
    (text,) = [block for block in re.findall(r"```bash\n(.*?)```", page, flags=re.S) if kind in block]
    path = tmp_path / "script.sh"
    path.write_text(text, encoding="utf-8")
    return path


def written(tmp_path: Path) -> Recipe:
    small: dict[str, Any] = {
        "model": "nano",
        "corpus": "grammar?tokens=8000",
        "num_workers": 2,
        "batch_size": 1,
        "context": 16,
    }
    small |= {"method": {"name": "local_sgd", "sync_every": 2}, "eval_windows": 2, "steps": 64, "checkpoint_every": 4}
    (tmp_path / "mine.json").write_text(json.dumps(small), encoding="utf-8")
    return Recipe.of(small)


def losses(folder: RunFolder) -> tuple[list[Any], float]:
    events = list(folder.events())
    assert isinstance(events[-1], Ended)
    steps = {e.step: e.loss_W for e in events if isinstance(e, Stepped)}
    return [steps[t] for t in sorted(steps)], [e.loss for e in events if isinstance(e, Evaluated)][-1]


@pytest.mark.slow
@pytest.mark.processes
@pytest.mark.timeout(600)
def test_the_script_for_several_nodes(tmp_path: Path, slurm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two nodes, a process on each: the run is that of one process."""
    recipe = written(tmp_path).but(checkpoint_every=32)
    variables = {
        "SLURM_JOB_ID": str(os.getpid()),
        "SLURM_JOB_NUM_NODES": "2",
        "SLURM_JOB_NODELIST": "here",
        "PER_NODE": "1",
    }
    command = ["bash", str(script("--nodes=2", tmp_path)), "mine.json"]
    done = subprocess.run(command, cwd=tmp_path, env=os.environ | variables, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    steps, loss = losses(RunFolder(tmp_path / "runs" / recipe.id))
    expected = train(recipe)
    assert steps == expected.loss_W
    assert loss == expected.eval_loss[-1]


@pytest.mark.slow
@pytest.mark.processes
@pytest.mark.timeout(600)
def test_the_script_for_sites_survives_preemption(tmp_path: Path, slurm: Path) -> None:
    """Site 1 is told to go, asks to be put back, and is started again alone; site 0 goes on, and ends as one process would."""
    recipe = written(tmp_path)
    path = script("--array=0-3", tmp_path)

    def task(number: int) -> subprocess.Popen[bytes]:
        variables = {"SLURM_ARRAY_JOB_ID": "77", "SLURM_ARRAY_TASK_ID": str(number), "SLURM_ARRAY_TASK_COUNT": "2"}
        with open(tmp_path / f"said{number}", "ab") as log:
            return subprocess.Popen(
                ["bash", str(path), "mine.json"], cwd=tmp_path, env=os.environ | variables, stdout=log, stderr=log
            )

    sites = [task(0), task(1)]
    events = tmp_path / "runs" / recipe.id / "events.jsonl"
    until = time.monotonic() + 200
    while not (events.exists() and events.read_bytes().count(b'"stepped"') > 6) and time.monotonic() < until:
        time.sleep(0.02)
    sites[1].send_signal(signal.SIGTERM)
    assert sites[1].wait(60) == 0
    assert sites[0].poll() is None  # it waits for the other one
    assert (slurm / "scontrol").read_text() == "requeue 77_1\n"
    sites[1] = task(1)
    assert sites[1].wait(200) == 0
    assert sites[0].wait(200) == 0, (tmp_path / "said0").read_text()
    steps, loss = losses(RunFolder(tmp_path / "runs" / recipe.id))
    expected = train(recipe)
    assert steps == expected.loss_W
    assert loss == expected.eval_loss[-1]
