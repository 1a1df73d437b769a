"""Who imports whom. `lint-imports` holds the rings; here: no circles, and nothing imported by a string around the linter."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from tests.support import ROOT

FILES = [*(ROOT / "lab").rglob("*.py"), *(ROOT / "widgets").rglob("*.py")]


def name_of_module(file: Path) -> str:
    return ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def named(tree: ast.Module) -> Iterator[tuple[str, ...]]:
    """Every module that code could mean, the likeliest first: at the top, in functions, for types alone, and in strings."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name,) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "an import relative to its own file"
            yield from ((f"{node.module}.{alias.name}", node.module or "") for alias in node.names)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield (node.value if "." in node.value else "",)  # neither docstrings nor "lab" alone name a module


def graph(sources: Mapping[str, str]) -> dict[str, set[str]]:
    """The modules of ours that each of them imports, by any means."""
    found = {}
    for module, text in sources.items():
        ours = (next((n for n in names if n in sources), "") for names in named(ast.parse(text)))
        found[module] = {name for name in ours if name} - {module}
    return found


def circular(arrows: Mapping[str, set[str]]) -> set[str]:
    """Modules from which a way leads back to themselves, or to others for which that is so."""
    left = {module: set(to) for module, to in arrows.items()}
    while free := {module for module, to in left.items() if not to}:
        left = {module: to - free for module, to in left.items() if module not in free}
    while unasked := left.keys() - set().union(*left.values()):
        left = {module: to for module, to in left.items() if module not in unasked}
    return set(left)


OURS = {name_of_module(file): file.read_text(encoding="utf-8") for file in FILES}


def test_nothing_goes_in_circles() -> None:
    """Imports for types, inside functions and by a string are imports, too."""
    assert circular(graph(OURS)) == set()


def test_the_lab_names_no_widget() -> None:
    """Neither as a module in a string nor as a path of a file; the linter sees the `import` statements."""
    for module, text in OURS.items():
        if module.split(".")[0] == "lab":
            strings = [node.value for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Constant)]
            assert not [s for s in strings if re.fullmatch(r"widgets([./]\S*)?", str(s))], module


def test_circles_are_seen() -> None:
    """The check above tells a circle from a chain, whichever way it is closed."""
    chain = {"lab.a": "from lab import b", "lab.b": "import lab.c", "lab.c": ""}
    assert circular(graph(chain)) == set()
    lazy = "def f():\n    from lab.a import x"
    types = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from lab.a import x"
    for closing in (lazy, types, "import importlib\nimportlib.import_module('lab.a')"):
        assert circular(graph(chain | {"lab.c": closing, "lab.d": "import lab.a"})) == {"lab.a", "lab.b", "lab.c"}
