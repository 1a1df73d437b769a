"""Whether a finished run can be shown as what its recipe gives now: what it read may have changed since."""

from __future__ import annotations

from pathlib import Path

from lab.data.cache import read_corpus, text_files
from lab.data.corpora import open_source
from lab.ground.errors import LabError, RecipeError
from lab.recipes.recipe import Recipe
from lab.runs.data import corpus_digest, task_digest
from lab.runs.folder import RunFolder
from lab.runs.inputs import CALLED, TEXT, Input, changes, of_files, recorded


def check_finished(folder: Path, recipe: Recipe, accept_new_text: bool = False) -> list[str]:
    """Before a finished run is shown as what a recipe gives: whether it read what the recipe names now.

    Tokenises nothing, unless files changed in ways that may make no difference, and fetches nothing. Returns notes.

    Raises
    ------
    RecipeError
        if it was something else, or a ``.safetensors`` file and the like was: one line that says which files.
    """
    rows, started = recorded(folder), RunFolder(folder).started()
    if not rows and started is not None:  # it is damaged or was removed: the first event knows the digests
        rows = [{part: Input(digest) for part, digest in started.inputs.items()}]
    was = rows[-1] if rows else {}
    notes, changed = [], []
    if TEXT in was:
        try:
            what = _text_changed(recipe, was[TEXT])
        except LabError as error:
            notes.append(f"its text cannot be looked at now ({error}): shown as of the text of that time")
            what = ""
        if what and accept_new_text:
            notes.append(f"shown as of the text of that time, which was another ({what})")
        elif what:
            changed.append(f"other text ({what})")
    files = of_files(recipe)
    changed += [
        f"another {CALLED[part]} ({changes(was[part], one)})"
        for part, one in files.items()
        if part in was and was[part].digest != one.digest
    ]
    if changed:
        raise RecipeError(
            f"{folder} is finished, with {' and '.join(changed)}: train anew with --again (again=True in lab.start, another "
            f"folder in lab.train), or look at what was by: lab replay {folder}"
        )
    return notes


def _text_changed(recipe: Recipe, was: Input) -> str:
    """How the text that a recipe names differs from what was read; empty where it does not, or that cannot be known."""
    if recipe.data is not None or recipe.corpus.startswith("task:"):
        now = task_digest(recipe)
        return "" if now in (None, was.digest) else changes(was, Input(now))
    key, files = text_files(recipe.corpus, tokenizer=recipe.tokenizer)
    if key is not None and key == was.key:
        return ""
    present = Input("", files, key)
    if was.files and sorted(files.values()) != sorted(was.files.values()):
        return changes(was, present)
    if key is None and open_source(recipe.corpus).remote:
        return ""
    digest = corpus_digest(read_corpus(recipe.corpus, tokenizer=recipe.tokenizer))
    return "" if digest == was.digest else changes(was, present)
