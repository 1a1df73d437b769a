"""Corpora as memory-mapped tokens in a cache that is keyed by content.

Two levels make a warm start fast. ``memo/<hash of options and stamps of files>`` holds the key of an entry; the key is a
hash of every document, the tokenizer and the format, so touching a file costs a read but no tokenising.
``memo/<hash of the corpus string>.files`` holds what is in each file under its stamp (`lab.data.files`), so that of many
files only those that changed are read again. An entry is a folder: the tokens of both splits, their documents,
``tokenizer.json`` where there is one, and ``meta.json`` with the size of every file, written last. A folder is built
aside and renamed, so two processes may build at once. Text is read and tokenised little at a time: a file may be larger
than the memory.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import shutil
import sys
import tempfile
import warnings
from array import array
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from dataclasses import field as field_of
from pathlib import Path
from typing import Any

import numpy as np

from lab.data.corpora import CorpusSource, Piece, Texts, open_source
from lab.data.files import CHUNK, replace_whole, settled
from lab.data.tokenizer import BYTES, Stretch, Tokenizer, cut_up, load_tokenizer, stretched, tokenizer_identity
from lab.ground.errors import RecipeError
from lab.ground.files import located, working_folder

FORMAT = 2
SPLITS = ("train", "validation")
BATCH = 1 << 20  # characters tokenised at a time
NAMED = 3  # files that are left out and named in a note


@dataclass(frozen=True)
class Tokens:
    """One split, memory-mapped: token ``ids`` [T], and for every document its first token and its domain [D]."""

    ids: np.ndarray  # uint8, uint16 or uint32, by the size of the vocabulary
    doc_start: np.ndarray  # int64, increasing from 0
    doc_domain: np.ndarray  # int32, index in Corpus.domains

    def __repr__(self) -> str:
        """Sizes, not contents."""
        return f"Tokens({len(self.ids):,} tokens of {self.ids.dtype}, {len(self.doc_start):,} documents)"


@dataclass(frozen=True)
class Corpus:
    """A tokenised corpus.

    ``bytes_per_token`` is that of the validation text, so that a loss of x nats per token is
    ``x / ln 2 / bytes_per_token`` bits per byte; the token that ends a document counts as one byte.

    ``floor_bits`` is the least expected loss of any model, in bits per token, where the source knows it (``grammar``
    with the bytes tokenizer): the mean of ``domain_floor_bits``, weighted by tokens of validation text. It is exact
    for long documents and a model that sees them from the start. What a window adds: its first tokens are predicted
    with less context (for order k, the entropy of k stationary symbols, and finding out the dialect, per window), and
    the end of a document costs about ``log2(length) + 1.5`` bits, some 0.002 bits per token.

    ``fingerprint`` is a hash of tokens, documents and domains: the same text and tokenizer give the same one.
    ``folder`` is the cache entry. ``left_out`` says which files are not part of it, and why.
    """

    spec: str
    tokenizer: str
    vocab_size: int
    domains: tuple[str, ...]
    train: Tokens
    validation: Tokens
    bytes_per_token: float
    floor_bits: float | None
    domain_floor_bits: dict[str, float] | None
    fingerprint: str
    folder: Path
    left_out: Mapping[str, str] = field_of(default_factory=dict)
    total_files: int = 0

    @property
    def note(self) -> str:
        """Which files are left out, by name and count; empty where all are there."""
        return _left_out(self.left_out, self.total_files) if self.left_out else ""

    def decode(self, ids: Any) -> str:
        """The text of token ids (any 1-D sequence of integers); bytes that are not UTF-8 become U+FFFD."""
        loaded = BYTES if self.tokenizer == "bytes" else _cached_tokenizer(str(self.folder / "tokenizer.json"))
        return loaded.decode(np.asarray(ids).ravel().tolist())


_cached_tokenizer = functools.lru_cache(maxsize=4)(load_tokenizer)  # for the files of cache entries: they never change


def load_corpus(spec: str, *, tokenizer: str = "bytes", cache: Path | None = None, progress: bool = False) -> Corpus:
    """Read, tokenise and cache the corpus that ``spec`` names (see ``CORPORA``), or open it from the cache.

    ``tokenizer`` is ``bytes`` (256 tokens; byte 0 ends a document), the path of a ``tokenizers`` JSON file, or
    ``hub:<model>``. With a tokenizer file the token that ends a document is its own end-of-text token, where it has
    one of the usual names. ``cache`` is the folder to keep tokens in, by default ``corpora`` in ``$ISTHMUS_CACHE`` or
    else in the user's cache folder. ``progress`` shows a bar on stderr for what takes longer than two seconds.

    A local source is read again when the stamp of a file changes: its size, its times or its inode (`lab.data.files` says
    what is trusted). A data set or tokenizer of the hub is read once per cache, whatever is uploaded later: name a
    ``revision`` to be sure of what is read.

    Warns of files that are left out because they are not UTF-8 text (`Corpus.left_out` has all of them).

    Raises RecipeError, one line, for anything wrong with the arguments, the text or the network.
    """
    corpus = read_corpus(spec, tokenizer=tokenizer, cache=cache, progress=progress)
    if corpus.note:
        warnings.warn(f"corpus {spec!r}: {corpus.note}", stacklevel=2)
    return corpus


def read_corpus(spec: str, *, tokenizer: str = "bytes", cache: Path | None = None, progress: bool = False) -> Corpus:
    """`load_corpus` for those who tell the user themselves what is left out."""
    place = _Place.of(spec, tokenizer, cache)
    found = place.remembered()
    if found is not None:
        return found
    try:
        place.memo.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="build-", dir=place.root, ignore_cleanup_errors=True) as folder:
            key, texts = _build(place, Path(folder), progress)
        about = {"key": key, "left_out": dict(texts.left_out), "total_files": texts.total}
        if place.settled:
            replace_whole(place.memo, json.dumps(about).encode())
    except OSError as error:
        where = error.filename or place.root
        raise RecipeError(
            f"corpus {spec!r}: {error.strerror or error} at {str(where)!r}: check that it can be read, "
            "and that the cache can be written (ISTHMUS_CACHE names another folder)"
        ) from error
    corpus = place.open(about)
    if corpus is None:
        raise RecipeError(f"corpus {spec!r}: cache entry {str(place.root / key)!r} is broken: remove it and try again")
    return corpus


def text_files(spec: str, *, tokenizer: str = "bytes", cache: Path | None = None) -> tuple[str | None, dict[str, str]]:
    """What a corpus is without tokenising it: the name of its cache entry, and digests by name of the files of text and of
    the tokenizer that it is made from.

    The name is None where it is only known once the text was read, which for a data set of the hub may take a network.
    Raises RecipeError as `load_corpus` does.
    """
    place, content = _Place.of(spec, tokenizer, cache), load_tokenizer(tokenizer).content
    cut_by = {} if content is None else {tokenizer: _hash(content)}
    if place.source.files is None:
        found = place.remembered()
        return (found.folder.name if found is not None else None), cut_by
    try:
        texts = place.source.files.scan(place.files)
    except OSError as error:
        raise RecipeError(f"corpus {spec!r}: {error.strerror or error} at {str(error.filename)!r}") from error
    return _key(texts.content(), content, None), texts.digests() | cut_by


@dataclass(frozen=True)
class _Place:
    """Where in the cache a corpus is, or will be."""

    spec: str
    tokenizer: str
    source: CorpusSource
    root: Path
    memo: Path
    settled: bool  # whether the stamps that it is remembered by can be trusted

    @classmethod
    def of(cls, spec: str, tokenizer: str, cache: Path | None) -> _Place:
        source, cut_by = open_source(spec), tokenizer_identity(tokenizer)
        root = Path(cache) if cache is not None else cache_folder("corpora")
        name = _hash(json.dumps([FORMAT, source.identity, cut_by]))
        stamps = [*source.stamps, *([cut_by] if len(cut_by) > 1 else [])]
        return cls(spec, tokenizer, source, root, root / "memo" / name, settled(stamps))

    @property
    def files(self) -> Path:
        """What is in each file, under its stamp."""
        return self.memo.with_name(f"{_hash(json.dumps([self.spec, str(working_folder())]))}.files")

    def remembered(self) -> Corpus | None:
        """The corpus, if the cache has it."""
        try:
            about = json.loads(self.memo.read_bytes())
            return self.open(about) if self.settled and isinstance(about["key"], str) else None
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def open(self, about: Mapping[str, Any]) -> Corpus | None:
        """The corpus of an entry, with what the memo says of the files."""
        return _open(self.root / about["key"], self.spec, self.tokenizer, about)


def _left_out(names: Mapping[str, str], total: int) -> str:
    named = [f"{name!r} ({why})" for name, why in list(names.items())[:NAMED]]
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return f"{len(names)} of {total} files are left out, they are not UTF-8 text: {', '.join(named)}{more}"


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()


def _key(content: Any, tokenizer: str | None, floors: dict[str, float] | None) -> str:
    return _hash(json.dumps([FORMAT, tokenizer, floors, content]))


def cache_folder(kind: str) -> Path:
    """Where things of one kind are kept: below $ISTHMUS_CACHE, or else below the user's cache folder."""
    root = os.environ.get("ISTHMUS_CACHE")
    if not root:
        import platformdirs

        root = platformdirs.user_cache_dir("isthmus")
    return located(root) / kind


