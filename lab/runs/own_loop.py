"""What the recipe of a run in somebody's own loop (`lab.attach`) names as model and data: they are in the script that has the loop."""

from __future__ import annotations

from typing import NoReturn

from lab.ground.errors import RecipeError

AGAIN = "this run was trained in a loop of its own (lab.attach), which has its model and data: go on by starting that script again"


def model(num_params: int, tensors: str) -> NoReturn:
    """A module with so many trained parameters, and names, shapes and dtype of this digest (`lab.runs.adopted.outline`)."""
    raise RecipeError(AGAIN)


def data() -> NoReturn:
    """What the loop reads."""
    raise RecipeError(AGAIN)
