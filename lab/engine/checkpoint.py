"""What a checkpoint holds: a run's state as tensors by name, and back.

::

    optimizer/<name>/<leaf>/<state>   of an optimizer, for each of its parameters
    local/<state>/<block>             ``[H, P]``, that no optimizer owns
    shared/<state>/<block>            ``[1, P]``, likewise
    residual/<state>/<block>          what error feedback still owes
    measured/<what>/<block>           what the next look compares with
    watch/…                           what is looked at along the run
    buffer/<worker>/<name>            those that training has moved

Several processes write the same file as one (`lab.runs.shared_folder`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lab.engine import buffers
from lab.engine.optim import count_as_before_, states
from lab.engine.stack import Layout, Stack
from lab.runs.folder import Checkpoint
from lab.runs.inputs import of_digests

if TYPE_CHECKING:
    from lab.runs.trainer import Trainer


def snapshot(trainer: Trainer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """All that decides the rest of the run, as tensors by name and small JSON values."""
    tensors: dict[str, Tensor] = {}
    for name, optimizer in trainer.state.optimizers.items():
        for i, leaf in enumerate(optimizer.param_groups[0]["params"]):
            for key, value in optimizer.state[leaf].items():
                if isinstance(value, Tensor):
                    tensors[f"optimizer/{name}/{i}/{key}"] = value
    for place, stacks in _stacks(trainer).items():
        for i, block in enumerate(stacks.blocks):
            tensors[f"{place}/{i}"] = block
    tensors |= {f"buffer/{w}/{n}": x for w, named in buffers.moved(trainer.fleet).items() for n, x in named.items()}
    extra: dict[str, Any] = {"last_up": trainer.last_up, "up": trainer.fleet.up, "knobs": trainer.knobs}
    extra["drift"] = trainer.drift.averaged
    extra["inputs"] = of_digests(trainer.inputs)
    if trainer.experts is not None and trainer.experts.movable:
        units = [(i, b) for i, b in enumerate(trainer.fleet.layout.blocks) if b.unit is not None]
        extra |= {"draw": trainer.experts.draw, "labels": [[i, b.everywhere, b.since] for i, b in units]}
    if trainer.watch is not None:
        watched, extra["watch"] = trainer.watch.snapshot()
        tensors |= watched
    if trainer.adapter_watch is not None:
        extra["last_covered"] = trainer.adapter_watch.last_M
    if trainer.state.facts:
        extra["facts"] = trainer.state.facts
    return {name: x.cpu() for name, x in tensors.items()}, extra


def _stack(layout: Layout, tensors: Mapping[str, Tensor], name: str, device: torch.device) -> Stack:
    return Stack(layout, [tensors[f"{name}/{i}"].to(device) for i in range(len(layout.blocks))])


def _stacks(trainer: Trainer) -> dict[str, Stack]:
    """Stacks that do not belong to an optimizer."""
    inner, outer = _owned(trainer)
    found = {f"local/{k}": v for k, v in trainer.state.local.items() if k not in inner}
    found |= {f"shared/{k}": v for k, v in trainer.state.shared.items() if k not in outer}
    found |= {f"measured/{k}": v for k, v in (trainer.measures.remembered if trainer.measures else {}).items()}
    return found | {f"residual/{k}": v for k, v in trainer.comm.residuals.items()}


def _owned(trainer: Trainer) -> tuple[dict[str, Stack], dict[str, Stack]]:
    """States of optimizers, local and shared. ``outer.3`` moves the shared ``params.3`` and owns ``momentum_buffer.3``."""
    inner: dict[str, Stack] = {}
    outer: dict[str, Stack] = {}
    for name, optimizer in trainer.state.optimizers.items():
        mine, place = (inner, trainer.state.local) if name == "inner" else (outer, trainer.state.shared)
        part = name[len("outer") :]
        mine.update({k + part: v for k, v in states(optimizer, place["params" + part]).items()})
    return inner, outer


def take_places_(trainer: Trainer, extra: Mapping[str, Any]) -> None:
    """Experts go where they were."""
    if "labels" in extra and trainer.experts is not None:
        trainer.experts.take_(extra["draw"])
        trainer.fleet.relabel_({i: (tuple(holders), tuple(since)) for i, holders, since in extra["labels"]})


@torch.no_grad()
def restore_(trainer: Trainer, checkpoint: Checkpoint) -> None:
    """Put everything back as it was after the checkpoint's step."""
    tensors, extra = checkpoint.tensors, checkpoint.extra
    layout = trainer.fleet.layout
    take_places_(trainer, extra)
    for key, value in tensors.items():
        kind, name, *rest = key.split("/")
        if kind == "watch":
            continue
        if kind == "buffer":
            buffers.put_back_(trainer.fleet, {int(name): {rest[0]: value}})
            continue
        if kind == "optimizer":
            optimizer = trainer.state.optimizers[name]
            group = optimizer.param_groups[0]
            leaf = group["params"][int(rest[0])]
            counts = value.dim() < 2 and not group.get("fused")  # step counts stay on the CPU, as torch has them
            optimizer.state[leaf][rest[1]] = value if counts else value.to(leaf.device)
        elif kind in ("residual", "measured"):
            stack = _stack(layout, tensors, f"{kind}/{name}", trainer.fleet.device)
            if kind == "residual":
                trainer.comm.residuals[name] = stack
            elif trainer.measures is not None:
                trainer.measures.remembered[name] = stack
        else:
            place = trainer.state.local if kind == "local" else trainer.state.shared
            if name not in place:  # made by a later step: there is nothing yet to copy into
                place[name] = _stack(layout, tensors, f"{kind}/{name}", trainer.fleet.device)
            place[name].blocks[int(rest[0])].copy_(value)
    for optimizer in trainer.state.optimizers.values():
        count_as_before_(optimizer, checkpoint.step)
    inner, outer = _owned(trainer)
    trainer.state.local.update(inner)
    trainer.state.shared.update(outer)
    if trainer.watch is not None:
        trainer.watch.restore(tensors, extra["watch"])
    if trainer.measures is not None:
        trainer.measures.restored()
    if trainer.adapter_watch is not None:
        trainer.adapter_watch.last_M = extra["last_covered"]
    trainer.state.facts = extra.get("facts", trainer.state.facts)
    trainer.t, trainer.drift.averaged = checkpoint.step, extra.get("drift", checkpoint.step)
    trainer.last_up, trainer.fleet.up = extra["last_up"], extra["up"]
    for block in layout.blocks:
        trainer.world.note_up(block, trainer.fleet.up)
    for knob, value in extra.get("knobs", {}).items():
        trainer.turn(knob, value)