def _open(entry: Path, spec: str, tokenizer: str, about: Mapping[str, Any]) -> Corpus | None:
    """The corpus in a cache entry, or None where the entry is missing, torn or truncated."""
    try:
        meta = json.loads((entry / "meta.json").read_text())
        if any((entry / file).stat().st_size != size for file, size in meta.pop("sizes").items()):
            return None
        dtype = np.dtype(meta.pop("dtype"))
        meta["domains"] = tuple(meta["domains"])
        for split in SPLITS:
            start, domain = np.fromfile(entry / f"{split}.documents", np.int64).reshape(2, -1)
            ids = np.memmap(entry / f"{split}.tokens", dtype, "r")
            meta[split] = Tokens(ids, start, domain.astype(np.int32))
        files = {"left_out": about.get("left_out", {}), "total_files": about.get("total_files", 0)}
        return Corpus(spec=spec, tokenizer=tokenizer, folder=entry, **meta, **files)
    except (OSError, ValueError, KeyError, TypeError):
        return None


class _Bars:
    """Bars of progress on stderr, or nothing: in a terminal all the time, elsewhere a line now and then."""

    def __init__(self, spec: str, shown: bool):
        self.spec, self.shown = spec[:40], shown

    @contextlib.contextmanager
    def bar(self, what: str, unit: str, total: int | None = None) -> Iterator[Callable[[int], object]]:
        """What is called with how much more is done."""
        from tqdm import tqdm

        live = sys.stderr.isatty()
        wait = 0.1 if live else 20.0  # seconds between two words on how far it is
        with tqdm(
            desc=f"{what} {self.spec}", total=total, unit=unit, unit_scale=unit == "B", delay=2 if live else wait,
            mininterval=wait, maxinterval=max(10.0, wait), disable=not self.shown,
        ) as shown:  # fmt: skip
            yield shown.update


