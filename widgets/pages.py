"""An executed notebook as one HTML page that needs no network, and its figures as SVG files beside it.

Figures stay interactive on the page; plotly's script comes once. What is folded in JupyterLab is folded here too.
The answers of its views stand in front, below the title.
This file is also a program, run by its path, and so imports nothing of the lab.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import nbformat
import plotly.io
import plotly.offline
from nbconvert import HTMLExporter

PLOTLY = "application/vnd.plotly.v1+json"
HIDDEN = {"source_hidden": ".jp-Cell-inputWrapper", "outputs_hidden": ".jp-Cell-outputWrapper"}
FOLD = """<style>
details.folded { margin: 6px 0 6px 94px; } details.folded summary { cursor: pointer; color: #666; font: 13px sans-serif; }
details.folded[open] { margin-left: 0; } details.folded[open] summary { margin-left: 94px; }
.plotly-graph-div { height: auto !important; }
</style><script>
for (const cell of document.querySelectorAll(".celltag_source_hidden, .celltag_outputs_hidden")) {
  const parts = Object.entries(%s).filter(([name]) => cell.classList.contains("celltag_" + name));
  const found = parts.map(([, part]) => cell.querySelector(":scope > " + part)).filter((part) => part);
  const words = cell.classList.contains("celltag_solution") ? "Solution" : found.length > 1 ? "Cell" : "Code";
  const fold = Object.assign(document.createElement("details"), { className: "folded" });
  fold.append(Object.assign(document.createElement("summary"), { textContent: words }));
  found[0]?.before(fold);
  fold.append(...found);
}
</script>"""


def page(notebook: Path, out: Path) -> None:
    """Write ``out`` and ``<out>-1.svg``, ``-2.svg``, …; the notebook itself is left as it is."""
    nb = nbformat.read(notebook, as_version=4)
    num_figures, answers = 0, list[str]()
    for cell in nb.cells:
        folded = [name for name in HIDDEN if cell.metadata.get("jupyter", {}).get(name)]
        if folded:
            cell.metadata["tags"] = [*cell.metadata.get("tags", []), *folded]
        for output in cell.get("outputs", []):
            figure = output.get("data", {}).get(PLOTLY)
            if figure is None:
                continue
            title, *says = output["data"].get("text/plain", "").partition("\n\n")[0].split("\n")
            if len(says) == 1 and says[0].endswith("."):  # a board of a view
                answers.append(f"- **{title}** {says[0]}")
            config = figure.pop("config", None)
            div = plotly.io.to_html(figure, config=config, include_plotlyjs=False, full_html=False, validate=False)
            if num_figures == 0:
                div = f"<script>{plotly.offline.get_plotlyjs()}</script>" + div
            num_figures += 1
            svg = output["data"].get("image/svg+xml")
            if svg:
                out.with_name(f"{out.stem}-{num_figures}.svg").write_text(svg, encoding="utf-8")
            output["data"] = {"text/html": div}
    if answers:
        nb.cells.insert(min(1, len(nb.cells)), nbformat.v4.new_markdown_cell("\n".join(["**In short**", "", *answers])))
    nb.metadata.pop("widgets", None)
    exporter = HTMLExporter(mathjax_url="", require_js_url="", jquery_url="", jupyter_widgets_base_url="")
    html, _ = exporter.from_notebook_node(nb)
    html, _, end = html.rpartition("</body>")
    html += f"{FOLD % json.dumps(HIDDEN)}</body>{end}"
    temporary = out.with_suffix(".tmp")
    temporary.write_text(html, encoding="utf-8")
    temporary.replace(out)


if __name__ == "__main__":
    page(Path(sys.argv[1]), Path(sys.argv[2]))
