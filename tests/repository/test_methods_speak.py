"""Methods speak for themselves: outside of its own file, its tests and its card nobody asks which method it has."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.methods import METHODS
from tests.support import ROOT

OWN = {name: cls for name, cls in METHODS.items() if cls.__module__.startswith("lab.methods.")}
FILES = {cls.__module__ for cls in OWN.values()}
CLASSES = {cls.__name__ for cls in OWN.values()}
PLACES = [p for room in ("lab", "widgets") for p in sorted((ROOT / room).rglob("*.py")) if p.parent.name != "methods"]
# A default has to name what it stands for, and so does a public name (`lab.suggest_periods`); presets are recipes of methods.
DEFAULTS = {"lab/recipes/recipe.py": {"lab.methods.des_loc"}, "lab/__init__.py": {"lab.methods.des_loc"}}
PRESETS = "lab/recipes/presets.py"


def asked(text: str) -> Iterator[str]:
    """Where a program asks for single methods: comparisons, cases, keys and lists with a method's name; checks of its class."""
    for node in ast.walk(ast.parse(text)):
        where: list[ast.AST] = []
        if isinstance(node, ast.Compare | ast.MatchValue | ast.Tuple | ast.List | ast.Set):
            where = [node]
        elif isinstance(node, ast.Dict):
            where = [key for key in node.keys if key is not None]
        elif isinstance(node, ast.Subscript):
            where = [node.slice]
        elif (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Name)
            and node.func.id in ("isinstance", "issubclass")
        ):
            where = list(node.args[1:])
        elif (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and node.func.attr in ("get", "startswith")
        ):
            where = list(node.args[:1])
        for child in (child for part in where for child in ast.walk(part)):
            found = child.value if isinstance(child, ast.Constant) else None
            named = (
                child.id if isinstance(child, ast.Name) else child.attr if isinstance(child, ast.Attribute) else None
            )
            if found in OWN or named in CLASSES:
                yield f"{found or named} in line {node.lineno}"  # type: ignore[attr-defined]


def imported(text: str) -> set[str]:
    """Modules of single methods that a program imports, also within a function, or by a string."""
    found = set[str]()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{a.name}" for a in node.names)}
        elif isinstance(node, ast.Import):
            found |= {a.name for a in node.names}
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found.add(node.value)
    return found & FILES


@pytest.mark.parametrize("path", PLACES, ids=lambda p: str(p.relative_to(ROOT)))
def test_nobody_asks_which_method_it_has(path: Path) -> None:
    where = str(path.relative_to(ROOT))
    text = path.read_text(encoding="utf-8")
    assert imported(text) <= DEFAULTS.get(where, set())
    assert where == PRESETS or not list(asked(text))


@pytest.mark.parametrize(
    "text",
    [
        'if name == "fomoe": pass',
        'if recipe.method_name not in ("fedit", "prelort"): pass',
        "isinstance(method, FoMoE)",
        "isinstance(method, StreamingDiLoCo | methods.PreLort)",
        'FEDERATED = ("prelort", "fedit")',
        'titles = {"ddp": "DDP"}',
        'METHODS["des_loc"]()',
        'titles.get("ddp")',
        'match name:\n    case "ddp":\n        pass',
    ],
)
def test_who_asks_is_seen(text: str) -> None:
    assert list(asked(text))


@pytest.mark.parametrize(
    "text",
    [
        "from lab.methods.fomoe import FoMoE",
        "from lab.methods import fomoe",
        "def late():\n    import lab.methods.prelort",
        'where = {"DESLOC": "lab.methods.des_loc"}',
    ],
)
def test_who_imports_one_is_seen(text: str) -> None:
    assert imported(text)


def test_what_asks_nothing_is_let_through() -> None:
    text = 'from lab.methods.lora_rounds import open_\nrecipe.but(method={"name": "ddp"})\nx = declared(m).server'
    assert not imported(text)
    assert not list(asked(text))


def test_the_package_finds_its_methods_by_itself() -> None:
    """The package's ``__init__`` names none of them, and there are as many as there are cards."""
    package = (ROOT / "lab/methods/__init__.py").read_text(encoding="utf-8")
    assert not any(name in package.replace("from lab.methods.des_loc import DESLOC", "") for name in OWN)
    assert {p.stem for p in (ROOT / "docs/methods").glob("*.md")} - {"README"} == set(OWN)
    assert all(Path(sys.modules[cls.__module__].__file__ or "").stem == name for name, cls in OWN.items())