def _build(place: _Place, folder: Path, progress: bool) -> tuple[str, Texts]:
    """Make the cache entry of a source, working in ``folder``: its key, and what is known of its files."""
    source, bars = place.source, _Bars(place.spec, progress)
    loaded = load_tokenizer(place.tokenizer)
    floors = source.floors() if source.floors is not None and loaded is BYTES else None
    entry = folder / "entry"
    entry.mkdir()
    texts = Texts([])
    if source.files is not None:
        size = sum(at[1] for at in source.stamps)
        with bars.bar("reading", "B", size) as read:
            texts = source.files.scan(place.files, read)
        key = _key(texts.content(), loaded.content, floors)
        if _open(place.root / key, place.spec, place.tokenizer, {}) is not None:
            return key, texts
        if not texts.kept and texts.left_out:
            raise RecipeError(f"corpus {place.spec!r} has no text to read: {_left_out(texts.left_out, texts.total)}")
        with bars.bar("tokenising", "B", size) as read:
            meta = _write(texts.pieces(read), loaded, entry, floors, place.spec)
    else:
        content = hashlib.sha256()
        with bars.bar("tokenising", " documents") as read:
            meta = _write(_whole(source, content, read), loaded, entry, floors, place.spec)
        key = _key(content.hexdigest(), loaded.content, floors)
    if loaded.content is not None:
        (entry / "tokenizer.json").write_text(loaded.content, encoding="utf-8")
    meta["sizes"] = {file.name: file.stat().st_size for file in entry.iterdir()}
    (entry / "meta.json").write_text(json.dumps(meta))
    for _ in range(2):
        try:
            os.rename(entry, place.root / key)
            break
        except OSError:  # there is one: of another process, or a broken one
            if _open(place.root / key, place.spec, place.tokenizer, {}) is not None:
                break
            shutil.rmtree(place.root / key, ignore_errors=True)
    return key, texts


def _whole(source: CorpusSource, content: Any, read: Callable[[int], object]) -> Iterator[Piece]:
    """The documents of a source that has them whole, which go into the hash ``content``."""
    for doc in source.documents():
        text = doc.text.encode("utf-8", errors="replace").decode("utf-8")  # lone surrogates of JSON data
        content.update(json.dumps([doc.domain, text, doc.held_out]).encode())  # text is the same whatever its name
        read(1)
        yield Piece(doc.domain, text, doc.held_out, True)


