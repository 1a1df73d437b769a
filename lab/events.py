"""A run is a stream of these records. Every table, figure and widget is a fold over them, live or replayed.

The loop that makes them, in pseudo-code::

    Started
    for step in 1 … steps:
        KnobChanged             when somebody turned a knob by hand (`lab.runs.knobs`)
        Seated                  when a round begins: which client sits in the row of which worker
        WorkersChanged          when somebody went down, came back or joined
        Placed                  which worker holds which expert, at the start and whenever that changes
        Stepped                 one local step at every worker that is up
        Sent …                  what the communicator moved in this step
        Covered                 whenever clients' adapters were aggregated: who covered which rank segment
        Clipped                 whenever a round ends in which updates are clipped: how long they were, what privacy is spent
        Masked                  whenever clients that prune have handed in: whether they keep the same weights
        Drifted                 just before params are averaged, and with every evaluation: how far apart the workers are
        Evaluated               every eval_every steps: the averaged model on the validation windows
        Truncated               with it, for a model with adapters: the same at every prefix
        GroupsScored            with it, where clients are in groups: scores by group
        ClientsScored           with it, where clients hold out examples of their own: how the scores are spread over clients
        Adapted                 after the last step, or every so often: what clients make of the model, and what they have without it
        Branched                with it, in a tree of federations: losses of its nodes, attention and residuals
        Iterated                with it, for a model that goes through a part of itself several times: what each time is worth
        Weighted                with it, where samples have weights in the loss: how much those of each domain counted of late
        Measured …              the metrics that the recipe asks for
        Routed                  every routing_every steps: where the routers send their tokens
        Checkpointed            every checkpoint_every steps
        Forked                  after the last event that a fork has from the run it comes from (`lab.runs.fork`)
        Warned                  when the reader should know something
    Saturated                   how early the routers chose as they do in the end
    Ended

Work that is not a training run (`lab.runs.records`) has events of its own, and ``CellDone`` after those of each of its cells::

    Defended                an audit of imitation: what the defences of an author are like
    Imitated                with it: texts of one model in the style of an author, and who notices

On disk an event is one line of JSON with its ``kind``, and a checksum (`lab.runs.lines`); floats are written so that they read back
bit for bit.
"""

from __future__ import annotations

import functools
import gc
import json
import math
import re
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, get_args

import pydantic_core


@dataclass(frozen=True)
class Started:
    kind: ClassVar[str] = "started"
    version: int
    recipe: dict[str, Any]
    num_params: int  # of the whole model
    params_per_worker: list[int]
    tokens_per_step: int  # of all workers together; of a task beyond text, examples
    floor_nats: float | None  # entropy rate of the corpus, where it is known
    bytes_per_token: float
    environment: dict[str, Any]
    inputs: dict[str, str] = field(
        default_factory=dict
    )  # digests of what it reads besides the recipe (`lab.runs.inputs`)
    counted: str = "tokens"  # or examples: what a step takes, and what its losses are means over


@dataclass(frozen=True)
class Stepped:
    kind: ClassVar[str] = "stepped"
    step: int
    loss_W: list[float | None]  # nats per token, None where a worker is down
    lr: float  # factor of the schedule
    seconds: float  # wall clock of this step in this process

    @property
    def num_up(self) -> int:
        """Workers that took part."""
        return sum(x is not None for x in self.loss_W)

    @property
    def loss(self) -> float:
        """Mean over the workers that are up, nats per token; not a number where none is."""
        return sum(x for x in self.loss_W if x is not None) / self.num_up if self.num_up else math.nan

    @property
    def words(self) -> str:
        """The loss as lines of progress say it."""
        return f"loss {self.loss:.3f}" if self.num_up else "no worker is up"


@dataclass(frozen=True)
class Sent:
    """One collective: each of ``workers`` handed over (or, for a broadcast, received) this much payload.

    ``op`` is ``all_reduce``, ``all_gather`` (payloads that cannot be summed on the way), ``broadcast``, ``reduce`` (a sum, to a
    server) or ``gather``.
    ``payload_bytes`` is per worker, by group of tensors.
    ``level`` 0: on the links of workers. In a tree of federations ℓ: on links ℓ levels above, between nodes; ``workers`` then has one worker
    in the place of each node.
    """

    kind: ClassVar[str] = "sent"
    step: int
    op: str
    state: str
    workers: tuple[int, ...]
    payload_bytes: dict[str, int]
    level: int = 0

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
    scores: dict[str, float] = field(default_factory=dict)  # of a task: accuracy, perplexity


@dataclass(frozen=True)
class Drifted:
    """How far every worker's parameters are from others: root mean squares over parameters, None for who is down.

    Looked at before the average, if there is one in this step (`Evaluated.drift` is what is left after it). When:
    `lab.probes.drift.DriftProbe`.
    """

    kind: ClassVar[str] = "drifted"
    step: int
    to_mean_W: list[float | None]  # from the mean of those that are up
    to_shared_W: list[float | None]  # from what all agreed on last; None where the method keeps no such parameters


