"""Who belongs to whom, who attends to whom, and who is served best?"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np

from lab.events import Branched, Ended, Event, Sent, Started
from lab.runs.growing import Growing
from widgets.answers import plural
from widgets.graphs import NARROWEST, SIDES, Dot, Graph, Link
from widgets.matrices import Matrix
from widgets.pictures import Lines, Note, Picture, Series
from widgets.view import View

KINDS = ("own", "parent", "children", "residuals")
MANY = 24  # workers that no longer have a row of their own
LABELLED = 12  # workers that have a label
DRAWN = 128  # workers that are drawn
CURVE = 24  # pieces of a curved line
HANDED_IN, SILENT, RESIDUAL = "handed in", "handed in nothing", "residual, to a node of another branch"


@dataclass(eq=False, repr=False)
class FederationTree(View):
    """A tree of federations: who trains and talks, losses of its nodes and workers, attention and residuals, from `Branched`."""

    title = "Who is served best in the tree?"
    reads = (Started, Sent, Branched, Ended)

    step: Growing = field(default_factory=Growing, init=False)
    loss: dict[str, Growing] = field(default_factory=dict, init=False)  # by node, and of workers in the mean
    sent: dict[int, int] = field(default_factory=dict, init=False)  # bytes of all, by level
    handed_in: dict[tuple[int, int], int] = field(default_factory=dict, init=False)  # last step, by level and worker
    last: Branched | None = field(default=None, init=False)

    def fold(self, event: Event) -> None:
        match event:
            case Started():
                self.step, self.loss, self.sent, self.handed_in, self.last = Growing(), {}, {}, {}, None
            case Sent():
                self.sent[event.level] = self.sent.get(event.level, 0) + event.bytes_all
                if event.op != "broadcast":  # upwards
                    self.handed_in |= dict.fromkeys([(event.level, w) for w in event.workers], event.step)
            case Branched():
                self.step.append(event.step)
                for name, x in zip(event.nodes, event.loss_N, strict=True):
                    self.loss.setdefault(name, Growing()).append(x)
                known = [x for x in event.loss_W if x is not None]
                mean = sum(known) / len(known) if known else None
                self.loss.setdefault("workers' own", Growing()).append(mean)
                self.last = event

    def answer(self) -> str:
        seen = self.last
        if seen is None:
            return "No look at the tree yet."
        known = [x for x in seen.loss_W if x is not None]
        who = f"At step {seen.step:,}, {plural(len(seen.parent_W), 'worker')} under {plural(len(seen.nodes), 'node')}"
        if not known or seen.loss_N[0] is None:
            return f"{who}; without losses, since workers hold out nothing to be scored on."
        return (
            f"{who}: on what workers hold out, their own models lose {sum(known) / len(known):.3g} on average ({min(known):.3g} to {max(known):.3g}), "
            f"the root's {seen.loss_N[0]:.3g}."
        )

    def pictures(self) -> list[Picture]:
        if self.last is None:
            return [
                Note(self.title, "Nothing was seen yet: methods with a tree, such as hierfavg and worldlm, have one.")
            ]
        known = any(x is not None for x in self.last.loss_N)
        unknown = "" if known else "; no losses: workers hold out nothing to be scored on (clients.held_out)"
        out: list[Picture] = [Note("In numbers", self.last.words + unknown + self._talk()), self._tree(self.last)]
        if known:
            out.append(self._losses(self.last))
        if self.last.attention:
            out.append(self._attention(self.last))
        return out

    def _talk(self) -> str:
        """How much has gone over the links of each level."""
        each = [
            f"{num / 1e6:.3g} MB {'of workers' if not level else _above(level)}"
            for level, num in sorted(self.sent.items())
        ]
        return f"; over links so far: {', '.join(each)}" if each else ""

    def _tree(self, seen: Branched) -> Graph:
        """Nodes level by level, workers below them."""
        tree = _Tree(seen, self.handed_in)
        width = "; width: attention to the key layers above" if seen.attention else ""
        left_out = "; ".join(["", *tree.left_out])
        return Graph(
            f"Who belongs to whom, and who talks? (step {seen.step:,})",
            f"lines: who handed in when it last was time{width}{left_out}",
            tree.dots(),
            [*tree.links(), *tree.routes()],
            "loss (held out)",
        )

    def _losses(self, seen: Branched) -> Lines:
        chosen = ["workers' own", *seen.nodes[:6]]
        series = [Series(name, self.step, self.loss[name]) for name in chosen]
        return Lines(
            "How good is each node for the workers below it?", "local step", "loss on what workers hold out", series
        )

    def _attention(self, seen: Branched) -> Matrix:
        workers = range(min(len(seen.parent_W), MANY))
        rows = [
            *(n for n in seen.nodes if n in seen.attention),
            *(f"worker {w}" for w in workers if seen.attention_W[w]),
        ]
        masses = [seen.mass(n) for n in seen.nodes if n in seen.attention]
        masses += [seen.mass(w) for w in workers if seen.attention_W[w]]
        return Matrix(
            "Whose key layers does each attend to?",
            "attention goes to",
            rows,
            KINDS,
            [[m.get(kind) for kind in KINDS] for m in masses],
            "share of attention",
            low=0.0,
            high=1.0,
            hover="{row} gives {value} to {column}",
        )


def _above(level: int) -> str:
    return f"{level} level{'s' * (level != 1)} above"


class _Tree:
    """Where everybody stands, what is said of them, and how they are linked. Workers are numbers, nodes are names."""

    def __init__(self, seen: Branched, handed_in: dict[tuple[int, int], int]):
        self.seen = seen
        workers = list(enumerate(seen.parent_W)) if len(seen.parent_W) <= DRAWN else []
        self.parent: dict[str | int, str] = dict(zip(seen.nodes, seen.parents, strict=True)) | dict(workers)
        self.below: dict[str | int, list[str | int]] = {who: [] for who in self.parent}
        for who, up in self.parent.items():
            if up:
                self.below[up].append(who)
        self.height = self._heights()
        self.step = {who: self._handed_in(who, handed_in) for who in self.parent}
        self.place = self._places()
        self.left_out = [] if workers else [f"{len(seen.parent_W):,} workers are not drawn"]
        self.label = self._labels()

    def _heights(self) -> dict[str | int, int]:
        """Levels below each; of a node whose workers are not drawn too."""
        out = {who: int(isinstance(who, str)) for who in self.parent}
        for who in reversed(self.seen.nodes):  # children before their parents
            up = self.parent[who]
            if up:
                out[up] = max(out[up], out[who] + 1)
        return out

    def _handed_in(self, who: str | int, handed_in: dict[tuple[int, int], int]) -> int:
        """The last step at which it did; 0: never. In the ledger a node has the seat of one of its workers."""
        if isinstance(who, int):
            return handed_in.get((0, who), 0)
        seats = [w for w in range(len(self.seen.parent_W)) if who in self._above(w)]
        return max((handed_in.get((self.height[who], w), 0) for w in seats), default=0)

    def _above(self, worker: int) -> list[str]:
        up, out = dict(zip(self.seen.nodes, self.seen.parents, strict=True)), [self.seen.parent_W[worker]]
        while up[out[-1]]:
            out.append(up[out[-1]])
        return out

    def _places(self) -> dict[str | int, tuple[float, float]]:
        """Workers side by side, a node above the middle of its children; at the right there is room for the label of a node."""
        ends: list[str | int] = []

        def walk(who: str | int) -> None:
            if not self.below[who]:
                ends.append(who)
            for child in self.below[who]:
                walk(child)

        walk(self.seen.nodes[0])
        across = {who: 0.94 * (k + 0.5) / len(ends) for k, who in enumerate(ends)}
        depth: dict[str | int, int] = {}
        for who, up in self.parent.items():
            depth[who] = depth[up] + 1 if up else 0
        for who in reversed(self.seen.nodes):
            if children := self.below[who]:
                across[who] = (across[children[0]] + across[children[-1]]) / 2
        deepest = max(depth.values()) or 1
        return {who: (across[who], 1.0 if isinstance(who, int) else depth[who] / deepest) for who in self.parent}

    def _labels(self) -> dict[str | int, list[str]]:
        """Name and loss of workers, where they are few, and of nodes, where there is room for them."""
        room = NARROWEST - sum(SIDES)
        out: dict[str | int, list[str]] = {}
        workers = [who for who in self.parent if isinstance(who, int)]
        if len(workers) > LABELLED:
            self.left_out.append(f"{len(workers)} workers have no label")
        else:
            out |= {w: [str(w), *self._loss(w)] for w in workers}
        unnamed = 0
        for level in sorted({self.place[n][1] for n in self.seen.nodes}):
            nodes = sorted((n for n in self.seen.nodes if self.place[n][1] == level), key=lambda n: self.place[n][0])
            at = [*(self.place[n][0] for n in nodes), 1.05]
            letters = int((room * min(b - a for a, b in pairwise(at)) - 22) / 6.8)  # beside a dot, before the next
            if letters < max(len(part) for n in nodes for part in (*self._loss(n), "a")):
                unnamed += len(nodes)
                continue
            short = [n if len(n) <= letters else n[: letters - 1] + "…" for n in nodes]
            out |= {n: [name, *self._loss(n)] for n, name in zip(nodes, short, strict=True)}
        if unnamed:
            self.left_out.append(f"{unnamed} nodes have no label")
        return out

    def _loss(self, who: str | int) -> list[str]:
        loss = self.seen.loss_W[who] if isinstance(who, int) else self.seen.loss_N[self.seen.nodes.index(who)]
        return [] if loss is None else [f"{loss:.3g}"]

    def dots(self) -> list[Dot]:
        values = dict(zip(self.seen.nodes, self.seen.loss_N, strict=True)) | dict(enumerate(self.seen.loss_W))
        return [
            Dot(
                *self.place[who],
                self._words(who, values[who]),
                values[who],
                self.label.get(who, ()),
                isinstance(who, int),
            )
            for who in self.parent
        ]

    def _words(self, who: str | int, loss: float | None) -> str:
        says = [f"worker {who} of {self.parent[who]}" if isinstance(who, int) else who]
        says[0] += "" if loss is None else f": loss {loss:.4g}"
        if up := self.parent[who]:
            says.append(f"last handed in at step {self.step[who]:,}" if self.step[who] else "has not handed in yet")
            if (share := self._share(who)) is not None:
                says.append(f"{share:.0%} of its attention goes to {up}")
        if got := sorted({f"{child} of {node}" for node, child in self._routes(who)}):
            says.append(f"residuals of {', '.join(got)}")
        return "\n".join(says)

    def _share(self, who: str | int) -> float | None:
        """Of attention to the key layers of its parent."""
        return self.seen.mass(who).get("parent")

    def _routes(self, who: str | int) -> list[list[str]]:
        by_layer = self.seen.routes.get(who, {}) if isinstance(who, str) else {}
        return [route for chosen in by_layer.values() for route in chosen]

    def links(self) -> list[Link]:
        """To parents. Who handed in later than none of its siblings did so when it last was time."""
        out = []
        for who, up in self.parent.items():
            if not up:
                continue
            latest = max(self.step[sibling] for sibling in self.below[up])
            share = self._share(who)
            width = 2.0 if share is None else 1.0 + round(14 * share) / 2
            points = _curve(self.place[up], self.place[who])
            talks = bool(latest) and self.step[who] == latest
            out.append(Link(HANDED_IN, points, width) if talks else Link(SILENT, points, width, 6, 2))
        return out

    def routes(self) -> list[Link]:
        """Residuals, from whose they were to the node that got them; each once, over all layers."""
        routed = {(n, node, child): None for n in self.seen.nodes for node, child in self._routes(n)}
        out = []
        for name, node, child in routed:
            source = child if child in self.place else int(child) if child.isdecimal() else node
            if source not in self.place:  # workers are not drawn
                source = node
            out.append(Link(RESIDUAL, _curve(self.place[name], self.place[source], 0.12), 1.5, 3, 1))
        return out


def _curve(top: tuple[float, float], low: tuple[float, float], lean: float = 0.0) -> list[tuple[float, float]]:
    """From one to the other: upright at both ends, or leaning towards the other (a cubic Bézier curve)."""
    (a, b), (x, y) = top, low
    ends = [(a, b), (a + lean * (x - a), (b + y) / 2), (x - lean * (x - a), (b + y) / 2), (x, y)]
    t = np.linspace(0, 1, CURVE + 1)[:, None]
    weights = np.concatenate([(1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t * t * (1 - t), t**3], axis=1)
    return [(float(v), float(w)) for v, w in weights @ np.array(ends)]
