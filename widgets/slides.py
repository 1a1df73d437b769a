"""An executed notebook as slides, by nbconvert's template for reveal.js: pictures as on our pages, no code, and nothing from a network.

Which cell is a slide, or comes after a click on one (fragment), stands in the notebook's own metadata (``slideshow``), as JupyterLab's
property inspector writes it. Cells that skip are left out, and so are solutions. Of a table of claims there are its sentence and a line a claim.
"""

from __future__ import annotations

import html
import re
import shutil
from pathlib import Path
from typing import Any

import nbformat
from nbconvert import SlidesExporter

from lab.study.claims import MIME as CLAIMS
from lab.study.claims import SIGN
from widgets.pages import BOARD, DRAW, PLOTLY, THEME, figure, plotly_script, title, view_script, write

WIDTH, HEIGHT = 1400, 900  # of a slide; reveal.js scales it to the screen
ZOOMS = (1.35, 1.2, 1.1, 1.0, 0.9, 0.8, 0.7)  # of pictures, the largest that fits
TEMPLATE = """
{%- extends 'reveal/base.html.j2' -%}
{% block codecell %}
<div class="cell">{% if cell.outputs %}{{ self.output_group() }}{% endif %}</div>
{% endblock codecell %}
{% block input %}{% endblock input %}
{% block in_prompt %}{% endblock in_prompt %}
{% block output_area_prompt %}{% endblock output_area_prompt %}
{% block output_prompt %}{% endblock output_prompt %}
{% block markdowncell scoped %}
<div class="text">{{ cell.source | markdown2html | strip_files_prefix }}</div>
{% endblock markdowncell %}
"""
STYLE = f"""{THEME}
body, .reveal-viewport {{ background: var(--paper); color: var(--ink); margin: 0; }}
.reveal {{ font: 27px/1.4 system-ui, sans-serif; color: var(--ink); }}
.reveal .slides {{ text-align: left; }}
.reveal .slides section {{ padding: 0; box-sizing: border-box; }}
.reveal h1 {{ font-size: 54px; line-height: 1.15; margin: 0 0 30px; }}
.reveal h2 {{ font-size: 40px; line-height: 1.2; margin: 0 0 16px; }}
.reveal p, .reveal ul {{ margin: 0 0 14px; }}
.reveal ul {{ padding-left: 1.1em; }}
.reveal a {{ color: var(--link); }}
.reveal code {{ font: 0.88em ui-monospace, monospace; background: var(--side); padding: 0 0.2em; }}
.reveal pre {{ font: 20px/1.4 ui-monospace, monospace; margin: 8px 0; white-space: pre-wrap; }}
.reveal .anchor-link {{ display: none; }}
.reveal figure {{ margin: 6px 0; --jp-content-font-color1: var(--ink); --jp-content-font-color2: var(--soft); --jp-layout-color0: var(--paper); }}
.reveal .isthmus-rest {{ zoom: var(--zoom, {ZOOMS[0]}); }}
.reveal .isthmus-rest input[type="range"] {{ width: 300px; }}
.reveal summary {{ font-weight: 700; list-style: none; }}
.reveal .claims li {{ font-size: 24px; margin-bottom: 10px; }}
.reveal .slide-number {{ color: var(--soft); background: none; font-size: 16px; right: auto; left: 8px; }}
.reveal .controls {{ color: var(--link); }}
.reveal .progress {{ color: var(--link); }}
"""
START = f"""
const fit = () => {{ // pictures are as large as the slide has room for
  const slide = Reveal.getCurrentSlide();
  for (const zoom of {list(ZOOMS)}) {{
    slide.style.setProperty("--zoom", zoom);
    if (slide.scrollHeight <= {HEIGHT - 20}) break;
  }}
}};
const fitSoon = () => [0, 150, 500].forEach((wait) => setTimeout(fit, wait)); // again once pictures have been drawn as wide as they are then
Reveal.on("slidechanged", fitSoon);
Reveal.initialize({{ width: {WIDTH}, height: {HEIGHT}, margin: 0.03, center: false, hash: true, slideNumber: "c/t", transition: "none",
  plugins: [RevealNotes] }}).then(fitSoon);
"""