@dataclass(frozen=True)
class WorkersChanged:
    kind: ClassVar[str] = "workers_changed"
    step: int
    up: list[int]
    returned: list[int]
    left: list[int]


@dataclass(frozen=True)
class KnobChanged:
    """A knob (`lab.runs.knobs`) was turned by hand; ``step`` is the first local step in which it is effective."""

    kind: ClassVar[str] = "turned"
    step: int
    knob: str
    value: Any  # in full, as plain JSON


@dataclass(frozen=True)
class Seated:
    """Which client each worker stands for, from local step ``step`` on, where who takes part is a matter of the round.

    Workers beyond the last client have none. Those that are ``late`` receive what all receive, and do not count in this round.
    """

    kind: ClassVar[str] = "seated"
    step: int
    clients: list[int]  # by worker
    late: list[int] = field(default_factory=list)  # workers


@dataclass(frozen=True)
class Placed:
    """Which workers hold which expert, from local step ``step`` on."""

    kind: ClassVar[str] = "placed"
    step: int
    workers_LE: list[list[list[int]]]  # by layer and expert
    moved: int  # copies of experts that went to another worker (0 at the start)


@dataclass(frozen=True)
class Routed:
    """Where the routers of a mixture of experts send tokens: at each worker in its last batch, and in the agreed model.

    A slot is one of the k choices of one token. None stands for a worker that is down, for an expert that a worker's router
    does not know, and for what cannot be said yet.
    """

    kind: ClassVar[str] = "routed"
    step: int
    load_WLE: list[list[list[int | None]] | None]  # slots per expert, ghosts (chosen, but not resident) included
    ghost_fraction_WL: list[list[float] | None]  # share of slots that chose a ghost
    entropy_WL: list[list[float] | None]  # of the mean gate, 1 = uniform over the experts that the router knows
    agreed_load_LE: list[list[int]]  # slots of the agreed model on the probe batch
    churn_L: list[float | None]  # 1 − Jaccard index of its choices on the probe batch now and at the look before
    divergence_LE: list[list[float | None]]  # ‖copy − mean‖ / ‖mean‖ before the last average, mean over holders


@dataclass(frozen=True)
class Saturated:
    """Share of the final choices on the probe batch that were already made at each look (as in OLMoE's analysis)."""

    kind: ClassVar[str] = "saturated"
    step: int
    steps: list[int]  # of the looks
    overlap_RL: list[list[float]]  # by look and layer


@dataclass(frozen=True)
class Covered:
    """Which clients handed in which rank segments (r_{m−1}, r_m], M of them, in one aggregation."""

    kind: ClassVar[str] = "covered"
    step: int
    bounds_M: list[int]  # r_m
    contributors_M: list[list[int]]  # workers
    mass_M: list[float]  # their part of the samples of all who took part
    since_M: list[int]  # local steps since the segment was handed in last, before this time
    # ‖Σ p_k·B_k·A_k − B̄·Ā‖ / ‖Σ p_k·B_k·A_k‖ with zero-padded mean factors; 0 where nothing has moved. None, over several
    # processes, between evaluations where the method does not gather the factors themselves (`lab.probes.adapters`)
    bias: float | None


@dataclass(frozen=True)
class Truncated:
    """The agreed adapters, cut to each of the ranks r_1 < … < r_M, on the validation examples."""

    kind: ClassVar[str] = "truncated"
    step: int
    bounds_M: list[int]
    loss_M: list[float]
    scores_M: list[dict[str, float]]
    aurac: dict[str, float]  # of the loss and of every score: area over the rank ÷ the range of ranks
    energy_M: list[float]  # ‖B_S·A_S‖² of a segment over the sum of them all
    spectrum_M: list[float]  # Σ σ_i² of the product over the segment's indices, over the sum of them all


@dataclass(frozen=True)
class Masked:
    """What clients that prune have handed in, and what became of it at the server: over the weights that can be pruned.

    The mask of a model says which of its weights are not zero. IoU of two masks: weights in both over weights in either, here
    as ``mean`` and ``least`` over pairs (of at most 32 of the clients); empty where there is no pair.
    """

    kind: ClassVar[str] = "masked"
    step: int
    num_weights: int
    clients: int  # that have handed in
    kept: float  # weights that one of them has handed in, on average
    regrown: int  # of all of them together: zero when they fetched, and not zero before they pruned
    server_before: int  # weights of the model that they had fetched,
    server_kept: int  # and of the one that the server has made of theirs
    between: dict[str, float]  # IoU of two clients
    with_server: dict[str, float]  # of a client and the server afterwards
    with_before: float  # of the server before and afterwards

    @property
    def sparsity(self) -> float:
        """Share of the weights of the server's model that are zero."""
        return 1 - self.server_kept / self.num_weights

    def words(self) -> str:
        """What there is to be known, in numbers."""
        agree = ""
        if self.between:
            agree = f"; masks of two clients have an IoU of {self.between['mean']:.4f} on average, {self.between['least']:.4f} at least"
        return (
            f"At step {self.step:,}, {self.clients:,} clients handed in {self.kept:,.0f} of {self.num_weights:,} weights each{agree}. "
            f"{self.regrown:,} weights had grown back at them. The server's model now has {self.server_kept:,}, a sparsity of "
            f"{self.sparsity:.2%}"
        )


