"""An executed notebook as one small HTML page that needs no network, with its figures as SVG files beside it.

Answers of views stand in front, below the title; then come text and pictures, each cell's code folded below what it shows.
`view.js` draws the pictures, as it does while a run goes on, and is part of the page. A figure that is plotly's alone has plotly's
script, a hundred times as large, beside the pages of a folder, once, or within a single file. This file is also a program, run by its path, and so imports nothing of the lab.
"""

from __future__ import annotations

import hashlib
import html
import os
import sys
from pathlib import Path
from typing import Any

import nbformat
from nbconvert import HTMLExporter
from pygments.formatters import HtmlFormatter

BOARD, PLOTLY = "application/vnd.isthmus.board+json", "application/vnd.plotly.v1+json"
DRAW = """
for (const data of document.querySelectorAll("figure.board > script"))
  rest(data.parentElement.insertBefore(document.createElement("div"), data), { packed: data.textContent });
"""
CODE = ("default", "github-dark")  # styles of Pygments
TEMPLATE = """
{%- extends 'basic/index.html.j2' -%}
{%- macro source(cell) -%}{{ cell.source | highlight_code(metadata=cell.metadata) }}{%- endmacro -%}
{%- macro word(tags) -%}
{{ 'Solution' if 'solution' in tags else 'Parameters' if 'parameters' in tags or 'injected-parameters' in tags else 'Code' }}
{%- endmacro -%}
{% block codecell %}
<div class="cell">
{%- set hidden = cell.metadata.get('jupyter', {}).get('outputs_hidden') -%}
{%- if cell.outputs and not hidden %}{{ self.output_group() }}{% endif %}
{%- if cell.source.strip() or (cell.outputs and hidden) %}
<details class="code"><summary>{{ word(cell.metadata.get('tags', [])) }}</summary>
{%- if cell.outputs and hidden %}{{ self.output_group() }}{% endif %}
{{ source(cell) }}</details>
{%- endif %}
</div>
{% endblock codecell %}
{% block output_area_prompt %}{% endblock output_area_prompt %}
{% block markdowncell scoped %}
<div class="text">{{ cell.source | markdown2html | strip_files_prefix }}</div>
{% endblock markdowncell %}
"""
THEME = """
:root { color-scheme: light dark; --ink: #24292f; --soft: #555555; --paper: #ffffff; --side: #f4f5f6; --line: #d0d4d8; --link: #0b57d0; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e6e6; --soft: #b0b0b0; --paper: #111111; --side: #1e1e1e; --line: #444444; --link: #8ab4f8; }
}
"""
STYLE = (
    THEME
    + """\
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); max-width: 62rem; margin: 1.5rem auto; padding: 0 1rem; }
a { color: var(--link); }
h1, h2, h3 { line-height: 1.25; }
.anchor-link { display: none; }
table { border-collapse: collapse; margin: 0.6rem 0; font-size: 14px; display: block; overflow-x: auto; }
th, td { text-align: left; vertical-align: top; padding: 0.25rem 0.7rem 0.25rem 0; border-bottom: 1px solid var(--line); }
pre, code { font: 14px/1.45 ui-monospace, monospace; }
pre { overflow-x: auto; margin: 0.4rem 0; }
:not(pre) > code { background: var(--side); padding: 0 0.2em; }
img { max-width: 100%; }
details.code { margin: 0.3rem 0; }
details.code > summary { cursor: pointer; color: var(--soft); font-size: 14px; width: fit-content; }
summary:focus-visible { outline: 2px solid var(--link); outline-offset: 2px; }
.highlight { padding: 0.2rem 0.8rem; border-left: 3px solid var(--line); }
.plotly-graph-div { height: auto !important; }
figure { margin: 0.8rem 0; --jp-content-font-color1: var(--ink); --jp-content-font-color2: var(--soft); --jp-layout-color0: var(--paper); }
"""
)