def slides(notebook: Path, out: Path, reveal: Path, single_file: bool = False) -> None:
    """Write ``out``, with a folder of reveal.js beside it (or within); ``reveal``: where `reveal.js`, `reveal.css` and `notes.js` lie."""
    nb = nbformat.read(notebook, as_version=4)
    nb.cells = [cell for cell in nb.cells if _shown(cell)]
    used, number = set[str](), 0
    for cell in nb.cells:
        if cell.cell_type == "markdown":
            cell.source = _open(cell.source)
        kept = []
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            kind = next((kind for kind in (BOARD, PLOTLY) if kind in data), None)
            if "text/markdown" in data:
                data["text/markdown"] = _open(data["text/markdown"])
            if CLAIMS in data:
                output["data"] = {"text/html": _claims(data[CLAIMS])}
            elif kind is not None:
                used.add(kind)
                number += 1
                output["data"] = {"text/html": figure(data, kind, out, number, single_file=True)}
            kept.append(output)
        if kept:
            cell["outputs"] = kept
    nb.metadata.pop("widgets", None)
    body, _ = SlidesExporter(raw_template=TEMPLATE).from_notebook_node(nb)
    script = plotly_script(out.parent, single_file) if PLOTLY in used else ""
    draws = f"<script>(() => {{\n{view_script()}\n{DRAW}}})();</script>" if BOARD in used else ""
    write(
        out,
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(title(nb, out))}</title>{_sheet(out, reveal, single_file)}<style>{STYLE}</style>{script}</head>\n"
        f'<body><main class="reveal"><div class="slides">{body}</div></main>\n{_scripts(out, reveal, single_file)}{draws}'
        f"<script>{START}</script></body></html>\n",
    )


def _shown(cell: Any) -> bool:
    """Notes of who speaks stay with the slide that they stand behind."""
    kind = cell.metadata.get("slideshow", {}).get("slide_type", "-")
    if "solution" in cell.metadata.get("tags", []) or kind == "skip":
        return False
    return kind == "notes" or cell.cell_type != "code" or bool(cell.get("outputs"))


def _open(text: str) -> str:
    """What is folded in a notebook, so that it does not tell an answer, comes after a click here, and then it is there."""
    return re.sub(
        r"<details><summary>(.*?)( Look after your prediction)?</summary>", r"<details open><summary>\1</summary>", text
    )


def _claims(table: dict[str, Any]) -> str:
    """A line a claim; all of it is on the notebook's page."""
    rows = "".join(
        f"<li>{SIGN[row['verdict']]} <b>{html.escape(row['verdict'])}</b> · {html.escape(row['paper'])}: {html.escape(row['says'])}. "
        f"Measured: {html.escape(row['measured'])}</li>"
        for row in table["rows"]
    )
    return f'<h2>What holds of the papers’ claims</h2><ul class="claims">{rows}</ul>'


def _beside(out: Path, reveal: Path) -> str:
    """The name of the folder with reveal.js, which is copied where it is not yet."""
    place = out.parent / reveal.name
    place.mkdir(exist_ok=True)
    for file in reveal.iterdir():
        if file.is_file() and not (place / file.name).is_file():
            shutil.copy(file, place)
    return html.escape(reveal.name)


def _sheet(out: Path, reveal: Path, single_file: bool) -> str:
    if single_file:
        return f"<style>{(reveal / 'reveal.css').read_text(encoding='utf-8')}</style>"
    return f'<link rel="stylesheet" href="{_beside(out, reveal)}/reveal.css">'


def _scripts(out: Path, reveal: Path, single_file: bool) -> str:
    parts = ("reveal.js", "notes.js")
    if not single_file:
        return "".join(f'<script src="{_beside(out, reveal)}/{part}"></script>' for part in parts)
    texts = [(reveal / part).read_text(encoding="utf-8").replace("</script", "<\\/script") for part in parts]
    return "".join(f"<script>{text}</script>" for text in texts)
