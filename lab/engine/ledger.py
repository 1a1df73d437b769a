"""What was sent in a run."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator

from lab.events import Sent


class Ledger:
    """What was sent: `Sent` records in the order of sending."""

    def __init__(self, records: Iterable[Sent] = ()):
        self.records: list[Sent] = list(records)
        self._read = 0

    def __iter__(self) -> Iterator[Sent]:
        return iter(self.records)

    def __len__(self) -> int:
        return len(self.records)

    def new(self) -> list[Sent]:
        """Records since the last call."""
        fresh, self._read = self.records[self._read :], len(self.records)
        return fresh

    def by(self, *keys: str, worker: int | None = None) -> dict[tuple[object, ...], int]:
        """Payload bytes summed over workers (or of one worker), by any of ``step``, ``op``, ``state``, ``group``, ``level``, ``worker``."""
        sums: dict[tuple[object, ...], int] = defaultdict(int)
        for r in self.records:
            workers = r.workers if worker is None else [w for w in r.workers if w == worker]
            for group, num_bytes in r.payload_bytes.items():
                full = {"step": r.step, "op": r.op, "state": r.state, "group": group, "level": r.level}
                if "worker" in keys:
                    for w in workers:
                        sums[tuple((full | {"worker": w})[k] for k in keys)] += num_bytes
                elif workers:
                    sums[tuple(full[k] for k in keys)] += num_bytes * len(workers)
        return dict(sums)

    def total_bytes(self, worker: int | None = None) -> int:
        """Payload bytes of all workers together, or of one."""
        return sum(self.by(worker=worker).values())
