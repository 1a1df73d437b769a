"""Pictures at rest as `view.js` draws them, in the theme around them: what a page or a notebook keeps, as JSON.

``{"packed": text}``; the text, which Jupyter writes in one line, is the JSON of
``{"boards": {name: board}, "columns": […], "control": {…} or null}``: a board for each choice that a person has (one without a
choice), as `Board.spec` says it. A list of many numbers is there once, however many boards draw it: float32, little-endian,
base64, in ``columns``; the board says ``{"column": k}``.
"""

from __future__ import annotations

import base64
import html
import json
import math
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from widgets.colours import DARK_GROUND, DARK_INK, DARK_SOFT, GROUND, INK, SOFT

MIME = "application/vnd.isthmus.board+json"
FEW = 12  # numbers that are written out
SCRIPT = Path(__file__).with_name("view.js")
THEME = (
    "--jp-content-font-color1:{};--jp-content-font-color2:{};--jp-layout-color0:{}"  # names that `view.js` looks for
)
LIGHT, DARK = THEME.format(INK, SOFT, GROUND), THEME.format(DARK_INK, DARK_SOFT, DARK_GROUND)
STYLE = f"""<style>:root{{color-scheme:light dark;{LIGHT}}}@media(prefers-color-scheme:dark){{:root{{{DARK}}}}}
body{{background:var(--jp-layout-color0)}}</style>"""


def packed(boards: Mapping[str, dict[str, Any]], control: dict[str, Any] | None = None) -> dict[str, Any]:
    """Boards by the name of the choice that shows them. ``control``: ``name``, ``label``, ``value``, ``options``, and ``slider`` if it is one."""
    return {"packed": shrunk({"boards": dict(boards), "control": control})}


def shrunk(thing: dict[str, Any]) -> str:
    """Plain data as JSON for `view.js` to open again: lists of many numbers are in ``columns``, each of them once."""
    columns: dict[str, int] = {}

    def pack(thing: Any) -> Any:
        if isinstance(thing, dict):
            return {key: pack(value) for key, value in thing.items()}
        if not isinstance(thing, list | tuple):
            return thing
        if len(thing) <= FEW or not all(v is None or isinstance(v, int | float) for v in thing):
            return [pack(value) for value in thing]
        numbers = np.array([math.nan if v is None else v for v in thing], dtype="<f4")
        return {"column": columns.setdefault(base64.b64encode(numbers.tobytes()).decode(), len(columns))}

    made = pack(thing) | {"columns": list(columns)}
    return json.dumps(made, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def lone(spec: dict[str, Any], height: int) -> dict[str, Any]:
    """A board of one picture, whose title stands in the picture."""
    return {"title": "", "answer": "", "panels": [spec | {"per_row": 1, "height": height}]}


def document(title: str, made: dict[str, Any], svg: str) -> str:
    """A page of one board that needs no network; where no script runs, its SVG."""
    data = made["packed"].replace("</", "<\\/")
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>'
        f"{STYLE}</head><body>"
        f'<div id="board"></div><noscript>{svg}</noscript><script id="packed" type="application/json">{data}</script>'
        f"<script>(() => {{\n{plain_script()}\nconst of = (id) => document.getElementById(id);\n"
        'rest(of("board"), { packed: of("packed").textContent });\n})();</script></body></html>\n'
    )


def plain_script() -> str:
    """`view.js` as a script that is no module: pages that are files cannot import any."""
    return SCRIPT.read_text(encoding="utf-8").replace("export function", "function").replace("export default", "0,")


def install(prefix: Path) -> Path:
    """Lay what JupyterLab needs to draw them below a prefix (of an environment, say), as an installed package has it already."""
    place, source = prefix / "share/jupyter/labextensions/isthmus", SCRIPT.parent
    (place / "static").mkdir(parents=True, exist_ok=True)
    shutil.copy(source / "frontend/package.json", place)
    for file in (source / "frontend/remoteEntry.js", SCRIPT):
        shutil.copy(file, place / "static")
    return place


if __name__ == "__main__":  # for a checkout, of which an editable installation leaves this out
    install(Path(sys.prefix))
