"""Scales, ticks and frames that all pictures share."""

from __future__ import annotations

import html
import math
from dataclasses import dataclass
from decimal import ROUND_HALF_UP, Context
from typing import Any

from lab.runs.growing import Extent

FLUID = ' style="max-width:100%;height:auto"'  # of an SVG: never wider than its page
LETTER = 0.56  # width of a letter, as a part of its height, on average
INK, GRID = "#7d8590", "rgba(128,128,128,0.2)"


FOUR_DIGITS = Context(prec=4, rounding=ROUND_HALF_UP)  # as JavaScript rounds, where Python would round 12345 to 12340


def rounded(v: float, digits: int = 6) -> float:
    """To so many significant digits, as an integer where it is one: short in JSON."""
    v = float(f"{v:.{digits}g}")
    return int(v) if v.is_integer() and abs(v) < 1e15 else v


BYTES = ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"), (0.0, ""))


def short(v: float, unit: str = "") -> str:
    """A number in four digits, for a tick or under the pointer, where ``view.js`` says it by the same rule.

    Up to 9999 all of it is there, as one would say a local step; then come units. With ``unit`` it is bytes: ``1.5 GB``.
    """
    v = float(FOUR_DIGITS.create_decimal_from_float(v))
    if unit:
        size, prefix = next((size, prefix) for size, prefix in BYTES if abs(v) >= size)
        return f"{v / (size or 1):.4g} {prefix}{unit}"
    for limit, size, unit in ((1e12, 1e12, "T"), (1e9, 1e9, "G"), (1e6, 1e6, "M"), (1e4, 1e3, "k")):
        if abs(v) >= limit:
            return f"{v / size:.4g}{unit}"
    digits, e, exponent = f"{v:.4g}".partition("e")
    return f"{digits}e{int(exponent)}" if e else digits


