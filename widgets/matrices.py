"""Pictures made of cells: a heat map, and who holds what."""

from __future__ import annotations

import html
import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, pairwise
from typing import Any

import numpy as np

from widgets.axes import Axis, Box, layout_of, rounded
from widgets.colours import CIVIDIS, GROUND, HELD, INK, LABEL, SOFT, TICK
from widgets.pictures import WIDTH, Figure, Held, Picture, listed, plotly_text

MAX_COLUMNS = 200
MAX_TICKS = 16  # of rows


@dataclass(frozen=True)
class Matrix(Picture):
    """A heat map: a value in every row and column, None where there is none.

    ``rows`` are names, each another; ``columns`` are steps or names. Values beyond ``low`` and ``high`` take the colour of
    that end. ``bands`` groups rows from the top: a name and how many rows it has. ``hover`` says what a cell means.
    With more than ``most_rows`` rows or `MAX_COLUMNS` columns neighbours are averaged, and the picture says so.
    """

    title: str
    x: str
    rows: Sequence[str]
    columns: Sequence[str] | Sequence[int]
    values: Sequence[Sequence[float | None]] | np.ndarray
    unit: str
    low: float | None = None
    high: float | None = None
    bands: Sequence[tuple[str, int]] = ()
    hover: str = "{row} at {column}: {value}"
    most_rows: int = 128
    colours: Sequence[str] = CIVIDIS
    gap: float = 0  # pixels between cells
    bar: bool = True  # a colour bar
    wide: bool = True  # whether it wants a whole row where several pictures stand together

    def height(self, width: int) -> int:
        rows = len(self.cells.rows)
        return 88 + max(84, min(18 * rows, 256), 3 * rows)

    @cached_property
    def cells(self) -> _Cells:
        """What is drawn: rows and columns after averaging, the ends of the scale, and the ticks."""
        values = np.array([[np.nan if v is None else v for v in row] for row in self.values], dtype=float)
        values = values.reshape(len(self.rows), len(self.columns))
        tall = math.ceil(len(self.rows) / self.most_rows) or 1
        broad = math.ceil(len(self.columns) / MAX_COLUMNS) or 1
        if tall > 1:
            values = np.stack([_mean(part) for part in _parts(values, tall)])
        if broad > 1:
            values = np.stack([_mean(part) for part in _parts(values.T, broad)]).T
        known = values[np.isfinite(values)]
        low = self.low if self.low is not None else float(known.min()) if len(known) else 0.0
        high = self.high if self.high is not None else float(known.max()) if len(known) else 1.0
        scale = Axis(self.unit, low, high if high > low else low + 1)
        notes = [f"{n} {what}" for n, what in ((tall, "rows"), (broad, "columns")) if n > 1]
        ends = [end / tall for end in accumulate((size for _, size in self.bands), initial=0)]
        bands = [((a + b) / 2 - 0.5, name) for (name, _), (a, b) in zip(self.bands, pairwise(ends), strict=True)]
        rows = _named(self.rows, tall)
        columns = [str(c) for c in self.columns[broad - 1 :: broad]] if broad > 1 else [str(c) for c in self.columns]
        columns += [str(self.columns[-1])] if len(columns) < values.shape[1] else []
        named = bands or [(float(k), name) for k, name in enumerate(rows)]
        return _Cells(
            x=f"{self.x} (a cell is the mean of {' × '.join(notes)})" if notes else self.x,
            rows=rows,
            columns=columns,
            values=values,
            scale=scale,
            bar_ticks=[(v, f"≥ {v:.4g}" if v == high and (known > high).any() else f"{v:.4g}") for v in scale.ticks()],
            row_ticks=named[:: math.ceil(len(named) / MAX_TICKS) or 1],
            column_ticks=_column_ticks(columns),
            edges=ends[1:-1],
        )

    def plotly(self, width: int = WIDTH) -> Figure:
        c = self.cells
        says = self.hover.replace("{row}", "%{y}").replace("{column}", "%{x}").replace("{value}", "%{z}")
        last = len(self.colours) - 1
        trace: dict[str, Any] = {
            "type": "heatmap",
            "x": c.columns,
            "y": c.rows,
            "z": c.listed(),
            "zmin": c.scale.low,
            "zmax": c.scale.high,
            "colorscale": [[rounded(k / last), colour] for k, colour in enumerate(self.colours)],
            "hovertemplate": plotly_text(says),
            "hoverongaps": False,
            "xgap": self.gap,
            "ygap": self.gap,
            "showscale": self.bar,
        }
        if self.bar:
            words = {"text": self.unit, "side": "right", "font": {"size": LABEL}}
            bar = {"title": words, "thickness": 12, "outlinewidth": 0, "ypad": 0, "tickfont": {"size": TICK}}
            bar |= {"tickvals": [v for v, _ in c.bar_ticks], "ticktext": [name for _, name in c.bar_ticks]}
            trace["colorbar"] = bar
        common = {"type": "category", "showgrid": False, "tickmode": "array"}
        x_axis = {"title": {"text": c.x}, "range": [-0.5, len(c.columns) - 0.5], "tickangle": 0} | common
        names = [
            name for _, name in c.column_ticks
        ]  # by name: plotly would take place 5 for a column that is called "5"
        x_axis |= {"tickvals": names, "ticktext": names}
        y_axis = {"range": [len(c.rows) - 0.5, -0.5]} | common
        y_axis |= {"tickvals": [rounded(at) for at, _ in c.row_ticks], "ticktext": [name for _, name in c.row_ticks]}
        layout = layout_of(self.title, x_axis, y_axis, self.height(width))
        line = {"color": GROUND, "width": 1.5}
        layout["margin"] |= {"l": c.left, "r": 76 if self.bar else 24}
        layout["shapes"] = [
            {"type": "line", "xref": "paper", "x0": 0, "x1": 1, "y0": e - 0.5, "y1": e - 0.5, "line": line}
            for e in c.edges
        ]
        return Figure(data=[trace], layout=layout)

    def svg(self, width: int = WIDTH, height: int | None = None) -> str:
        c = self.cells
        across = Axis(c.x, -0.5, max(1, len(c.columns)) - 0.5)
        box = Box(width, height or self.height(width), across, None, left=c.left, right=76 if self.bar else 24)
        out = box.frame(self.title, ticks=False)
        tall, broad = (box.bottom - box.top) / max(1, len(c.rows)), (box.right - box.left) / max(1, len(c.columns))
        gap = min(self.gap, tall / 2, broad / 2)
        frame = "none" if self.gap else SOFT
        out.append(
            f'<rect x="{box.left}" y="{box.top}" width="{box.right - box.left}" height="{box.bottom - box.top}" fill="none" stroke="{frame}"/>'
            f'<g transform="translate({box.left} {box.top + tall / 2:.3f}) scale({broad:.4f} {tall:.4f})" '
            f'stroke-width="{1 - gap / tall:.3f}" shape-rendering="crispEdges">'
        )
        for colour, path in zip(self.colours, self._paths(c, gap / broad), strict=True):
            if path:
                out.append(f'<path stroke="{colour}" d="{path}"/>')
        out.append("</g>")
        for edge in c.edges:
            out.append(
                f'<path d="M{box.left},{box.top + tall * edge:.1f}H{box.right}" stroke="{GROUND}" stroke-width="1.5"/>'
            )
        out += [box.beside(box.top + tall * (at + 0.5), name) for at, name in c.row_ticks]
        out += [box.below(box.px(at), name) for at, name in c.column_ticks]
        if self.bar:
            out += colour_bar(box, self.colours, c.scale, c.bar_ticks)
        return box.close(out)

    def text(self) -> str:
        c = self.cells
        latest = zip(c.values[:, -1], c.rows, strict=True) if c.columns else ()
        where = [(float(v), name) for v, name in latest if math.isfinite(v)]
        if not where:
            return f"{self.title}\nno values yet"
        (low, lowest), (high, highest) = min(where), max(where)
        middle = float(np.median([v for v, _ in where]))
        return (
            f"{self.title}\n{self.unit}, at {c.columns[-1]}: lowest {low:.3g} ({lowest}), median {middle:.3g}, "
            f"highest {high:.3g} ({highest})"
        )

    def spec(self, held: Held = listed) -> dict[str, Any]:
        c = self.cells
        return {
            "kind": "cells",
            "title": self.title,
            "text": self.text(),
            "x": c.x,
            "rows": c.rows,
            "columns": c.columns,
            "values": c.listed(),
            "colours": list(self.colours),
            "scale": c.scale.spec() | {"ticks": [[rounded(c.scale.at(v)), name] for v, name in c.bar_ticks]},
            "row_ticks": [[rounded(at), name] for at, name in c.row_ticks],
            "column_ticks": [list(tick) for tick in c.column_ticks],
            "edges": c.edges,
            "gap": self.gap,
            "bar": self.bar,
            "hover": self.hover,
        }

    def _paths(self, c: _Cells, gap: float) -> list[str]:
        """For each colour the cells that have it, as strokes of height one; neighbours that agree are one stroke."""
        last = len(self.colours) - 1
        level = np.nan_to_num((c.values - c.scale.low) / (c.scale.high - c.scale.low), nan=-1.0)
        level = np.where(np.isfinite(c.values), np.clip(level, 0, 1) * last, -1).round().astype(int)
        paths = [""] * len(self.colours)
        for r, row in enumerate(level):
            begin = 0
            for k in range(1, len(row) + 1):
                if k == len(row) or row[k] != row[begin] or gap:
                    if row[begin] >= 0:
                        size = f"{begin + gap / 2:.3g} {r}h{1 - gap:.3g}" if gap else f"{begin} {r}h{k - begin}"
                        paths[row[begin]] += "M" + size
                    begin = k
        return paths


