"""Inner and outer optimizers: any elementwise one of ``torch.optim``, run once over all workers, and those of `lab.optimizers`.

Elementwise means that each coordinate is updated from its own history alone, or at least each row. Only then is one call on the stacked
``[H, P]`` tensors the same as one call per worker. State tensors keep torch's own names (``exp_avg``, ``exp_avg_sq``, …).
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import itertools
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from lab.engine.stack import Block, Stack
from lab.engine.state import State
from lab.ground.config import Positive, config
from lab.ground.errors import RecipeError, one_of, shown
from lab.optimizers import ADOPT, QHADOPT, QHM, SGDM, FedAdam, FedMom, FedYogi, Muon, PlainAdam, QHAdam
from lab.optimizers.options import checked_options

_TORCHS = ("AdamW", "Adam", "NAdam", "RAdam", "Adamax", "Adagrad", "Adadelta", "RMSprop", "Rprop", "SGD")
_OURS = (ADOPT, SGDM, PlainAdam, Muon, QHADOPT, QHAdam, QHM, FedMom, FedAdam, FedYogi)
ELEMENTWISE: dict[str, type[torch.optim.Optimizer]] = {name: getattr(torch.optim, name) for name in _TORCHS}
ELEMENTWISE |= {cls.__name__: cls for cls in _OURS}
_HAS_FUSED = ("AdamW", "Adam", "SGD", "Adagrad")


@config
class Optimizer:
    """Which optimizer, its learning rate, and its other arguments under ``options`` (torch's names and defaults)."""

    name: str = "AdamW"
    lr: Positive = 1e-3
    options: dict[str, Any] = Field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.name not in ELEMENTWISE:
            raise RecipeError(one_of("optimizer", self.name, ELEMENTWISE))
        plain = checked_options(self.name, ELEMENTWISE[self.name], self.options)
        object.__setattr__(self, "options", plain)
        try:
            _state_names(self)
        except (TypeError, ValueError, RuntimeError, OverflowError) as error:
            # each is right, and together they are not
            raise RecipeError(f"{self.name} does not accept {shown(plain, 200)}: {error}") from None

    def over(self, params: Stack, grads: Stack | None = None) -> torch.optim.Optimizer:
        """The torch optimizer whose parameters are the blocks of ``params`` and whose gradients are those of ``grads``.

        A row that may move to another worker is a parameter of its own, so that its state can start afresh there.
        """
        places = _leaves(params)
        leaves = [torch.nn.Parameter(params.blocks[i][rows]) for i, rows in places]
        for leaf, (i, rows) in zip(leaves, places, strict=True):
            leaf.rows = params.layout.blocks[i]  # type: ignore[attr-defined]  # for who asks what tensors these are
            leaf.grad = grads.blocks[i][rows] if grads else None
        return _make(self, leaves)

    @property
    def state_names(self) -> tuple[str, ...]:
        """Names of the state tensors that have the shape of the parameters, as torch calls them."""
        return _state_names(self)

    def check_periods(self, sync_every: Mapping[str, int]) -> None:
        """Raises RecipeError for a period of a state that there is not, or none for the parameters."""
        allowed = ("params", *self.state_names)
        for name in sync_every:
            if name not in allowed:
                raise RecipeError(one_of(f"state of {self.name} in sync_every", name, allowed))
        if "params" not in sync_every:
            raise RecipeError(
                "sync_every has no 'params': workers that never average parameters do not train one model"
            )

    def check_reset(self) -> None:
        """Raises RecipeError if states of zero (`reset_`) are not those of a fresh start."""
        if self.name not in ZERO_AT_START or self.options.get("dampening"):
            raise RecipeError(
                f"inner_states = 'reset' is not available with {self.name} {self.options}, whose states do not "
                f"start at zero: use 'kept', or one of {', '.join(ZERO_AT_START)} without dampening"
            )

    def step_(self, s: State, t: int, warmup: int = 0) -> None:
        """One local step of the inner optimizer at every worker that is up; workers that are down do not move.

        ``warmup``: local steps in which the learning rate of rows that came from elsewhere rises to that of the others.
        """
        params = s.local["params"]
        if params.dry and s.optimizers["inner"].state:
            return  # a dry run has learnt which states there are
        warming = params.layout.warming(t, warmup) if warmup else []
        step_(s.optimizers["inner"], self.lr * s.schedule(t), params, s.fleet.up, warming)
        s.local.update(states(s.optimizers["inner"], params))  # they appear with the first step


def rows_apart(block: Block, workers: Sequence[int]) -> bool:
    """Whether the rows of these workers are parameters of their own, where they are in one process: rows that may move."""
    return block.unit is not None and len(workers) > 1


def _leaves(params: Stack) -> list[tuple[int, slice]]:
    """Return the parameters of an optimizer as (block, rows): a whole block each, or a single row where rows may move."""
    places: list[tuple[int, slice]] = []
    for i, (block, x) in enumerate(zip(params.layout.blocks, params.blocks, strict=True)):
        if x.is_meta or not rows_apart(block, block.holders):
            places.append((i, slice(None)))
        else:
            places += [(i, slice(row, row + 1)) for row in range(len(x))]
    return places


def step_(
    optimizer: torch.optim.Optimizer,
    lr: float,
    params: Stack,
    up: list[bool],
    warming: Sequence[tuple[int, int, float]] = (),
) -> None:
    """``optimizer.step()`` over the blocks of ``params``; rows of workers that are down stay, and so do their step counts.

    It is as if every row had a torch optimizer of its own. While all have taken as many steps, one call moves whole blocks;
    else it moves runs of neighbouring rows with the same count.

    Rows in ``warming`` (block, row, factor) move by that part of their step: the same as a smaller learning rate, to
    which the step of every optimizer here is proportional.
    """
    if params.dry:
        optimizer.step()
        return
    for group in optimizer.param_groups:
        group["lr"] = lr
    with torch.no_grad(), _warming(params, warming):
        if all(up) and not any(_differ(state) for state in optimizer.state.values()):
            _move_(optimizer, {leaf: optimizer.state[leaf] for leaf in optimizer.param_groups[0]["params"]})
        else:
            _move_rows_(optimizer, params, up)


@contextlib.contextmanager
def _warming(params: Stack, rows: Sequence[tuple[int, int, float]]) -> Iterator[None]:
    """Inside, scale the update of each row (block, row, factor) by its factor."""
    begun = [(params.blocks[i][row], factor, params.blocks[i][row].clone()) for i, row, factor in rows]
    yield
    for now, factor, old in begun:
        now.copy_(old.lerp(now, factor))


def _move_(optimizer: torch.optim.Optimizer, moving: Mapping[torch.nn.Parameter, dict[str, Any]]) -> None:
    """``optimizer.step()`` for these parameters, each with its state.

    Those that move for the first time go by themselves: torch's fused SGD cannot take both at once.
    """
    group, memory = optimizer.param_groups[0], optimizer.state
    everything = group["params"]
    for known in (True, False):
        some = {leaf: state for leaf, state in moving.items() if bool(state) == known}
        if some:
            group["params"] = list(some)
            optimizer.state = defaultdict[Tensor, Any](dict, some.items())
            optimizer.step()
    group["params"], optimizer.state = everything, memory


# Rows that have taken different numbers of steps. What torch counts for a parameter (``step``, and the ``mu_product`` of NAdam)
# is one number while all rows of a leaf agree, and ``[rows]`` while they do not. FRESH, ``[rows]`` too, marks rows that begin
# anew with their next step, whatever stands in their states; it is there while there are any.

FRESH = "fresh"


def _differ(state: Mapping[str, Any]) -> bool:
    return any(isinstance(x, Tensor) and x.dim() == 1 for x in state.values())


def _counts(state: Mapping[str, Any], num_rows: int) -> dict[str, list[float]]:
    """Return the optimizer states of a leaf that are one number per row (such as ``step``), as lists by name."""
    found = {k: x for k, x in state.items() if isinstance(x, Tensor) and x.dim() < 2}
    counts: dict[str, list[float]] = {k: x.expand(num_rows).tolist() for k, x in found.items()}
    return {FRESH: [0.0] * num_rows, **counts}


def joined_counts(name: str, rows: Sequence[Tensor]) -> Tensor | None:
    """One number of each row of a leaf as it is kept: a single one if they agree, else ``[rows]``; None: not at all."""
    if name == FRESH:
        return torch.stack(list(rows)) if any(rows) else None
    return rows[0].clone() if all(x == rows[0] for x in rows) else torch.stack(list(rows))


def _write_counts_(state: dict[str, Any], counts: Mapping[str, Sequence[float]]) -> None:
    for name, values in counts.items() if all(counts.values()) else ():  # there may be no rows
        like = state.get(name, torch.tensor(False, device="cpu"))
        kept = joined_counts(name, [like.new_tensor(x) for x in values])
        state.pop(name, None)
        if kept is not None:
            state[name] = kept


def _held(params: Stack, i: int, part: slice) -> list[int]:
    """Return the worker of each row of a leaf."""
    return [params.layout.blocks[i].holders[row] for row in range(len(params.blocks[i]))[part]]


def _at_start(optimizer: torch.optim.Optimizer, leaf: Tensor) -> dict[str, Any]:
    """Return the optimizer state of a parameter before its first step: Adagrad has one, all others are empty."""
    if not isinstance(optimizer, torch.optim.Adagrad):
        return {}
    group = optimizer.param_groups[0]
    step = torch.zeros((), dtype=torch.float32, device=leaf.device if group["fused"] else "cpu")
    return {"step": step, "sum": torch.full_like(leaf, group["initial_accumulator_value"])}


class _Run(NamedTuple):
    """Neighbouring rows of a leaf that move as one parameter."""

    leaf: Tensor
    counts: dict[str, list[float]]  # of all rows of the leaf
    rows: slice
    state: dict[str, Any]  # its own: views of the leaf's, or new


def _move_rows_(optimizer: torch.optim.Optimizer, params: Stack, up: Sequence[bool]) -> None:
    """Step the rows that are up where their step counts differ: each run of equal counts is a parameter of its own."""
    moving: dict[torch.nn.Parameter, dict[str, Any]] = {}
    begun: list[tuple[Tensor, Tensor, list[int]]] = []  # leaf, what it was, rows that are yet to begin
    runs: list[_Run] = []
    for leaf, (i, part) in zip(optimizer.param_groups[0]["params"], _leaves(params), strict=True):
        workers, state = _held(params, i, part), optimizer.state[leaf]
        down = [row for row, w in enumerate(workers) if not up[w]]
        leaf.grad[down] = 0.0  # who is down has none
        if not state:  # the first step is that of the whole leaf, so that there is a state at once, whoever is up
            came_later = len(workers) == 1 and params.layout.blocks[i].came(range(len(params.blocks[i]))[part][0])
            if not (down and came_later):  # else it begins when its worker is back
                moving[leaf] = state
                begun.append((leaf, leaf.detach()[down], down))
            continue
        for piece, run in _runs(optimizer, leaf, [up[w] for w in workers]):
            moving[piece] = run.state
            runs.append(run)
    _move_(optimizer, moving)
    for leaf, before, down in begun:
        leaf.detach()[down] = before
        if down and optimizer.state[leaf]:
            _forget_rows_(optimizer.state[leaf], len(leaf), down)
    _put_back_(optimizer, runs)


def _runs(optimizer: torch.optim.Optimizer, leaf: Any, up: Sequence[bool]) -> Iterator[tuple[torch.nn.Parameter, _Run]]:
    """Neighbouring rows of a leaf that are up and have taken as many steps, each as a parameter of its own."""
    state = optimizer.state[leaf]
    counts = _counts(state, len(up))
    alike = [(is_up, *(of_rows[row] for of_rows in counts.values())) for row, is_up in enumerate(up)]
    for (is_up, fresh, *values), neighbours in itertools.groupby(range(len(up)), alike.__getitem__):
        if not is_up:
            continue
        places = list(neighbours)
        rows = slice(places[0], places[-1] + 1)
        piece = torch.nn.Parameter(leaf.detach()[rows])
        piece.grad, piece.rows = leaf.grad[rows], leaf.rows  # type: ignore[attr-defined]
        own = {k: x[rows] for k, x in state.items() if isinstance(x, Tensor) and x.dim() == 2}
        own |= {k: state[k].new_tensor(x) for k, x in zip([*counts][1:], values, strict=True)}
        yield piece, _Run(leaf, counts, rows, _at_start(optimizer, piece) if fresh else own)


def _put_back_(optimizer: torch.optim.Optimizer, runs: Iterable[_Run]) -> None:
    """Copy the states of runs back into their leaves, and mark their rows as started."""
    for leaf, counts, rows, own in runs:
        state, num = optimizer.state[leaf], rows.stop - rows.start
        for name, x in own.items():
            if isinstance(x, Tensor) and x.dim() < 2:
                counts[name][rows] = [x.item()] * num
            elif isinstance(x, Tensor) and x.data_ptr() != state[name][rows].data_ptr():
                state[name][rows] = x
        counts[FRESH][rows] = [False] * num
        _write_counts_(state, counts)


def _forget_rows_(state: dict[str, Any], num_rows: int, rows: Sequence[int]) -> None:
    """Reset the optimizer state of these rows: their next step is their first."""
    counts = _counts(state, num_rows)
    for name, values in counts.items():
        for row in rows:
            values[row] = name == FRESH
    _write_counts_(state, counts)


def count_(optimizer: torch.optim.Optimizer, params: Stack, up: Sequence[bool], t: int) -> None:
    """For a method that steps by itself: count local step ``t``. Where nothing was counted yet, all took the steps before."""
    for leaf, (i, part) in zip(optimizer.param_groups[0]["params"], _leaves(params), strict=True):
        state, workers = optimizer.state[leaf], _held(params, i, part)
        state.setdefault("step", torch.tensor(t - 1.0, dtype=torch.float32, device="cpu"))
        before = _counts(state, len(workers))["step"]
        _write_counts_(state, {"step": [n + up[w] for n, w in zip(before, workers, strict=True)]})


def steps_taken(optimizer: torch.optim.Optimizer, params: Stack) -> list[list[int]]:
    """How many steps every row has taken by now, block by block, ``[blocks][H]``."""
    of_blocks: list[list[int]] = [[] for _ in params.blocks]
    for leaf, (i, part) in zip(optimizer.param_groups[0]["params"], _leaves(params), strict=True):
        of_blocks[i] += map(int, _counts(optimizer.state[leaf], len(_held(params, i, part)))["step"])
    return of_blocks


Counts = dict[int, list[dict[str, float]]]  # what is counted of rows, such as ``step``: by worker, ``[blocks]``


def counts_of(optimizer: torch.optim.Optimizer, params: Stack, workers: Iterable[int]) -> Counts:
    """What the optimizer counts of these workers' rows in this process; nothing of a block that one does not hold."""
    found: Counts = {w: [{} for _ in params.blocks] for w in workers}
    for leaf, (i, part) in zip(optimizer.param_groups[0]["params"], _leaves(params), strict=True):
        held_by = _held(params, i, part)
        counts = _counts(optimizer.state.get(leaf, {}), len(held_by))
        for row, w in enumerate(held_by):
            if w in found:
                found[w][i] = {name: of_rows[row] for name, of_rows in counts.items()}
    return found


def set_counts_(optimizer: torch.optim.Optimizer, params: Stack, new: Counts) -> None:
    """Set what the optimizer counts of some workers' rows; what is not named stays. FRESH of 1: as before the first step."""
    for leaf, (i, part) in zip(optimizer.param_groups[0]["params"], _leaves(params), strict=True):
        state, held_by = optimizer.state.get(leaf), _held(params, i, part)
        counts = _counts(state, len(held_by)) if state else {}
        for row, w in enumerate(held_by):
            for name in counts.keys() & new[w][i].keys() if w in new else ():
                counts[name][row] = new[w][i][name]
        if state and not new.keys().isdisjoint(held_by):
            _write_counts_(state, counts)


def take_over_(
    optimizer: torch.optim.Optimizer,
    params: Stack,
    workers: Sequence[int],
    known_by: Sequence[bool],
    all_gather: Callable[[Mapping[int, Any]], dict[int, Any]],
) -> None:
    """Workers that were just sent the mean states of others also take over how many steps these have taken.

    Where those differ (a unit that came to one later than to another), the largest number.

    Parameters
    ----------
    known_by
        marks the workers of whose states it was the mean.
    all_gather
        `lab.engine.world.World.all_gather_by_worker`.
    """
    if params.dry:
        return
    known: Counts = all_gather(counts_of(optimizer, params, params.layout.mine or range(len(known_by))))
    new: Counts = {w: [{} for _ in params.blocks] for w in workers}
    for i, block in enumerate(params.layout.blocks):
        others = [w for w in block.everywhere if known_by[w]] or block.everywhere
        longest = max((known[w][i] for w in others), key=lambda of_row: (not of_row[FRESH], of_row.get("step", 0.0)))
        for w in new.keys() & {*block.holders}:
            new[w][i] = longest
    set_counts_(optimizer, params, new)


def states(optimizer: torch.optim.Optimizer, params: Stack) -> dict[str, Stack]:
    """The optimizer's own state tensors, by torch's name, as stacks; empty before the first step.

    No copies, but where rows are parameters of their own: states that torch has made for such a row are put into one
    tensor for the block, and the optimizer goes on with views of it.
    """
    leaves = optimizer.param_groups[0]["params"]
    per_leaf = [optimizer.state.get(leaf, {}) for leaf in leaves]
    first = next((k for k, state in enumerate(per_leaf) if state), None)
    if first is None:
        return {}
    of_block: dict[int, list[tuple[slice, dict[str, Tensor]]]] = {}
    for state, (i, rows) in zip(per_leaf, _leaves(params), strict=True):
        of_block.setdefault(i, []).append((rows, state))
    names = [k for k, v in per_leaf[first].items() if isinstance(v, Tensor) and v.shape == leaves[first].shape]
    return {n: Stack(params.layout, [_together(n, x, of_block[i]) for i, x in enumerate(params.blocks)]) for n in names}


def _together(name: str, like: Tensor, parts: list[tuple[slice, dict[str, Tensor]]]) -> Tensor:
    """One state of one block as ``[H, P]``, from its parts; a part without a state yet counts as zero."""
    if parts[0][0] == slice(None):
        return parts[0][1][name] if parts[0][1] else torch.zeros_like(like)
    bases = (state[name]._base for _, state in parts if state)
    whole = next((b for b in bases if b is not None and b.shape == like.shape), None)
    whole = torch.zeros_like(like) if whole is None else whole
    for rows, state in parts:
        mine = whole[rows]
        if not state:
            mine.zero_()
        elif state[name].data_ptr() != mine.data_ptr():
            mine.copy_(state[name])
            state[name] = mine
    return whole


def reset_(optimizer: torch.optim.Optimizer, params: Stack, up: Sequence[bool]) -> None:
    """Every worker that is up forgets its optimizer state: state tensors and step counts go to zero.

    One that is not has forgotten it when it is back; until then nothing of it moves.
    """
    for stack in states(optimizer, params).values():
        stack.zero_(up)
    for leaf, (i, part) in zip(optimizer.param_groups[0]["params"], _leaves(params), strict=True):
        state = optimizer.state.get(leaf)
        if state and not leaf.is_meta:
            away = [not up[w] for w in _held(params, i, part)]
            counts = {name: [0.0] * len(leaf) for name in _counts(state, len(leaf))}
            _write_counts_(state, counts | {FRESH: away})


def forget_(optimizer: torch.optim.Optimizer, params: Stack, cells: Iterable[tuple[int, int]]) -> None:
    """Single copies (block, place among its holders) of units start with a fresh optimizer state at their next step."""
    blocks = params.layout.blocks
    gone = {(i, blocks[i].everywhere[k]) for i, k in cells}
    for leaf, (i, rows) in zip(optimizer.param_groups[0]["params"], _leaves(params), strict=True):
        if leaf.numel() and (i, blocks[i].holders[rows.start or 0]) in gone and not leaf.is_meta:
            optimizer.state.pop(leaf, None)


# ADOPT starts from v = g², SGD with dampening from g; of all others but these, state tensors of zero are those of a fresh start.
_ELSEWHERE = ("NAdam", "Adagrad", "Rprop", "ADOPT", "QHADOPT", "FedMom", "FedAdam", "FedYogi")
ZERO_AT_START = tuple(name for name in ELEMENTWISE if name not in _ELSEWHERE)


@functools.cache
def _eager(name: str) -> Callable[..., torch.optim.Optimizer]:
    """The class without the decorators that import ``torch._dynamo`` (over a second) only to tell a compiler to look away."""
    cls = ELEMENTWISE[name]
    if cls.__module__.startswith("lab."):
        body: dict[str, Any] = {}
    else:
        body = {"step": torch.no_grad()(inspect.unwrap(cls.step))}
    return type(name, (cls,), body | {"add_param_group": inspect.unwrap(torch.optim.Optimizer.add_param_group)})


def _make(spec: Optimizer, leaves: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
    options = dict(spec.options)
    if spec.name in _HAS_FUSED and not leaves[0].is_meta and not options.get("foreach"):
        options.setdefault("fused", True)  # one pass over memory instead of several
    made = _eager(spec.name)(leaves, lr=spec.lr, **options)
    if leaves[0].is_meta:
        made.step = functools.partial(_dry_step, made, _state_names(spec))  # type: ignore[assignment]
    return made


def _dry_step(optimizer: torch.optim.Optimizer, names: Sequence[str]) -> None:
    """A step in a dry run: only that there are states matters (and torch's own would import a compiler for ``meta``)."""
    for leaf in optimizer.param_groups[0]["params"]:
        if leaf not in optimizer.state:
            optimizer.state[leaf] = {name: torch.empty_like(leaf) for name in names}


def _state_names(spec: Optimizer) -> tuple[str, ...]:
    """Found by taking one step on two numbers, so that no list of names has to be kept."""
    leaf = torch.nn.Parameter(torch.ones(2, dtype=torch.float32, device="cpu"))  # also where others are on ``meta``
    leaf.grad = torch.ones_like(leaf)
    optimizer = _make(spec, [leaf])
    optimizer.step()
    return tuple(k for k, v in optimizer.state[leaf].items() if isinstance(v, Tensor) and v.shape == leaf.shape)


def AdamW(
    lr: float, betas: tuple[float, float] = (0.9, 0.95), eps: float = 1e-8, weight_decay: float = 0.0
) -> Optimizer:
    """The usual inner optimizer of the papers: AdamW without weight decay."""
    return Optimizer("AdamW", lr, {"betas": betas, "eps": eps, "weight_decay": weight_decay})


def Nesterov(lr: float = 0.7, momentum: float = 0.9) -> Optimizer:
    """The outer step of DiLoCo: b = μ·b + Δ;  θ = θ − lr·(Δ + μ·b)."""
    return Optimizer("SGD", lr, {"momentum": momentum, "nesterov": True})
