"""Text to tokens and back: bytes, or any file of the ``tokenizers`` library.

A text of any length becomes tokens little at a time (`cut_up`). It is cut where the tokens on both sides are those of the
whole, which is tried out on the characters around the place.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from lab.data import hub
from lab.data.files import expanded, stamp
from lab.ground.errors import RecipeError

ENDS = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "[EOS]", "[SEP]")  # what tokenizers call end of text
MOST_IDS = 1_000_000  # ids may have gaps, but above this one at least an eighth of them is to be used
CUT = 1 << 17  # characters of a long text that become tokens at a time
AROUND = 256  # characters on each side that show whether a place is good for a cut
TRIES = 24  # places that are tried


@dataclass(frozen=True)
class Tokenizer:
    """A tokenizer; ``encode`` gives for every text its ids, of type ``dtype`` [T], with the end of document."""

    vocab_size: int
    encode: Callable[[list[str]], list[np.ndarray]]
    decode: Callable[[Sequence[int]], str]
    ends: int  # tokens that end a document, 0 or 1
    content: str | None = None  # the JSON of the tokenizer; None for bytes

    @property
    def dtype(self) -> np.dtype[Any]:
        """The smallest of uint8, uint16 and uint32 that holds every id."""
        return np.min_scalar_type(self.vocab_size - 1)


def _encode_bytes(texts: list[str]) -> list[np.ndarray]:
    return [np.frombuffer(text.encode("utf-8") + b"\0", np.uint8) for text in texts]


def _decode_bytes(ids: Sequence[int]) -> str:
    return np.asarray(ids).astype(np.uint8).tobytes().decode("utf-8", errors="replace")


BYTES = Tokenizer(256, _encode_bytes, _decode_bytes, 1)


class Stretch(NamedTuple):
    """Part of a text. ``context`` stands before it, so that it reads as in the whole, and has the tokens ``skip``."""

    text: str
    context: str = ""
    skip: tuple[int, ...] = ()


def bare(tokenizer: Tokenizer, texts: Sequence[str]) -> list[np.ndarray]:
    """Tokens of texts, without the end."""
    return [ids[: len(ids) - tokenizer.ends] for ids in tokenizer.encode(list(texts))]


def cut_up(chunks: Iterator[str], tokenizer: Tokenizer) -> Iterator[Stretch]:
    """A text that comes in chunks, as stretches of about `CUT` characters that can become tokens one by one.

    The tokens of all stretches (`stretched`) are those of the whole text, for any tokenizer that looks no further than
    `AROUND` characters. Where no place out of `TRIES` will do, as inside a word of a hundred thousand letters, it is cut
    all the same.
    """
    waiting, context = "", ""
    skip: tuple[int, ...] = ()
    for chunk in chunks:
        waiting += chunk
        at = 0
        while len(waiting) - at > 2 * CUT:
            here, after = _place(waiting, at, tokenizer)
            yield Stretch(waiting[at:here], context, skip)
            context, skip = ("", ()) if after is None else (waiting[here - AROUND : here], after)
            at = here
        waiting = waiting[at:]
    yield Stretch(waiting, context, skip)


def _place(text: str, at: int, tokenizer: Tokenizer) -> tuple[int, tuple[int, ...] | None]:
    """Where to cut after about `CUT` characters, and the tokens of the `AROUND` characters before; None: cut all the same.

    Best is before white space that follows something else.
    """
    last = at + CUT
    places = (p for p in range(last, last - CUT // 2, -1) if text[p].isspace() and not text[p - 1].isspace())
    tried = [p for p, _ in zip(places, range(TRIES // 2), strict=False)]
    tried += range(last, last - (TRIES - len(tried)), -1)
    if tokenizer.content is None:  # bytes: each character by itself
        return tried[0], None
    for here in tried:
        try:
            before, both = bare(tokenizer, [text[here - AROUND : here], text[here - AROUND : here + AROUND]])
        except RecipeError:  # part of a word, which it does not know
            continue
        if 0 < len(before) <= len(both) and (both[: len(before)] == before).all():
            return here, tuple(before.tolist())
    return tried[0], None


def stretched(stretches: Sequence[Stretch], tokenizer: Tokenizer) -> list[np.ndarray]:
    """The tokens of stretches, without the end of the text."""
    found = bare(tokenizer, [s.context + s.text for s in stretches])
    for i, (stretch, ids) in enumerate(zip(stretches, found, strict=True)):
        if stretch.context:
            goes_on = tuple(ids[: len(stretch.skip)].tolist()) == stretch.skip
            found[i] = ids[len(stretch.skip) :] if goes_on else bare(tokenizer, [stretch.text])[0]
    return found


def load_tokenizer(name: str) -> Tokenizer:
    """``bytes``, the path of a ``tokenizers`` JSON file, or ``hub:<model>``.

    Truncation, padding and dropout that a file asks for are turned off. Raises RecipeError where it cannot be read, has no
    tokens, or has ids that no model has room for; ``encode`` does so for a text that it has no tokens for.
    """
    if name == "bytes":
        return BYTES
    loaded = _read(name)
    loaded.no_truncation()
    loaded.no_padding()
    if getattr(loaded.model, "dropout", None) is not None:
        loaded.model.dropout = None  # the same text is to give the same tokens
    vocab_size = _vocab_size(name, loaded.get_vocab(with_added_tokens=True))
    end = next(([loaded.token_to_id(e)] for e in ENDS if loaded.token_to_id(e) is not None), [])

    def encode(texts: list[str]) -> list[np.ndarray]:
        try:
            encoded = loaded.encode_batch_fast(texts, add_special_tokens=False)
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt | SystemExit):
                raise
            raise RecipeError(
                f"tokenizer {name!r} has no tokens for this text ({' '.join(str(error).split())[:200]}): use one with an "
                "unknown token that is in its vocabulary, or bytes"
            ) from error
        return [np.array(e.ids + end, np.min_scalar_type(vocab_size - 1)) for e in encoded]

    def decode(ids: Sequence[int]) -> str:
        return str(loaded.decode(list(ids), skip_special_tokens=False))

    return Tokenizer(vocab_size, encode, decode, len(end), loaded.to_str())


def _read(name: str) -> Any:
    """A ``tokenizers.Tokenizer`` of a file or of the hub. Raises RecipeError where it cannot be read."""
    tokenizer_identity(name)  # for its error
    import tokenizers

    try:
        if name.startswith("hub:"):
            return tokenizers.Tokenizer.from_pretrained(name.removeprefix("hub:"))
        return tokenizers.Tokenizer.from_file(str(expanded(name, "tokenizer")))
    except BaseException as error:  # the library raises plain Exception for a bad file, and worse where it panics
        if isinstance(error, KeyboardInterrupt | SystemExit):
            raise
        if name.startswith("hub:"):
            what = hub.trouble(error)
        else:
            what = f"({' '.join(str(error).split())[:200]}): it is to be a tokenizer.json of the tokenizers library"
        raise RecipeError(f"cannot read tokenizer {name!r} {what}; or use bytes, which needs no file") from error


def _vocab_size(name: str, ids: Mapping[str, int]) -> int:
    """How many rows a model needs for these tokens. Raises RecipeError where there are none, or an id beyond all reason."""
    if not ids:
        raise RecipeError(f"tokenizer {name!r} has no tokens at all: use another file, or bytes")
    word, highest = max(ids.items(), key=lambda item: item[1])
    if highest >= max(MOST_IDS, 8 * len(ids)):
        raise RecipeError(
            f"tokenizer {name!r}: token {word[:40]!r} has the id {highest:,}, and there are {len(ids):,} tokens: a model has a "
            "row for every id up to the highest, so number them without such gaps"
        )
    return highest + 1  # ids may have gaps


def tokenizer_identity(name: str) -> list[Any]:
    """What a tokenizer is known by without reading it, JSON-able: its name, or the stamp of its file.

    Raises RecipeError for a file that does not exist.
    """
    if name == "bytes" or (name.startswith("hub:") and name != "hub:"):
        return [name]
    path = expanded(name, "tokenizer")
    if not path.is_file():
        raise RecipeError(f"tokenizer {name!r} is not a file: use bytes, a tokenizer.json file, or hub:<model>")
    return [*stamp(path.resolve())]
