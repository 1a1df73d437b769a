"""Fixed ways to answer together, on the same calls and tokens as Nexa: one agent, a vote, thresholds, everybody hears everybody, a chain.

Legend: Q questions of a batch, N agents, E width of an embedding.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from lab.ground.config import Fraction, config
from lab.ground.seeds import generator
from lab.systems.agents.agent import Setting
from lab.systems.agents.nexa import TIE, Drafts, centroid_answer, contributions
from lab.systems.agents.plans import Graph

Kind = Literal["single", "parallel", "self_consistency", "selforg", "full", "chain", "random"]


@config
class Rival:
    """A plan (`lab.systems.agents.plans.Plan`) that learns nothing.

    kind
        ``single``: the first agent alone. ``parallel``: all drafts, and the answer at their centroid. ``self_consistency`` (Wang et al.
        2022): all drafts, and the most frequent result, the first of equally frequent ones. ``selforg`` (SelfOrg, arXiv 2510.00685, one
        round): n hears m where their drafts are alike, cos ≥ ``threshold``, and m contributes more; since contributions fall along
        every edge there is no cycle to break. ``full``: everybody hears all who contribute more. ``chain``: everybody hears the one
        before in the order of contributions. ``random``: each feasible edge with probability ``density``, whatever the drafts say.
    threshold
        of SelfOrg; its value is not in the sources that we have ([inferred]).
    """

    kind: Kind
    threshold: float = 0.5
    density: Fraction = 0.5
    seed: int = 0

    @property
    def name(self) -> str:
        return self.kind

    def agents(self, num_agents: int) -> int:
        """See `lab.systems.agents.plans.Plan`."""
        return 1 if self.kind == "single" else num_agents

    def graph(self, drafts: Drafts) -> Graph:
        """See `lab.systems.agents.plans.Plan`."""
        if self.kind == "full":
            return Graph.fixed(drafts.feasible)
        if self.kind == "selforg":
            return Graph.fixed(self._alike(drafts.embeddings))
        if self.kind == "random":
            probability = self.density * drafts.feasible
            g = generator(self.seed, "random graph", drafts.queries[0].number)
            return Graph(torch.rand(probability.shape, generator=g) < probability, probability)
        edges = torch.zeros_like(drafts.feasible)
        if self.kind == "chain":
            q = torch.arange(len(edges))[:, None]
            edges[q, drafts.order[:, :-1], drafts.order[:, 1:]] = True
        return Graph.fixed(edges)

    def _alike(self, embeddings: Tensor) -> Tensor:
        psi = contributions(embeddings).round(decimals=TIE)
        r = F.normalize(embeddings.double(), dim=-1)
        return ((r @ r.transpose(1, 2)) >= self.threshold) & (psi[:, :, None] > psi[:, None, :])

    def choose(self, setting: Setting, texts: Sequence[Sequence[str]], embeddings: Tensor) -> Tensor:
        """See `lab.systems.agents.plans.Plan`."""
        if self.kind != "self_consistency":
            return centroid_answer(embeddings)
        return torch.tensor([_majority([setting.questions.result(t) for t in of_query]) for of_query in texts])


def _majority(results: Sequence[str]) -> int:
    """The first agent whose result is the most frequent; of equally frequent ones that which came first."""
    return results.index(Counter(results).most_common(1)[0][0])
