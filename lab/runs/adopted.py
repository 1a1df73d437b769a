"""Modules that somebody trains already as workers of a fleet: their parameters get views of its stacks, and stay the same objects."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from lab.engine.fleet import Fleet, saved_buffers
from lab.ground.errors import RecipeError

DTYPES = (torch.float32, torch.bfloat16, torch.float64)


@dataclass(frozen=True)
class Held:
    """A trained parameter of a worker in this process."""

    name: str
    worker: int
    param: nn.Parameter
    grad: Tensor  # the view of its row, where the method looks for the gradient
    address: int  # of its values in the stack


def trained(module: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that an optimizer moves, by name; one that several layers share once."""
    return {name: p for name, p in module.named_parameters() if p.requires_grad}


def check(modules: Sequence[nn.Module]) -> None:
    """Raises RecipeError, one line, for modules that cannot be the workers of one fleet."""
    for module in modules:
        if not isinstance(module, nn.Module):
            raise RecipeError(
                f"attach is for a torch.nn.Module, a list of them (one for each worker of this process) or a transformers.Trainer, "
                f"not {type(module).__name__}"
            )
        for part in module.modules():
            if isinstance(part, DistributedDataParallel | DataParallel):
                raise RecipeError(
                    f"the model is wrapped in {type(part).__name__}, which averages gradients behind the method's back: {UNWRAPPED}"
                )
        if not trained(module):
            raise RecipeError(
                f"{type(module).__name__} has no parameter that requires a gradient: there is nothing to train"
            )
    every = [(f"{name} of worker {w}", p) for w, module in enumerate(modules) for name, p in trained(module).items()]
    first_name, first = every[0]
    if first.dtype not in DTYPES:
        names = ", ".join(map(_plain, DTYPES))
        raise RecipeError(f"{first_name} is {_plain(first.dtype)}: parameters of {names} can be trained")
    for name, p in every:
        if type(p.detach()) is not Tensor or p.is_meta:
            raise RecipeError(
                f"{name} is no plain tensor with values ({type(p.detach()).__name__}, {p.device}): attach the model before it is sharded"
            )
        if (p.dtype, p.device) != (first.dtype, first.device):
            raise RecipeError(
                f"{first_name} is {_plain(first.dtype)} on {first.device} and {name} {_plain(p.dtype)} on {p.device}: all trained parameters "
                "need one dtype and one device"
            )
    _check_alike(modules)


UNWRAPPED = "give the module itself, and leave it out of prepare (for its device and autocast alone: accelerator.prepare_model(model, evaluation_mode=True))"


