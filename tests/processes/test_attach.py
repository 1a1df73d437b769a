"""`lab.attach` in several processes: every method, Hugging Face's `Trainer`, Accelerate, and the programs of its page as printed."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from lab.runs.columns import Columns
from lab.runs.folder import RunFolder
from tests.support import ROOT
from tests.support.launched import free_port

PAGE = (ROOT / "docs/own_loop.md").read_text(encoding="utf-8")
PROGRAMS = dict(re.findall(r"^\*\*`(\w+\.py)`\*\*\n\n```python\n(.*?)```", PAGE, flags=re.S | re.M))
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}

pytestmark = [pytest.mark.processes, pytest.mark.slow]


def called(folder: Path, *command: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, *command],
        cwd=folder,
        env=ENVIRONMENT | environment,
        capture_output=True,
        text=True,
        timeout=250,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def launched(folder: Path, *command: str) -> str:
    """By torchrun, in two processes."""
    return called(folder, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *command)


@pytest.mark.parametrize("each", [1, 2])
def test_own_loops_in_two_processes_are_the_labs_runs_in_them(each: int, tmp_path: Path) -> None:
    """Every listed method to the last bit, one worker a process and two; cut off and gone on; what is wrong in one is said in both."""
    try:
        called(tmp_path, "-m", "tests.support.own_loops", str(each), str(tmp_path), MASTER_PORT=str(free_port()))
    except AssertionError:
        pytest.fail("\n".join(log.read_text() for log in sorted(tmp_path.glob("process-*.log"))))
    said = [(tmp_path / f"said-{index}.txt").read_text().splitlines() for index in range(2)]
    assert said[0] == said[1]
    assert [line.partition(" (")[0] for line in said[0]] == [
        "process 1 has other parameters",
        "process 1 has other workers than process 0",
        "process 1 has other options of lab.attach than process 0",
        "weight of worker 0 is float16: parameters of float32, bfloat16, float64 can be trained",
    ]
    ledger = Columns.of(RunFolder(tmp_path / "others").events()).ledger
    assert [(r.op, r.state, r.workers) for r in ledger][:1] == [("broadcast", "params", (1,))]


def test_a_trainer_trains_as_the_lab_does(tmp_path: Path) -> None:
    """DiLoCo and DES-LOC by Hugging Face's `Trainer` and by the lab, from one model file and the same batches: the same bits.

    Also where the trainer was cut off, and goes on from its checkpoint.
    """
    from tests.support import tiny_llama

    tiny_llama.write(tmp_path / "model")
    told = launched(tmp_path, "-m", "tests.support.in_trainer", str(tmp_path))
    for what in ("torch_compile=True", "auto_find_batch_size=True", "an optimizer of its own"):
        assert told.count(f"the trainer has {what}") == 2
    for method in ("diloco", "des_loc"):
        columns = Columns.of(RunFolder(tmp_path / f"{method}-run").events())
        assert columns.step == [1, 2, 3, 4, 5, 6]
        assert columns.ended is not None
        assert columns.ended.status == "done"


def test_accelerate(tmp_path: Path) -> None:
    """A loop with accumulation is the lab's; a model that `prepare` has wrapped is refused in one line, whichever came first."""
    told = launched(tmp_path, "-m", "tests.support.in_accelerate")
    assert told.count("the model is wrapped in DistributedDataParallel, which averages") == 2
    assert told.count("the model was wrapped in DistributedDataParallel after lab.attach") == 2


@pytest.mark.parametrize("name", PROGRAMS)
def test_the_programs_of_the_page_run_as_printed(name: str, tmp_path: Path) -> None:
    """Alone and as two processes."""
    for processes, folder in ((1, tmp_path / "one"), (2, tmp_path / "two")):
        folder.mkdir()
        (folder / name).write_text(PROGRAMS[name], encoding="utf-8")
        told = called(folder, name) if processes == 1 else launched(folder, name)
        said = re.findall(r"(?:worker|process) (\d): (\d+) collectives", told)  # two may write into one line
        assert sorted(index for index, _ in said) == ["0", "1"][:processes], told
        assert all(int(num) for _, num in said)
        (run,) = [path.parent for path in folder.rglob("events.jsonl")]
        columns = Columns.of(RunFolder(run).events())
        assert columns.num_workers == processes
        assert columns.ended is not None
        assert columns.ended.status == "done"
        assert columns.loss[-1] < columns.loss[0]
    if name == "trained.py":
        assert "LlamaForCausalLM" in told


def test_the_page_has_three_programs() -> None:
    assert list(PROGRAMS) == ["plain.py", "accelerated.py", "trained.py"]
