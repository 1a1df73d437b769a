"""Text to tokens and back: bytes, or any file of the ``tokenizers`` library."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lab.data.corpora import stamp
from lab.errors import RecipeError
from lab.places import located

ENDS = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "[EOS]", "[SEP]")  # what tokenizers call end of text


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


def load_tokenizer(name: str) -> Tokenizer:
    """``bytes``, the path of a ``tokenizers`` JSON file, or ``hub:<model>``.

    Truncation and padding that a file asks for are turned off. Raises RecipeError where it cannot be read.
    """
    if name == "bytes":
        return BYTES
    tokenizer_identity(name)  # for its error
    import tokenizers

    try:
        if name.startswith("hub:"):
            loaded = tokenizers.Tokenizer.from_pretrained(name.removeprefix("hub:"))
        else:
            loaded = tokenizers.Tokenizer.from_file(str(located(name)))
    except Exception as error:  # the library raises plain Exception for a bad file
        reason = " ".join(str(error).split())[:200]
        raise RecipeError(
            f"cannot read tokenizer {name!r} ({reason}): check the name and the network (this machine may be offline), "
            "or use bytes, which needs neither"
        ) from error
    loaded.no_truncation()
    loaded.no_padding()
    vocab_size = max(loaded.get_vocab(with_added_tokens=True).values()) + 1  # ids may have gaps
    end = next(([loaded.token_to_id(e)] for e in ENDS if loaded.token_to_id(e) is not None), [])

    def encode(texts: list[str]) -> list[np.ndarray]:
        encoded = loaded.encode_batch_fast(texts, add_special_tokens=False)
        return [np.array(e.ids + end, np.min_scalar_type(vocab_size - 1)) for e in encoded]

    def decode(ids: Sequence[int]) -> str:
        return str(loaded.decode(list(ids), skip_special_tokens=False))

    return Tokenizer(vocab_size, encode, decode, len(end), loaded.to_str())


def tokenizer_identity(name: str) -> list[Any]:
    """What a tokenizer is known by without reading it, JSON-able. Raises RecipeError for a file that does not exist."""
    if name == "bytes" or (name.startswith("hub:") and name != "hub:"):
        return [name]
    path = located(name)
    if not path.is_file():
        raise RecipeError(f"tokenizer {name!r} is not a file: use bytes, a tokenizer.json file, or hub:<model>")
    return [*stamp(path.resolve())]
