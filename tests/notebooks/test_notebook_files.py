"""Notebooks of other people: their parameters and values, odd files, kernels that die, what they read, where they lie."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from lab.cli import main
from lab.ground.config import parse_value
from lab.ground.errors import RecipeError
from lab.study.notebooks import Notebook, given

PYTHON = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}


def write(path: Path, *cells: str, metadata: Any = PYTHON, minor: int = 5) -> Path:
    """A notebook whose first cell has the parameters."""
    made = [{"cell_type": "code", "source": x, "metadata": {}, "outputs": [], "execution_count": None} for x in cells]
    made[0]["metadata"] = {"tags": ["parameters"]}
    if minor >= 5:
        made = [cell | {"id": f"c{i}"} for i, cell in enumerate(made)]
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {"cells": made, "metadata": metadata, "nbformat": 4, "nbformat_minor": minor}
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def printed(path: Path) -> str:
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return "".join("".join(o.get("text", "")) for c in cells for o in c.get("outputs", []))


DECLARED = '''from typing import Literal
title = "a=b"
kind: Literal["x", "y"] = "x"
a = 1; b = 2
first, second = 1, 2
longer = (
    1 +
    2
)
größe = 4
use_skip = True
on: bool = False
rate: float = 0.5
n: int = 3
some: "int" = 3
maybe: int | None = None
ranks: tuple[int, ...] = (1, 2)
own: Unknown = 5
if a == 1:
    c = 5
doc = """
not = real
"""
print(n == 3)
'''


def test_the_parameters_are_what_the_cell_assigns_at_its_top_level(tmp_path: Path) -> None:
    """Two on a line, several lines, pairs; neither words of a text, nor what stands in a branch."""
    found = Notebook.read(write(tmp_path / "x.ipynb", DECLARED)).parameters
    assert set(found) == {
        *("title", "kind", "a", "b", "first", "second", "longer", "größe", "use_skip", "on", "rate", "n", "some"),
        *("maybe", "ranks", "own", "doc"),
    }
    magic = Notebook.read(write(tmp_path / "y.ipynb", "%matplotlib inline\nn: int = 2\nk = 3"))
    assert magic.parameters == {"n": int, "k": Any}


VALUES: list[tuple[str, str, Any]] = [
    *(("use_skip", text, False) for text in ("False", "false", "no", "off", "0")),
    *(("on", text, True) for text in ("True", "true", "yes", "ON", "1")),
    ("rate", ".5", 0.5), ("rate", "1e-3", 1e-3), ("rate", "2", 2.0), ("n", "1_000", 1000), ("n", "-3", -3),
    ("maybe", "None", None), ("maybe", "null", None), ("maybe", "7", 7),
    ("title", "0", "0"), ("title", '"0"', "0"), ("title", "0,1", "0,1"), ("title", "x=y", "x=y"), ("title", "None", "None"),
    ("kind", "y", "y"), ("kind", '"y"', "y"), ("ranks", "(3, 4)", (3, 4)), ("ranks", "[3, 4]", (3, 4)),
    ("a", "None", None), ("a", ".5", 0.5), ("a", "1_000", 1000), ("a", "true", True), ("a", "True", True), ("a", "fast", "fast"),
    ("a", "{'k': 1}", {"k": 1}), ("own", "x", "x"), ("some", "4", 4),
]  # fmt: skip


@pytest.mark.parametrize(("key", "text", "value"), VALUES)
def test_values_follow_the_annotation_then_python_then_json(key: str, text: str, value: Any, tmp_path: Path) -> None:
    got = Notebook.read(write(tmp_path / "x.ipynb", DECLARED)).value(key, text)
    assert got == value
    assert type(got) is type(value)


@pytest.mark.parametrize(
    ("key", "text", "says"),
    [
        ("on", "2", "takes a value of type bool"), ("use_skip", "maybe", "takes a value of type bool"),
        ("n", "0.5", "takes a value of type int"), ("n", "True", "takes a value of type int"), ("n", "two", "type int"),
        ("kind", "z", "takes a value of type Literal"), ("rate", "fast", "takes a value of type float"),
        ("not", "7", "has no parameter 'not'"), ("c", "7", "has no parameter 'c': there are a, b, doc"),
    ],
)  # fmt: skip
def test_values_that_do_not_fit_are_one_line(key: str, text: str, says: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=says):
        Notebook.read(write(tmp_path / "x.ipynb", DECLARED)).value(key, text)


def test_what_is_given() -> None:
    assert given(["a=1", "b=x=y", "c="]) == {"a": "1", "b": "x=y", "c": ""}
    for wrong in (["a"], ["=1"], ["not=7"], ["a b=1"], ["a=1", "a=2"]):
        with pytest.raises(RecipeError, match="-p"):
            given(wrong)
    assert parse_value("[" * 5000, literals=True) == "[" * 5000


V3 = {
    "metadata": {"name": ""}, "nbformat": 3, "nbformat_minor": 0,
    "worksheets": [
        {"cells": [{"cell_type": "code", "collapsed": False, "input": ["print(1)"], "language": "python",
                    "metadata": {}, "outputs": []}], "metadata": {}}
    ],
}  # fmt: skip


def test_old_notebooks_are_read(tmp_path: Path) -> None:
    (tmp_path / "v3.ipynb").write_text(json.dumps(V3))
    assert Notebook.read(tmp_path / "v3.ipynb").content.cells[0].source == "print(1)"
    for name, metadata in (("none", {}), ("no_language", {"kernelspec": {"name": "x", "display_name": "X"}})):
        notebook = Notebook.read(write(tmp_path / f"{name}.ipynb", "n = 1", metadata=metadata, minor=4))
        assert notebook.content.metadata.kernelspec.language == "python"


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "is empty"), (b" \n", "is empty"), (b'{"cells": [', "no notebook that can be read"), (b"[1]", "has no nbformat"),
        (b'{"a": 1}', "has no nbformat"), (b'{"nbformat": 4, "cells": [{}]}', "no notebook"), (b"\xff\xfe", "not UTF-8"),
        (b'{"nbformat": 99, "nbformat_minor": 0, "cells": []}', "no notebook"),
        (json.dumps({"cells": [], "metadata": {"kernelspec": {"name": "ir", "display_name": "R", "language": "R"}},
                     "nbformat": 4, "nbformat_minor": 5}).encode(), "a notebook in R"),
    ],
)  # fmt: skip
def test_what_is_no_notebook_is_one_line(content: bytes, says: str, tmp_path: Path) -> None:
    path = tmp_path / "x.ipynb"
    path.write_bytes(content)
    for command in ("reproduce", "sweep"):
        out = CliRunner().invoke(main, [command, str(path), "-p", "n=1", "--out", str(tmp_path / "out")])
        assert out.exit_code == 2, out.output
        assert says in out.stderr
        assert len(out.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_what_a_notebook_names_is_part_of_what_it_is(tmp_path: Path) -> None:
    """Files in its code and its parameters, as corpora and models too, and modules beside it; not what it makes itself."""
    for name in ("data.csv", "a.txt", "b.txt", "start.safetensors", "helper.py", "m/config.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    code = 'import helper\nopen("data.csv")\ncorpus = "text:a.txt,*.txt"\nmodel = "hf:./m"\nopen("made.txt", "w")'
    notebook = Notebook.read(write(tmp_path / "x.ipynb", 'start = ""', code))
    found = notebook.inputs({"start": "./start.safetensors"})
    assert set(found) == {"data.csv", "a.txt", "b.txt", "start.safetensors", "helper.py", "m/config.json"}
    (tmp_path / "data.csv").write_text("other")
    changed = notebook.inputs({"start": "./start.safetensors"})
    assert {k for k in found if found[k] != changed[k]} == {"data.csv"}


@pytest.mark.slow
def test_executed_again_when_an_input_was_rewritten_and_only_then(tmp_path: Path) -> None:
    """Odd names as well: braces, signs that links need to escape, other letters; a kernel called python3 stands in the way."""
    wrong = tmp_path / "jupyter/kernels/python3/kernel.json"
    wrong.parent.mkdir(parents=True)
    wrong.write_text(json.dumps({"argv": ["false"], "display_name": "wrong", "language": "python"}))
    (tmp_path / "in.txt").write_text("one")
    code = 'import sys\nprint(open("in.txt").read(), n, on, sys.executable)\nopen("made.txt", "w").write("x")'
    source = write(tmp_path / "{draft} 50% #1 größe.ipynb", "n: int = 1\non: bool = True", code, metadata={})
    arguments = ["reproduce", str(source), "-p", "n=1_000", "-p", "on=no", "--out", str(tmp_path / "{out} #2")]
    env = {"JUPYTER_DATA_DIR": str(tmp_path / "jupyter")}
    first = CliRunner().invoke(main, arguments, env=env)
    assert first.exit_code == 0, first.output
    (target,) = (tmp_path / "{out} #2").glob("*.ipynb")
    assert printed(target).split("\n")[0] == f"one 1000 False {sys.executable}"
    claims = (target.parent / "claims.html").read_text(encoding="utf-8")
    assert "%7Bdraft%7D%2050%25%20%231%20gr%C3%B6%C3%9Fe" in claims
    assert "already done" in CliRunner().invoke(main, arguments).output
    (tmp_path / "in.txt").write_text("two")
    assert "executing" in CliRunner().invoke(main, arguments).output
    assert printed(target).startswith("two 1000 False")


@pytest.mark.slow
def test_a_kernel_that_dies_is_named_and_the_rest_goes_on(tmp_path: Path) -> None:
    dies = write(tmp_path / "dies.ipynb", "n = 1", "import os; os._exit(9)")
    lives = write(tmp_path / "lives.ipynb", "n = 1", "print(n)")
    out = CliRunner().invoke(main, ["reproduce", str(dies), str(lives), "--jobs", "1", "--out", str(tmp_path / "out")])
    assert out.exit_code == 1
    assert "failed: dies: its kernel died" in out.stderr
    assert "lives: done in" in out.stdout


@pytest.mark.slow
def test_claims_of_earlier_commands_stay_on_the_page(tmp_path: Path) -> None:
    claim = 'Claims("{}", (Claim("Paper", "{} is so", "here", str(n), "inconclusive"),))'
    code = "from lab.study.claims import Claim, Claims\n" + claim
    for name in ("one", "two"):
        source = write(tmp_path / f"{name}.ipynb", "n = 1", code.format(name, name))
        out = CliRunner().invoke(main, ["reproduce", str(source), "--out", str(tmp_path / "out")])
        assert out.exit_code == 0, out.output
    page = (tmp_path / "out/claims.html").read_text(encoding="utf-8")
    assert page.count("one is so") == page.count("two is so") == 1
    assert "2 inconclusive" in page
    again = CliRunner().invoke(main, ["reproduce", str(source), "-p", "n=2", "--out", str(tmp_path / "out")])
    assert again.exit_code == 0, again.output
    page = (tmp_path / "out/claims.html").read_text(encoding="utf-8")
    assert (page.count("one is so"), page.count("two is so")) == (1, 1)  # of each notebook once


def test_what_is_printed_is_utf8_whatever_the_locale(tmp_path: Path) -> None:
    import subprocess

    env = dict(os.environ) | {
        "LC_ALL": "C",
        "PYTHONUTF8": "0",
        "PYTHONIOENCODING": "latin-1",
        "PYTHONCOERCECLOCALE": "0",
    }
    env.pop("LANG", None)
    refused = subprocess.run(
        [sys.executable, "-m", "lab", "plan", "des_loc", "-o", "größe→=3"], env=env, capture_output=True, cwd=tmp_path
    )
    assert refused.returncode == 2, refused.stderr
    assert refused.stderr.decode("utf-8").startswith("lab: unknown option")
    listed = subprocess.run([sys.executable, "-m", "lab", "list"], env=env, capture_output=True, cwd=tmp_path)
    assert listed.returncode == 0, listed.stderr
    listed.stdout.decode("utf-8")
