"""What a table of runs needs of each beside its summary: its settings, and its losses along steps, bytes and seconds on any link.

::

    runs/.outlines.json     beside the index of summaries (`lab.runs.index`), and made anew in the same way

What a run would have taken on links that are all alike is a sum of three numbers that grow: the seconds of computing, the bytes that
go one after the other over the slowest path, divided by the bytes a second, and the one-way trips, times the latency. So whoever draws a
picture needs no ledger to price it: ``compute + 8 · wire / bits_per_second + trips · latency_seconds`` is what `lab.costs.network.Network`
says of it. Where workers are not equally fast and a few of them exchange something by themselves, it is an upper bound.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from lab.costs.network import Network
from lab.ground.errors import LabError
from lab.ground.files import working_folder
from lab.recipes.recipe import UNSAID, Recipe
from lab.runs.columns import Columns
from lab.runs.folder import PLACES, RunFolder, elsewhere, stored
from lab.runs.index import Summary, flat, remembered, summary_of

OUTLINES = ".outlines.json"
VERSION = 1
POINTS = 24  # of a curve, at most
FASTEST = 1e30  # bits per second: nothing is waited for
OF_ITS_OWN = ("method", "model", "data", "own")  # parts whose fields depend on what they are: said in full
AXES = ("step", "loss", "bytes", "compute", "wire", "trips")


@dataclass(frozen=True)
class Outline:
    """A run for a table and a picture of many.

    summary
        with ``path`` from the folder that ``where`` names, as it is reached from the working folder.
    fields
        options of which its recipe has other values than `defaults`, and all of its method, its model and its data.
    settings
        the same for runs that differ in nothing but the seed.
    of
        which losses the curve has: ``validation``, ``training`` where it was never evaluated, or nothing.
    curve
        by name of `AXES` up to `POINTS` numbers: local step, loss, payload bytes of all workers since the start, and what seconds are made of.
    end
        the same without a loss, at its last step.
    saved
        the steps of which there are checkpoints.
    """

    summary: Summary
    where: str
    fields: dict[str, Any]
    settings: str
    of: str
    curve: dict[str, list[float]]
    end: dict[str, float]
    saved: list[int]


def outlines(runs: str | Path = "runs", seconds: float = math.inf) -> tuple[list[Outline], int]:
    """Of all runs in a folder, and in those of the same name that a notebook or a shell of this project would write to.

    After so many ``seconds`` no more runs are read; how many there are that are not known yet is the second value. What was read is
    remembered, so that the next call goes on.

    Raises
    ------
    RecipeError
        where it is no folder.
    """
    found, missing = list[Outline](), 0
    for folder in dict.fromkeys(path.resolve() for path in (Path(runs), *elsewhere(Path(runs)))):
        if not folder.is_dir() and folder != Path(runs).resolve():
            continue
        made = remembered(folder, OUTLINES, VERSION, _outline, _check, seconds)
        missing += sum(len(stored(folder, place)) for place in PLACES) - len(made)
        where = _near(folder)
        found += [Outline(where=where, **says | {"summary": Summary(**says["summary"])}) for says in made.values()]
    return found, missing


def _near(folder: Path) -> str:
    here = working_folder().resolve()
    return folder.relative_to(here).as_posix() if folder.is_relative_to(here) else str(folder)


def _check(says: dict[str, Any]) -> None:
    Outline(where="", **says | {"summary": Summary(**says["summary"])})


def _outline(run: RunFolder, path: str) -> dict[str, Any]:
    empty: dict[str, Any] = {"fields": {}, "settings": run.path.name, "of": "", "curve": {}, "end": {}}
    both = {"summary": asdict(summary_of(run, path)), "saved": sorted(run.saved())}
    try:
        fields = special(run.recipe())
        columns = Columns.of(run.events())
    except LabError:
        return empty | both
    forked = [(e.step, e.changed) for e in columns.forked]
    settings = {key: value for key, value in fields.items() if key != "seed"}
    digest = hashlib.sha256(json.dumps([settings, forked], sort_keys=True).encode()).hexdigest()[:12]
    return {"fields": fields, "settings": digest} | both | course(columns)


@cache
def defaults() -> dict[str, Any]:
    """The fields of a recipe that says nothing, but for the parts whose fields depend on what they are."""
    plain = flat(UNSAID | Recipe().to_dict())
    return {key: value for key, value in plain.items() if key.partition(".")[0] not in OF_ITS_OWN}


def special(recipe: Recipe) -> dict[str, Any]:
    """The fields of a recipe that are not as `defaults` has them."""
    base, mine = defaults(), flat(UNSAID | recipe.to_dict())
    return {key: value for key, value in mine.items() if key not in base or base[key] != value}


def course(columns: Columns) -> dict[str, Any]:
    """A run along its steps: ``of``, ``curve`` and ``end`` of its `Outline`."""
    if columns.started is None or not columns.step:
        return {"of": "", "curve": {}, "end": {}}
    axes = _axes(columns)
    rows = list(range(len(columns.step)))
    if columns.eval_loss:
        of, losses = "validation", columns.eval_loss
        rows = [max(0, row) for row in columns.eval_row]
    else:
        of, losses = "training", columns.loss.tolist()
    kept = [k for k in spread(len(rows)) if math.isfinite(losses[k])]
    curve = {name: [_short(values[rows[k]]) for k in kept] for name, values in axes.items()}
    curve["loss"] = [_short(losses[k]) for k in kept]
    return {"of": of, "curve": curve, "end": {name: _short(values[-1]) for name, values in axes.items()}}


def _axes(columns: Columns) -> dict[str, np.ndarray]:
    """By name of `AXES` without the loss, ``[rows]``."""
    step = np.array(columns.step)
    computing = columns.price(Network(FASTEST)).at_step
    wire = columns.price(Network(8.0), 0.0).at_step
    trips = columns.price(Network(FASTEST, 1.0), 0.0).at_step
    return {
        "step": step,
        "bytes": columns.payload_bytes,
        "compute": computing[step],
        "wire": wire[step],
        "trips": trips[step],
    }


def spread(num: int) -> list[int]:
    """At most `POINTS` of so many places, evenly, the first and the last among them."""
    return sorted({round(k) for k in np.linspace(0, num - 1, min(num, POINTS))}) if num else []


def _short(x: float) -> float:
    """To seven digits, as an integer where it is one."""
    v = float(f"{x:.7g}")
    return int(v) if v.is_integer() else v


def plain(found: list[Outline]) -> list[dict[str, Any]]:
    """For JSON: one object a run, its summary's fields beside its own."""
    return [vars(one) | {"summary": vars(one.summary)} for one in found]
