"""HierFAVG (Liu et al. 2020, arXiv 1905.06641): FedAvg at edge servers, and now and then FedAvg of the edge servers at the cloud."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from pydantic import Field
from torch import Tensor

from lab.engine.comm import Communicator
from lab.engine.optim import AdamW, Optimizer, reset_
from lab.engine.stack import Stack, clip_
from lab.engine.state import Grad, State, numeric
from lab.ground.config import Count, Period, Positive, RecipeView, config
from lab.methods.registry import method
from lab.methods.rounds import InnerStates, Weight, weights_of
from lab.methods.tree import (
    ROOT,
    Node,
    Rounds,
    Spec,
    by_level,
    check_tree,
    grow_nodes_,
    named,
    never_averaged,
    of_leaves,
    sent_names,
    tree_of,
)


@method("hierfavg", server=True)
@config
class HierFAVG:
    """Every κ₁ local steps an edge server takes the mean of its clients, every κ₂ such rounds the cloud that of the edge servers.

    Sends: ``params``. A worker fetches its server's model at the beginning of a round and hands in its own at the end (level 0 in the
    ledger); so does every node with its parent (levels above). State: the model of each node in ``shared``; inner states local.

    sync_every
        κ₁, local steps of a round at the lowest nodes.
    rounds
        κ₂: rounds of a node's children in one of its own, level by level from below; the last is for all further levels.
    tree
        who belongs to whom (`lab.methods.tree`): lists of workers and of such lists, an object of named ones, or how many go together
        from below, ``3x2``. Nothing: all under one root, which is FedAvg.
    inner_states
        ``kept``, or ``reset`` at the beginning of a round. The paper's clients use plain SGD, which has none.
    weight
        ``samples`` as in the paper: a worker counts as much as it has examples, a node as all below it that take part; ``uniform``.
    """

    sync_every: Period = 16
    rounds: tuple[Count, ...] = (2,)
    tree: Spec = ""
    inner: Optimizer = Field(default_factory=lambda: AdamW(lr=3e-3))
    inner_states: InnerStates = "kept"
    weight: Weight = "samples"
    max_norm: Positive | None = 1.0

    def __post_init__(self) -> None:
        if self.inner_states == "reset":
            self.inner.check_reset()

    @property
    def averages(self) -> tuple[str, ...]:
        return ("params",)

    def check(self, recipe: RecipeView) -> None:
        check_tree(self.tree, recipe)

    def levels(self, num_workers: int) -> int:
        return tree_of(self.tree, num_workers)[ROOT].height - 1

    def notes(self, recipe: RecipeView) -> Iterator[str]:
        yield from never_averaged(self.tree, self.sync_every, self.rounds, recipe)

    def exceptions(self) -> dict[str, str]:
        return PLACES if self.tree else {}

    def init(self, s: State) -> None:
        s.optimizers["inner"] = self.inner.over(s.local["params"], s.grads)
        grow_nodes_(s, self.tree)

    def step(self, s: State, grad: Grad, comm: Communicator, t: int) -> Tensor:
        rounds = Rounds(tree_of(self.tree, s.fleet.num_workers), self.sync_every, self.rounds, t)
        for node, workers, nodes in rounds.beginning(s):
            self._hand_down_(s, comm, node, workers, nodes)
        loss_W = grad(s)
        clip_(s.grads, self.max_norm)
        self.inner.step_(s, t)
        for node, workers, nodes in rounds.ending(s):
            self._take_mean_(s, comm, node, workers, nodes)
        return loss_W

    def _hand_down_(self, s: State, comm: Communicator, node: Node, workers: list[int], nodes: list[Node]) -> None:
        agreed, names = s.shared[node.state], sent_names(s.fleet)
        for level, to in by_level(nodes, dict.fromkeys([c.name for c in nodes], named(agreed, names)), s):
            comm.hand_out(to, "params", level)
        for child in nodes:
            s.shared[child.state] = of_leaves(agreed.clone(), child)
        if workers:
            comm.broadcast_(agreed, s.local["params"], "params", to=workers)
            if self.inner_states == "reset":
                reset_(s.optimizers["inner"], s.local["params"], [w in workers for w in range(s.fleet.num_workers)])

    def _take_mean_(self, s: State, comm: Communicator, node: Node, workers: list[int], nodes: list[Node]) -> None:
        known, n_W = s.shared[node.state], weights_of(s, self.weight)
        if workers:
            there = [w in workers for w in range(s.fleet.num_workers)]
            mean = comm.mean(
                s.local["params"], "params", fallback=known, weights_W=n_W, participants=there, to_server=True
            )
            s.shared[node.state] = of_leaves(mean, node)
        if nodes:
            models = {c.name: named(s.shared[c.state], sent_names(s.fleet)) for c in nodes}
            handed: dict[int, Mapping[str, Tensor]] = {}
            for level, tensors in by_level(nodes, models, s):
                handed |= comm.collect(tensors, "params", s.local["params"], level)
            weights = {c.seat(s.fleet.up): mass(s, n_W, c.leaves) for c in nodes}
            mean_of_nodes_(s.shared[node.state], mass(s, n_W, workers), handed, weights)


def mass(s: State, n_W: Sequence[float] | None, workers: Sequence[int]) -> float:
    """What those of some workers that are up count together."""
    return sum(1.0 if n_W is None else n_W[w] for w in workers if s.fleet.up[w])


@numeric
def mean_of_nodes_(
    agreed: Stack, own: float, handed: Mapping[int, Mapping[str, Tensor]], weights: Mapping[int | None, float]
) -> None:
    """The mean of what nodes hand in, by seat, and of what is ``agreed`` among a node's own workers, into ``agreed``."""
    total = own + sum(weights[seat] for seat in handed)
    for name in next(iter(handed.values())):
        mine = agreed[name][0]
        mean = mine * (own / total)
        for seat, tensors in handed.items():
            mean.add_(tensors[name], alpha=weights[seat] / total)
        mine.copy_(mean)


PLACES = {
    "relabelling": "who belongs to whom is said by the numbers of workers",
    "solitude": "one worker alone has a tree of its own, with other nodes",
    "equal workers": "one worker alone has a tree of its own, with other nodes",
}
