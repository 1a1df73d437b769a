"""Two tasks made from the source text of the Python that runs this: no download."""

from __future__ import annotations

import ast
import re
import textwrap
import warnings
from collections.abc import Iterator
from typing import Any

from lab.data.corpora import fraction, open_source
from lab.errors import RecipeError

# Packages of every Python from 3.11 on with several files and much text. A label is one letter: one byte, one token.
PACKAGES = ("asyncio", "email", "http", "importlib", "logging", "multiprocessing", "unittest", "urllib", "xml")
LABELS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
HELD_OUT = 0.25  # share of a package's snippets that are held out, at most: whole files
SNIPPET = (160, 240)  # characters of a snippet, from and to
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
    the packages in it. Paths are not part of the text. Whole files are held out, so that no snippet has a neighbour on the other side;
    the base model may have read them, but nowhere their labels.
    """
    found: dict[str, dict[str, list[str]]] = {name: {} for name in PACKAGES}
    seen: set[str] = set()
    for doc in open_source("stdlib").documents():
        if doc.domain in found:
            fresh = [s for s in dict.fromkeys(snippets(doc.text)) if s not in seen]
            seen.update(fresh)
            found[doc.domain][doc.name] = fresh
    parts = {name: _hold_out_files(files) for name, files in found.items()}
    few = min(parts, key=lambda name: min(map(len, parts[name])))
    if not all(parts[few]):
        raise RecipeError(f"task 'packages': this Python has no source of {few!r}: use a Python that is whole")
    for side in (0, 1):
        count = min(len(part[side]) for part in parts.values())
        for label, (name, part) in zip(LABELS, parts.items(), strict=False):
            for snippet in sorted(part[side], key=lambda s: fraction("snippet", s))[:count]:
                yield snippet, label, name, bool(side)


def _hold_out_files(files: dict[str, list[str]]) -> tuple[list[str], list[str]]:
    """Snippets of a package's files to train on, and those of the files that are held out: some, but few."""
    full = {name: s for name, s in files.items() if s}
    room = HELD_OUT * sum(map(len, full.values()))
    held: set[str] = set()
    for name in sorted(full, key=lambda name: fraction("held out", name)):
        if len(full[name]) <= room:
            room -= len(full[name])
            held.add(name)
    if not held and len(full) > 1:
        held = {min(full, key=lambda name: len(full[name]))}
    return (
        [s for name, part in full.items() if name not in held for s in part],
        [s for name, part in full.items() if name in held for s in part],
    )


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
