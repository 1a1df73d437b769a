"""What is installed: locked versions, and packages that hold all that is needed away from the checkout."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from lab.study.profiles import firm_profiles
from tests.support import ROOT

LOCKS = ("requirements.lock", "requirements-dev.lock")


def locked(name: str) -> dict[str, tuple[str, int]]:
    """Version and number of hashes by package."""
    found: dict[str, tuple[str, int]] = {}
    for block in re.split(r"\n(?=\w)", (ROOT / name).read_text(encoding="utf-8")):
        if head := re.match(r"([\w.-]+)==([\w.]+)", block):
            found[head[1].lower()] = head[2], block.count("--hash=sha256:")
    return found


@pytest.mark.parametrize("lock", LOCKS)
def test_everything_but_torch_is_locked_with_hashes(lock: str) -> None:
    found = locked(lock)
    assert len(found) > 100
    assert all(hashes for _, hashes in found.values())
    assert "torch" not in found
    assert not [name for name in found if name.startswith(("nvidia-", "cuda-", "triton"))]


def test_the_lock_holds_what_the_constraints_say() -> None:
    """And is no older than what the package asks for."""
    found = locked("requirements-dev.lock")
    pins = re.findall(r"^([\w.-]+)==([\w.]+)$", (ROOT / "constraints.txt").read_text(), flags=re.M)
    assert {name: version for name, version in pins if name != "torch"} == {
        name: found[name][0] for name, _ in pins if name != "torch"
    }
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    needed = {re.match(r"[\w-]+", x)[0].lower() for x in project["dependencies"]} - {"torch"}  # type: ignore[index]
    assert needed <= set(locked("requirements.lock"))


def test_no_advice_mixes_indexes() -> None:
    """With a second index a foreign package of the same name can win."""
    for file in [ROOT / "README.md", ROOT / "Makefile", ROOT / "environment.yml", *(ROOT / "docs").rglob("*.md")]:
        assert "extra-index-url" not in file.read_text(encoding="utf-8"), file


def test_all_firm_profiles_are_installed_with_their_runs() -> None:
    """Or who has the wheel would train for hours what is stored."""
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    folders = [
        file.parts[-1] for file in map(Path, project["tool"]["setuptools"]["data-files"]) if "firm" in file.parts[:-1]
    ]
    assert sorted(folders) == sorted(firm_profiles(ROOT / "notebooks"))


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel and a source distribution, built from a copy of what git would give."""
    base = tmp_path_factory.mktemp("packages")
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=False,
    )
    if listed.returncode:
        pytest.skip("not in a git checkout")
    for name in listed.stdout.decode().split("\0"):
        if name and (ROOT / name).is_file():
            (base / "src" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, base / "src" / name)
    code = "from setuptools import build_meta as b; print(b.build_sdist('../dist')); print(b.build_wheel('../dist'))"
    (base / "dist").mkdir()
    done = subprocess.run([sys.executable, "-c", code], cwd=base / "src", capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return base / "dist"


@pytest.mark.slow
def test_the_source_distribution_can_test_itself(packages: Path) -> None:
    (archive,) = packages.glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        names = {name.partition("/")[2] for name in tar.getnames()}
    tests = {str(p.relative_to(ROOT)) for p in (ROOT / "tests").rglob("*.py")}
    notebooks = {f"notebooks/{p.name}" for p in (ROOT / "notebooks").glob("*.ipynb")}
    assert tests | notebooks | {"Makefile", "constraints.txt", *LOCKS, "notebooks/stored/turned/events.jsonl"} <= names
    assert not [name for name in names if "__pycache__" in name or name.startswith("runs/")]


@pytest.mark.slow
def test_a_wheel_away_from_the_checkout(packages: Path, tmp_path: Path) -> None:
    """Its notebooks come along: they are copied where one works, and executed by their names."""
    (wheel,) = packages.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        assert any(name.endswith("notebooks/01_des_loc.ipynb") for name in archive.namelist())
        assert any(name.endswith("widgets/view.js") for name in archive.namelist())
    site = tmp_path / "site"
    pip = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--no-index",
        "--target",
        str(site),
        str(wheel),
    ]
    subprocess.run(pip, check=True, capture_output=True)
    (tmp_path / "work").mkdir()
    env = dict(os.environ) | {"PYTHONPATH": str(site)}

    def lab(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-P", "-m", "lab", *arguments]
        return subprocess.run(command, cwd=tmp_path / "work", env=env, capture_output=True, text=True)

    where = "import lab, widgets; print(lab.__file__, widgets.__file__)"
    found = subprocess.run([sys.executable, "-P", "-c", where], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert found.stdout.count(str(site)) == 2, found.stdout + found.stderr
    parameters = ("steps=4", "base=1", "long=2,4", "seeds=0", "toy_steps=64", "corpus=grammar?tokens=40000")
    done = lab("reproduce", "01_des_loc", *(x for p in parameters for x in ("-p", p)))
    assert done.returncode == 0, done.stderr
    assert "notebooks that come with the lab copied to notebooks/" in done.stdout
    assert (tmp_path / "work/runs/notebooks/claims.html").exists()
    again = lab("notebooks")
    assert "already" in again.stdout
    assert {p.name for p in (tmp_path / "work/notebooks").glob("*.ipynb")} == {
        p.name for p in (ROOT / "notebooks").glob("*.ipynb")
    }
    assert (tmp_path / "work/notebooks/stored/turned/events.jsonl").exists()
