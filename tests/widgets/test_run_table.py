"""The table of runs: what it says is so, with and without a page; on the page it filters, sorts, and hands out code that runs."""

from __future__ import annotations

import json
import re
import shlex
import tomllib
from collections.abc import Iterator
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import nbformat
import pytest
from click.testing import CliRunner

from lab.cli import main
from lab.costs.network import NETWORKS, duration, human
from lab.ground.errors import RecipeError
from lab.runs.columns import Columns
from lab.runs.fork import fork
from lab.runs.trainer import train
from lab.study import board, installed
from tests.support import ROOT, axe
from tests.support.browser import headless, needs_chromium
from tests.support.recipes import SHORT, recipe
from widgets import RunTable


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three seeds of two batch sizes, one of them named, and a fork."""
    place = tmp_path_factory.mktemp("board") / "runs"
    for batch in (2, 4):
        for seed in range(3):
            made = recipe(SHORT, seed=seed, batch_size=batch, keep_every=2, checkpoint_every=2)
            train(made, place / made.id)
            (place / made.id / "name.txt").write_text("<first>") if (batch, seed) == (2, 0) else None
    other = fork("<first>", 2, ["method.inner.lr=0.01"], runs=place)
    train(other.recipe(), other.path)
    return place


def test_the_sentence_is_true_of_the_best_run(runs: Path) -> None:
    table = RunTable(runs)
    ended = {path.name: Columns.of(find.events()) for path, find in _folders(runs)}
    best = min(ended, key=lambda name: ended[name].eval_loss[-1])
    bill = ended[best].price(NETWORKS["100Mbit"])
    said = table.answer()
    assert said.startswith("7 runs, 3 settings. The lowest validation loss is ")
    assert f"{ended[best].eval_loss[-1]:.4f}, of " in said
    assert f"{human(ended[best].ledger.total_bytes())} and {duration(bill.total_seconds)}." in said
    assert RunTable(runs.parent / "none").answer() == "There are no runs yet."


def _folders(runs: Path) -> Iterator[tuple[Path, Any]]:
    from lab.runs.folder import stored

    yield from ((run.path, run) for run in stored(runs))


def test_the_page_needs_nothing_else_and_is_readable_without_script(runs: Path, tmp_path: Path) -> None:
    table = RunTable(runs)
    page = table.page()
    at_rest = page[: page.index("<script")]
    assert "&lt;first&gt;" in at_rest
    assert "<first>" not in page
    assert table.answer().split(", of")[0] in at_rest
    assert not re.findall(r'(?:src|href)="', page)
    data = json.loads(page.split('id="data">')[1].split("</script>")[0])
    assert len(data["runs"]) == 7
    done = CliRunner().invoke(main, ["board", "--runs", str(runs), "--html", str(tmp_path / "sub/b.html")])
    if done.exit_code == 0:  # where the entry point is installed
        assert done.output.splitlines() == [table.answer(), str(tmp_path / "sub/b.html")]


def test_a_notebook_shows_them_and_keeps_what_was_added(runs: Path, tmp_path: Path) -> None:
    file = tmp_path / "board.ipynb"
    RunTable(runs.parent / "none").write_notebook(file)
    notebook = nbformat.read(file, 4)
    nbformat.validate(notebook)
    assert "There are no runs yet." in notebook.cells[1].outputs[0].data["text/html"]
    notebook.cells.append(nbformat.v4.new_code_cell("mine = 1"))
    nbformat.write(notebook, file)
    RunTable(runs).write_notebook(file)
    notebook = nbformat.read(file, 4)
    assert "7 runs, 3 settings" in notebook.cells[1].outputs[0].data["text/html"]
    assert notebook.cells[2].source == "mine = 1"


def test_the_lab_finds_what_is_registered(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The lab draws nothing: it asks for what a package has registered, which is this class."""
    points = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]
    point = EntryPoint("isthmus", points[board.BOARDS]["isthmus"], board.BOARDS)
    assert point.load() is RunTable
    monkeypatch.setattr(installed, "entry_points", lambda group: [point] if group == board.BOARDS else [])
    assert isinstance(board.board(runs), RunTable)
    monkeypatch.setattr(installed, "entry_points", lambda group: [])
    with pytest.raises(RecipeError, match="nothing that is installed"):
        board.board(runs)


