"""Pictures: what is to be seen, once, in four forms that agree — canvas (live and at rest), SVG (where no
script runs), text, and plotly for who asks for it.

A picture answers one question, which stands above it. Colours and sizes of words are those of `widgets.colours`; every
series also has its own dash or marker. Scales and ticks come from `widgets.axes`, so no form has its own idea of them.
"""

from __future__ import annotations

import base64
import html
import math
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, reduce
from itertools import pairwise
from operator import or_
from pathlib import Path
from typing import Any

import numpy as np

from lab.runs.growing import Extent, Growing, Numbers, Spread
from widgets.axes import Axis, Box, head, layout_of, rounded
from widgets.colours import COLOURS, LABEL, SOFT, TICK, through
from widgets.resting import MIME, document, lone, packed
from widgets.time_axis import LEFT, RIGHT, TimeAxis

MAX_POINTS = 400  # a line at rest
FAINT_POINTS = 160  # a faint one
FEW_POINTS = 12  # up to so many, each is marked
LEGEND = 0.3  # of a picture that a legend beside its curves may take
EDGE = 0.75  # pixels of the edge of a band
WIDTH = 760  # of a picture that stands alone, in pixels
NARROW = 640  # below this width, legends stand above the curves instead of beside them
DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")
SVG_DASHES = ("", "7 4", "2 3", "7 3 2 3", "11 4", "11 3 2 3")

PLOTLY = "application/vnd.plotly.v1+json"

Held = Callable[[Growing | list[Any]], Any]  # how a canvas refers to numbers that it holds already


def listed(numbers: Growing | list[Any]) -> Any:
    """Numbers as JSON, for who holds nothing."""
    return [None if math.isnan(v) else v for v in numbers.values.tolist()] if isinstance(numbers, Growing) else numbers


class Figure(dict[str, Any]):
    """A plotly figure as plain JSON (``go.Figure(f)`` takes it). It shows itself where plotly is known."""

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, Any]:
        return {PLOTLY: stored(self), "text/plain": f"a plotly figure: {self['layout']['title']['text']}"}


class Picture:
    """What all pictures can do: show themselves in a notebook, be saved, and say what a canvas has to draw."""

    title: str

    def plotly(self, width: int = WIDTH) -> Figure:
        """A plotly figure, laid out for this width, to be explored; its margins leave room for all that stands in them."""
        raise NotImplementedError

    def svg(self, width: int = WIDTH, height: int | None = None) -> str:
        raise NotImplementedError

    def text(self) -> str:
        """Title and latest values: what a terminal shows and a screen reader says."""
        raise NotImplementedError

    def spec(self, held: Held = listed) -> dict[str, Any]:
        """What `view.js` draws, as plain JSON; ``kind`` says how. ``held`` writes the numbers that may be many."""
        raise NotImplementedError

    def height(self, width: int) -> int:
        """Pixels that it needs when it is so wide."""
        return 360 if width >= NARROW else 232

    @property
    def wide(self) -> bool:
        """Whether it wants a whole row where several pictures stand together."""
        return True

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, Any]:
        return bundle(self)

    def save(self, path: str | Path) -> None:
        """Write a ``.svg``, or a ``.html`` that is interactive and needs no network."""
        path = Path(path)
        if path.suffix == ".svg":
            path.write_text(self.svg(), encoding="utf-8")
        elif path.suffix == ".html":
            path.write_text(document(self.title, resting(self), self.svg()), encoding="utf-8")
        else:
            raise ValueError(f"{path}: a picture is saved as .svg or .html")


@dataclass(frozen=True)
class Series:
    """A line; where ``y`` is not a number it has a gap. A canvas is sent only what is new of `Growing` numbers.

    ``faint`` is a thin line behind the others and not in the legend. Under the pointer it speaks only if it has a name of
    its own; with the name of another line it is that line's background and takes its colour.
    """

    name: str
    x: Numbers
    y: Numbers
    faint: bool = False
    colour: int | None = None  # number into the palette; by default one after another

    @cached_property
    def points(self) -> tuple[list[float], list[float | None]]:
        """What is drawn of it at rest."""
        return thin(self.x, self.y, FAINT_POINTS if self.faint else MAX_POINTS, digits=4 if self.faint else 5)

    @property
    def last(self) -> tuple[float, float] | None:
        """The last point that is a number."""
        return self.last_until(math.inf)

    def last_until(self, x: float) -> tuple[float, float] | None:
        for k in range(min(len(self.x), len(self.y)) - 1, -1, -1):
            if math.isfinite(self.y[k]) and self.x[k] <= x:
                return float(self.x[k]), float(self.y[k])
        return None


