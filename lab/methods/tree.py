"""Federations of federations: a tree whose leaves are the workers. Each node is a server for its children, and a client of its parent.

What a node agreed on with its children is a shared state of its own, ``params`` at the root and ``node.<name>`` at any other node; the
server keeps them all. What goes between two nodes is counted like everything else, at a level above 0 (`lab.events.Sent`), and stands in
the ledger under one worker for each of them: the first of its workers that is up.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Annotated, Any

from pydantic import BeforeValidator
from torch import Tensor

from lab.engine.fleet import Fleet
from lab.engine.stack import Layout, Stack
from lab.engine.state import State
from lab.ground.config import RecipeView
from lab.ground.errors import RecipeError, shown
from lab.methods.registry import never_synced
from lab.methods.rounds import beginning

ROOT = "root"
DEEPEST = 16  # levels of nodes
FORM = (
    'it is a list of workers and of such lists, as in [[0,1],[2,3]], an object of named ones, as in {"north":[0,1],"south":[2,3]}, or how '
    'many go together from below, as in "3" or "3x2"'
)


def _spec(value: Any) -> Any:
    """A tree as it is written, as plain JSON."""
    if isinstance(value, str):
        if not re.fullmatch("|[1-9][0-9]{0,5}(x[1-9][0-9]{0,5}){0,14}", value):
            raise RecipeError(f"method.tree = {shown(value)} is not allowed: {FORM}")
        return value
    return _plain(value, 1)


def _plain(value: Any, depth: int) -> Any:
    if depth > DEEPEST:
        raise RecipeError(f"method.tree has more than {DEEPEST} levels: use fewer")
    if isinstance(value, Mapping) and value:
        for name, below in value.items():
            if not re.fullmatch("[A-Za-z0-9_-]{1,40}", str(name)) or name == ROOT:
                raise RecipeError(
                    f"method.tree names a node {shown(name)}: use letters, digits, - and _, and not {ROOT}"
                )
            if isinstance(below, int):
                raise RecipeError(
                    f"method.tree.{name} = {shown(below)} is a worker: a node is a list of them, [{shown(below)}]"
                )
        return {name: _plain(below, depth + 1) for name, below in value.items()}
    if isinstance(value, list | tuple) and value:
        return [below if type(below) is int else _plain(below, depth + 1) for below in value]
    raise RecipeError(f"method.tree has {shown(value)} in it, which is not allowed: {FORM}")


Spec = Annotated[Any, BeforeValidator(_spec)]


@dataclass(frozen=True)
class Node:
    """A federation: its children are workers, nodes, or both."""

    name: str
    parent: str | None
    workers: tuple[int, ...]
    nodes: tuple[str, ...]
    leaves: tuple[int, ...]  # all workers below it
    height: int  # levels below it, 1 where all children are workers

    @property
    def state(self) -> str:
        """The name of the shared state that is its model."""
        return "params" if self.parent is None else f"node.{self.name}"

    def seat(self, up: Sequence[bool]) -> int | None:
        """The worker that stands for the node in a ledger; None where none of its workers is up: then it neither hears nor speaks."""
        return next((w for w in self.leaves if up[w]), None)


class Tree(dict[str, Node]):
    """The nodes by name, parents before their children."""

    def below(self, node: Node) -> list[Node]:
        return [self[name] for name in node.nodes]

    def parent_of_W(self) -> list[str]:
        """The parent of every worker."""
        of = {w: node.name for node in self.values() for w in node.workers}
        return [of[w] for w in sorted(of)]


def tree_of(spec: Any, num_workers: int) -> Tree:
    """Read a tree of so many workers.

    Raises
    ------
    RecipeError
        where a worker is missing, is there twice or does not exist, and where two nodes have the same name.
    """
    return _tree(json.dumps(spec), num_workers)


@functools.lru_cache(64)
def _tree(text: str, num_workers: int) -> Tree:
    spec = json.loads(text)
    tree = Tree()
    _grow(tree, ROOT, None, _nested(spec, num_workers) if isinstance(spec, str) else spec)
    leaves = tree[ROOT].leaves
    for w in sorted({*leaves} | {*range(num_workers)}):
        if w not in range(num_workers):
            raise RecipeError(f"method.tree has worker {w}, and the workers are 0 to {num_workers - 1}")
        if leaves.count(w) != 1:
            many = "is not in it" if w not in leaves else f"is in it {leaves.count(w)} times"
            raise RecipeError(f"method.tree must have every worker once, and worker {w} {many}")
    return tree


def _nested(sizes: str, num_workers: int) -> list[Any]:
    """``3x2``: three workers to a node, two of those to the next, all that come to be under one root."""
    level: list[Any] = [*range(num_workers)]
    for size in map(int, sizes.split("x") if sizes else ()):
        level = [level[i : i + size] for i in range(0, len(level), size)]
    return level


def _grow(tree: Tree, name: str, parent: str | None, spec: Any) -> Node:
    if name in tree:
        raise RecipeError(f"method.tree has two nodes with the name {name!r}: give each its own")
    tree[name] = Node(name, parent, (), (), (), 1)  # its place, before its children
    nodes: list[Node] = []
    if isinstance(spec, dict):
        workers: tuple[int, ...] = ()
        nodes = [_grow(tree, child, name, below) for child, below in spec.items()]
    else:
        workers = tuple(x for x in spec if isinstance(x, int))
        for i, below in enumerate(x for x in spec if not isinstance(x, int)):
            letter = chr(ord("A") + i) if i < 26 else f"N{i}"
            nodes.append(_grow(tree, letter if parent is None else f"{name}.{letter}", name, below))
    leaves = tuple(sorted([*workers, *(w for n in nodes for w in n.leaves)]))
    height = 1 + max((n.height for n in nodes), default=0)
    tree[name] = Node(name, parent, workers, tuple(n.name for n in nodes), leaves, height)
    return tree[name]


def check_tree(spec: Any, recipe: RecipeView) -> None:
    """Raises RecipeError where a recipe does not go with its tree."""
    tree_of(spec, recipe.num_workers)
    if spec and recipe.clients.take_turns(recipe.num_workers):
        raise RecipeError(
            "method.tree says which worker belongs where, but clients take turns as workers: leave out method.tree (all under one root), "
            "or let every client be a worker"
        )


def grow_nodes_(s: State, spec: Any) -> Tree:
    """All nodes begin with the root's model.

    Raises
    ------
    RecipeError
        where workers hold different tensors: it would be open what a node whose workers lack some knows of them.
    """
    tree, num = tree_of(spec, s.fleet.num_workers), s.fleet.num_workers
    if any(len(block.everywhere) < num for block in s.fleet.layout.blocks):
        raise RecipeError(
            "a tree of federations needs workers that hold the same tensors: leave out placement.overlap, and give one lora rank"
        )
    whole = beginning(s.fleet)
    s.facts["nodes"] = [[node.name, node.parent or "", list(node.workers)] for node in tree.values()]  # for probes
    for node in tree.values():
        s.shared[node.state] = of_leaves(whole.clone(), node)
    return tree


def of_leaves(stack: Stack, node: Node) -> Stack:
    """The same agreed values as those of the workers below a node alone."""

    def mine(workers: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(w for w in workers if w in node.leaves)

    blocks = [replace(b, everywhere=mine(b.everywhere), holders=mine(b.holders)) for b in stack.layout.blocks]
    return Stack(Layout(blocks, stack.layout.place, stack.layout.mine), stack.blocks)


def periods_of(tree: Tree, sync_every: int, rounds: Sequence[int]) -> list[int]:
    """Local steps of a round of a node, by its height less 1."""
    top = tree[ROOT].height
    longer = [*rounds, *[rounds[-1] if rounds else 1] * top][: top - 1]
    return [sync_every * prod(longer[:k]) for k in range(top)]


def never_averaged(spec: Any, sync_every: int, rounds: Sequence[int], recipe: RecipeView) -> Iterator[str]:
    """A line where the run ends before a round of the root does, or of all nodes."""
    yield from never_synced(sync_every, recipe.steps)
    tree = tree_of(spec, recipe.num_workers)
    last = periods_of(tree, sync_every, rounds)[-1]
    if sync_every <= recipe.steps < last:
        yield (
            f"a round of the root is {last:,} local steps (method.sync_every times method.rounds), and the run has {recipe.steps:,}: "
            "the root stays at its first values, and they are the agreed model that is scored"
        )


class Rounds:
    """Which nodes begin, and which end, a round in local step ``t``: ``sync_every`` local steps for those above workers, and so many of
    these rounds, level by level, for those above them (the last number is for all further levels)."""

    def __init__(self, tree: Tree, sync_every: int, rounds: Sequence[int], t: Any):
        self.tree = tree
        periods = periods_of(tree, sync_every, rounds)
        self._begins = [bool((t - 1) % period == 0) for period in periods]
        self._ends = [bool(t % period == 0) for period in periods]

    def beginning(self, s: State) -> Iterator[tuple[Node, list[int], list[Node]]]:
        """Nodes from the root downwards, with the workers and the nodes among their children that fetch what is agreed there.

        In the midst of a round those do that are back, and a node of whose workers none was there before.
        """
        up, back = s.fleet.up, {*s.returned}
        for node in self.tree.values():
            begins = self._begins[node.height - 1]
            workers = [w for w in node.workers if (begins and (up[w] or w in back)) or (up[w] and w in back)]
            nodes = [c for c in self.tree.below(node) if c.seat(up) is not None and (begins or _all_new(c, up, back))]
            if workers or nodes:
                yield node, workers, nodes

    def ending(self, s: State) -> Iterator[tuple[Node, list[int], list[Node]]]:
        """Nodes from below upwards, with the workers and the nodes among their children that hand in what they have."""
        up = s.fleet.up
        for node in reversed(self.tree.values()):
            if self._ends[node.height - 1] and node.seat(up) is not None:
                yield (
                    node,
                    [w for w in node.workers if up[w]],
                    [c for c in self.tree.below(node) if c.seat(up) is not None],
                )


def _all_new(node: Node, up: Sequence[bool], back: set[int]) -> bool:
    return all(w in back for w in node.leaves if up[w])


def by_level(nodes: Sequence[Node], tensors: Mapping[str, Mapping[str, Tensor]], s: State) -> Iterator[tuple[int, Any]]:
    """What nodes hand over or receive, each under its seat: level by level, for `Communicator.collect` and ``hand_out``."""
    for height in sorted({node.height for node in nodes}):
        at = [node for node in nodes if node.height == height]
        yield height, {node.seat(s.fleet.up): tensors[node.name] for node in at}


def named(stack: Stack, names: Sequence[str]) -> dict[str, Tensor]:
    """Some tensors of an agreed state, as views."""
    return {name: stack[name][0] for name in names}


def sent_names(fleet: Fleet) -> list[str]:
    """The tensors that are not personal."""
    return [name for name in fleet.params.names() if not fleet.params.is_personal(name)]
