"""Rounds with a server (`lab.methods.rounds`) whose clients hand in weights most of which are zero.

Tensors travel as values and mask (`lab.engine.codecs.NonZeros`), both ways: in the ledger the values are those of the state ``params``,
and what says where they belong is ``mask``. Only weights of linear maps and convolutions are pruned, and of them none that is personal
(`lab.models.reparametrised.layers`).

How many bytes that are hangs on values. A dry run counts what a method expects of every tensor (`nominal`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import ceil

import torch
from torch import Tensor

from lab.engine.codecs import NonZeros
from lab.engine.comm import Communicator
from lab.engine.fleet import Fleet
from lab.engine.optim import reset_
from lab.engine.stack import Stack, at_least_float32
from lab.engine.state import Grad, State, has_numbers, numeric
from lab.engine.world import Named
from lab.ground.config import RecipeView
from lab.ground.errors import RecipeError
from lab.methods.rounds import InnerStates, Weight, fetching, weights_of
from lab.models.reparametrised import convolutions, layers

CODEC = NonZeros()
Counts = Mapping[str, int]  # how many elements are not zero, by tensor


def prunable(fleet: Fleet) -> list[str]:
    """The tensors of which clients send a part."""
    names = [f"{path}.weight" for path in layers(fleet.modules[0])]
    return [n for n in names if n in fleet.layout.place and not fleet.params.is_personal(n)]


def size(stack: Stack, name: str) -> int:
    """Elements of one copy of a tensor."""
    i, k = stack.layout.place[name]
    return stack.layout.blocks[i].shapes[k].numel()


def holders(stack: Stack, name: str) -> Sequence[int]:
    """The workers that have a tensor, in all processes."""
    return stack.layout.blocks[stack.layout.place[name][0]].everywhere


def num_kept(num: int, sparsity: float) -> int:
    """Of so many weights, how many are left."""
    return max(1, round((1 - sparsity) * num))


def nominal(fleet: Fleet, share: float) -> Counts:
    """What a dry run takes the counts to be, where such a share of what can be pruned is left: the same of all tensors.

    However else as many are spread, their coding takes no more bytes: it takes less for each, the more unequal tensors are.
    """
    names, params = {*prunable(fleet)}, fleet.params
    return {n: ceil(share * size(params, n)) if n in names else size(params, n) for n in params.names()}


@torch.no_grad()
def pruned(stack: Stack, names: Sequence[str], sparsity: float, workers: Sequence[bool]) -> Stack:
    """A copy in which each of these workers has, of all ``names`` together, the weights largest in magnitude; zeros for all others."""
    if not has_numbers(stack) or not names or sparsity == 0:
        return stack
    out = stack.clone()
    for w in range(len(workers)):
        held = [n for n in names if w in stack.layout.blocks[stack.layout.place[n][0]].holders]
        keep_largest_([out.cell(n, w) for n in held] if workers[w] else [], sparsity)
    return out


@torch.no_grad()
def keep_largest_(tensors: Sequence[Tensor], sparsity: float) -> None:
    """Zero what is not among the largest of all these tensors together."""
    if not tensors or sparsity == 0:
        return
    sizes = torch.cat([x.flatten() for x in tensors]).abs()
    left = torch.zeros_like(sizes, dtype=torch.bool)
    left[sizes.topk(num_kept(len(sizes), sparsity), sorted=False).indices] = True
    for x, part in zip(tensors, left.split([x.numel() for x in tensors]), strict=True):
        x.masked_fill_(~part.view_as(x), 0.0)


def fetch_(s: State, comm: Communicator, t: int, period: int, inner_states: InnerStates, expected: Counts) -> list[int]:
    """Who has to, fetches the server's model at the beginning of local step ``t``; returns who has."""
    to, server, first = fetching(s, t, period), s.shared["params"], comm.world.first and has_numbers(s)
    if not to:
        return []
    shared = [n for n in server.names() if not server.is_personal(n)]
    own = {n: int(server[n].count_nonzero()) for n in shared} if first else {}
    # Others have to know how long a message is.
    counts = comm.world.all_gather_json(own)[0] if has_numbers(s) else expected
    made = {n: CODEC.encode(server.flat(n)[0]) if first else _shapes(server, n, counts[n]) for n in shared}
    held = {w: tuple(n for n in shared if w in holders(server, n)) for w in to}
    once = {names: {n: made[n] for n in names} for names in {*held.values()}}
    _take_(s.local["params"], *_travel(comm.hand_out, {w: once[held[w]] for w in to}), s.fleet.mine)
    if inner_states == "reset":
        reset_(s.optimizers["inner"], s.local["params"], [w in to for w in range(s.fleet.num_workers)])
    return to


