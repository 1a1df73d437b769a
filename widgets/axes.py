"""Scales, ticks and frames that all pictures share."""

from __future__ import annotations

import html
import math
import textwrap
from dataclasses import dataclass
from decimal import ROUND_HALF_UP, Context
from typing import Any

from lab.runs.growing import Extent
from widgets.colours import GRID, GROUND, INK, LABEL, SOFT, TICK, TITLE

FLUID = ' style="max-width:100%;height:auto"'  # of an SVG: never wider than its page
LETTER = 0.56  # width of a letter, as a part of its height, on average


def rounded(v: float, digits: int = 6) -> float:
    """To so many significant digits, as an integer where it is one: short in JSON."""
    v = float(f"{v:.{digits}g}")
    return int(v) if v.is_integer() and abs(v) < 1e15 else v


BYTES = ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"), (0.0, ""))


def short(v: float, unit: str = "", digits: int = 4) -> str:
    """A number in so many digits, for a tick or under the pointer, where ``view.js`` says it by the same rule.

    Up to 9999 all of it is there, as one would say a local step; then come units. With ``unit`` it is bytes: ``1.5 GB``.
    """
    v = _in_digits(v, digits)
    if unit:
        size, prefix = next((size, prefix) for size, prefix in BYTES if abs(v) >= size)
        return f"{v / (size or 1):.{digits}g} {prefix}{unit}"
    for limit, size, unit in ((1e12, 1e12, "T"), (1e9, 1e9, "G"), (1e6, 1e6, "M"), (1e4, 1e3, "k")):
        if abs(v) >= limit:
            return f"{v / size:.{digits}g}{unit}"
    number, e, exponent = f"{v:.{digits}g}".partition("e")
    return f"{number}e{int(exponent)}" if e else number


def _in_digits(v: float, digits: int) -> float:
    """As JavaScript rounds, where Python would round 12345 to 12340."""
    return float(Context(prec=digits, rounding=ROUND_HALF_UP).create_decimal_from_float(v))


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

    def said(self) -> list[tuple[float, str]]:
        """Ticks with their words: four digits, or as many more as it takes to say where they are."""
        ticks, digits = self.ticks(), 4
        near = (ticks[1] - ticks[0]) / 100 if len(ticks) > 1 else math.inf
        while digits < 8 and any(abs(_in_digits(v, digits) - v) > near for v in ticks):
            digits += 1
        return [(v, short(v, self.unit, digits)) for v in ticks]

    def plotly(self) -> dict[str, Any]:
        ends = [rounded(self.low), rounded(self.high)]
        few: dict[str, Any] = {"dtick": 1} if self.whole and self.high - self.low < 6 else {}
        if self.unit:  # plotly's own words for large numbers are others
            ticks, words = zip(*self.said(), strict=True) if self.ticks() else ((), ())
            few = {"tickmode": "array", "tickvals": list(map(rounded, ticks)), "ticktext": list(words)}
        return {"title": {"text": self.label}, "range": ends, "type": "log" if self.log else "linear"} | few

    def spec(self) -> dict[str, Any]:
        ticks = [[rounded(self.at(v)), words] for v, words in self.said()]
        return {
            "label": self.label,
            "low": rounded(self.low),
            "high": rounded(self.high),
            "log": self.log,
            "whole": self.whole,
            "unit": self.unit,
            "ticks": ticks,
        }


