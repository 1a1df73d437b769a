"""Probe of the adapters of a federation: which clients cover which rank segment, and the quality of every prefix.

Legend: M segments, K clients that take part.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lab.engine.comm import Meeting
from lab.engine.world import Named
from lab.events import Covered, Event, Truncated, Warned
from lab.methods.lora_factors import Adapters, Pair, mean, padded, product_norm, refactored, samples, stacked
from lab.models.lora import cut_to
from lab.probes.evaluation import Evaluator
from lab.probes.probe import Agreed, Probe, Setup


class AdapterProbe(Probe):
    """Follows the adapters of a run.

    Costs, per aggregation, products of the stacked factors (Σ r_k)² · (d_in + d_out) per map; per evaluation, one pass over
    the validation examples for each prefix. Over several processes the factors travel to the first process for an aggregation
    in a step with an evaluation; at others the bias is only known where the method itself gathers them.
    """

    def __init__(self, setup: Setup, adapters: Adapters):
        self.setup, self.fleet, self.world, self.adapters = setup, setup.fleet, setup.world, adapters
        self.evaluator = Evaluator(setup)
        self.last_M = [0] * len(adapters.bounds)  # local step in which each segment was handed in last
        self.covered: tuple[list[list[int]], list[float], float | None] | None = None

    def json(self) -> dict[str, Any]:
        return {"last_covered": self.last_M}

    def load_json(self, values: dict[str, Any], step: int) -> None:
        self.last_M = values["last_covered"]

    def before_average(self, meeting: Meeting) -> None:
        """The clients' factors, just before they are aggregated."""
        adapters, params = self.adapters, self.fleet.params
        up = [w for w, u in enumerate(self.fleet.up) if u]
        if meeting.state != "params" or not up or self.covered is not None:
            return
        p = samples(self.setup.state.samples_W, up, "samples")
        reach = [[w for w in up if adapters.ranks_W[w] >= high] for high in adapters.bounds]
        handed = meeting.handed
        travels = self.setup.evaluates(self.setup.comm.t) or self.world.mine is None
        if adapters.lora.train == "both" and handed is None and travels:
            place, blocks = params.layout.place, params.layout.blocks
            shared = [n for n in place if not params.is_personal(n)]
            held = {w: [n for n in shared if w in blocks[place[n][0]].everywhere] for w in up}
            handed = self.world.gather_to_server({w: {n: params.cell_or_shape(n, w) for n in held[w]} for w in up})
        bias = 0.0 if adapters.lora.train != "both" else None
        if bias is None and handed is not None and self.world.first:
            bias = self.bias(handed, p)
        self.covered = reach, [sum(p[w] for w in workers) for workers in reach], bias

    @torch.no_grad()
    def bias(self, handed: Named, p: Mapping[int, float]) -> float:
        """How wrong the product of the mean factors is, of those that clients hand in, with these weights (`Covered.bias`)."""
        adapters, weights = self.adapters, list(p.values())
        difference, whole = 0.0, 0.0
        for target in adapters.targets:
            pairs = [_pair64(adapters, handed[w], target, w) for w in p]  # small differences of large norms
            A, B = stacked(pairs, weights)
            mean_A, mean_B = mean([padded(pair, adapters.rank) for pair in pairs], weights)
            whole += product_norm((A, B)) ** 2
            difference += product_norm((torch.cat([A, mean_A]), torch.cat([B, -mean_B], 1))) ** 2
        return (difference / whole) ** 0.5 if whole else 0.0

    def by_worker(self, t: int, agreed: Agreed) -> Iterator[Covered]:
        """The `Covered` event of this step's aggregation, if there was one."""
        if self.covered is None:
            return
        (reach, mass, bias), self.covered = self.covered, None
        since = [t - last for last in self.last_M]
        self.last_M = [t if workers else last for workers, last in zip(reach, self.last_M, strict=True)]
        yield Covered(t, list(self.adapters.bounds), reach, mass, since, bias)

    def after_step(self, t: int, agreed: Agreed) -> Iterator[Event]:
        if self.setup.evaluates(t) and agreed.gather_():
            yield self.truncated(t, agreed.model())
        if t == self.setup.recipe.steps and not any(self.last_M):
            yield Warned(t, "no round was finished, so nothing was aggregated: set method.sync_every below steps")

    @torch.no_grad()
    def truncated(self, t: int, model: nn.Module) -> Truncated:
        """The agreed adapters after local step ``t``, cut to every rank that occurs."""
        adapters = self.adapters
        loss_M, scores_M = [], []
        for rank in adapters.bounds:
            with cut_to(model, rank):
                loss_M.append(self.evaluator.loss(model))
                scores_M.append(self.evaluator.scores(model))
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


def _pair64(adapters: Adapters, named: Mapping[str, Tensor], target: str, worker: int) -> Pair:
    A, B = adapters.pair(named.__getitem__, target, adapters.ranks_W[worker])
    return A.cpu().double(), B.cpu().double()