@pytest.fixture
def page(runs: Path, tmp_path: Path) -> Iterator[Any]:
    RunTable(runs).save(tmp_path / "b.html")
    with headless() as chromium:
        page, wrong = chromium.new_page(viewport={"width": 1200, "height": 900}), list[str]()
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.goto((tmp_path / "b.html").as_uri())
        page.wait_for_selector(".runs tbody tr")
        yield page
        assert wrong == []


@needs_chromium
@pytest.mark.processes
@pytest.mark.slow
def test_on_the_page(page: Any, runs: Path) -> None:
    def rows() -> list[str]:
        return list(page.eval_on_selector_all("tbody tr", "all => all.map(row => row.innerText)"))

    def says() -> str:
        return str(page.inner_text(".answer"))

    assert says() == RunTable(runs).answer()  # in JavaScript as in Python
    assert len(rows()) == 7
    assert page.locator(".pic path[fill-opacity]").count() == 2  # two settings have several seeds
    head = page.eval_on_selector_all("thead button", "all => all.map(button => button.dataset.sort)")
    assert head[8:] == ["batch_size", "method.inner.lr"]  # all that differs, but for the seed
    for words, num in (
        ("batch_size=4", 3),
        ("seed<1 lr=0.003", 2),
        ("seed!=0", 4),
        ("first", 1),
        ("lr>=0.01", 1),
        ("batch_size~2", 4),
        ("method=des_*", 7),
        ("method=diloco", 0),
    ):
        page.fill("[name=filter]", words)
        assert len(rows()) == num, words
        assert says().startswith(f"{num} of 7 runs" if num < 7 else "7 runs")
    page.fill("[name=filter]", "nothing=1")
    assert says() == "no run has a field called nothing."
    page.fill("[name=filter]", "")

    page.focus('[data-sort="loss"]')  # by keyboard
    page.keyboard.press("Enter")
    losses = [float(row.split("\t")[5]) for row in rows()]
    assert losses == sorted(losses)
    assert page.get_attribute('th:has([data-sort="loss"])', "aria-sort") == "ascending"
    page.keyboard.press("Enter")
    assert [float(row.split("\t")[5]) for row in rows()] == sorted(losses, reverse=True)

    before = page.inner_text("tbody tr:first-child td:nth-child(8)")
    page.fill("[name=mbit]", "0.001")
    assert page.inner_text("tbody tr:first-child td:nth-child(8)") != before
    page.select_option("[name=axis]", "seconds")
    assert "seconds on this link" in page.get_attribute(".pic svg", "aria-label")

    page.fill("[name=filter]", "first")
    page.check("tbody tr:first-child input")
    page.click("[data-do=fork]")
    page.select_option("[data-fork=step]", "2")
    page.fill("[data-fork=changes]", "method.inner.lr=0.02 steps=8")
    command = shlex.split(page.input_value('[data-code="0"]'))
    assert command[0] == "lab"
    done = CliRunner().invoke(main, [*command[1:], "--runs", str(runs)])
    assert done.exit_code == 0, done.output
    assert "method.inner.lr 0.003 → 0.02" in done.output
    assert page.inner_text("[data-do=fork]") == "Code to fork"
    assert page.get_attribute("[data-do=fork]", "aria-expanded") == "true"
    assert page.inner_text(".said") == "Below: code to fork first, for a terminal and for a notebook.".replace(
        "first", "<first>"
    )
    for what in ("replay", "export"):
        page.click(f"[data-do={what}]")
        assert page.input_value('[data-code="0"]').startswith(f"lab {what} ")
        compile(page.input_value('[data-code="1"]'), "code", "exec")
        assert page.get_attribute("[data-do=fork]", "aria-expanded") == "false"
    page.click("[data-copy='0']")
    page.wait_for_function(
        "() => /^Copied for the terminal: lab export |^This page may not copy/.test(document.querySelector('.said').textContent)"
    )
    assert page.get_attribute(".said", "role") == "status"
    assert axe.serious(page, ".runs") == []
    page.click("[data-do=export]")
    assert page.locator(".code").is_hidden()
    page.fill("[name=filter]", "")
    page.check("tbody tr:last-child input")
    page.click("[data-do=compare]")
    assert len(rows()) == 2
    assert page.locator(":is(input, select, button, textarea):visible").count() == page.evaluate(
        "[...document.querySelectorAll('input, select, button, textarea')].filter(e => e.offsetParent && (e.labels?.length || e.ariaLabel || e.innerText.trim())).length"
    )  # each has a name