@dataclass(frozen=True)
class Iterated:
    """What the agreed model is worth after different numbers of iterations, on the validation data.

    ``change_K``: how far the direction of the state moves in each iteration, ‖ĥ_k − ĥ_{k−1}‖, the mean over tokens; ``settled_K``: the share of
    targets whose likeliest token after iteration k is that after all later ones as well, up to the last of ``iterations``.
    """

    kind: ClassVar[str] = "iterated"
    step: int
    trained: int  # iterations in training
    iterations: list[int]  # that are scored
    loss_R: list[float | None]  # None: no finite number
    change_K: list[float | None]
    settled_K: list[float]

    def words(self) -> str:
        """What there is to be known, in numbers."""
        known = {r: x for r, x in zip(self.iterations, self.loss_R, strict=True) if x is not None}
        if not known:
            return f"Step {self.step:,}: no loss is a finite number"
        best = min(known, key=lambda r: known[r])
        each = ", ".join(f"{known[r]:.4g} with {r}" if r in known else f"none with {r}" for r in self.iterations)
        k = min(self.trained, len(self.settled_K))
        return (
            f"Step {self.step:,}: the loss is {each} iteration{'s' * (self.iterations[-1] > 1)}, least with {best}; it was trained with {self.trained}. "
            f"After {k} of {len(self.settled_K)} the likeliest token is the final one for {self.settled_K[k - 1]:.1%} of targets"
        )


@dataclass(frozen=True)
class Clipped:
    """What clients have handed in of one round was cut to a norm, and the server has added noise (`lab.recipes.privacy.Privacy`)."""

    kind: ClassVar[str] = "clipped"
    step: int
    rounds: int  # until now, in which somebody handed in
    clients: int  # that have handed in
    share: float  # of them whose update was longer than the norm that it was cut to
    norms: list[float]  # of updates before that, percentiles `QUARTILES`; of those that are finite
    noise: float  # standard deviation of the noise on one number of the mean over all of them
    epsilon: float | None  # spent until now; None: not worked out in this step, or ∞ (no noise)
    delta: float

    @property
    def words(self) -> str:
        """What there is to be known of it, in numbers."""
        says = (
            f"step {self.step:,}: {self.clients:,} client{'s' * (self.clients != 1)} handed in, {self.share:.0%} of their updates were cut "
            f"(median norm {self.norms[2]:.3g})"
            if self.norms
            else f"step {self.step:,}: no update is finite"
        )
        return f"{says}; {self.spent}" if self.spent else says

    @property
    def spent(self) -> str:
        """What privacy is spent; empty where that was not worked out."""
        if not self.noise:
            return "no noise, so ε = ∞"
        if self.epsilon is None:
            return ""
        return f"ε = {self.epsilon:.4g}, δ = {self.delta:g} spent on each client (one replaced) in {self.rounds:,} round{'s' * (self.rounds != 1)}"


QUARTILES = (0, 25, 50, 75, 100)


@dataclass(frozen=True)
class PseudoLabelled:
    """What labels some of the clients' examples would get from the server's model as it is now, against those that a task has for them.

    Nobody but this look knows those. A method whose clients label with a model of their own may give others in mid-round.
    """

    kind: ClassVar[str] = "pseudo_labelled"
    step: int
    examples: int  # that were looked at
    labelled: int  # that got a label,
    right: int  # and the true one
    server_steps: int  # that the server has taken on its own examples, since the run began
    server_loss: float  # in the last of them
    # Where a model has latents, and it is evaluated: of some of the examples the first two principal components of their directions, the
    # class that each got (-1: none) and the true one; of the server's examples the same, with their class. Rounded.
    points: list[list[float]] = field(default_factory=list)  # x, y, label, true class
    anchors: list[list[float]] = field(default_factory=list)  # x, y, class
    variance: float = 0.0  # share of it that the two components have

    @property
    def accuracy(self) -> float | None:
        """Share of the labels that are right; None where there is none."""
        return self.right / self.labelled if self.labelled else None

    @property
    def coverage(self) -> float:
        """Share of the examples that got a label."""
        return self.labelled / self.examples

    def words(self) -> str:
        """What there is to be known, in numbers."""
        right = "" if self.accuracy is None else f", {self.right:,} of them the right one ({self.accuracy:.1%})"
        return (
            f"At step {self.step:,}, {self.labelled:,} of {self.examples:,} examples of clients get a label ({self.coverage:.1%}){right}. "
            f"The server has taken {self.server_steps:,} steps on its own"
        )


