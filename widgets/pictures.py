"""Pictures: what is to be seen, once, in three forms that agree — plotly (at rest), SVG (everywhere), text.

A picture answers one question, which stands above it. Colours are told apart by colour-blind readers and on light and dark
ground; every series also has its own dash or marker.
"""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import plotly.io

# After Okabe and Ito's palette, lightened where it would vanish on dark ground.
COLOURS = ("#3b8ede", "#e69f00", "#1aa37a", "#e0653a", "#cc79a7", "#7a6fd0", "#8a8f98")
_DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")
_SVG_DASHES = ("", "7 4", "2 3", "7 3 2 3", "11 4", "11 3 2 3")
_INK, _GRID = "#7d8590", "rgba(128,128,128,0.25)"
MAX_POINTS = 400  # a line
FEW_POINTS = 12  # up to so many, each is marked


class Picture:
    """What all pictures can do: show themselves in a notebook, and be saved."""

    title: str

    def plotly(self) -> dict[str, Any]:
        raise NotImplementedError

    def svg(self) -> str:
        raise NotImplementedError

    def text(self) -> str:
        raise NotImplementedError

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, Any]:
        return bundle(self)

    def save(self, path: str | Path) -> None:
        """Write a ``.svg``, or a ``.html`` that is interactive and needs no network."""
        path = Path(path)
        if path.suffix == ".svg":
            path.write_text(self.svg(), encoding="utf-8")
        elif path.suffix == ".html":
            plotly.io.write_html(self.plotly(), path, include_plotlyjs=True, validate=False)
        else:
            raise ValueError(f"{path}: a picture is saved as .svg or .html")


@dataclass(frozen=True)
class Series:
    name: str
    x: Sequence[float]
    y: Sequence[float]
    faint: bool = False  # a thin line behind the others, not in the legend


@dataclass(frozen=True)
class Lines(Picture):
    """Curves over one axis. ``floor`` draws a labelled horizontal line."""

    title: str
    x: str
    y: str
    series: Sequence[Series]
    log_x: bool = False
    log_y: bool = False
    floor: tuple[float, str] | None = None

    def plotly(self) -> dict[str, Any]:
        names = list(dict.fromkeys(s.name for s in self.series if not s.faint))
        data = []
        for s in self.series:
            k = names.index(s.name) if s.name in names else len(names)
            x, y = thin(s.x, s.y)
            data.append(
                {
                    "type": "scatter",
                    "mode": "lines+markers" if len(x) <= FEW_POINTS and not s.faint else "lines",
                    "name": s.name,
                    "x": x,
                    "y": y,
                    "showlegend": not s.faint,
                    "opacity": 0.55 if s.faint else 1.0,
                    "line": {
                        "color": COLOURS[k % len(COLOURS)],
                        "dash": "solid" if s.faint else _DASHES[k % len(_DASHES)],
                        "width": 1 if s.faint else 2.2,
                    },
                    "hoverinfo": "skip" if s.faint else "all",
                }
            )
        layout = _layout(self.title, self.x, self.y)
        layout["xaxis"]["type"] = "log" if self.log_x else "linear"
        layout["yaxis"]["type"] = "log" if self.log_y else "linear"
        if self.floor is not None:
            value, label = self.floor
            line = {"color": _INK, "dash": "dot", "width": 1.5}
            layout["shapes"] = [
                {"type": "line", "xref": "paper", "x0": 0, "x1": 1, "y0": value, "y1": value, "line": line}
            ]
            y_label = math.log10(value) if self.log_y else value
            layout["annotations"] = [
                {
                    "xref": "paper",
                    "x": 1,
                    "y": y_label,
                    "text": label,
                    "showarrow": False,
                    "yshift": 9,
                    "xanchor": "right",
                }
            ]
        return {"data": data, "layout": layout}

    def svg(self, width: int = 760, height: int = 360) -> str:
        box = _Box(width, height, legend=True)
        lines = [(s, *_finite(s, self.log_x, self.log_y)) for s in self.series]
        lines = [(s, x, y) for s, x, y in lines if len(x)]
        box.scale_x([v for _, x, _ in lines for v in (min(x), max(x))], self.log_x)
        floor = [self.floor[0]] if self.floor else []
        box.scale_y([v for _, _, y in lines for v in (min(y), max(y))] + floor, self.log_y)
        out = box.frame(self.title, self.x, self.y)
        names = list(dict.fromkeys(s.name for s in self.series if not s.faint))
        for s, x, y in lines:
            k = names.index(s.name) if s.name in names else len(names)
            path = "M" + "L".join(f"{box.px(a):.1f},{box.py(b):.1f}" for a, b in zip(x, y, strict=True))
            dash = "" if s.faint else _SVG_DASHES[k % len(_SVG_DASHES)]
            style = f'stroke-width="{1 if s.faint else 2}" opacity="{0.55 if s.faint else 1}" stroke-dasharray="{dash}"'
            out.append(f'<path d="{path}" fill="none" stroke="{COLOURS[k % len(COLOURS)]}" {style}/>')
            if len(x) <= FEW_POINTS and not s.faint:
                dots = (f'<circle cx="{box.px(a):.1f}" cy="{box.py(b):.1f}" r="3"/>' for a, b in zip(x, y, strict=True))
                out.append(f'<g fill="{COLOURS[k % len(COLOURS)]}">{"".join(dots)}</g>')
        if self.floor:
            y0 = box.py(self.floor[0])
            out.append(
                f'<path d="M{box.left},{y0:.1f}H{box.right}" stroke="#555" stroke-dasharray="2 4"/>'
                f'<text x="{box.right - 4}" y="{y0 - 5:.1f}" text-anchor="end" font-size="11">{html.escape(self.floor[1])}</text>'
            )
        for k, name in enumerate(names):
            y0 = box.top + 10 + 20 * k
            out.append(
                f'<path d="M{box.right + 14},{y0}h26" stroke="{COLOURS[k % len(COLOURS)]}" stroke-width="2" '
                f'stroke-dasharray="{_SVG_DASHES[k % len(_SVG_DASHES)]}"/>'
                f'<text x="{box.right + 46}" y="{y0 + 4}" font-size="12">{html.escape(name)}</text>'
            )
        return box.close(out)

    def text(self) -> str:
        ends = [f"{s.name}: {s.y[-1]:.4g} at {s.x[-1]:.4g}" for s in self.series if len(s.y) and not s.faint]
        return f"{self.title}\n{self.y} against {self.x}; last values: " + "; ".join(ends)


