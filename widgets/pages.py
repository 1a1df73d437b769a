"""An executed notebook as one HTML page that needs no network, and its figures as SVG files beside it.

Figures stay interactive on the page; plotly's script comes once.
"""

from __future__ import annotations

import sys
from pathlib import Path

import nbformat
import plotly.io
import plotly.offline
from nbconvert import HTMLExporter

PLOTLY = "application/vnd.plotly.v1+json"


def page(notebook: Path, out: Path) -> None:
    """Write ``out`` and ``<out>-1.svg``, ``-2.svg``, …; the notebook itself is left as it is."""
    nb = nbformat.read(notebook, as_version=4)
    num_figures = 0
    for cell in nb.cells:
        for output in cell.get("outputs", []):
            figure = output.get("data", {}).get(PLOTLY)
            if figure is None:
                continue
            config = figure.pop("config", None)
            div = plotly.io.to_html(figure, config=config, include_plotlyjs=False, full_html=False, validate=False)
            if num_figures == 0:
                div = f"<script>{plotly.offline.get_plotlyjs()}</script>" + div
            num_figures += 1
            svg = output["data"].get("image/svg+xml")
            if svg:
                out.with_name(f"{out.stem}-{num_figures}.svg").write_text(svg, encoding="utf-8")
            output["data"] = {"text/html": div}
    nb.metadata.pop("widgets", None)
    exporter = HTMLExporter(mathjax_url="", require_js_url="", jquery_url="", jupyter_widgets_base_url="")
    html, _ = exporter.from_notebook_node(nb)
    temporary = out.with_suffix(".tmp")
    temporary.write_text(html, encoding="utf-8")
    temporary.replace(out)


if __name__ == "__main__":
    page(Path(sys.argv[1]), Path(sys.argv[2]))
