"""Handwritten digits, 8 × 8 pixels, as they come with scikit-learn."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
from pydantic import Field

from lab.data.tasks.registry import task
from lab.data.tasks.tensors import Classification, hold_out
from lab.ground.errors import RecipeError

LARGEST = 16.0  # of a pixel


@task("digits")
def digits(
    *,
    image: bool = True,
    held_out: Annotated[float, Field(gt=0, lt=1)] = 0.2,
    seed: Annotated[int, Field(ge=0)] = 0,
    per_class: bool = False,
) -> Classification:
    """Handwritten digits of 43 people, 1,797 of them, with scikit-learn (Alpaydin and Kaynak 1998, UCI); no download.

    Inputs are ``[1, 8, 8]`` (``image=False``: ``[64]``), from 0 to 1. Who wrote which is not known, so there are no natural groups.

    Parameters
    ----------
    held_out, seed
        share of every digit that is held out, and what it is drawn from.
    per_class
        scores have the recall of every digit as well.
    """
    rows = _rows()
    pixels, truth = rows[:, :-1], rows[:, -1].astype(np.int64)
    inputs = torch.from_numpy(pixels / LARGEST).float()
    inputs = inputs.view(-1, 1, 8, 8) if image else inputs
    targets = torch.from_numpy(truth)
    train, held = map(torch.from_numpy, hold_out(truth, held_out, seed))
    return Classification((inputs[train], targets[train]), (inputs[held], targets[held]), 10, per_class=per_class)


def _rows() -> np.ndarray:
    """64 pixels and the digit, ``[E, 65]``, as ``sklearn.datasets.load_digits`` reads them.

    That has to be imported first, which takes a second or two and 150 MB: more than all else that a plan takes.
    """
    package = find_spec("sklearn")
    if package is None or not package.submodule_search_locations:
        raise RecipeError("data digits come with scikit-learn, which is not installed: pip install scikit-learn")
    rows: np.ndarray = np.loadtxt(
        Path(package.submodule_search_locations[0], "datasets", "data", "digits.csv.gz"), delimiter=","
    )
    return rows
