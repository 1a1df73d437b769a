"""Handwritten digits, 8 × 8 pixels, as they come with scikit-learn."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field

from lab.data.tasks.registry import task
from lab.data.tasks.tensors import Classification, hold_out

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
    from sklearn.datasets import load_digits

    pixels, truth = load_digits(return_X_y=True)
    inputs = torch.from_numpy(pixels / LARGEST).float()
    inputs = inputs.view(-1, 1, 8, 8) if image else inputs
    targets = torch.from_numpy(truth).long()
    train, held = map(torch.from_numpy, hold_out(truth, held_out, seed))
    return Classification((inputs[train], targets[train]), (inputs[held], targets[held]), 10, per_class=per_class)
