"""Which runs are there, and what did each come to?

A table of all runs of a folder, of the shell and of notebooks together: the fields in which they differ, losses against steps, bytes, or
seconds on a link of one's own, seeds of the same settings as a band; and the code that compares, replays, exports and forks them. In
JupyterLab it is live; as a page (`RunTable.save`) it filters and sorts without any server.
"""

from __future__ import annotations

import html
import json
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import anywidget
import traitlets

from lab.costs.network import NETWORKS, Network, duration, human
from lab.ground.files import write_atomically
from lab.runs.outlines import Outline, defaults, outlines, plain
from lab.study.tables import html_table
from widgets.answers import plural
from widgets.colours import COLOURS, DARK_GROUND, DARK_INK
from widgets.view import surroundings

SCRIPT = Path(__file__).with_name("run_table.js")
FIRST = 1.0  # seconds of reading before the table appears; what is missing comes later
AT_REST = 50  # rows where no script runs
KERNEL = {"kernelspec": {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}}
WELCOME = """# Isthmus

Shift+Enter in the cell below makes the table of runs live: filter and sort it, draw losses against bytes or against seconds on a link of your
own, fork a run. Nothing there yet, or new here? [Start here](../notebooks/00_start_here.ipynb)."""


class RunTable(anywidget.AnyWidget):
    """The runs in a folder. It shows itself as the last line of a cell.

    Parameters
    ----------
    runs
        the folder; those of the same name that a notebook or a shell of this project writes to are looked through as well.
    network
        what seconds are on, until the reader says otherwise.
    seconds
        of reading runs that are not known yet, before it appears; the others follow.
    """

    _esm = SCRIPT
    runs = traitlets.Dict().tag(sync=True)

    def __init__(
        self, runs: str | Path = "runs", network: Network = NETWORKS["100Mbit"], seconds: float = FIRST
    ) -> None:
        self.folder, self.network, self.reading = Path(runs), network, threading.Lock()
        self.there, self.missing = outlines(self.folder, seconds)
        super().__init__()
        self.runs = self._packed()
        self.on_msg(self._asked)
        if self.missing:
            threading.Thread(target=self._rest, daemon=True).start()

    def look_again(self, seconds: float = FIRST) -> None:
        """Read what has changed since, for so many seconds at most."""
        with self.reading:
            self.there, self.missing = outlines(self.folder, seconds)
        self.runs = self._packed()

    def _rest(self) -> None:
        while self.missing:
            before = self.missing
            self.look_again(2 * FIRST)
            if self.missing >= before:  # they come faster than they can be read
                return

    def _asked(self, _: Any, content: dict[str, Any], buffers: Any) -> None:
        if content.get("ask") == "again":
            self.look_again()

    def _packed(self) -> dict[str, Any]:
        link = {"bits_per_second": self.network.bits_per_second, "latency_seconds": self.network.latency_seconds}
        return {
            "runs": plain(self.there),
            "defaults": defaults(),
            "colours": COLOURS,
            "link": link,
            "missing": self.missing,
        }

    def answer(self) -> str:
        """How many runs there are, and which has the lowest loss for what it cost, in one or two sentences."""
        runs = self.there
        if not runs:
            return "There are no runs yet."
        going = sum(run.summary.status != "done" for run in runs)
        words = f"{plural(len(runs), 'run')}, {plural(len({run.settings for run in runs}), 'setting')}"
        words += f", {going:,} not finished" if going else ""
        kinds = {run.summary.data for run in runs} - {""}
        scored = [run for run in runs if run.summary.loss is not None]
        if len(kinds) > 1:
            return f"{words}. They are trained on {len(kinds)} kinds of data, so their losses are no comparison."
        if not scored:
            return f"{words}. None has been evaluated."
        best = min(scored, key=lambda run: run.summary.loss or 0.0)
        name = best.summary.name or best.summary.run
        return (
            f"{words}. The lowest validation loss is {best.summary.loss:.4f}, of {name} ({best.summary.method}, seed {best.summary.seed})"
            f"{self._cost(best)}."
        )

    def _cost(self, run: Outline) -> str:
        if not run.end:
            return ""
        return f", after {plural(int(run.end['step']), 'step')}, {human(run.end['bytes'])} and {duration(self._seconds(run))}"

    def _seconds(self, run: Outline) -> float:
        end, net = run.end, self.network
        return end["compute"] + 8 * end["wire"] / net.bits_per_second + end["trips"] * net.latency_seconds

    def page(self) -> str:
        """The page: one file, readable without script as well."""
        data = json.dumps(self._packed(), ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")
        script = SCRIPT.read_text(encoding="utf-8")
        return (
            '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Runs</title>'
            '<meta name="viewport" content="width=device-width"><meta name="color-scheme" content="light dark">'
            f"<style>body{{margin:0}}@media(prefers-color-scheme:dark){{body{{background:{DARK_GROUND};color:{DARK_INK}}}}}</style></head>"
            f'<body><main id="runs">{self._at_rest()}</main><script type="application/json" id="data">{data}</script>'
            f'<script type="module">{script}\nmount(document.getElementById("runs"), '
            'JSON.parse(document.getElementById("data").textContent));</script></body></html>'
        )

    def save(self, path: str | Path) -> None:
        """Write the page, with all runs."""
        while self.missing:
            self.look_again(60.0)
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        write_atomically(Path(path), self.page().encode())

    def _at_rest(self) -> str:
        """Without script: the answer, and the newest runs."""
        newest = sorted(self.there, key=lambda run: -run.summary.changed)
        more = f"<p>The newest {AT_REST} of {len(newest):,}.</p>" if len(newest) > AT_REST else ""
        head = ["run", "method", "seed", "steps", "loss", "bytes", "seconds", "status"]
        return f"<h1>Runs</h1><p>{html.escape(self.answer())}</p>{html_table(head, map(self._row, newest[:AT_REST]))}{more}"

    def _row(self, run: Outline) -> Sequence[str]:
        s = run.summary
        return [
            s.name or s.run,
            s.method,
            str(s.seed),
            f"{int(run.end['step']):,}" if run.end else "–",
            "–" if s.loss is None else f"{s.loss:.4f}",
            "–" if s.payload_bytes is None else human(s.payload_bytes),
            duration(self._seconds(run)) if run.end else "–",
            s.status,
        ]

    def text(self) -> str:
        """For a terminal."""
        newest = sorted(self.there, key=lambda run: -run.summary.changed)[:AT_REST]
        return "\n".join([self.answer(), *("  ".join(self._row(run)) for run in newest)])

    def _repr_mimebundle_(self, **options: Any) -> Any:
        if surroundings() == "live":
            return super()._repr_mimebundle_(**options)
        return {"text/plain": self.text(), "text/html": self._at_rest()}

    def write_notebook(self, path: str | Path) -> None:
        """Write a notebook that shows the runs before any cell is executed, and lets the reader filter and sort them afterwards.

        One that is there and has been worked in keeps its cells: what is shown is brought up to date.
        """
        import nbformat

        file, output = (
            Path(path),
            nbformat.v4.new_output("display_data", {"text/html": self._at_rest(), "text/plain": self.text()}),
        )
        if file.exists():
            notebook = nbformat.read(file, 4)
        else:
            notebook = nbformat.v4.new_notebook(metadata=KERNEL)
            notebook.cells = [
                nbformat.v4.new_markdown_cell(WELCOME, id="welcome"),
                nbformat.v4.new_code_cell("import lab\n\nlab.board()", id="runs"),
            ]
        for cell in notebook.cells:
            if cell.get("id") == "runs" and cell.cell_type == "code":
                cell.outputs = [output]
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(file, nbformat.writes(notebook).encode())
