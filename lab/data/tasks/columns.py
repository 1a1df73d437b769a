"""Columns of a dataset as tensors: numbers, arrays, images, sounds, text; of torch or of Hugging Face ``datasets``.

Neither ``datasets`` nor Pillow is imported here: who has an object of theirs has imported them. Sound that is stored as a file needs
soundfile.
"""

from __future__ import annotations

import io
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lab.data.tasks.task import Normalisation
from lab.data.tokenizer import bare, load_tokenizer
from lab.ground.errors import RecipeError, one_of, shown

AT_ONCE = 512  # rows that are read together
Name = str | int  # of a column, or its place in a tuple


@dataclass(frozen=True)
class Column:
    """One value for each example, and what has to be known of them.

    values
        ``[E, *]``; or a list of texts.
    normalisation
        of pixels (0 to 1) and of sounds (−1 to 1), which are stored as integers.
    names
        of classes, where the dataset has them.
    """

    values: Tensor | list[str]
    normalisation: Normalisation | None = None
    names: tuple[str, ...] = ()


def is_hugging_face(data: Any) -> bool:
    """Whether it is an object of ``datasets``."""
    return type(data).__module__.split(".")[0] == "datasets"


def size_of(data: Any) -> int:
    """How many examples a dataset has. Raises RecipeError where it cannot say so, and where there are none."""
    try:
        size = len(data)
    except (TypeError, NotImplementedError):
        raise RecipeError(
            f"a {type(data).__name__} has no length: give a dataset whose examples can be counted and asked for by number (no stream; "
            "streaming=False)"
        ) from None
    if not size:
        raise RecipeError(f"the {type(data).__name__} has no examples: each part needs at least one")
    return size


def read_columns(
    data: Any, names: Sequence[Name], lengths: Mapping[Name, int] | None = None, pairs: bool = False
) -> dict[Name, Column]:
    """Some columns of a dataset.

    Parameters
    ----------
    data
        with a length and examples by number: of torch (tuples or mappings), or of ``datasets``.
    names
        of columns; of a dataset of tuples, places in them.
    lengths
        to which the last axis of a column is cut, or filled up with zeros.
    pairs
        whether tuples are to be pairs, as it was not said which of more are meant.

    Raises
    ------
    RecipeError
        one line, for a column that there is not, for values of different shapes, and for what is neither number, image, sound nor text.
    """
    read = _of_hugging_face if is_hugging_face(data) else _of_torch
    size = size_of(data)
    columns, class_names = read(data, names, pairs)
    return {
        name: _column(name, columns[name], size, (lengths or {}).get(name, 0), class_names.get(name, ()))
        for name in names
    }


def _of_torch(
    data: Any, names: Sequence[Name], pairs: bool
) -> tuple[dict[Name, Iterator[Any]], dict[Name, tuple[str, ...]]]:
    """Values of each column. Every example is made once (it may be dear, or drawn)."""
    tensors = getattr(data, "tensors", None)  # torch.utils.data.TensorDataset
    if isinstance(tensors, tuple) and all(isinstance(name, int) and name < len(tensors) for name in names):
        return {name: iter(tensors[int(name)]) for name in names}, {}
    found: dict[Name, list[Any]] = {name: [] for name in names}
    for i in range(len(data)):
        example = data[i]
        if pairs and not i:
            _check_pair(example)
        for name, values in found.items():
            values.append(_part_of(example, name, i))
    return {name: iter(values) for name, values in found.items()}, {}


def _check_pair(example: Any) -> None:
    if isinstance(example, tuple | list) and len(example) > 2:
        last = len(example) - 1
        raise RecipeError(
            f"an example has {last + 1} parts, and it was not said which are inputs and targets: give their places, for example "
            f"from_dataset(…, inputs=0, targets={last}, groups=1); a model with several inputs takes them as one tensor"
        )


def _part_of(example: Any, name: Name, i: int) -> Any:
    if isinstance(example, Mapping):
        if name not in example:
            raise RecipeError(one_of("column of the dataset", name, example))
        return example[name]
    if not isinstance(example, tuple | list) or not isinstance(name, int):
        raise RecipeError(
            f"example {i} of the dataset is a {type(example).__name__}, and column {name!r} is asked for: examples are tuples (columns by "
            "place: inputs=0, targets=1) or mappings (by name)"
        )
    if name >= len(example):
        raise RecipeError(
            f"example {i} of the dataset has {len(example)} parts: there is no part {name} (they count from 0)"
        )
    return example[name]


def _of_hugging_face(
    data: Any, names: Sequence[Name], pairs: bool
) -> tuple[dict[Name, Iterator[Any]], dict[Name, tuple[str, ...]]]:
    for name in names:
        if name not in data.column_names:
            raise RecipeError(one_of("column of the dataset", name, data.column_names))
    columns: dict[Name, Iterator[Any]] = {}
    class_names: dict[Name, tuple[str, ...]] = {}
    for name in names:
        feature = data.features[name]
        kind = type(feature).__name__
        if kind == "ClassLabel":
            class_names[name] = tuple(feature.names)
        rows = data.select_columns([name])
        if kind == "Audio":  # as it is stored: the library would need torchcodec and FFmpeg
            rows = rows.cast_column(name, type(feature)(decode=False))
        columns[name] = _rows(rows.with_format(None if kind in ("Image", "Audio") else "numpy"), str(name))
    return columns, class_names


