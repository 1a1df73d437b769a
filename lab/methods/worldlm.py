"""WorldLM (Iacob et al. 2024, arXiv 2405.14446): federations of federations: a common backbone, key layers put together by attention."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from math import ceil
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from lab.engine.comm import Communicator
from lab.engine.optim import AdamW, Optimizer, reset_
from lab.engine.stack import Layout, Stack, at_least_float32, clip_
from lab.engine.state import Grad, State, numeric
from lab.ground.config import Count, Fraction, Period, Positive, RecipeView, config
from lab.ground.errors import RecipeError
from lab.ground.seeds import generator
from lab.methods.hierfavg import PLACES, mass, mean_of_nodes_
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

Layers = Mapping[str, tuple[str, ...]]  # the names of the tensors of each layer
Vectors = Mapping[str, Tensor]  # tensors by name: what one worker or node has of the key layers
OWN, PARENT = "own", "parent"


@config
class Privacy:
    """What a worker hands in is how far it moved, cut to the norm ``clip``, with Gaussian noise of ``noise``·``clip`` on every number."""

    clip: Positive = 1.0
    noise: Annotated[float, Field(ge=0)] = 0.0


@method("worldlm", server=True, keeps=(OWN,), holds=("initial",), own_models=True)
@config
class WorldLM:
    """Each node of a tree is a server for its children and a client of its parent, down to the workers, who train.

    When a round of a node begins, its children adopt its backbone, and mix what it has of the key layers, and residuals that come with
    it, into their own. When it ends, the node's backbone becomes the mean of its children's, and its key layers, layer by layer,

        K ← K + ε·Σ a_i·(K_i − K),   a = softmax(sim(K, K_i)/τ),

    over its own (a query and a candidate), its parent's, its children's and its residuals. Residuals are those of its children's key layers
    that got least attention: they go up to the parent, which has for each of its other nodes the ones that are most like its own.

    Sends: ``params`` (the backbone), ``key_layers`` and ``residuals``, down when a round begins and up when it ends; between nodes at the
    levels above 0. State: the model of each node, its residuals, and the ``initial`` key layers in ``shared``; local ``own``, what a worker
    had for key layers when its last round ended, ``attention``, what it gave to its own, its parent's and the residuals, and inner states.

    The paper has the tree, the averaged backbone, attention over constituents and residual embeddings, and takes about 30 % of the blocks
    for key layers. What the similarity is, τ, how residuals are chosen, how many there are, and the rounds of each level are inferred here.

    sync_every, rounds, tree
        local steps of a round at the lowest nodes; rounds of a node's children in one of its own, level by level; who belongs to whom:
        all as in HierFAVG (`lab.methods.hierfavg`). Nothing for a tree: all under one root.
    key_share, key_layers
        the last so many of the layers that the model numbers are the key layers (of all, where it does not number two of them); or those
        that patterns name (``head.*``). None of either: it is HierFAVG.
    similarity
        ``cos``; ``dot``, over √D for layers of D numbers; ``distance``, −‖K − K_i‖ as in FedAtt.
    reference
        what is compared are differences from the ``initial`` values, from those of the ``parent``, or the ``weights`` themselves.
    temperature, step_size
        τ (None: all candidates alike) and ε. FedAtt: ``distance``, ``weights``, τ = 1, and a small ε.
    residuals
        at most so many for each node and layer; 0: none.
    privacy
        workers that clip what they hand in, and add noise to it (`Privacy`), by number; ``noise_seed`` decides the noise.
    inner_states, weight
        as in HierFAVG.
    """

    sync_every: Period = 16
    rounds: tuple[Count, ...] = (2,)
    tree: Spec = ""
    key_share: Fraction = 0.3
    key_layers: tuple[str, ...] | None = None
    similarity: Literal["cos", "dot", "distance"] = "cos"
    reference: Literal["initial", "parent", "weights"] = "initial"
    temperature: Positive | None = 0.1
    step_size: Annotated[float, Field(gt=0, le=1)] = 1.0
    residuals: Annotated[int, Field(ge=0, le=64)] = 1
    privacy: dict[Annotated[int, Field(ge=0)], Privacy] = Field(default_factory=dict)
    noise_seed: int = 0
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

    @property
    def has_key_layers(self) -> bool:
        return self.key_share > 0 if self.key_layers is None else bool(self.key_layers)

    def check(self, recipe: RecipeView) -> None:
        check_tree(self.tree, recipe)
        for w in self.privacy:
            if w >= recipe.num_workers:
                raise RecipeError(f"method.privacy names worker {w}, and the workers are 0 to {recipe.num_workers - 1}")
        if self.privacy and recipe.clients.take_turns(recipe.num_workers):
            raise RecipeError("method.privacy names workers, but clients take turns as workers: leave it out")

    def levels(self, num_workers: int) -> int:
        return tree_of(self.tree, num_workers)[ROOT].height - 1

    def notes(self, recipe: RecipeView) -> Iterator[str]:
        yield from never_averaged(self.tree, self.sync_every, self.rounds, recipe)

    def exceptions(self) -> dict[str, str]:
        alike = {"equal workers": "two candidates with the same key layers get twice the attention of one"}
        noisy = {"schedule": "noise is added also to what has not moved"}
        loud = any(private.noise for private in self.privacy.values())
        return (PLACES if self.tree else {}) | (alike if self.has_key_layers else {}) | (noisy if loud else {})

    # the algorithm

    def init(self, s: State) -> None:
        params = s.local["params"]
        s.optimizers["inner"] = self.inner.over(params, s.grads)
        tree, key = grow_nodes_(s, self.tree), self._key(s)
        if self.privacy:
            s.local["start"] = params.clone()
        if not key:
            return
        names = _all(key)
        s.local[OWN] = params.select(names)
        s.local["attention"] = _per_layer(params, key, 2 + self.residuals)
        s.shared["initial"] = s.shared["params"].select(names)
        for node in tree.values():
            for k in range(self.residuals if node.parent else 0):
                s.shared[_residual(node, k)] = of_leaves(s.shared["initial"].clone(), node)
        s.facts["residuals"] = {}  # how many there are for each node

    def step(self, s: State, grad: Grad, comm: Communicator, t: int) -> Tensor:
        rounds = Rounds(tree_of(self.tree, s.fleet.num_workers), self.sync_every, self.rounds, t)
        for node, workers, nodes in rounds.beginning(s):
            self._to_nodes_(s, comm, node, nodes)
            self._to_workers_(s, comm, node, workers)
        loss_W = grad(s)
        clip_(s.grads, self.max_norm)
        self.inner.step_(s, t)
        misfits: dict[str, list[dict[str, Tensor]]] = {}  # residuals on their way up
        for node, workers, nodes in rounds.ending(s):
            self._from_children_(s, comm, t, node, workers, nodes, misfits)
        return loss_W

    def _to_nodes_(self, s: State, comm: Communicator, node: Node, nodes: Sequence[Node]) -> None:
        """Child nodes adopt the backbone, and attend to the key layers and residuals that they receive."""
        agreed, key, known = s.shared[node.state], self._key(s), s.facts.get("residuals", {})
        self._hand_out_(s, comm, nodes, dict.fromkeys([c.name for c in nodes], agreed), key)
        for child in nodes:
            mine = s.shared[child.state]
            _put_(mine, named(agreed, self._backbone(s)))
            if not key:
                continue
            pool = self._residuals_of(s, child) + self._residuals_of(s, node)
            known[child.name] = min(self.residuals, len(pool))
            slots = [s.shared[_residual(child, k)] for k in range(known[child.name])]
            self._take_nearest_(key, named(mine, _all(key)), s, agreed, pool, slots)
            self._mix_(s, key, mine, named(mine, _all(key)), agreed, {PARENT: named(agreed, _all(key))}, slots, {})
        for k in range(self.residuals if key else 0):
            with_k = [c for c in nodes if known[c.name] > k]
            tensors = {c.name: named(s.shared[_residual(c, k)], _all(key)) for c in with_k}
            for level, to in by_level(with_k, tensors, s):
                comm.hand_out(to, "residuals", level)

    def _hand_out_(
        self, s: State, comm: Communicator, nodes: Sequence[Node], models: Mapping[str, Stack], key: Layers
    ) -> None:
        for state, names in (("params", self._backbone(s)), ("key_layers", _all(key))):
            tensors = {name: named(model, names) for name, model in models.items()}
            for level, to in by_level(nodes if names else (), tensors, s):
                comm.hand_out(to, state, level)

    def _to_workers_(self, s: State, comm: Communicator, node: Node, workers: Sequence[int]) -> None:
        """The same for workers, whose own key layers are what they had when their last round ended."""
        if not workers:
            return
        params, agreed, key = s.local["params"], s.shared[node.state], self._key(s)
        here = [w in workers for w in range(s.fleet.num_workers)]
        if self.inner_states == "reset":
            reset_(s.optimizers["inner"], params, here)
        if key:
            backbone, theirs = agreed.select(self._backbone(s)), agreed.select(_all(key))
            comm.broadcast_(backbone, backbone, "params", to=workers)
            comm.broadcast_(theirs, theirs, "key_layers", to=workers)
            params.put_(backbone, here)
            slots = self._residuals_of(s, node)
            for slot in slots:
                comm.broadcast_(slot, slot, "residuals", to=workers)
            self._mix_at_workers_(s, key, workers, theirs, slots)
        else:
            comm.broadcast_(agreed, params, "params", to=workers)
        if self.privacy:
            s.local["start"].put_(params, here)

    def _from_children_(
        self,
        s: State,
        comm: Communicator,
        t: int,
        node: Node,
        workers: Sequence[int],
        nodes: Sequence[Node],
        misfits: dict[str, list[dict[str, Tensor]]],
    ) -> None:
        """The backbone becomes the children's mean; the key layers attend to theirs; what fits least goes on to the parent."""
        agreed, key, n_W = s.shared[node.state], self._key(s), weights_of(s, self.weight)
        models, keys = dict[int, Vectors](), dict[str, Vectors]()
        if workers:
            keys |= self._from_workers_(s, comm, t, node, workers, key)
        up = s.fleet.up
        for level, tensors in by_level(nodes, {c.name: named(s.shared[c.state], self._backbone(s)) for c in nodes}, s):
            models |= comm.collect(tensors, "params", s.local["params"], level)
        if nodes:
            mean_of_nodes_(
                s.shared[node.state], mass(s, n_W, workers), models, {c.seat(up): mass(s, n_W, c.leaves) for c in nodes}
            )
        if not key:
            return
        by_seat = {c.seat(up): c.name for c in nodes}
        for level, tensors in by_level(nodes, {c.name: named(s.shared[c.state], _all(key)) for c in nodes}, s):
            handed = comm.collect(tensors, "key_layers", s.local["params"], level)
            keys |= {by_seat[seat]: vectors for seat, vectors in handed.items()}
        pool = self._collect_misfits(s, comm, nodes, misfits)
        least = min(self.residuals, len(keys) - 1) if node.parent else 0
        misfits[node.name] = [
            {n: torch.zeros_like(x) for n, x in named(agreed, _all(key)).items()} for _ in range(least)
        ]
        agreed = s.shared[node.state]
        above = s.shared[tree_of(self.tree, len(up))[node.parent].state] if node.parent else None
        candidates = ({PARENT: named(above, _all(key))} if above is not None else {}) | keys
        self._mix_at_node_(s, key, node, agreed, above, candidates, misfits[node.name])
        self._route_(s, key, agreed, nodes, keys, pool)

    def _from_workers_(
        self, s: State, comm: Communicator, t: int, node: Node, workers: Sequence[int], key: Layers
    ) -> dict[str, Vectors]:
        """The mean of the backbone into the node's; the key layers of each worker."""
        params, agreed = s.local["params"], s.shared[node.state]
        there = [w in workers for w in range(s.fleet.num_workers)]
        handed = params.clone() if self.privacy else params
        self._make_private_(s, handed, workers, t)
        backbone = handed.select(self._backbone(s)) if key else handed
        mean = comm.mean(
            backbone,
            "params",
            fallback=agreed.select(self._backbone(s)) if key else agreed,
            weights_W=weights_of(s, self.weight),
            participants=there,
            to_server=True,
        )
        if not key:
            s.shared[node.state] = of_leaves(mean, node)
            return {}
        _put_(agreed, named(mean, self._backbone(s)))
        s.local[OWN].put_(params.select(_all(key)), there)
        tensors = {w: {n: handed.cell_or_shape(n, w) for n in _all(key)} for w in workers}
        return {str(w): x for w, x in comm.collect(tensors, "key_layers", params).items()}

    def _collect_misfits(
        self, s: State, comm: Communicator, nodes: Sequence[Node], misfits: Mapping[str, Sequence[Vectors]]
    ) -> list[tuple[str, int, Vectors]]:
        """What each node hands on, as (node, which of its own, key layers)."""
        by_seat, found = {c.seat(s.fleet.up): c.name for c in nodes}, list[tuple[str, int, Vectors]]()
        for k in range(self.residuals):
            with_k = [c for c in nodes if len(misfits[c.name]) > k]
            for level, tensors in by_level(with_k, {c.name: misfits[c.name][k] for c in with_k}, s):
                handed = comm.collect(tensors, "residuals", s.local["params"], level)
                found += [(by_seat[seat], k, vectors) for seat, vectors in handed.items()]
        return found

    # attention

    def attention(self, query: Tensor, candidates: Tensor, origin: Tensor | None) -> Tensor:
        """The weights of some candidates ``[C, D]`` for a query ``[D]``, both looked at from ``origin`` (None: from zero): ``[C]``."""
        if self.temperature is None:
            return candidates.new_full((len(candidates),), 1 / len(candidates))
        return torch.softmax(self._likeness(query, candidates, origin) / self.temperature, 0)

    def _likeness(self, query: Tensor, candidates: Tensor, origin: Tensor | None) -> Tensor:
        q, k = (query, candidates) if origin is None else (query - origin, candidates - origin)
        if self.similarity == "distance":
            like = -torch.linalg.vector_norm(k - q, dim=1)
        elif self.similarity == "dot":
            like = (k @ q) / len(q) ** 0.5
        else:
            lengths: Tensor = torch.linalg.vector_norm(k, dim=1) * torch.linalg.vector_norm(q)
            like = (k @ q) / lengths.clamp_min(torch.finfo(q.dtype).tiny)
        return like  # type: ignore[no-any-return]

    def _origin(self, s: State, layer: Sequence[str], above: Stack | None) -> Tensor | None:
        """What a layer is compared from; the root has no parent, and takes the initial values for one."""
        if self.reference == "weights":
            return None
        return _vector(named(above if self.reference == PARENT and above is not None else s.shared["initial"], layer))

    @numeric
    def _mix_(
        self,
        s: State,
        key: Layers,
        into: Stack,
        query: Vectors,
        above: Stack | None,
        candidates: Mapping[str, Vectors],
        residuals: Sequence[Stack],
        seen: dict[str, dict[str, float]],
    ) -> None:
        """K + ε·Σ a_i·(K_i − K) of an agreed state, in place; ``seen`` learns the attention by layer and candidate."""
        every = {OWN: query, **candidates}
        every |= {f"residual {k}": named(r, _all(key)) for k, r in enumerate(residuals)}
        for layer, names in key.items():
            K = torch.stack([_layer(x, names) for x in every.values()])  # [C, D]
            a = self.attention(K[0], K, self._origin(s, names, above))
            _put_(into, _parts(K[0] + self.step_size * (a @ (K - K[0])), {n: query[n] for n in names}))
            seen[layer] = dict(zip(every, a.tolist(), strict=True))

    @numeric
    def _mix_at_workers_(
        self, s: State, key: Layers, workers: Sequence[int], theirs: Stack, residuals: Sequence[Stack]
    ) -> None:
        params, own, attention = s.local["params"], s.local[OWN], s.local["attention"]
        for w in (w for w in workers if w in s.fleet.mine):
            for layer, names in key.items():
                K = torch.stack(
                    [
                        _vector({n: own.cell(n, w) for n in names}),
                        *(_vector(named(x, names)) for x in (theirs, *residuals)),
                    ]
                )
                a = self.attention(K[0], K, self._origin(s, names, theirs))
                mixed = K[0] + self.step_size * (a @ (K - K[0]))
                for n, x in _parts(mixed, {n: params.cell(n, w) for n in names}).items():
                    params.cell(n, w).copy_(x)
                row = attention.cell(layer, w)
                row.zero_()
                row[: len(a)] = a

    @numeric
    def _mix_at_node_(
        self,
        s: State,
        key: Layers,
        node: Node,
        agreed: Stack,
        above: Stack | None,
        candidates: Mapping[str, Vectors],
        misfits: Sequence[dict[str, Tensor]],
    ) -> None:
        """The key layers of a node, and into ``misfits`` its children's that are least like them."""
        seen: dict[str, dict[str, float]] = {}
        query = {n: x.clone() for n, x in named(agreed, _all(key)).items()}
        self._mix_(s, key, agreed, query, above, candidates, self._residuals_of(s, node), seen)
        s.facts.setdefault("attention", {})[node.name] = seen
        for layer, names in key.items():
            children = [who for who in candidates if who != PARENT]
            K = torch.stack([_layer(candidates[who], names) for who in children])
            like = self._likeness(_layer(query, names), K, self._origin(s, names, above)).tolist()
            order = sorted(range(len(children)), key=lambda i: like[i])
            for k, slot in enumerate(misfits):
                who = children[order[k]]
                s.facts.setdefault("misfits", {}).setdefault(node.name, {}).setdefault(layer, {})[str(k)] = who
                for n in names:
                    slot[n].copy_(candidates[who][n])

    # residuals

    def _residuals_of(self, s: State, node: Node) -> list[Stack]:
        return [s.shared[_residual(node, k)] for k in range(s.facts.get("residuals", {}).get(node.name, 0))]

    def _route_(
        self,
        s: State,
        key: Layers,
        agreed: Stack,
        nodes: Sequence[Node],
        keys: Mapping[str, Vectors],
        pool: Sequence[tuple[str, int, Vectors]],
    ) -> None:
        """For each child node, of what others do not fit, as many as it may have that are most like its own key layers."""
        for child in nodes:
            others, its_own = (
                [entry for entry in pool if entry[0] != child.name],
                [x for name, _, x in pool if name == child.name],
            )
            num = s.facts["residuals"][child.name] = min(self.residuals, len(others))
            slots = [s.shared[_residual(child, k)] for k in range(num)]
            self._choose_(s, key, child, keys.get(child.name, {}), agreed, others, its_own, slots)

    @numeric
    def _choose_(
        self,
        s: State,
        key: Layers,
        child: Node,
        query: Vectors,
        agreed: Stack,
        pool: Sequence[tuple[str, int, Vectors]],
        its_own: Sequence[Vectors],
        slots: Sequence[Stack],
    ) -> None:
        """What is less like the child's key layers than what it hands on itself is of no use there: these take the place."""
        found = self._nearest(s, key, query, agreed, [x for *_, x in pool], slots, its_own) if query else {}
        s.facts.setdefault("routes", {})[child.name] = {
            layer: [
                [pool[i][0], s.facts.get("misfits", {}).get(pool[i][0], {}).get(layer, {}).get(str(pool[i][1]), "")]
                for i in chosen
            ]
            for layer, chosen in found.items()
        }

    @numeric
    def _take_nearest_(
        self, key: Layers, query: Vectors, s: State, agreed: Stack, pool: Sequence[Stack], slots: Sequence[Stack]
    ) -> None:
        """Of the residuals that wait for a node, and those of its parent, the ones that are most like its own."""
        if len(pool) > len(slots):
            some = [{n: x.clone() for n, x in named(p, _all(key)).items()} for p in pool]
            self._nearest(s, key, query, agreed, some, slots)

    def _nearest(
        self,
        s: State,
        key: Layers,
        query: Vectors,
        above: Stack,
        pool: Sequence[Vectors],
        slots: Sequence[Stack],
        worse: Sequence[Vectors] = (),
    ) -> dict[str, list[int]]:
        """Fill the slots, layer by layer; which of the pool were chosen. What is no better than ``worse`` is left out for the query."""
        found: dict[str, list[int]] = {}
        for layer, names in key.items() if slots else ():
            q, origin = _layer(query, names), self._origin(s, names, above)
            K = torch.stack([_layer(x, names) for x in (*pool, *worse)])
            like = self._likeness(q, K, origin).tolist()
            best = sorted(range(len(pool)), key=lambda i: -like[i])[: len(slots)]
            limit = max(like[len(pool) :], default=float("-inf"))
            found[layer] = [i for i in best if like[i] > limit]
            for k, slot in enumerate(slots):
                chosen = pool[best[k]] if k < len(best) and like[best[k]] > limit else query
                _put_(slot, {n: chosen[n] for n in names})
        return found

    # privacy

    @numeric
    def _make_private_(self, s: State, handed: Stack, workers: Sequence[int], t: int) -> None:
        """What private workers hand in: start + clipped way + noise, over all that is not personal."""
        start, blocks = s.local.get("start"), [i for i, b in enumerate(handed.layout.blocks) if not b.personal]
        for w, private in self.privacy.items() if start is not None else ():
            if w not in workers or w not in s.fleet.mine:
                continue
            assert start is not None
            rows = [(i, handed.layout.blocks[i].holders.index(w)) for i in blocks]
            ways = [handed.blocks[i][row] - start.blocks[i][row] for i, row in rows]
            norm = torch.stack([way.norm(dtype=at_least_float32(way.dtype)) for way in ways]).norm()
            scale = float((private.clip / norm).clamp(max=1.0)) if norm > 0 else 1.0
            g = generator(self.noise_seed, "privacy", w, int(t))
            for (i, row), way in zip(rows, ways, strict=True):
                noise = torch.randn(way.shape, generator=g, dtype=at_least_float32(way.dtype)).to(way)
                handed.blocks[i][row] = start.blocks[i][row] + way * scale + noise * (private.noise * private.clip)

    # which tensors

    def _key(self, s: State) -> Layers:
        return _key_layers(tuple(sent_names(s.fleet)), self.key_share, self.key_layers)

    def _backbone(self, s: State) -> list[str]:
        key = {*_all(self._key(s))}
        return [n for n in sent_names(s.fleet) if n not in key]


