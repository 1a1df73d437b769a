"""What a run reads besides its recipe: text and tokenizer, the files of a model, starting values or an adapter, who is available.

The id of a run follows from its recipe alone. What the named files held is recorded with it: ``inputs.json`` in its
folder, and the digests in its checkpoints and in its first event. So a run can tell whether the files are still what they
were, before it goes on or is shown as what they would give.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from lab.data.cache import cache_folder, text_files
from lab.data.files import digests, expanded
from lab.data.training_data import TrainingData
from lab.ground.errors import LabError, RecipeError
from lab.models.hf import HF
from lab.recipes.availability import is_file
from lab.recipes.recipe import Recipe
from lab.runs.pretrain import base_file, base_size

NAMED = 3  # files in a message
TEXT = "text"
CALLED = {TEXT: "text", "model": "model", "start": "starting values", "adapter": "adapter"}
CALLED |= {"available": "table of who is available"}


@dataclass(frozen=True)
class Input:
    """One of the things a run reads.

    digest
        SHA-256 of all that a result depends on: of text its tokens, documents and domains; of files their contents.
    files
        the digest of each file by its name, where it is made of files.
    key
        of text, the name of its cache entry, which is known without tokenising it.
    vocab_size
        of text.
    """

    digest: str
    files: dict[str, str] = field(default_factory=dict)
    key: str | None = None
    vocab_size: int | None = None


Inputs = Mapping[str, Input]


def of_run(recipe: Recipe, text: TrainingData) -> dict[str, Input]:
    """What a run that has just read its text, and is about to begin or go on, reads."""
    key: str | None = None
    files: dict[str, str] = {}
    if recipe.data is None and not recipe.corpus.startswith("task:"):
        with contextlib.suppress(LabError):  # read from elsewhere: its digest says it all
            key, files = text_files(recipe.corpus, tokenizer=recipe.tokenizer)
    return {TEXT: Input(text.digest, files, key, text.vocab_size)} | of_files(recipe)


def of_files(recipe: Recipe) -> dict[str, Input]:
    """The files of a model, of starting values, of an adapter and of who is available, as far as they lie on this machine."""
    places: dict[str, list[Path]] = {}
    if isinstance(recipe.model, HF):
        folder = expanded(recipe.model.path, "model")
        if os.path.isdir(folder):
            names = ["config.json", *sorted(p.name for p in folder.glob("*.safetensors*"))]
            places["model"] = [folder / name for name in names]
    size = base_size(recipe.start)
    if size is not None:
        places["start"] = [base_file(size)]
    elif recipe.start:
        places["start"] = [expanded(recipe.start, "start")]
    if recipe.lora.values:
        folder = expanded(recipe.lora.values, "lora.values")
        places["adapter"] = [folder / "adapter_config.json", folder / "adapter_model.safetensors"]
    if is_file(recipe.clients.available):
        places["available"] = [expanded(recipe.clients.available, "clients.available")]
    found: dict[str, Input] = {}
    for part, paths in places.items():
        there = [path for path in paths if os.path.isfile(path)]
        if there:
            known = cache_folder("digests") / hashlib.sha256(repr([str(p) for p in there]).encode()).hexdigest()
            try:
                sums = digests(there, known)
            except OSError:  # the cache cannot be written: they are read each time
                sums = digests(there)
            files = dict(zip([path.name for path in there], sums, strict=True))
            found[part] = Input(hashlib.sha256(json.dumps(sums).encode()).hexdigest(), files)
    return found


def of_digests(inputs: Inputs) -> dict[str, str]:
    return {part: one.digest for part, one in inputs.items()}


# --- beside a run -----------------------------------------------------------------------------------------------------


def recorded(folder: Path) -> list[dict[str, Input]]:
    """What was recorded of a run, the last at the end; nothing for a run of earlier versions, or where it is damaged."""
    try:
        whole = json.loads((folder / "inputs.json").read_bytes())
        rows = whole["read"]
        if whole["sha256"] != _sum(rows):
            return []
        return [{part: Input(**one) for part, one in row.items()} for row in rows]
    except (OSError, ValueError, TypeError, LookupError, AttributeError, RecursionError):
        return []


def _sum(rows: object) -> str:
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()


def to_record(folder: Path, now: Inputs) -> bytes | None:
    """``inputs.json`` with what a run reads from now on as the last; None where it is the last already."""
    rows = recorded(folder)
    if rows and of_digests(rows[-1]) == of_digests(now):
        return None
    rows = [row for row in rows if of_digests(row) != of_digests(now)] + [dict(now)]
    plain = [{part: asdict(one) for part, one in row.items()} for row in rows]
    return json.dumps({"sha256": _sum(plain), "read": plain}).encode()


def check(folder: Path, now: Inputs, was: Mapping[str, str] | None, accept_new_text: bool = False) -> list[str]:
    """Before a run goes on: whether it reads what it read until its checkpoint, which has the digests ``was``.

    Returns notes for the reader about new text that is accepted. Nothing is known of a run of earlier versions, and nothing
    said.

    Raises
    ------
    RecipeError
        if something else is read: one line that says which files, and what to do.
    """
    before = next((row for row in reversed(recorded(folder)) if of_digests(row) == was), {})
    notes = []
    for part, digest in (was or {}).items():
        if part not in now or now[part].digest == digest:
            continue
        old = before.get(part, Input(digest))
        what = changes(old, now[part])
        if part != TEXT:
            raise RecipeError(
                f"{folder} was begun with another {CALLED[part]} ({what}): put that back, or begin anew (lab run … --again)"
            )
        if not accept_new_text:
            raise RecipeError(
                f"{folder} was trained on other text until here ({what}): put that back, go on with the new one by "
                "--accept-new-text (accept_new_text=True in Python), or begin anew (lab run … --again)"
            )
        if old.vocab_size not in (None, now[part].vocab_size):
            raise RecipeError(
                f"{folder} was trained on other text ({what}) of {old.vocab_size} tokens, and the new one has "
                f"{now[part].vocab_size}: its model cannot go on with it; begin anew (lab run … --again)"
            )
        notes.append(
            f"goes on with other text, as accepted: {what}; digest {digest[:12]} before, {now[part].digest[:12]} now"
        )
    return notes


def changes(was: Input, now: Input) -> str:
    """Which files changed, in words."""
    said = [
        *(f"{name!r} has changed" for name, digest in now.files.items() if was.files.get(name, digest) != digest),
        *(f"{name!r} is new" for name in now.files if was.files and name not in was.files),
        *(f"{name!r} is gone" for name in was.files if now.files and name not in now.files),
    ]
    more = f" and {len(said) - NAMED} more" if len(said) > NAMED else ""
    return ", ".join(said[:NAMED]) + more if said else "its content has changed"


def same_everywhere(digests: Sequence[Mapping[str, str]]) -> None:
    """Raises LabError where processes of one run read different things: ``digests`` by process and input (`Inputs`)."""
    for index, digests_there in enumerate(digests):
        for part, digest in digests_there.items():
            if digests[0].get(part) != digest:
                raise LabError(
                    f"process {index} reads another {CALLED[part]} than process 0: give all processes the same files"
                )
