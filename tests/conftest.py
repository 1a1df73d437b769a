"""What all tests share: one intra-op thread, a cache of their own, the toys beside them."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch
from hypothesis import settings

settings.register_profile("lab", deadline=None, derandomize=True, max_examples=60)
settings.load_profile("lab")


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Corpora go to a temporary folder, unless a test names another."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ISTHMUS_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Two intra-op threads on a busy machine are slower than one, and forked processes can hang."""
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"


@pytest.fixture(autouse=True)
def global_generator_untouched() -> Iterator[None]:
    """No test, and nothing that a test calls, draws from torch's global generator for good."""
    before = torch.get_rng_state()
    yield
    assert torch.equal(before, torch.get_rng_state()), "torch's global generator was drawn from"
