"""The fleet of a recipe, and whether it fits into memory."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import nn

from lab.errors import RecipeError
from lab.experts.placement import Experts, resident
from lab.fleet import Fleet, num_cores
from lab.models.hf import HF
from lab.models.lora import adapt_
from lab.models.moe import MoE
from lab.models.peft import load_adapter_
from lab.models.start import start_values_
from lab.recipe import Recipe


def build_fleet(
    recipe: Recipe,
    vocab_size: int,
    device: str | torch.device = "cpu",
    experts: Experts | None = None,
    mine: Sequence[int] | None = None,
) -> Fleet:
    """The fleet of a recipe: every worker starts from the same values, with the experts and rank segments that it holds."""
    model, lora, dtype = recipe.model, recipe.lora, getattr(torch, recipe.dtype)
    model = model.from_here() if isinstance(model, HF) else model  # modules are built again later, wherever one is then
    dry = str(device) == "meta"
    ranks_W = lora.ranks_W(recipe.num_workers) if lora.ranks else ()
    made: dict[str, nn.Module] = {}  # a dry fleet needs each kind of worker once

    def build(worker: int | None) -> nn.Module:
        held = resident(experts.table, worker) if experts is not None and worker is not None else None
        kind = "" if held is None or len(held[0]) == len(experts.table[0]) else repr(held)  # type: ignore[union-attr]
        rank = (ranks_W[worker] if worker is not None else lora.bounds[-1]) if ranks_W else 0
        kind += f" {rank}"
        if not dry or kind not in made:
            options = (vocab_size, recipe.context, recipe.seed)
            repeats = dry and not ranks_W  # what is adapted is changed layer by layer
            module = model.build(*options, held, repeats) if isinstance(model, MoE) else model.build(*options)
            values = worker is None and not next(module.parameters()).is_meta  # else the fleet gives it views of them
            if values and recipe.start:
                start_values_(module, recipe.start)
            made[kind] = adapt_(module, lora, rank, recipe.seed) if ranks_W else module
            if values and lora.values:
                load_adapter_(module, lora.values)
        return made[kind] if dry else made.pop(kind)

    movable = experts is not None and experts.movable
    with torch.device("meta" if dry else "cpu"):  # values are drawn on the CPU: the same ones on every device
        return Fleet(build, recipe.num_workers, mine=mine, device=device, dtype=dtype, movable=movable)


def check_memory(recipe: Recipe, vocab_size: int, workers: int, device: torch.device) -> None:
    """Refuse a recipe whose tensors cannot fit: stacks of so many workers, and activations of those that run at once."""
    import psutil

    compute, on_cpu = recipe.compute, device.type == "cpu"
    with torch.device("meta"):
        module = recipe.model.build(vocab_size, recipe.context)
    unit = getattr(module, "tensor_unit", lambda name: None)
    copies = (recipe.placement.overlap or recipe.num_workers) * workers / recipe.num_workers
    frozen = 0
    if recipe.lora.ranks:
        module = adapt_(module, recipe.lora, recipe.lora.bounds[-1])
        frozen = sum(p.numel() for p in module.parameters() if not p.requires_grad)
    named = [(n, p) for n, p in module.named_parameters() if p.requires_grad]
    held = sum(p.numel() * (copies if unit(n) else workers) for n, p in named)
    element = getattr(torch, recipe.dtype).itemsize
    stacks = (held * (2 + len(recipe.method.inner.state_names)) + 2 * frozen) * element
    at_once = workers if compute.vectorised else min(workers, num_cores()) if on_cpu else 1
    rows = math.ceil(recipe.batch_size / compute.accumulate)
    a_token = recipe.model.floats_per_token(vocab_size)
    activations = at_once * rows * recipe.context * a_token * element
    free = psutil.virtual_memory().available if device.type != "cuda" else torch.cuda.mem_get_info(device)[0]
    if stacks + activations > free:
        raise RecipeError(
            f"this needs about {(stacks + activations) / 1e9:,.1f} GB of memory ({stacks / 1e9:,.1f} for the states of "
            f"{workers} workers, {activations / 1e9:,.1f} for the activations of {at_once}), and {free / 1e9:,.1f} GB "
            f"are free{'' if on_cpu else f' on {device}'}: use fewer workers, a smaller model, batch_size or context, "
            "compute.accumulate (passes into which a batch is cut), or `lab plan` for a dry run"
        )