@dataclass(frozen=True)
class Band:
    """What lies between two lines, behind all others; where one of them is not a number there is nothing.

    It has no place in the legend: words beside the picture say what it is.
    """

    x: Numbers
    low: Numbers
    high: Numbers
    colour: int = 0  # number into the palette
    strength: float = 0.16  # of its colour; where bands lie above each other they add up

    @cached_property
    def outline(self) -> list[tuple[list[float], list[float], list[float]]]:
        """Its pieces, from gap to gap: x, low, high of each at rest."""
        num = min(len(self.x), len(self.low), len(self.high))
        x, low, high = (np.asarray(v, dtype=float)[:num] for v in (self.x, self.low, self.high))
        known = np.isfinite(low) & np.isfinite(high)
        edges = np.flatnonzero(np.diff(known.astype(int), prepend=0, append=0)).reshape(-1, 2)
        pieces = [np.arange(*edge) for edge in edges]
        kept = [part[np.unique(np.linspace(0, len(part) - 1, MAX_POINTS).round().astype(int))] for part in pieces]
        return [tuple([rounded(v, 5) for v in values[at]] for values in (x, low, high)) for at in kept]  # type: ignore[misc]


@dataclass(frozen=True)
class Lines(Picture):
    """Curves over one axis, above bands. ``floor`` draws a labelled horizontal line; ``hover`` says what a point means."""

    title: str
    x: str
    y: str
    series: Sequence[Series]
    log_x: bool = False
    log_y: bool = False
    floor: tuple[float, str] | None = None
    hover: str = "{name}: {y} at {x}"
    bands: Sequence[Band] = ()
    reach: tuple[float, float] | None = None  # what ``y`` may be, and is drawn against, however little of it is used
    time: TimeAxis | None = None  # shared with other pictures over steps
    until: float | None = None  # of ``x``: what lies beyond is not drawn yet, on axes that have room for it

    def height(self, width: int) -> int:
        if self.time is None:
            return Picture.height(self, width)
        return 122 if self.time.compact else 264

    @property
    def names(self) -> list[str]:
        """The legend."""
        return list(dict.fromkeys(s.name for s in self.series if not s.faint))

    @property
    def wide(self) -> bool:
        return self.time is not None or sum(len(name) + 6 for name in self.names) > 60

    def _beside(self, width: int) -> bool:
        """Whether the legend stands beside the curves, and not above them."""
        return width >= NARROW and self.time is None and self._room <= LEGEND * width

    @property
    def _room(self) -> int:
        """Pixels for a legend beside the curves."""
        return max(170, round(44 + 7.4 * max(map(len, self.names), default=0)))

    def axes(self) -> tuple[Axis, Axis]:
        beside = [v for band in self.bands for v in (band.low, band.high)]
        x = reduce(or_, map(_extent, [*(s.x for s in self.series), *(b.x for b in self.bands)]), Extent())
        y = reduce(or_, (_extent(s.y) for s in self.series), Extent.of([self.floor[0]] if self.floor else []))
        y = reduce(or_, map(_extent, beside), y)
        reach = [*self.reach, sum(self.reach) / 2] if self.reach else []  # 0 and 1 alone would get whole ticks
        y |= Extent.of(reach) if y.low <= y.high else Extent()
        below = Axis.over(self.x, x, self.log_x) if self.time is None else self.time.axis(self.x)
        return below, Axis.over(self.y, y, self.log_y, pad=0.06)

    def plotly(self, width: int = WIDTH) -> Figure:
        x_axis, y_axis = self.axes()
        data = list(map(_filled, self.bands))
        for s in self.series:
            x, y = self._drawn(s)
            says = self.hover.replace("{name}", s.name)
            for key, axis in {"x": x_axis, "y": y_axis}.items():  # bytes by plotly's format: a word a point takes room
                says = says.replace(f"{{{key}}}", f"%{{{key}:.4~s}}{axis.unit}" if axis.unit else f"%{{{key}}}")
            line: dict[str, Any] = {"color": self._colour(s), "width": 1 if s.faint else 2.2}
            trace: dict[str, Any] = {
                "type": "scatter",
                "mode": "lines",
                "name": s.name,
                "y": y,
                "showlegend": not s.faint,
            }
            if not s.faint:
                line["dash"] = DASHES[self.names.index(s.name) % len(DASHES)]
                trace["mode"] = "lines+markers" if len(x) <= FEW_POINTS else "lines"
            if trace["mode"] == "lines" and any(alone := _alone(y)):  # plotly's lines have nothing there
                trace |= {"mode": "lines+markers", "marker": {"size": [line["width"] + 1 if a else 0 for a in alone]}}
            trace["line"] = line
            trace |= _evenly(x)
            data.append(trace | ({"hovertemplate": plotly_text(says)} if self._speaks(s) else {"hoverinfo": "skip"}))
        layout = layout_of(self.title, x_axis.plotly(), y_axis.plotly(), self.height(width))
        if self._beside(width):
            layout["margin"]["r"] = self._room
        else:
            layout["legend"] = {"orientation": "h", "x": 0, "y": 1, "xanchor": "left", "yanchor": "bottom"}
            layout["margin"]["t"] = 36 + 18 * len(legend_rows(self.names, width - 66))
        if self.time is not None:
            self.time.mark(layout, words=True)
        if self.floor is not None:
            value, label = self.floor
            line = {"color": SOFT, "dash": "dot", "width": 1.5}
            across: dict[str, Any] = {
                "type": "line",
                "xref": "paper",
                "x0": 0,
                "x1": 1,
                "y0": value,
                "y1": value,
                "line": line,
            }
            layout["shapes"] = [*layout.get("shapes", []), across]
            at = {"xref": "paper", "x": 1, "xanchor": "right", "y": math.log10(value) if self.log_y else value}
            words = at | {"text": label, "showarrow": False, "yshift": 9}
            layout["annotations"] = [*layout.get("annotations", []), words]
        return Figure(data=data, layout=layout)

    def svg(self, width: int = WIDTH, height: int | None = None) -> str:
        x_axis, y_axis = self.axes()
        beside = self._beside(width)
        rows = [] if beside else legend_rows(self.names, width - 66)
        left, right = (62, self._room if beside else 18) if self.time is None else (LEFT, RIGHT)
        tall = height or self.height(width)
        box = Box(width, tall, x_axis, y_axis, left=left, right=right, above=17 * len(rows))
        box.left = left if self.time else box.left  # words in two lines have room there
        out, lines, marks = box.frame(self.title), [], []
        out += self.time.svg(box, words=True) if self.time else []
        for s in self.series:
            points = [
                (box.px(a), box.py(b)) if b is not None and x_axis.holds(a) and y_axis.holds(b) else None
                for a, b in zip(*self._drawn(s), strict=True)
            ]
            colour = self._colour(s)
            dash = " ".join(str(10 * int(d)) for d in self._dash(s).split())
            look = 'stroke-width="10"' if s.faint else f'stroke-width="20" stroke-dasharray="{dash}"'
            if path := _runs(points):
                lines.append(f'<path d="{path}" stroke="{colour}" {look}/>')
            if len(points) <= FEW_POINTS and not s.faint:
                dots = "".join(f'<circle cx="{p[0]:.1f}" cy="{p[1]:.1f}" r="3"/>' for p in points if p)
                marks.append(f'<g fill="{colour}">{dots}</g>')
        out += [_shape(band, box) for band in self.bands]
        out += ['<g transform="scale(.1)" fill="none" stroke-linecap="round">', *lines, "</g>", *marks]
        if self.floor:
            y0 = box.py(self.floor[0])
            out.append(
                f'<path d="M{box.left},{y0:.1f}H{box.right}" stroke="{SOFT}" stroke-dasharray="2 4"/>'
                f'<text x="{box.right - 4}" y="{y0 - 5:.1f}" text-anchor="end" font-size="{TICK}">{html.escape(self.floor[1])}</text>'
            )
        places = [(box.right + 14.0, box.top + 10 + 20 * k, name) for k, name in enumerate(self.names)]
        if not beside:
            places = [(box.left + dx, 41 + 17 * r, name) for r, row in enumerate(rows) for dx, name in row]
        for x0, y0, name in places:
            s = next(s for s in self.series if s.name == name and not s.faint)
            out.append(
                f'<path d="M{x0},{y0}h18" stroke="{self._colour(s)}" stroke-width="2" stroke-dasharray="{self._dash(s)}"/>'
                f'<text x="{x0 + 24}" y="{y0 + 4}" font-size="{LABEL}">{html.escape(name)}</text>'
            )
        return box.close(out)

    def text(self) -> str:
        ends = [_last(s, self.until) for s in self.series if not s.faint]
        ends += [self.floor[1]] if self.floor else []
        return f"{self.title}\n{self.y} against {self.x}; last values: " + "; ".join(e for e in ends if e)

    def spec(self, held: Held = listed) -> dict[str, Any]:
        x_axis, y_axis = self.axes()
        lines = []
        for s in self.series:
            x: Growing | list[Any]
            y: Growing | list[Any]
            if held is not listed and isinstance(s.x, Growing) and isinstance(s.y, Growing):
                x, y = s.x, s.y
            else:
                x, y = s.points
            dash = [int(d) for d in self._dash(s).split()]
            look = {"colour": self._colour(s), "dash": dash, "faint": s.faint, "speaks": self._speaks(s)}
            marked = len(x) <= FEW_POINTS and not s.faint
            lines.append({"name": s.name, "x": held(x), "y": held(y), "marked": marked} | look)
        bands = [
            {"x": held(_held(b.x, held)), "low": held(_held(b.low, held)), "high": held(_held(b.high, held))}
            | {"colour": COLOURS[b.colour % len(COLOURS)], "strength": b.strength}
            for b in self.bands
        ]
        return {
            "kind": "lines",
            "bands": bands,
            "title": self.title,
            "text": self.text(),
            "x": x_axis.spec(),
            "y": y_axis.spec(),
            "series": lines,
            "floor": self.floor,
            "hover": self.hover,
            "time": self.time and self.time.spec(held, held is listed),
        } | ({} if self.until is None else {"until": self.until})

    def _drawn(self, s: Series) -> tuple[list[float], list[float | None]]:
        """Points at rest, up to ``until``."""
        x, y = s.points
        num = len(x) if self.until is None else sum(v <= self.until for v in x)
        return x[:num], y[:num]

    def _colour(self, s: Series) -> str:
        by_name = self.names.index(s.name) if s.name in self.names else -1
        return COLOURS[(by_name if s.colour is None else s.colour) % len(COLOURS)]

    def _dash(self, s: Series) -> str:
        return "" if s.faint else SVG_DASHES[self.names.index(s.name) % len(SVG_DASHES)]

    def _speaks(self, s: Series) -> bool:
        return not s.faint or s.name not in self.names