@dataclass(frozen=True)
class Axis:
    """A scale from ``low`` to ``high`` (exponents of ten where it is logarithmic) with its label and ticks."""

    label: str
    low: float
    high: float
    log: bool = False
    whole: bool = False  # ticks at whole numbers only

    @classmethod
    def over(cls, label: str, reach: Extent, log: bool = False, pad: float = 0.02) -> Axis:
        """Just wide enough, with what a logarithm cannot take left out. Counts get whole ticks."""
        low, high = (reach.low_positive, reach.high) if log else (reach.low, reach.high)
        if low > high:  # nothing yet
            low, high = (1.0, 10.0) if log else (0.0, 1.0)
        if log:
            low, high = math.log10(low), math.log10(high)
        if low == high:
            low, high = low - 0.5, high + 0.5
        width = high - low
        return cls(label, low - pad * width, high + pad * width, log, reach.whole and not log)

    @property
    def unit(self) -> str:
        """``B`` where the label says that it is bytes."""
        return "B" if "bytes" in self.label else ""

    def says(self, v: float) -> str:
        return short(v, self.unit)

    def holds(self, v: float) -> bool:
        return v > 0 or not self.log

    def at(self, v: float) -> float:
        """Where a value lies: 0 at the low end, 1 at the high end."""
        return ((math.log10(v) if self.log else v) - self.low) / (self.high - self.low)

    def ticks(self) -> list[float]:
        low, high = self.low, self.high
        if self.log:
            whole = [10.0**k for k in range(math.ceil(low), math.floor(high) + 1)]
            if len(whole) >= 2:
                return whole[:: max(1, len(whole) // 7)]
            near = [m * 10.0**k for k in range(math.floor(low), math.ceil(high) + 1) for m in (1, 2, 5)]
            return [v for v in near if low <= math.log10(v) <= high]
        raw = (high - low) / 6
        size = 10.0 ** math.floor(math.log10(raw))
        step = next(m * size for m in (1, 2, 2.5, 5, 10) if m * size >= raw)
        step = max(1.0, math.ceil(step)) if self.whole else step
        return [step * k for k in range(math.ceil(low / step), math.floor(high / step) + 1)]

    def plotly(self) -> dict[str, Any]:
        ends = [rounded(self.low), rounded(self.high)]
        few: dict[str, Any] = {"dtick": 1} if self.whole and self.high - self.low < 6 else {}
        if self.unit:  # plotly's own words for large numbers are others
            ticks = self.ticks()
            few = {"tickmode": "array", "tickvals": list(map(rounded, ticks)), "ticktext": list(map(self.says, ticks))}
        return {"title": {"text": self.label}, "range": ends, "type": "log" if self.log else "linear"} | few

    def spec(self) -> dict[str, Any]:
        ticks = [[rounded(self.at(v)), self.says(v)] for v in self.ticks()]
        return {
            "label": self.label,
            "low": rounded(self.low),
            "high": rounded(self.high),
            "log": self.log,
            "unit": self.unit,
            "ticks": ticks,
        }


class Box:
    """Where things lie in one SVG. Without a ``y`` axis the caller divides the height as it likes."""

    def __init__(
        self, width: int, height: int, x: Axis, y: Axis | None, *, left: int = 62, right: int = 24, above: int = 0
    ):
        self.width, self.height, self.x, self.y = width, height, x, y
        self.left, self.right, self.top, self.bottom = left, width - right, 40 + above, height - 48

    def px(self, v: float) -> float:
        return self.left + (self.right - self.left) * self.x.at(v)

    def py(self, v: float) -> float:
        assert self.y is not None
        return self.bottom - (self.bottom - self.top) * self.y.at(v)

    def frame(self, title: str, ticks: bool = True) -> list[str]:
        """Title, labels and, unless the caller sets its own, the ticks."""
        out = head(self.width, self.height, title)
        for v in self.x.ticks() if ticks else ():
            p = self.px(v)
            out.append(f'<path d="M{p:.1f},{self.top}V{self.bottom}" stroke="#e3e3e3"/>{self.below(p, self.x.says(v))}')
        x0, size = _fitted(self.x.label, (self.left + self.right) / 2, self.width)
        out.append(
            f'<text x="{x0:.1f}" y="{self.height - 10}" text-anchor="middle" font-size="{size:.3g}" fill="#333">{html.escape(self.x.label)}</text>'
        )
        if self.y is not None:
            for v in self.y.ticks():
                p = self.py(v)
                out.append(
                    f'<path d="M{self.left},{p:.1f}H{self.right}" stroke="#e3e3e3"/>{self.beside(p, self.y.says(v))}'
                )
            cy, size = _fitted(self.y.label, (self.top + self.bottom) / 2, self.height, first=30)
            out.append(
                f'<text transform="translate(13 {cy:.1f}) rotate(-90)" text-anchor="middle" font-size="{size:.3g}" fill="#333">'
                f"{html.escape(self.y.label)}</text>"
            )
        return out

    def below(self, x: float, label: str) -> str:
        return f'<text x="{x:.1f}" y="{self.bottom + 16}" text-anchor="middle" font-size="11" fill="#555">{html.escape(label)}</text>'

    def beside(self, y: float, label: str) -> str:
        return f'<text x="{self.left - 6}" y="{y + 4:.1f}" text-anchor="end" font-size="11" fill="#555">{html.escape(label)}</text>'

    def close(self, out: list[str]) -> str:
        return "".join(out) + "</svg>"


def _fitted(label: str, middle: float, room: float, first: float = 4) -> tuple[float, float]:
    """Where the middle of an axis title lies and how large it is, so that it stays within its picture."""
    size = min(12.0, max(7.0, (room - first - 4) / (LETTER * max(1, len(label)))))
    half = LETTER * size * len(label) / 2
    return min(max(middle, first + half), max(room - 4 - half, room / 2)), size


def head(width: int, height: int, title: str, size: int = 14, says: str = "") -> list[str]:
    """The beginning of an SVG: white ground and the title. ``says`` is its description, which screen readers read out."""
    described = f"<desc>{html.escape(says)}</desc>" if says else ""
    return [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'font-family="system-ui, sans-serif" role="img"{FLUID}>'
        f"<title>{html.escape(title)}</title>{described}"
        f'<rect width="100%" height="100%" fill="#fff"/>'
        f'<text x="14" y="22" font-size="{size}" font-weight="600">{html.escape(title)}</text>'
    ]


def layout_of(title: str, x: dict[str, Any], y: dict[str, Any], height: int) -> dict[str, Any]:
    """Plotly's layout, with what all pictures share."""
    axis = {
        "gridcolor": GRID,
        "zeroline": False,
        "linecolor": GRID,
        "automargin": True,
        "ticks": "",
        "exponentformat": "SI",
    }
    axis |= {"tickfont": {"size": 11}, "title": {"standoff": 6, "font": {"size": 12}}}
    return {
        "template": {"layout": {"xaxis": axis, "yaxis": axis}},
        "title": {"text": title, "x": 0, "xanchor": "left", "font": {"size": 15, "weight": 600}},
        "xaxis": x,
        "yaxis": y,
        "height": height,
        "margin": {"l": 62, "r": 24, "t": 44, "b": 46},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"color": INK, "size": 12},
        "legend": {"x": 1.02, "y": 1, "xanchor": "left", "yanchor": "top"},
        "hovermode": "closest",
    }
