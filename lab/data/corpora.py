"""Where text comes from: one string names a source and its options, and yields documents.

A source says two things: an ``identity`` that is cheap to get (options and file sizes and times), under which the
cache remembers what it built, and the ``documents`` themselves.
"""

from __future__ import annotations

import glob
import hashlib
import os
import sysconfig
from collections.abc import Callable, Iterable, Iterator, Set
from dataclasses import dataclass, fields
from itertools import chain, islice
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qsl

from lab.data.grammar import Grammar
from lab.errors import RecipeError, one_of
from lab.places import located, working_folder

CORPORA = {
    "stdlib": "source text of the Python that runs this; a domain is a package: stdlib?max_bytes=20000000",
    "grammar": "synthetic dialects of known entropy: grammar?seed=0&dialects=4&order=2&symbols=32&tokens=2000000"
    "&similarity=0.5",
    "text": "your UTF-8 files, folders and globs; a domain is a folder: text:notes/,book.txt,src/**/*.py",
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


@dataclass(frozen=True)
class Source:
    """A parsed corpus string."""

    identity: list[Any]  # JSON-able; changes when the documents may have changed
    documents: Callable[[], Iterator[Document]]
    floors: Callable[[], dict[str, float]] | None = None  # bits per symbol of every domain, where known


@dataclass(frozen=True)
class Stdlib:
    """Options of ``stdlib``: with less than there is, ``max_bytes`` keeps a fixed random choice of the files."""

    max_bytes: int = 20_000_000


@dataclass(frozen=True)
class Hub:
    """Options of ``hub``: ``max_documents`` is per split (0: all); no ``validation`` holds out 5 % of ``split``."""

    config: str = ""
    column: str = "text"
    split: str = "train"
    validation: str = ""
    domain: str = ""
    streaming: bool = False
    max_documents: int = 20_000
    revision: str = ""


def check(spec: str) -> None:
    """Raise what `open_source` would, where that can be known at once. Tasks (``task:…``) are not looked at."""
    if not spec.startswith(("stdlib", "task:")):
        open_source(spec)


def open_source(spec: str) -> Source:
    """The source that ``spec`` names. Lists files but reads none.

    Raises RecipeError for an unknown source or option, a bad value, or a path that does not exist.
    """
    head, _, query = spec.partition("?")
    kind, colon, target = head.partition(":")
    if kind not in CORPORA:
        raise RecipeError(one_of("corpus", kind, CORPORA))
    if kind in ("stdlib", "grammar") and colon:
        raise RecipeError(f"corpus {spec!r}: {kind} takes no path: write {CORPORA[kind].rpartition(': ')[2]}")
    if kind in ("text", "hub") and not target:
        raise RecipeError(f"corpus {spec!r} names nothing to read: write {CORPORA[kind].rpartition(': ')[2]}")
    if kind == "stdlib":
        return _stdlib(_options(Stdlib, kind, query))
    if kind == "grammar":
        grammar = _options(Grammar, kind, query)
        return Source(["grammar", repr(grammar)], lambda: (Document(*d) for d in grammar.documents()), grammar.floors)
    if kind == "text":
        return _text(spec.removeprefix("text:"))  # no options: a question mark is part of a glob
    return _hub(target, _options(Hub, kind, query))


def _options(kind: Any, source: str, query: str) -> Any:
    """``a=1&b=x`` as an instance of the dataclass ``kind``, whose defaults give names and types."""
    defaults = {f.name: f.default for f in fields(kind)}
    values: dict[str, Any] = {}
    for name, text in parse_qsl(query, keep_blank_values=True):
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


def _read(files: Iterable[tuple[Any, ...]], required: Set[Path] = frozenset()) -> Iterator[Document]:
    """Documents of (domain, name, path, ...), without those that are empty or not UTF-8 text."""
    for domain, name, path, *_ in files:
        data = Path(path).read_bytes()
        try:
            text = "" if b"\0" in data else data.decode("utf-8")
        except UnicodeDecodeError:
            text = ""
        if text.strip():
            yield Document(name, domain, text)
        elif path in required:
            raise RecipeError(f"text: {str(path)!r} is empty or is not UTF-8 text: name files of text")


def stamp(path: Path | str) -> tuple[str, int, int]:
    """(path, size in bytes, time of change in ns) of a file."""
    stat = os.stat(path)
    return str(path), stat.st_size, stat.st_mtime_ns


def _stdlib(options: Stdlib) -> Source:
    root = Path(sysconfig.get_path("stdlib"))
    skipped = {"site-packages", "dist-packages", "test", "tests", "idle_test"}
    files = []  # (domain, name, path, size, time)
    for folder, below, names in os.walk(root):
        below[:] = [b for b in below if b not in skipped and b.isidentifier() and not b.startswith("__")]
        parts = Path(folder).relative_to(root).parts
        domain = parts[0] if parts else "modules"
        files += [(domain, "/".join((*parts, n)), *stamp(f"{folder}/{n}")) for n in names if n.endswith(".py")]
    if sum(file[3] for file in files) > options.max_bytes:
        files.sort(key=lambda file: fraction("sample", file[1]))
        total = 0
        files = [file for file in files if (total := total + file[3]) <= options.max_bytes]
    if not files:
        raise RecipeError(f"stdlib: no source text within {options.max_bytes} bytes in {root}: use corpus 'grammar'")
    files.sort()
    return Source(["stdlib", files], lambda: hold_out(_read(files), by="name"))


def _text(paths: str) -> Source:
    found: dict[Path, tuple[str, str]] = {}  # file -> (domain, name)
    required = set()
    for item in filter(None, (p.strip() for p in paths.split(","))):
        path, here = Path(item).expanduser(), working_folder()
        absolute, path = path.is_absolute(), here / path
        if path.is_dir():
            hits = [p for p in path.rglob("*") if not any(q.startswith(".") for q in p.relative_to(path).parts)]
        else:
            pattern = str(Path(item).expanduser())
            hits = [path] if path.exists() else [here / p for p in glob.glob(pattern, root_dir=here, recursive=True)]
        hits = [hit for hit in hits if hit.is_file() and "__pycache__" not in hit.parts]
        if not hits:
            what = "has no files" if path.is_dir() else "does not exist"
            raise RecipeError(
                f"text: {item!r} {what}: give a file, a folder or a glob (relative to {working_folder()})"
            )
        if path.is_file():
            required.add(path.resolve())
        for hit in hits:
            domain = path.stem if hit == path else hit.parent.resolve().name
            found.setdefault(hit.resolve(), (domain, str(hit if absolute else hit.relative_to(here))))
    files = sorted((domain, name, path) for path, (domain, name) in found.items())
    return Source(["text", [[d, n, *stamp(p)] for d, n, p in files]], lambda: hold_out(_read(files, required)))


def _hub(target: str, options: Hub) -> Source:
    local = located(target)
    if target.startswith((".", "/", "~")) and not local.is_dir():
        raise RecipeError(
            f"hub: folder {target!r} does not exist: give owner/name or a folder (here: {working_folder()})"
        )
    files = sorted(p for p in local.rglob("*") if p.is_file()) if local.is_dir() else []

    def documents() -> Iterator[Document]:
        train = _hub_rows(target, options, options.split)
        if not options.validation:
            return hold_out(train)
        held_out = _hub_rows(target, options, options.validation)
        return chain(train, (doc._replace(held_out=True) for doc in held_out))

    return Source(["hub", target, repr(options), [stamp(p.resolve()) for p in files]], documents)


def _hub_rows(target: str, options: Hub, split: str) -> Iterator[Document]:
    try:
        rows = hub_load(target, options, split)
        columns = rows.column_names or list(next(iter(rows), {}))
        for column in filter(None, (options.column, options.domain)):
            if column not in columns:
                raise RecipeError(one_of(f"column of {target}", column, columns))
        label: Any = (rows.features or {}).get(options.domain)
        names = label.int2str if hasattr(label, "int2str") else str  # a ClassLabel stores numbers
        rows = rows.select_columns(list({options.column, options.domain} - {""}))
        for i, row in enumerate(islice(rows, options.max_documents or None)):
            text = row[options.column]
            if not isinstance(text, str | None):
                raise RecipeError(f"hub: column {options.column!r} holds {type(text).__name__}, not text: {columns}")
            if text and text.strip():
                yield Document(f"{split}/{i}", names(row[options.domain]) if options.domain else "all", text)
    except RecipeError:
        raise
    except Exception as error:  # the hub, its files and their formats fail in many ways, none of them ours
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise RecipeError(
            f"hub: cannot read split {split!r} of {target!r} ({reason}): check the name, its config and splits, and "
            "the network (this machine may be offline); the built-in corpus 'stdlib' works without a network"
        ) from error


def hub_load(target: str, options: Hub, split: str) -> Any:
    """A ``datasets.Dataset``, or an ``IterableDataset`` where streaming, of one split."""
    import datasets

    local = located(target)
    if not any((local / file).exists() for file in ("state.json", "dataset_dict.json")):
        name = str(local) if local.is_dir() else target
        return datasets.load_dataset(
            name, options.config or None, split=split, streaming=options.streaming, revision=options.revision or None
        )
    saved = datasets.load_from_disk(str(local))  # written by save_to_disk
    splits = saved if isinstance(saved, datasets.DatasetDict) else {"train": saved}
    if split not in splits:
        raise RecipeError(one_of(f"split of {target}", split, splits))
    return splits[split].to_iterable_dataset() if options.streaming else splits[split]
