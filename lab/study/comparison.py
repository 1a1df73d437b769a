"""Executed notebooks side by side: a table for the terminal, and a page that needs no network."""

from __future__ import annotations

import html
from collections.abc import Iterator, Sequence
from urllib.parse import quote

from lab.study.claims import SIGN, Claim
from lab.study.execution import Execution
from lab.study.tables import Entry, html_table


def to_text(executions: Sequence[Execution]) -> str:
    """A table for the terminal: parameters, and what came out."""
    keys = list(executions[0].parameters)
    rows = [[*one.values.values(), one.result] for one in executions]
    widths = [max(len(row[i]) for row in [keys, *rows]) for i in range(len(keys))]
    head = [*keys, "claims"]
    return "\n".join(
        "  ".join([*(x.rjust(w) for x, w in zip(row, widths, strict=False)), row[-1]]) for row in [head, *rows]
    )


_STYLE = """body{font:15px/1.45 system-ui,sans-serif;margin:2rem auto;max-width:75rem;padding:0 1rem;color:#1a1a1a;background:#fff}
table{border-collapse:collapse;margin:.5rem 0 1.5rem}th,td{border-bottom:1px solid #ccc;padding:.25rem .6rem;text-align:left;
vertical-align:top}th{font-weight:600}td.n{text-align:right;font-variant-numeric:tabular-nums}.bad{color:#b00020}
h2{margin-top:2rem;font-size:1.15rem}@media(prefers-color-scheme:dark){body{color:#e6e6e6;background:#161616}
th,td{border-color:#444}a{color:#8ab4f8}.bad{color:#ff8a80}}"""


def to_html(title: str, executions: Sequence[Execution]) -> str:
    """One page that needs no network: the combinations with links to their pages, and each claim over all of them."""
    keys = list(executions[0].parameters)

    def values(one: Execution) -> list[Entry]:
        return [Entry(value, "n") for value in one.values.values()]

    parts = [html_table([*keys, "claims", "pages"], [[*values(one), *_outcome_of(one)] for one in executions])]
    for paper, says, setting in dict.fromkeys((c.paper, c.says, c.setting) for _, c in _claims(executions)):
        mine = [(one, c) for one, c in _claims(executions) if (c.paper, c.says, c.setting) == (paper, says, setting)]
        parts.append(f"<h2>{html.escape(paper)}: {html.escape(says)}</h2><p>{html.escape(setting)}</p>")
        of_claim: list[Sequence[str | Entry]] = [
            [*values(one), c.measured, f"{SIGN[c.verdict]} {c.verdict}", c.note] for one, c in mine
        ]
        parts.append(html_table([*keys, "measured", "verdict", "note"], of_claim))
    return _page(f"{title}: {len(executions)} combinations", "".join(parts))


def _page(title: str, body: str) -> str:
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{_STYLE}</style></head><body>'
        f"<h1>{html.escape(title)}</h1>{body}</body></html>"
    )


def _claims(executions: Sequence[Execution]) -> Iterator[tuple[Execution, Claim]]:
    for one in executions:
        for claim in one.claims.rows if one.claims is not None else ():
            yield one, claim


def _outcome_of(one: Execution) -> tuple[Entry, Entry]:
    """What came out, and links to its pages."""
    links = [
        f'<a href="{html.escape(quote(path.name))}">{word}</a> '
        for path, word in ((one.target.with_suffix(".html"), "page"), (one.target, "notebook"))
        if path.exists() and (one.problem is None or word == "notebook")
    ]
    return Entry(one.result, "" if one.problem is None else "bad"), Entry("".join(links), is_html=True)
