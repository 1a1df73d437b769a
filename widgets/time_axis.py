"""The one time axis of pictures that stand above each other: where each step lies, and what happened when, the same in all of them.

A picture over local steps that is given a `TimeAxis` takes its range and its margins, so that a step has the same place in each,
and draws its marks: a dashed line at every knob that was turned, a tinted band for as long as a worker was down, and short strokes
at the bottom for syncs.
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lab.runs.growing import Growing
from widgets.axes import Axis, Box
from widgets.colours import COLOURS, INK, SOFT, TICK, through

STEPS = ("local step", "local steps of every worker")  # what pictures over steps write at their axis
LEFT, RIGHT = 104, 24  # margins, in pixels
KNOB, OUTAGE = COLOURS[4], COLOURS[3]  # of lines, and of the edges of bands
BAND = through(OUTAGE, 0.14)
MAX_STROKES = 200  # syncs that are drawn at rest
LETTER = 6.8  # pixels of a letter of a mark's words


@dataclass(frozen=True)
class TimeAxis:
    """Steps from 0 to ``last``; ``knobs`` as step and words, ``outages`` as first step, last step and words.

    compact
        whether pictures make themselves low, since several are to be seen at once.
    """

    last: int
    syncs: Growing
    knobs: Sequence[tuple[int, str]] = ()
    outages: Sequence[tuple[int, int, str]] = ()
    compact: bool = False

    def axis(self, label: str) -> Axis:
        return Axis(label, -0.01 * self.last, 1.01 * self.last, whole=True)

    @property
    def strokes(self) -> list[int]:
        """Syncs as far as they are drawn at rest: where they are too dense, one in so many."""
        steps = [int(v) for v in self.syncs.values]
        return steps[:: -(-len(steps) // MAX_STROKES)] if steps else steps

    def words(self) -> str:
        """For who does not see the marks."""
        said = [f"{words} from step {step:,}" for step, words in self.knobs]
        said += [f"{words} in steps {first:,} to {last:,}" for first, last, words in self.outages]
        said += [f"{len(self.syncs):,} syncs"] if len(self.syncs) else []
        return "; ".join(said)

    def spec(self, held: Any, at_rest: bool) -> dict[str, Any]:
        return {
            "sides": [LEFT, RIGHT],
            "compact": self.compact,
            "syncs": self.strokes if at_rest else held(self.syncs),
            "knobs": [list(k) for k in self.knobs],
            "outages": [list(o) for o in self.outages],
            "colours": [KNOB, OUTAGE, BAND],
        }

    def mark(self, layout: dict[str, Any], words: bool) -> None:
        """Give a layout of plotly the margins of this axis, and its marks, where there is room with their words."""
        layout["margin"] |= {"l": LEFT, "r": RIGHT}
        layout["shapes"] = [*layout.get("shapes", []), *self._shapes()]
        layout["annotations"] = [*layout.get("annotations", []), *(self._notes() if words else [])]

    def _shapes(self) -> list[dict[str, Any]]:
        """Lines, bands and strokes."""
        high: dict[str, Any] = {"yref": "paper", "y0": 0, "y1": 1, "layer": "below"}
        out = [
            {"type": "rect", "x0": first - 1, "x1": last, "fillcolor": BAND, "line": {"color": OUTAGE, "width": 1}}
            | high
            for first, last, _ in self.outages
        ]
        line = {"color": KNOB, "width": 1.2, "dash": "dash"}
        out += [{"type": "line", "x0": step, "x1": step, "line": line} | high for step, _ in self.knobs]
        if self.strokes:
            out.append(self._strokes())
        return out

    def _strokes(self) -> dict[str, Any]:
        """All syncs as one path, whose heights are parts of the picture's."""
        path = " ".join(f"M{step},0 L{step},0.045" for step in self.strokes)
        return {"type": "path", "yref": "paper", "path": path, "line": {"color": SOFT, "width": 1}, "layer": "below"}

    def _notes(self) -> list[dict[str, Any]]:
        """The words of knobs."""
        look = {"yref": "paper", "y": 1, "yanchor": "top", "xanchor": "left", "showarrow": False}
        font = {"size": TICK, "color": INK}
        return [{"x": step, "text": html.escape(words), "font": font} | look for step, words in self._said()]

    def svg(self, box: Box, words: bool) -> list[str]:
        out = [
            f'<path d="M{box.px(first - 1):.1f},{box.top}H{box.px(last):.1f}V{box.bottom}H{box.px(first - 1):.1f}z" fill="{BAND}" stroke="{OUTAGE}">'
            f"<title>{html.escape(words)}</title></path>"
            for first, last, words in self.outages
        ]
        out += [
            f'<path d="M{box.px(step):.1f},{box.top}V{box.bottom}" stroke="{KNOB}" stroke-width="1.2" stroke-dasharray="5 3"/>'
            for step, _ in self.knobs
        ]
        out += [
            f'<text x="{box.px(step) + 4:.1f}" y="{box.top + 10}" font-size="{TICK}" fill="{INK}">{html.escape(said)}</text>'
            for step, said in (self._said() if words else [])
        ]
        path = "".join(f"M{box.px(step):.1f},{box.bottom}v-6" for step in self.strokes)
        return [*out, f'<path d="{path}" stroke="{SOFT}"/>'] if path else out

    def _said(self) -> list[tuple[int, str]]:
        """The words of knobs that have room at a width of 640 pixels; of those close to each other the last."""
        out, end = list[tuple[int, str]](), 700.0
        for step, words in reversed(self.knobs):
            at = 640 * step / max(1, self.last)
            if at + LETTER * len(words) + 10 <= end:
                out.append((step, words))
                end = at
        return out[::-1]