@dataclass(frozen=True)
class Bars(Picture):
    """One bar a row with its value written out; ``labels`` replaces the written value."""

    title: str
    x: str
    names: Sequence[str]
    values: Sequence[float]
    labels: Sequence[str]

    def plotly(self) -> dict[str, Any]:
        bar = {
            "type": "bar",
            "orientation": "h",
            "y": list(self.names),
            "x": list(self.values),
            "text": list(self.labels),
            "textposition": "outside",
            "cliponaxis": False,
            "marker": {"color": [COLOURS[k % len(COLOURS)] for k in range(len(self.names))]},
            "hovertemplate": "%{y}: %{text}<extra></extra>",
        }
        layout = _layout(self.title, self.x, "")
        layout["yaxis"]["autorange"] = "reversed"
        layout["yaxis"]["showgrid"] = False
        layout["showlegend"] = False
        layout["margin"]["r"] = 170
        layout["height"] = 140 + 44 * len(self.names)
        return {"data": [bar], "layout": layout}

    def svg(self, width: int = 760, height: int | None = None) -> str:
        height = height or 110 + 40 * len(self.names)
        box = _Box(width, height, legend=True, names=max((len(n) for n in self.names), default=0))
        box.scale_x([0.0, max(self.values, default=1.0)], False, pad=0)
        box.scale_y([0, 1], False, pad=0)
        out = box.frame(self.title, self.x, "", y_ticks=False)
        each = (box.bottom - box.top) / max(1, len(self.names))
        for k, (name, value, label) in enumerate(zip(self.names, self.values, self.labels, strict=True)):
            y0 = box.top + each * (k + 0.18)
            end = box.px(value)
            out.append(
                f'<rect x="{box.left}" y="{y0:.1f}" width="{max(0.0, end - box.left):.1f}" height="{each * 0.64:.1f}" '
                f'fill="{COLOURS[k % len(COLOURS)]}"/>'
                f'<text x="{box.left - 6}" y="{y0 + each * 0.4:.1f}" text-anchor="end" font-size="12">{html.escape(name)}</text>'
                f'<text x="{end + 6:.1f}" y="{y0 + each * 0.4:.1f}" font-size="12">{html.escape(label)}</text>'
            )
        return box.close(out)

    def text(self) -> str:
        return f"{self.title}\n" + "; ".join(f"{n}: {v}" for n, v in zip(self.names, self.labels, strict=True))


