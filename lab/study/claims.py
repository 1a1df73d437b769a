"""What a paper says, and what we measured. Every notebook ends with such a table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from lab.study.tables import html_table

MIME = "application/vnd.isthmus.claims+json"

Verdict = Literal["exact", "holds", "not reproduced", "not tested here"]
SIGN = {"exact": "=", "holds": "✓", "not reproduced": "✗", "not tested here": "·"}


@dataclass(frozen=True)
class Claim:
    """One claim.

    says, setting
        the paper's statement and under which conditions it was made.
    measured, verdict
        what this run gave, and whether it agrees: ``exact`` (a number that follows from counting and is equal),
        ``holds`` (the direction is the same), ``not reproduced``, or ``not tested here``.
    note
        what a reader must know to judge: size of the effect, spread, differences of setting.
    """

    paper: str
    says: str
    setting: str
    measured: str
    verdict: Verdict
    note: str = ""

    def __post_init__(self) -> None:
        if self.verdict not in SIGN:
            raise ValueError(f"verdict {self.verdict!r}: use one of {', '.join(SIGN)}")

    @classmethod
    def judge(cls, paper: str, says: str, setting: str, measured: str, holds: bool, note: str = "") -> Claim:
        """A claim whose direction is decided by a comparison of measured numbers."""
        return cls(paper, says, setting, measured, "holds" if holds else "not reproduced", note)


@dataclass(frozen=True)
class Claims:
    """A table of claims; shown as HTML in a notebook, and kept in its output for ``lab reproduce`` to read."""

    notebook: str
    rows: tuple[Claim, ...]

    def to_text(self) -> str:
        lines = []
        for c in self.rows:
            lines.append(f"{SIGN[c.verdict]} {c.verdict:<16} {c.paper}: {c.says} [{c.setting}]")
            lines.append(f"{'':<19}measured: {c.measured}" + (f" – {c.note}" if c.note else ""))
        return "\n".join(lines)

    def to_html(self) -> str:
        head = ("Paper", "It says", "in the setting", "Measured here", "Verdict", "Note")
        rows = [(c.paper, c.says, c.setting, c.measured, f"{SIGN[c.verdict]} {c.verdict}", c.note) for c in self.rows]
        return html_table(head, rows, style="text-align:left;vertical-align:top")

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, Any]:
        return {
            "text/plain": self.to_text(),
            "text/html": self.to_html(),
            MIME: {"notebook": self.notebook, "rows": [asdict(c) for c in self.rows]},
        }


def spread(values: Sequence[float], digits: int = 3, signed: bool = False) -> str:
    """Mean and range over seeds in words: ``2.513 (2.498 … 2.530)``; of one value, that value alone; ∞ where it is."""
    form = f"{'+' if signed else ''}.{digits}f"
    mean = f"{sum(values) / len(values):{form}}"
    return (mean if len(values) == 1 else f"{mean} ({min(values):{form}} … {max(values):{form}})").replace("inf", "∞")


def claims_in(notebook: dict[str, Any]) -> Claims | None:
    """The claims table that an executed notebook (its parsed JSON) holds, None if there is none."""
    for cell in notebook["cells"]:
        for output in cell.get("outputs", []):
            found = output.get("data", {}).get(MIME)
            if found:
                return Claims(found["notebook"], tuple(Claim(**row) for row in found["rows"]))
    return None