@dataclass(frozen=True)
class Bars(Picture):
    """One bar a row with its value written out; ``labels`` replaces the written value."""

    title: str
    x: str
    names: Sequence[str]
    values: Sequence[float]
    labels: Sequence[str]
    colours: Sequence[int] = ()  # of each row, as a number into the palette; by default one after another
    most: float | None = None  # at which the axis ends; by default a little beyond the longest

    @property
    def wide(self) -> bool:
        return len(self.names) > 16

    def height(self, width: int) -> int:
        return 110 + (40 if len(self.names) < 6 else 26) * len(self.names)

    def axis(self) -> Axis:
        return Axis(
            self.x, 0.0, self.most or 1.02 * (max(self.values, default=1.0) or 1.0)
        )  # the longest has a label as well

    def plotly(self, width: int = WIDTH) -> Figure:
        bar = {
            "type": "bar",
            "orientation": "h",
            "y": list(self.names),
            "x": list(self.values),
            "text": list(self.labels),
            "textposition": "outside",
            "cliponaxis": False,
            "marker": {"color": [self._colour(k) for k in range(len(self.names))]},
            "hovertemplate": "%{y}: %{text}<extra></extra>",
            "showlegend": False,
        }
        y_axis = {"autorange": "reversed", "type": "category", "showgrid": False}
        layout = layout_of(self.title, self.axis().plotly(), y_axis, self.height(width) + 30)
        left, right = self._beside(width)
        layout["margin"] |= {"l": left, "r": right}
        return Figure(data=[bar], layout=layout)

    def svg(self, width: int = WIDTH, height: int | None = None) -> str:
        left, right = self._beside(width)
        box = Box(width, height or self.height(width), self.axis(), None, left=left, right=right)
        out = box.frame(self.title)
        each = (box.bottom - box.top) / max(1, len(self.names))
        for k, (name, value, label) in enumerate(zip(self.names, self.values, self.labels, strict=True)):
            y0 = box.top + each * (k + 0.18)
            end = box.px(value)
            out.append(
                f'<rect x="{box.left}" y="{y0:.1f}" width="{max(0.0, end - box.left):.1f}" height="{each * 0.64:.1f}" '
                f'fill="{self._colour(k)}"/>'
                f'<text x="{box.left - 6}" y="{y0 + each * 0.4:.1f}" text-anchor="end" font-size="{LABEL}">{html.escape(name)}</text>'
                f'<text x="{end + 6:.1f}" y="{y0 + each * 0.4:.1f}" font-size="{LABEL}">{html.escape(label)}</text>'
            )
        return box.close(out)

    def text(self) -> str:
        return f"{self.title}\n" + "; ".join(f"{n}: {v}" for n, v in zip(self.names, self.labels, strict=True))

    def spec(self, held: Held = listed) -> dict[str, Any]:
        bars = zip(self.names, self.values, self.labels, range(len(self.names)), strict=False)
        return {
            "kind": "bars",
            "title": self.title,
            "text": self.text(),
            "x": self.axis().spec(),
            "bars": [{"name": n, "value": v, "label": s, "colour": self._colour(k)} for n, v, s, k in bars],
        }

    def _beside(self, width: int) -> tuple[int, int]:
        """Pixels for names and for labels; where the picture is narrow, bars keep a third of it, or nearly so."""
        left, right = beside(self.names), max(170, beside(self.labels))
        if width - left - right < width / 3:
            right = beside(self.labels)
        return min(left, max(40, int(0.75 * width) - right)), right

    def _colour(self, row: int) -> str:
        return COLOURS[(self.colours[row] if self.colours else row) % len(COLOURS)]


