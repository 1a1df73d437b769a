"""The firm profile of notebooks: settings under which their claims are judged for good, and how long that takes.

What a notebook declares is its quick profile, for a class. ``firm/settings.toml`` beside the notebooks says what the firm one gives it instead::

    [26_scale]
    runs = 200           # that it trains
    hours = 2.5          # which they took, one after another on one core
    [26_scale.parameters]
    seeds = "0,1,2,3,4"

A notebook with a firm profile has a parameter ``stored``: a folder in which finished runs are kept in small form (`lab.runs.stored`); what is there is
read, what is not is trained and added. So whoever is cut off goes on, and who has all of them waits for nothing but the pictures.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lab.ground.errors import RecipeError
from lab.ground.files import shown

if TYPE_CHECKING:
    from lab.runs.stored import Stored

QUICK, FIRM = "quick", "firm"
FOLDER = "firm"  # beside the notebooks


@dataclass(frozen=True)
class Firm:
    """The firm profile of one notebook. ``hours``: of all its ``runs`` together."""

    notebook: Path
    runs: int
    hours: float
    parameters: Mapping[str, Any]

    @property
    def stored(self) -> Stored:
        from lab.runs.stored import Stored  # with torch, which who asks for help need not wait for

        return Stored(self.notebook.parent / FOLDER / self.notebook.stem)

    @property
    def values(self) -> dict[str, Any]:
        """What papermill gives the notebook, which runs in its own folder."""
        return {**self.parameters, "stored": f"{FOLDER}/{self.notebook.stem}"}

    @property
    def hours_left(self) -> float:
        return self.hours * max(0, self.runs - len(self.stored)) / self.runs

    @property
    def words(self) -> str:
        """What there is to do, and how long that takes."""
        there = min(len(self.stored), self.runs)
        if there == self.runs:
            return f"all {self.runs} runs are stored: none of them is trained"
        left = f"about {self.hours_left:.1f} hours on one core"
        return f"{there} of {self.runs} runs are stored, {self.runs - there} are trained: {left}; cut off, it goes on from there"


def firm_profiles(folder: Path) -> dict[str, Firm]:
    """Of the notebooks in a folder, by name. Raises RecipeError for settings that are none."""
    file = folder / FOLDER / "settings.toml"
    try:
        found = tomllib.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise RecipeError(f"{shown(file)} cannot be read: {error}") from None
    out = {}
    for name, values in found.items():
        try:
            out[name] = Firm(
                folder / f"{name}.ipynb", int(values["runs"]), float(values["hours"]), {**values["parameters"]}
            )
        except (KeyError, TypeError, ValueError) as error:
            raise RecipeError(
                f"{shown(file)}, [{name}]: it needs runs, hours and a table of parameters ({error!r})"
            ) from None
    return out


def firm(notebook: Path) -> Firm:
    """The firm profile of a notebook. Raises RecipeError where it has none."""
    there = firm_profiles(notebook.parent)
    if notebook.stem not in there:
        raise RecipeError(
            f"{notebook.stem} has no firm profile: "
            + (
                f"there is one of {', '.join(there)}"
                if there
                else f"there is none in {shown(notebook.parent / FOLDER)}"
            )
        )
    return there[notebook.stem]
