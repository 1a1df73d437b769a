"""Files that lie where one works, and bear the names of modules, are never run by what the lab starts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from lab.runs import child
from lab.runs.folder import RunFolder
from tests.support import ROOT

NAMES = ("lab", "torch", "json", "numpy", "re", "click", "ipykernel_launcher", "ipykernel", "widgets", "sitecustomize")
TRAP = "import os; open(os.path.join(os.path.dirname(__file__), 'trapped'), 'a').write(__name__ + ' ')\nraise SystemExit(0)\n"


@pytest.fixture
def trapped(tmp_path: Path) -> Path:
    """A folder full of files that bear the names of modules, and whose own helper a notebook may import."""
    for name in NAMES:
        (tmp_path / f"{name}.py").write_text(TRAP)
    (tmp_path / "helper.py").write_text("def twice(x):\n    return 2 * x\n")
    return tmp_path


def lab(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The ``lab`` command as it is installed, which does not look into the working directory."""
    command = [sys.executable, "-P", "-m", "lab", *arguments]
    done = subprocess.run(
        command, cwd=folder, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=200
    )
    assert not (folder / "trapped").exists(), (folder / "trapped").read_text()
    return done


def test_a_module_runs_from_beside_this_lab(trapped: Path) -> None:
    """Whatever the path says, and also where nothing is installed; an empty entry of PYTHONPATH means the working directory."""
    code = "import json, sys; print(json.dumps([sys.argv[1:], sys.path, sys.modules['lab'].__file__]))"
    (trapped / "own").mkdir()
    (trapped / "own" / "shown.py").write_text(code)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", f":{trapped / 'own'}:")
        env = child.environment()
    done = subprocess.run(child.command("shown", "a", "-b"), cwd=trapped, env=env, capture_output=True, text=True)
    arguments, path, file = json.loads(done.stdout)
    assert arguments == ["a", "-b"]
    assert Path(file) == ROOT / "lab/__init__.py"
    assert path[0] == str(trapped / "own")
    assert not {"", str(trapped)} & set(path)
    assert not (trapped / "trapped").exists()


@pytest.mark.slow
@pytest.mark.processes
def test_several_processes_run_the_lab_alone(trapped: Path) -> None:
    options = ["corpus=grammar?tokens=8000", "model=nano", "batch_size=2", "context=16", "steps=2", "schedule={}"]
    done = lab(trapped, "run", "des_loc", *(x for o in options for x in ("-o", o)), "--processes", "2")
    assert done.returncode == 0, done.stderr
    (run,) = (trapped / "runs").iterdir()
    assert RunFolder(run).done


@pytest.mark.slow
@pytest.mark.processes
@pytest.mark.parametrize("command", ["sweep", "reproduce"])
def test_notebooks_run_without_what_lies_beside_them(command: str, trapped: Path) -> None:
    """Yet a helper of their own is found, and what a cell starts has the environment that it would have elsewhere."""
    code = "import json, os, lab.study.claims\nfrom helper import twice\nassert 'PYTHONSAFEPATH' not in os.environ\ntwice(x)"
    cells = [
        {
            "cell_type": "code",
            "source": source,
            "metadata": {"tags": tags},
            "outputs": [],
            "execution_count": None,
            "id": name,
        }
        for name, source, tags in (("a", "x: int = 1", ["parameters"]), ("b", code, []))
    ]
    python = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    notebook = {"cells": cells, "metadata": python, "nbformat": 4, "nbformat_minor": 5}
    (trapped / "tiny.ipynb").write_text(json.dumps(notebook))
    done = lab(trapped, command, "tiny.ipynb", "-p", "x=3", "--out", "out")
    assert done.returncode == 0, done.stderr
    (executed,) = (trapped / "out").glob("tiny-*.ipynb")
    (output,) = json.loads(executed.read_text())["cells"][-1]["outputs"]
    assert "".join(output["data"]["text/plain"]) == "6"