class _Split:
    """One split on its way to the disk: tokens as they come, and length, domain and bytes of every document."""

    def __init__(self, entry: Path, name: str):
        self.name, self.documents = name, entry / f"{name}.documents"
        self.file = open(entry / f"{name}.tokens", "wb")
        self.rows = array("q")  # three numbers of each document
        self.length = self.bytes = 0  # of the document that is being written

    def add(self, ids: np.ndarray, num_bytes: int) -> None:
        self.file.write(ids.tobytes())
        self.length, self.bytes = self.length + len(ids), self.bytes + num_bytes

    def end(self, domain: int) -> None:
        self.rows.extend((self.length, domain, self.bytes))
        self.length = self.bytes = 0

    def close(self, rank: np.ndarray) -> np.ndarray:
        """Write down the documents, whose domains get the numbers ``rank``; int64 [length, domain, bytes][documents]."""
        self.file.close()
        length, domain, size = np.frombuffer(self.rows, np.int64).reshape(-1, 3).T
        place = rank[domain]
        np.stack([np.cumsum(length) - length, place])[:, length > 0].tofile(self.documents)
        return np.stack([length, place, size])


def _write(
    pieces: Iterator[Piece], loaded: Tokenizer, entry: Path, floors: dict[str, float] | None, spec: str
) -> dict[str, Any]:
    """Write the tokens and documents of both splits to ``entry``; returns what ``meta.json`` says of them."""
    splits = {name: _Split(entry, name) for name in SPLITS}
    with contextlib.ExitStack() as files:
        for split in splits.values():
            files.callback(split.file.close)
        domains = _write_tokens(pieces, loaded, splits)
        if not domains:
            raise RecipeError(f"corpus {spec!r} has no text to read: name UTF-8 text that is not empty")
        names = sorted(domains)
        rank = np.empty(len(names), np.int64)
        rank[[domains[name] for name in names]] = np.arange(len(names))
        digest = hashlib.sha256(json.dumps([str(loaded.dtype), names]).encode())
        for split in splits.values():  # the last one, validation, is also the one that is described
            length, place, num_bytes = split.close(rank)
            if not length.sum():
                raise RecipeError(f"corpus {spec!r} has no {split.name} text: give it more text")
            for file in (entry / f"{split.name}.tokens", split.documents):
                with open(file, "rb") as written:
                    while data := written.read(CHUNK):
                        digest.update(data)
    weights = np.bincount(place, weights=length, minlength=len(names)) / length.sum()
    return {
        "dtype": str(loaded.dtype),
        "vocab_size": loaded.vocab_size,
        "domains": names,
        "bytes_per_token": float(num_bytes.sum() / length.sum()),
        "floor_bits": None if floors is None else float(weights @ [floors[d] for d in names]),
        "domain_floor_bits": floors,
        "fingerprint": digest.hexdigest(),
    }


def _write_tokens(pieces: Iterator[Piece], loaded: Tokenizer, splits: Mapping[str, _Split]) -> dict[str, int]:
    """Tokenise all documents, many at a time, each into its split; the number of every domain, by first appearance."""
    domains: dict[str, int] = {}
    end = loaded.encode([""])[0]
    waiting: list[tuple[Stretch, _Split, int | None]] = []  # the domain of a document that ends here

    def flush() -> None:
        found = stretched([stretch for stretch, _, _ in waiting], loaded)
        for (stretch, split, domain), ids in zip(waiting, found, strict=True):
            split.add(ids, len(stretch.text.encode()))
            if domain is not None:
                split.add(end, len(end))
                split.end(domain)
        waiting.clear()

    size = 0
    while (first := next(pieces, None)) is not None:
        split = splits[SPLITS[first.held_out]]
        number = domains.setdefault(first.domain, len(domains))
        before: Stretch | None = None
        for stretch in cut_up(_one_document(first, pieces), loaded):
            if before is not None:
                waiting.append((before, split, None))
            before, size = stretch, size + len(stretch.text) + 64
            if size > BATCH:
                flush()
                size = 0
        assert before is not None
        waiting.append((before, split, number))
    flush()
    return domains


def _one_document(first: Piece, rest: Iterator[Piece]) -> Iterator[str]:
    """The text of one document, of which ``first`` was taken already."""
    piece = first
    while True:
        yield piece.text
        if piece.ends:
            return
        piece = next(rest)
