"""Several pictures as one, so that a cell has one output however many questions a view answers."""

from __future__ import annotations

import html
import re
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from widgets.axes import FLUID, head, layout_of
from widgets.colours import INK, LABEL, TITLE
from widgets.pictures import Figure, Held, Picture, listed

BOARD = 960  # width in pixels
_MOST = 3  # pictures in a row
_GAP = 16  # between two pictures of a row
_HEAD = 34  # for the title of the board
_LINE = 18  # of its answer
_LETTERS = 6.6  # pixels of a letter of the answer, in the mean


@dataclass(frozen=True)
class Board(Picture):
    """Pictures under one title: a wide one takes a row, others stand two or three in a row. ``answer`` stands above them, in words."""

    title: str
    pictures: Sequence[Picture]
    answer: str = ""

    def rows(self) -> list[list[Picture]]:
        rows: list[list[Picture]] = []
        for wide, group in groupby(self.pictures, lambda picture: picture.wide):
            pictures = list(group)
            num_rows = len(pictures) if wide else -(-len(pictures) // _MOST)
            for k in range(num_rows):  # rows as equal as can be, the fuller ones first
                size = -(-len(pictures) // (num_rows - k))
                rows.append(pictures[:size])
                pictures = pictures[size:]
        return rows

    def places(self, width: int) -> list[tuple[Picture, int, int, int, int]]:
        """Every picture with its left, top, width and height in pixels; those of a row are equally high."""
        out, top = [], self._head(width)
        for row in self.rows():
            each = (width - _GAP * (len(row) - 1)) // len(row)
            tall = max(picture.height(each) for picture in row)
            out += [(picture, k * (each + _GAP), top, each, tall) for k, picture in enumerate(row)]
            top += tall
        return out

    def height(self, width: int) -> int:
        return max((top + tall for _, _, top, _, tall in self.places(width)), default=self._head(width))

    def _head(self, width: int) -> int:
        """Pixels above the pictures."""
        return _HEAD + (_LINE * len(self._answer(width)) + 8 if self.answer else 0)

    def _answer(self, width: int) -> list[str]:
        return textwrap.wrap(self.answer, int((width - 28) / _LETTERS))

    def plotly(self, width: int = BOARD) -> Figure:
        whole = self.height(width)
        layout = layout_of(self.title, {}, {}, whole)
        layout |= {"margin": {"l": 0, "r": 0, "t": 0, "b": 0}, "shapes": [], "annotations": []}
        layout["title"] |= {"x": 12 / width, "y": 1 - 8 / whole, "yanchor": "top", "font": {"size": 16, "weight": 600}}
        for axis in ("xaxis", "yaxis"):
            layout["template"]["layout"][axis] |= {"automargin": False}
        del layout["xaxis"], layout["yaxis"], layout["legend"]
        if not self.pictures:
            layout |= {"xaxis": {"visible": False}, "yaxis": {"visible": False}}
        if self.answer:
            words = {"text": "<br>".join(map(html.escape, self._answer(width))), "showarrow": False, "align": "left"}
            at = {"x": 12 / width, "y": 1 - (_HEAD + 3) / whole, "xanchor": "left", "yanchor": "top"}
            layout["annotations"].append({"xref": "paper", "yref": "paper", "font": {"size": LABEL}} | at | words)
        data: list[dict[str, Any]] = []
        for k, (picture, left, top, each, tall) in enumerate(self.places(width)):
            panel, number = picture.plotly(each), "" if k == 0 else str(k + 1)
            inner, margin = panel["layout"], panel["layout"]["margin"]
            x = _Span((left + margin["l"]) / width, (left + each - margin["r"]) / width)
            y = _Span(1 - (top + tall - margin["b"]) / whole, 1 - (top + margin["t"]) / whole)
            layout[f"xaxis{number}"] = inner["xaxis"] | {"domain": [x.low, x.high], "anchor": f"y{number}"}
            layout[f"yaxis{number}"] = inner["yaxis"] | {"domain": [y.low, y.high], "anchor": f"x{number}"}
            layout[f"legend{number}"] = inner["legend"] | {"x": x.at(inner["legend"]["x"]), "y": y.at(1)}
            for trace in panel["data"]:
                trace |= {"xaxis": f"x{number}", "yaxis": f"y{number}"}
                if trace.get("showlegend"):
                    trace["legend"] = f"legend{number}"
                if bar := trace.get("colorbar") or trace.get("marker", {}).get("colorbar"):
                    bar |= {"x": x.high + 8 / width, "y": y.at(0.5), "len": y.high - y.low}
                data.append(trace)
            marks = [(mark, kind) for kind in ("shapes", "annotations") for mark in inner.get(kind, [])]
            for mark, kind in marks:
                layout[kind].append(_moved(mark, x, y, number))
            at = {"x": (left + 12) / width, "y": 1 - (top + 8) / whole, "xanchor": "left", "yanchor": "top"}
            words = {"text": html.escape(picture.title), "showarrow": False, "font": {"size": TITLE, "weight": 600}}
            layout["annotations"].append({"xref": "paper", "yref": "paper"} | at | words)
        return Figure(data=data, layout=layout)

    def svg(self, width: int = BOARD, height: int | None = None) -> str:
        out = head(width, height or self.height(width), self.title, size=16, says=self.answer)
        for k, line in enumerate(self._answer(width)):
            out.append(
                f'<text x="14" y="{_HEAD + 14 + _LINE * k}" font-size="{LABEL}" fill="{INK}">{html.escape(line)}</text>'
            )
        for picture, left, top, each, tall in self.places(width):
            inner = picture.svg(each, tall).replace(FLUID, "", 1)
            out.append(inner.replace("<svg ", f'<svg x="{left}" y="{top}" ', 1))
        return "".join(out) + "</svg>"

    def text(self) -> str:
        first = f"{self.title}\n{self.answer}" if self.answer else self.title
        return "\n\n".join([first, *(picture.text() for picture in self.pictures)])

    def spec(self, held: Held = listed) -> dict[str, Any]:
        panels = [
            picture.spec(held) | {"per_row": round(BOARD / each), "height": tall}
            for picture, _, _, each, tall in self.places(BOARD)
        ]
        return {"kind": "board", "title": self.title, "text": self.title, "answer": self.answer, "panels": panels}


@dataclass(frozen=True)
class _Span:
    """A stretch of the whole figure, of which a picture takes itself to be the whole."""

    low: float
    high: float

    def at(self, v: float) -> float:
        return self.low + v * (self.high - self.low)


def _moved(mark: dict[str, Any], x: _Span, y: _Span, number: str) -> dict[str, Any]:
    """A shape or annotation of one picture, in the place of that picture."""
    out = dict(mark)
    for axis, span in (("x", x), ("y", y)):
        if mark.get(f"{axis}ref") == "paper":
            out |= {key: span.at(mark[key]) for key in (axis, f"{axis}0", f"{axis}1") if key in mark}
            if axis == "y" and "path" in mark:
                parts = re.split(r"(?<=,)([\d.]+)", mark["path"])  # heights are every second one
                out["path"] = "".join(f"{span.at(float(part)):.5g}" if k % 2 else part for k, part in enumerate(parts))
        else:
            out[f"{axis}ref"] = f"{axis}{number}"
    return out
