"""A run is a stream of these records. Every table, figure and widget is a fold over them, live or replayed.

The loop that makes them, in pseudo-code::

    Started
    for step in 1 … steps:
        WorkersChanged          when somebody went down, came back or joined
        Stepped                 one local step at every worker that is up
        Sent …                  what the communicator moved in this step
        Evaluated               every eval_every steps: the averaged model on the validation windows
        Checkpointed            every checkpoint_every steps
        Warned                  when the reader should know something
    Ended

On disk an event is one line of JSON with its ``kind``; floats are written so that they read back bit for bit.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Any, ClassVar


@dataclass(frozen=True)
class Started:
    kind: ClassVar[str] = "started"
    version: int
    recipe: dict[str, Any]
    num_params: int  # of the whole model
    params_per_worker: list[int]
    tokens_per_step: int  # of all workers together
    floor_nats: float | None  # entropy rate of the corpus, where it is known
    bytes_per_token: float
    environment: dict[str, Any]


@dataclass(frozen=True)
class Stepped:
    kind: ClassVar[str] = "stepped"
    step: int
    loss_W: list[float | None]  # nats per token, None where a worker is down
    lr: float  # factor of the schedule
    seconds: float  # wall clock of this step in this process


@dataclass(frozen=True)
class Sent:
    """One collective: each of ``workers`` handed over (or, for a broadcast, received) this much payload.

    ``op`` is ``all_reduce``, ``all_gather`` (payloads that cannot be summed on the way), ``broadcast`` or ``gather``.
    ``payload_bytes`` is per worker, by group of tensors.
    """

    kind: ClassVar[str] = "sent"
    step: int
    op: str
    state: str
    workers: tuple[int, ...]
    payload_bytes: dict[str, int]

    def __post_init__(self) -> None:
        object.__setattr__(self, "workers", tuple(self.workers))

    @property
    def bytes_each(self) -> int:
        """Payload of one worker, all groups together."""
        return sum(self.payload_bytes.values())

    @property
    def bytes_all(self) -> int:
        """Payload of all workers together."""
        return self.bytes_each * len(self.workers)


@dataclass(frozen=True)
class Evaluated:
    kind: ClassVar[str] = "evaluated"
    step: int
    loss: float  # nats per token of the averaged model on the validation windows
    drift: float  # root mean square distance of a worker's parameters from their mean


@dataclass(frozen=True)
class WorkersChanged:
    kind: ClassVar[str] = "workers_changed"
    step: int
    up: list[int]
    returned: list[int]
    left: list[int]


@dataclass(frozen=True)
class Checkpointed:
    kind: ClassVar[str] = "checkpointed"
    step: int
    file: str


@dataclass(frozen=True)
class Warned:
    kind: ClassVar[str] = "warned"
    step: int
    message: str


@dataclass(frozen=True)
class Ended:
    kind: ClassVar[str] = "ended"
    step: int
    status: str  # "done", "stopped" or "failed"
    message: str


Event = Started | Stepped | Sent | Evaluated | WorkersChanged | Checkpointed | Warned | Ended
KINDS: dict[str, Any] = {
    cls.kind: cls for cls in (Started, Stepped, Sent, Evaluated, WorkersChanged, Checkpointed, Warned, Ended)
}
VERSION = 1


def to_json(event: Event) -> str:
    """One line. A loss that is not finite is written as a string, so that the line stays strict JSON."""
    fields = {"kind": event.kind} | vars(event)
    try:
        return json.dumps(fields, allow_nan=False)
    except ValueError:
        return json.dumps(_named_floats(fields))


def from_json(line: str) -> Event:
    fields = json.loads(line)
    if "loss_W" in fields:
        fields["loss_W"] = [float(x) if isinstance(x, str) else x for x in fields["loss_W"]]
    if isinstance(fields.get("loss"), str):
        fields["loss"] = float(fields["loss"])
    event: Event = KINDS[fields.pop("kind")](**fields)
    return event


def _named_floats(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, dict):
        return {k: _named_floats(v) for k, v in value.items()}
    return [_named_floats(v) for v in value] if isinstance(value, list | tuple) else value
