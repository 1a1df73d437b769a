"""What installed packages have registered for the lab, which itself names none of them."""

from __future__ import annotations

from importlib.metadata import entry_points
from typing import Any

from lab.ground.errors import RecipeError


def installed(group: str, does: str) -> Any:
    """The first object of a group of entry points; ``does`` says what it does, for whoever lacks it. Raises RecipeError where there is none."""
    for point in entry_points(group=group):
        return point.load()
    raise absent(does)


def absent(does: str) -> RecipeError:
    """The line for whoever has installed nothing that does this."""
    return RecipeError(f"nothing that is installed {does}: install isthmus again (pip install -e .)")
