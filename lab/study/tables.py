"""Tables as HTML, for pages and for what cells of notebooks show."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Entry:
    """One cell of a table: ``kind`` is its class in the style sheet, ``is_html`` says that its text need not be escaped."""

    text: str
    kind: str = ""
    is_html: bool = False


def html_table(head: Sequence[str], rows: Iterable[Sequence[str | Entry]], style: str = "") -> str:
    """Rows under a head. Plain text is escaped; ``style`` is the CSS of every cell, where no style sheet can say it."""
    look = f' style="{html.escape(style)}"' if style else ""

    def cell(entry: str | Entry) -> str:
        entry = Entry(entry) if isinstance(entry, str) else entry
        kind = f' class="{html.escape(entry.kind)}"' if entry.kind else ""
        return f"<td{kind}{look}>{entry.text if entry.is_html else html.escape(entry.text)}</td>"

    top = "".join(f"<th>{html.escape(x)}</th>" for x in head)
    body = "".join(f"<tr>{''.join(map(cell, row))}</tr>" for row in rows)
    return f"<table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>"
