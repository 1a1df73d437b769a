"""Sites apart: what belongs to the whole machine has one user at a time. (The rest is notebook 24's, from top to bottom.)"""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from lab.runs.shaped_links import _only_here

TRY = """
from lab.runs.shaped_links import _only_here
try:
    with _only_here():
        print("free")
except OSError as error:
    print(error)
"""


@pytest.mark.processes
def test_namespaces_have_one_user_at_a_time(monkeypatch: pytest.MonkeyPatch, tmp_path: os.PathLike[str]) -> None:
    """Another process is told so, and removes nothing; afterwards, or when the first one was killed, they are free."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)

    def other() -> str:
        return subprocess.run([sys.executable, "-c", TRY], capture_output=True, text=True, check=True).stdout.strip()

    with _only_here():
        assert other() == "another run has the network namespaces: wait for its end"
    assert other() == "free"
