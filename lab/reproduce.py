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

from lab import child
from lab.claims import Claims, claims_in
from lab.errors import RecipeError
from lab.places import located, shown
from lab.store import write_atomically

if TYPE_CHECKING:
    from lab.sweep import Cell

DONE = "isthmus"  # key in an executed notebook's metadata, written last
NOTE = "ISTHMUS_PROGRESS_FILE"  # environment variable: where a notebook that trains leaves word how far it is


def reproduce(
    names: list[str], parameters: list[str], out: Path, *, again: bool = False, jobs: int | None = None
) -> int:
    """Execute notebooks; returns the exit code, 1 if one failed.

    Each notebook leaves ``<name>-<hash>.ipynb`` and ``.html`` in ``out``; the hash is of its source, its parameters and the
    lab's own code, and what is there already is not executed again. Several are executed side by side, ``jobs`` at a time
    (default: the cores), a core for each; one alone has all cores. ``claims.html`` in ``out`` has every claim of them all.
    Claims that were not reproduced are no failure.
    """
    from lab.sweep import Cell, claims_page, execute_all

    values = dict(_parameter(p) for p in parameters)
    notebooks = [find(name) for name in names] if names else sorted(Path("notebooks").glob("[0-9]*.ipynb"))
    if not notebooks:
        raise RecipeError("there is no notebooks/ folder here: run this in the project's folder, or name the notebooks")
    cells: list[Cell] = []
    out = located(out)
    for source in map(located, notebooks):
        notebook = json.loads(source.read_text())
        check_parameters(source, notebook, values)
        mine = {k: v for k, v in values.items() if k in _declared(notebook)}
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
            cell.claims = claims_in(json.loads(cell.target.read_text()))
    _report([cell.claims for cell in cells if cell.claims is not None])
    page = out / "claims.html"
    write_atomically(page, claims_page(cells).encode())
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
    import papermill
    from papermill.exceptions import PapermillExecutionError

    os.environ.setdefault("PYDEVD_DISABLE_FILE_VALIDATION", "1")
    try:
        with child.directory_last() as first_line:
            papermill.execute_notebook(
                str(source),
                str(target),
                parameters,
                progress_bar=False,
                cwd=str(source.parent),  # as in JupyterLab
                kernel_name="python3",
                extra_arguments=["--log-level=CRITICAL", f"--IPKernelApp.exec_lines={first_line}"],
            )
    except PapermillExecutionError as error:
        return f"cell {error.exec_count} raised {error.ename}: {error.evalue} (see {shown(target)})"
    pages = Path(__file__).parent.parent / "widgets/pages.py"  # by its path: the package imports torch and pandas
    page = subprocess.run(
        [sys.executable, "-P", str(pages), str(target), str(target.with_suffix(".html"))],
        env=child.environment(),
        capture_output=True,
        text=True,
    )
    if page.returncode:
        return f"no HTML page: {page.stderr.strip().splitlines()[-1]}"
    notebook = json.loads(target.read_text())
    notebook["metadata"][DONE] = {"done": True, "parameters": parameters}
    write_atomically(target, json.dumps(notebook, indent=1).encode())
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
                word = Path(os.environ[NOTE]).read_text().strip()
            except OSError:
                word = ""
            line = f"{name}: {time.perf_counter() - began:.0f} s  {word}"
            sys.stderr.write(f"\r\033[K{line[: shutil.get_terminal_size().columns - 1]}" if live else f"{line}\n")
            sys.stderr.flush()
        if live:
            sys.stderr.write("\r\033[K")

    with tempfile.TemporaryDirectory() as folder:
        os.environ[NOTE] = str(Path(folder) / "progress")
        thread = threading.Thread(target=watch, daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()
            del os.environ[NOTE]


def is_done(target: Path) -> bool:
    try:
        return bool(json.loads(target.read_text())["metadata"][DONE]["done"]) and target.with_suffix(".html").exists()
    except (OSError, ValueError, KeyError):
        return False


def find(name: str) -> Path:
    for path in (Path(name), Path("notebooks") / name, Path("notebooks") / f"{name}.ipynb"):
        if path.is_file():
            return path
    there = ", ".join(p.stem for p in sorted(Path("notebooks").glob("[0-9]*.ipynb"))) or "none here"
    raise RecipeError(f"no notebook {name!r}: there are {there}")


def _parameter(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not equals:
        raise RecipeError(f"-p {text!r}: write key=value, for example -p steps=100")
    try:
        return key, json.loads(value)
    except ValueError:
        return key, value


def _declared(notebook: dict[str, Any]) -> dict[str, str]:
    """Names that the cell tagged ``parameters`` assigns, with their types as they are written there."""
    for cell in notebook["cells"]:
        if "parameters" in cell.get("metadata", {}).get("tags", []):
            lines = "".join(cell["source"]).splitlines()
            sides = [line.split("=")[0] for line in lines if "=" in line and line[0].isalpha()]
            return {name.strip(): kind.strip() for name, _, kind in (side.partition(":") for side in sides)}
    return {}


def check_parameters(source: Path, notebook: dict[str, Any], values: dict[str, Any]) -> None:
    declared = _declared(notebook)
    for key, value in values.items():
        if key not in declared:
            there = ", ".join(sorted(declared)) or "none"
            raise RecipeError(f"{source.stem} has no parameter {key!r}: there are {there}")
        fits = {"int": (int,), "float": (int, float), "str": (str,)}.get(declared[key], (object,))
        if not isinstance(value, fits):
            raise RecipeError(
                f"{source.stem}: {key} = {value!r} is not allowed: it takes a value of type {declared[key]}"
            )


def digest(source: Path, parameters: dict[str, Any]) -> str:
    """Of everything that decides what comes out."""
    sha = hashlib.sha256(source.read_bytes())
    sha.update(json.dumps(parameters, sort_keys=True).encode())
    here = Path(__file__).parent
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