Distribution = dict[str, float]


@dataclass(frozen=True)
class ClientsScored:
    """The agreed model on the examples that clients hold out of their own, and with what each keeps for itself (`clients.personal`).

    In the place of what is personal the agreed model has the mean over those who take part at the moment: nobody agrees on it.

    A distribution over clients has ``mean``, ``std``, ``worst_tenth`` (the mean of those who are worst off), ``p0`` … ``p100``
    (percentiles `PERCENTILES`) and ``num``. What is better than what: `lower_is_better`.
    """

    kind: ClassVar[str] = "clients_scored"
    step: int
    shared: dict[str, Distribution]  # by score: all clients that are looked at
    own: dict[str, Distribution]  # of them those who keep something by now, each with what it keeps
    gain: dict[str, Distribution]  # by how much that is better than the agreed model, and ``share``: for how many it is
    # By score, ``ends`` of `BINS` bins of one width, and how many clients are in each: ``shared`` and ``own``.
    histogram: dict[str, dict[str, list[float]]]
    clients: list[int]  # who takes part at present, and holds out something
    shared_C: dict[str, list[float | None]]  # each of them by score; None where no target counts
    own_C: dict[str, list[float | None]]

    def words(self, score: str) -> str:
        """What there is to be known of one score, in numbers."""
        about, gain = self.shared[score], self.gain.get(score)
        if not about["num"]:
            return f"{score}: no client has an example that counts"
        says = (
            f"{score} of the agreed model at step {self.step:,}, over {about['num']:,} clients: {about['mean']:.4g} on average, "
            f"{about['worst_tenth']:.4g} for the worst tenth, from {about['p0']:.4g} to {about['p100']:.4g} (standard deviation "
            f"{about['std']:.4g})"
        )
        if gain is None or not gain["num"]:
            return says
        own, better = self.own[score], "lower" if lower_is_better(score) else "higher"
        return says + (
            f". With what each keeps, {gain['share']:.0%} of the {gain['num']:,} clients that had a turn are better off ({better}), half of "
            f"all by {gain['p50']:.4g} or more: {own['mean']:.4g} on average, {own['worst_tenth']:.4g} for the worst tenth"
        )


def named_way(way: str) -> str:
    """A way of adaptation (`lab.recipes.adaptation.Way`) in words."""
    return {"none": "as it is", "ewc": "EWC", "kd": "KD"}.get(way, way.replace("_", " "))


@dataclass(frozen=True)
class Adapted:
    """What some clients have of the federation's model, before and after they adapt it to their own examples, and without it.

    Scores are of each client's model on what the client holds out, by score and client; None where it is no number. A client that keeps
    personal parameters has the agreed model with those. Better means higher, but of losses and errors (`lower_is_better`).
    """

    kind: ClassVar[str] = "adapted"
    step: int
    steps: int  # local steps of each way
    local_steps: int  # of the purely local model; 0: there is none
    clients: list[int]
    before_C: dict[str, list[float | None]]
    after_C: dict[str, dict[str, list[float | None]]]  # by way (`lab.recipes.adaptation.Adaptation.ways`)
    local_C: dict[str, list[float | None]]

    @property
    def ways(self) -> list[str]:
        """Before any adaptation, ``none``, and then each way of it."""
        return ["none", *self.after_C]

    def scores_C(self, way: str, score: str) -> list[float | None]:
        return (self.before_C if way == "none" else self.after_C[way]).get(score, [])

    def relative_C(self, way: str, score: str) -> list[float]:
        """By how much each client is better off than with the purely local model; of those of whom both are known."""
        sign = -1 if lower_is_better(score) else 1
        pairs = zip(self.scores_C(way, score), self.local_C.get(score, []), strict=False)
        return [sign * (x - alone) for x, alone in pairs if x is not None and alone is not None]

    def underperformers(self, way: str, score: str) -> int:
        """Clients that would be better off alone."""
        return sum(r < 0 for r in self.relative_C(way, score))

    def severity(self, way: str, score: str) -> float:
        """By how much all of them together: the sum of what is below 0."""
        return sum(r for r in self.relative_C(way, score) if r < 0)

    def words(self, score: str) -> str:
        """What there is to be known of one score, in numbers: a line for each way."""
        known = len(self.relative_C("none", score))
        if not known:
            return f"{score} at step {self.step:,}: there is no client with a model of its own to compare with{self._means(score)}"
        alone = [x for x in self.local_C[score] if x is not None]
        mean = sum(alone) / len(alone)
        first = f"{score} at step {self.step:,}: of {known:,} clients so many would be better off alone ({self.local_steps:,} local steps, {mean:.4g} on average):"
        lines = [
            f"{self.underperformers(way, score)} with the model {named_way(way)}, together by {-self.severity(way, score):.4g}"
            if way == "none"
            else f"{self.underperformers(way, score)} after {named_way(way)} ({self.steps:,} local steps), together by {-self.severity(way, score):.4g}"
            for way in self.ways
        ]
        return "\n".join([first, *lines])

    def _means(self, score: str) -> str:
        """The means over clients before and after each way of adaptation, as far as they are known."""
        known = {way: [x for x in self.scores_C(way, score) if x is not None] for way in self.ways}
        each = [
            f"{sum(x) / len(x):.4g} {'with the model' if way == 'none' else 'after'} {named_way(way)}"
            for way, x in known.items()
            if x
        ]
        return f"; on average {', '.join(each)}" if each else ""


