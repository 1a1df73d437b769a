"""A fork: a run that goes on from a checkpoint of another one, with other knobs.

::

    fork = lab.fork("des_loc-4w-5a0c9d11", 200, ["method.inner.lr=0.001"])
    columns = lab.train(fork.recipe(), fork.path)

Its folder begins with the events of the run it comes from, up to the checkpoint, and with that checkpoint; then it says where they are
from (`lab.events.Forked`: run, step, what is other). From there on it is a run like any other: it is trained, stopped and resumed, over one
process or several. What it moved itself is what its ledger has after that step (`lab.runs.columns.Columns.own_payload_bytes`).

A checkpoint has rows for workers, tensors of certain shapes, and draws that were made. So a fork may change what only says how it goes on:

===============================================  ================================================================================
``steps``, ``schedule``                          when it ends, and the learning rate until then
``batch_size``                                   of each worker
numbers of the method that are no counts         rates, betas, weights, thresholds, norms: ``method.inner.lr``, ``method.max_norm``
``method.sync_every``                            where it could be turned by hand (`lab.runs.knobs`)
``scenario``, ``codecs``, ``compute``            who is up, what travels, how it is computed
``eval_…``, ``checkpoint_every``, ``keep_every``  what is looked at and kept
===============================================  ================================================================================

A knob that somebody turned before the checkpoint stays as it was turned; one that was turned later is not turned.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from lab.engine.checkpoint import Checkpoint
from lab.events import Checkpointed, Event, Forked, Started
from lab.ground.errors import Damaged, RecipeError, shown
from lab.ground.files import digest_beside, located
from lab.methods.registry import fixed_periods, name_of
from lab.models.own import Factory
from lab.recipes.recipe import UNSAID, Recipe
from lab.runs import own_loop
from lab.runs.folder import RunFolder, find_run, writing
from lab.runs.index import flat

FREE: tuple[str, ...] = ("steps", "schedule", "batch_size", "scenario", "codecs", "compute")
FREE += ("eval_every", "eval_windows", "checkpoint_every", "keep_every")
MAY = "what a fork may change: steps, schedule, batch_size, scenario, codecs, compute, eval_every, eval_windows, checkpoint_every, "
MAY += "keep_every, and of its method sync periods and numbers that are no counts (method.inner.lr)"
SHAPES = "it decides what tensors there are, and a checkpoint has those of the run"
WHY = {
    "num_workers": "a checkpoint has a row for each worker",
    "seed": "what was drawn from it before, such as who has which data, is part of the checkpoint",
    "privacy": "what is spent is counted from the beginning on",
} | dict.fromkeys(("model", "lora", "placement", "buffers", "dtype", "groups", "clients", "context"), SHAPES)


def fork(
    run: RunFolder | str | Path, step: int | None = None, overrides: Sequence[str] = (), *, runs: str | Path = "runs"
) -> RunFolder:
    """The folder of a fork, beside that of the run it comes from; to be trained from there on as any run (`lab.train`, `lab.start`).

    The same fork has the same folder: one that is there goes on, or is finished.

    Parameters
    ----------
    run
        as `find_run` takes it, looked for in ``runs``.
    step
        after which it goes on: one of those that the run has a checkpoint of (default: the last).
    overrides
        ``key=value``, as `Recipe.of` takes them.

    Raises
    ------
    RecipeError
        for a step without a checkpoint, with those that there are, and for what cannot change, with why.
    Damaged
        where the checkpoint or the events until then are not what was written.
    """
    origin = run if isinstance(run, RunFolder) else find_run(str(run), located(runs) if runs != "runs" else runs)
    was = origin.recipe().here()
    checkpoint = origin.load_step(_step(origin, step))
    recipe = Recipe.of(was, list(_of_this_method(was, overrides)))
    changed = changes(was, recipe)
    _check(was, recipe, changed, checkpoint, origin)
    sha256 = (digest_beside(origin.checkpoint_file(checkpoint.step)) or {})["sha256"]
    said = Forked(checkpoint.step, origin.path.name, sha256, changed)
    name = f"{recipe.id}-fork-{hashlib.sha256(f'{recipe.id} {said.run} {sha256}'.encode()).hexdigest()[:4]}"
    made = RunFolder(origin.path.with_name(name))
    if not made.exists:
        _write(origin, made, recipe, checkpoint, said)
    return made


def _step(origin: RunFolder, step: int | None) -> int:
    if step is None and not (there := origin.saved()):
        raise RecipeError(f"{origin.path.name} has no checkpoint: run it with checkpoint_every above 0")
    return max(there) if step is None else step


def _of_this_method(was: Recipe, overrides: Sequence[str]) -> Iterator[str]:
    """Raises RecipeError where another method is named, before its options are missed."""
    for override in overrides:
        key, _, value = override.partition("=")
        if key in ("method", "method.name") and value.strip('"') != name_of(was.method):
            raise RecipeError(
                f"a fork cannot change the method ({name_of(was.method)} → {shown(value, 40)}): a checkpoint has its states; {MAY}"
            )
        yield override


def changes(was: Recipe, now: Recipe) -> dict[str, list[Any]]:
    """The fields of which two recipes have other values, by option: [was, is now], None where one does not have it."""
    there, here = (flat(UNSAID | recipe.to_dict()) for recipe in (was, now))
    keys = dict.fromkeys((*there, *here))
    return {key: [there.get(key), here.get(key)] for key in keys if there.get(key) != here.get(key)}


def _check(
    was: Recipe, now: Recipe, changed: Mapping[str, list[Any]], checkpoint: Checkpoint, origin: RunFolder
) -> None:
    """Raises RecipeError for the first thing that cannot change between a checkpoint and what goes on from it."""
    at = f"a fork of {origin.path.name} after step {checkpoint.step:,}"
    if isinstance(was.model, Factory) and was.model.call.name.startswith(f"{own_loop.__name__}:"):
        raise RecipeError(own_loop.AGAIN)
    for key, (before, after) in changed.items():
        why = _why_not(was, now, key, before, after)
        if why:
            raise RecipeError(f"{at} cannot change {key} ({shown(before, 40)} → {shown(after, 40)}): {why}; {MAY}")
    if now.steps <= checkpoint.step:
        raise RecipeError(f"{at} with steps = {now.steps:,} has nothing to do: give more steps, or an earlier step")
    if "sync_every" in checkpoint.extra.get("knobs", {}) and any(
        key.startswith("method.sync_every") for key in changed
    ):
        raise RecipeError(
            f"{at} has the sync periods that were turned by hand before: leave method.sync_every out, and turn the knob"
        )


def _why_not(was: Recipe, now: Recipe, key: str, before: Any, after: Any) -> str | None:
    """Why a field cannot change; None where it can."""
    part = key.partition(".")[0]
    if part != "method":
        return None if part in FREE else WHY.get(part, "what it decided when the run began is part of the checkpoint")
    if key.startswith("method.sync_every"):
        return "a state without a period has none later" if None in (before, after) else fixed_periods(now.method, now)
    if not all(value is None or isinstance(value, float) for value in (before, after)) or ".privacy." in key:
        return "it may decide what states there are"
    for name in ("inner", "outer"):
        states = [getattr(getattr(recipe.method, name, None), "state_names", None) for recipe in (was, now)]
        if states[0] != states[1]:
            return f"the {name} optimizer would have other states"
    return None


def _write(origin: RunFolder, made: RunFolder, recipe: Recipe, checkpoint: Checkpoint, said: Forked) -> None:
    """The whole folder of a fork, or nothing: one without its checkpoint would begin at the beginning."""
    with writing(made.path, RecipeError), tempfile.TemporaryDirectory(prefix=".fork-", dir=made.path.parent) as place:
        folder = RunFolder(Path(place) / made.path.name)
        folder.open(recipe)
        try:
            for event in until(origin, checkpoint.step):
                folder.append(replace(event, recipe=recipe.to_dict()) if isinstance(event, Started) else event)
            folder.append(said)
            folder.save(checkpoint.step, checkpoint.tensors, checkpoint.extra)
        finally:
            folder.close()
        if (origin.path / "inputs.json").is_file():
            shutil.copyfile(origin.path / "inputs.json", folder.path / "inputs.json")
        if origin.clients().is_dir():  # what clients keep; rounds after the checkpoint go when it is taken up
            shutil.copytree(origin.clients(), folder.clients())
        try:
            os.rename(folder.path, made.path)
        except OSError:
            if not made.exists:  # or somebody else has made the same one meanwhile
                raise


def until(origin: RunFolder, step: int) -> Iterator[Event]:
    """The events of a run until its checkpoint of a step, without those that name checkpoints. Raises Damaged where they are not whole."""
    for event in origin.events():
        if isinstance(event, Checkpointed):
            if event.step == step:
                return
            continue
        yield event
    raise Damaged(f"{origin.path / 'events.jsonl'} does not name its checkpoint of step {step:,}")