def _rows(rows: Any, name: str) -> Iterator[Any]:
    for at in range(0, len(rows), AT_ONCE):
        try:
            some = rows[at : at + AT_ONCE][name]
        except Exception as error:  # of the library that decodes, or because it is not there
            hint = (
                "pip install 'isthmus[images]'"
                if isinstance(error, ImportError)
                else "repair or leave out what is damaged"
            )
            raise RecipeError(
                f"column {name!r} cannot be read from example {at} on ({type(error).__name__}: {' '.join(str(error).split())[:200]}): {hint}"
            ) from error
        yield from some


def _column(name: Name, values: Iterator[Any], size: int, length: int, class_names: tuple[str, ...]) -> Column:
    """All values, once each: written into one tensor as they come, or a list of texts."""
    first = next(values)
    if isinstance(first, str):
        texts = [first, *values]
        wrong = next((i for i, text in enumerate(texts) if not isinstance(text, str)), None)
        if wrong is not None:
            raise RecipeError(
                f"column {name!r} has text, and {shown(texts[wrong])} in example {wrong}: one kind of value alone"
            )
        return Column(texts)
    kind = _Kind(name)
    one = _fitted(kind.tensor(first, 0), length)
    whole = one.new_empty(size, *one.shape)
    for i, value in enumerate(itertools.chain([first], values)):
        tensor = _fitted(kind.tensor(value, i), length)
        if tensor.shape != one.shape or tensor.dtype != one.dtype:
            hint = "" if length or tensor.shape[:-1] != one.shape[:-1] else "; a length cuts or fills up the last axis"
            raise RecipeError(
                f"column {name!r} has shape {list(tensor.shape)} ({tensor.dtype}) in example {i} and {list(one.shape)} "
                f"({one.dtype}) in the first: all examples need the same{hint}"
            )
        whole[i] = tensor
    return Column(whole, kind.normalisation, class_names)


def _fitted(tensor: Tensor, length: int) -> Tensor:
    """With a last axis of this length (0: as it is): its beginning, or filled up with zeros."""
    if not length or not tensor.dim():
        return tensor
    tensor = tensor[..., :length]
    return torch.nn.functional.pad(tensor, (0, length - tensor.shape[-1]))


class _Kind:
    """What the values of a column are, by the first of them."""

    def __init__(self, name: Name):
        self.name = name
        self.normalisation: Normalisation | None = None
        self.rate: int | None = None  # samples a second

    def tensor(self, value: Any, i: int) -> Tensor:
        if type(value).__module__.split(".")[0] == "PIL":
            self.normalisation = Normalisation()
            return _pixels(value)
        if isinstance(value, Mapping) and "array" in value:
            self._same_rate(value.get("sampling_rate"), i)
            return self._numbers(value["array"], i).float()
        if isinstance(value, Mapping) and {"bytes", "path"} <= value.keys():
            self.normalisation = Normalisation(most=float(1 << 15))
            return self._sound(value, i)
        return self._numbers(value, i)

    def _numbers(self, value: Any, i: int) -> Tensor:
        try:
            return torch.as_tensor(np.asarray(value) if isinstance(value, list | tuple) else value)
        except (TypeError, ValueError, RuntimeError):
            raise RecipeError(
                f"column {self.name!r} has {shown(value)} in example {i}: it needs a number, an array, an image, a sound or text"
            ) from None

    def _sound(self, value: Mapping[str, Any], i: int) -> Tensor:
        """Samples of a file, int16 ``[channels, samples]``."""
        try:
            import soundfile
        except ImportError:
            raise RecipeError(
                "sound that is stored as files needs the package soundfile: pip install 'isthmus[audio]'"
            ) from None
        stored = value["bytes"]
        try:
            samples, rate = soundfile.read(
                io.BytesIO(stored) if stored is not None else value["path"], dtype="int16", always_2d=True
            )
        except (soundfile.LibsndfileError, OSError, TypeError) as error:
            raise RecipeError(
                f"column {self.name!r} has no sound that can be read in example {i} ({' '.join(str(error).split())})"
            ) from None
        self._same_rate(rate, i)
        return torch.from_numpy(samples.T.copy())

    def _same_rate(self, rate: int | None, i: int) -> None:
        if self.rate not in (None, rate):
            raise RecipeError(
                f"column {self.name!r} has {rate} samples a second in example {i} and {self.rate} in the first: resample them to one rate"
            )
        self.rate = rate


def _pixels(image: Any) -> Tensor:
    """Of an image of Pillow: uint8 ``[channels, height, width]``, of 1 channel where it is grey, else 3."""
    grey = image.mode in ("1", "L", "LA")
    pixels = torch.from_numpy(np.array(image.convert("L" if grey else "RGB")))
    return pixels[None] if grey else pixels.permute(2, 0, 1).contiguous()


def tokens_of(texts: Sequence[str], length: int, tokenizer: str = "bytes") -> Tensor:
    """Texts as ``length`` tokens each, int64 ``[E, length]``: the beginning of what is longer, 0 after the end of what is shorter.

    Raises RecipeError for a length below 1, and for a tokenizer that there is not.
    """
    if length < 1:
        raise RecipeError("text needs a length: how many tokens of each example are read")
    found = torch.zeros(len(texts), length, dtype=torch.int64)
    for row, ids in zip(found, bare(load_tokenizer(tokenizer), list(texts)), strict=True):
        row[: len(ids)] = torch.from_numpy(ids[:length].astype(np.int64))
    return found