@dataclass(frozen=True)
class Note(Picture):
    """Words where a picture would stand: nothing to be seen yet, or what went wrong."""

    title: str
    words: str

    def height(self, width: int) -> int:
        return 60 + 18 * len(self._lines(width))

    def plotly(self, width: int = WIDTH) -> Figure:
        layout = layout_of(self.title, {"visible": False}, {"visible": False}, self.height(width) + 40)
        words = {"text": "<br>".join(map(html.escape, self._lines(width))), "showarrow": False, "align": "left"}
        at = {"xref": "paper", "yref": "paper", "x": 0, "y": 1, "xanchor": "left", "yanchor": "top"}
        layout["annotations"] = [words | at]
        layout["margin"]["l"] = 12
        return Figure(data=[], layout=layout)

    def svg(self, width: int = WIDTH, height: int | None = None) -> str:
        out = head(width, height or self.height(width), self.title)
        for k, line in enumerate(self._lines(width)):
            out.append(f'<text x="14" y="{50 + 18 * k}" font-size="{LABEL}">{html.escape(line)}</text>')
        return "".join(out) + "</svg>"

    def text(self) -> str:
        return f"{self.title}\n{self.words}"

    def spec(self, held: Held = listed) -> dict[str, Any]:
        return {"kind": "note", "title": self.title, "text": self.text(), "words": self.words}

    def _lines(self, width: int) -> list[str]:
        return [part for line in self.words.splitlines() for part in textwrap.wrap(line, int(width / 7.4)) or [""]]


