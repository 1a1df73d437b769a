"""The laws of models, tried in seconds: from a notebook cell, or in a test of one's own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lab.ground.seeds.surroundings import isolated
from lab.testing.generators import own_generators
from lab.testing.model_laws import LAWS, Made
from lab.testing.report import Report, named, refused, report


def check_model(model: Any, data: Any = None, recipe: Mapping[str, Any] | None = None) -> Report:
    """Try what has to hold of a module that a fleet of workers trains.

    Parameters
    ----------
    model
        as in a recipe: a function or class that makes an ``nn.Module`` (with options: `functools.partial`), or a name.
    data
        as in a recipe: a function or class that gives a task, or a name. None: the model predicts tokens of a toy grammar.
    recipe
        other fields of a recipe, for example ``{"batch_size": 2, "context": 32}``.

    Returns
    -------
    a table that a cell shows. Nothing is raised: in a test write ``check_model(…).assert_all()``.
    """
    about = f"model {named(model)}"
    with isolated(), own_generators():
        try:
            made = Made(model, data, recipe)
            made.batch(0)
        except Exception as error:
            return refused(about, LAWS[0], error)
        return report(about, LAWS, made)
