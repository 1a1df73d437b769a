"""Activities of people in rooms, as several sensors see them: a federation that is drawn, each of whose difficulties is an option.

Which activities a sensor cannot tell apart, how far people and rooms differ, who has which sensor: what a federation of activity
recognition has (Iacob et al. 2023, arXiv 2305.12134), in a form that is known exactly.

Legend: P people, R rooms, M sensors, A activities, C channels of all sensors together, T samples of a window.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal

import numpy as np
import torch
from pydantic import Field

from lab.data.tasks.parts import Padding, Parts, padded
from lab.data.tasks.registry import options_of
from lab.data.tasks.task import Examples
from lab.data.tasks.tensors import Classification
from lab.ground.config import Count, Fraction, config
from lab.ground.errors import RecipeError
from lab.ground.seeds import numpy_generator

ACTIVITIES = ("stand", "sit", "lie down", "rise", "turn", "walk")
HARMONICS = 2
SLOWEST = 2  # cycles of a window that the slowest activity has; the next has one more

Size = Annotated[float, Field(ge=0)]
Grouping = Literal["person", "person-room", "person-sensor"]


@options_of("sensors")
@config
class Sensors:
    """Activities of people in rooms, seen by sensors that each confuse some of them; drawn from a seed, no download.

    Inputs are windows ``[C, T]``: the channels of sensor 0, then those of sensor 1, and so on; where somebody does not have a
    sensor, its channels are zero. In window w of person p in room r, doing activity a, channel c of sensor m is

        ``gain[p, r, c] · wave[m, a, c](tempo[p] · (t / T + start[w])) + shift[p, c] + shift[r, c] + noise · ε``

    where a wave is a sum of two harmonics, ``start`` is uniform, and ε is normal, both drawn for each window.

    Parameters
    ----------
    people, rooms, activities, windows
        every person does every activity in every room, in so many windows.
    channels
        of each sensor; their number is that of the sensors.
    length
        samples of a window.
    person, room
        how far people and rooms differ: shifts have this deviation, logarithms of gains half of it, those of tempos 0.15 of ``person``.
    noise
        deviation of the noise; the first harmonic has an amplitude from 0.5 to 1.5.
    confusion
        1: the activities of a pair in `confused_pairs` look the same to that sensor; 0: no two do; between: a mixture of both waves.
    sensors_of
        which sensors each person has, in turn: ``[[0], [1]]`` gives people one of two by turns; empty: everybody has all.
    padding
        of sensors that are not there: ``concatenated``, each sensor has its own channels, which are then zero; ``shared``, the channels
        of those that are there come first, and zeros after them (`lab.data.tasks.parts`). A window of all sensors is the same in both.
    groups
        what a natural group is. ``person-sensor``: each sensor of a person is a group by itself, and each of its examples a window in
        which only that sensor is not zero (sensor-level privacy).
    held_out, held_out_people
        share of the windows of each person, room and activity; or the last so many people, whole, and nobody else's.
    held_out_sensors
        ``all``: held-out windows are seen by all sensors, whoever has them; ``own``: as those to train on (sensor by sensor, where a
        sensor is a group).
    per_class
        scores have the recall of every activity as well.

    Columns for splits are ``person``, ``room`` and ``sensor``: ``by:person``, ``by:person+room``; ``by:person+sensor`` takes windows apart,
    as the group ``person-sensor`` does.

    Raises
    ------
    RecipeError
        for a sensor that there is not, for somebody without a sensor, and where nobody is left to train on.
    """

    people: Count = 6
    rooms: Count = 2
    channels: tuple[Count, ...] = (3, 2)
    activities: Annotated[int, Field(ge=2)] = 6
    windows: Annotated[int, Field(ge=2)] = 20
    length: Annotated[int, Field(ge=8)] = 64
    person: Size = 0.5
    room: Size = 0.5
    noise: Size = 1.5
    confusion: Fraction = 1.0
    sensors_of: tuple[tuple[int, ...], ...] = ()
    padding: Padding = "concatenated"
    groups: Grouping = "person-room"
    held_out: Annotated[float, Field(gt=0, lt=1)] = 0.2
    held_out_people: Annotated[int, Field(ge=0)] = 0
    held_out_sensors: Literal["all", "own"] = "all"
    seed: Annotated[int, Field(ge=0)] = 0
    per_class: bool = False

    def __post_init__(self) -> None:
        if not self.channels:
            raise RecipeError("data.channels = [] is not allowed: a number for each sensor, and at least one")
        for mine in self.sensors_of:
            if not mine or not set(mine) <= set(range(len(self.channels))):
                raise RecipeError(
                    f"data.sensors_of has {list(mine)}: each person has at least one sensor, of those numbered 0 to "
                    f"{len(self.channels) - 1} (channels says how many there are)"
                )
        if self.held_out_people >= self.people:
            raise RecipeError(
                f"data.held_out_people = {self.held_out_people} leaves none of {self.people} people to train on: hold out fewer"
            )

    def task(self) -> Classification:
        """Draw all windows."""
        kept = self.windows - min(max(round(self.held_out * self.windows), 1), self.windows - 1)
        whole = (
            self.groups == "person-sensor" and self.held_out_sensors == "all"
        )  # windows of all sensors are in no sensor's group
        train, held = _Part(self, self.groups), _Part(self, "person" if whole else self.groups)
        every = tuple(range(len(self.channels)))
        for p in range(self.people):
            mine = tuple(sorted(set(self.sensors_of[p % len(self.sensors_of)]))) if self.sensors_of else every
            away = p >= self.people - self.held_out_people
            cut = (0 if away else self.windows) if self.held_out_people else kept
            for r in range(self.rooms):
                seen = self.windows_of(p, r)  # [A, windows, C, T]
                train.add(seen[:, :cut], p, r, mine)
                held.add(seen[:, cut:], p, r, mine if self.held_out_sensors == "own" else every)
        return Classification(
            train.examples(),
            held.examples(),
            self.activities,
            train.group_of_each(),
            None if whole else held.group_of_each(),
            class_names=[ACTIVITIES[a] if a < len(ACTIVITIES) else f"activity {a}" for a in range(self.activities)],
            per_class=self.per_class,
        )

    @property
    def blocks(self) -> list[slice]:
        """The channels of every sensor."""
        ends = np.cumsum(self.channels).tolist()
        return [slice(end - size, end) for end, size in zip(ends, self.channels, strict=True)]

    def waves(self, sensor: int, phase: np.ndarray) -> np.ndarray:
        """What a sensor sees of every activity at phases ``[A, windows, T]`` (in windows): ``[A, windows, channels, T]``."""
        own = np.stack([self._wave(sensor, a, phase[a]) for a in range(self.activities)])
        seen = own.copy()
        for a, b in confused_pairs(sensor, self.activities):
            seen[a] = self.confusion * self._wave(sensor, a, phase[a]) + (1 - self.confusion) * own[a]
            seen[b] = self.confusion * self._wave(sensor, a, phase[b]) + (1 - self.confusion) * own[b]
        return seen

    def _wave(self, sensor: int, activity: int, phase: np.ndarray) -> np.ndarray:
        """At phases ``[windows, T]``: ``[windows, channels, T]``."""
        cycles = numpy_generator(self.seed, "sensors cycles", sensor).permutation(self.activities)[activity] + SLOWEST
        rng = numpy_generator(self.seed, "sensors wave", sensor, activity)
        amplitude = (
            rng.uniform(0.5, 1.5, (HARMONICS, self.channels[sensor], 1)) / np.arange(1, HARMONICS + 1)[:, None, None]
        )
        offset = rng.uniform(0, 2 * math.pi, (HARMONICS, self.channels[sensor], 1))
        angles = 2 * math.pi * cycles * phase[:, None]  # [windows, 1, T]
        number = np.arange(1, HARMONICS + 1)[:, None, None, None]
        harmonics = amplitude[:, None] * np.sin(number * angles + offset[:, None])  # [harmonics, windows, channels, T]
        return np.asarray(harmonics.sum(0))

    def windows_of(self, p: int, r: int) -> np.ndarray:
        """All windows of a person in a room, by all sensors: float32 ``[A, windows, C, T]``."""
        of_person, of_room = (numpy_generator(self.seed, *who) for who in (("sensors person", p), ("sensors room", r)))
        tempo = math.exp(0.15 * self.person * of_person.normal())
        total = sum(self.channels)
        gain, shift = np.ones(total), np.zeros(total)
        for rng, size in ((of_person, self.person), (of_room, self.room)):
            gain *= np.exp(0.5 * size * rng.normal(size=total))
            shift += size * rng.normal(size=total)
        rng = numpy_generator(self.seed, "sensors windows", p, r)
        start = rng.uniform(size=(self.activities, self.windows, 1))
        phase = tempo * (np.arange(self.length) / self.length + start)  # [A, windows, T]
        seen: np.ndarray = np.concatenate([self.waves(m, phase) for m in range(len(self.channels))], axis=2)
        seen = gain[:, None] * seen + shift[:, None] + self.noise * rng.normal(size=seen.shape)
        return seen.astype(np.float32)  # type: ignore[no-any-return]


def confused_pairs(sensor: int, activities: int) -> list[tuple[int, int]]:
    """The pairs of activities that a sensor confuses: two of three activities are in one, and its neighbour has other pairs.

    So no sensor can tell all activities apart, and any two that follow each other can, together.
    """
    return [((2 * j + sensor) % activities, (2 * j + 1 + sensor) % activities) for j in range(activities // 3)]


class _Part:
    """Examples of one part, gathered window by window."""

    def __init__(self, world: Sensors, groups: Grouping):
        self.world, self.grouping = world, groups
        self.inputs: list[np.ndarray] = []
        self.targets: list[np.ndarray] = []
        self.group: list[np.ndarray] = []
        self.present: list[np.ndarray] = []
        self.columns: dict[str, list[np.ndarray]] = {"person": [], "room": [], "sensor": []}

    def add(self, seen: np.ndarray, p: int, r: int, owned: tuple[int, ...]) -> None:
        """Windows ``[A, some, C, T]`` of a person in a room, as the sensors that are ``owned`` see them."""
        apart, sizes = self.grouping == "person-sensor", self.world.channels
        for mine in ([m] for m in owned) if apart else [owned]:
            windows = torch.from_numpy(seen.reshape(-1, *seen.shape[2:]))
            kept = padded({m: windows[:, self.world.blocks[m]] for m in mine}, sizes, self.world.padding)
            num = len(kept)
            self.inputs.append(kept.numpy())
            self.targets.append(np.repeat(np.arange(seen.shape[0]), seen.shape[1]))
            group = {
                "person": p,
                "person-room": p * self.world.rooms + r,
                "person-sensor": p * len(sizes) + mine[0],
            }[self.grouping]
            self.group.append(np.full(num, group))
            for name, value in (("person", p), ("room", r), ("sensor", mine[0])):
                self.columns[name].append(np.full(num, value))
            self.present.append(np.tile(np.isin(np.arange(len(sizes)), mine), (num, 1)))

    def examples(self) -> Examples:
        """What has not been taken apart can still be, sensor by sensor."""
        apart = self.grouping == "person-sensor"
        columns = {name: _joined(x) for name, x in self.columns.items() if apart or name != "sensor"}
        parts = Parts("sensor", self.world.channels, _joined(self.present), self.world.padding)
        return Examples(_joined(self.inputs), _joined(self.targets), columns=columns, parts=None if apart else parts)

    def group_of_each(self) -> torch.Tensor:
        return _joined(self.group)


def _joined(parts: list[np.ndarray]) -> torch.Tensor:
    return torch.from_numpy(np.concatenate(parts))