def numbered(pictures: Sequence[Picture]) -> list[Picture]:
    """Pictures, those of lines that have one point each told in numbers instead, in one note at the end."""
    alone = [p for p in pictures if isinstance(p, Lines) and all(len(s.x) <= 1 for s in p.series)]
    told = [f"{p.title} {', '.join(end for s in p.series if not s.faint and (end := _last(s)))}" for p in alone]
    return [
        *(p for p in pictures if p not in alone),
        *([Note("So far one look, in numbers", "\n".join(told))] if told else []),
    ]


def bundle(picture: Picture) -> dict[str, Any]:
    """What a notebook stores: what `view.js` draws where it is known, SVG elsewhere, text in a terminal."""
    return {
        MIME: resting(picture),
        "image/svg+xml": picture.svg(),
        "text/plain": picture.text(),
    }


def resting(picture: Picture) -> dict[str, Any]:
    """A picture, or a board of them, as it is drawn at rest."""
    spec = picture.spec()
    return packed({"": spec if spec["kind"] == "board" else lone(spec, picture.height(WIDTH))})


def stored(figure: dict[str, Any]) -> dict[str, Any]:
    """A figure as a notebook stores it: numbers as plotly's typed arrays, since Jupyter writes one number of a list a line."""
    layout = figure["layout"] | {"meta": {"isthmus": True}}
    return {
        "data": _typed(figure["data"]),
        "layout": _typed(layout),
        "config": {"displaylogo": False, "modeBarButtons": [["toImage", "resetScale2d"]]},
    }


