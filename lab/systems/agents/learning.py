"""Nexa at work: the plan that a policy makes, how the policy learns from what came of it, and the file that it is kept in.

Legend: Q questions of a batch, N agents, K rollouts.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save
from torch import Tensor

from lab.ground.config import checked
from lab.ground.errors import Damaged
from lab.ground.files import damage, digest_beside, write_with_digest
from lab.ground.seeds import derive, generator
from lab.ground.seeds.draws import Draws
from lab.ground.seeds.surroundings import isolated
from lab.models.files import Tensors, Unreadable, located, open_tensors
from lab.systems.agents.agent import Ledger, Setting
from lab.systems.agents.nexa import (
    Drafts,
    Learning,
    Policy,
    PolicyModule,
    advantages,
    centroid_answer,
    draft,
    log_probability,
    policy_step_,
    reward,
    sample,
)
from lab.systems.agents.plans import Graph, Outcome, finish

KEY = "isthmus"  # of what a file says about itself, beside its tensors
FORMAT = "nexa-1"


@dataclass(frozen=True, eq=False)
class Nexa:
    """A frozen policy as a plan (`lab.systems.agents.plans.Plan`), for any number of agents.

    decode
        ``sampled``: each edge by its own coin, as in one of the paper's ablations; ``likely``: those of probability ½ and more. Which of
        the two is behind its tables the paper does not say.
    """

    policy: PolicyModule
    seed: int = 0
    decode: Literal["sampled", "likely"] = "sampled"
    name: str = "nexa"

    def agents(self, num_agents: int) -> int:
        """See `lab.systems.agents.plans.Plan`."""
        return num_agents

    @torch.no_grad()
    def graph(self, drafts: Drafts) -> Graph:
        """See `lab.systems.agents.plans.Plan`. Coins depend on the seed and on the first question of the batch."""
        self.policy.eval()
        logits, feasible = self.policy(drafts.embeddings), drafts.feasible
        if self.decode == "likely":
            edges = (logits >= 0) & feasible
        else:
            edges = sample(logits, feasible, generator(self.seed, "edges", drafts.queries[0].number))
        return Graph(edges, logits.sigmoid() * feasible)

    def choose(self, setting: Setting, texts: Sequence[Sequence[str]], embeddings: Tensor) -> Tensor:
        """See `lab.systems.agents.plans.Plan`."""
        return centroid_answer(embeddings)


@dataclass(frozen=True, eq=False)
class _Drawn:
    """Edges that are drawn already, as a plan for `finish`."""

    graph_: Graph
    name: str = "nexa"

    def agents(self, num_agents: int) -> int:
        return num_agents

    def graph(self, drafts: Drafts) -> Graph:
        return self.graph_

    def choose(self, setting: Setting, texts: Sequence[Sequence[str]], embeddings: Tensor) -> Tensor:
        return centroid_answer(embeddings)


class Learner:
    """A policy that learns. An update depends on the seed, on its number and on what was learnt before: it can go on from a file."""

    def __init__(self, setting: Setting, shape: Policy, learning: Learning, num_agents: int, seed: int = 0):
        self.setting, self.learning, self.num_agents, self.seed = setting, learning, num_agents, seed
        self.policy = shape.build(setting.encoder.width, seed)
        self.optimizer = torch.optim.Adam(self.policy.parameters(), learning.lr)
        self.updates = 0  # that are done

    def update_(self) -> tuple[list[Outcome], float]:
        """One update: what came of each rollout, and their mean reward. The first rollout's counts have the drafts, which all share."""
        with isolated():
            return self._update_()

    def _update_(self) -> tuple[list[Outcome], float]:
        u, how, ledger = self.updates + 1, self.learning, Ledger(self.setting.agents)
        queries = self.setting.questions.queries(self.updates * how.batch_size, how.batch_size, held_out=False)
        drafts = draft(self.setting, queries, self.num_agents, ledger)
        self.policy.train()
        with Draws(derive(self.seed, "dropout", u)):
            logits = self.policy(drafts.embeddings)  # one pass: edges are drawn from what is learnt from
        feasible, g = drafts.feasible, generator(self.seed, "rollouts", u)
        outcomes, log_p = list[Outcome](), list[Tensor]()
        for _ in range(how.rollouts):
            edges = sample(logits, feasible, g)
            graph = Graph(edges, logits.detach().sigmoid() * feasible)
            outcomes.append(finish(self.setting, _Drawn(graph), drafts, graph, ledger))
            log_p.append(log_probability(logits, edges, feasible))
            ledger = Ledger(self.setting.agents)
        rewards = torch.stack([reward(o.right, o.edges, how.sparsity) for o in outcomes])  # K Q
        loss = -(advantages(rewards, how.baseline) * torch.stack(log_p)).mean()
        policy_step_(self.policy, self.optimizer, loss, how.max_norm)
        self.updates = u
        return outcomes, float(rewards.mean())

    def tensors(self) -> dict[str, Tensor]:
        """Parameters and what the optimizer remembers of them, by name."""
        names = dict(self.policy.named_parameters())
        found = {f"policy.{name}": p.detach() for name, p in names.items()}
        for name, p in names.items():
            found |= {f"{kind}.{name}": value for kind, value in self.optimizer.state.get(p, {}).items()}
        return found

    @torch.no_grad()
    def go_on_from_(self, tensors: Mapping[str, Tensor], updates: int) -> None:
        """Take back what `tensors` gave after so many updates."""
        for name, p in self.policy.named_parameters():
            p.copy_(tensors[f"policy.{name}"])
            kinds = [kind for kind in ("step", "exp_avg", "exp_avg_sq") if f"{kind}.{name}" in tensors]
            self.optimizer.state[p] = {kind: tensors[f"{kind}.{name}"].clone() for kind in kinds}
        self.updates = updates

    def save(self, path: Path) -> None:
        """Write the policy into a safetensors file that says by itself what it is, and its digest beside it."""
        about = {"format": FORMAT, "policy": asdict(self.policy.shape), "embedding_width": self.policy.embedding_width}
        about |= {"updates": self.updates, "num_agents": self.num_agents}
        tensors = {name: p.detach().contiguous() for name, p in self.policy.named_parameters()}
        path.parent.mkdir(parents=True, exist_ok=True)
        write_with_digest(path, save(tensors, {KEY: json.dumps(about)}))


