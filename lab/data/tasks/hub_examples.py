"""Images, sounds and texts with their classes, from the Hugging Face hub or in its format on this machine."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field

from lab.data import hub
from lab.data.tasks.registry import KNOWN, options_of
from lab.data.tasks.tensors import Classification, Regression, from_dataset
from lab.ground.config import config

# Mean and deviation of the channels of the examples to train on, as they are usually given, pixels from 0 to 1.
PRESETS: Mapping[str, Mapping[str, Any]] = {
    "cifar10": {
        "path": "uoft-cs/cifar10",
        "inputs": "img",
        "targets": "label",
        "held_out": "test",
        "mean": (0.4914, 0.4822, 0.4465),
        "std": (0.2470, 0.2435, 0.2616),
    },
    "cifar100": {
        "path": "uoft-cs/cifar100",
        "inputs": "img",
        "targets": "fine_label",
        "held_out": "test",
        "mean": (0.5071, 0.4865, 0.4409),
        "std": (0.2673, 0.2564, 0.2762),
    },
    "svhn": {
        "path": "ufldl-stanford/svhn",
        "config": "cropped_digits",
        "inputs": "image",
        "targets": "label",
        "held_out": "test",
        "mean": (0.4377, 0.4438, 0.4728),
        "std": (0.1980, 0.2010, 0.1970),
    },
    # One split alone; groups are those who wrote the characters.
    "femnist": {
        "path": "flwrlabs/femnist",
        "inputs": "image",
        "targets": "character",
        "groups": "writer_id",
        "mean": (0.5,),
        "std": (0.5,),
    },
    # The data set itself is a program, which nobody executes any more: what the hub made of it is in a branch, a folder a version.
    "speech_commands": {
        "path": "google/speech_commands",
        "data_dir": "v0.02",
        "revision": "refs/convert/parquet",
        "inputs": "audio",
        "targets": "label",
        "groups": "speaker_id",
        "held_out": "test",
        "length": 16_000,
    },
    "ag_news": {
        "path": "fancyzhx/ag_news",
        "inputs": "text",
        "targets": "label",
        "held_out": "test",
        "length": 256,
    },
}


@options_of("hub")
@config
class FromHub:
    """A data set of the Hugging Face hub, or a folder in its format: images, sounds, texts or numbers, with a class or a number each.

    Parameters
    ----------
    path, config, data_dir, revision
        ``owner/name`` or a folder; which part of it; which version.
    train, held_out
        splits. Without ``held_out``, ``share`` of the first is held out, drawn from ``seed``: of every group, or of every class.
    inputs, targets, groups
        columns. Classes and groups may be text.
    length, tokenizer
        samples or tokens of an example: see `lab.data.tasks.tensors.from_dataset`.
    mean, std
        of each channel, pixels counted from 0 to 1 (samples from −1 to 1); left out: as they are.
    max_examples
        the first so many of each split; 0: all.
    per_class
        scores have the recall of every class as well.
    """

    path: str
    config: str = ""
    data_dir: str = ""
    revision: str = ""
    train: str = "train"
    held_out: str = ""
    inputs: str = "image"
    targets: str = "label"
    groups: str = ""
    kind: Literal["classification", "regression"] = "classification"
    length: Annotated[int, Field(ge=0)] = 0
    tokenizer: str = "bytes"
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    share: Annotated[float, Field(gt=0, lt=1)] = 0.1
    seed: Annotated[int, Field(ge=0)] = 0
    max_examples: Annotated[int, Field(ge=0)] = 0
    per_class: bool = False

    def task(self) -> Classification | Regression:
        """Raises RecipeError for what cannot be had or read, and as `lab.data.tasks.tensors.from_dataset` does."""
        return from_dataset(
            *map(self._rows, filter(None, (self.train, self.held_out))),
            inputs=self.inputs,
            targets=self.targets,
            groups=self.groups or None,
            kind=self.kind,
            share=self.share,
            seed=self.seed,
            length=self.length,
            tokenizer=self.tokenizer,
            mean=self.mean,
            std=self.std,
            per_class=self.per_class,
        )

    def _rows(self, split: str) -> Any:
        """One split, with the columns that are needed."""
        local = hub.folder(self.path) is not None
        names = [name for name in (self.inputs, self.targets, self.groups) if name]
        what = f"cannot read split {split!r} of {self.path!r} from {'this folder' if local else 'the hub'}"
        with hub.reading(what, "tasks digits, mnist1d and sensors need no network", local):
            options = hub.Hub(config=self.config, revision=self.revision)
            rows, _ = hub.load(self.path, options, split, names, self.data_dir)
            return rows.select(range(min(self.max_examples or len(rows), len(rows))))


KNOWN |= {
    "hub:cifar10": ((3, 32, 32), 10),
    "hub:cifar100": ((3, 32, 32), 100),
    "hub:svhn": ((3, 32, 32), 10),
    "hub:femnist": ((1, 28, 28), 62),
}

for _name, _preset in PRESETS.items():
    options_of(f"hub:{_name}", _preset)(FromHub)
