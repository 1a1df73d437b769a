"""Execute notebooks, each once, and collect what holds of the papers' claims."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import click

from lab.ground.errors import RecipeError
from lab.ground.files import located, shown, write_atomically
from lab.study.claims import Claims, tally
from lab.study.claims_page import claims_page
from lab.study.execution import Execution, Pages, execute_all, execute_alone, finished
from lab.study.notebooks import Notebook, find, given
from lab.study.profiles import Firm, firm_profiles
from lab.study.profiles import firm as firm_profile


def reproduce(
    names: Sequence[str],
    parameters: Sequence[str],
    out: Path,
    pages: Pages,
    *,
    again: bool = False,
    jobs: int | None = None,
    firm: bool = False,
    plan: bool = False,
) -> int:
    """Execute notebooks; returns the exit code, 1 if one failed.

    ``firm``: each with its firm profile (`lab.study.profiles`), what takes hours where its runs are not stored; default: all that have one.
    ``plan``: only say how long that takes.

    Each notebook leaves ``<name>-<hash>.ipynb`` and ``.html`` (which ``pages`` makes) in ``out``; the hash is of its source, its
    parameters, the lab's own code and that of the pages, and what is there already is not executed again. Several are executed
    side by side, ``jobs`` at a time (default: the cores), a core for each; one alone has all cores. ``claims.html`` in ``out``
    has every claim of them all. Pages that are a ``single_file`` are made again where a notebook was executed before. A claim that is contradicted, or that nothing decides, is no failure.
    """
    notebooks = _notebooks(names, firm)
    profiles = _profiles(notebooks, bool(parameters)) if firm else {}
    executions = _executions(notebooks, parameters, located(out), pages, profiles)
    if plan:
        return 0
    located(out).mkdir(parents=True, exist_ok=True)
    missing = [one for one in executions if again or not one.is_done]
    for one in executions:
        word = "executing …" if one in missing else f"already done, {shown(one.target.with_suffix('.html'))}"
        click.echo(f"{one.name}: {word}")
        if pages.single_file and one not in missing:
            one.problem = pages.make(one.target)  # what was executed before may have a page with something beside it
    if len(missing) == 1 or jobs == 1:
        for one in missing:
            execute_alone(one, pages)
    elif missing:
        execute_all(missing, pages, jobs)
    for one in executions:
        one.read_claims()
    _report([one.claims for one in executions if one.claims is not None])
    _write_claims(located(out) / "claims.html", executions)
    failed = [one for one in executions if one.problem is not None]
    for one in failed:
        click.echo(f"failed: {one.name}: {one.problem}", err=True)
    return 1 if failed else 0


def _notebooks(names: Sequence[str], firm: bool) -> list[Path]:
    if names:
        return [located(find(name)) for name in names]
    there = located(Path("notebooks"))
    notebooks = (
        [there / f"{name}.ipynb" for name in firm_profiles(there)] if firm else sorted(there.glob("[0-9]*.ipynb"))
    )
    if not notebooks and firm and there.exists():
        raise RecipeError(f"no notebook in {shown(there)} has a firm profile")
    if not notebooks:
        raise RecipeError("there is no notebooks/ folder here: `lab notebooks` makes one, or name the notebooks")
    return notebooks


def _profiles(notebooks: Sequence[Path], changed: bool) -> dict[Path, Firm]:
    """Of each notebook, said in a line; ``changed``: by parameters of one's own."""
    profiles = {notebook: firm_profile(notebook) for notebook in notebooks}
    for notebook, profile in profiles.items():
        there = Notebook.read(notebook).parameters
        for name in profile.values:
            if name not in there:
                raise RecipeError(
                    f"the firm profile of {notebook.stem} gives it {name!r}, and it has the parameters {', '.join(there)}"
                )
        yours = "; with parameters of your own, others may be needed" if changed else ""
        click.echo(f"{notebook.stem}, firm: {profile.words}{yours}")
    return profiles


def _executions(
    notebooks: Sequence[Path], parameters: Sequence[str], out: Path, pages: Pages, profiles: Mapping[Path, Firm]
) -> list[Execution]:
    """What is to be executed; nothing is yet."""
    texts = given(parameters)
    executions = []
    for source in notebooks:
        notebook = Notebook.read(source)
        values = {key: notebook.value(key, text) for key, text in texts.items()}
        if source in profiles:
            values = profiles[source].values | values
        executions.append(Execution.of(source, values, out, pages, source in profiles))
    return executions


def _write_claims(page: Path, executions: Sequence[Execution]) -> None:
    """Every claim of these, and of the others in the same folder, on one page."""
    now = {(one.source.stem, one.firm) for one in executions}
    before = [one for one in finished(page.parent) if (one.source.stem, one.firm) not in now]
    for one in before:
        one.read_claims()
    everything = sorted([*executions, *before], key=lambda one: one.name)
    write_atomically(page, claims_page(everything).encode())
    click.echo(f"every claim on one page: {shown(page)}")


def _report(tables: list[Claims]) -> None:
    for table in tables:
        click.echo(f"\nwhat holds of the claims: {table.notebook}\n{table.to_text()}")
    counts = tally(claim for table in tables for claim in table.rows)
    if counts:
        click.echo(f"\nclaims: {counts}")
