"""Where text comes from: one string names a source and its options, and yields documents.

A source says two things: an ``identity`` that is cheap to get (options and the stamps of files), under which the cache
remembers what it built, and the ``documents`` themselves. A source of files also gives them in pieces, so that a file
of any size can be read.
"""

from __future__ import annotations

import hashlib
import os
import re
import sysconfig
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field, fields
from itertools import chain, islice
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote

from lab.data import hub
from lab.data.files import Finder, Scan, Stamp, expanded, scans, stamp, text_of, with_home
from lab.data.grammar import Grammar
from lab.data.hub import Hub
from lab.data.mixture import Mixture
from lab.ground.errors import RecipeError, one_of
from lab.ground.files import working_folder

CORPORA = {
    "stdlib": "source text of the Python that runs this; a domain is a package: stdlib?max_bytes=20000000",
    "grammar": "synthetic dialects of known entropy: grammar?seed=0&dialects=4&order=2&symbols=32&tokens=2000000&families=0"
    "&similarity=0.5",
    "mixture": "sequences of Markov chains from a target, what is related to it, noise and what is not: mixture?seed=0&target=300&related=900"
    "&noise=1500&unrelated=1500&likeness=0.7&symbols=48&length=32&held_out=256",
    "text": "your UTF-8 files, folders and globs, with \\, for a comma in a name; a domain is a folder: "
    "text:notes/,book.txt,src/**/*.py",
    "hub": "a text data set of the hub or a local one: hub:owner/name?config=&column=text&split=train&validation="
    "&domain=&streaming=false&max_documents=20000&revision=",
}
HELD_OUT = 0.05  # share of the text that is for validation
FEW = 20  # with fewer documents than this, the end of each is held out instead of whole documents


class Document(NamedTuple):
    """One text, and the side of the train/validation split it is on."""

    name: str
    domain: str
    text: str
    held_out: bool = False


class Piece(NamedTuple):
    """A part of a document; documents follow each other, and the last piece of each ``ends`` it."""

    domain: str
    text: str
    held_out: bool
    ends: bool


@dataclass(frozen=True)
class CorpusSource:
    """A parsed corpus string."""

    identity: list[Any]  # JSON-able; changes when the documents may have changed
    documents: Callable[[], Iterator[Document]]
    floors: Callable[[], dict[str, float]] | None = None  # bits per symbol of every domain, where known
    stamps: Sequence[Stamp] = ()  # of the files that it is made from
    files: TextFiles | None = None  # where each document is a file
    remote: bool = False  # whether reading it may need a network


@dataclass(frozen=True)
class TextFiles:
    """Files, each of them a document: (domain, name, path), sorted. ``required``: those that must be text.

    ``by`` decides which are held out: the hash of their ``text`` or of their ``name``.
    """

    entries: Sequence[tuple[str, str, Path]]
    required: Set[Path] = frozenset()
    by: str = "text"

    def scan(self, memory: Path | None = None, read: Callable[[int], object] = lambda size: None) -> Texts:
        """Read through what ``memory`` does not know yet (see `lab.data.files.scans`).

        Raises RecipeError where a file that must be text is not.
        """
        kept, left_out = [], {}
        for entry, found in zip(self.entries, scans([e[2] for e in self.entries], memory, read), strict=True):
            if found.chars:
                kept.append((*entry, found))
            elif entry[2] in self.required:
                raise RecipeError(
                    f"text: {str(entry[2])!r} is empty or is not UTF-8 text ({found.problem or 'nothing but white space'}): "
                    "name files of UTF-8 text (iconv makes them)"
                )
            elif found.problem:
                left_out[entry[1]] = found.problem
        return Texts(kept, left_out, len(self.entries), self.by)


@dataclass(frozen=True)
class Texts:
    """Files whose contents are known. ``left_out``: names of those that are not text, and why; ``total``: how many there were."""

    kept: Sequence[tuple[str, str, Path, Scan]]
    left_out: Mapping[str, str] = field(default_factory=dict)
    total: int = 0
    by: str = "text"

    def content(self) -> list[Any]:
        """What the documents are, JSON-able, wherever the files lie."""
        return [
            [domain, found.digest, *side] for (domain, _, _, found), side in zip(self.kept, self._sides(), strict=True)
        ]

    def digests(self) -> dict[str, str]:
        """The digest of every text by the name of its file."""
        return {name: found.digest for _, name, _, found in self.kept}

    def _sides(self) -> list[tuple[int, bool]]:
        """Of every text: characters that are to train on, and whether the rest is held out. As `hold_out`."""
        if len(self.kept) < FEW:
            return [(max(1, int(found.chars * (1 - HELD_OUT))), True) for *_, found in self.kept]
        chosen = [
            (found.fraction if self.by == "text" else fraction("validation", name)) < HELD_OUT
            for _, name, _, found in self.kept
        ]
        if not any(chosen):
            chosen[-1] = True
        return [
            (0 if held_out else found.chars, held_out) for held_out, (*_, found) in zip(chosen, self.kept, strict=True)
        ]

    def pieces(self, read: Callable[[int], object] = lambda size: None) -> Iterator[Piece]:
        """All texts, one after another. ``read`` is told how many bytes of text were read each time."""
        for (domain, _, path, found), (cut, _) in zip(self.kept, self._sides(), strict=True):
            at = 0
            for text in text_of(path, found):
                read(len(text.encode()))
                before = text[: max(0, cut - at)]
                at += len(text)
                if before:
                    yield Piece(domain, before, False, at >= cut)
                if len(before) < len(text):
                    yield Piece(domain, text[len(before) :], True, at == found.chars)

    def documents(self) -> Iterator[Document]:
        """The same, each text whole."""
        names = iter(
            name
            for (_, name, _, found), (cut, _) in zip(self.kept, self._sides(), strict=True)
            for _ in range(1 + (0 < cut < found.chars))
        )
        parts: list[str] = []
        for piece in self.pieces():
            parts.append(piece.text)
            if piece.ends:
                yield Document(next(names), piece.domain, "".join(parts), piece.held_out)
                parts.clear()


