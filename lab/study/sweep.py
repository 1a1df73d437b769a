"""One notebook over all combinations of parameters, each in a process of its own, and one page that compares them."""

from __future__ import annotations

import hashlib
import html
import itertools
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import click

from lab.engine.fleet import num_cores
from lab.errors import RecipeError
from lab.files import located, shown, write_atomically
from lab.runs import child
from lab.runs.progress import FILE
from lab.study.claims import SIGN, Claims, claims_in
from lab.study.notebooks import Notebook, literal
from lab.study.reproduce import digest, execute, find, is_done
from lab.study.tables import Entry, html_table


@dataclass
class Cell:
    """One combination of parameters. ``problem``: why it failed; ``claims``: what it found, once it is done."""

    parameters: dict[str, Any]
    target: Path
    problem: str | None = None
    claims: Claims | None = None
    source: Path | None = None  # where cells are of different notebooks
    seconds: float = 0.0

    @property
    def name(self) -> str:
        stem = [self.source.stem] if self.source is not None else []
        return " ".join([*stem, *(f"{k}={_short(v)}" for k, v in self.parameters.items())])

    @property
    def result(self) -> str:
        """In a few words: how many claims hold, or why it failed."""
        if self.problem is not None:
            return f"failed: {self.problem}"
        if self.claims is None:
            return "done"
        counts: dict[str, int] = {}
        for claim in self.claims.rows:
            counts[claim.verdict] = counts.get(claim.verdict, 0) + 1
        return ", ".join(f"{n} {verdict}" for verdict, n in counts.items())


def sweep(name: str, parameters: Sequence[str], out: Path, *, jobs: int | None = None, again: bool = False) -> int:
    """Execute a notebook with every combination of parameters; returns the exit code, 1 if one failed.

    What is done already (see `lab.study.reproduce`) is not executed again. One process for each, as many at a time as ``jobs``
    (default: the cores), one thread each; what fails is named and the rest goes on. The end is a table, and one page in
    ``out`` with every parameter and every claim.
    """
    source, out = located(find(name)), located(out)
    if not parameters:
        raise RecipeError("nothing to combine: give at least one parameter, for example -p seed=0,1,2")
    notebook = Notebook.read(source)
    grid = combinations(parameters, notebook.value)
    out.mkdir(parents=True, exist_ok=True)
    cells = [Cell(values, out / f"{source.stem}-{digest(source, values)}.ipynb") for values in grid]
    missing = [cell for cell in cells if again or not is_done(cell.target)]
    done = len(cells) - len(missing)
    many = "1 combination" if len(cells) == 1 else f"{len(cells)} combinations"
    click.echo(f"{source.stem}: {many}" + (f", {done} already done" if done else ""))
    execute_all(source, missing, jobs)
    for cell in cells:
        if cell.problem is None:
            cell.claims = claims_in(json.loads(cell.target.read_text(encoding="utf-8")))
    name_of_all = hashlib.sha256("".join(cell.target.name for cell in cells).encode()).hexdigest()[:8]
    page = out / f"sweep-{source.stem}-{name_of_all}.html"
    write_atomically(page, to_html(source.stem, cells).encode())
    click.echo(to_text(cells))
    click.echo(f"compared on one page: {shown(page)}")
    failed = [cell for cell in cells if cell.problem is not None]
    for cell in failed:
        click.echo(f"failed: {source.stem} with {cell.name}: {cell.problem}", err=True)
    return 1 if failed else 0


def combinations(
    parameters: Sequence[str], value: Callable[[str, str], Any] = lambda key, text: literal(text)
) -> list[dict[str, Any]]:
    """``["a=1,2", "b=x"]`` → every combination, the last parameter changing fastest.

    ``value(key, text)`` says what a text means. Commas between quotes or in brackets do not separate:
    ``seeds='"0,1"','"2"'`` are two values.

    Raises
    ------
    RecipeError
        for a text that is no ``key=value``, or a key that is there twice.
    """
    axes: dict[str, list[Any]] = {}
    for text in parameters:
        key, equals, values = text.partition("=")
        if not equals or not values:
            raise RecipeError(f"-p {text!r}: write key=value,value, for example -p seed=0,1,2")
        if key in axes:
            raise RecipeError(f"-p {key} is there twice: write all its values behind one, separated by commas")
        axes[key] = [value(key, part) for part in _parts(values)]
    return [dict(zip(axes, point, strict=True)) for point in itertools.product(*axes.values())]