def _typed(thing: Any) -> Any:
    if isinstance(thing, dict):
        return {key: _entry(value) if key == "args" else _typed(value) for key, value in thing.items()}
    if not isinstance(thing, list):
        return thing
    if len(thing) > FEW_POINTS and _numbers(thing):
        return _packed(thing)
    if thing and all(isinstance(row, list) and len(row) > FEW_POINTS and _numbers(row) for row in thing):
        if len({len(row) for row in thing}) == 1:  # a table: plotly does not look for typed arrays within lists
            return _packed([v for row in thing for v in row]) | {"shape": f"{len(thing)}, {len(thing[0])}"}
        return thing
    return [_typed(value) for value in thing]


def _numbers(values: list[Any]) -> bool:
    return all(v is None or isinstance(v, int | float) for v in values)


def _packed(values: list[Any]) -> dict[str, Any]:
    numbers = np.array([math.nan if v is None else v for v in values], dtype=np.float32)
    return {"dtype": "f4", "bdata": base64.b64encode(numbers.tobytes()).decode()}


def _entry(args: list[Any]) -> list[Any]:
    """What an entry of a menu changes: a list there has a value for each trace, and plotly wants to see it as a list."""
    styles, layout, touched = args
    return [{key: [_typed(value) for value in values] for key, values in styles.items()}, _typed(layout), touched]


