"""What all tests share: one intra-op thread, a cache of their own; what takes long begins first.

Nothing here imports torch before a test needs it: the process that only hands out tests to others (``-n``) never does.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from lab.runs.child import quick_

pytest.register_assert_rewrite("tests.support")

quick_()
settings.register_profile("lab", deadline=None, derandomize=True, max_examples=60)
settings.load_profile("lab")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Slow tests first, those of the module that has most of them before all others.

    Of several processes that share the tests none is then left with a long one when the others are done, and what the tests
    of a module share is made once: a process that has nothing to do takes tests from the end of another's.
    """
    slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
    items.sort(key=lambda item: -slow[item.path] if item.get_closest_marker("slow") else 0)


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Iterator[None]:
    """Corpora go to a temporary folder, one for all processes that share the tests, unless a test names another."""
    base = tmp_path_factory.getbasetemp()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ISTHMUS_CACHE", str((base if worker_id == "master" else base.parent) / "cache"))
        yield


@pytest.fixture(scope="session", autouse=True)
def no_waiting_for_the_disk() -> Iterator[None]:
    """Ten thousand checkpoints are written, and no test can cut the power: nothing here waits until a file is on the disk."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda file: None)
        yield


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Two intra-op threads on a busy machine are slower than one, and forked processes can hang."""
    import torch

    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"


@pytest.fixture
def nothing_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Runs in the background go to a folder of the test, and none goes on after it."""
    import lab.runs.live
    from tests.support.stories import PATIENCE

    monkeypatch.chdir(tmp_path)
    yield
    for run in lab.runs.live._RUNS:
        run.stop()
        assert run.finished.wait(PATIENCE)


@pytest.fixture(autouse=True)
def registered_methods_stay() -> Iterator[None]:
    """Methods that a test registers are gone after it."""
    from lab.methods import METHODS

    before = dict(METHODS)
    yield
    if before != METHODS:
        METHODS.clear()
        METHODS.update(before)


@pytest.fixture(autouse=True)
def global_generator_untouched() -> Iterator[None]:
    """No test, and nothing that a test calls, draws from torch's global generator for good."""
    import torch

    before = torch.get_rng_state()
    yield
    assert torch.equal(before, torch.get_rng_state()), "torch's global generator was drawn from"