@dataclass(frozen=True)
class GroupsScored:
    """Models by groups of clients: that for everybody and, where a method has them, those of groups.

    ``full`` is the task's own held-out examples, ``native`` what the clients of a group hold out of theirs (as their sensors see it). Each
    is by model and score: ``general``, ``group`` (of whose clients the examples are), ``both`` (the mean of their probabilities); on the
    full test also ``group <name>`` for every group, and ``ensemble`` (the mean of the probabilities of all models).
    """

    kind: ClassVar[str] = "groups_scored"
    step: int
    groups: dict[str, list[int]]  # clients
    full: dict[str, dict[str, float]]
    native: dict[str, dict[str, dict[str, float]]]  # by group

    def mean_native(self, score: str) -> dict[str, float]:
        """A score by model, the mean over groups that have it."""
        models = dict.fromkeys(model for of in self.native.values() for model in of)
        found = {m: [of[m][score] for of in self.native.values() if score in of.get(m, {})] for m in models}
        return {m: sum(values) / len(values) for m, values in found.items() if values}


BINS = 20
PERCENTILES = (0, 5, 10, 25, 50, 75, 90, 95, 100)


def lower_is_better(score: str) -> bool:
    """Whether less of it is better: of losses and errors."""
    return score in ("loss", "mse", "mae", "perplexity", "calibration_error") or score.startswith("loss of ")


@dataclass(frozen=True)
class Branched:
    """A tree of federations: who belongs to whom, how good each is at what its workers hold out, who attends to whom.

    A node's loss is that of its model, the mean over the workers below it. A worker's is that of its parent's backbone with key layers of
    its own, or of its parent's model where there are none. None: nobody holds anything out.
    """

    kind: ClassVar[str] = "branched"
    step: int
    nodes: list[str]  # the root first
    parents: list[str]  # of each node; nothing for the root
    parent_W: list[str]
    loss_N: list[float | None]  # by node
    loss_W: list[float | None]
    attention: dict[str, dict[str, dict[str, float]]]  # by node, layer and candidate
    attention_W: list[dict[str, list[float]]]  # by layer: to its own key layers, its parent's, and the residuals
    routes: dict[
        str, dict[str, list[list[str]]]
    ]  # by node and layer: the residuals it got, each as (node, child of it)

    def mass(self, who: str | int) -> dict[str, float]:
        """What a node (by name) or a worker gives to its ``own`` key layers, ``parent``, ``children`` and ``residuals``, over all layers."""
        found: dict[str, float] = {}
        layers = (
            [{"own": a[0], "parent": a[1], "residuals": sum(a[2:])} for a in self.attention_W[who].values()]
            if isinstance(who, int)
            else [
                {
                    "own": a["own"],
                    "parent": a.get("parent", 0.0),
                    "residuals": sum(x for k, x in a.items() if k.startswith("residual ")),
                }
                for a in self.attention.get(who, {}).values()
            ]
        )
        for a in layers:
            for kind, x in (a | ({} if isinstance(who, int) else {"children": 1 - sum(a.values())})).items():
                found[kind] = found.get(kind, 0.0) + x / len(layers)
        return found

    @property
    def words(self) -> str:
        """What there is to be known of it, in numbers."""
        says = f"step {self.step:,}: {len(self.parent_W)} workers under {len(self.nodes)} node{'s' * (len(self.nodes) != 1)}"
        known = [x for x in self.loss_W if x is not None]
        if known and self.loss_N[0] is not None:
            says += (
                f"; on what workers hold out the model of the root has a loss of {self.loss_N[0]:.4g}, their own models {sum(known) / len(known):.4g}"
                f" on average, from {min(known):.4g} to {max(known):.4g}"
            )
        own = [self.mass(w)["own"] for w in range(len(self.attention_W)) if self.attention_W[w]]
        if own:
            says += f"; of a worker's attention {sum(own) / len(own):.0%} stays with its own key layers"
        num = sum(len(chosen) for by_layer in self.routes.values() for chosen in by_layer.values())
        return says + (f"; {num} residual{'s' * (num != 1)} found another federation" if self.attention else "")


