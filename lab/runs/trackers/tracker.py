"""What a tracker of experiments has to be able to do, and those that there are, by name."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any, Protocol

from lab.ground.errors import RecipeError, one_of

PROJECT = "isthmus"
TRACKERS = {  # by name: the module, and the project or folder that runs are filed under where nothing else is said
    "mlflow": ("lab.runs.trackers.mlflow", PROJECT),
    "tensorboard": ("lab.runs.trackers.tensorboard", "runs/tensorboard"),
    "trackio": ("lab.runs.trackers.trackio", PROJECT),
    "wandb": ("lab.runs.trackers.wandb", PROJECT),
}


class Tracker(Protocol):
    """Keeps the values of a run, by local step. All of its functions are called in one thread, which is not that of the run.

    Whatever it raises ends it and not the run, and however long it takes, the run does not wait for it (`lab.runs.track`).
    """

    def start(self, recipe: Mapping[str, Any], name: str, resume: bool) -> int:
        """Begin the run ``name``, or with ``resume`` go on with what there is of it.

        Parameters
        ----------
        recipe
            all of it, as plain JSON values.

        Returns
        -------
        the last local step of which it has values; 0 if there is none.
        """

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Keep the values of a local step, by name (``loss/mean``). Each step comes once, in order."""

    def note(self, text: str, step: int, warning: bool) -> None:
        """Keep a line of text: a warning, or that a knob was turned."""

    def finish(self, status: str) -> None:
        """Write what is not written yet. ``status``: ``done``, ``stopped`` or ``failed``."""


def tracker(spec: str) -> Tracker:
    """The tracker that a text names: ``trackio``, or with a place of its own ``trackio:my_project``, ``tensorboard:my_folder``.

    Raises
    ------
    RecipeError
        for one that there is not, or whose package is not installed.
    """
    name, _, place = spec.partition(":")
    if name not in TRACKERS:
        raise RecipeError(one_of("tracker", name, TRACKERS))
    module_name, default = TRACKERS[name]
    try:
        module: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise RecipeError(
            f"{name} is not installed (no module {error.name}): pip install 'isthmus[{name}]', or leave it out"
        ) from None
    except Exception as error:  # what others do when they are imported
        raise RecipeError(f"{name} cannot be imported ({type(error).__name__}: {error}): leave it out") from None
    made: Tracker = module.made(place or default)
    return made