@dataclass(frozen=True)
class Stdlib:
    """Options of ``stdlib``: with less than there is, ``max_bytes`` keeps a fixed random choice of the files."""

    max_bytes: int = 20_000_000


def check(spec: str) -> None:
    """Raise what `open_source` would, where that can be known at once. Tasks (``task:…``) are not looked at."""
    if not spec.startswith(("stdlib", "task:")):
        open_source(spec)


def open_source(spec: str) -> CorpusSource:
    """The source that ``spec`` names. Lists files but reads none.

    Raises RecipeError for an unknown source or option, a bad value, or a path that does not exist.
    """
    head, _, query = spec.partition("?")
    kind, colon, target = head.partition(":")
    if kind not in CORPORA:
        raise RecipeError(one_of("corpus", kind, CORPORA))
    if kind in ("stdlib", "grammar", "mixture") and colon:
        raise RecipeError(f"corpus {spec!r}: {kind} takes no path: write {CORPORA[kind].rpartition(': ')[2]}")
    if kind in ("text", "hub") and not target:
        raise RecipeError(f"corpus {spec!r} names nothing to read: write {CORPORA[kind].rpartition(': ')[2]}")
    if kind == "stdlib":
        return _stdlib(_options(Stdlib, kind, query))
    if kind == "grammar":
        grammar = _options(Grammar, kind, query)
        return CorpusSource(
            ["grammar", grammar.key], lambda: (Document(*d) for d in grammar.documents()), grammar.floors
        )
    if kind == "mixture":
        mixture = _options(Mixture, kind, query)
        return CorpusSource(["mixture", repr(mixture)], lambda: (Document(*d) for d in mixture.documents()))
    if kind == "text":
        return _text(spec.removeprefix("text:"))  # no options: a question mark is part of a glob
    return _hub(target, _options(Hub, kind, query))


def _options(kind: Any, source: str, query: str) -> Any:
    """``a=1&b=x`` as an instance of the dataclass ``kind``, whose defaults give names and types."""
    defaults = {f.name: f.default for f in fields(kind)}
    values: dict[str, Any] = {}
    for part in filter(None, query.split("&")):
        name, _, text = map(unquote, part.partition("="))  # a plus is a plus: there are columns called c++
        if name not in defaults:
            raise RecipeError(one_of(f"option of {source}", name, defaults))
        wanted: Any = type(defaults[name])
        try:
            if wanted is bool:
                values[name] = {"true": True, "1": True, "false": False, "0": False}[text.lower()]
            else:
                values[name] = wanted(text)
            if wanted is int and name != "seed" and values[name] < 0:
                raise ValueError
        except (KeyError, ValueError):
            what = {bool: "true or false", int: "a whole number", float: "a number"}[wanted]
            raise RecipeError(
                f"{source}: option {name}={text!r} is not {what}: write {name}={defaults[name]}"
            ) from None
    return kind(**values)


def fraction(salt: str, key: str) -> float:
    """A fixed number in [0, 1) for ``key``."""
    return int.from_bytes(hashlib.sha256(f"{salt}\0{key}".encode(errors="surrogatepass")).digest()[:8], "big") / 2**64


def hold_out(documents: Iterable[Document], by: str = "text") -> Iterator[Document]:
    """Mark about 5 % of the documents for validation by the hash of a field, whatever their order and the seed.

    By text, copies of a document stay on one side. With fewer than 20 documents the last 5 % of each becomes a
    document of its own. Where the hash picks none, the last document is held out.
    """
    stream = iter(documents)
    head = list(islice(stream, FEW))
    if len(head) < FEW:
        for doc in head:
            cut = max(1, int(len(doc.text) * (1 - HELD_OUT)))
            yield doc._replace(text=doc.text[:cut])
            if cut < len(doc.text):
                yield doc._replace(text=doc.text[cut:], held_out=True)
        return
    found, last = False, None
    for doc in chain(head, stream):
        if last is not None:
            yield last
        last = doc._replace(held_out=fraction("validation", getattr(doc, by)) < HELD_OUT)
        found |= last.held_out
    if last is not None:
        yield last if found else last._replace(held_out=True)