@dataclass(frozen=True)
class Weighted:
    """How much samples counted in the loss since the last such event, at all workers; of each worker the last `lab.runs.weights.MOST` at least.

    None: no sample, or no score. Histograms have `BINS` bins of one width: ``ends`` and ``num``.
    """

    kind: ClassVar[str] = "weighted"
    step: int
    by: str  # `lab.recipes.weighting.Weighting.by`
    domains: list[str]
    samples: int
    num_D: list[int]  # of them, by domain
    weight_D: list[float | None]  # mean weight, by domain
    score_D: list[float | None]  # mean score
    weight: float | None  # mean: the "effective data ratio" of ADAPT's paper
    effective: float | None  # (Σ w)² / (n Σ w²): the share of as many samples with equal weights (Kish 1965)
    score: float | None
    score_std: float | None
    scores: dict[str, list[float]]
    weights: dict[str, list[float]]

    @property
    def by_domain(self) -> dict[str, float]:
        """Mean weights, of the domains of which there was a sample; the greatest first."""
        found = {name: w for name, w in zip(self.domains, self.weight_D, strict=True) if w is not None}
        return dict(sorted(found.items(), key=lambda pair: -pair[1]))

    def words(self) -> str:
        """What there is to be known of it, in numbers."""
        if self.weight is None:
            return f"step {self.step:,}: no sample since the last look"
        says = f"step {self.step:,}: over {self.samples:,} samples the mean weight by {self.by} is {self.weight:.3f}"
        says += f" ({', '.join(f'{name} {w:.3f}' for name, w in self.by_domain.items())})"
        if self.effective is not None:
            says += f"; they count as {self.effective:.1%} of as many with equal weights"
        if self.score is not None:
            says += f"; scores are {self.score:.3f} on average, standard deviation {self.score_std:.3f}"
        return says


@dataclass(frozen=True)
class Measured:
    """One of the metrics that ``recipe.metrics`` asks for (`lab.probes.measure`); None for what is not finite."""

    kind: ClassVar[str] = "measured"
    step: int
    metric: str
    values: dict[str, list[float | None]]


@dataclass(frozen=True)
class Checkpointed:
    kind: ClassVar[str] = "checkpointed"
    step: int
    file: str


@dataclass(frozen=True)
class Forked:
    """What comes before is of another run, from whose checkpoint this one went on (`lab.runs.fork`); what comes after is its own."""

    kind: ClassVar[str] = "forked"
    step: int  # the last one of that run
    run: str  # its id
    sha256: str  # of the checkpoint's file
    changed: dict[str, list[Any]]  # by option (``method.inner.lr``): the value there, and here

    @property
    def words(self) -> str:
        """Where it comes from and what is other, in one line."""
        options = ", ".join(f"{key} {json.dumps(was)} → {json.dumps(now)}" for key, (was, now) in self.changed.items())
        return f"forked from {self.run} after step {self.step:,}: {options or 'nothing changed'}"


@dataclass(frozen=True)
class Warned:
    kind: ClassVar[str] = "warned"
    step: int
    message: str


@dataclass(frozen=True)
class Orchestrated:
    """Agents have answered questions together (`lab.systems.agents`): who heard whom, what it cost, what came of it. Of all rollouts of an update.

    Numbers are counts over all questions. ``answers``: of agents, before they heard others; of these ``right_before`` were right, ``rescued``
    were wrong and became right, ``harmed`` the other way round. ``right_drafts``: questions that the drafts alone would have got right, by
    the same rule and without a further call.
    """

    kind: ClassVar[str] = "orchestrated"
    step: int  # updates of the policy by then
    plan: str  # who says who hears whom: nexa, or a rival
    learning: bool  # an update, or questions that are held out
    num_agents: int  # that are asked
    questions: int
    right: int
    right_drafts: int
    calls: int
    tokens_in: int
    tokens_out: int
    edges: int
    empty: int  # questions for which nobody hears anybody
    answers: int
    right_before: int
    rescued: int
    harmed: int
    probability_RR: list[
        list[float]
    ]  # mean probability of an edge, by the rank of who speaks and of who hears; 0 where there can be none
    reward: float | None = None  # mean, of an update

    @property
    def accuracy(self) -> float:
        return self.right / self.questions

    @property
    def tokens(self) -> float:
        """Read and written, for a question."""
        return (self.tokens_in + self.tokens_out) / self.questions

    @property
    def most_edges(self) -> int:
        """That there may be for a question."""
        return self.num_agents * (self.num_agents - 1) // 2

    @property
    def rescue(self) -> float | None:
        """Share of wrong answers of agents that become right; None where none was wrong."""
        wrong = self.answers - self.right_before
        return self.rescued / wrong if wrong else None

    @property
    def harm(self) -> float | None:
        """Share of right answers of agents that become wrong; None where none was right. The rest of them is preserved."""
        return self.harmed / self.right_before if self.right_before else None

    def words(self) -> str:
        """What there is to be known, in numbers."""
        who = f"{self.plan}, {self.num_agents} agent{'s' * (self.num_agents > 1)}"
        moved = [
            f"{x:.1%} of {what}"
            for x, what in ((self.rescue, "wrong answers rescued"), (self.harm, "right ones harmed"))
            if x is not None
        ]
        return (
            f"{who}: {self.accuracy:.1%} of {self.questions:,} questions right ({self.right_drafts / self.questions:.1%} by the drafts alone), "
            f"{self.edges / self.questions:.1f} of {self.most_edges} edges, {self.calls / self.questions:.1f} calls and {self.tokens:,.0f} tokens "
            f"a question{'; ' * bool(moved)}{', '.join(moved)}"
        )