def _plain(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _check_alike(modules: Sequence[nn.Module]) -> None:
    """Raises RecipeError where the workers of this process have different parameters, or the same object."""
    whose: dict[int, int] = {}
    outline = {name: p.shape for name, p in trained(modules[0]).items()}
    for w, module in enumerate(modules):
        named = trained(module)
        for name in [*outline, *named]:
            if name not in named or name not in outline or named[name].shape != outline[name]:
                there = [
                    f"{tuple(x[name])}" if name in x else "none"
                    for x in (outline, {n: p.shape for n, p in named.items()})
                ]
                raise RecipeError(
                    f"parameter {name} is {there[0]} at worker 0 and {there[1]} at worker {w}: all need the same names and shapes"
                )
        for name, p in named.items():
            if whose.setdefault(id(p), w) != w:
                raise RecipeError(
                    f"workers {whose[id(p)]} and {w} share the parameter {name}: give each a model of its own (copy.deepcopy)"
                )


def outline(module: nn.Module) -> str:
    """A digest of names, shapes and dtype of what is trained."""
    named = [(name, tuple(p.shape), str(p.dtype)) for name, p in trained(module).items()]
    return hashlib.sha256(repr(named).encode()).hexdigest()[:16]


def skeleton(module: nn.Module, group: Callable[[str], str], values: bool) -> nn.Module:
    """Modules without code that have what is trained of ``module``, and its buffers, under the same names: its values, or on ``meta``."""
    root = nn.Module()
    root.tensor_group = group  # type: ignore[assignment]

    def place(name: str) -> tuple[nn.Module, str]:
        *path, leaf = name.split(".")
        part = root
        for step in path:
            if step not in part._modules:
                part.add_module(step, nn.Module())
            part = part.get_submodule(step)
        return part, leaf

    for name, p in trained(module).items():
        part, leaf = place(name)
        part.register_parameter(leaf, nn.Parameter(p.detach() if values else torch.empty_like(p, device="meta")))
    saved = saved_buffers(module)
    for name, x in module.named_buffers(remove_duplicate=False):
        part, leaf = place(name)
        part.register_buffer(leaf, x if values else torch.empty_like(x, device="meta"), persistent=name in saved)
    return root


def dry_fleet(module: nn.Module, num_workers: int, group: Callable[[str], str]) -> Fleet:
    """Workers like ``module``, in shapes alone."""
    shapes = skeleton(module, group, values=False)
    return Fleet(lambda worker: shapes, num_workers, device="meta", dtype=next(iter(trained(module).values())).dtype)


@torch.no_grad()
def adopt(
    modules: Sequence[nn.Module], mine: Sequence[int], num_workers: int, group: Callable[[str], str]
) -> tuple[Fleet, list[Held]]:
    """A fleet in which the workers ``mine`` are these modules, with the values that each of them has.

    Whoever holds one of their parameters (an optimizer, a hook, Accelerate) holds it still; only its ``data`` lies elsewhere. What
    is not trained, and buffers, stay where they are.
    """
    first, like = modules[0], next(iter(trained(modules[0]).values()))
    others = skeleton(first, group, values=False)
    fleet = Fleet(
        lambda worker: others if worker is not None and worker not in mine else skeleton(first, group, worker is None),
        num_workers,
        mine=mine if len(mine) < num_workers else None,
        device=like.device,
        dtype=like.dtype,
    )
    held: list[Held] = []
    for w, module in zip(mine, modules, strict=True):
        fleet.modules[w] = module
        for name, p in trained(module).items():
            value = fleet.params.cell(name, w)
            value.copy_(p)
            p.data, p.grad = value, None
            held.append(Held(name, w, p, fleet.grads.cell(name, w), value.data_ptr()))
    fleet.constants = {name: x.clone() for name, x in first.named_buffers(remove_duplicate=False)}
    return fleet, held


def digests(fleet: Fleet) -> dict[int, str]:
    """A digest of the trained values of every worker here."""
    found = {w: hashlib.sha256() for w in fleet.mine}
    for block, x in zip(fleet.layout.blocks, fleet.params.blocks, strict=True):
        for w, row in zip(block.holders, x, strict=True):
            found[w].update(row.cpu().view(torch.uint8).numpy())
    return {w: digest.hexdigest()[:16] for w, digest in found.items()}


def check_unmoved(module: nn.Module, worker: int, held: Sequence[Held]) -> None:
    """Raises RecipeError if the module no longer has exactly the parameters that it had when it was attached."""
    now = trained(module)
    mine = {h.name: h.param for h in held if h.worker == worker}
    for name in [*mine, *now]:
        if now.get(name) is not mine.get(name):
            what = "is new or another one" if name in now else "is gone, renamed or frozen"
            raise RecipeError(
                f"parameter {name} of worker {worker} {what} since the model was attached: change the model before lab.attach"
            )


class Structure:
    """Which parameters and parts modules have, and what of them is trained: cheap enough to be looked at in every step."""

    def __init__(self, modules: Sequence[nn.Module]):
        parts = [part for module in modules for part in module.modules()]
        self.tables: list[Mapping[str, object]] = [t for part in parts for t in (part._parameters, part._modules)]
        self.params = [p for module in modules for p in module.parameters()]
        self.was = self.now()

    def now(self) -> tuple[list[int], list[bool]]:
        return [id(x) for table in self.tables for x in table.values()], [p.requires_grad for p in self.params]


def wrapped(modules: Sequence[nn.Module]) -> Iterator[DistributedDataParallel]:
    """What wraps one of these modules and averages its gradients. Looks through all objects that there are, so ask once."""
    import gc

    ours = set(map(id, modules))
    for thing in gc.get_objects():
        if issubclass(type(thing), DistributedDataParallel) and any(id(part) in ours for part in thing.modules()):
            yield thing
