"""A page of the documentation, done as it is printed: cells of Python as a notebook has them, commands as a shell has them.

python -m tests.support.pages PAGE FOLDER, in a process of its own. Blocks are taken in their order, in one folder:

``python``  a cell, magics such as ``%%writefile`` and the value of its last line included; an error ends it all
``sh``      lines that begin with ``lab``, in one process for the block; ``pip install .`` into a folder beside, without a network
``text``    has to be in what the block before it has printed, but for the number of blanks

A block with a name in bold above it is a file; functions in it that are called ``test_…`` are called.
"""

from __future__ import annotations

import os
import re
import runpy
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

BLOCK = re.compile(r"(?:^\*\*`([^`\n]+)`\*\*\n\n)?^```(\w+)\n(.*?)^```", flags=re.S | re.M)
COMMANDS = """
import shlex, sys
from click.testing import CliRunner
from lab.cli import main
for line in sys.stdin.read().splitlines():
    done = CliRunner().invoke(main, shlex.split(line)[1:])
    print(done.output)
    assert done.exit_code == 0, (line, done.output)
"""


def blocks(page: str) -> list[tuple[str, str, str]]:
    """Name of a file or nothing, language, text."""
    return BLOCK.findall(page)


def notebook() -> Callable[[str], str]:
    """Runs cells one after another, as a kernel does: gives what one has printed, and the text of what it ends in."""
    from IPython.core.interactiveshell import InteractiveShell
    from IPython.utils.capture import capture_output
    from traitlets.config import Config

    shell = InteractiveShell.instance(config=Config({"HistoryManager": {"enabled": False}}))

    def cell(code: str) -> str:
        with capture_output() as told:
            result = shell.run_cell(code, store_history=True)
        result.raise_error()
        return re.sub(r"^Out\[\d+\]: ", "", str(told.stdout), flags=re.M)

    return cell


def commands(lines: list[str], site: Path) -> str:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(site), os.environ.get("PYTHONPATH", "")])}
    for line in lines:
        if line == "pip install .":
            offline = ["--quiet", "--no-index", "--no-deps", "--no-build-isolation", "--target", str(site)]
            subprocess.run([sys.executable, "-m", *shlex.split(line), *offline], check=True, env=environment)
        else:
            assert line.startswith("lab "), line
    todo = "\n".join(line for line in lines if line.startswith("lab "))
    done = subprocess.run([sys.executable, "-c", COMMANDS], input=todo, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def squeezed(text: str) -> list[str]:
    return [" ".join(line.split()) for line in text.splitlines() if line.strip()]


def contains(told: str, shown: str) -> bool:
    """Whether consecutive lines are those; ``…`` at the end of a line stands for whatever comes."""
    lines, wanted = squeezed(told), squeezed(shown)
    same = lambda a, b: a.startswith(b[:-1]) if b.endswith("…") else a == b  # noqa: E731
    return any(all(map(same, lines[at : at + len(wanted)], wanted)) for at in range(len(lines) - len(wanted) + 1))


def do(page: Path, cell: Callable[[str], str]) -> int:
    """All blocks of a page; how many there were."""
    found, told = blocks(page.read_text(encoding="utf-8")), ""
    for name, language, text in found:
        if name:
            Path(name).write_text(text, encoding="utf-8")
            tests = {} if not name.startswith("test_") else runpy.run_path(name)
            for test in [each for each in tests if each.startswith("test_")]:
                tests[test]()
        elif language == "python":
            told = cell(text)
        elif language == "sh":
            told = commands(text.splitlines(), Path("site-of-page").resolve())
        elif language == "text":
            assert contains(told, text), f"printed:\n{told}\nshown:\n{text}"
        else:
            raise AssertionError(f"a block of {language}, and nobody says what to do with it")
    return len(found)


if __name__ == "__main__":
    os.chdir(sys.argv[2])
    sys.path.insert(0, "")  # as in a notebook
    print(do(Path(sys.argv[1]), notebook()), "blocks")
