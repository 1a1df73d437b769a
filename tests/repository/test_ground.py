"""What holds of the repository itself: what the README and the page on usage print runs, versions agree, the core stays small and clean."""

from __future__ import annotations

import ast
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

import lab
from lab.cli import main
from lab.methods import METHODS
from lab.recipes.presets import PRESETS
from tests.support import ROOT
from tests.support.repository import lines_of_code

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
README = (ROOT / "README.md").read_text(encoding="utf-8")
USAGE = (ROOT / "docs/usage.md").read_text(encoding="utf-8")


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page, flags=re.S)


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """An empty working folder."""
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("page", [README, USAGE], ids=["README", "usage"])
def test_printed_python_runs(page, elsewhere):
    """All of a page, one piece after the other."""
    code = "\n".join(blocks(page, "python"))
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert out.returncode == 0, out.stderr
    assert "('params',)" in out.stdout


@pytest.mark.slow
def test_printed_commands_run(elsewhere):
    """Every ``lab …`` line of the page on usage works as printed, in order; runs with fewer steps and less in each."""
    commands = [line for block in blocks(USAGE, "sh") for line in block.splitlines() if line.startswith("lab ")]
    assert len(commands) >= 8
    small = ["-o", "batch_size=1", "-o", "eval_windows=4"]
    for command in commands:
        more = ["-o", "steps=48", "-o", "context=16"] if "steps=96" in command else ["-o", "context=64"]
        out = CliRunner().invoke(main, shlex.split(command)[1:] + (small + more) * command.startswith("lab run"))
        assert out.exit_code == 0, f"{command}: {out.output}"


def test_the_readme_is_short_and_promises_what_there_is():
    """At most 800 words; its commands are known to the shell and to make, its notebooks exist, and so many are the methods."""
    assert len(README.split()) <= 800
    assert f"{len(METHODS)} methods" in README
    commands = [shlex.split(line) for line in re.findall(r"`(?:\.venv/bin/)?lab ([^`]+)`", README)]
    assert len(commands) >= 5
    for command, *arguments in commands:
        assert command in main.commands, command
        known = {"run": PRESETS, "plan": PRESETS, "reproduce": {f.stem for f in (ROOT / "notebooks").glob("*.ipynb")}}
        assert not arguments or arguments[0].startswith("-") or arguments[0] in known[command], arguments
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"\bmake (\w+)", README + USAGE):
        assert re.search(rf"^{target}:", makefile, flags=re.M), target


def test_printed_plan_is_what_the_command_prints():
    shown = next(b for b in blocks(USAGE, "text") if "per worker" in b)
    printed = CliRunner().invoke(main, ["plan", "des_loc_13B"]).output
    assert shown.strip() in printed


def test_readme_loop_is_the_code():
    """The loop in the README, without its comments, stands in the method."""
    shown = next(b for b in blocks(README, "text") if "loss_W" in b)
    code = re.sub(r"\s+", " ", (ROOT / "lab/methods/des_loc.py").read_text())
    for line in ("loss_W = grad(s)", "self.inner.step_(s, t)", "comm.mean_(s.local[name], name)"):
        assert line in shown
        assert line in code


def test_environment_yml_gives_the_same():
    """conda users get the package with its test extra under the same constraints, on a Python that is supported."""
    parts = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    pip = next(p["pip"] for p in parts if isinstance(p, dict))
    assert "-c constraints.txt" in pip
    assert "-e .[test]" in pip
    assert "python=3.11" in parts
    assert PROJECT["project"]["requires-python"] == ">=3.11"


def test_every_dependency_is_constrained_and_allowed():
    """Each direct dependency has a tested version, and that version is within the range that pyproject.toml asks for."""
    from packaging.requirements import Requirement

    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = dict(line.split("==") for line in lines if line and not line.startswith("#"))
    extras = PROJECT["project"]["optional-dependencies"]
    for text in PROJECT["project"]["dependencies"] + extras["test"]:
        requirement = Requirement(text)
        assert pinned[requirement.name] in requirement.specifier, text
    assert pinned["torch"] == "2.13.0"


def imported(file: Path) -> set[str]:
    """Packages that a file imports, anywhere in it."""
    nodes = list(ast.walk(ast.parse(file.read_text(encoding="utf-8"))))
    names = {a.name for node in nodes if isinstance(node, ast.Import) for a in node.names}
    names |= {node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)}
    return {name.split(".")[0] for name in names}


def test_the_core_imports_nothing_of_jupyter():
    """`lab` never imports widgets, Jupyter or plotly; papermill only inside the function that runs notebooks."""
    for file in (ROOT / "lab").rglob("*.py"):
        assert not imported(file) & {"widgets", "IPython", "ipywidgets", "jupyterlab", "plotly"}, file


