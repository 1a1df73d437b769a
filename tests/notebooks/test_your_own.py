"""The notebook whose method, model and data stand in its cells: swept over, spread over processes, and looked at by those who lack them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from lab.cli import main
from lab.methods import METHODS
from lab.runs.folder import RunFolder
from lab.study.claims import claims_in
from tests.support import ROOT

NAME = "11_your_own"


def lab(*words: str, code: int = 0) -> Result:
    out = CliRunner().invoke(main, [*words])
    assert out.exit_code == code, out.output
    return out


@pytest.mark.slow
@pytest.mark.processes
def test_swept_over_and_looked_at_without_its_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two kernels side by side, each with two processes that import the parts from a file; this process has none of them."""
    shutil.copy(ROOT / f"notebooks/{NAME}.ipynb", tmp_path)
    monkeypatch.chdir(tmp_path)
    swept = lab(
        *("sweep", f"{NAME}.ipynb", "--out", "out", "-p", "carry=0,0.8", "-p", "steps=8", "-p", "sync_every=2"),
        *("-p", "runs=runs"),
    )
    executed = sorted(Path("out").glob(f"{NAME}-*.ipynb"))
    for notebook in executed:
        claims = claims_in(json.loads(notebook.read_text(encoding="utf-8")))
        assert claims is not None
        assert [c.verdict for c in claims.rows] == ["exact"] * 8 + ["inconclusive"]
    assert len(executed) == 2
    assert swept.output.count("8 exact, 1 inconclusive") == 2

    assert "tailwind" not in METHODS
    live = [RunFolder(f) for f in sorted(Path("runs/live").iterdir())]
    assert len(live) == 6  # of both: watched, stopped and gone on with, over processes
    own = [r.recipe().own for r in live]
    assert {part.reference.split(":")[0] for parts in own for part in parts.values()} == {"__main__", "own_parts"}
    for run in live:
        lab("replay", str(run.path), "--speed", "inf")
    lab("compare", *(str(run.path) for run in live), "--network", "10Mbit")

    cut = next(run for run, parts in zip(live, own, strict=True) if parts["method"].reference == "__main__:Tailwind")
    lines = (cut.path / "events.jsonl").read_bytes().splitlines(keepends=True)
    (cut.path / "events.jsonl").write_bytes(b"".join(lines[:-1]))  # as if it had been killed before its end
    (line,) = lab("resume", str(cut.path), code=2).stderr.splitlines()
    assert "Tailwind was defined in a notebook or script, and is not defined here: run the cell" in line
