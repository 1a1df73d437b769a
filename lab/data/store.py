"""Corpora as memory-mapped tokens in a cache that is keyed by content.

Two levels make a warm start fast. ``memo/<hash of options, file sizes and times>`` holds the key of an entry; the key
is a hash of every document, the tokenizer and the format, so touching a file costs a read but no tokenising. An entry
is a folder: the tokens of both splits, their documents, ``tokenizer.json`` where there is one, and ``meta.json``
with the size of every file, written last. A folder is built aside and renamed, so two processes may build at once.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lab.data.corpora import Document, Source, open_source
from lab.data.tokenizer import BYTES, load_tokenizer, tokenizer_identity
from lab.errors import RecipeError
from lab.places import located

FORMAT = 1
SPLITS = ("train", "validation")
BATCH = 64  # documents tokenised at a time


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
    ``folder`` is the cache entry.
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

    A local source is read again when the size or the time of a file changes. A data set or tokenizer of the hub is
    read once per cache, whatever is uploaded later: name a ``revision`` to be sure of what is read.

    Raises RecipeError, one line, for anything wrong with the arguments, the text or the network.
    """
    source = open_source(spec)
    root = Path(cache) if cache is not None else cache_folder("corpora")
    name = json.dumps([FORMAT, source.identity, tokenizer_identity(tokenizer)])
    memo = root / "memo" / hashlib.sha256(name.encode(errors="surrogatepass")).hexdigest()
    with contextlib.suppress(OSError):
        found = _open(root / memo.read_text(), spec, tokenizer)
        if found is not None:
            return found
    try:
        memo.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="build-", dir=root, ignore_cleanup_errors=True) as folder:
            key = _build(spec, source, tokenizer, root, Path(folder), progress)
            note = Path(folder) / "memo"
            note.write_text(key)
            os.replace(note, memo)
    except OSError as error:
        place = error.filename or root
        raise RecipeError(
            f"corpus {spec!r}: {error.strerror or error} at {str(place)!r}: check that it can be read, "
            "and that the cache can be written (ISTHMUS_CACHE names another folder)"
        ) from error
    corpus = _open(root / key, spec, tokenizer)
    if corpus is None:
        raise RecipeError(f"corpus {spec!r}: cache entry {str(root / key)!r} is broken: remove it and try again")
    return corpus


def cache_folder(kind: str) -> Path:
    """Where things of one kind are kept: below $ISTHMUS_CACHE, or else below the user's cache folder."""
    root = os.environ.get("ISTHMUS_CACHE")
    if not root:
        import platformdirs

        root = platformdirs.user_cache_dir("isthmus")
    return located(root) / kind


def _open(entry: Path, spec: str, tokenizer: str) -> Corpus | None:
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
        return Corpus(spec=spec, tokenizer=tokenizer, folder=entry, **meta)
    except (OSError, ValueError, KeyError, TypeError):
        return None


@contextlib.contextmanager
def _quiet_datasets() -> Iterator[Any]:
    """``datasets`` without its own progress bars."""
    import datasets

    shown = datasets.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    try:
        yield datasets
    except datasets.exceptions.DatasetGenerationError as error:
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, (RecipeError, OSError)):
            cause = cause.__cause__
        raise cause or error from None
    finally:
        if shown:
            datasets.enable_progress_bars()


