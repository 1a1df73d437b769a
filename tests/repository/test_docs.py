"""What holds of the pages in docs/: computed numbers are what a dry run says now, printed code runs, names and links exist."""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner

from lab.cli import main
from lab.methods import METHODS, name_of
from lab.recipes.recipe import Recipe
from lab.runs.trainer import dry_run
from tests.support import ROOT, pages
from tests.support.repository import lines_of_code

CARDS = ROOT / "docs/methods"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
every_card = pytest.mark.parametrize("name", METHODS)


def load_cards() -> Any:
    spec = importlib.util.spec_from_file_location("cards", ROOT / "tools/cards.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


cards = load_cards()


def rows(text: str, title: str) -> list[list[str]]:
    """The body of the table under a heading, cell by cell."""
    section = re.search(rf"^## {title}\n(.*?)(?=^## |\Z)", text, flags=re.S | re.M)[1]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


# --- method cards ----------------------------------------------------------------------------------------------------


def test_every_method_has_a_card() -> None:
    """And a preset of its own name, which the card is computed from; no card is left over."""
    assert {p.stem for p in CARDS.glob("*.md")} == {*METHODS, "README"}
    for name in METHODS:
        assert name_of_preset(name) == name


def name_of_preset(name: str) -> str:
    return Recipe.of(name).to_dict()["method"]["name"]


@pytest.mark.parametrize("page", [*METHODS, "README"])
def test_numbers_of_cards_are_those_of_the_dry_run(page: str) -> None:
    """Tables and defaults stand in the pages as `tools/cards.py` writes them."""
    file = CARDS / f"{page}.md"
    assert file.read_text() == cards.renewed(file), "run: python -m tools.cards"


@every_card
def test_every_option_is_explained(name: str) -> None:
    """Each field of the dataclass has a row with its default, where that comes from, and what it does; nothing else has."""
    table = rows((CARDS / f"{name}.md").read_text(), "Options")
    assert [row[0] for row in table] == [f"`{f.name}`" for f in dataclasses.fields(METHODS[name])]
    for option, default, source, what in table:
        assert default, option
        assert source, option
        assert what, option


@every_card
def test_commands_of_cards_work(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The shell accepts every printed command, and each recipe that would be trained runs dry to its end."""
    monkeypatch.chdir(tmp_path)
    asked: list[Recipe] = []
    monkeypatch.setattr("lab.cli._train", lambda recipe, folder, *_: asked.append(recipe))
    monkeypatch.setattr("lab.runs.plan.plan", lambda recipe, *_, **__: SimpleNamespace(to_text=lambda: recipe.id))
    text = (CARDS / f"{name}.md").read_text()
    commands = [line for block in re.findall(r"```sh\n(.*?)```", text, flags=re.S) for line in block.splitlines()]
    commands += re.findall(r"`(lab (?:run|plan) [^`]*)`", text)
    assert len(commands) >= 3
    for command in commands:
        out = CliRunner().invoke(main, shlex.split(command)[1:])
        assert out.exit_code == 0, f"{command}: {out.output}"
    assert asked
    for recipe in asked:
        assert name_of(recipe.method) == name
        assert dry_run(recipe), recipe.id


# --- names and links -------------------------------------------------------------------------------------------------


def exists(name: str) -> bool:
    """Whether a dotted name is a module, something in one, or an attribute or a field of a class."""
    at: Any = importlib.import_module("lab")
    path = "lab"
    for step in name.split(".")[1:]:
        path += f".{step}"
        if not hasattr(at, step):
            if step in getattr(at, "__dataclass_fields__", {}):
                return path == name
            try:
                importlib.import_module(path)
            except ModuleNotFoundError:
                return False
        at = getattr(at, step)
    return True


CHANGES = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
MOVED = dict(re.findall(r"^\| `(lab[.\w]+)` \| `(lab[.\w]+)` \|$", CHANGES, flags=re.M))


def today(name: str) -> str:
    """Where a name of the log is now: its entries keep the names of their day, and CHANGELOG.md says what became of them."""
    old = max((old for old in MOVED if f"{name}.".startswith(f"{old}.")), key=len, default=None)
    return name if old is None else MOVED[old] + name.removeprefix(old)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_names_and_links_lead_somewhere(page: Path) -> None:
    """Names of our code in backticks, files in backticks, and relative links."""
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.S)
    log = page.name == "log.md"
    for name in re.findall(r"`(lab(?:\.\w+)+)`", text):
        assert exists(today(name) if log else name), name
    for file in re.findall(r"`((?:lab|tests|docs|widgets|bench)/[\w/]+\.\w+)`", text):
        now = today(file.removesuffix(".py").replace("/", ".")).replace(".", "/") + ".py" if log else file
        written = re.search("waiting", file)  # by the page itself
        assert written or (ROOT / file).exists() or (ROOT / now).exists(), file
    for link in re.findall(r"\]\((?!https?:)([^)#]+)", text):
        assert (page.parent / link).exists(), link


def test_exists_is_not_blind() -> None:
    """The check above tells names from slips."""
    assert exists("lab.recipes.recipe.Recipe.num_workers")
    assert exists("lab.engine.state.State.local")
    assert not exists("lab.recipes.recipe.Recipe.num_people")
    assert not exists("lab.shop.Item")


def test_glossary_says_each_word_once() -> None:
    """Every row has a meaning and a place; `–` only where there is no code for the word."""
    text = (ROOT / "docs/glossary.md").read_text()
    table = [row for title in re.findall(r"^## (.*)", text, flags=re.M) for row in rows(text, title)]
    words = [row[0] for row in table]
    assert len(words) == len(set(words)) > 40
    for word, meaning, _, place in table:
        assert meaning, word
        assert place == "–" or re.search(r"`lab\.", place), word


# --- write your own method, model, data ------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.processes
@pytest.mark.parametrize(("page", "num_blocks"), [("method", 19), ("model", 9), ("data", 11)])
def test_pages_do_what_they_print(page: str, num_blocks: int, tmp_path: Path) -> None:
    """Cell by cell in one notebook, command by command in its folder; what a page shows of their output is what they print."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "IPYTHONDIR": str(tmp_path / ".ipython")}
    command = [sys.executable, "-m", "tests.support.pages", str(ROOT / f"docs/write_your_own_{page}.md"), str(tmp_path)]
    out = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert out.returncode == 0, out.stdout + out.stderr
    assert out.stdout.endswith(f"{num_blocks} blocks\n")
    if page == "method":
        assert lines_of_code(tmp_path / "my_fedprox.py") < 45


def test_what_a_page_shows_is_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The test above is not blind: to other lines, to errors, to commands that fail, to blocks that nobody does."""
    assert pages.contains("a  b\n\nc d e\nf", "a b\nc d…")
    assert not pages.contains("a b\nc d", "a b\nd")
    assert not pages.contains("a b", "a")
    monkeypatch.chdir(tmp_path)
    wrong = {
        "```python\n2\n```\n\n```text\n3\n```\n": "shown:",
        "```python\n1 / 0\n```\n": "division by zero",
        "```sh\nlab plan deslok\n```\n": "unknown preset",
        "```sh\nrm -r everything\n```\n": "rm -r everything",
        "```yaml\na: 1\n```\n": "a block of yaml",
    }
    for text, says in wrong.items():
        (tmp_path / "page.md").write_text(text)
        with pytest.raises((AssertionError, ZeroDivisionError), match=says):
            pages.do(tmp_path / "page.md", lambda code: str(eval(code)))


def printed_files(text: str) -> dict[str, str]:
    """The files of a page: a name in bold on a line of its own, then the code."""
    return dict(re.findall(r"^\*\*`([^`]+)`\*\*\n\n```python\n(.*?)```", text, flags=re.S | re.M))


# --- write your own view ---------------------------------------------------------------------------------------------


def test_the_view_of_the_page_is_a_view(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """File and test as printed, in fewer than 40 lines; the run that the page shows says what the page shows."""
    import widgets

    text = (ROOT / "docs/write_your_own_view.md").read_text()
    files = printed_files(text)
    assert sorted(files) == ["tests/widgets/test_waiting.py", "widgets/waiting.py"]
    (tmp_path / "waiting.py").write_text(files["widgets/waiting.py"])
    assert lines_of_code(tmp_path / "waiting.py") < 40
    monkeypatch.setattr(widgets, "__path__", [*widgets.__path__, str(tmp_path)])
    monkeypatch.chdir(tmp_path)
    tests: dict[str, Any] = {}
    exec(files["tests/widgets/test_waiting.py"], tests)
    for name in [name for name in tests if name.startswith("test_")]:
        tests[name]()
    for block in re.findall(r"```python\n(.*?)```", text, flags=re.S):
        if block not in files.values():
            exec(block, tests)
    (shown,) = re.findall(r"```text\n(.*?)```", text, flags=re.S)
    assert shown.strip() in capsys.readouterr().out
    assert "<svg" in (tmp_path / "waiting.svg").read_text()
    assert '"share"' in (tmp_path / "waiting.html").read_text()
    sys.modules.pop("widgets.waiting")


def test_the_explorable_of_the_page_is_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """File, test and cell as printed, in fewer than 70 lines."""
    text = (ROOT / "docs/write_your_own_explorable.md").read_text()
    files = printed_files(text)
    assert sorted(files) == ["test_waiting_for_links.py", "waiting_for_links.py"]
    (tmp_path / "waiting_for_links.py").write_text(files["waiting_for_links.py"])
    assert lines_of_code(tmp_path / "waiting_for_links.py") < 70
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    tests: dict[str, Any] = {}
    exec(files["test_waiting_for_links.py"], tests)
    for name in [name for name in tests if name.startswith("test_")]:
        tests[name]()
    (cell,) = (block for block in re.findall(r"```python\n(.*?)```", text, flags=re.S) if block not in files.values())
    exec(cell, tests)
    (shown,) = re.findall(r"```text\n(.*?)```", text, flags=re.S)
    assert shown == capsys.readouterr().out
    assert "How long does a worker wait" in (tmp_path / "waiting_for_links.html").read_text()
    sys.modules.pop("waiting_for_links")
