"""Any dataset as a task: of torch, of Hugging Face, in memory or written to disk in the formats of the data sets that have a name."""

from __future__ import annotations

import io
import wave
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from torch.utils.data import Dataset, IterableDataset, TensorDataset

from lab.data.tasks.hub_examples import PRESETS
from lab.data.tasks.registry import KNOWN, TASKS
from lab.data.tasks.tensors import Classification, Regression, fingerprint, from_dataset
from lab.ground.config.references import Call
from lab.ground.errors import RecipeError
from lab.recipes.recipe import Recipe
from lab.runs.data import make_task
from lab.runs.plan import plan
from tests.support.texts import fails

Image = pytest.importorskip("PIL.Image")
pytest.importorskip("soundfile")
X = torch.arange(40.0).view(10, 4)
Y = torch.tensor([0, 1] * 5)


class Rows(Dataset[Any]):
    """A map-style dataset of any examples; says how often it was asked for each."""

    def __init__(self, rows: list[Any]):
        self.rows = rows
        self.asked = [0] * len(rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> Any:
        self.asked[i] += 1
        return self.rows[i]


# --- datasets of torch ------------------------------------------------------------------------------------------------


def test_pairs_tensors_and_mappings_say_the_same() -> None:
    """Values are those of the dataset; every example is made once."""
    pairs = Rows([(X[i], int(Y[i])) for i in range(10)])
    triples = Rows([(X[i].numpy(), Y[i], i // 2) for i in range(10)])
    mappings = Rows([{"x": X[i].tolist(), "y": bool(Y[i]), "site": f"s{9 - i // 2}"} for i in range(10)])
    tasks = [
        from_dataset(pairs, TensorDataset(X, Y)),
        from_dataset(triples, triples, groups=2),
        from_dataset(mappings, mappings, inputs="x", targets="y", groups="site"),
        from_dataset(TensorDataset(X, Y, Y), TensorDataset(X, Y), targets=1),
    ]
    for task in tasks:
        assert isinstance(task, Classification)
        for part in (task.train, task.held_out):
            assert torch.equal(part.inputs.float(), X)
            assert torch.equal(part.targets, Y)
    assert tasks[1].train.groups.tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]  # type: ignore[union-attr]
    assert tasks[2].train.groups.tolist() == [4, 4, 3, 3, 2, 2, 1, 1, 0, 0]  # type: ignore[union-attr]  # as sorted
    assert pairs.asked == [1] * 10
    assert mappings.asked == [2] * 10  # it is both parts


def test_a_share_is_held_out_of_every_group_or_class() -> None:
    rows = Rows([(X[i], int(Y[i]), i // 5) for i in range(10)])
    by_class = from_dataset(rows, share=0.4, targets=1)
    assert np.bincount(by_class.held_out.targets).tolist() == [2, 2]
    by_group = from_dataset(rows, share=0.4, groups=2)
    assert by_group.held_out.groups is not None
    assert np.bincount(by_group.held_out.groups).tolist() == [2, 2]
    numbers = from_dataset(Rows([(X[i], X[i, 0]) for i in range(10)]), share=0.3, kind="regression")
    assert (len(numbers.train), len(numbers.held_out)) == (7, 3)
    found = sorted(torch.cat([numbers.train.targets, numbers.held_out.targets]).tolist())
    assert found == X[:, 0].tolist()
    assert fingerprint(from_dataset(rows, share=0.4, targets=1, seed=2)) != fingerprint(by_class)
    assert fingerprint(from_dataset(rows, share=0.4, targets=1)) == fingerprint(by_class)


def test_text_becomes_tokens_and_names_become_classes() -> None:
    rows = Rows([("cat", "b"), ("a dog", "a"), ("", "c")])
    task = from_dataset(rows, rows, length=4)
    assert isinstance(task, Classification)
    assert [bytes(row).decode() for row in task.train.inputs.tolist()] == ["cat\0", "a do", "\0\0\0\0"]
    assert task.train.targets.tolist() == [1, 0, 2]
    assert task.class_names == ("a", "b", "c")


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        return iter([(X[0], 0)])


PIXELS = Image.fromarray(np.zeros((2, 2, 3), np.uint8))


@pytest.mark.parametrize(
    ("train", "options", "message"),
    [
        (Stream(), {}, "a Stream has no length: give a dataset whose examples can be counted"),
        (Rows([]), {}, "the Rows has no examples"),
        (Rows([(X[0], 0), (X[0, :3], 1)]), {}, r"column 0 has shape \[3\] .* in example 1 and \[4\].*; a length cuts or fills up"),
        (Rows([(X[0], 0), (X[0].double(), 1)]), {}, "float64"),
        (Rows([(X[0],)]), {}, r"has 1 parts: there is no part 1 \(they count from 0\)"),
        (Rows([X[0]]), {}, "example 0 of the dataset is a Tensor, and column 0 is asked for"),
        (Rows([{"x": 1, "y": 2}]), {}, "unknown column of the dataset '0': use one of x, y"),
        (Rows([{"x": 1, "y": 2}]), {"inputs": "x", "targets": "z"}, "unknown column of the dataset 'z': use one of x, y"),
        (Rows([(object(), 0)]), {}, "column 0 has <object .* in example 0: it needs a number, an array, an image"),
        (Rows([("text", 0)]), {}, "text needs a length"),
        (Rows([("text", 0), (3, 1)]), {"length": 4}, "column 0 has text, and 3 in example 1"),
        (Rows([(X[0], "a"), (X[1], "b")]), {"kind": "regression"}, "a regression has numbers as targets, not text"),
        (Rows([(X[0], 0), (X[1], 1)]), {"kind": "ranking"}, "unknown kind of task 'ranking': use one of classification, regression"),
        (Rows([(X[i], i % 2) for i in range(8)]), {"share": 0.5, "mean": [0.5]}, "mean and std are for images and sounds"),
        (Rows([(X[0], 0), (X[1], 1)]), {"held_out": "test"}, "held_out = 'test' names a split, and a Rows has none"),
        (Rows([(X[0], 0), (X[1], 1)]), {}, "a share of 0.1 of 2 examples holds out none"),
        (Rows([(X[0], 0.5), (X[1], 1.5)]), {"share": 0.5}, r"the dataset has targets float32 \[E\]: classes are integers"),
        (Rows([(PIXELS, i % 2) for i in range(4)]), {"share": 0.5, "std": [0.5, 0.5]}, "std has 2 numbers, and the inputs have 3 channels"),
        (Rows([(X[0], -1), (X[1], -1)]), {"share": 0.5}, "class -1"),
    ],
)  # fmt: skip
def test_datasets_that_are_no_task(train: Any, options: Any, message: str) -> None:
    with fails(message):
        from_dataset(train, **options)


# --- datasets of Hugging Face -----------------------------------------------------------------------------------------


def test_a_dataset_of_hugging_face(tmp_path: Path) -> None:
    """Columns by name; numbers, lists and fixed arrays; names of classes; a split by name, or the one that is there."""
    features = datasets.Features(
        {
            "x": datasets.List(datasets.Value("float32"), length=4),
            "grid": datasets.Array2D((2, 2), "float32"),
            "y": datasets.ClassLabel(names=["no", "yes", "never"]),
            "who": datasets.Value("string"),
            "size": datasets.Value("int64"),
        }
    )
    rows = {
        "x": X.tolist(),
        "grid": X.view(10, 2, 2).tolist(),
        "y": Y.tolist(),
        "who": [f"w{i % 3}" for i in range(10)],
        "size": list(range(10)),
    }
    whole = datasets.Dataset.from_dict(rows, features=features)
    task = from_dataset(whole, whole, inputs="x", targets="y", groups="who")
    assert isinstance(task, Classification)
    assert torch.equal(task.train.inputs, X)
    assert task.class_names == ("no", "yes", "never")
    assert task.num_outputs == 3
    assert task.train.groups.tolist() == [i % 3 for i in range(10)]  # type: ignore[union-attr]
    both = datasets.DatasetDict({"train": whole, "validation": whole.select(range(4)), "other": whole.select(range(3))})
    found = from_dataset(both, inputs="grid", targets="size", kind="regression")
    assert isinstance(found, Regression)
    assert found.train.inputs.shape == (10, 2, 2)
    assert found.held_out.targets.tolist() == [0, 1, 2, 3]
    assert len(from_dataset(both, "other", inputs="x", targets="y").held_out) == 3
    for data, options, message in (
        (both, {"held_out": "test"}, "unknown split of the dataset 'test': use one of train, validation, other"),
        (datasets.DatasetDict({"a": whole}), {}, "unknown split of the dataset 'train': use one of a; or give two"),
        (whole, {"inputs": "z"}, "unknown column of the dataset 'z': use one of x, grid, y, who, size"),
        (whole, {}, "unknown column of the dataset '0'"),
        (whole.to_iterable_dataset(), {"inputs": "x", "targets": "y"}, "a IterableDataset has no length"),
    ):
        with fails(message):
            from_dataset(data, **options)


def test_an_unfinished_batch_of_rows_is_read_to_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lab.data.tasks.columns.AT_ONCE", 3)
    whole = datasets.Dataset.from_dict({"x": X.tolist(), "y": Y.tolist()})
    task = from_dataset(whole, whole, inputs="x", targets="y")
    assert torch.equal(task.train.inputs.float(), X)


# --- images -----------------------------------------------------------------------------------------------------------


def picture(i: int, grey: bool, size: int) -> Any:
    """Each pixel is its own number, moved on by i."""
    shape = (size, size) if grey else (size, size, 3)
    return Image.fromarray(((np.arange(np.prod(shape)) + i) % 256).astype(np.uint8).reshape(shape))


def write_images(
    folder: Path, image: str, label: str, num_classes: int, *, grey: bool = False, size: int = 32, **more: Any
) -> None:
    """Splits of 12 and 4 images as PNG in Parquet, as the hub has them."""
    features = datasets.Features(
        {image: datasets.Image(), label: datasets.ClassLabel(names=[f"c{i}" for i in range(num_classes)])}
        | {name: datasets.Value("string" if isinstance(values[0], str) else "int64") for name, values in more.items()}
    )
    for split, num in (("train", 12), ("test", 4)):
        rows = {image: [picture(i, grey, size) for i in range(num)], label: [i % 3 for i in range(num)]}
        rows |= {name: values[:num] for name, values in more.items()}
        table = datasets.Dataset.from_dict(rows, features=features)
        (folder / "data").mkdir(parents=True, exist_ok=True)
        table.to_parquet(str(folder / "data" / f"{split}-00000-of-00001.parquet"))


@pytest.fixture(autouse=True)
def own_cache_of_datasets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")


@pytest.mark.parametrize(
    ("name", "image", "label", "num_classes"),
    [("cifar10", "img", "label", 10), ("cifar100", "img", "fine_label", 100), ("svhn", "image", "label", 10)],
)
def test_colour_images_in_the_format_of_the_hub(
    name: str, image: str, label: str, num_classes: int, tmp_path: Path
) -> None:
    write_images(tmp_path / "here", image, label, num_classes, coarse_label=list(range(12)))
    # a folder has no configs of its own
    task = make_task(Call(f"hub:{name}", {"path": str(tmp_path / "here"), "config": "", "per_class": True}))
    assert isinstance(task, Classification)
    assert (len(task.train), len(task.held_out), task.num_outputs) == (12, 4, num_classes)
    assert KNOWN[f"hub:{name}"] == (task.train.inputs.shape[1:], task.num_outputs)
    assert task.train.inputs.dtype == torch.uint8
    assert task.train.targets.tolist() == [i % 3 for i in range(12)]
    assert task.class_names[2] == "c2"
    x, _ = task.train.take(torch.tensor([5]), torch.float64)
    mean, std = (torch.tensor(PRESETS[name][key], dtype=torch.float64) for key in ("mean", "std"))
    stored = torch.from_numpy(np.array(picture(5, False, 32))).double() / 255  # [height, width, channels]
    assert torch.allclose(x[0].permute(1, 2, 0), (stored - mean) / std, rtol=1e-12)
    assert (
        len(make_task(Call(f"hub:{name}", {"path": str(tmp_path / "here"), "config": "", "max_examples": 3})).train)
        == 3
    )


def test_characters_by_writer(tmp_path: Path) -> None:
    """One split; grey images; a share of every writer's is held out."""
    writers = [f"f{i // 4:04}_1" for i in range(12)]
    write_images(tmp_path, "image", "character", 62, grey=True, size=28, writer_id=writers, hsf_id=[0] * 12)
    (tmp_path / "data" / "test-00000-of-00001.parquet").unlink()
    task = make_task(Call("hub:femnist", {"path": str(tmp_path), "share": 0.25}))
    assert task.num_outputs == 62
    assert task.train.inputs.shape == (9, 1, 28, 28)
    assert KNOWN["hub:femnist"] == ((1, 28, 28), 62)
    assert task.train.groups is not None
    assert task.held_out.groups is not None
    assert np.bincount(task.train.groups).tolist() == [3, 3, 3]
    assert np.bincount(task.held_out.groups).tolist() == [1, 1, 1]
    x, _ = task.train.take(torch.arange(9))
    assert x.amin() == -1  # a pixel of 0, with mean and deviation of a half


def test_images_of_other_modes() -> None:
    """Palettes and transparency become colours, black and white becomes grey."""
    pixels = picture(0, False, 4)
    for image, channels in (
        (pixels.convert("RGBA"), 3),
        (pixels.convert("P"), 3),
        (pixels.convert("1"), 1),
        (pixels.convert("LA"), 1),
    ):
        task = from_dataset(rows := Rows([(image, 0), (image, 1)]), rows)
        assert task.train.inputs.shape == (2, channels, 4, 4)
    rgba = from_dataset(rows := Rows([(pixels.convert("RGBA"), 0)]), rows)
    assert torch.equal(rgba.train.inputs[0], torch.from_numpy(np.array(pixels)).permute(2, 0, 1))


def test_images_that_cannot_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """A damaged one, and any where Pillow is not installed: one line each."""
    rows = {"image": [{"bytes": b"no image", "path": None}], "label": [0]}
    damaged = datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image())
    with fails("column 'image' cannot be read from example 0 on .*cannot identify image.*repair or leave out"):
        from_dataset(damaged, damaged, inputs="image", targets="label")
    monkeypatch.setattr(datasets.config, "PIL_AVAILABLE", False)
    with fails(r"cannot be read .*ImportError.*pip install 'isthmus\[images\]'"):
        from_dataset(damaged, damaged, inputs="image", targets="label")


# --- sounds -----------------------------------------------------------------------------------------------------------


def wav(samples: np.ndarray, rate: int = 16_000) -> bytes:
    """A file of one channel, 16 bits."""
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(rate)
        out.writeframes(samples.astype("<i2").tobytes())
    return file.getvalue()


def spoken(num: int, rates: tuple[int, ...] = (16_000,)) -> Any:
    """Sounds of 6, 7, 8, … samples, each its own number, in the columns of Speech Commands."""
    rows = {
        "audio": [
            {"bytes": wav(np.arange(6 + i) * 100, rates[i % len(rates)]), "path": f"{i}.wav"} for i in range(num)
        ],
        "label": [i % 2 for i in range(num)],
        "speaker_id": [f"{i // 3:08x}" for i in range(num)],
    }
    table = datasets.Dataset.from_dict(rows).cast_column("label", datasets.ClassLabel(names=["yes", "no"]))
    return table.cast_column("audio", datasets.Audio(sampling_rate=16_000))


def test_sounds_in_the_format_of_the_hub(tmp_path: Path) -> None:
    """In a folder of a data set, as files; all of one length: cut, or filled up with silence."""
    for split in ("train", "test"):
        (tmp_path / "v0.02" / split).mkdir(parents=True)
        spoken(6).to_parquet(str(tmp_path / "v0.02" / split / "0000.parquet"))
    options = {"path": str(tmp_path), "revision": "", "length": 8}
    task = make_task(Call("hub:speech_commands", options))
    assert isinstance(task, Classification)
    assert task.train.inputs.shape == (6, 1, 8)
    assert task.train.inputs[0, 0].tolist() == [0, 100, 200, 300, 400, 500, 0, 0]
    assert task.train.inputs[5, 0].tolist() == [0, 100, 200, 300, 400, 500, 600, 700]
    assert task.train.take(torch.tensor([0]))[0][0, 0, 4].item() == pytest.approx(400 / 32768)
    assert task.train.groups.tolist() == [0, 0, 0, 1, 1, 1]  # type: ignore[union-attr]
    assert task.class_names == ("yes", "no")


def test_sounds_as_arrays() -> None:
    rows = [{"array": np.arange(5 + i) / 10, "sampling_rate": 8000} for i in range(3)]
    task = from_dataset(data := Rows([(rows[i], i) for i in range(3)]), data, length=6)
    assert task.train.inputs[0].tolist() == pytest.approx([0, 0.1, 0.2, 0.3, 0.4, 0])
    rows[2]["sampling_rate"] = 16_000
    with fails("has 16000 samples a second in example 2 and 8000 in the first: resample them"):
        from_dataset(data, data, length=6)


def test_sounds_that_cannot_be_read() -> None:
    with fails("has 8000 samples a second in example 1"):
        from_dataset(mixed := spoken(4, (16_000, 8000)), mixed, inputs="audio", targets="label", length=8)
    broken = Rows([({"bytes": b"nothing", "path": None}, 0)])
    with fails("column 0 has no sound that can be read in example 0"):
        from_dataset(broken, broken)


# --- text, names and the network --------------------------------------------------------------------------------------


def test_news_in_the_format_of_the_hub(tmp_path: Path) -> None:
    label = datasets.ClassLabel(names=["World", "Sports"])
    table = datasets.Dataset.from_dict({"text": ["One.", "Another one."], "label": [0, 1]}).cast_column("label", label)
    datasets.DatasetDict({"train": table, "test": table}).save_to_disk(str(tmp_path / "saved"))
    task = make_task(Call("hub:ag_news", {"path": str(tmp_path / "saved"), "length": 6}))
    assert [bytes(row) for row in task.train.inputs.tolist()] == [b"One.\0\0", b"Anothe"]
    assert task.num_outputs == 2


def test_any_data_set_by_its_columns(tmp_path: Path) -> None:
    """And what cannot be had is said in one line, with what needs no network."""
    whole = datasets.Dataset.from_dict({"a": X.tolist(), "b": X[:, 0].tolist()})
    datasets.DatasetDict({"train": whole}).save_to_disk(str(tmp_path / "saved"))
    options = {"path": str(tmp_path / "saved"), "inputs": "a", "targets": "b", "kind": "regression"}
    assert isinstance(make_task(Call("hub", options)), Regression)
    for changed, message in (
        ({"inputs": "c"}, "unknown column of .* 'c': use one of a, b"),
        ({"train": "dev"}, "unknown split of .* 'dev': use one of train"),
        ({"path": str(tmp_path / "nothing")}, "folder .* does not exist"),
        ({"path": "no name"}, "is no name on the hub"),
        ({"kind": "ranking"}, "data.kind = 'ranking' is not allowed"),
    ):
        with fails(message):
            make_task(Call("hub", options | changed))


@pytest.mark.parametrize("name", PRESETS)
def test_names_reach_the_library(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each preset asks for its own data set, version and splits; without a network that is one line."""
    asked: list[tuple[Any, ...]] = []

    def load_dataset(path: str, config: str | None, **options: Any) -> Any:
        asked.append((path, config, options["split"], options["revision"], options.get("data_dir")))
        raise ConnectionError("the line\nwent dead")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with fails(
        rf"cannot read split 'train' of '{PRESETS[name]['path']}' from the hub .*the line went dead.*need no network"
    ):
        make_task(Call(f"hub:{name}", {}))
    at = {"svhn": ("cropped_digits", None, None), "speech_commands": (None, "refs/convert/parquet", "v0.02")}
    config, revision, data_dir = at.get(name, (None, None, None))
    assert asked == [(PRESETS[name]["path"], config, "train", revision, data_dir)]


def test_a_plan_fetches_nothing_whose_shape_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """The weights of ResNet-18 for 32 × 32 colour images and ten classes are counted in many places: 11,173,962."""
    monkeypatch.setattr(datasets, "load_dataset", None)
    r = Recipe.of("sparsyfed_resnet18", ["steps=64"])
    assert r.data == Call("hub:cifar10", {})
    assert plan(r).num_params == 11_173_962


def test_names_of_the_hub_say_their_options() -> None:
    """Those that a name stands for are its defaults, to be replaced one by one."""
    with fails("unknown option of data hub:cifar10 'hold_out'.*did you mean 'held_out'"):
        make_task(Call("hub:cifar10", {"hold_out": "x"}))
    with fails("data hub needs path"):
        make_task(Call("hub", {}))
    with fails("unknown task 'hub:cifar'.*did you mean 'hub:cifar10'"):
        make_task(Call("hub:cifar", {}))
    assert {f"hub:{name}" for name in PRESETS} < TASKS.keys()


def test_which_of_three_is_the_target_has_to_be_said() -> None:
    """(inputs, weight, target): the second of three would be taken for classes without a word."""
    data = [(torch.ones(2), i % 3, i % 2) for i in range(40)]
    with pytest.raises(RecipeError, match=r"an example has 3 parts, and it was not said which .* targets=2, groups=1"):
        from_dataset(data)
    assert from_dataset(data, targets=2).num_outputs == 2
    assert from_dataset(data, targets=1).num_outputs == 3
    with pytest.raises(RecipeError, match="share = 25 is not allowed: it is the part that is held out"):
        from_dataset(data, targets=2, share=25)
