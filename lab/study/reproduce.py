"""Execute notebooks one after another and collect what holds of the papers' claims."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lab.errors import RecipeError
from lab.files import located, shown, write_atomically
from lab.runs import child
from lab.runs.progress import FILE
from lab.study.claims import Claims, claims_in
from lab.study.notebooks import DONE, Notebook, copy_shipped, given, shipped, unchanged

if TYPE_CHECKING:
    from lab.study.sweep import Cell


def reproduce(
    names: list[str], parameters: list[str], out: Path, *, again: bool = False, jobs: int | None = None
) -> int:
    """Execute notebooks; returns the exit code, 1 if one failed.

    Each notebook leaves ``<name>-<hash>.ipynb`` and ``.html`` in ``out``; the hash is of its source, its parameters and the
    lab's own code, and what is there already is not executed again. Several are executed side by side, ``jobs`` at a time
    (default: the cores), a core for each; one alone has all cores. ``claims.html`` in ``out`` has every claim of them all.
    Claims that were not reproduced are no failure.
    """
    from lab.study.sweep import Cell, claims_page, execute_all

    texts = given(parameters)
    notebooks = [find(name) for name in names] if names else sorted(Path("notebooks").glob("[0-9]*.ipynb"))
    if not notebooks:
        raise RecipeError("there is no notebooks/ folder here: `lab notebooks` makes one, or name the notebooks")
    cells: list[Cell] = []
    out = located(out)
    for source in map(located, notebooks):
        notebook = Notebook.read(source)
        mine = {key: notebook.value(key, text) for key, text in texts.items()}
        cells.append(Cell(mine, out / f"{source.stem}-{digest(source, mine)}.ipynb", source=source))
    out.mkdir(parents=True, exist_ok=True)
    missing = [cell for cell in cells if again or not is_done(cell.target)]
    for cell in cells:
        word = "executing …" if cell in missing else f"already done, {shown(cell.target.with_suffix('.html'))}"
        click.echo(f"{cell.name}: {word}")
    if len(missing) == 1 or jobs == 1:
        for cell in missing:
            _alone(cell)
    elif missing:
        execute_all(missing[0].target, missing, jobs)
    for cell in cells:
        if cell.problem is None:
            cell.claims = claims_in(json.loads(cell.target.read_text(encoding="utf-8")))
    _report([cell.claims for cell in cells if cell.claims is not None])
    page = out / "claims.html"
    now = {cell.source.stem for cell in cells if cell.source is not None}
    before = [cell for cell in finished(out) if cell.source is not None and cell.source.stem not in now]
    for cell in before:
        cell.claims = claims_in(json.loads(cell.target.read_text(encoding="utf-8")))
    everything = sorted([*cells, *before], key=lambda cell: cell.name)
    write_atomically(page, claims_page(everything).encode())
    click.echo(f"every claim on one page: {shown(page)}")
    failed = [cell for cell in cells if cell.problem is not None]
    for cell in failed:
        click.echo(f"failed: {cell.name}: {cell.problem}", err=True)
    return 1 if failed else 0


def _alone(cell: Cell) -> None:
    """Execute one notebook in this process, with all cores and word of how far it is."""
    assert cell.source is not None
    began = time.perf_counter()
    with _progress(cell.source.stem):
        cell.problem = execute(cell.source, cell.target, cell.parameters)
    cell.seconds = time.perf_counter() - began
    how = (
        f"failed: {cell.problem}"
        if cell.problem
        else f"done in {cell.seconds:.0f} s, {shown(cell.target.with_suffix('.html'))}"
    )
    click.echo(f"{cell.name}: {how}", err=cell.problem is not None)


def execute(source: Path, target: Path, parameters: dict[str, Any]) -> str | None:
    """Run one notebook under papermill and make its page; what went wrong, or None."""
    notebook = Notebook.read(source)
    inputs = notebook.inputs(parameters)
    problem = notebook.execute(target, parameters)
    if problem is not None:
        return problem
    pages = Path(__file__).parents[2] / "widgets/pages.py"  # by its path: the package imports torch and pandas
    page = subprocess.run(
        [sys.executable, "-P", str(pages), str(target), str(target.with_suffix(".html"))],
        env=child.environment(),
        capture_output=True,
        text=True,
        encoding="utf-8",
        errors="replace",
    )
    if page.returncode:
        return f"no HTML page: {page.stderr.strip().splitlines()[-1]}"
    executed = json.loads(target.read_text(encoding="utf-8"))
    executed["metadata"][DONE] = {
        "done": True,
        "name": source.stem,
        "parameters": parameters,
        "folder": str(source.parent.resolve()),
        "inputs": inputs,
    }
    write_atomically(target, json.dumps(executed, indent=1).encode())
    return None


@contextmanager
def _progress(name: str) -> Iterator[None]:
    """While a notebook executes: its own word on how far it is, on one line of a terminal, or a line now and then."""
    live = sys.stderr.isatty()
    done = threading.Event()
    began = time.perf_counter()

    def watch() -> None:
        wait = 1.0 if live else 10.0
        while not done.wait(wait):
            try:
                word = Path(os.environ[FILE]).read_text(encoding="utf-8").strip()
            except OSError:
                word = ""
            line = f"{name}: {time.perf_counter() - began:.0f} s  {word}"
            sys.stderr.write(f"\r\033[K{line[: shutil.get_terminal_size().columns - 1]}" if live else f"{line}\n")
            sys.stderr.flush()
        if live:
            sys.stderr.write("\r\033[K")

    with tempfile.TemporaryDirectory() as folder:
        os.environ[FILE] = str(Path(folder) / "progress")
        thread = threading.Thread(target=watch, daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()
            del os.environ[FILE]


def is_done(target: Path) -> bool:
    """Whether it was executed to its end, and what it read is still what it was."""
    done = _done(target)
    return done is not None and unchanged(Path(done.get("folder", ".")), done.get("inputs", {}))


def _done(target: Path) -> dict[str, Any] | None:
    """What an executed notebook with a page says of itself; None if it did not come to its end."""
    try:
        done: dict[str, Any] = json.loads(target.read_text(encoding="utf-8"))["metadata"][DONE]
        return done if done["done"] and target.with_suffix(".html").exists() else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def finished(out: Path) -> Iterator[Cell]:
    """What was executed into a folder before: of each notebook the newest with its own parameters, or else the newest."""
    from lab.study.sweep import Cell

    newest: dict[str, Cell] = {}  # by notebook
    for target in sorted(out.glob("*.ipynb"), key=lambda file: file.stat().st_mtime):
        done = _done(target)
        if done is None:
            continue
        name = done.get("name") or target.stem.rpartition("-")[0]
        cell = Cell(done["parameters"], target, source=Path(f"{name}.ipynb"))
        if name not in newest or not cell.parameters or newest[name].parameters:
            newest[name] = cell
    return iter(newest.values())


def find(name: str) -> Path:
    """A notebook by its path or its name; one that comes with the lab is copied to ``notebooks/``, where there is none yet."""
    for path in (Path(name), Path("notebooks") / name, Path("notebooks") / f"{name}.ipynb"):
        if path.is_file():
            return path
    own = shipped()
    if not Path("notebooks").exists() and own is not None and (own / f"{name.removesuffix('.ipynb')}.ipynb").is_file():
        click.echo(f"{copy_shipped(Path('notebooks'))} notebooks that come with the lab copied to notebooks/")
        return find(name)
    there = ", ".join(p.stem for p in sorted((own or Path("notebooks")).glob("[0-9]*.ipynb"))) or "none here"
    raise RecipeError(f"no notebook {name!r}: there are {there}")


def digest(source: Path, parameters: dict[str, Any]) -> str:
    """Of everything that decides what comes out."""
    sha = hashlib.sha256(source.read_bytes())
    sha.update(json.dumps(parameters, sort_keys=True).encode())
    here = Path(__file__).parents[1]
    for package in (here, here.parent / "widgets"):
        for file in sorted(package.rglob("*.py")):
            sha.update(file.read_bytes())
    return sha.hexdigest()[:8]


def _report(tables: list[Claims]) -> None:
    for table in tables:
        click.echo(f"\nwhat holds of the claims: {table.notebook}\n{table.to_text()}")
    counts: dict[str, int] = {}
    for table in tables:
        for claim in table.rows:
            counts[claim.verdict] = counts.get(claim.verdict, 0) + 1
    if counts:
        click.echo("\nclaims: " + ", ".join(f"{n} {verdict}" for verdict, n in counts.items()))