class Box:
    """Where things lie in one SVG. Without a ``y`` axis the caller divides the height as it likes."""

    def __init__(
        self, width: int, height: int, x: Axis, y: Axis | None, *, left: int = 62, right: int = 24, above: int = 0
    ):
        self.width, self.height, self.x, self.y = width, height, x, y
        self._beside = broken(y.label, height - 34) if y is not None else []
        self.left, self.right = left + 14 * max(0, len(self._beside) - 1), width - right
        self.top, self.bottom = 40 + above, height - 48

    def px(self, v: float) -> float:
        return self.left + (self.right - self.left) * self.x.at(v)

    def py(self, v: float) -> float:
        assert self.y is not None
        return self.bottom - (self.bottom - self.top) * self.y.at(v)

    def frame(self, title: str, ticks: bool = True, most: int = 2) -> list[str]:
        """Title, labels (that below in at most so many lines) and, unless the caller sets its own, the ticks."""
        out = head(self.width, self.height, title)
        for v, words in self.x.said() if ticks else ():
            p = self.px(v)
            out.append(f'<path d="M{p:.1f},{self.top}V{self.bottom}" stroke="{GRID}"/>{self.below(p, words)}')
        middle, lines = (self.left + self.right) / 2, broken(self.x.label, self.width - 8, most)
        for k, line in enumerate(lines):
            y0 = self.height - (10 if len(lines) == 1 else 4 + 13 * (len(lines) - 1 - k))
            out.append(_title(line, f'x="{_between(middle, line, 4, self.width - 4):.1f}" y="{y0}"'))
        if self.y is not None:
            for v, words in self.y.said():
                p = self.py(v)
                out.append(f'<path d="M{self.left},{p:.1f}H{self.right}" stroke="{GRID}"/>{self.beside(p, words)}')
            middle, lines = (self.top + self.bottom) / 2, self._beside
            for k, line in enumerate(lines):
                cy = _between(middle, line, 30, self.height - 4)
                out.append(_title(line, f'transform="translate({13 + 14 * k} {cy:.1f}) rotate(-90)"'))
        return out

    def below(self, x: float, label: str) -> str:
        return f'<text x="{x:.1f}" y="{self.bottom + 16}" text-anchor="middle" font-size="{TICK}" fill="{SOFT}">{html.escape(label)}</text>'

    def beside(self, y: float, label: str) -> str:
        return f'<text x="{self.left - 6}" y="{y + 4:.1f}" text-anchor="end" font-size="{TICK}" fill="{SOFT}">{html.escape(label)}</text>'

    def close(self, out: list[str]) -> str:
        return "".join(out) + "</svg>"


def broken(label: str, room: float, most: int = 2) -> list[str]:
    """An axis title in at most so many lines that fit; what is longer ends with an ellipsis."""
    lines = textwrap.wrap(label, max(8, int(room / (LETTER * LABEL))), max_lines=most, placeholder=" …")
    return lines or [""]


def _between(middle: float, words: str, first: float, last: float) -> float:
    """Where the middle of words lies that stay between two ends."""
    half = LETTER * LABEL * len(words) / 2
    return min(max(middle, first + half), max(last - half, (first + last) / 2))


def _title(words: str, where: str) -> str:
    return f'<text {where} text-anchor="middle" font-size="{LABEL}" fill="{INK}">{html.escape(words)}</text>'


def head(width: int, height: int, title: str, size: int = TITLE, says: str = "") -> list[str]:
    """The beginning of an SVG: white ground and the title. ``says`` is its description, which screen readers read out."""
    described = f"<desc>{html.escape(says)}</desc>" if says else ""
    return [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'font-family="system-ui, sans-serif" fill="{INK}" role="img"{FLUID}>'
        f"<title>{html.escape(title)}</title>{described}"
        f'<rect width="100%" height="100%" fill="{GROUND}"/>'
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
    axis |= {"tickfont": {"size": TICK, "color": SOFT}, "title": {"standoff": 6, "font": {"size": LABEL}}}
    return {
        "template": {"layout": {"xaxis": axis, "yaxis": axis}},
        "title": {"text": title, "x": 0, "xanchor": "left", "font": {"size": TITLE, "weight": 600}},
        "xaxis": x,
        "yaxis": y,
        "height": height,
        "margin": {"l": 62, "r": 24, "t": 44, "b": 46},
        "paper_bgcolor": GROUND,
        "plot_bgcolor": GROUND,
        "font": {"color": INK, "size": LABEL},
        "legend": {"x": 1.02, "y": 1, "xanchor": "left", "yanchor": "top"},
        "hovermode": "closest",
    }