def hand_in_(s: State, comm: Communicator, stack: Stack, weight: Weight, expected: Counts) -> None:
    """What is in the rows of those that are up, handed in: the server's model becomes their mean, over those who hold a tensor."""
    here = [w for w in s.fleet.mine if s.fleet.up[w] and has_numbers(s)]
    held = {
        w: [n for n in stack.names() if w in holders(stack, n) and not stack.is_personal(n)]
        for w, up in enumerate(s.fleet.up)
        if up
    }
    counts: Mapping[int, Counts] = dict.fromkeys(held, expected)
    if has_numbers(s):
        own = {w: {n: int(stack.cell(n, w).count_nonzero()) for n in held[w]} for w in here}
        counts = comm.world.all_gather_by_worker(own)
    made = {
        w: {
            n: CODEC.encode(stack.cell(n, w).flatten()) if w in here else _shapes(stack, n, counts[w][n])
            for n in held[w]
        }
        for w in held
    }
    values, masks = _travel(lambda tensors, state: comm.collect(tensors, state, of=stack), made)
    _average_(s, values, masks, weights_of(s, weight))


def _shapes(stack: Stack, name: str, count: int) -> tuple[Tensor, ...]:
    return CODEC.shapes(size(stack, name), count, stack[name].dtype)


def _travel(
    send: Callable[[Named, str], Named], made: Mapping[int, Mapping[str, tuple[Tensor, ...]]]
) -> tuple[Named, Named]:
    """Values first, then masks, where there are any. Who is given the same mapping is given the same two."""
    one = {
        id(named): ({n: x[0] for n, x in named.items()}, {n: x[1] for n, x in named.items() if len(x[1])})
        for named in made.values()
    }
    masks = {w: one[id(named)][1] for w, named in made.items() if one[id(named)][1]}
    values = send({w: one[id(named)][0] for w, named in made.items()}, "params")
    return values, send(masks, "mask") if masks else {}


def _decoded(values: Tensor, mask: Tensor | None, num: int) -> Tensor:
    return CODEC.decode((values, values.new_empty(0) if mask is None else mask), values.new_empty(num))


@numeric
def _take_(params: Stack, values: Named, masks: Named, mine: Sequence[int]) -> None:
    """Clients here put what they have received into their rows."""
    for w in [w for w in values if w in mine]:
        for n, x in values[w].items():
            params.cell(n, w).copy_(_decoded(x, masks.get(w, {}).get(n), size(params, n)).view_as(params.cell(n, w)))


@numeric
def _average_(s: State, values: Named, masks: Named, weights_W: Sequence[float] | None) -> None:
    """At the server. What nobody has handed in keeps its value."""
    server = s.shared["params"]
    for i, block in enumerate(server.layout.blocks):
        who = [w for w in values if w in block.everywhere and not block.personal]
        if not who:
            continue
        numels = [shape.numel() for shape in block.shapes]
        rows = torch.stack(
            [
                torch.cat(
                    [
                        _decoded(values[w][n], masks.get(w, {}).get(n), num)
                        for n, num in zip(block.names, numels, strict=True)
                    ]
                )
                for w in who
            ]
        )  # [S, P]
        fine = at_least_float32(rows.dtype)
        if weights_W is None:
            mean = rows.mean(0, keepdim=True, dtype=fine)
        else:
            p = torch.tensor([weights_W[w] for w in who], dtype=torch.float64)
            mean = (p / p.sum()).to(fine).to(rows.device)[None] @ rows.to(fine)
        server.blocks[i] = mean.to(rows.dtype)


def hand_in_pruned_(s: State, comm: Communicator, sparsity: float, weight: Weight) -> None:
    """Clients hand in the largest of their weights, over all layers together."""
    few = pruned(s.local["params"], prunable(s.fleet), sparsity, s.fleet.up)
    hand_in_(s, comm, few, weight, nominal(s.fleet, 1 - sparsity))


def not_claimed(sparsity: float, dry_run: str) -> dict[str, str]:
    """The laws that a method that prunes does not claim; why a dry run does not know all."""
    return {"dry run": dry_run, "schedule": "it prunes, whatever the learning rate"} if sparsity else {}


def share_of_union(s: State, sparsity: float) -> float:
    """The most of what can be pruned that is left where each of the workers keeps so much, and no two the same."""
    return min(1.0, s.fleet.num_workers * (1 - sparsity))


def check_weights(recipe: RecipeView) -> None:
    """Raises RecipeError where it is not weights of the model that are trained."""
    if recipe.lora.ranks:
        raise RecipeError(
            "this method prunes the weights of a model, and with lora.ranks adapters are trained: leave one out"
        )


def thresholds_first(s: State, comm: Communicator, grad: Grad, fetched: Sequence[int]) -> Tensor:
    """``grad(s)``, where convolutions find the threshold of their inputs in a client's first batch after it has fetched, and keep it."""
    known: dict[str, dict[str, float]] = s.facts.setdefault("thresholds", {})  # by worker and path
    here = [w for w in s.fleet.mine if s.fleet.up[w]] if known or fetched else []
    for w in fetched:
        known.pop(str(w), None)
    for w in here if has_numbers(s) else ():
        for path, part in convolutions(s.fleet.modules[w]).items():
            part.threshold = known.get(str(w), {}).get(path)
    loss_W = grad(s)
    if fetched and has_numbers(s):
        found = {w: {p: x.threshold for p, x in convolutions(s.fleet.modules[w]).items()} for w in here if w in fetched}
        known |= {str(w): of for w, of in comm.world.all_gather_by_worker(found).items() if of}
    return loss_W