def thin(x: Numbers, y: Numbers, most: int = MAX_POINTS, digits: int = 5) -> tuple[list[float], list[float | None]]:
    """At most ``most`` points of a line, keeping the extremes of every stretch; not-a-number is a gap (None) and stays one.

    A line with gaps may have twice as many, for their ends. Values keep so many significant digits.
    """
    num = min(len(x), len(y))  # of numbers that grow one may be ahead
    xs, ys = np.asarray(x, dtype=float)[:num], np.asarray(y, dtype=float)[:num]
    if num > most:
        index = _kept(ys, most // 2 - 1)
        if len(index) > 2 * most:  # gaps everywhere: eight points of a stretch are the most
            index = _kept(ys, most // 4 - 1)
        xs, ys = xs[index], ys[index]
    return [rounded(v) for v in xs], [rounded(v, digits) if math.isfinite(v) else None for v in ys]


def _kept(ys: np.ndarray, num_parts: int) -> np.ndarray:
    """Places in a line: both ends; of each of so many stretches the extremes and the ends of its longest gap; and a place of
    every gap that would otherwise lie between two of them, unseen."""
    known = np.isfinite(ys)
    keep = {0, len(ys) - 1}
    for part in np.array_split(np.arange(len(ys)), num_parts):
        if known[part].any():
            keep |= {int(part[np.nanargmin(np.where(known[part], ys[part], np.nan))])}
            keep |= {int(part[np.nanargmax(np.where(known[part], ys[part], np.nan))])}
        if not known[part].all():
            edges = np.diff(np.concatenate([[True], known[part], [True]]).astype(int))
            first, after = part[0] + np.flatnonzero(edges < 0), part[0] + np.flatnonzero(edges > 0)
            longest = int(np.argmax(after - first))
            ends = int(first[longest]) - 1, int(after[longest])
            keep |= {k for k in ends if 0 <= k < len(ys) and known[k]}
    index = np.array(sorted(keep))
    unknown = np.flatnonzero(~known)
    if len(unknown):
        next_gap = unknown[np.searchsorted(unknown, index[:-1]).clip(max=len(unknown) - 1)]
        index = np.union1d(index, next_gap[(index[:-1] < next_gap) & (next_gap < index[1:])])
    return index


def plotly_text(words: str) -> str:
    """A hover text without the box that repeats the name of the trace."""
    return words.replace("\n", "<br>") + "<extra></extra>"


def _evenly(x: list[float]) -> dict[str, Any]:
    """Places of points for plotly; two numbers say it where they lie evenly (a step of 0 would be taken for 1)."""
    gaps = {b - a for a, b in pairwise(x)}
    return {"x0": x[0], "dx": gaps.pop()} if len(gaps) == 1 and 0 not in gaps else {"x": x}


def _alone(y: list[float | None]) -> list[bool]:
    """Which points of a line have a gap, or nothing, on both sides."""
    return [
        v is not None and before is None and after is None
        for before, v, after in zip([None, *y], y, [*y[1:], None], strict=False)
    ]


def _last(s: Series, until: float | None = None) -> str:
    """The last value of a line that is a number, in words."""
    last = s.last_until(math.inf if until is None else until)
    return f"{s.name}: {last[1]:.4g} at {last[0]:.4g}" if last else ""


def bands(x: Numbers, spread: Spread, colour: int) -> list[Band]:
    """Of 90 % and of 50 % of many values; nothing where they are few."""
    outer_low, low, high, outer_high = spread.lines
    return [Band(x, outer_low, outer_high, colour), Band(x, low, high, colour)] if len(low) else []


def _filled(band: Band) -> dict[str, Any]:
    """A band for plotly: around each piece once, with gaps between them."""
    x, y = list[float | None](), list[float | None]()
    for at, low, high in band.outline:
        x += [*at, *at[::-1], None]
        y += [*low, *high[::-1], None]
    look = {
        "fill": "toself",
        "fillcolor": through(COLOURS[band.colour % len(COLOURS)], band.strength),
        "line": {"width": EDGE, "color": COLOURS[band.colour % len(COLOURS)]},
    }
    return {"type": "scatter", "mode": "lines", "x": x, "y": y, "showlegend": False, "hoverinfo": "skip"} | look


def _shape(band: Band, box: Box) -> str:
    """A band as an SVG path, in whole tenths of a pixel."""
    path = ""
    for at, low, high in band.outline:
        around = [*zip(at, low, strict=True), *zip(at[::-1], high[::-1], strict=True)]
        path += "M" + " ".join(f"{box.px(x):.1f},{box.py(y):.1f}" for x, y in around) + "Z"
    colour = COLOURS[band.colour % len(COLOURS)]
    return (
        f'<path d="{path}" fill="{colour}" fill-opacity="{band.strength:g}" stroke="{colour}" stroke-width="{EDGE}"/>'
        if path
        else ""
    )


def _held(numbers: Numbers, held: Held) -> Growing | list[Any]:
    """Numbers as a canvas holds them, and whoever holds nothing is given them."""
    if isinstance(numbers, Growing):
        return numbers
    return [float(v) if math.isfinite(v) else None for v in numbers]


def _extent(numbers: Numbers) -> Extent:
    return numbers.extent if isinstance(numbers, Growing) else Extent.of(numbers)


def _runs(points: Sequence[tuple[float, float] | None]) -> str:
    """A line with its gaps as an SVG path, in whole tenths of a pixel and from point to point, which is short."""
    path, before = "", None
    for p in points:
        here = None if p is None else (round(10 * p[0]), round(10 * p[1]))
        if here is not None and before is not None:
            path += f" {here[0] - before[0]}{here[1] - before[1]:+}"
        elif here is not None:
            path += f"M{here[0]} {here[1]}l0 0"  # a point between two gaps shows as a dot
        before = here
    return path.replace("+", " ")


def beside(names: Sequence[str]) -> int:
    """Pixels for names at the left."""
    return max(64, round(14 + 7.4 * max((len(n) for n in names), default=0)))


def legend_rows(names: Sequence[str], width: int) -> list[list[tuple[float, str]]]:
    """A legend above the curves: names with their distance from the left, broken into rows."""
    rows: list[list[tuple[float, str]]] = [[]]
    at = 0.0
    for name in names:
        needs = 36 + 7.6 * len(name)
        if at and at + needs > width:
            rows.append([])
            at = 0.0
        rows[-1].append((at, name))
        at += needs
    return rows