def _parts(text: str) -> list[str]:
    """Cut at the commas that stand neither between quotes nor in brackets."""
    parts, depth, quote, begin = [], 0, "", 0
    for i, c in enumerate(text):
        if quote:
            quote = "" if c == quote and text[i - 1] != "\\" else quote
        elif c in "\"'":
            quote = c
        elif c in "([{":
            depth += 1
        elif c in ")]}":
            depth -= 1
        elif c == "," and depth <= 0:
            parts.append(text[begin:i])
            begin = i + 1
    return [*parts, text[begin:]] if not quote and depth == 0 else text.split(",")


def execute_all(source: Path, cells: list[Cell], jobs: int | None = None) -> None:
    """Each in a process, as many at a time as ``jobs`` (default: the cores); who is done makes room for the next."""
    jobs = max(1, min(jobs or num_cores(), len(cells)))
    waiting, going = list(cells), dict[int, tuple[Cell, subprocess.Popen[bytes]]]()  # by the core they run on
    began, said, live = time.monotonic(), time.monotonic(), sys.stderr.isatty()
    with tempfile.TemporaryDirectory() as notes:
        try:
            while waiting or going:
                for core in (c for c in range(jobs) if c not in going):
                    if waiting:
                        cell = waiting.pop(0)
                        cell.seconds = time.monotonic()
                        going[core] = cell, _begin(cell.source or source, cell, core, Path(notes))
                for core, (cell, process) in list(going.items()):
                    if process.poll() is None:
                        continue
                    del going[core]
                    cell.problem = _outcome(process, Path(notes), core)
                    cell.seconds = time.monotonic() - cell.seconds
                    how = f"done in {cell.seconds:.0f} s" if cell.problem is None else f"failed: {cell.problem}"
                    _say(f"{cell.name or source.stem}: {how}", live)
                if time.monotonic() - said > (0.5 if live else 30):
                    said = time.monotonic()
                    words = [
                        f"{cell.name} {_last_line(Path(notes) / f'{core}.note')}" for core, (cell, _) in going.items()
                    ]
                    line = f"{said - began:.0f} s, {len(waiting)} waiting; " + "; ".join(words)
                    sys.stderr.write(
                        f"\r\033[K{line[: shutil.get_terminal_size().columns - 1]}" if live else f"{line}\n"
                    )
                    sys.stderr.flush()
                time.sleep(0.05)
        finally:
            _end([process for _, process in going.values()])


def _begin(source: Path, cell: Cell, core: int, notes: Path) -> subprocess.Popen[bytes]:
    """The process of one cell. It leaves word in files: how far it is, what came out, what went wrong."""
    for file in notes.glob(f"{core}.*"):
        file.unlink()
    order = {"source": str(source), "target": str(cell.target), "parameters": cell.parameters, "core": core}
    one = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    with open(notes / f"{core}.errors", "wb") as errors:
        return subprocess.Popen(
            child.command("lab.study.sweep", json.dumps(order | {"outcome": str(notes / f"{core}.outcome")})),
            env=child.environment() | one | {FILE: str(notes / f"{core}.note")},
            stdout=subprocess.DEVNULL,
            stderr=errors,
        )


def _outcome(process: subprocess.Popen[bytes], notes: Path, core: int) -> str | None:
    """What went wrong, or None."""
    try:
        problem: str | None = json.loads((notes / f"{core}.outcome").read_text())
    except OSError:
        return f"its process ended with code {process.returncode}: {_last_line(notes / f'{core}.errors')}"
    return problem


def _end(processes: list[subprocess.Popen[bytes]]) -> None:
    """Interrupted: nobody goes on alone. (A kernel ends by itself when the process that started it is gone.)"""
    for process in processes:
        process.terminate()
    for process in processes:
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _say(line: str, live: bool) -> None:
    if live:
        sys.stderr.write("\r\033[K")
        sys.stderr.flush()
    click.echo(line)


