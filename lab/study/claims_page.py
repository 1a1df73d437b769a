"""Every claim of several notebooks on one page: what was measured, each effect with its interval, what it rests on; with filters.

One file without network: the pictures are SVG in the page, the filters a few lines of script, and all of it can be read without script.
"""

from __future__ import annotations

import html
import math
import os
from collections.abc import Sequence
from urllib.parse import quote

from lab.costs.network import duration, human
from lab.study.claims import SIGN, Claim, tally
from lab.study.effects import Effect
from lab.study.evidence import parameters
from lab.study.execution import Execution
from lab.study.profiles import FOLDER
from lab.study.tables import Entry, html_table

WIDTH, HEIGHT, EDGE = 220, 20, 6  # of the picture of one effect, and what stays free at both sides, pixels


def claims_page(executions: Sequence[Execution]) -> str:
    """The page, with links to the executed notebooks beside it and to their sources."""
    rows = [(one, c) for one in executions for c in (one.claims.rows if one.claims is not None else ())]
    said = tally(c for _, c in rows) or "none"
    many = f"{len(rows)} claim{'s' * (len(rows) != 1)} in {len(executions)} notebook{'s' * (len(executions) != 1)}"
    looks = [f"{one.name}: {one.claims.looks}" for one in executions if one.claims is not None and one.claims.looks]
    body = (
        f"<h1>What holds of the papers' claims</h1><p class=sum>{many}: <b>{said}</b>.</p>{_legend()}{_filters(rows)}"
        f"<table id=claims><thead><tr><th>claim</th><th>verdict</th><th>measured</th><th>rests on</th></tr></thead><tbody>"
        f"{''.join(_row(one, c) for one, c in rows)}</tbody></table>"
        f"<h2>Notebooks</h2>{html_table(['notebook', 'claims', 'took', 'pages'], map(_notebook, executions))}"
        + (f"<h2>Many looks</h2><ul>{''.join(f'<li>{_text(x)}</li>' for x in looks)}</ul>" if looks else "")
    )
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>What holds of the papers\' claims</title>'
        f'<meta name="viewport" content="width=device-width"><style>{_STYLE}</style></head><body>{body}'
        f"<script>{_SCRIPT}</script></body></html>"
    )


_text = html.escape


def _row(one: Execution, c: Claim) -> str:
    keys = {"paper": c.paper, "notebook": one.name, "profile": one.profile, "verdict": c.verdict}
    keys["size"] = c.evidence.size or "–"
    data = "".join(f' data-{name}="{_text(value)}"' for name, value in keys.items())
    note = f"<div class=note>{_text(c.note)}</div>" if c.note else ""
    return (
        f"<tr{data}><td><div class=says><b>{_text(c.paper)}</b> {_text(c.says)}</div><div class=note>there: {_text(c.setting)}</div></td>"
        f"<td><span class='v {_kind(c.verdict)}'>{SIGN[c.verdict]} {c.verdict}</span></td>"
        f"<td>{_measured(c)}{note}</td><td>{_rests_on(one, c)}</td></tr>"
    )


def _kind(verdict: str) -> str:
    return verdict.replace(" ", "-")


def _measured(c: Claim) -> str:
    """What was measured in words, then each effect as a picture with its numbers."""
    effects = "; ".join(e.measured for e in c.effects)
    seen = c.measured.removesuffix(effects).removesuffix("; ") if c.effects else c.measured
    parts = [f"<div>{_text(seen)}</div>"] if seen else []
    for scale in dict.fromkeys((e.scale, e.unit) for e in c.effects):
        alike = [e for e in c.effects if (e.scale, e.unit) == scale]
        ends = _ends(alike)
        parts += [f"<div class=e>{_picture(e, ends)}<span>{_text(e.measured)}</span></div>" for e in alike]
    if c.effects:
        parts.append(f"<div class=counts>counts: {_text(c.what_counts)}</div>")
    return "".join(parts)


def _ends(effects: Sequence[Effect]) -> tuple[float, float]:
    """The line on which these effects are drawn: with all that is finite, with zero, and some room."""
    points = [0.0]
    for e in effects:
        points += [x for x in (e.middle, *(e.line_interval or ()), *e.claimed) if math.isfinite(x)]
    room = 0.06 * (max(points) - min(points)) or 1.0
    return min(points) - room, max(points) + room


