"""What is done with a batch of questions: a plan says who hears whom, and what came of it is counted alike for every plan.

Legend: Q questions of a batch, N agents.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from lab.ground.seeds.surroundings import isolated
from lab.systems.agents.agent import Ledger, Query, Setting
from lab.systems.agents.nexa import Drafts, by_rank, centroid_answer, draft, embed, sequential_pass


class Plan(Protocol):
    """Who hears whom once the drafts are there, and whose answer is taken in the end."""

    @property
    def name(self) -> str: ...

    def agents(self, num_agents: int) -> int:
        """How many of so many agents are asked for a draft."""

    def graph(self, drafts: Drafts) -> Graph: ...

    def choose(self, setting: Setting, texts: Sequence[Sequence[str]], embeddings: Tensor) -> Tensor:
        """Whose answer is taken, by question: int64 ``[Q]``. ``texts`` by question and agent, embeddings ``[Q, N, E]``."""


@dataclass(frozen=True, eq=False)
class Graph:
    """Edges bool ``[Q, N, N]``, who speaks down and who hears across; and the probability that each was drawn with, float (1 and 0: no coin)."""

    edges: Tensor
    probability: Tensor

    @classmethod
    def fixed(cls, edges: Tensor) -> Graph:
        return cls(edges, edges.float())


@dataclass(frozen=True, eq=False)
class Outcome:
    """What came of a batch. Answers are right or not by question and agent; chosen are the answers that are given in the end.

    ``right_drafts``: whether the answer would have been right that the same drafts give by their centroid, without a further call.
    """

    drafts_right: Tensor  # bool [Q, N]
    finals_right: Tensor  # bool [Q, N]
    right_drafts: Tensor  # bool [Q]
    right: Tensor  # bool [Q]
    edges: Tensor  # bool [Q, N, N]
    probability_RR: Tensor  # float [N, N], by rank, mean over questions
    calls: int
    tokens_in: int
    tokens_out: int


def play(setting: Setting, plan: Plan, queries: Sequence[Query], num_agents: int) -> Outcome:
    """Draft, ask the plan who hears whom, go through the agents once, choose an answer."""
    ledger = Ledger(setting.agents)
    with isolated():
        drafts = draft(setting, queries, plan.agents(num_agents), ledger)
        return finish(setting, plan, drafts, plan.graph(drafts), ledger)


def finish(setting: Setting, plan: Plan, drafts: Drafts, graph: Graph, ledger: Ledger) -> Outcome:
    """All of `play` that comes after the drafts. The ledger's counts go into the outcome as they are then."""
    finals = sequential_pass(drafts, graph.edges, ledger)
    after = drafts.embeddings if finals == drafts.texts else embed(setting, finals)
    chosen = plan.choose(setting, finals, after)
    at, before = torch.arange(len(finals)), centroid_answer(drafts.embeddings)
    drafts_right, finals_right = _right(setting, drafts, drafts.texts), _right(setting, drafts, finals)
    return Outcome(
        drafts_right=drafts_right,
        finals_right=finals_right,
        right_drafts=drafts_right[at, before],
        right=finals_right[at, chosen],
        edges=graph.edges,
        probability_RR=by_rank(graph.probability, drafts.order).mean(0),
        calls=ledger.calls,
        tokens_in=ledger.tokens_in,
        tokens_out=ledger.tokens_out,
    )


def _right(setting: Setting, drafts: Drafts, texts: Sequence[Sequence[str]]) -> Tensor:
    return torch.tensor(
        [
            [setting.right(query, text) for text in of_query]
            for query, of_query in zip(drafts.queries, texts, strict=True)
        ]
    )
