"""Probe of a federation that prunes: whether clients keep the same weights, what grows back at them, and how sparse the server's model is.

Legend: W clients that hand in, n weights that can be pruned.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from lab.engine.comm import Meeting
from lab.engine.stack import Stack
from lab.events import Masked
from lab.methods.sparse_rounds import holders, prunable
from lab.probes.probe import Agreed, Probe, Setup

MOST = 32  # clients of which each is compared with each
AT_ONCE = 1 << 20  # weights that are compared together


class MaskProbe(Probe):
    """Looks whenever clients hand in. Over several processes masks travel for it, a byte a weight and client, which is not counted.

    It costs products of W × n numbers. Of many clients `MOST`, evenly spaced, are compared with each other.
    """

    def __init__(self, setup: Setup):
        everybody = range(setup.fleet.num_workers)
        held = {n: holders(setup.fleet.params, n) for n in prunable(setup.fleet)}
        self.setup, self.names = setup, [n for n, by in held.items() if {*by} == {*everybody}]  # all have them
        self.due_now = False
        self.left: list[
            Tensor
        ] = []  # at the first process, until its mean is made: what clients hand in, bool ``[W, n]``
        self.before: list[Tensor] = []  # what the server had handed out, bool ``[n]``
        self.regrown = 0

    @torch.no_grad()
    def before_average(self, meeting: Meeting) -> None:
        setup, up = self.setup, [w for w, u in enumerate(self.setup.fleet.up) if u]
        if meeting.state != "params" or not self.names or not up:
            return
        self.due_now = True
        self.left = self._at_server(meeting.stack, up)
        trained = self._at_server(setup.state.local["params"], up)
        if setup.world.first:
            self.before = [setup.state.shared["params"].flat(n)[0] != 0 for n in self.names]
            self.regrown = sum(int((x & ~was).sum()) for x, was in zip(trained, self.before, strict=True))

    def _at_server(self, stack: Stack, workers: Sequence[int]) -> list[Tensor]:
        """Which weights are not zero, ``[W, n]`` by tensor, at the first process."""
        masks = {w: {n: (stack.cell_or_shape(n, w) != 0).flatten() for n in self.names} for w in workers}
        handed = self.setup.world.gather_to_server(masks)
        return [torch.stack([handed[w][n] for w in workers]) for n in self.names] if self.setup.world.first else []

    def after_step(self, t: int, agreed: Agreed) -> Iterator[Masked]:
        if not self.due_now:
            return
        self.due_now = False
        found = [self._masked(t)] if self.setup.world.first else []
        yield Masked(t, **self.setup.world.all_gather_json(found)[0][0])
        self.left, self.before = [], []

    def _masked(self, t: int) -> dict[str, object]:
        """The fields of `Masked`, but for the step."""
        server = [self.setup.state.shared["params"].flat(n)[0] != 0 for n in self.names]
        num = len(self.left[0])
        some = [i * num // min(num, MOST) for i in range(min(num, MOST))]
        masks = zip(self.left, self.before, server, strict=True)
        iou = pairwise([torch.cat([x[some], was[None], now[None]]) for x, was, now in masks])
        upper = torch.triu_indices(len(some), len(some), 1)
        between, with_server = iou[upper[0], upper[1]], iou[: len(some), -1]
        return {
            "num_weights": sum(x.numel() for x in server),
            "clients": num,
            "kept": sum(int(x.sum()) for x in self.left) / num,
            "regrown": self.regrown,
            "server_before": sum(int(x.sum()) for x in self.before),
            "server_kept": sum(int(x.sum()) for x in server),
            "between": _ends(between),
            "with_server": _ends(with_server),
            "with_before": float(iou[-2, -1]),
        }


def pairwise(masks: Sequence[Tensor]) -> Tensor:
    """IoU of each of some masks ``[W, n]``, given by parts, with each, float64 ``[W, W]``. Two that are empty are equal."""
    both = sizes = None
    for mask in masks:
        for part in mask.split(AT_ONCE, 1):
            x = part.to(torch.float32)  # exact up to 2^24 in one part
            found, size = (x @ x.T).double(), x.sum(1).double()
            both, sizes = (found, size) if both is None else (both + found, sizes + size)
    assert both is not None
    either = sizes[:, None] + sizes[None] - both  # type: ignore[index]
    return torch.where(either > 0, both / either.clamp_min(1), 1.0)


def _ends(values: Tensor) -> dict[str, float]:
    return {"mean": float(values.mean()), "least": float(values.min())} if len(values) else {}