def _picture(e: Effect, ends: tuple[float, float]) -> str:
    """One effect: the claimed side shaded, the margin dashed, no effect a thin line, interval and mean in the colour of the verdict."""
    first, last = ends

    def at(x: float) -> str:
        return f"{EDGE + (WIDTH - 2 * EDGE) * (min(max(x, first), last) - first) / (last - first):.1f}"

    left, right = (max(min(x, last), first) for x in e.claimed)
    middle, h = HEIGHT / 2, HEIGHT
    parts = [f'<rect class=side x="{at(left)}" y=0 width="{float(at(right)) - float(at(left)):.1f}" height={h} />']
    parts.append(f'<path class=zero d="M{at(0)} 0V{h}" />')
    parts += [f'<path class=margin d="M{at(x)} 0V{h}" />' for x in e.claimed if math.isfinite(x) and x]
    if e.line_interval is not None:
        low, high = e.line_interval
        parts.append(f'<path class=ci d="M{at(low)} {middle}H{at(high)}" />')
        parts += [f'<path class=ci d="M{at(x)} {middle - 4}v8" />' for x in (low, high) if math.isfinite(x)]
    if not math.isnan(e.middle):
        x = float(at(e.middle))
        shape = {
            "holds": f'<circle cx="{x}" cy="{middle}" r="4.5" />',
            "contradicted": f'<path d="M{x} {middle - 5.5}l5.5 5.5l-5.5 5.5l-5.5 -5.5z" />',
        }
        parts.append(shape.get(e.verdict, f'<circle class=open cx="{x}" cy="{middle}" r="4" />'))
    picture = "".join(parts)
    return (
        f'<svg class="{_kind(e.verdict)}" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" role="img" '
        f'aria-label="{_text(e.measured)}">{picture}</svg>'
    )


def _rests_on(one: Execution, c: Claim) -> str:
    e = c.evidence
    lines = [
        e.size,
        ", ".join(f"{n} {word}{'s' * (n != 1)}" for n, word in ((e.num_runs, "run"), (e.num_seeds, "seed")) if n),
        ", ".join(
            filter(
                None,
                [f"{e.steps:,} steps" if e.steps else "", f"{parameters(e.seen)} {e.counted} a run" if e.seen else ""],
            )
        ),
        ", ".join(
            filter(
                None,
                [f"{human(e.payload_bytes)} sent" if e.payload_bytes else "", duration(e.seconds) if e.seconds else ""],
            )
        ),
    ]
    words = "".join(f"<div>{_text(line)}</div>" for line in lines if line)
    return f"{words}<div class=links>{_text(one.source.stem)}, {one.profile}: {_links(one)}</div>"


def _links(one: Execution) -> str:
    """To the page and the executed notebook beside this page, and to the notebook that was executed."""
    places = {
        "page": one.target.with_suffix(".html") if one.problem is None else None,
        "executed": one.target,
        "source": one.source if one.source.is_absolute() else None,
        "stored runs": one.source.parent / FOLDER / one.source.stem if one.firm else None,
    }
    links = []
    for word, path in places.items():
        if path is not None and path.exists():
            link = path.name if path.parent == one.target.parent else os.path.relpath(path, one.target.parent)
            links.append(f'<a href="{_text(quote(link.replace(os.sep, "/")))}">{word}</a>')
    return " ".join(links)


def _notebook(one: Execution) -> list[str | Entry]:
    took = f"{one.seconds:.0f} s" if one.seconds else "done before"
    return [one.name, Entry(one.result, "" if one.problem is None else "bad"), took, Entry(_links(one), is_html=True)]


def _filters(rows: Sequence[tuple[Execution, Claim]]) -> str:
    """One choice for each key, and words to look for; without script nothing is shown of it."""
    values = {
        "paper": sorted({c.paper for _, c in rows}),
        "notebook": sorted({one.name for one, _ in rows}),
        "profile": sorted({one.profile for one, _ in rows}),
        "verdict": [v for v in SIGN if any(c.verdict == v for _, c in rows)],
        "size": sorted({c.evidence.size or "–" for _, c in rows}),
    }
    choices = "".join(
        f"<label>{key} <select name={key}><option value=''>all</option>"
        + "".join(f"<option>{_text(value)}</option>" for value in found)
        + "</select></label>"
        for key, found in values.items()
    )
    return (
        f"<form id=filters hidden>{choices}<label>words <input name=words type=search></label><output></output></form>"
    )


def _legend() -> str:
    """What the pictures mean, by three effects that are none of the page's."""
    samples = {
        "the interval lies on the claimed side of the margin (shaded): holds": (-2.0, -1.7, -1.4),
        "it lies on the other side: contradicted": (0.6, 1.2, 1.8),
        "it has the margin inside: inconclusive": (-1.6, -0.9, 0.4),
    }
    effects = {words: Effect(x, (0.0, 0.0, 0.0), 0.6) for words, x in samples.items()}
    items = "".join(f"<li>{_picture(e, (-3.4, 3.4))}<span>{_text(words)}</span></li>" for words, e in effects.items())
    return (
        f"<details class=legend open><summary>How to read the pictures</summary><ul>{items}</ul><p>Each line is one effect over paired seeds: its mean and its "
        "95 % interval (its median and the interval of that where a run gave no number), on the line of differences (of logarithms, for ratios). The thin line is no effect at all, the dashed one the margin: the "
        "difference that counts, said before the runs. Without an interval there was one pair, no spread, or a run without a number among few.</p></details>"
    )