def load_policy(path: str | Path) -> PolicyModule:
    """The policy in a file of `Learner.save`, for any number of agents; one that was moved without its digest is taken as it is.

    Raises Damaged, one line, for what is no such file, or not what was written.
    """
    try:
        place = located(path)
    except Unreadable as error:
        raise Damaged(f"policy {path}: {error}") from None
    if digest_beside(place) is not None and (problem := damage(place)) is not None:
        raise Damaged(f"policy {path}: {problem}")
    with _opened(place) as (tensors, about):
        module = checked(Policy, about["policy"], "policy").build(int(about["embedding_width"]), seed=0)
        _fill_(module, tensors, place)
    return module.eval()


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[tuple[Tensors, dict[str, Any]]]:
    try:
        with open_tensors(path) as tensors:
            about = json.loads((tensors.file.metadata() or {}).get(KEY, "{}"))
            if not isinstance(about, dict) or about.get("format") != FORMAT:
                raise Unreadable("it is no policy of the lab (lab agents writes them)")
            yield tensors, about
    except (Unreadable, ValueError, KeyError, TypeError) as error:
        raise Damaged(f"policy {path}: {error}") from None


@torch.no_grad()
def _fill_(module: PolicyModule, tensors: Tensors, path: Path) -> None:
    wanted = {name: tuple(p.shape) for name, p in module.named_parameters()}
    if wanted != tensors.shapes:
        odd = next(iter(dict(wanted.items() ^ tensors.shapes.items())))
        raise Damaged(f"policy {path}: {odd} is missing, too many or of another shape")
    for name, p in module.named_parameters():
        p.copy_(tensors[name])
