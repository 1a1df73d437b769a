"""Views in a real JupyterLab: live from a thread, loaded again in mid-run, and what the saved notebook holds in the end."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browser import CHROMIUM, needs_chromium
from jupyter import JupyterLab

pytestmark = [needs_chromium, pytest.mark.processes, pytest.mark.slow]

RESTING = {"application/vnd.plotly.v1+json", "image/svg+xml", "text/plain"}
START = """
import threading, time
from test_run_views import endless
from widgets import Losses
go_on, view = threading.Event(), Losses()

def train():
    for k, event in enumerate(endless(1200)):
        view.add(event)
        if k % 40 == 39:
            time.sleep(0.02)
        while k == 800 and not go_on.wait(0.1):
            view.add()

thread = threading.Thread(target=train)
thread.start()
view
"""


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[JupyterLab]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        server = JupyterLab(tmp_path_factory.mktemp("lab"), chromium)
        yield server
        chromium.close()
        server.close()


def kinds(outputs: list[dict[str, Any]]) -> list[set[str]]:
    return [set(output["data"]) for output in outputs]


@pytest.mark.parametrize("again", [False, True], ids=["watched", "loaded again"])
def test_live_then_at_rest(lab: JupyterLab, again: bool) -> None:
    """Other cells run meanwhile; a page that is loaded again is complete; the cell ends as one picture without a widget."""
    nb = lab.open(f"run-{again}.ipynb", [START, "1 + 1", "go_on.set(); thread.join()"])
    nb.run(0)
    nb.page.wait_for_selector("canvas")
    nb.run(1)
    assert nb.outputs(1)[0]["data"]["text/plain"] == "2"
    nb.until_held(380)
    if again:
        nb.save()
        nb.reload()
        nb.until_held(380)
    nb.page.locator(".isthmus-controls select").select_option("bytes")
    nb.page.wait_for_function("() => document.querySelector('canvas').ariaLabel.includes('bytes')")
    nb.run(2)
    nb.page.wait_for_selector("canvas", state="detached")
    (output,) = kinds(nb.outputs(0))
    assert RESTING <= output <= RESTING | {"image/png"}  # which JupyterLab's plotly adds
    nb.page.wait_for_selector(".jp-OutputArea .js-plotly-plot, .jp-OutputArea .plotly")
    nb.page.wait_for_timeout(4000)  # plotly's PNG has come and gone
    saved = nb.save()
    assert "widgets" not in saved.metadata
    assert set(saved.cells[0].outputs[0]["data"]) == RESTING
    assert len(Path(nb.file).read_bytes()) < 100_000
    nb.js("() => window.jupyterapp.shell.currentWidget.context.sessionContext.shutdown()")
    nb.page.close()
    reopened = lab.browser.new_page()
    reopened.goto(f"http://127.0.0.1:{lab.port}/lab/tree/{nb.file.name}?reset", wait_until="domcontentloaded")
    reopened.wait_for_selector(".jp-OutputArea .js-plotly-plot, .jp-OutputArea .plotly", timeout=90_000)
    reopened.close()