@dataclass(frozen=True)
class Grid(Picture):
    """Who holds what: a filled cell where a column holds a row.

    ``held`` is 1 for yes and 0 for no, or a share in between. With more than 128 rows neighbours share one, whose shade is
    the share that is held, and the picture says so. ``bands`` and ``hover`` are those of a `Matrix`.
    """

    title: str
    x: str
    rows: Sequence[str]
    columns: Sequence[str]
    held: Sequence[Sequence[float]] | np.ndarray
    bands: Sequence[tuple[str, int]] = ()
    hover: str = "{row} at {column}: {value} % held"

    def matrix(self) -> Matrix:
        """The same in per cent."""
        values = 100 * np.asarray(self.held, dtype=float).reshape(len(self.rows), len(self.columns))
        return Matrix(
            self.title,
            self.x,
            self.rows,
            self.columns,
            values,
            "% held",
            low=0,
            high=100,
            bands=self.bands,
            hover=self.hover,
            colours=HELD,
            gap=2 if len(self.rows) <= 32 else 0,
            bar=False,
        )

    @property
    def wide(self) -> bool:
        return len(self.columns) > 24

    def height(self, width: int) -> int:
        return 88 + max(84, min(18 * len(self.rows), 256))

    def plotly(self, width: int = WIDTH) -> Figure:
        return self.matrix().plotly(width)

    def svg(self, width: int = WIDTH, height: int | None = None) -> str:
        return self.matrix().svg(width, height or self.height(width))

    def spec(self, held: Held = listed) -> dict[str, Any]:
        return self.matrix().spec(held) | {"text": self.text()}

    def text(self) -> str:
        held = np.asarray(self.held, dtype=float).reshape(len(self.rows), len(self.columns))
        begins = set(np.cumsum([size for _, size in self.bands]).tolist())
        whole = [_ranges(self.rows, np.flatnonzero(held[:, k] == 1), begins) for k in range(len(self.columns))]
        lines = [f"{name}: {rows or 'nothing whole'}" for name, rows in zip(self.columns, whole, strict=True)]
        more = [f"and {len(lines) - 16} more"] if len(lines) > 16 else []
        return f"{self.title}\n" + "; ".join(lines[:16] + more)


