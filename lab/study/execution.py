"""Notebooks executed: one in this process, or several side by side, each in a process of its own on a core of its own."""

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
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click

from lab.ground.files import shown, write_atomically
from lab.runs import child
from lab.runs.progress import FILE
from lab.study.claims import Claims, claims_in, tally
from lab.study.installed import absent
from lab.study.notebooks import DONE, Notebook, unchanged
from lab.study.profiles import FIRM, QUICK


@dataclass(frozen=True)
class Pages:
    """What makes a page of an executed notebook: a program, called as ``program notebook.ipynb page.html``.

    ``single_file``: called with ``--single-file`` as well. ``sources``: files that decide, beside the notebook and the lab, what comes out. Where one has changed since, a notebook is
    executed again.
    """

    program: Path
    sources: tuple[Path, ...] = ()
    single_file: bool = False  # with nothing beside the page, to be sent

    @classmethod
    def installed(cls, single_file: bool = False) -> Pages:
        """The module that an installed package has registered for it (entry point ``isthmus.pages``), with all of that package.

        Raises RecipeError where there is none.
        """
        for point in entry_points(group="isthmus.pages"):
            package, *path = point.module.split(".")
            found = find_spec(package)  # does not import it, which would take seconds
            for folder in map(Path, (found and found.submodule_search_locations) or ()):
                return cls(folder.joinpath(*path).with_suffix(".py"), tuple(sorted(folder.rglob("*.py"))), single_file)
        raise absent("makes pages of notebooks")

    def make(self, notebook: Path) -> str | None:
        """The page beside an executed notebook; what went wrong, or None."""
        command = [sys.executable, "-P", str(self.program), str(notebook), str(notebook.with_suffix(".html"))]
        command += ["--single-file"] if self.single_file else []
        done = subprocess.run(
            command, env=child.environment(), capture_output=True, text=True, encoding="utf-8", errors="replace"
        )
        return f"no HTML page: {done.stderr.strip().splitlines()[-1]}" if done.returncode else None


@dataclass
class Execution:
    """One notebook with some parameters. ``problem``: why it failed; ``claims``: what it found, once it is done.

    ``firm``: with those of its firm profile (`lab.study.profiles`), and perhaps some more.
    """

    source: Path
    parameters: Mapping[str, Any]
    target: Path
    firm: bool = False
    problem: str | None = None
    claims: Claims | None = None
    seconds: float = 0.0

    @property
    def values(self) -> dict[str, str]:
        """The parameters as they are shown."""
        return {key: value if isinstance(value, str) else json.dumps(value) for key, value in self.parameters.items()}

    @property
    def words(self) -> str:
        return " ".join(f"{key}={value}" for key, value in self.values.items())

    @property
    def profile(self) -> str:
        return FIRM if self.firm else QUICK

    @property
    def name(self) -> str:
        return f"{self.source.stem} {FIRM if self.firm else self.words}".strip()

    @property
    def result(self) -> str:
        """In a few words: how many claims hold, or why it failed."""
        if self.problem is not None:
            return f"failed: {self.problem}"
        if self.claims is None:
            return "done"
        return tally(self.claims.rows)

    @classmethod
    def of(cls, source: Path, parameters: Mapping[str, Any], out: Path, pages: Pages, firm: bool = False) -> Execution:
        """Into ``out``, under a name with a hash of all that decides what comes out."""
        name = f"{source.stem}-{FIRM}" if firm else source.stem
        return cls(source, parameters, out / f"{name}-{digest(source, parameters, pages)}.ipynb", firm)

    @property
    def is_done(self) -> bool:
        """Whether it was executed to its end, and what it read is still what it was."""
        done = _done(self.target)
        return done is not None and unchanged(Path(done.get("folder", ".")), done.get("inputs", {}))

    def read_claims(self) -> None:
        if self.problem is None:
            self.claims = claims_in(json.loads(self.target.read_text(encoding="utf-8")))


def digest(source: Path, parameters: Mapping[str, Any], pages: Pages) -> str:
    """Of the notebook, its parameters, the lab's own code, and the code that draws: eight digits."""
    sha = hashlib.sha256(source.read_bytes())
    sha.update(json.dumps(parameters, sort_keys=True).encode())
    for file in (*sorted(Path(__file__).parents[1].rglob("*.py")), *pages.sources):
        sha.update(file.read_bytes())
    return sha.hexdigest()[:8]


