"""One data set at several levels: who is a client is said by columns; inputs of several sensors are taken apart, and padded."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.data import TensorDataset

from lab.data.tasks.dealt import deal, digest_of
from lab.data.tasks.parts import Parts, apart, padded
from lab.data.tasks.sensors import Sensors
from lab.data.tasks.task import Examples, Task
from lab.data.tasks.tensors import Classification, from_dataset
from lab.recipes.recipe import Recipe
from lab.runs.data import training_data
from tests.support.texts import fails

RAGGED = (1, 3, 2)  # channels of three sensors
LEVELS = {"iid": 1, "by:person": 6, "by:person+room": 12, "by:person+sensor": 12}


def numbered(num: int) -> Tensor:
    """Windows ``[num, 6, 2]`` in which no two numbers are the same, and none is 0."""
    return 1 + torch.arange(float(num * 12)).view(num, 6, 2)


def shards(task: Task, split: str, num: int) -> list[list[Tensor]]:
    found = deal(task, num_workers=num, split=split, batch_size=1)
    order = found.batches.order
    return [list(found.batches.examples.take(torch.from_numpy(order.shards[w]))) for w in range(num)]


def test_padding_of_ragged_widths() -> None:
    """Sensors with 1, 3 and 2 channels, by hand: the second alone is in its own rows, or in the first three; both have six."""
    x = numbered(1)
    parts = dict(enumerate(x.split(list(RAGGED), 1)))
    own, left = (padded({1: parts[1]}, RAGGED, how) for how in ("concatenated", "shared"))  # type: ignore[arg-type]
    zero = [0.0, 0.0]
    assert own[0].tolist() == [zero, [3, 4], [5, 6], [7, 8], zero, zero]
    assert left[0].tolist() == [[3, 4], [5, 6], [7, 8], zero, zero, zero]
    both = padded({2: parts[2], 0: parts[0]}, RAGGED, "shared")
    assert both[0].tolist() == [[1, 2], [9, 10], [11, 12], zero, zero, zero]
    assert padded({2: parts[2], 0: parts[0]}, RAGGED)[0].tolist() == [[1, 2], zero, zero, zero, [9, 10], [11, 12]]
    for how in ("concatenated", "shared"):
        assert torch.equal(padded(parts, RAGGED, how), x)  # type: ignore[arg-type]


@given(
    st.lists(st.integers(1, 4), min_size=1, max_size=4), st.integers(0, 99), st.sampled_from(["concatenated", "shared"])
)
def test_what_is_taken_apart_is_all_there_once(sizes: list[int], seed: int, how: Any) -> None:
    """Each part that an example has, whole, with its number; no other number is in its input. From inputs padded in the same way."""
    g = torch.Generator().manual_seed(seed)
    present = torch.rand(5, len(sizes), generator=g) < 0.6
    present[0, 0] = True
    whole = 1 + torch.rand(5, sum(sizes), 2, generator=g)
    cut = whole.split(sizes, 1)
    rows = [
        padded({m: cut[m][e : e + 1] for m in range(len(sizes)) if present[e, m]}, sizes, how)
        if bool(present[e].any())
        else torch.zeros(1, sum(sizes), 2)
        for e in range(5)
    ]
    inputs, index, which = apart(torch.cat(rows), Parts("sensor", tuple(sizes), present, how))
    there = sorted(zip(index.tolist(), which.tolist(), strict=True))
    assert there == [(e, m) for e in range(5) for m in range(len(sizes)) if present[e, m]]
    for x, e, m in zip(inputs, index.tolist(), which.tolist(), strict=True):
        start = 0 if how == "shared" else sum(sizes[:m])
        assert torch.equal(x[start : start + sizes[m]], cut[m][e])
        assert int((x != 0).sum()) == 2 * sizes[m]


@pytest.mark.parametrize("padding", ["concatenated", "shared"])
def test_one_data_set_at_four_levels(padding: str) -> None:
    """Everybody's windows by person, by room and by sensor: the same ones each time, dealt in finer and finer parts."""
    task = Sensors(windows=5, padding=padding).task()
    everything = task.train.inputs
    for split, num in LEVELS.items():
        found = shards(task, split, num)
        assert len({len(y) for _, y in found}) == 1
        if split == "by:person+sensor":
            for person in range(6):
                (a, u), (b, v) = found[2 * person], found[2 * person + 1]
                assert torch.equal(u, v)
                both = torch.cat([a[:, :3], b[:, :2] if padding == "shared" else b[:, 3:]], 1)
                assert torch.equal(both, everything[task.train.columns["person"] == person])
                assert not a[:, 3:].any()
                assert not (b[:, 2:] if padding == "shared" else b[:, :3]).any()
        else:
            columns = [task.train.columns[name] for name in split.removeprefix("by:").split("+")] if num > 1 else []
            for w, (x, _) in enumerate(found):
                size = 1 if len(columns) < 2 else 2
                at = [w // size, w % size][: len(columns)]
                mine = torch.ones(len(everything), dtype=torch.bool)
                for column, value in zip(columns, at, strict=True):
                    mine &= column == value
                assert torch.equal(x, everything[mine])


def test_who_lacks_a_sensor_is_no_client_of_it() -> None:
    """People by turns have sensor 0, sensor 1, both: 8 of 12 clients are left, whatever the padding, each with its sensor's windows."""
    for padding in ("concatenated", "shared"):
        task = Sensors(windows=5, sensors_of=((0,), (1,), (0, 1)), padding=padding).task()
        found = deal(task, num_workers=8, split="by:person+sensor", batch_size=1)
        assert found.column_of is not None
        assert found.column_of("person") == [0, 1, 2, 2, 3, 4, 5, 5]
        assert found.column_of("sensor") == [0, 1, 0, 1, 0, 1, 0, 1]
        whole = Sensors(windows=5, padding=padding).task()
        for (x, _), sensor, person in zip(
            shards(task, "by:person+sensor", 8), found.column_of("sensor"), found.column_of("person"), strict=True
        ):
            everybody = shards(whole, "by:person+sensor", 12)
            assert torch.equal(x, everybody[2 * person + sensor][0])


def test_an_own_task_names_its_columns() -> None:
    """Examples with columns and parts; a dataset whose columns are read; texts count as sorted."""
    x, y = numbered(8), torch.tensor([0, 1] * 4)
    site, hour = torch.tensor([0, 0, 0, 0, 1, 1, 1, 1]), torch.tensor([0, 0, 1, 1] * 2)
    parts = Parts("sensor", RAGGED)
    task = Classification(Examples(x, y, columns={"site": site, "hour": hour}, parts=parts), (x, y))
    assert [len(b) for _, b in shards(task, "by:site+hour", 4)] == [2] * 4
    assert [len(b) for _, b in shards(task, "by:hour+sensor+site", 12)] == [2] * 12
    assert [len(b) for _, b in shards(task, "by:hour", 2)] == [4, 4]
    assert [len(b) for _, b in shards(task, "by:site+hour", 3)] == [4, 2, 2]  # fewer than groups: some have two
    assert digest_of(task, "iid") == digest_of(Classification((x, y), (x, y)), "iid")
    assert digest_of(task, "by:site") != digest_of(task, "iid")
    rows = TensorDataset(x, y, site, hour)
    assert [len(b) for _, b in shards(from_dataset(rows, rows, targets=1, columns=(2, 3)), "by:2+3", 4)] == [2] * 4
    part = from_dataset(rows, targets=1, columns=(2,), share=0.5)
    assert [part.train.columns["2"].tolist(), part.held_out.columns["2"].tolist()] == [
        (chosen.inputs[:, 0, 0] > x[3, 0, 0]).long().tolist() for chosen in (part.train, part.held_out)
    ]
    texts = [{"x": x[i], "y": int(y[i]), "site": "ba"[i // 4]} for i in range(8)]
    named = from_dataset(texts, texts, inputs="x", targets="y", columns=("site",))
    assert named.train.columns["site"].tolist() == [1] * 4 + [0] * 4


def test_a_run_says_its_level_in_the_recipe() -> None:
    """With what clients hold out: sensor by sensor as well."""
    r = Recipe.of(
        {"data": {"name": "sensors", "windows": 5}, "model": "conv1d", "split": "by:person+sensor", "num_workers": 12}
        | {"clients": {"held_out": 0.25}, "batch_size": 4}
    )
    data = training_data(r)
    assert data.held_out is not None
    assert data.column_of is not None
    for client, sensor in enumerate(data.column_of("sensor")):
        x, _ = data.held_out.take(data.held_out.shards[client])
        assert bool(x[:, :3].any()) == (sensor == 0)
        assert bool(x[:, 3:].any()) == (sensor == 1)


@pytest.mark.parametrize(
    ("split", "num", "message"),
    [
        ("by:person+sensor", 13, "split 'by:person.sensor' gives 12 groups to 13 workers: use at most 12 workers"),
        ("by:persn", 2, "split 'by:persn': unknown column of the examples 'persn': use one of person, room, sensor .did you mean"),
        ("by:", 2, "split 'by:': write by:<column>"),
        ("by:person+person", 2, "or several once each"),
    ],
)  # fmt: skip
def test_levels_that_cannot_be(split: str, num: int, message: str) -> None:
    with fails(message):
        deal(Sensors(windows=2).task(), num_workers=num, split=split, batch_size=1)


def test_what_does_not_go_together_is_said_in_one_line() -> None:
    x, y = numbered(4), torch.tensor([0, 1] * 2)
    with fails("have no column 'site', and no other: give .*Examples its columns"):
        deal(Classification((x, y), (x, y)), num_workers=2, split="by:site", batch_size=1)
    for columns, parts, message in (
        (
            {"site": torch.zeros(3, dtype=torch.long)},
            None,
            "train has a column 'site' of 3 values .torch.int64. for 4 examples: one integer each",
        ),
        ({"site": torch.zeros(4)}, None, "a column 'site' of 4 values .torch.float32. for 4 examples"),
        ({}, Parts("sensor", (1, 2)), "parts .sensor. of .1, 2. channels do not make up inputs of shape .4, 6, 2."),
        (
            {},
            Parts("sensor", RAGGED, torch.ones(4, 2, dtype=torch.bool)),
            "present has shape .4, 2. for 4 examples of 3",
        ),
        ({}, Parts("sensor", RAGGED, torch.zeros(4, 3, dtype=torch.bool)), "no example has any"),
    ):
        with fails(message):
            Classification(Examples(x, y, columns=columns, parts=parts), (x, y))
    for some, how, message in (
        ({}, "shared", "there is no part to be padded"),
        ({0: x}, "shared", "part 0 has shape .4, 6, 2.: parts are numbered 0 to 2, and have .1, 3, 2. channels"),
        ({0: x[:, :1]}, "left", "padding = 'left' is not allowed: use concatenated or shared"),
    ):
        with fails(message):
            padded(some, RAGGED, how)  # type: ignore[arg-type]
    found = deal(Sensors(windows=2).task(), num_workers=2, split="by:person", batch_size=1)
    assert found.column_of is not None
    with fails("client 0 has examples of person 0 and 2: use a split by person and as many clients as it gives"):
        found.column_of("person")
    with fails("it is what single examples are taken apart by: name it in the split, as in by:sensor"):
        found.column_of("sensor")


def test_text_has_no_columns() -> None:
    with fails("split 'by:person' goes by columns of examples, which text does not have: use domain"):
        training_data(Recipe.of({"corpus": "grammar?tokens=6000", "split": "by:person", "context": 8}))