@dataclass(frozen=True)
class _Cells:
    """A matrix as it is drawn. Ticks are positions, counted in rows or columns from 0, with their names."""

    x: str
    rows: list[str]
    columns: list[str]
    values: np.ndarray  # [rows, columns], not a number where there is none
    scale: Axis
    bar_ticks: list[tuple[float, str]]  # of the colour bar
    row_ticks: list[tuple[float, str]]
    column_ticks: list[tuple[int, str]]
    edges: list[float]  # between bands, in rows from the top

    @property
    def left(self) -> int:
        """Pixels for the names of the rows."""
        return 24 + 7 * max((len(name) for _, name in self.row_ticks), default=0)

    def listed(self) -> list[list[float | None]]:
        """For JSON: to a two-hundredth of the scale, small values to two digits, None where there is none."""
        decimals = math.ceil(math.log10(200 / (self.scale.high - self.scale.low)))
        digits = np.floor(np.log10(np.maximum(np.abs(self.values), 1e-12))) + 1 + decimals
        return [
            [rounded(v, max(2, int(d))) if math.isfinite(v) else None for v, d in zip(row, row_digits, strict=True)]
            for row, row_digits in zip(self.values, digits, strict=True)
        ]


def colour_bar(box: Box, colours: Sequence[str], scale: Axis, ticks: Sequence[tuple[float, str]]) -> list[str]:
    """Beside a box, as high as it is."""
    x0, each = box.right + 12, (box.bottom - box.top) / len(colours)
    out = [
        f'<rect x="{x0}" y="{box.bottom - each * (k + 1):.2f}" width="11" height="{each + 0.5:.2f}" fill="{colour}"/>'
        for k, colour in enumerate(colours)
    ]
    for v, name in ticks:
        y0 = box.bottom - (box.bottom - box.top) * scale.at(v)
        out.append(f'<text x="{x0 + 15}" y="{y0 + 4:.1f}" font-size="{TICK}" fill="{SOFT}">{name}</text>')
    cy = (box.top + box.bottom) / 2
    out.append(
        f'<text transform="translate({x0 + 52} {cy}) rotate(-90)" text-anchor="middle" font-size="{LABEL}" fill="{INK}">'
        f"{html.escape(scale.label)}</text>"
    )
    return out