def page(notebook: Path, out: Path, single_file: bool = False) -> None:
    """Write ``out`` and ``<out>-1.svg``, ``-2.svg``, …; the notebook itself is left as it is.

    Where a figure needs plotly, its script lies beside them, under a name with a hash of what is in it, for all pages of the
    folder. With ``single_file`` nothing lies beside the page: it holds all of it.
    """
    nb = nbformat.read(notebook, as_version=4)
    num_figures, answers, used = 0, list[str](), set[str]()
    for cell in nb.cells:
        for output in cell.get("outputs", []):
            kind = next((kind for kind in (BOARD, PLOTLY) if kind in output.get("data", {})), None)
            if kind is None:
                continue
            used.add(kind)
            if answer := _answer(output["data"].get("text/plain", "")):
                answers.append(answer)
            num_figures += 1
            output["data"] = {"text/html": figure(output["data"], kind, out, num_figures, single_file)}
    if answers:
        nb.cells.insert(min(1, len(nb.cells)), nbformat.v4.new_markdown_cell("\n".join(["**In short**", "", *answers])))
    nb.metadata.pop("widgets", None)
    script = plotly_script(out.parent, single_file) if PLOTLY in used else ""
    draws = f"<script>(() => {{\n{view_script()}\n{DRAW}}})();</script>" if BOARD in used else ""
    exporter = HTMLExporter(raw_template=TEMPLATE)
    body, _ = exporter.from_notebook_node(nb)
    write(
        out,
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><title>{html.escape(title(nb, out))}</title>'
        f"<style>{STYLE}{_code_colours()}</style>{script}</head><body>\n<main>{body}</main>\n{draws}</body></html>\n",
    )


def _answer(text: str) -> str:
    """The line of a view among the answers of its page: its title and sentence, if it has one."""
    title, *says = text.partition("\n\n")[0].split("\n")
    return f"- **{title}** {says[0]}" if len(says) == 1 and says[0].endswith(".") else ""


def figure(data: dict[str, Any], kind: str, out: Path, number: int, single_file: bool) -> str:
    """What a script draws, and the SVG where none runs."""
    drawn = data[kind]
    if kind == BOARD:
        packed = drawn["packed"].replace("</", "<\\/")
        div = f'<script type="application/json">{packed}</script>'
    else:
        import plotly.io  # which takes a second that most pages do not need

        config = drawn.pop("config", None)
        div = plotly.io.to_html(drawn, config=config, include_plotlyjs=False, full_html=False, validate=False)
    word = "board" if kind == BOARD else "plotly"
    svg, says = data.get("image/svg+xml", ""), html.escape(data.get("text/plain", ""))
    if svg and single_file:
        return f'<figure class="{word}">{div}<noscript>{svg}</noscript></figure>'
    if svg:
        beside = out.with_name(f"{out.stem}-{number}.svg")
        write(beside, svg)
        return f'<figure class="{word}">{div}<noscript><img src="{html.escape(beside.name)}" alt="{says}"></noscript></figure>'
    return f'<figure class="{word}">{div}</figure>'


def view_script() -> str:
    """`view.js`, as a script that is no module: pages that are files cannot import any."""
    source = Path(__file__).with_name("view.js").read_text(encoding="utf-8")
    return source.replace("export function", "function").replace("export default", "0,")


def plotly_script(folder: Path, single_file: bool) -> str:
    """Plotly's script: beside the pages of a folder, or within."""
    from plotly.offline import get_plotlyjs

    source = get_plotlyjs()
    if single_file:
        return f"<script>{source}</script>"
    name = f"plotly-{hashlib.sha256(source.encode()).hexdigest()[:12]}.min.js"
    if not (folder / name).is_file():
        write(folder / name, source)
    return f'<script src="{name}" charset="utf-8"></script>'


def _code_colours() -> str:
    """Of code, on light and on dark ground."""
    light, dark = (HtmlFormatter(style=style).get_style_defs(".highlight") for style in CODE)
    return f"{light}\n@media (prefers-color-scheme: dark) {{\n{dark}\n}}"


def title(nb: Any, out: Path) -> str:
    """The first heading, or the name of the file."""
    lines = [line for cell in nb.cells if cell.cell_type == "markdown" for line in cell.source.splitlines()]
    return next((line.lstrip("# ").strip() for line in lines if line.startswith("# ")), out.stem)


def write(file: Path, text: str) -> None:
    """Whole or not at all; other processes may write the same."""
    temporary = file.with_name(f"{file.name}.{os.getpid()}.tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(file)


if __name__ == "__main__":
    page(Path(sys.argv[1]), Path(sys.argv[2]), single_file="--single-file" in sys.argv[3:])
