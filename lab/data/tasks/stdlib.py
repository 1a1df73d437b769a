"""Two tasks made from the source text of the Python that runs this: no download."""

from __future__ import annotations

import ast
import re
import textwrap
import warnings
from collections.abc import Iterator
from string import ascii_uppercase
from typing import Any

from lab.data.corpora import fraction, open_source
from lab.ground.errors import RecipeError

# Packages of every Python from 3.11 on with much text, and so unlike each other that a small model can learn to tell them
# apart: of nine that are all ordinary code, adapters of the lab's base model learnt next to nothing (`docs/log.md`).
PACKAGES = ("asyncio", "encodings", "pydoc_data", "unittest")
HELD_OUT = 0.1  # share of a package's snippets for validation
SNIPPET = (100, 160)  # characters of a snippet, from and to
PROMPT = (40, 190)  # characters of a function to describe; a longer one is cut after its first whole lines
DOCSTRING = (10, 64)  # characters of the line that describes it

Row = tuple[str, str, str, bool]
_TELLING = re.compile(r"\s*(>>> ?)?(import|from)\s|.*(" + "|".join(PACKAGES) + ")", re.IGNORECASE)


def identity() -> list[Any]:
    """Changes when a file of the standard library does, or what is made of it."""
    return [open_source("stdlib").identity, PACKAGES, HELD_OUT, SNIPPET, PROMPT, DOCSTRING]


def packages() -> Iterator[Row]:
    """A few lines of source → the letter of the package that they are from; as many for each package.

    What would give it away is left out: import statements (also in examples), and every line that has the name of any of
    the packages in it. Paths are not part of the text. A tenth of the snippets is held out, by hash, from all files: other
    lines of the same file are there to train on. The base model may have read all of them, but nowhere their labels.
    """
    found: dict[str, list[str]] = {name: [] for name in PACKAGES}
    seen: set[str] = set()
    for doc in open_source("stdlib").documents():
        if doc.domain in found:
            fresh = [s for s in dict.fromkeys(snippets(doc.text)) if s not in seen]
            seen.update(fresh)
            found[doc.domain] += fresh
    few = min(found, key=lambda name: len(found[name]))
    count = len(found[few])
    if not count:
        raise RecipeError(f"task 'packages': this Python has no source of {few!r}: use a Python that is whole")
    for label, (name, mine) in zip(ascii_uppercase, found.items(), strict=False):
        for i, snippet in enumerate(sorted(mine, key=lambda s: fraction("snippet", s))[:count]):
            yield snippet, label, name, i < HELD_OUT * count


def snippets(text: str) -> Iterator[str]:
    """Consecutive lines of source, without blank and import lines and those that name a package; ASCII, indented least."""
    text = text.replace("\r\n", "\n")
    tree = _parse(text)
    if tree is None:
        return
    imports = {
        line
        for node in _statements(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for line in range(node.lineno, (node.end_lineno or node.lineno) + 1)
    }
    block: list[str] = []
    size = 0
    for number, line in enumerate(text.split("\n"), 1):
        if number in imports or not line.strip() or not line.isascii() or _TELLING.match(line):
            continue
        block.append(line.rstrip())
        size += len(line.strip()) + 1
        if size >= SNIPPET[0]:
            yield textwrap.dedent("\n".join(block))[: SNIPPET[1]]
            block, size = [], 0


def docstrings() -> Iterator[Row]:
    """A function without its docstring (its first lines, where it is long) → the docstring's first line.

    Held out is what corpus ``stdlib`` holds out, so that a base model pre-trained there has not read the answers.
    """
    for doc in open_source("stdlib").documents():
        text = doc.text.replace("\r\n", "\n")
        tree = _parse(text)
        if tree is None:
            continue
        lines = text.split("\n")
        for node in _statements(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                pair = _described(node, lines)
                if pair is not None:
                    yield *pair, doc.domain, doc.held_out


def _described(node: ast.FunctionDef | ast.AsyncFunctionDef, lines: list[str]) -> tuple[str, str] | None:
    """The source of a function without its docstring, and the docstring's first line; None where it is not fit."""
    docstring = ast.get_docstring(node)
    if not docstring or len(node.body) < 2:
        return None
    first, after = node.body[0], node.body[1]
    if first.lineno <= node.lineno or after.lineno <= (first.end_lineno or 0):  # something else on the same line
        return None
    head, body = lines[node.lineno - 1 : first.lineno - 1], lines[first.end_lineno : node.end_lineno]
    indent = " " * node.col_offset  # a text in the function may stand further left
    source = [line.removeprefix(indent).rstrip() for line in head + body if line.strip()]
    prompt = source[0]
    for line in source[1:]:
        if len(prompt) + 1 + len(line) > PROMPT[1]:
            break
        prompt += "\n" + line
    completion = docstring.split("\n")[0].strip()
    fits = PROMPT[0] <= len(prompt) <= PROMPT[1] and DOCSTRING[0] <= len(completion) <= DOCSTRING[1]
    return (prompt, completion) if fits and prompt.isascii() and completion.isascii() else None


def _statements(node: ast.AST) -> Iterator[ast.AST]:
    """All statements below a node, whole expressions left aside: a fraction of the work of `ast.walk`."""
    for part in ("body", "handlers", "orelse", "finalbody", "cases"):
        for child in getattr(node, part, ()):
            yield child
            yield from _statements(child)


def _parse(text: str) -> ast.Module | None:
    """None for text that is not for this Python (templates, lib2to3's examples)."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # old escapes in strings
            return ast.parse(text)
    except (SyntaxError, ValueError):
        return None