def _parts(values: np.ndarray, size: int) -> list[np.ndarray]:
    return [values[k : k + size] for k in range(0, len(values), size)]


def _mean(values: np.ndarray) -> np.ndarray:
    """Down the rows, of the numbers among them."""
    known = np.isfinite(values)
    count = known.sum(0)
    return np.where(count, np.where(known, values, 0).sum(0) / np.maximum(count, 1), np.nan)


def _named(names: Sequence[str], size: int) -> list[str]:
    """``size`` neighbours under one name: first–last."""
    parts = [names[k : k + size] for k in range(0, len(names), size)]
    return [part[0] if len(part) == 1 else f"{part[0]}–{part[-1]}" for part in parts]


def _column_ticks(columns: Sequence[str]) -> list[tuple[int, str]]:
    """Round numbers where the columns have them, otherwise every so many."""
    if len(columns) > 1 and all(c.lstrip("-").isdigit() for c in columns):
        at = {float(c): k for k, c in enumerate(columns)}
        ticks = [(at[v], columns[at[v]]) for v in Axis("", min(at), max(at)).ticks() if v in at]
        if len(ticks) >= 3:
            return ticks
    most = max(1, min(MAX_TICKS, 120 // max((len(c) + 2 for c in columns), default=1)))
    return [(k, columns[k]) for k in range(0, len(columns), math.ceil(len(columns) / most) or 1)]


def _ranges(names: Sequence[str], index: np.ndarray, begins: Collection[int] = ()) -> str:
    """Names at these places, neighbours written as first–last; a run ends where a new band begins."""
    runs: list[list[int]] = []
    for k in index:
        if runs and runs[-1][-1] == k - 1 and k not in begins:
            runs[-1].append(int(k))
        else:
            runs.append([int(k)])
    return ", ".join(names[r[0]] if len(r) == 1 else f"{names[r[0]]}–{names[r[-1]]}" for r in runs)