def test_pages_are_made_without_the_lab():
    """`widgets/pages.py` is run by its path; what it does not import, a notebook's page does not wait for."""
    assert not imported(ROOT / "widgets/pages.py") & {"lab", "widgets", "torch", "pandas"}


def test_the_engine_stays_small():
    """The table and what moves in it, which a reader can take in on an evening."""
    assert sum(map(lines_of_code, (ROOT / "lab/engine").rglob("*.py"))) <= 1500


def test_a_dry_run_is_no_branch_in_a_method():
    """What moves numbers is `lab.engine.state.numeric`; nothing in a method asks whether there are any."""
    for file in (ROOT / "lab/methods").glob("*.py"):
        assert not re.search(r"is_meta|[\"']meta|\.dry\b", file.read_text(encoding="utf-8")), file


def test_no_function_is_longer_than_a_screen() -> None:
    """50 lines at most, from `def` to the end."""
    for file in (ROOT / "lab").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                assert (node.end_lineno or 0) - node.lineno + 1 <= 50, (file, node.name)


def test_every_bench_still_finds_what_it_measures():
    names = [f"bench.{f.stem}" for f in (ROOT / "bench").glob("[a-z]*.py")]
    done = subprocess.run(
        [sys.executable, "-c", f"import {', '.join(names)}"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_no_pickle_is_ever_loaded():
    for file in [*(ROOT / "lab").rglob("*.py"), *(ROOT / "widgets").rglob("*.py")]:
        text = file.read_text()
        assert not re.search(r"\bpickle\b|torch\.load\(|torch\.save\(", text), file


def test_no_byte_count_is_written_down_outside_the_communicator():
    """Methods, optimizers and codecs never mention bytes in code: `nbytes` stands in the communicator alone."""
    for file in [
        *(ROOT / "lab/methods").glob("*.py"),
        ROOT / "lab/engine/optim.py",
        ROOT / "lab/engine/outer.py",
        ROOT / "lab/engine/codecs.py",
    ]:
        code = ast.unparse(ast.parse(file.read_text()))
        names = {n.attr for n in ast.walk(ast.parse(code)) if isinstance(n, ast.Attribute)}
        assert not names & {"nbytes", "element_size", "payload_bytes"}, file


def named_in(code: str) -> set[str]:
    """Modules that a file imports, and those that the programs in its strings import."""
    nodes = list(ast.walk(ast.parse(code)))
    names = {a.name for node in nodes if isinstance(node, ast.Import) for a in node.names}
    for node in nodes:
        if isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}.{a.name}" for a in node.names}
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            names |= set(re.findall(r"^\s*(?:from|import) ([\w.]+)", node.value, flags=re.M))
    return names


def is_a_test(module: str) -> bool:
    return bool(re.search(r"(^|\.)test_|^tests\.(?!support\b)", module))


def test_no_test_imports_a_test():
    """What several need is in `tests/support`, and every test module lies in a room."""
    for file in (ROOT / "tests").rglob("*.py"):
        assert not [name for name in named_in(file.read_text(encoding="utf-8")) if is_a_test(name)], file
        assert file.parent != ROOT / "tests" or not file.name.startswith("test_"), file


def test_imports_of_tests_are_seen():
    """The check above is not blind."""
    code = "from {0}s.laws.{0}_laws import other\nfrom {0}s import laws\ncode = 'x = 1\\nimport {0}_laws'".format(
        "test"
    )
    assert sorted(filter(is_a_test, named_in(code))) == ["test_laws", "tests.laws", "tests.laws.test_laws.other"]
    assert not any(map(is_a_test, named_in("from tests.support.bench import Bench\nimport tests.support")))


def test_the_public_names_are_there() -> None:
    """All that the first page of the documentation needs, out of the lab alone, and imported only when it is used."""
    assert set(lab.__all__) == set(lab._WHERE)
    for name in ("Recipe", "train", "start", "replay", "plan", "network", "dry_run", "find_run", "load_corpus"):
        assert callable(getattr(lab, name))
    for name in ("Columns", "Claim", "Claims", "Effect", "method"):
        assert getattr(lab, name).__module__.split(".")[0] == "lab"
    assert all(hasattr(lab, name) and name in dir(lab) for name in lab.__all__)
    with pytest.raises(AttributeError, match="no attribute 'recipe_of_everything'"):
        _ = lab.recipe_of_everything
    code = "import sys, lab; assert not [m for m in sys.modules if m.startswith(('lab.', 'widgets', 'torch'))]"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