@dataclass(frozen=True)
class Calendar(Picture):
    """Which row has an event at which step: a mark each."""

    title: str
    x: str
    rows: Sequence[tuple[str, Sequence[int]]]
    last: int
    colours: Sequence[int] = ()  # of each row, as a number into the palette; by default one after another

    def plotly(self) -> dict[str, Any]:
        data = [
            {
                "type": "scatter",
                "mode": "markers",
                "name": name,
                "x": list(steps),
                "y": [name] * len(steps),
                "marker": {
                    "symbol": "line-ns-open",
                    "size": 13,
                    "line": {"width": 2},
                    "color": self._colour(k),
                },
                "hovertemplate": "%{y}, step %{x}<extra></extra>",
            }
            for k, (name, steps) in enumerate(self.rows)
        ]
        layout = _layout(self.title, self.x, "")
        layout["yaxis"] |= {"autorange": "reversed", "type": "category"}
        layout["xaxis"]["range"] = [0, self.last * 1.02]
        layout["showlegend"] = False
        layout["height"] = 130 + 34 * len(self.rows)
        return {"data": data, "layout": layout}

    def svg(self, width: int = 760, height: int | None = None) -> str:
        height = height or 100 + 30 * len(self.rows)
        box = _Box(width, height, legend=False, names=max((len(n) for n, _ in self.rows), default=0))
        box.scale_x([0, self.last], False, pad=0.01)
        box.scale_y([0, 1], False, pad=0)
        out = box.frame(self.title, self.x, "", y_ticks=False)
        each = (box.bottom - box.top) / max(1, len(self.rows))
        for k, (name, steps) in enumerate(self.rows):
            y0 = box.top + each * k
            marks = "".join(f"M{box.px(s):.1f},{y0 + each * 0.2:.1f}v{each * 0.6:.1f}" for s in steps)
            out.append(
                f'<path d="{marks or "M0,0"}" stroke="{self._colour(k)}" stroke-width="1.6"/>'
                f'<text x="{box.left - 6}" y="{y0 + each * 0.6:.1f}" text-anchor="end" font-size="12">{html.escape(name)}</text>'
            )
        return box.close(out)

    def text(self) -> str:
        return f"{self.title}\n" + "; ".join(f"{name}: {len(steps)} times" for name, steps in self.rows)

    def _colour(self, row: int) -> str:
        return COLOURS[(self.colours[row] if self.colours else row) % len(COLOURS)]


def bundle(picture: Picture) -> dict[str, Any]:
    """What a notebook stores: drawn by plotly where it can be, as SVG elsewhere, as text in a terminal."""
    return {
        "application/vnd.plotly.v1+json": picture.plotly() | {"config": {"displaylogo": False, "responsive": True}},
        "image/svg+xml": picture.svg(),
        "text/plain": picture.text(),
    }


def thin(x: Sequence[float], y: Sequence[float], most: int = MAX_POINTS) -> tuple[list[float], list[float]]:
    """At most ``most`` points of a line, keeping the extremes of every stretch; not-a-number becomes a gap (None)."""
    xs, ys = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    if len(xs) > most:
        keep = {0, len(xs) - 1}
        for part in np.array_split(np.arange(len(xs)), most // 2):
            if np.isfinite(ys[part]).any():
                keep |= {int(part[np.nanargmin(ys[part])]), int(part[np.nanargmax(ys[part])])}
        index = sorted(keep)
        xs, ys = xs[index], ys[index]
    short = [float(f"{v:.6g}") for v in xs]
    return short, [float(f"{v:.6g}") if math.isfinite(v) else None for v in ys]  # type: ignore[misc]


def _finite(s: Series, log_x: bool, log_y: bool) -> tuple[list[float], list[float]]:
    x, y = thin(s.x, s.y)
    pairs = [
        (a, b) for a, b in zip(x, y, strict=True) if b is not None and (a > 0 or not log_x) and (b > 0 or not log_y)
    ]
    return [a for a, _ in pairs], [b for _, b in pairs]


def _layout(title: str, x: str, y: str) -> dict[str, Any]:
    axis = {"gridcolor": _GRID, "zerolinecolor": _GRID, "linecolor": _GRID, "automargin": True}
    return {
        "title": {"text": title, "x": 0, "xanchor": "left", "font": {"size": 15}},
        "xaxis": axis | {"title": {"text": x}},
        "yaxis": axis | {"title": {"text": y}},
        "height": 380,
        "margin": {"l": 60, "r": 20, "t": 50, "b": 50},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"color": _INK, "size": 12},
        "legend": {"x": 1.02, "y": 1, "xanchor": "left"},
        "hovermode": "closest",
    }


