"""What is seen of the adapters of a federation: who covers which rank segment, and what every prefix is worth.

Legend: M segments, K clients that take part.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import nn

from lab.adapters.factors import Adapters, Pair, cells, mean, padded, product_norm, refactored, samples, stacked
from lab.events import Covered, Truncated
from lab.fleet import Fleet, Stack
from lab.models.lora import cut_to


class AdapterWatch:
    """Follows the adapters of a run. Reads only.

    Costs, per aggregation, products of the stacked factors (Σ r_k)² · (d_in + d_out) per map; per evaluation, one pass over
    the validation examples for each prefix.
    """

    def __init__(self, fleet: Fleet, adapters: Adapters, samples_W: Sequence[int] | None):
        self.fleet, self.adapters, self.samples_W = fleet, adapters, samples_W
        self.last_M = [0] * len(adapters.bounds)  # local step in which each segment was handed in last
        self.covered: tuple[list[list[int]], list[float], float | None] | None = None

    @torch.no_grad()
    def before_average(self, state: str, stack: Stack) -> None:
        """The communicator's observer: the clients' factors, just before they are aggregated."""
        adapters = self.adapters
        up = [w for w, u in enumerate(self.fleet.up) if u]
        if state != "params" or not up:
            return
        p = samples(self.samples_W, up, "samples")
        reach = [[w for w in up if adapters.ranks_W[w] >= high] for high in adapters.bounds]
        difference, whole, all_here = 0.0, 0.0, len(self.fleet.mine) == self.fleet.num_workers
        for target in adapters.targets if adapters.lora.train == "both" and all_here else ():
            pairs = [_pair64(adapters, stack, target, w) for w in up]  # small differences of large norms
            weights = [p[w] for w in up]
            A, B = stacked(pairs, weights)
            mean_A, mean_B = mean([padded(pair, adapters.rank) for pair in pairs], weights)
            whole += product_norm((A, B)) ** 2
            difference += product_norm((torch.cat([A, mean_A]), torch.cat([B, -mean_B], 1))) ** 2
        bias = ((difference / whole) ** 0.5 if whole else 0.0) if all_here else None
        self.covered = reach, [sum(p[w] for w in workers) for workers in reach], bias

    def new(self, t: int) -> Covered:
        """The aggregation of local step ``t`` as an event."""
        assert self.covered is not None
        (reach, mass, bias), self.covered = self.covered, None
        since = [t - last for last in self.last_M]
        self.last_M = [t if workers else last for workers, last in zip(reach, self.last_M, strict=True)]
        return Covered(t, list(self.adapters.bounds), reach, mass, since, bias)

    @torch.no_grad()
    def truncated(
        self,
        t: int,
        agreed: Stack,
        loss: Callable[[nn.Module], float],
        scores: Callable[[nn.Module], dict[str, float]],
    ) -> Truncated:
        """The agreed adapters after local step ``t``, cut to every rank that occurs."""
        adapters, model = self.adapters, self.fleet.whole_model(agreed)
        loss_M, scores_M = [], []
        for rank in adapters.bounds:
            with cut_to(model, rank):
                loss_M.append(loss(model))
                scores_M.append(scores(model))
        curves = {"loss": loss_M} | {name: [s[name] for s in scores_M] for name in scores_M[0]}
        energy_M, spectrum_M = self.energy(model)
        areas = {name: area(adapters.bounds, values) for name, values in curves.items()}
        return Truncated(t, list(adapters.bounds), loss_M, scores_M, areas, energy_M, spectrum_M)

    def energy(self, model: nn.Module) -> tuple[list[float], list[float]]:
        """Shares of the segments in ‖B_S·A_S‖² and in the squared singular values of B·A, summed over the adapted maps."""
        segments = self.adapters.segments()
        own, spectrum = np.zeros(len(segments)), np.zeros(len(segments))
        for target in self.adapters.targets:
            A, B = model.get_submodule(target).factors()  # type: ignore[operator]
            sigma = torch.linalg.vector_norm(refactored((A, B), len(A))[1], dim=0)  # of U·Σ
            for m, (low, high) in enumerate(segments):
                own[m] += product_norm((A[low:high], B[:, low:high])) ** 2
                spectrum[m] += float(sigma[low:high].square().sum())
        return [(x / x.sum() if x.any() else x).tolist() for x in (own, spectrum)]  # type: ignore[return-value]


def area(ranks: Sequence[int], values: Sequence[float]) -> float:
    """AURAC: the trapezoid area under a curve over the rank, divided by the range of ranks. Of one rank: its value."""
    if len(ranks) == 1:
        return values[0]
    return float(np.trapezoid(values, ranks) / (ranks[-1] - ranks[0]))


def _pair64(adapters: Adapters, stack: Stack, target: str, worker: int) -> Pair:
    A, B = adapters.pair(cells(stack, worker), target, adapters.ranks_W[worker])
    return A.double(), B.double()
