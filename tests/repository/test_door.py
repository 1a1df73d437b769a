"""What somebody meets who comes to the repository: the map, forms, workflow and website name what there is, and are in order."""

from __future__ import annotations

import importlib
import re
import sys
import tomllib
from typing import Any

import pytest
import yaml

from tests.support import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
ARCHITECTURE = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
WORKFLOW = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text(encoding="utf-8"))
TARGETS = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.M))


def folders(top: str) -> set[str]:
    """A folder and those beneath it that hold files, but for what is made by running; stored runs are one folder."""
    found = set()
    for file in (ROOT / top).rglob("*"):
        place = file.parent.relative_to(ROOT)
        made = {"__pycache__", ".ipynb_checkpoints"} & set(place.parts) or place.parts[:2] == ("notebooks", "runs")
        if file.is_file() and not made:
            kept = [place.parts.index(name) + 1 for name in ("stored", "firm") if name in place.parts]
            parts = place.parts[: min(kept, default=None)]
            found |= {"/".join(parts[:n]) for n in range(1, len(parts) + 1)}
    return found


def test_the_tree_names_what_is_there() -> None:
    """Every folder of the repository, each with its reason, and none that is gone."""
    (tree,) = re.findall(r"```text\n(lab/.*?)```", ARCHITECTURE, flags=re.S)
    named = dict(line.split(maxsplit=1) for line in tree.splitlines())
    tops = ("lab", "widgets", "notebooks", "tests", "bench", "docs", "tools", ".binder", ".ci", ".github")
    assert {name.rstrip("/") for name in named} == set().union(*map(folders, tops))


def test_the_tables_of_files_are_computed() -> None:
    sys.path.insert(0, str(ROOT))
    tree = importlib.import_module("tools.tree")
    assert tree.renewed(ARCHITECTURE) == ARCHITECTURE, "run: python -m tools.tree"


def test_the_picture_of_the_rings_is_what_the_linter_holds() -> None:
    """The same rooms, layer by layer from the top."""
    drawn = re.findall(
        r'class="name" x="\d+" y="(\d+)" text-anchor="middle">([^<]+)<', (ROOT / "docs/rings.svg").read_text()
    )
    layers: dict[str, list[str]] = {}
    for y, name in drawn:
        layers.setdefault(y, []).append(name)
    (rings,) = [c for c in PROJECT["tool"]["importlinter"]["contracts"] if c["type"] == "layers"]
    held = [layer.split(" | ") for layer in rings["layers"] if layer != "lab.__main__"]
    assert list(map(sorted, layers.values())) == list(map(sorted, held))
    rooms = {f"lab.{p.parent.name}" for p in (ROOT / "lab").glob("*/__init__.py")}
    ground = {f"lab.{p.stem}" for p in (ROOT / "lab").glob("*.py")} - {"lab.__init__"}
    assert {name for layer in rings["layers"] for name in layer.split(" | ")} == rooms | ground | {"widgets"}


def test_the_changelog_says_where_modules_are_now() -> None:
    """Each new path can be imported, and no module stands at an old one; the version is the package's."""
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    moved = re.findall(r"^\| `(lab[.\w]+)` \| `(lab[.\w]+)` \|$", text, flags=re.M)
    assert len(moved) > 50
    for before, now in moved:
        importlib.import_module(now)
        old = ROOT / before.replace(".", "/")
        assert not old.with_suffix(".py").exists(), before
        assert not (old / "__init__.py").exists(), before
    assert f"## [{PROJECT['project']['version']}]" in text


def test_the_citation_is_that_of_this_version() -> None:
    """All fields that the format requires (cff 1.2.0: message, title, authors), and those that could go stale."""
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert cited["cff-version"] == "1.2.0"
    assert cited["message"]
    assert cited["title"]
    assert cited["authors"] == PROJECT["project"]["authors"]
    assert (cited["version"], cited["license"]) == (PROJECT["project"]["version"], PROJECT["project"]["license"])


@pytest.mark.parametrize("form", ["bug", "method", "claim"])
def test_forms_are_in_order(form: str) -> None:
    """As GitHub wants them: named, described, each field with a kind, a label and an id of its own."""
    asked = yaml.safe_load((ROOT / f".github/ISSUE_TEMPLATE/{form}.yml").read_text(encoding="utf-8"))
    assert asked["name"]
    assert asked["description"]
    assert len({field["id"] for field in asked["body"]}) == len(asked["body"]) > 2
    for field in asked["body"]:
        assert field["type"] in {"input", "textarea", "dropdown", "checkboxes"}
        assert field["attributes"]["label"]
        assert field["type"] not in {"dropdown", "checkboxes"} or field["attributes"]["options"]


def steps(job: str) -> list[str]:
    return [step["run"] for step in WORKFLOW["jobs"][job]["steps"] if "run" in step]


def test_the_workflow_calls_what_there_is() -> None:
    """`.ci/run` on Linux; quick tests on three systems and every Python that pyproject.toml names."""
    assert "bash .ci/run" in steps("everything")
    called = [line for job in WORKFLOW["jobs"] for line in steps(job)] + (ROOT / ".ci/run").read_text().splitlines()
    made = [line.split()[1] for line in called if line.startswith("make ")]
    assert len(made) > 2
    assert set(made) <= TARGETS
    (selection,) = [line for line in steps("windows") if "pytest" in line]
    for word in selection.split():
        assert not word.startswith("tests/") or (ROOT / word).is_dir(), word
    classified = [c.rpartition(" ")[2] for c in PROJECT["project"]["classifiers"] if re.search(r":: 3\.\d+$", c)]
    pythons = [WORKFLOW["jobs"][job]["strategy"]["matrix"]["python"] for job in ("quick", "windows")]
    assert pythons == [classified, classified]
    assert {"ubuntu-latest", "macos-latest"} == set(WORKFLOW["jobs"]["quick"]["strategy"]["matrix"]["os"])
    assert WORKFLOW["jobs"]["windows"]["runs-on"] == "windows-latest"


def test_the_website_has_every_page() -> None:
    """mkdocs --strict, in `make site`, says whether links lead somewhere; here: nothing is left out of the menu."""

    def pages(part: Any) -> set[str]:
        if isinstance(part, str):
            return {part}
        return set().union(*map(pages, part.values() if isinstance(part, dict) else part))

    config = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    written = {p.relative_to(ROOT / "docs").as_posix() for p in (ROOT / "docs").rglob("*.md")}
    assert pages(config["nav"]) - written == {
        "index.md",
        "contributing.md",
        "changelog.md",
        "explorables.md",
    }
    assert written <= pages(config["nav"])


def test_the_contributing_page_calls_what_there_is() -> None:
    """Targets of make, files and folders."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    called = set(re.findall(r"(?<=`)make (\w+)|^make (\w+)|; make (\w+) builds", text, flags=re.M))
    assert {name for names in called for name in names if name} == {"quick", "lint", "test", "site"} <= TARGETS
    for file in re.findall(r"`((?:lab|docs|tests|widgets)/[\w/.]+)`", text):
        assert (ROOT / file).exists(), file
