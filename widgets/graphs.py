"""A picture made of dots and links between them."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from lab.runs.growing import Extent
from widgets.axes import Axis, Box, layout_of, rounded
from widgets.colours import CIVIDIS, COLOURS, LABEL, SOFT, TICK
from widgets.matrices import colour_bar
from widgets.pictures import DASHES, SVG_DASHES, WIDTH, Figure, Held, Picture, legend_rows, listed, plotly_text

UNKNOWN = COLOURS[6]  # of a dot without a value
NARROWEST = 600  # pixels at which labels must not touch
SIDES = (24, 78)  # pixels beside the dots: nothing, and the colour bar


@dataclass(frozen=True)
class Dot:
    """Somewhere between left (0) and right (1), top (0) and bottom (1). ``label`` stands beside it, or below, a line for each part."""

    x: float
    y: float
    words: str  # under the pointer
    value: float | None = None  # its colour
    label: Sequence[str] = ()
    below: bool = False


@dataclass(frozen=True)
class Link:
    """A line of ``width`` pixels from place to place. All of one name are one entry of the legend, with one colour and dash."""

    name: str
    points: Sequence[tuple[float, float]]
    width: float = 2.0
    colour: int = 0  # number into the palette
    dash: int = 0  # number into the dashes of lines


@dataclass(frozen=True)
class Graph(Picture):
    """Dots and links. ``unit`` says what the colour of a dot is; ``x``, below, says what else there is to be known.

    Where it is ``square``, as far across is as far down, so that distances can be compared.
    """

    title: str
    x: str
    dots: Sequence[Dot]
    links: Sequence[Link]
    unit: str
    tall: int = 84  # pixels from one row of dots to the next
    radius: int = 8
    square: bool = False

    @property
    def wide(self) -> bool:
        return not self.square

    def height(self, width: int) -> int:
        if self.square:
            return 320
        return 140 + self.tall * (len({dot.y for dot in self.dots}) - 1) + 17 * len(self._legend_rows(width))

    @property
    def legend(self) -> list[Link]:
        """The first of each name."""
        return list({link.name: link for link in reversed(self.links)}.values())[::-1]

    @property
    def scale(self) -> Axis | None:
        """Of the colours; None where no dot has a value."""
        known = Extent.of([dot.value for dot in self.dots if dot.value is not None])
        if known.low > known.high:
            return None
        return Axis(self.unit, known.low, known.high if known.high > known.low else known.low + 1)

    def plotly(self, width: int = WIDTH) -> Figure:
        data, first = list[dict[str, Any]](), {id(link) for link in self.legend}
        by_look = sorted(self.links, key=lambda link: (link.name, link.width, id(link) not in first))
        for (name, wide), links in groupby(by_look, lambda link: (link.name, link.width)):
            same = list(links)
            x, y = list[float | None](), list[float | None]()
            for link in same:
                x += [*(rounded(a, 4) for a, _ in link.points), None]
                y += [*(rounded(b, 4) for _, b in link.points), None]
            line = {"color": COLOURS[same[0].colour], "width": wide, "dash": DASHES[same[0].dash]} | {"simplify": False}
            trace = {"type": "scatter", "mode": "lines", "name": name, "x": x, "y": y, "line": line}
            shown = any(id(link) in first for link in same)
            data.append(trace | {"legendgroup": name, "showlegend": shown, "hoverinfo": "skip"})
        scale = self.scale
        for known in (True, False):
            if dots := [dot for dot in self.dots if (dot.value is not None) == known]:
                data.append(self._plotly_dots(dots, scale if known else None))
        axis = {"showgrid": False, "showticklabels": False, "fixedrange": True}
        x_axis = {"title": {"text": self.x, "standoff": 40}, "range": [0, 1]} | axis
        tall, above = self.height(width), 40 + 17 * len(self._legend_rows(width))
        top = rounded(-14 / (tall - above - 14 - 74))  # the highest dots do not touch the legend
        y_axis = {"range": [1, top]} | axis | ({"scaleanchor": "x"} if self.square else {})
        layout = layout_of(self.title, x_axis, y_axis, tall)
        layout["margin"] |= {"l": SIDES[0], "r": SIDES[1], "t": above, "b": 74}
        layout["legend"] = {"orientation": "h", "x": 0, "y": 1, "xanchor": "left", "yanchor": "bottom"}
        return Figure(data=data, layout=layout)

    def _plotly_dots(self, dots: Sequence[Dot], scale: Axis | None) -> dict[str, Any]:
        marker: dict[str, Any] = {"size": 2 * self.radius, "line": {"color": SOFT, "width": 1}, "color": UNKNOWN}
        if scale is not None:
            ticks = scale.ticks()
            words = {"text": self.unit, "side": "right", "font": {"size": LABEL}}
            bar = {"title": words, "thickness": 12, "outlinewidth": 0, "ypad": 0, "tickfont": {"size": TICK}}
            marker |= {"color": [dot.value for dot in dots], "cmin": scale.low, "cmax": scale.high, "showscale": True}
            marker["colorscale"] = [[rounded(k / (len(CIVIDIS) - 1)), c] for k, c in enumerate(CIVIDIS)]
            marker["colorbar"] = bar | {"tickvals": ticks, "ticktext": [f"{v:.4g}" for v in ticks]}
        return {
            "type": "scatter",
            "mode": "markers+text",
            "x": [rounded(dot.x) for dot in dots],
            "y": [rounded(dot.y) for dot in dots],
            "text": ["<br>".join(map(html.escape, dot.label)) for dot in dots],
            "textposition": ["bottom center" if dot.below else "middle right" for dot in dots],
            "textfont": {"size": TICK},
            "customdata": [html.escape(dot.words).replace("\n", "<br>") for dot in dots],
            "hovertemplate": plotly_text("%{customdata}"),
            "marker": marker,
            "cliponaxis": False,
            "showlegend": False,
        }

    def svg(self, width: int = WIDTH, height: int | None = None) -> str:
        legend = self._legend_rows(width)
        tall = height or self.height(width)
        box = Box(width, tall, Axis(self.x, 0, 1), None, left=SIDES[0], right=SIDES[1], above=17 * len(legend) + 14)
        box.bottom -= 26
        if self.square:
            spare, middle = min(box.right - box.left, box.bottom - box.top) // 2, (box.left + box.right) // 2
            box.left, box.right, box.bottom = middle - spare, middle + spare, box.top + 2 * spare
        out = box.frame(self.title, ticks=False, most=4)
        looks, deep = {link.name: link for link in self.legend}, box.bottom - box.top
        for r, row in enumerate(legend):
            for dx, name in row:
                x0, y0 = box.left + dx, 41.0 + 17 * r
                out.append(f'<path d="M{x0},{y0}h18" {_look(looks[name], 2.5)}/>')
                out.append(f'<text x="{x0 + 24}" y="{y0 + 4}" font-size="{LABEL}">{html.escape(name)}</text>')
        for link in self.links:
            path = " ".join(f"{box.px(x):.1f},{box.top + deep * y:.1f}" for x, y in link.points)
            out.append(f'<path class="link" d="M{path}" fill="none" {_look(link, link.width)}/>')
        scale = self.scale
        for dot in self.dots:
            x0, y0 = box.px(dot.x), box.top + deep * dot.y
            fill = _colour(dot, scale)
            out.append(
                f'<circle cx="{x0:.1f}" cy="{y0:.1f}" r="{self.radius}" fill="{fill}" stroke="{SOFT}">'
                f"<title>{html.escape(dot.words)}</title></circle>"
            )
            for k, part in enumerate(dot.label):
                at = (x0, y0 + self.radius + 13 * (k + 1)) if dot.below else (x0 + self.radius + 4, y0 - 2 + 13 * k)
                anchor = "middle" if dot.below else "start"
                out.append(
                    f'<text x="{at[0]:.1f}" y="{at[1]:.1f}" text-anchor="{anchor}" font-size="{TICK}">{html.escape(part)}</text>'
                )
        if scale is not None:
            out += colour_bar(box, CIVIDIS, scale, [(v, f"{v:.4g}") for v in scale.ticks()])
        return box.close(out)

    def text(self) -> str:
        return "\n".join([self.title, *(dot.words.replace("\n", "; ") for dot in self.dots), self.x])

    def spec(self, held: Held = listed) -> dict[str, Any]:
        scale = self.scale
        ticks = [] if scale is None else [[rounded(scale.at(v)), f"{v:.4g}"] for v in scale.ticks()]
        return {
            "kind": "graph",
            "title": self.title,
            "text": self.text(),
            "x": self.x,
            "dots": [
                {"x": rounded(d.x), "y": rounded(d.y), "colour": _colour(d, scale), "words": d.words}
                | {"label": list(d.label), "below": d.below}
                for d in self.dots
            ],
            "links": [
                {"points": [[rounded(a, 4), rounded(b, 4)] for a, b in link.points], "width": link.width} | _spec(link)
                for link in self.links
            ],
            "legend": [{"name": link.name} | _spec(link) for link in self.legend],
            "colours": list(CIVIDIS),
            "scale": None if scale is None else {"label": self.unit, "ticks": ticks},
            "radius": self.radius,
            "sides": list(SIDES),
        } | ({"square": True} if self.square else {})

    def _legend_rows(self, width: int) -> list[list[tuple[float, str]]]:
        names = [link.name for link in self.legend]
        return legend_rows(names, width - sum(SIDES)) if names else []


def _colour(dot: Dot, scale: Axis | None) -> str:
    if dot.value is None or scale is None:
        return UNKNOWN
    return CIVIDIS[round(scale.at(dot.value) * (len(CIVIDIS) - 1))]


def _look(link: Link, width: float) -> str:
    return f'stroke="{COLOURS[link.colour]}" stroke-width="{width:g}" stroke-dasharray="{SVG_DASHES[link.dash]}"'


def _spec(link: Link) -> dict[str, Any]:
    return {"colour": COLOURS[link.colour], "dash": [int(d) for d in SVG_DASHES[link.dash].split()]}