def execute(source: Path, target: Path, parameters: Mapping[str, Any], pages: Pages, firm: bool = False) -> str | None:
    """Run one notebook under papermill and make its page; what went wrong, or None."""
    notebook = Notebook.read(source)
    inputs = notebook.inputs(parameters)
    note = f"**{FIRM.capitalize()} profile:** {_listed(parameters)}. Minutes above, and defaults below, are those of the quick one."
    problem = notebook.execute(target, parameters, note if firm else "") or pages.make(target)
    if problem is not None:
        return problem
    executed = json.loads(target.read_text(encoding="utf-8"))
    executed["metadata"][DONE] = {
        "done": True,
        "name": source.stem,
        "parameters": parameters,
        "firm": firm,
        "folder": str(source.parent.resolve()),
        "inputs": inputs,
    }
    write_atomically(target, json.dumps(executed, indent=1).encode())
    return None


def _listed(parameters: Mapping[str, Any]) -> str:
    return ", ".join(f"`{key} = {json.dumps(value, ensure_ascii=False)}`" for key, value in parameters.items())


def _done(target: Path) -> dict[str, Any] | None:
    """What an executed notebook with a page says of itself; None if it did not come to its end."""
    try:
        done: dict[str, Any] = json.loads(target.read_text(encoding="utf-8"))["metadata"][DONE]
        return done if done["done"] and target.with_suffix(".html").exists() else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def finished(out: Path) -> Iterator[Execution]:
    """What was executed into a folder before: of each notebook and profile the newest with its own parameters, or else the newest."""
    newest: dict[tuple[str, bool], Execution] = {}  # by notebook and profile
    for target in sorted(out.glob("*.ipynb"), key=lambda file: file.stat().st_mtime):
        done = _done(target)
        if done is None:
            continue
        key = name, firm = done.get("name") or target.stem.rpartition("-")[0], bool(done.get("firm"))
        if key not in newest or not done["parameters"] or newest[key].parameters:
            newest[key] = Execution(Path(done.get("folder", "."), f"{name}.ipynb"), done["parameters"], target, firm)
    return iter(newest.values())


# --- one at a time, or side by side ----------------------------------------------------------------------------------


class _StatusLine:
    """How far it is: one line of a terminal that is written over, or elsewhere a line now and then."""

    def __init__(self, often: float, seldom: float):
        self.live = sys.stderr.isatty()
        self.seconds = often if self.live else seldom  # between two lines

    def show(self, line: str) -> None:
        cut = line[: shutil.get_terminal_size().columns - 1]
        sys.stderr.write(f"\r\033[K{cut}" if self.live else f"{line}\n")
        sys.stderr.flush()

    def clear(self) -> None:
        if self.live:
            sys.stderr.write("\r\033[K")
            sys.stderr.flush()


def execute_alone(execution: Execution, pages: Pages) -> None:
    """In this process, with all cores and word of how far it is."""
    began = time.perf_counter()
    with _progress(execution.source.stem):
        execution.problem = execute(execution.source, execution.target, execution.parameters, pages, execution.firm)
    execution.seconds = time.perf_counter() - began
    if execution.problem:
        how = f"failed: {execution.problem}"
    else:
        how = f"done in {execution.seconds:.0f} s, {shown(execution.target.with_suffix('.html'))}"
    click.echo(f"{execution.name}: {how}", err=execution.problem is not None)


@contextmanager
def _progress(name: str) -> Iterator[None]:
    """While a notebook executes: its own word on how far it is."""
    line, done, began = _StatusLine(1.0, 10.0), threading.Event(), time.perf_counter()

    def watch() -> None:
        while not done.wait(line.seconds):
            line.show(f"{name}: {time.perf_counter() - began:.0f} s  {last_line(Path(os.environ[FILE]))}")
        line.clear()

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


