"""Adapters in the format of Hugging Face's ``peft``: written so that it reads them, and read as it writes them.

A folder with ``adapter_config.json`` and ``adapter_model.safetensors``. Neither direction needs ``peft`` itself.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import Tensor, nn

from lab.errors import RecipeError
from lab.models.hf import HFModule
from lab.models.lora import adapters, cut_to
from lab.store import write_atomically

PREFIX = "base_model.model."


def save_adapter(module: nn.Module, folder: str | Path, rank: int | None = None, base: str = "") -> Path:
    """Write the adapters of a module, cut to ``rank`` (default: all of it); ``base`` is the name of the model they are for.

    The scale s becomes α = s·r. What a method merged into the model itself (FLoRA, FedEx-LoRA) is not part of an adapter:
    see `merged`. Raises RecipeError for a module without adapters, or a rank that is not there.
    """
    from safetensors.torch import save

    found = adapters(module)
    if not found:
        raise RecipeError("this model has no adapters to write: set lora.ranks")
    size = sum(len(A) for A in next(iter(found.values())).lora_A) if rank is None else rank
    tensors: dict[str, Tensor] = {}
    with cut_to(module, size):
        for path, adapter in found.items():
            A, B = adapter.factors(size)
            name = PREFIX + _theirs(module, path)
            tensors |= {
                f"{name}.lora_A.weight": A.detach().contiguous(),
                f"{name}.lora_B.weight": B.detach().contiguous(),
            }
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": size,
        "lora_alpha": next(iter(found.values())).scale * size,
        "target_modules": [_theirs(module, path) for path in found],
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
    }
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / "adapter_model.safetensors", save(tensors))
        write_atomically(folder / "adapter_config.json", json.dumps(config, indent=1).encode())
    except OSError as error:
        raise RecipeError(f"cannot write into {str(folder)!r} ({error.strerror}): give a folder") from None
    return folder


@torch.no_grad()
def load_adapter_(module: nn.Module, folder: str | Path) -> None:
    """Fill the adapters of a module from a folder; their α/r is taken into B. A smaller rank leaves the rest of B zero.

    Raises RecipeError where files are missing, maps do not fit, or the rank is larger than the module's.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    folder = Path(folder).expanduser()
    try:
        config = json.loads((folder / "adapter_config.json").read_text())
        tensors = load_file(folder / "adapter_model.safetensors")
    except (OSError, ValueError, SafetensorError) as error:
        raise RecipeError(f"cannot read an adapter of peft's format in {str(folder)!r}: {error}") from None
    if config.get("use_rslora") or config.get("use_dora") or config.get("rank_pattern") or config.get("alpha_pattern"):
        raise RecipeError(f"the adapter in {str(folder)!r} is not plain LoRA with one rank and one alpha")
    scale, unused = config["lora_alpha"] / config["r"], set(tensors)
    for path, adapter in adapters(module).items():
        name = PREFIX + _theirs(module, path)
        try:
            A, B = (tensors[f"{name}.lora_{x}.weight"] for x in "AB")
        except KeyError:
            raise RecipeError(
                f"the adapter in {str(folder)!r} has nothing for {_theirs(module, path)}: see lora.targets"
            ) from None
        unused -= {f"{name}.lora_A.weight", f"{name}.lora_B.weight"}
        room = sum(len(a) for a in adapter.lora_A)
        fits = A.shape[1] == adapter.weight.shape[1] and B.shape[0] == adapter.weight.shape[0]
        if len(A) > room or not fits:
            raise RecipeError(
                f"the adapter in {str(folder)!r} has A {list(A.shape)} and B {list(B.shape)} for {_theirs(module, path)}, which has "
                f"room for rank {room} and {list(adapter.weight.shape)}: set lora.ranks to at least its rank"
            )
        low = 0
        for a, b in zip(adapter.lora_A, adapter.lora_B, strict=True):
            high = low + len(a)
            part = A[low:high]
            a[: len(part)] = part
            b.zero_()[:, : len(part)] = B[:, low:high] * (scale / adapter.scale)
            low = high
    if unused:
        raise RecipeError(f"the adapter in {str(folder)!r} also has {min(unused)}: add it to lora.targets")


@torch.no_grad()
def merged(module: nn.Module, rank: int | None = None) -> dict[str, Tensor]:
    """All tensors of the model by the names that they have without adapters, with the adapters (cut to ``rank``) added."""
    found = adapters(module)
    out = {n: p.detach() for n, p in module.named_parameters() if ".lora_" not in n}
    for path, adapter in found.items():
        A, B = adapter.factors(rank)
        out[f"{path}.weight"] = adapter.weight + adapter.scale * B @ A
    return {_theirs(module, n): p.contiguous() for n, p in out.items()}


def _theirs(module: nn.Module, path: str) -> str:
    """The path as the model itself has it, without our wrapper around a transformer."""
    return path.removeprefix("model.") if isinstance(module, HFModule) else path
