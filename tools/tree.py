"""The files of every room in ``docs/architecture.md``, each with the first sentence of its docstring. Run: ``python -m tools.tree``."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs/architecture.md"
BLOCK = re.compile(r"(<!-- computed: python -m tools\.tree -->\n).*?(<!-- end -->)", flags=re.S)


def sentence(file: Path) -> str:
    """The first sentence of what a file says of itself, on one line."""
    text = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
    first = re.split(r"(?<=[.?!])\s+(?=[A-Z`])", " ".join(text.split("\n\n")[0].split()))[0]
    return first.replace("``", "`").replace("|", "\\|")


def rooms() -> dict[str, list[Path]]:
    """The files of `lab` and `widgets`, folder by folder, in the order of their names."""
    found: dict[str, list[Path]] = {}
    for top in ("lab", "widgets"):
        for file in sorted((ROOT / top).rglob("*.py")):
            if file.name != "__init__.py":
                found.setdefault(file.parent.relative_to(ROOT).as_posix(), []).append(file)
    return found


def table() -> str:
    parts = []
    for room, files in rooms().items():
        head = f"### {room}/\n\n{sentence(ROOT / room / '__init__.py')}\n\n| file | what it is for |\n| --- | --- |\n"
        parts.append(head + "\n".join(f"| `{file.stem}` | {sentence(file)} |" for file in files))
    return "\n\n".join(parts)


def renewed(page: str) -> str:
    """The page with its tables as they have to be now."""
    return BLOCK.sub(lambda match: f"{match[1]}\n{table()}\n\n{match[2]}", page)


if __name__ == "__main__":
    PAGE.write_text(renewed(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
