"""One notebook over all combinations of parameters, each in a process of its own, and one page that compares them."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click

from lab.ground.config import parse_value
from lab.ground.errors import RecipeError
from lab.ground.files import located, shown, write_atomically
from lab.study.comparison import to_html, to_text
from lab.study.execution import Execution, Pages, execute_all
from lab.study.notebooks import Notebook, find
from lab.study.slurm import Cluster, execute_as_jobs


def sweep(
    name: str,
    parameters: Sequence[str],
    out: Path,
    pages: Pages,
    *,
    jobs: int | None = None,
    again: bool = False,
    cluster: Cluster | None = None,
) -> int:
    """Execute a notebook with every combination of parameters; returns the exit code, 1 if one failed.

    What is done already (see `lab.study.reproduce`) is not executed again. One process for each, as many at a time as ``jobs``
    (default: the cores), one thread each; what fails is named and the rest goes on. The end is a table, and one page in
    ``out`` with every parameter and every claim. ``pages`` makes the page of each. With a ``cluster`` each is a job there, as many at a time as
    there is room for.
    """
    source, out = located(find(name)), located(out)
    if not parameters:
        raise RecipeError("nothing to combine: give at least one parameter, for example -p seed=0,1,2")
    grid = combinations(parameters, Notebook.read(source).value)
    out.mkdir(parents=True, exist_ok=True)
    executions = [Execution.of(source, values, out, pages) for values in grid]
    missing = [one for one in executions if again or not one.is_done]
    done = len(executions) - len(missing)
    many = "1 combination" if len(executions) == 1 else f"{len(executions)} combinations"
    click.echo(f"{source.stem}: {many}" + (f", {done} already done" if done else ""))
    if cluster is None:
        execute_all(missing, pages, jobs)
    else:
        execute_as_jobs(missing, pages, out, cluster)
    for one in executions:
        one.read_claims()
    name_of_all = hashlib.sha256("".join(one.target.name for one in executions).encode()).hexdigest()[:8]
    page = out / f"sweep-{source.stem}-{name_of_all}.html"
    write_atomically(page, to_html(source.stem, executions).encode())
    click.echo(to_text(executions))
    click.echo(f"compared on one page: {shown(page)}")
    failed = [one for one in executions if one.problem is not None]
    for one in failed:
        click.echo(f"failed: {source.stem} with {one.words}: {one.problem}", err=True)
    return 1 if failed else 0


def combinations(
    parameters: Sequence[str], value: Callable[[str, str], Any] = lambda key, text: parse_value(text, literals=True)
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
