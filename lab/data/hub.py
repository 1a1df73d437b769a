"""Data sets of the Hugging Face hub, or local ones: their names, one split with some columns, and what goes wrong with them.

Corpora (`lab.data.corpora`) and tasks (`lab.data.tasks.hub`) read them here.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lab.data.files import expanded, with_home
from lab.ground.errors import RecipeError, one_of
from lab.ground.files import working_folder

UNWRITABLE = (
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.ENOSPC,
    errno.EDQUOT,
    errno.ENOTDIR,
    errno.EEXIST,
    errno.EISDIR,
)


@dataclass(frozen=True)
class Hub:
    """Options of corpus ``hub``: ``max_documents`` is per split (0: all); no ``validation`` holds out 5 % of ``split``."""

    config: str = ""
    column: str = "text"
    split: str = "train"
    validation: str = ""
    domain: str = ""
    streaming: bool = False
    max_documents: int = 20_000
    revision: str = ""


def folder(target: str) -> Path | None:
    """The folder that ``hub:<target>`` names, None for a name on the hub.

    Raises RecipeError for a folder that does not exist, and for what is neither. A relative path stays below the folder
    one works in, so that a name with dots in it never reads from elsewhere.
    """
    local, named, here = expanded(target, "hub"), with_home(target, "hub"), working_folder()
    if not named.is_absolute() and ".." in named.parts:
        raise RecipeError(
            f"hub: {target!r} leads out of {here}: give owner/name, a folder below it, or the whole path of a folder"
        )
    if os.path.isdir(local):
        return local
    if target.startswith((".", "/", "~")):
        raise RecipeError(f"hub: folder {target!r} does not exist: give owner/name or a folder (here: {here})")
    if not re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", target, re.ASCII):
        raise RecipeError(f"hub: {target!r} is no name on the hub: give owner/name, or the path of a folder")
    return None


def load(target: str, options: Hub, split: str, columns: Sequence[str], data_dir: str = "") -> tuple[Any, list[str]]:
    """One split (``datasets.Dataset``, or ``IterableDataset`` where streaming) with these columns, and all columns that there are.

    ``data_dir`` is a folder of a data set that has several.

    Raises RecipeError for a column or a split that there is not, and whatever ``datasets`` raises: see `reading`.
    """
    rows = _open(target, options, split, data_dir)
    there = rows.column_names or list(next(iter(rows), {}))
    for column in columns:
        if column not in there:
            raise RecipeError(one_of(f"column of {target}", column, there))
    return rows.select_columns(list(dict.fromkeys(columns))), there


@contextlib.contextmanager
def reading(what: str, remedy: str, local: bool = False) -> Iterator[None]:
    """What goes wrong while a split is read becomes one RecipeError: what cannot be read, why, and what to do."""
    try:
        yield
    except RecipeError:
        raise
    except Exception as error:  # the hub, its files and their formats fail in many ways, none of them ours
        raise RecipeError(f"{what} {trouble(error, local)}; {remedy}") from error


def trouble(error: BaseException, local: bool = False) -> str:
    """What went wrong with something of the hub, and what to do: ``(reason): check …``. ``local``: it is a folder here."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno in UNWRITABLE and cause.filename is not None:
            return (
                f"({cause.strerror} at {str(cause.filename)!r}): check that this can be read and written (HF_HOME names "
                "another folder for what comes from the hub)"
            )
        cause = cause.__cause__ or cause.__context__
    if type(error).__name__ == "DatasetGenerationError" and error.__cause__ is not None:  # which says nothing itself
        error = error.__cause__
    reason = f"({type(error).__name__}: {' '.join(str(error).split())[:200]})"
    if local:
        return f"{reason}: check its files, its config and its splits"
    return f"{reason}: check the name, its config and splits, and the network (this machine may be offline)"


def _open(target: str, options: Hub, split: str, data_dir: str) -> Any:
    """A ``datasets.Dataset``, or an ``IterableDataset`` where streaming, of one split; without bars of progress."""
    with _quiet_datasets() as datasets:
        local = folder(target)
        if local is None or not any((local / file).exists() for file in ("state.json", "dataset_dict.json")):
            return datasets.load_dataset(
                target if local is None else str(local),
                options.config or None,
                split=split,
                streaming=options.streaming,
                revision=options.revision or None,
                **({"data_dir": data_dir} if data_dir else {}),
            )
        saved = datasets.load_from_disk(str(local))  # written by save_to_disk
        splits = saved if isinstance(saved, datasets.DatasetDict) else {"train": saved}
        if split not in splits:
            raise RecipeError(one_of(f"split of {target}", split, splits))
        return splits[split].to_iterable_dataset() if options.streaming else splits[split]


@contextlib.contextmanager
def _quiet_datasets() -> Iterator[Any]:
    """``datasets`` without its own progress bars and messages."""
    import datasets

    shown, loud = datasets.is_progress_bar_enabled(), datasets.logging.get_verbosity()
    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    try:
        yield datasets
    finally:
        datasets.logging.set_verbosity(loud)
        if shown:
            datasets.enable_progress_bars()
