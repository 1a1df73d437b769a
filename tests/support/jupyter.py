"""A real JupyterLab in a headless Chromium, for tests."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

import nbformat

from tests.support import ROOT
from widgets.resting import install

CELL = "window.jupyterapp.shell.currentWidget.content.widgets[k]"
SETTINGS = {
    "@jupyterlab/apputils-extension/notification": '{"fetchNews": "false", "checkForUpdates": false}',
}


class JupyterLab:
    """A server in a folder of its own; ``open`` shows a notebook in a page of its own."""

    def __init__(self, folder: Path, browser: Any):
        self.folder, self.browser = folder, browser
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            self.port = s.getsockname()[1]
        for name, settings in SETTINGS.items():
            self._set(name, settings)
        own = {
            "JUPYTER_CONFIG_DIR": ".config",
            "JUPYTERLAB_WORKSPACES_DIR": ".workspaces",
            "JUPYTERLAB_SETTINGS_DIR": ".settings",
        }
        env = os.environ | {key: str(folder / name) for key, name in own.items()}
        env |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        env["JUPYTER_PATH"] = str(install(folder / ".own").parents[1])
        command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", f"--port={self.port}"]
        command += [
            "--IdentityProvider.token=",
            f"--ServerApp.root_dir={folder}",
            "--LabApp.expose_app_in_browser=True",
        ]
        with open(folder / "server.log", "w", encoding="utf-8") as log:
            self.server = subprocess.Popen(command, env=env, stdout=log, stderr=log, cwd=folder)
        began = time.monotonic()
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{self.port}/api", timeout=2)
                return
            except OSError:
                if time.monotonic() - began > 90 or self.server.poll() is not None:
                    raise RuntimeError((folder / "server.log").read_text()[-2000:]) from None
                time.sleep(0.2)

    def close(self) -> None:
        self.server.terminate()
        self.server.wait(30)

    def _set(self, name: str, settings: str) -> None:
        file = self.folder / ".settings" / f"{name}.jupyterlab-settings"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(settings)

    def open(self, name: str, cells: list[str] | None = None, windowing: str = "none") -> Notebook:
        """With cells a new notebook, otherwise the one that is there.

        ``windowing`` is JupyterLab's own word for what it does with cells out of sight; with ``none`` they are there like
        the others, with ``contentVisibility``, its default, the browser does not lay them out, and with ``full`` they are
        taken out of the page.
        """
        self._set("@jupyterlab/notebook-extension/tracker", json.dumps({"windowingMode": windowing}))
        if cells is not None:
            kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
            nb = nbformat.v4.new_notebook(metadata={"kernelspec": kernel})
            nb.cells = [nbformat.v4.new_code_cell(source) for source in cells]
            nbformat.write(nb, self.folder / name)
        return Notebook(self, name)


class Notebook:
    """A notebook in its page."""

    def __init__(self, lab: JupyterLab, name: str):
        self.lab, self.file = lab, lab.folder / name
        self.page = lab.browser.new_page(viewport={"width": 1280, "height": 1000})
        self.page.set_default_timeout(90_000)
        self.page.goto(f"http://127.0.0.1:{lab.port}/lab/tree/{name}?reset", wait_until="domcontentloaded")
        self._ready()

    def _ready(self) -> None:
        self.page.wait_for_selector(".jp-Notebook .jp-CodeCell", state="attached")
        self.page.wait_for_function("window.jupyterapp !== undefined")
        self.wait("idle")

    def wait(self, status: str) -> None:
        """Until the kernel is so."""
        self.page.wait_for_function(
            "status => window.jupyterapp.shell.currentWidget?.context?.sessionContext?.session?.kernel?.status === status",
            arg=status,
        )

    def begin(self, k: int) -> None:
        """Run a cell, without waiting for it.

        It is chosen and run at once: what takes the focus meanwhile would make its own cell the one that is run.
        """
        self.js(
            "k => { const nb = window.jupyterapp.shell.currentWidget.content; nb.activeCellIndex = k; nb.deselectAll(); "
            "window.jupyterapp.commands.execute('notebook:run-cell'); }",
            k,
        )

    def run(self, k: int) -> None:
        """Run a cell and wait for it."""
        before = self.js(f"k => {CELL}.model.executionCount", k)
        self.begin(k)
        self.page.wait_for_function(
            f"([k, before]) => {CELL}.model.executionCount !== before && {CELL}.model.executionCount", arg=[k, before]
        )
        self.wait("idle")

    def ask(self, k: int) -> Any:
        """Run a cell that prints JSON: what it says."""
        self.run(k)
        return json.loads("".join(output["text"] for output in self.outputs(k)))

    def press(self, label: str) -> None:
        """A button of the lab's."""
        self.page.locator(".isthmus-panel button", has_text=label).first.click()

    def command(self, name: str) -> None:
        self.js("name => { window.jupyterapp.commands.execute(name); }", name)

    def away(self) -> None:
        """Another tab takes the place of this notebook."""
        self.js("() => window.jupyterapp.commands.execute('launcher:create')")
        self.page.wait_for_function("() => !document.querySelector('.jp-Notebook')?.offsetParent")

    def back(self) -> None:
        self.js(
            "path => { const { shell } = window.jupyterapp; "
            "shell.activateById([...shell.widgets('main')].find((tab) => tab.context?.path === path).id); }",
            self.file.name,
        )
        self.page.wait_for_function("() => document.querySelector('.jp-Notebook')?.offsetParent")

    def reload(self) -> None:
        self.page.reload(wait_until="domcontentloaded")
        self._ready()

    def outputs(self, k: int) -> list[dict[str, Any]]:
        """As the notebook's model has them."""
        return self.js(f"k => {CELL}.model.outputs.toJSON()", k)

    def until_held(self, num: int) -> None:
        """Until the first line of the first canvas has so many points."""
        self.page.wait_for_function(
            "num => { const held = document.querySelector('.isthmus-board')?.held; "
            "return held?.panels[0]?.series?.length && held.column(held.panels[0].series[0].x).length >= num; }",
            arg=num,
        )

    def close(self) -> None:
        """The kernel goes, and the page."""
        self.js("() => window.jupyterapp.shell.currentWidget.context.sessionContext.shutdown()")
        self.page.close()

    def save(self) -> Any:
        """The notebook as it is on disk then."""
        self.js("() => window.jupyterapp.commands.execute('docmanager:save')")
        return nbformat.read(self.file, as_version=4)

    def js(self, source: str, argument: Any = None) -> Any:
        return self.page.evaluate(source, argument)
