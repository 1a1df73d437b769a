"""Pictures of what happens when: rows over local steps, with strokes and bars."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from lab.runs.growing import Growing
from widgets.axes import Axis, Box, layout_of, rounded
from widgets.colours import COLOURS, INK, LABEL
from widgets.pictures import WIDTH, Figure, Held, Picture, beside, legend_rows, listed
from widgets.time_axis import LEFT, RIGHT, TimeAxis

PLANNED = 0.4  # how high what is planned is, as a part of what is done
MAX_MARKS = 300  # different places of strokes in a row at rest


@dataclass(frozen=True)
class Marks:
    """Strokes at some steps in one row; with ``to``, bars from each step to another, both included."""

    row: int
    name: str  # in the legend, unless the row says it already
    at: Sequence[int] | Growing
    to: Sequence[int] | None = None
    colour: int = 0  # number into the palette
    faint: bool = False  # planned: as much lower as `PLANNED` says, in the middle of its lane
    lane: tuple[float, float] = (0.2, 0.8)  # part of the row's height, from its top

    @property
    def drawn(self) -> tuple[float, float]:
        """The part of the lane that is filled."""
        first, end = self.lane
        less = (1 - PLANNED) * (end - first) / 2 if self.faint else 0.0
        return rounded(first + less), rounded(end - less)

    @cached_property
    def steps(self) -> list[int]:
        """What is drawn of strokes at rest: where they are too dense, one in so many pixels."""
        steps = [int(v) for v in (self.at.values if isinstance(self.at, Growing) else self.at)]
        if self.to is not None or len(steps) <= MAX_MARKS:
            return steps
        place = np.linspace(steps[0], steps[-1], MAX_MARKS)
        return sorted({steps[k] for k in np.searchsorted(steps, place).clip(max=len(steps) - 1)})


@dataclass(frozen=True)
class Calendar(Picture):
    """What happens in which row at which step. ``now`` is a line at the present step."""

    title: str
    x: str
    rows: Sequence[str]
    marks: Sequence[Marks]
    last: int
    now: int | None = None
    tall: int = 30  # pixels of a row
    time: TimeAxis | None = None  # shared with other pictures over steps

    @cached_property
    def legend(self) -> list[Marks]:
        """One of each name that is not that of its row; what is done comes before what is planned."""
        others = [m for m in self.marks if m.name != self.rows[m.row] and len(m.at)]
        names = dict.fromkeys(m.name for m in others)
        return [min((m for m in others if m.name == name), key=lambda m: m.faint) for name in names]

    def height(self, width: int) -> int:
        legend = 17 * len(self._legend_rows(width))
        if self.time is not None and self.time.compact:
            return 42 + legend + min(self.tall, max(8, 66 // len(self.rows)), 18) * len(self.rows)
        return 100 + self.tall * len(self.rows) + legend

    def axis(self) -> Axis:
        if self.time is not None:
            return self.time.axis(self.x)
        return Axis(self.x, -0.01 * self.last, 1.01 * self.last, whole=True)

    def plotly(self, width: int = WIDTH) -> Figure:
        data: list[dict[str, Any]] = []
        for m in self.marks:
            if not len(m.at):
                continue
            looks = {"color": COLOURS[m.colour % len(COLOURS)]}
            first, end = m.drawn
            middle, high = m.row + (first + end) / 2 - 0.5, end - first
            trace: dict[str, Any] = {"name": m.name, "legendgroup": m.name}
            if m.to is None:
                size = max(4, round(high * self.tall * 0.72))
                trace |= {"type": "scatter", "mode": "markers", "x": m.steps, "y": [rounded(middle)] * len(m.steps)}
                trace["marker"] = looks | {"symbol": "line-ns-open", "size": size, "line": {"width": 2}}
                says = "step %{x}"
            else:
                trace |= {"type": "bar", "orientation": "h", "base": m.steps, "marker": looks, "width": rounded(high)}
                trace |= {"x": [b - a + 1 for a, b in zip(m.steps, m.to, strict=True)], "offset": rounded(-high / 2)}
                trace |= {"y": [rounded(middle)] * len(m.to), "customdata": list(m.to)}
                says = "steps %{base} to %{customdata}"
            trace["hovertemplate"] = f"{html.escape(self.rows[m.row])}: {html.escape(m.name)}, {says}<extra></extra>"
            trace["showlegend"] = any(m is shown for shown in self.legend)
            data.append(trace)
        y_axis = {"range": [len(self.rows) - 0.5, -0.5], "tickmode": "array", "showgrid": False}
        y_axis |= {"tickvals": list(range(len(self.rows))), "ticktext": list(self.rows)}
        layout = layout_of(self.title, self.axis().plotly(), y_axis, self.height(width) + 30)
        layout["margin"] |= {"l": beside(self.rows), "t": 44 + 17 * len(self._legend_rows(width))}
        if self.time is not None:
            self.time.mark(layout, words=False)
        layout["legend"] = {"orientation": "h", "x": 0, "y": 1, "xanchor": "left", "yanchor": "bottom"}
        layout["barmode"] = "overlay"
        if self.now is not None:
            line = {"color": layout["font"]["color"], "width": 1}
            at = {"yref": "paper", "y0": 0, "y1": 1, "x0": self.now, "x1": self.now}
            layout["shapes"] = [*layout.get("shapes", []), {"type": "line", "line": line} | at]
        return Figure(data=data, layout=layout)

    def svg(self, width: int = WIDTH, height: int | None = None) -> str:
        legend = self._legend_rows(width)
        left, right = (beside(self.rows), 24) if self.time is None else (LEFT, RIGHT)
        whole = height or self.height(width)
        box = Box(width, whole, self.axis(), None, left=left, right=right, above=17 * len(legend))
        out = box.frame(self.title)
        out += self.time.svg(box, words=False) if self.time else []
        looks = {m.name: m for m in self.legend}
        for r, row in enumerate(legend):
            for dx, name in row:
                x0, y0, m = box.left + dx, 41 + 17 * r, looks[name]
                half = PLANNED * 5 if m.faint else 5
                x, broad = (x0, 16) if m.to is not None else (x0 + 7, 2.5)
                mark = f"M{x:g},{y0 - half:g}h{broad}v{2 * half:g}h-{broad}z"
                out.append(f'<path d="{mark}" {self._fill(m)}/>')
                out.append(f'<text x="{x0 + 22}" y="{y0 + 4}" font-size="{LABEL}">{html.escape(name)}</text>')
        each = (box.bottom - box.top) / max(1, len(self.rows))
        for m in self.marks:
            top, tall = box.top + each * (m.row + m.drawn[0]), each * (m.drawn[1] - m.drawn[0])
            if m.to is None:
                path = "".join(f"M{box.px(v) - 0.8:.1f},{top:.1f}h1.6v{tall:.1f}h-1.6z" for v in m.steps)
            else:
                spans = [(box.px(a), box.px(b + 1)) for a, b in zip(m.steps, m.to, strict=True)]
                path = "".join(f"M{a:.1f},{top:.1f}H{max(a + 1, b):.1f}v{tall:.1f}H{a:.1f}z" for a, b in spans)
            if path:
                out.append(f'<path d="{path}" {self._fill(m)}/>')
        for k, name in enumerate(self.rows):
            middle = box.top + each * (k + 0.5) + 4
            out.append(
                f'<text x="{box.left - 6}" y="{middle:.1f}" text-anchor="end" font-size="{LABEL}">{html.escape(name)}</text>'
            )
        if self.now is not None:
            out.append(f'<path d="M{box.px(self.now):.1f},{box.top}V{box.bottom}" stroke="{INK}"/>')
        return box.close(out)

    def text(self) -> str:
        told = []
        for k, row in enumerate(self.rows):
            here = {name: [m for m in self.marks if m.row == k and m.name == name] for name in self._names(k)}
            said = [f"{self._count(marks)}{'' if name == row else f' {name}'}" for name, marks in here.items()]
            told.append(f"{row}: {', '.join(said) or 'nothing'}")
        return f"{self.title}\n" + "; ".join(told)

    def spec(self, held: Held = listed) -> dict[str, Any]:
        marks = [
            {
                "row": m.row,
                "name": m.name,
                "at": held(m.at) if held is not listed and isinstance(m.at, Growing) else held(m.steps),
                "to": None if m.to is None else held(list(m.to)),
                "colour": COLOURS[m.colour % len(COLOURS)],
                "lane": list(m.drawn),
            }
            for m in self.marks
        ]
        return {
            "kind": "calendar",
            "title": self.title,
            "text": self.text(),
            "x": self.axis().spec(),
            "rows": list(self.rows),
            "marks": marks,
            "now": self.now,
            "time": self.time and self.time.spec(held, held is listed),
            "legend": [
                {
                    "name": m.name,
                    "colour": COLOURS[m.colour % len(COLOURS)],
                    "bar": m.to is not None,
                    "faint": m.faint,
                }
                for m in self.legend
            ],
        }

    def _names(self, row: int) -> list[str]:
        return list(dict.fromkeys(m.name for m in self.marks if m.row == row))

    def _count(self, marks: Sequence[Marks]) -> str:
        """In words: how often, or for how many steps."""
        if marks[0].to is None:
            return f"{sum(len(m.at) for m in marks)} times"
        return f"{sum(b - a + 1 for m in marks for a, b in zip(m.steps, m.to or (), strict=True))} steps"

    def _fill(self, m: Marks) -> str:
        return f'fill="{COLOURS[m.colour % len(COLOURS)]}"'

    def _legend_rows(self, width: int) -> list[list[tuple[float, str]]]:
        names = [m.name for m in self.legend]
        left = beside(self.rows) if self.time is None else LEFT
        return legend_rows(names, width - left - 24) if names else []