def layer_of(name: str) -> tuple[str, bool]:
    """The layer of a tensor, ``blocks.3`` of ``blocks.3.mlp.0.weight``, and whether the model numbers it; else its module."""
    parts = name.split(".")
    number = next((i for i, part in enumerate(parts) if part.isdigit()), None)
    return (".".join(parts[: number + 1]), True) if number is not None else (name.rpartition(".")[0] or name, False)


@functools.lru_cache(16)
def _key_layers(names: tuple[str, ...], share: float, patterns: tuple[str, ...] | None) -> Layers:
    layers: dict[str, list[str]] = {}
    for pattern in patterns or ():
        if not any(fnmatchcase(name, pattern) for name in names):
            raise RecipeError(f"method.key_layers = {pattern!r} fits no parameter: there are {', '.join(names[:8])} …")
    for name in names:
        if patterns is None or any(fnmatchcase(name, pattern) for pattern in patterns):
            layers.setdefault(layer_of(name)[0], []).append(name)
    if patterns is None:
        numbered = dict.fromkeys(layer for layer, by_number in map(layer_of, names) if by_number)
        if len(layers) == 1:
            layers = {name: [name] for name in names}
        some = [*numbered] if len(numbered) > 1 else [*layers]
        layers = {layer: layers[layer] for layer in some[len(some) - ceil(share * len(some)) :]}
    if layers and sum(map(len, layers.values())) == len(names):
        raise RecipeError(
            "all layers are key layers, and no backbone is left: set method.key_share or key_layers lower"
        )
    return {layer: tuple(of) for layer, of in layers.items()}


