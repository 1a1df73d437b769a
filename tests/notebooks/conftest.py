"""Pages of executed notebooks are made in this process, which has imported all that it takes, unless a test is marked otherwise."""

from __future__ import annotations

from pathlib import Path

import pytest

from lab.study.execution import Pages


@pytest.fixture(autouse=True)
def pages_are_made_here(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the program does it that a run of the command starts, and which ``real_pages`` leaves in place."""

    def make(self: Pages, notebook: Path) -> None:
        from widgets.pages import page

        page(notebook, notebook.with_suffix(".html"))

    if request.node.get_closest_marker("real_pages") is None:
        monkeypatch.setattr(Pages, "make", make)
