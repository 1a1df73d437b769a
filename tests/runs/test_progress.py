"""A run so far, in one line."""

from __future__ import annotations

from pathlib import Path

import pytest

from lab.events import Ended, Evaluated, KnobChanged, Sent, Started, Stepped
from lab.runs.progress import FILE, Progress, report

STARTED = Started(1, {}, 1, [1], 30, None, 1.0, {})


def stepped(step: int, *loss_W: float | None) -> Stepped:
    return Stepped(step, list(loss_W), 1.0, 0.1)


def test_it_says_where_the_run_is() -> None:
    """Mean loss of those that are up, tokens that they computed, payload of all, and the time left at the present pace."""
    now = [0.0]
    progress = Progress(2000, clock=lambda: now[0])
    assert progress.text() == "step 0 of 2,000, 0 B sent by all"
    for event in (STARTED, stepped(1, 1.0, None, 2.0), Sent(1, "all_reduce", "params", (0, 2), {"all": 500})):
        progress(event)
    assert progress.text() == "step 1 of 2,000, loss 1.500 (2 of 3 workers up), 200 tokens/s, 1 kB sent by all"
    now[0] = 0.5
    progress(stepped(2, None, None, None))
    assert progress.text() == "step 2 of 2,000, no worker is up, 0 tokens/s, 1 kB sent by all, 16.6 min left"
    progress(Evaluated(2, 2.5, 0.0))
    assert progress.present() == "no worker is up, validation 2.5000, 0 tokens/s, 1 kB sent by all"


def test_pauses_do_not_count_and_a_run_begins_anew() -> None:
    """How long somebody thinks says nothing of what is left; `Started` begins the fold again."""
    now = [0.0]
    progress = Progress(10, clock=lambda: now[0])
    for event in (STARTED, stepped(1, 2.0), KnobChanged(2, "paused", True)):
        progress(event)
    now[0] = 1000.0
    progress(stepped(2, 2.0))
    assert progress.seconds_left is None
    now[0] = 1001.0
    progress(stepped(3, 2.0))
    assert progress.seconds_left == 7.0
    progress(STARTED)
    assert progress.text() == "step 0 of 10, 0 B sent by all"


def test_a_run_that_is_over_says_how_it_ended() -> None:
    progress = Progress(2)
    for event in (STARTED, stepped(1, 2.0), stepped(2, 1.0), Evaluated(2, 1.25, 0.0), Ended(2, "done", "")):
        progress(event)
    assert progress.text() == "step 2 of 2, loss 1.000, validation 1.2500, 0 B sent by all"
    assert progress.summary() == "2 steps, validation 1.2500, 0 B sent by all, 0 s"
    progress(Ended(2, "failed", "it fell"))
    assert progress.text().endswith(", it fell")


def test_word_is_left_where_somebody_asks_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(FILE, raising=False)
    report("nobody hears this")
    monkeypatch.setenv(FILE, str(tmp_path / "progress"))
    report("step 1 of 2 …")
    assert (tmp_path / "progress").read_text(encoding="utf-8") == "step 1 of 2 …"
