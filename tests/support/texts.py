"""Texts and tokenizers that tests write, and code in a fresh interpreter."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.ground.errors import RecipeError
from tests.support import ROOT


@contextlib.contextmanager
def fails(pattern: str) -> Iterator[None]:
    """Expects a RecipeError of one line."""
    with pytest.raises(RecipeError, match=pattern) as info:
        yield
    assert "\n" not in str(info.value)
    assert len(str(info.value)) < 600


def run(code: str, **env: str) -> str:
    """The output of ``code`` in a fresh interpreter."""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, env={**os.environ, **env}, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def write_texts(folder: Path, count: int) -> None:
    for i in range(count):
        path = folder / f"part{i % 3}" / f"{i}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"This is text number {i}. " * 40, encoding="utf-8")


def make_tokenizer(path: Path, end: str | None, size: int = 400) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=[end] if end else [],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([f"This is text number {i}. " * 10 for i in range(30)], trainer)
    tokenizer.enable_truncation(8)  # as in many published files; a corpus is not truncated
    tokenizer.save(str(path))