class _Box:
    """Margins, scales and ticks of one SVG."""

    def __init__(self, width: int, height: int, *, legend: bool, names: int = 0):
        self.width, self.height = width, height
        self.left, self.right = max(64, 14 + 7 * names), width - (170 if legend else 24)
        self.top, self.bottom = 40, height - 48

    def scale_x(self, values: Sequence[float], log: bool, pad: float = 0.02) -> None:
        self.x0, self.x1, self.log_x = *_range(values, log, pad), log

    def scale_y(self, values: Sequence[float], log: bool, pad: float = 0.06) -> None:
        self.y0, self.y1, self.log_y = *_range(values, log, pad), log

    def px(self, v: float) -> float:
        v = math.log10(v) if self.log_x else v
        return self.left + (self.right - self.left) * (v - self.x0) / (self.x1 - self.x0)

    def py(self, v: float) -> float:
        v = math.log10(v) if self.log_y else v
        return self.bottom - (self.bottom - self.top) * (v - self.y0) / (self.y1 - self.y0)

    def frame(self, title: str, x: str, y: str, y_ticks: bool = True) -> list[str]:
        out = [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {self.width} {self.height}" width="{self.width}" '
            f'height="{self.height}" font-family="system-ui, sans-serif" role="img">'
            f"<title>{html.escape(title)}</title>"
            f'<rect width="100%" height="100%" fill="#fff"/>'
            f'<text x="{14}" y="22" font-size="14" font-weight="600">{html.escape(title)}</text>'
        ]
        for v in _ticks(self.x0, self.x1, self.log_x):
            p = self.px(v)
            out.append(
                f'<path d="M{p:.1f},{self.top}V{self.bottom}" stroke="#e3e3e3"/>'
                f'<text x="{p:.1f}" y="{self.bottom + 16}" text-anchor="middle" font-size="11" fill="#555">{_short(v)}</text>'
            )
        for v in _ticks(self.y0, self.y1, self.log_y) if y_ticks else ():
            p = self.py(v)
            out.append(
                f'<path d="M{self.left},{p:.1f}H{self.right}" stroke="#e3e3e3"/>'
                f'<text x="{self.left - 6}" y="{p + 4:.1f}" text-anchor="end" font-size="11" fill="#555">{_short(v)}</text>'
            )
        middle = (self.left + self.right) / 2
        out.append(
            f'<text x="{middle}" y="{self.height - 10}" text-anchor="middle" font-size="12" fill="#333">{html.escape(x)}</text>'
        )
        if y:
            cy = (self.top + self.bottom) / 2
            out.append(
                f'<text transform="translate(16 {cy}) rotate(-90)" text-anchor="middle" font-size="12" fill="#333">'
                f"{html.escape(y)}</text>"
            )
        return out

    def close(self, out: list[str]) -> str:
        return "".join(out) + "</svg>"


def _range(values: Sequence[float], log: bool, pad: float) -> tuple[float, float]:
    finite = [math.log10(v) if log else v for v in values if math.isfinite(v) and (v > 0 or not log)] or [0.0, 1.0]
    low, high = min(finite), max(finite)
    if low == high:
        low, high = low - 0.5, high + 0.5
    return low - pad * (high - low), high + pad * (high - low)


def _ticks(low: float, high: float, log: bool) -> list[float]:
    if log:
        whole = [10.0**k for k in range(math.ceil(low), math.floor(high) + 1)]
        if len(whole) >= 2:
            return whole[:: max(1, len(whole) // 7)]
        return [
            m * 10.0**k
            for k in range(math.floor(low), math.ceil(high) + 1)
            for m in (1, 2, 5)
            if low <= math.log10(m * 10.0**k) <= high
        ]
    raw = (high - low) / 6
    size = 10.0 ** math.floor(math.log10(raw))
    step = next(m * size for m in (1, 2, 2.5, 5, 10) if m * size >= raw)
    return [step * k for k in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _short(v: float) -> str:
    for limit, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(v) >= limit:
            return f"{v / limit:.4g}{unit}"
    return f"{v:.4g}"