_STYLE = """:root{--ink:#1a1a1a;--soft:#595959;--line:#d4d4d4;--paper:#fff;--side:#e8f0f6;--holds:#0072b2;--contradicted:#b84a00;
--inconclusive:#666;--exact:#00735a;--not-tested:#636363;--link:#0b57d0}
@media(prefers-color-scheme:dark){:root{--ink:#e6e6e6;--soft:#a8a8a8;--line:#3c3c3c;--paper:#161616;--side:#22303a;--holds:#6cbcf0;
--contradicted:#f0954a;--inconclusive:#b0b0b0;--exact:#4fc9a4;--not-tested:#999;--link:#8ab4f8}}
*{box-sizing:border-box}body{font:15px/1.45 system-ui,sans-serif;margin:0 auto;max-width:92rem;padding:1.25rem;color:var(--ink);
background:var(--paper)}h1{font-size:1.5rem;margin:0 0 .4rem}h2{font-size:1.15rem;margin:2rem 0 .5rem}a{color:var(--link)}
.sum{font-size:1.05rem;margin:.2rem 0 1rem}table{border-collapse:collapse;width:100%}th,td{border-bottom:1px solid var(--line);
padding:.55rem .7rem .55rem 0;text-align:left;vertical-align:top}#claims td,td:first-child{overflow-wrap:anywhere}th{font-weight:600}
#claims th{position:sticky;top:0;background:var(--paper);z-index:1}#claims td:nth-child(1){width:29%}#claims td:nth-child(2){width:9.5rem}
#claims td:nth-child(4){width:15rem;color:var(--soft);font-size:.88rem}.note,.counts{color:var(--soft);font-size:.88rem;margin-top:.2rem}
.v{white-space:nowrap;font-weight:600}.holds{--c:var(--holds)}.contradicted{--c:var(--contradicted)}.inconclusive{--c:var(--inconclusive)}
.exact{--c:var(--exact)}.not-tested{--c:var(--not-tested)}.v{color:var(--c)}.e{display:flex;gap:.7rem;align-items:center;margin:.2rem 0;
font-size:.92rem;font-variant-numeric:tabular-nums}.e svg,.legend svg{flex:none}.e span{min-width:0}svg .side{fill:var(--side)}
svg .zero{stroke:var(--soft);stroke-width:1}svg .margin{stroke:var(--ink);stroke-width:1.2;stroke-dasharray:3 2}
svg .ci{stroke:var(--c);stroke-width:2;fill:none}svg circle,svg path:not([class]){fill:var(--c)}svg .open{fill:var(--paper);stroke:var(--c);
stroke-width:2}.legend{border:1px solid var(--line);border-radius:6px;padding:.5rem .8rem;margin:0 0 1rem;font-size:.92rem}
.legend summary{cursor:pointer;font-weight:600}.legend ul{display:flex;flex-wrap:wrap;gap:.5rem 1.6rem;list-style:none;margin:.6rem 0;
padding:0}.legend li{display:flex;gap:.6rem;align-items:center}.legend p{margin:.3rem 0;color:var(--soft);max-width:62rem}
#filters{display:flex;flex-wrap:wrap;gap:.5rem 1rem;align-items:end;margin:0 0 1rem}#filters[hidden]{display:none}
#filters label{display:flex;flex-direction:column;font-size:.82rem;color:var(--soft)}select,input{font:inherit;font-size:.95rem;
color:var(--ink);background:var(--paper);border:1px solid var(--line);border-radius:4px;padding:.25rem .4rem;max-width:15rem}
.bad{color:var(--contradicted)}tr[hidden]{display:none}
@media(max-width:860px){body{padding:.8rem}#claims thead{display:none}#claims,#claims tbody{display:block}#claims tr:not([hidden])
{display:block;border-bottom:2px solid var(--line);padding:.5rem 0}#claims td{display:block;width:auto!important;border:0;padding:.2rem 0}
.e{flex-wrap:wrap;gap:.1rem .7rem}select,input{max-width:11rem}}
@media print{#filters{display:none}}"""

_SCRIPT = """const form = document.getElementById("filters"), rows = [...document.querySelectorAll("#claims tbody tr")];
form.hidden = false;
function show() {
  const asked = Object.fromEntries(new FormData(form)), words = asked.words.toLowerCase().split(/\\s+/);
  let shown = 0;
  for (const row of rows) {
    const text = row.textContent.toLowerCase();
    row.hidden = ["paper", "notebook", "profile", "verdict", "size"].some(key => asked[key] && row.dataset[key] !== asked[key])
      || !words.every(word => text.includes(word));
    shown += !row.hidden;
  }
  form.querySelector("output").textContent = `${shown} of ${rows.length} shown`;
}
form.addEventListener("input", show);
form.addEventListener("submit", event => event.preventDefault());
show();"""