@dataclass(frozen=True)
class Defended:
    """What the defences of an author are like before anybody imitates it (`lab.systems.imitation`), on messages that nothing was fitted on."""

    kind: ClassVar[str] = "defended"
    step: int
    author: int
    accepts: dict[str, float]  # by verifier, the share of its own messages that are accepted,
    impostors: dict[str, float]  # and of those of other people
    copied: float  # of a message of its own, the longest stretch that stands in others of its own: a share
    cpu_seconds: float  # that the defender has spent


@dataclass(frozen=True)
class Imitated:
    """What one imitation of an author is worth, and who notices: texts of one model (`lab.systems.imitation`)."""

    kind: ClassVar[str] = "imitated"
    step: int
    author: int
    messages: int  # of the author, that whoever imitates it has
    way: str  # base, lora or full; of a federation, whose adapter: shared, own, handed in, masked
    seed: int
    accepted: dict[str, list[int]]  # by verifier, 1 of each text that is taken for the author's, else 0
    detected: dict[str, list[float]]  # by detector: AUROC against the author's own, and share found at 1 % false alarms
    similar: dict[str, float]  # to the author's own on the same subjects
    cpu_seconds: float  # of fine-tuning and writing
    federation: str = ""  # method and protection; nothing: somebody alone
    rank: int = 0  # to which adapters are cut; 0: not
    loss: float | None = None  # nats per byte of the author's own test messages; None where that is no number


@dataclass(frozen=True)
class Unlearned:
    """What a model is worth after it was made to forget, or after an attack on that (`lab.systems.unlearning.study`).

    ``scores`` by name: ``recall_forget`` and ``recall_retain`` (R_f, R_r), their ``deviation`` from 0 and 1, shares that are refused, and others.
    """

    kind: ClassVar[str] = "unlearned"
    step: int
    seed: int
    part: str  # of the study: before, lunar, rival, attack, probe, sequence, federation
    name: str
    layer: int | None  # the block that was edited
    scores: dict[str, float]

    def words(self) -> str:
        """What there is to be known, in numbers."""
        names = ("recall_forget", "recall_retain", "deviation", "refused_forget", "refused_retain")
        shown = {n: x for n, x in self.scores.items() if n in names} or self.scores
        where = "" if self.layer is None else f", block {self.layer}"
        figures = ", ".join(f"{n.replace('_', ' ')} {x:.4g}" for n, x in shown.items())
        return f"seed {self.seed}, {self.part}, {self.name}{where}: {figures}"


@dataclass(frozen=True)
class Steered:
    """Of every block: what answers are like when the unlearning vector is added behind it."""

    kind: ClassVar[str] = "steered"
    step: int
    seed: int
    ignorance_L: list[float]  # likeness to ignorance of that very question
    ethics_L: list[float]  # likeness to refusals on other grounds
    best: int


@dataclass(frozen=True)
class Redirected:
    """States behind the edited block at the last token of prompts, before and after, as points of one plane, by set of prompts."""

    kind: ClassVar[str] = "redirected"
    step: int
    seed: int
    layer: int
    before: dict[str, list[list[float]]]
    after: dict[str, list[list[float]]]


@dataclass(frozen=True)
class CellDone:
    """A piece of work that is not a training run is done, and all that it says stands before this (`lab.runs.records`)."""

    kind: ClassVar[str] = "cell"
    step: int  # how many are done, this one included
    cell: str
    seconds: float


@dataclass(frozen=True)
class Ended:
    kind: ClassVar[str] = "ended"
    step: int
    status: str  # "done", "stopped" or "failed"
    message: str


