"""torchft as an oracle: its own DiLoCo and LocalSGD beside ours, and our runs with its process group under them. Skipped where it is missing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from lab.engine.optim import AdamW, Nesterov
from lab.events import from_json
from lab.methods.des_loc import DESLOC
from lab.methods.diloco import DiLoCo
from lab.methods.local_sgd import LocalSGD
from lab.runs.trainer import Trainer
from tests.support import ROOT
from tests.support.bench import Bench
from tests.support.recipes import corpus
from tests.support.stories import PATIENCE, close_events, story

pytest.importorskip("torchft", reason="pip install 'isthmus[torchft]'")
from tests.support.in_torchft import LR, METHODS, OUTER, PERIOD, STEPS, of_two

pytestmark = [pytest.mark.processes, pytest.mark.slow, pytest.mark.timeout(200)]
INNER = AdamW(lr=LR)


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What two processes have that meet through torchft."""
    file = tmp_path_factory.mktemp("torchft") / "store"
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, "-m", "tests.support.in_torchft"]

    def started(index: int, lighthouse: str) -> subprocess.Popen[str]:
        words = [*command, str(index), lighthouse, str(file)]
        return subprocess.Popen(words, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    first, there = started(0, "-"), Path(f"{file}.lighthouse")
    until = time.monotonic() + PATIENCE
    while not there.exists():
        assert first.poll() is None, first.communicate()
        assert time.monotonic() < until
        time.sleep(0.02)
    both = [first, started(1, there.read_text(encoding="utf-8"))]
    try:
        said = [process.communicate(timeout=150) for process in both]
    finally:
        for process in both:
            process.kill()
    assert [process.returncode for process in both] == [0, 0], said
    return [json.loads(out.splitlines()[-1]) for out, _ in said]


@pytest.mark.parametrize(
    ("theirs", "method"),
    [
        ("diloco", DiLoCo(PERIOD, inner=INNER, outer=Nesterov(OUTER["lr"], OUTER["momentum"]), max_norm=None)),
        ("local_sgd", LocalSGD(PERIOD, inner=INNER, max_norm=None)),
        (
            "local_sgd",  # whose states are never averaged
            DESLOC({"params": PERIOD, "exp_avg": STEPS + 1, "exp_avg_sq": STEPS + 1}, inner=INNER, max_norm=None),
        ),
    ],
    ids=["diloco", "local_sgd", "des_loc"],
)
def test_every_step_is_that_of_torchft(seen: list[dict[str, Any]], theirs: str, method: Any) -> None:
    ours = Bench(method, 2)
    for t in range(STEPS):
        ours.run(1)
        for w in range(2):
            want = torch.tensor(seen[w][theirs][t], dtype=torch.float64)
            assert torch.allclose(ours.of(w), want, rtol=0, atol=1e-12), (t + 1, w)
    assert not torch.allclose(torch.tensor(seen[0][theirs][1]), torch.tensor(seen[1][theirs][1]), atol=1e-6), (
        "not alike"
    )


@pytest.mark.parametrize("name", METHODS)
def test_a_run_over_its_process_group_is_that_of_one_process(seen: list[dict[str, Any]], name: str) -> None:
    one = story(Trainer(of_two(METHODS[name]), corpus=corpus()).events())
    for of_process in seen:
        several = [from_json(line) for line in of_process["stories"][name]]
        assert close_events([e for e in several if e.kind != "started"], [e for e in one if e.kind != "started"])