def _all(key: Layers) -> list[str]:
    return [name for names in key.values() for name in names]


def _residual(node: Node, k: int) -> str:
    return f"residual.{node.name}.{k}"


def _per_layer(params: Stack, key: Layers, num: int) -> Stack:
    """A row of so many numbers for every layer, at every worker."""
    everywhere = params.layout.blocks[0].everywhere
    layout = Layout.of(
        dict.fromkeys(key, everywhere),
        dict.fromkeys(key, torch.Size([num])),
        lambda layer: "attention",
        mine=params.layout.mine,
    )
    return Stack.zeros(layout, params.blocks[0].device, params.blocks[0].dtype)


def _vector(layer: Vectors) -> Tensor:
    """One layer as one vector ``[D]``, at least float32."""
    flat = torch.cat([x.flatten() for x in layer.values()])
    return flat.to(at_least_float32(flat.dtype))


def _layer(x: Vectors, names: Sequence[str]) -> Tensor:
    return _vector({n: x[n] for n in names})


def _parts(vector: Tensor, like: Vectors) -> dict[str, Tensor]:
    """A layer's tensors from its vector."""
    parts = vector.split([x.numel() for x in like.values()])
    return {n: part.view(x.shape).to(x.dtype) for part, (n, x) in zip(parts, like.items(), strict=True)}


@numeric
def _put_(agreed: Stack, tensors: Mapping[str, Any]) -> None:
    torch._foreach_copy_([agreed[n][0] for n in tensors], [*tensors.values()])
