"""Who belongs to whom, who attends to whom, and who is served best?"""

from __future__ import annotations

from dataclasses import dataclass, field

from lab.events import Branched, Ended, Event, Sent, Started
from lab.runs.growing import Growing
from widgets.matrices import Matrix
from widgets.pictures import Lines, Note, Picture, Series
from widgets.view import View

KINDS = ("own", "parent", "children", "residuals")
MANY = 24  # workers that no longer have a line or a row of their own


@dataclass(eq=False, repr=False)
class FederationTree(View):
    """A tree of federations: who trains and talks, losses of its nodes and workers, attention and residuals, from `Branched`."""

    title = "Who is served best in the tree?"
    reads = (Started, Sent, Branched, Ended)

    step: Growing = field(default_factory=Growing, init=False)
    loss: dict[str, Growing] = field(default_factory=dict, init=False)  # by node, and of workers in the mean
    sent: dict[int, int] = field(default_factory=dict, init=False)  # bytes of all, by level
    last: Branched | None = field(default=None, init=False)

    def fold(self, event: Event) -> None:
        match event:
            case Started():
                self.step, self.loss, self.sent, self.last = Growing(), {}, {}, None
            case Sent():
                self.sent[event.level] = self.sent.get(event.level, 0) + event.bytes_all
            case Branched():
                self.step.append(event.step)
                for name, x in zip(event.nodes, event.loss_N, strict=True):
                    self.loss.setdefault(name, Growing()).append(x)
                known = [x for x in event.loss_W if x is not None]
                mean = sum(known) / len(known) if known else None
                self.loss.setdefault("workers' own", Growing()).append(mean)
                self.last = event

    def pictures(self) -> list[Picture]:
        if self.last is None:
            return [
                Note(self.title, "Nothing was seen yet: methods with a tree, such as hierfavg and worldlm, have one.")
            ]
        out: list[Picture] = [Note("In numbers", self.last.words + self._talk()), self._tree(self.last)]
        if any(x is not None for x in self.last.loss_N):
            out.append(self._losses(self.last))
        if self.last.attention:
            out.append(self._attention(self.last))
        return out

    def _talk(self) -> str:
        """How much has gone over the links of each level."""
        each = [
            f"{num / 1e6:.3g} MB {'of workers' if not level else f'{level} above'}"
            for level, num in sorted(self.sent.items())
        ]
        return f"; over links so far: {', '.join(each)}" if each else ""

    def _tree(self, seen: Branched) -> Note:
        """The tree, a line for each node and one for its workers."""
        lines, depth = list[str](), dict[str, int]()
        for name, parent, loss in zip(seen.nodes, seen.parents, seen.loss_N, strict=True):
            depth[name] = depth[parent] + 1 if parent else 0
            got = {f"{child} of {node}" for chosen in seen.routes.get(name, {}).values() for node, child in chosen}
            routed = f" ← residuals of {', '.join(sorted(got))}" if got else ""
            lines.append(f"{'· ' * depth[name]}{name}{_number(loss)}{routed}")
            below = [w for w, p in enumerate(seen.parent_W) if p == name]
            shown = [f"{w}{_number(seen.loss_W[w])}" for w in below[:MANY]]
            if shown:
                more = f" and {len(below) - MANY} more" if len(below) > MANY else ""
                lines.append(f"{'· ' * (depth[name] + 1)}workers {', '.join(shown)}{more}")
        return Note(f"Who belongs to whom, at step {seen.step:,} (losses on what workers hold out)", "\n".join(lines))

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


def _number(loss: float | None) -> str:
    return "" if loss is None else f" ({loss:.3f})"