def execute_all(executions: list[Execution], pages: Pages, jobs: int | None = None) -> None:
    """Each in a process, as many at a time as ``jobs`` (default: the cores); who is done makes room for the next."""
    from lab.engine.fleet import num_cores  # with torch, which the processes that execute one notebook need not import

    jobs = max(1, min(jobs or num_cores(), len(executions)))
    waiting, going = list(executions), dict[int, tuple[Execution, subprocess.Popen[bytes]]]()  # by the core they run on
    began = said = time.monotonic()
    line = _StatusLine(0.5, 30)
    with tempfile.TemporaryDirectory() as folder:
        notes = Path(folder)
        try:
            while waiting or going:
                for core in (c for c in range(jobs) if c not in going):
                    if waiting:
                        execution = waiting.pop(0)
                        execution.seconds = time.monotonic()
                        going[core] = execution, _begin(execution, core, notes, pages)
                for core, (execution, process) in list(going.items()):
                    if process.poll() is None:
                        continue
                    del going[core]
                    execution.problem = _outcome(process, notes, core)
                    execution.seconds = time.monotonic() - execution.seconds
                    how = f"failed: {execution.problem}" if execution.problem else f"done in {execution.seconds:.0f} s"
                    line.clear()
                    click.echo(f"{execution.name}: {how}")
                if time.monotonic() - said > line.seconds:
                    said = time.monotonic()
                    words = [f"{one.name} {last_line(notes / f'{core}.note')}" for core, (one, _) in going.items()]
                    line.show(f"{said - began:.0f} s, {len(waiting)} waiting; " + "; ".join(words))
                time.sleep(0.05)
        finally:
            ended([process for _, process in going.values()])


ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")


def order(execution: Execution, pages: Pages, outcome: Path, core: int | None = None) -> dict[str, Any]:
    """What ``python -m lab.study.execution`` is to do, as plain JSON values; it writes what went wrong, or null, into ``outcome``.

    ``core``: the only one that it may use.
    """
    return {
        "source": str(execution.source),
        "target": str(execution.target),
        "parameters": execution.parameters,
        "firm": execution.firm,
        "program": str(pages.program),
        "single_file": pages.single_file,
        "core": core,
        "outcome": str(outcome),
    }


def _begin(execution: Execution, core: int, notes: Path, pages: Pages) -> subprocess.Popen[bytes]:
    """The process of one execution. It leaves word in files: how far it is, what came out, what went wrong."""
    for file in notes.glob(f"{core}.*"):
        file.unlink()
    with open(notes / f"{core}.errors", "wb") as errors:
        return subprocess.Popen(
            child.command("lab.study.execution", json.dumps(order(execution, pages, notes / f"{core}.outcome", core))),
            env=child.environment() | ONE_THREAD | {FILE: str(notes / f"{core}.note")},
            stdout=subprocess.DEVNULL,
            stderr=errors,
        )


def _outcome(process: subprocess.Popen[bytes], notes: Path, core: int) -> str | None:
    """What went wrong, or None."""
    try:
        problem: str | None = json.loads((notes / f"{core}.outcome").read_text())
    except OSError:
        return f"its process ended with code {process.returncode}: {last_line(notes / f'{core}.errors')}"
    return problem


def ended(processes: list[subprocess.Popen[bytes]]) -> None:
    """Interrupted: nobody goes on alone. (A kernel ends by itself when the process that started it is gone.)"""
    for process in processes:
        process.terminate()
    for process in processes:
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def last_line(file: Path) -> str:
    """Of a file that may not be there."""
    try:
        return file.read_text(encoding="utf-8", errors="replace").strip().rpartition("\n")[2]
    except OSError:
        return ""


def _child(given: dict[str, Any]) -> None:
    """What each process does: one notebook, on one core."""
    if given["core"] is not None:
        with suppress(AttributeError):  # macOS, Windows
            cores = sorted(os.sched_getaffinity(0))
            os.sched_setaffinity(0, {cores[given["core"] % len(cores)]})
    problem = execute(
        Path(given["source"]),
        Path(given["target"]),
        given["parameters"],
        Pages(Path(given["program"]), (), given["single_file"]),
        given["firm"],
    )
    write_atomically(Path(given["outcome"]), json.dumps(problem).encode())


if __name__ == "__main__":
    _child(json.loads(sys.argv[1]))