def _stdlib(options: Stdlib) -> CorpusSource:
    root = Path(sysconfig.get_path("stdlib"))
    skipped = {"site-packages", "dist-packages", "test", "tests", "idle_test"}
    files: list[tuple[str, str, Stamp]] = []  # domain, name
    for folder, below, names in os.walk(root):
        below[:] = [b for b in below if b not in skipped and b.isidentifier() and not b.startswith("__")]
        parts = Path(folder).relative_to(root).parts
        domain = parts[0] if parts else "modules"
        files += [(domain, "/".join((*parts, n)), stamp(f"{folder}/{n}")) for n in names if n.endswith(".py")]
    if sum(file[2][1] for file in files) > options.max_bytes:
        files.sort(key=lambda file: fraction("sample", file[1]))
        total = 0
        files = [file for file in files if (total := total + file[2][1]) <= options.max_bytes]
    if not files:
        raise RecipeError(f"stdlib: no source text within {options.max_bytes} bytes in {root}: use corpus 'grammar'")
    return _of_files("stdlib", files, by="name")


def _of_files(
    kind: str, files: list[tuple[str, str, Stamp]], required: Set[Path] = frozenset(), by: str = "text"
) -> CorpusSource:
    files.sort()
    texts = TextFiles([(domain, name, Path(at[0])) for domain, name, at in files], required, by)
    stamps = [at for _, _, at in files]
    return CorpusSource([kind, files], lambda: texts.scan().documents(), stamps=stamps, files=texts)


def _paths(text: str) -> list[str]:
    """The paths of ``a,b``, where ``\\,`` is a comma of a name. One name with commas that is there needs no backslash."""
    whole = text.strip()
    if "," in whole and os.path.lexists(expanded(whole, "text")):
        return [whole]
    return [p for item in re.split(r"(?<!\\),", text) if (p := item.strip().replace("\\,", ","))]


def _text(paths: str) -> CorpusSource:
    found: dict[Path, tuple[str, str]] = {}  # file -> (domain, name)
    required = set()
    real: dict[Path, Path] = {}  # folder -> the same without links
    for item in _paths(paths):
        path, finder, here = expanded(item, "text"), Finder(f"text: {item!r}"), working_folder()
        absolute = with_home(item, "text").is_absolute()
        hits = [path] if os.path.exists(path) else finder.fits(item)
        if os.path.isdir(path):
            hits = finder.below(path)
        hits = [hit for hit in hits if os.path.isfile(hit) and "__pycache__" not in hit.parts]
        if not hits:
            what = "has no files" if os.path.isdir(path) else "is no file" if os.path.exists(path) else "does not exist"
            raise RecipeError(
                f"text: {item!r} {what}: give a file, a folder or a glob (relative to {here}); a comma in a name is "
                "written \\,"
            )
        if os.path.isfile(path):
            required.add(path.resolve())
        for hit in hits:
            parent = real.get(hit.parent) or real.setdefault(hit.parent, hit.parent.resolve())
            domain = path.stem if hit == path else parent.name
            name = str(hit if absolute else hit.relative_to(here))
            found.setdefault(hit.resolve() if hit.is_symlink() else parent / hit.name, (domain, name))
    return _of_files("text", [(domain, name, stamp(path)) for path, (domain, name) in found.items()], required)


def _hub(target: str, options: Hub) -> CorpusSource:
    local = hub.folder(target)
    stamps = [] if local is None else [stamp(p.resolve()) for p in Finder(f"hub: {target!r}").below(local)]

    def documents() -> Iterator[Document]:
        train = _hub_rows(target, options, options.split)
        if not options.validation:
            return hold_out(train)
        held_out = _hub_rows(target, options, options.validation)
        return chain(train, (doc._replace(held_out=True) for doc in held_out))

    return CorpusSource(["hub", target, repr(options), stamps], documents, stamps=stamps, remote=local is None)


def _hub_rows(target: str, options: Hub, split: str) -> Iterator[Document]:
    local = hub.folder(target) is not None
    what, remedy = (
        f"hub: cannot read split {split!r} of {target!r}",
        "the built-in corpus 'stdlib' works without a network",
    )
    with hub.reading(what, remedy, local):
        rows, columns = hub.load(target, options, split, [options.column, *filter(None, [options.domain])])
        label: Any = (rows.features or {}).get(options.domain)
        classes = getattr(label, "names", None)  # a ClassLabel stores numbers
        for i, row in enumerate(islice(rows, options.max_documents or None)):
            text = row[options.column]
            if not isinstance(text, str | None):
                raise RecipeError(f"hub: column {options.column!r} holds {type(text).__name__}, not text: {columns}")
            if text and text.strip():
                domain: Any = row[options.domain] if options.domain else "all"
                if domain is None or (classes is not None and not 0 <= domain < len(classes)):
                    raise RecipeError(
                        f"hub: column {options.domain!r} of split {split!r} has no label in row {i} (it is {domain}): choose "
                        "another column or split, or leave out domain"
                    )
                yield Document(f"{split}/{i}", classes[domain] if classes is not None else str(domain), text)