def _build(spec: str, source: Source, tokenizer: str, root: Path, folder: Path, progress: bool) -> str:
    """Make the cache entry of ``source``, working in ``folder``, and return its key."""
    from tqdm import tqdm

    loaded = load_tokenizer(tokenizer)
    floors = source.floors() if source.floors is not None and loaded is BYTES else None
    config = [FORMAT, loaded.content, floors]
    digest = hashlib.sha256(json.dumps(config).encode())
    domains: set[str] = set()

    def bar(what: str, total: int | None = None) -> Any:
        return tqdm(desc=f"{what} {spec}", total=total, unit=" documents", delay=2, disable=not progress)

    def read() -> Iterator[dict[str, Any]]:
        with bar("reading") as shown:
            for doc in source.documents():
                text = doc.text.encode("utf-8", errors="replace").decode("utf-8")  # lone surrogates of JSON data
                doc = doc._replace(text=text)
                digest.update(json.dumps(doc[1:]).encode())  # not the name: text is the same wherever it lies
                domains.add(doc.domain)
                shown.update()
                yield doc._asdict()
        if not domains:  # datasets cannot hold nothing
            raise RecipeError(f"corpus {spec!r} has no text to read: name UTF-8 text that is not empty")

    with _quiet_datasets() as hf:
        features = hf.Features({f: hf.Value("bool" if f == "held_out" else "large_string") for f in Document._fields})
        dataset = hf.Dataset.from_generator(
            read, features=features, cache_dir=str(folder / "text"), fingerprint=uuid.uuid4().hex
        )
        key = digest.hexdigest()
        if _open(root / key, spec, tokenizer) is not None:
            return key
        order = {domain: i for i, domain in enumerate(sorted(domains))}

        with bar("tokenising", len(dataset)) as shown:

            def tokenise(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
                shown.update(len(batch["text"]))
                size = [len(text.encode("utf-8")) + loaded.ends for text in batch["text"]]
                return {
                    "ids": loaded.encode(batch["text"]),
                    "bytes": size,
                    "domain": [order[d] for d in batch["domain"]],
                }

            features = hf.Features(
                {"ids": hf.LargeList(hf.Value(str(loaded.dtype))), "held_out": hf.Value("bool")}
                | {c: hf.Value("int64") for c in ("bytes", "domain")}
            )
            dataset = dataset.map(
                tokenise, batched=True, batch_size=BATCH, writer_batch_size=BATCH, features=features,
                remove_columns=["name", "text"], new_fingerprint=uuid.uuid4().hex,
            )  # fmt: skip
            entry = folder / "entry"
            entry.mkdir()
            meta = {"dtype": str(loaded.dtype), "vocab_size": loaded.vocab_size, "domains": list(order)}
            meta |= _write(dataset, entry, loaded.dtype, list(order), floors, spec)
    if loaded.content is not None:
        (entry / "tokenizer.json").write_text(loaded.content, encoding="utf-8")
    meta["sizes"] = {file.name: file.stat().st_size for file in entry.iterdir()}
    (entry / "meta.json").write_text(json.dumps(meta))
    for _ in range(2):
        try:
            os.rename(entry, root / key)
            break
        except OSError:  # there is one: of another process, or a broken one
            if _open(root / key, spec, tokenizer) is not None:
                break
            shutil.rmtree(root / key, ignore_errors=True)
    return key


def _write(
    dataset: Any, entry: Path, dtype: np.dtype, domains: list[str], floors: dict[str, float] | None, spec: str
) -> dict[str, Any]:
    """Write the tokens and documents of both splits to ``entry``; returns what ``meta.json`` says of them."""
    held_out = np.asarray(dataset.with_format("numpy")["held_out"][:])
    digest = hashlib.sha256(json.dumps([str(dtype), domains]).encode())
    for split in SPLITS:  # the last one, validation, is also the one that is described
        rows = [np.empty((3, 0), np.int64)]  # length, domain, bytes of every document
        part = dataset.select(np.flatnonzero(held_out == (split == "validation"))).with_format("arrow")
        with open(entry / f"{split}.tokens", "wb") as file:
            for table in part.iter(BATCH) if len(part) else ():
                ids = table["ids"].combine_chunks()
                data = ids.flatten().to_numpy(zero_copy_only=False).astype(dtype, copy=False)
                file.write(data)
                digest.update(data)
                rows.append(np.stack([np.diff(ids.offsets), table["domain"], table["bytes"]]))
        length, place, size = np.concatenate(rows, axis=1)
        if not length.sum():
            raise RecipeError(f"corpus {spec!r} has no {split} text: give it more text")
        documents = np.stack([np.cumsum(length) - length, place])[:, length > 0]
        digest.update(documents.tobytes())
        documents.tofile(entry / f"{split}.documents")
    weights = np.bincount(place, weights=length, minlength=len(domains)) / length.sum()
    return {
        "bytes_per_token": float(size.sum() / length.sum()),
        "floor_bits": None if floors is None else float(weights @ [floors[d] for d in domains]),
        "domain_floor_bits": floors,
        "fingerprint": digest.hexdigest(),
    }