def _last_line(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8", errors="replace").strip().rpartition("\n")[2]
    except OSError:
        return ""


def _short(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


# --- the comparison --------------------------------------------------------------------------------------------------


def to_text(cells: Sequence[Cell]) -> str:
    """A table for the terminal: parameters, and what came out."""
    keys = list(cells[0].parameters)
    rows = [[*(_short(cell.parameters[k]) for k in keys), cell.result] for cell in cells]
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


def to_html(title: str, cells: Sequence[Cell]) -> str:
    """One page that needs no network: the combinations with links to their pages, and each claim over all of them."""
    keys = list(cells[0].parameters)

    def values(cell: Cell) -> list[Entry]:
        return [Entry(_short(cell.parameters[k]), "n") for k in keys]

    parts = [html_table([*keys, "claims", "pages"], [[*values(cell), *_outcome_of(cell)] for cell in cells])]
    for paper, says, setting in dict.fromkeys((c.paper, c.says, c.setting) for _, c in _claims(cells)):
        mine = [(cell, c) for cell, c in _claims(cells) if (c.paper, c.says, c.setting) == (paper, says, setting)]
        parts.append(f"<h2>{html.escape(paper)}: {html.escape(says)}</h2><p>{html.escape(setting)}</p>")
        of_claim = [[*values(cell), c.measured, f"{SIGN[c.verdict]} {c.verdict}", c.note] for cell, c in mine]
        parts.append(html_table([*keys, "measured", "verdict", "note"], of_claim))
    return _page(f"{title}: {len(cells)} combinations", "".join(parts))


def claims_page(cells: Sequence[Cell]) -> str:
    """One page that needs no network: every claim of several notebooks, and how many there are of each verdict."""
    counts = dict.fromkeys(SIGN, 0)
    for _, claim in _claims(cells):
        counts[claim.verdict] += 1
    rows: list[Sequence[str | Entry]] = []
    for cell in cells:
        result, links = _outcome_of(cell)
        rows.append([cell.name, result, f"{cell.seconds:.0f} s" if cell.seconds else "done before", links])
    parts = [html_table(["notebook", "claims", "took", "pages"], rows)]
    for cell in cells:
        if cell.claims is not None:
            columns = ("paper", "claim", "setting there", "measured", "verdict", "note")
            of_notebook = [
                (c.paper, c.says, c.setting, c.measured, f"{SIGN[c.verdict]} {c.verdict}", c.note)
                for c in cell.claims.rows
            ]
            parts.append(f"<h2>{html.escape(cell.name)}</h2>" + html_table(columns, of_notebook))
    words = ", ".join(f"{n} {SIGN[verdict]} {verdict}" for verdict, n in counts.items())
    return _page("What holds of the papers' claims", f"<p>{words}</p>{''.join(parts)}")


def _page(title: str, body: str) -> str:
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{_STYLE}</style></head><body>'
        f"<h1>{html.escape(title)}</h1>{body}</body></html>"
    )


def _claims(cells: Sequence[Cell]) -> Iterator[tuple[Cell, Any]]:
    for cell in cells:
        for claim in cell.claims.rows if cell.claims is not None else ():
            yield cell, claim


def _outcome_of(cell: Cell) -> tuple[Entry, Entry]:
    """What came out, and links to its pages."""
    links = [
        f'<a href="{html.escape(quote(path.name))}">{word}</a> '
        for path, word in ((cell.target.with_suffix(".html"), "page"), (cell.target, "notebook"))
        if path.exists() and (cell.problem is None or word == "notebook")
    ]
    return Entry(cell.result, "" if cell.problem is None else "bad"), Entry("".join(links), is_html=True)


def _child(order: dict[str, Any]) -> None:
    """What each process does: one notebook, on one core."""
    try:
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cores[order["core"] % len(cores)]})
    except AttributeError:  # macOS, Windows
        pass
    problem = execute(Path(order["source"]), Path(order["target"]), order["parameters"])
    write_atomically(Path(order["outcome"]), json.dumps(problem).encode())


if __name__ == "__main__":
    _child(json.loads(sys.argv[1]))
