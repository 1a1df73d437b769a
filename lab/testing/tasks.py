"""The laws of tasks, tried in seconds: from a notebook cell, or in a test of one's own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from lab.data.tasks.task import Task
from lab.ground.seeds.surroundings import isolated
from lab.testing.generators import own_generators
from lab.testing.report import Report, named, refused, report
from lab.testing.task_laws import LAWS, Given


def check_task(task: Any, model: Callable[[Task], nn.Module] | None = None) -> Report:
    """Try what has to hold of a task: its examples, how they are dealt to workers, its loss and its scores.

    Parameters
    ----------
    task
        as the ``data`` of a recipe: a function or class that gives a task (with options: `functools.partial`), or a name; or a task.
    model
        makes a module for the task; None: a linear map from an example to ``num_outputs`` numbers.

    Returns
    -------
    a table that a cell shows. Nothing is raised: in a test write ``check_task(…).assert_all()``.
    """
    about = f"data {named(task)}"
    with isolated(), own_generators():
        try:
            given = Given(task, model)
        except Exception as error:
            return refused(about, LAWS[0], error)
        return report(about, LAWS, given)
