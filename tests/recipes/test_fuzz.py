"""Odd recipes are refused in one line, or planned and run; none ends in a traceback, hangs, or takes the machine's memory."""

from __future__ import annotations

import os

import pytest

from tests.support.fuzz_recipes import fuzz

COUNT = int(os.environ.get("ISTHMUS_FUZZ", "60"))


@pytest.mark.slow
def test_odd_recipes() -> None:
    """With ``ISTHMUS_FUZZ=5000`` as many, a tenth of them run."""
    figures = fuzz(COUNT, COUNT // 10)
    print(figures)
    assert not figures.faults, "\n".join(figures.faults)
    assert figures.count["accepted"] > COUNT // 20
    assert figures.count["refused"] > COUNT // 20
    assert figures.peak_bytes < 2e9
