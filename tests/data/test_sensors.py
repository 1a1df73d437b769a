"""The federation that is drawn: what sensors confuse, how people and rooms differ, who has which sensor."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from lab.data.tasks.sensors import Sensors, confused_pairs
from lab.data.tasks.task import Examples
from lab.data.tasks.tensors import Classification, fingerprint
from tests.support.texts import fails, run


def sensors(**options: Any) -> Classification:
    return Sensors(**options).task()


ALIKE: dict[str, Any] = {"person": 0.0, "room": 0.0, "noise": 0.0}  # nobody differs: only the activities do
BLOCKS = (slice(0, 3), slice(3, 5))  # the channels of sensors 0 and 1


def of(part: Examples, activity: int, group: int | None = None) -> Tensor:
    """Windows of one activity (and one group), ``[B, C, T]``."""
    there = part.targets == activity
    if group is not None:
        assert part.groups is not None
        there &= part.groups == group
    return part.inputs[there]


def spectra(task: Classification, sensor: int) -> list[Tensor]:
    """What a sensor sees of every activity but for when the window began: amplitudes by frequency, where all windows have the same."""
    found = []
    for activity in range(task.num_outputs):
        amplitude = torch.fft.rfft(of(task.train, activity)[:, BLOCKS[sensor]].double()).abs()
        assert torch.allclose(amplitude, amplitude[:1].expand_as(amplitude), atol=1e-3)
        found.append(amplitude[0])
    return found


def same(a: Tensor, b: Tensor) -> bool:
    return torch.allclose(a, b, atol=1e-3)


def test_sizes() -> None:
    """6 people in 2 rooms, 6 activities 20 times each, a fifth of them held out; 3 and 2 channels; a group is a person in a room."""
    task = sensors()
    assert task.train.inputs.shape == (6 * 2 * 6 * 16, 5, 64)
    assert task.held_out.inputs.shape == (6 * 2 * 6 * 4, 5, 64)
    assert task.class_names[:3] == ("stand", "sit", "lie down")
    for part, each in ((task.train, 16), (task.held_out, 4)):
        assert part.groups is not None
        assert part.groups.unique().tolist() == list(range(12))
        for group in range(12):
            assert torch.bincount(part.targets[part.groups == group]).tolist() == [each] * 6
    assert sensors(activities=8).class_names[-1] == "activity 7"


def test_what_a_sensor_confuses_looks_the_same_to_it() -> None:
    """Of each sensor two pairs of the six activities; all else differs, and what one confuses the other tells apart."""
    task = sensors(windows=5, **ALIKE)
    assert confused_pairs(0, 6) == [(0, 1), (2, 3)]
    assert confused_pairs(1, 6) == [(1, 2), (3, 4)]
    seen = [spectra(task, m) for m in (0, 1)]
    for a in range(6):
        for b in range(a + 1, 6):
            alike = [same(seen[m][a], seen[m][b]) for m in (0, 1)]
            assert alike == [(a, b) in confused_pairs(m, 6) for m in (0, 1)]
            assert not all(alike)


def test_without_confusion_no_two_activities_look_the_same() -> None:
    """And half of it is half way between, so that they differ less."""
    none, half, full = (sensors(windows=5, confusion=c, **ALIKE) for c in (0.0, 0.5, 1.0))
    for m in (0, 1):
        seen = spectra(none, m)
        assert not any(same(seen[a], seen[b]) for a in range(6) for b in range(a + 1, 6))
        for a, b in confused_pairs(m, 6):
            apart = [(spectra(task, m)[a] - spectra(task, m)[b]).norm() for task in (none, half, full)]
            assert apart[0] > apart[1] > apart[2] == pytest.approx(0, abs=1e-2)


@given(st.integers(2, 40), st.integers(0, 9))
def test_neighbouring_sensors_tell_everything_apart_together(activities: int, sensor: int) -> None:
    """Each activity is in one pair of a sensor at most, and no pair is confused by two sensors that follow each other."""
    one, other = (confused_pairs(m, activities) for m in (sensor, sensor + 1))
    assert len(one) == activities // 3
    assert len({a for pair in one for a in pair}) == 2 * len(one)
    assert not {frozenset(pair) for pair in one} & {frozenset(pair) for pair in other}


def test_a_room_shifts_what_is_seen_in_it() -> None:
    """Without tempos a wave has a mean of 0, so that the mean of a window is the shift: one for each room and channel, whoever is there."""
    task = sensors(windows=5, room=0.5, person=0.0, noise=0.0, rooms=3)
    assert task.train.groups is not None
    mean = task.train.inputs.double().mean(2)
    by_room = [mean[task.train.groups % 3 == r] for r in range(3)]
    for shifts in by_room:
        assert torch.allclose(shifts, shifts[:1].expand_as(shifts), atol=1e-5)
    assert not same(by_room[0][0], by_room[1][0])
    assert not same(by_room[1][0], by_room[2][0])


def test_people_differ_and_rooms_are_theirs_to_share() -> None:
    """With people alike all have the same spectra; else no two have."""
    alike, apart = sensors(windows=5, **ALIKE), sensors(windows=5, **ALIKE | {"person": 0.5})

    def seen(task: Classification, group: int) -> Tensor:
        return torch.fft.rfft(of(task.train, 0, group).double()).abs()[0]

    assert all(same(seen(alike, 0), seen(alike, group)) for group in range(12))
    assert all(same(seen(apart, 2 * p), seen(apart, 2 * q)) == (p == q) for p in range(6) for q in range(6))


def test_noise_is_of_the_deviation_that_is_asked_for() -> None:
    quiet, loud = (sensors(noise=noise) for noise in (0.0, 2.0))
    rest = (loud.train.inputs - quiet.train.inputs).double()
    assert rest.std().item() == pytest.approx(2, rel=0.01)  # of 368,640 numbers
    assert rest.mean().item() == pytest.approx(0, abs=0.02)


def test_who_has_no_sensor_sees_nothing_there() -> None:
    """People by turns have sensor 0, sensor 1 and both; held out are windows of all sensors, or as those to train on."""
    has = ((0,), (1,), (0, 1))
    for held_out_sensors in ("all", "own"):
        task = sensors(sensors_of=has, held_out_sensors=held_out_sensors)
        assert task.train.groups is not None
        assert task.held_out.groups is not None
        for p in range(6):
            mine = task.train.inputs[task.train.groups // 2 == p]
            held = task.held_out.inputs[task.held_out.groups // 2 == p]
            for m, block in enumerate(BLOCKS):
                assert bool(mine[:, block].any(1).all()) == (m in has[p % 3])
                assert bool(mine[:, block].any()) == (m in has[p % 3])
                assert bool(held[:, block].any()) == (m in has[p % 3] or held_out_sensors == "all")
    assert torch.equal(
        task.train.inputs[-1], sensors().train.inputs[-1]
    )  # what is seen does not depend on who sees the rest


def test_a_sensor_of_a_person_can_be_a_group_of_its_own() -> None:
    """Sensor-level privacy: each window once for each sensor, with the channels of the others empty; the full test has all of them."""
    whole, apart = sensors(), sensors(groups="person-sensor", held_out_sensors="own")
    assert len(apart.train) == 2 * len(whole.train)
    assert len(apart.held_out) == 2 * len(whole.held_out)
    for task in (apart, sensors(groups="person-sensor")):
        assert task.train.groups is not None
        assert task.train.groups.unique().tolist() == list(range(12))
        for m, block in enumerate(BLOCKS):
            mine = task.train.inputs[task.train.groups % 2 == m]
            assert mine[:, block].any(1).all()
            mine[:, block] = 0
            assert not mine.any()
    full = sensors(groups="person-sensor")
    assert full.held_out.groups is None
    assert torch.equal(full.held_out.inputs, whole.held_out.inputs)
    joined = (
        sensors(groups="person-sensor").train.inputs.view(6, 2, 2, -1, 5, 64).sum(2)
    )  # of both sensors, person by person
    assert torch.equal(joined.view(-1, 5, 64), whole.train.inputs)
    assert sensors(groups="person").train.groups.unique().tolist() == list(range(6))  # type: ignore[union-attr]


def test_people_can_be_held_out_whole() -> None:
    task = sensors(held_out_people=2)
    assert set(task.train.groups.tolist()) == set(range(8))  # type: ignore[union-attr]
    assert set(task.held_out.groups.tolist()) == set(range(8, 12))  # type: ignore[union-attr]
    assert (len(task.train), len(task.held_out)) == (4 * 2 * 6 * 20, 2 * 2 * 6 * 20)


def test_one_more_person_or_room_changes_nobody_else() -> None:
    few, many = sensors(people=2, rooms=1), sensors(people=3, rooms=2)
    assert few.train.groups is not None
    assert many.train.groups is not None
    for p in range(2):
        assert torch.equal(few.train.inputs[few.train.groups == p], many.train.inputs[many.train.groups == 2 * p])


def test_all_follows_from_the_seed() -> None:
    found = [fingerprint(sensors(people=2, seed=s)) for s in (0, 1)]
    assert found[0] != found[1]
    assert found[0] == fingerprint(sensors(people=2))


@pytest.mark.processes
def test_it_is_the_same_in_another_process() -> None:
    code = (
        "from lab.data.tasks.sensors import Sensors; from lab.data.tasks.tensors import fingerprint;"
        "print(fingerprint(Sensors(people=2).task()))"
    )
    assert run(code, PYTHONHASHSEED="4") == fingerprint(sensors(people=2))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sensors_of": ((2,),)}, r"data.sensors_of has \[2\]: each person has at least one sensor, of those numbered 0 to 1"),
        ({"sensors_of": ((0,), ())}, r"data.sensors_of has \[\]"),
        ({"channels": ()}, r"data.channels = \[\] is not allowed"),
        ({"held_out_people": 6}, "data.held_out_people = 6 leaves none of 6 people to train on"),
    ],
)  # fmt: skip
def test_federations_that_cannot_be(options: Any, message: str) -> None:
    with fails(message):
        sensors(**options)


def test_something_is_held_out_and_something_left() -> None:
    """Of two windows one each, whatever the share."""
    for share in (0.01, 0.99):
        task = sensors(windows=2, held_out=share)
        assert len(task.train) == len(task.held_out) == 6 * 2 * 6
    assert np.isfinite(sensors(windows=2).train.inputs.numpy()).all()
