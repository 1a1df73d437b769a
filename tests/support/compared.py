"""Recipes that are run over several processes, and whether that was the same run."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from lab.processes.environment import MAILBOX
from lab.runs.folder import RunFolder
from tests.support import ROOT
from tests.support.launched import free_port
from tests.support.stories import read, same

TOLERANCE = {
    "diloco bfloat16": 1e-3,
    "fedit bfloat16": 1e-3,
}  # sums of narrow floats are rounded on the way; all else is float64


def run_over(num: int, out: Path, machines: int = 1, names: Sequence[str] = (), mailbox: Path | None = None) -> None:
    """These recipes (default: all) over ``num`` processes, which meet once; as if on so many machines."""
    env = os.environ | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(num)}
    env |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    env |= {} if mailbox is None else {MAILBOX: str(mailbox)}
    command = [sys.executable, "-m", "tests.support.over_processes", str(out), str(machines), *names]
    started = subprocess.Popen(
        command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
    )
    try:
        codes, _ = started.communicate(timeout=250 if mailbox is None else 1100)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(started.pid, signal.SIGKILL)
    said = "\n".join(log.read_text()[-2000:] for log in sorted(out.glob("process-*.log")))
    assert started.returncode == 0, (codes, said)


def check(one: Path, several: Path, name: str) -> None:
    """Every event (losses, who is up, what was sent, where routers sent tokens …) and the last checkpoint are the same."""
    tolerance = TOLERANCE.get(name, 1e-10)
    want, got = read(one, name), read(several, name)
    assert [e["kind"] for e in got] == [e["kind"] for e in want]
    assert [e for e in got if e["kind"] == "sent"] == [e for e in want if e["kind"] == "sent"]
    evaluated = {e["step"] for e in want if e["kind"] == "evaluated"}
    for a, b in zip(want, got, strict=True):
        if a["kind"] == "covered" and b["bias"] is None and b["step"] not in evaluated:
            a["bias"] = None  # nobody has all factors
        assert same(a, b, tolerance), (a, b)
    (first, _), (second, _) = RunFolder(one / name).load(), RunFolder(several / name).load()
    assert first is not None
    assert second is not None
    assert same(first.extra, second.extra, tolerance)
    assert first.tensors.keys() == second.tensors.keys()
    for key, x in first.tensors.items():
        assert x.shape == second.tensors[key].shape, key
        assert torch.allclose(x, second.tensors[key], rtol=0, atol=100 * tolerance), key