Event = (
    Started
    | Stepped
    | Sent
    | Evaluated
    | KnobChanged
    | Drifted
    | WorkersChanged
    | Seated
    | Placed
    | Routed
    | Saturated
    | Covered
    | Truncated
    | Clipped
    | Masked
    | PseudoLabelled
    | Branched
    | Iterated
    | ClientsScored
    | Adapted
    | GroupsScored
    | Weighted
    | Measured
    | Checkpointed
    | Forked
    | Warned
    | Orchestrated
    | Defended
    | Imitated
    | Unlearned
    | Steered
    | Redirected
    | CellDone
    | Ended
)
KINDS: dict[str, Any] = {cls.kind: cls for cls in get_args(Event)}
VERSION = 2  # of a run folder. 1: lines without checksums, checkpoints that do not know their recipe


def to_json(event: Event) -> str:
    """One line of strict JSON: a number that is not finite is written as a string."""
    return to_bytes(event).decode()


def to_bytes(event: Event) -> bytes:
    """The same in UTF-8.

    Raises
    ------
    TypeError
        for an event that nobody could read again: of a class that is not part of `Event`.
    """
    if KINDS.get(event.kind) is not type(event):
        raise TypeError(
            f"{type(event).__name__} is no part of lab.events.Event: add it there, or nothing can read it again"
        )
    values = {"kind": event.kind} | vars(event)
    if isinstance(event, Sent) and not event.level:
        del values["level"]  # of most there is none to speak of
    try:
        return pydantic_core.to_json(values, inf_nan_mode="strings")
    except pydantic_core.PydanticSerializationError:  # half a surrogate pair: the name of a file that is not UTF-8
        return json.dumps(values).encode()


def from_json(line: str) -> Event:
    return read(line.encode())[0]


def read(lines: bytes) -> list[Event]:
    """The events of whole lines, parsed all at once, which takes a tenth of the time of one after another.

    Checksums are left out, and not looked at.
    """
    text = _CHECKSUM.sub(b"},", lines if lines.endswith(b"\n") else lines + b"\n")
    if b"\n" in text:  # lines without one
        text = text.rstrip(b"\n").replace(b"\n", b",")
    array = b"[" + text.rstrip(b",") + b"]"
    collecting = gc.isenabled()
    gc.disable()  # nothing here is garbage, and looking for it would take most of the time
    try:
        try:
            rows = pydantic_core.from_json(array)
        except ValueError:  # half a surrogate pair, or no JSON at all: this one says where
            rows = json.loads(array)
        return from_rows(rows, array)
    finally:
        if collecting:
            gc.enable()


def from_rows(rows: list[dict[str, Any]], written: bytes) -> list[Event]:
    """The events of parsed lines, which are used up. ``written``: what they were parsed from, where numbers are looked for that JSON has only as strings."""
    if any(word in written for word in _ODD):
        rows = [
            {k: _floats(v) if isinstance(v, list) or k in ("loss", "drift", "scores") else v for k, v in r.items()}
            for r in rows
        ]
    return [_made(KINDS[row.pop("kind")], row) for row in rows]


def check(event: Event, started: Started | None = None) -> None:
    """Whether a run (that began so) can have said this, as far as one can see: for lines without a checksum.

    Raises ValueError.
    """
    values = vars(event)
    _adapter(event.kind).validate_python(values)
    if started is None:
        return
    num_workers, steps = int(started.recipe["num_workers"]), int(started.recipe["steps"])
    if not 0 <= values.get("step", 0) <= steps + 1:
        raise ValueError("it is of no step of this run")
    if any(len(x) != num_workers for name, x in values.items() if name.endswith("_W") and isinstance(x, list)):
        raise ValueError("it is of another number of workers")
    if isinstance(event, Sent) and not all(0 <= w < num_workers for w in event.workers):
        raise ValueError("it is of a worker that there is not")


@functools.cache
def _adapter(kind: str) -> Any:
    from pydantic import TypeAdapter

    return TypeAdapter(KINDS[kind])


_CHECKSUM = re.compile(rb',"crc":"[0-9a-f]{8}"}\n')  # at the end of a line
_ODD = (b'NaN"', b'nan"', b"nf")  # NaN, and ±Infinity or inf
_ODD_NUMBER = re.compile("NaN|nan|-?(Infinity|inf)")  # and not names beside them


def _made(cls: Any, row: dict[str, Any]) -> Event:
    """``cls(**row)``, in half the time where every field is there: a frozen dataclass sets them one by one."""
    if row.keys() != _FIELDS[cls]:
        return cls(**row)  # type: ignore[no-any-return]
    event = object.__new__(cls)
    event.__dict__.update(row)
    if cls is Sent:
        event.__post_init__()
    return event  # type: ignore[no-any-return]


_FIELDS = {cls: {f.name for f in fields(cls)} for cls in KINDS.values()}


def _floats(value: Any) -> Any:
    """Numbers that were written as strings, in lists of numbers and numbers by name."""
    if isinstance(value, list):
        return [_floats(v) for v in value]
    if isinstance(value, dict):
        return {k: _floats(v) for k, v in value.items()}
    return float(value) if isinstance(value, str) and _ODD_NUMBER.fullmatch(value) else value
