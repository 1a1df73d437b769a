"""Adapters in the format of Hugging Face's ``peft``: written so that it reads them, and read as it writes them.

A folder with ``adapter_config.json`` and ``adapter_model.safetensors``. Neither direction needs ``peft`` itself.

Our adapters have one scale s, and room for one rank; ``peft`` has an α and a rank for every map (``rank_pattern``,
``alpha_pattern``), with the scale α/r, or α/√r (``use_rslora``). Each map of a folder is taken in with its own; what we write
has them where ranks differ: where the last rank indices of a map were never used, as after rounds without the clients that
reach so far (PreLort), or when clients have pruned theirs (HetLoRA).
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lab.ground.errors import RecipeError, one_of
from lab.ground.files import write_atomically
from lab.models.files import Tensors, Unreadable, located, open_tensors, read_json, shown
from lab.models.hf import HFModule
from lab.models.lora import LoRALinear, adapters, cut_to, linear_maps

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
Ranks = (
    int | Mapping[str, int] | None
)  # to which rank: all maps, or some by name or end of name; None: as far as it is used

# What a config may say beside ranks and scales without another function being meant by it: `peft` has dozens of variants,
# each switched on by a field of its own.
SAYS_NOTHING = (
    "auto_mapping", "bias", "corda_config", "ensure_weight_tying", "eva_config", "exclude_modules", "fan_in_fan_out",
    "inference_mode", "layers_to_transform", "loftq_config", "modules_to_save", "runtime_config", "target_modules",
    "trainable_token_indices",
)  # fmt: skip
READ = ("r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "init_lora_weights")
KEEPS_THE_BASE = (True, False, None, "gaussian", "eva", "orthogonal", "mica")  # of init_lora_weights


def save_adapter(
    module: nn.Module, folder: str | Path, rank: Ranks = None, base: str = "", *, rslora: bool = False
) -> Path:
    """Write the adapters of a module, cut to ``rank``; ``base`` is the name of the model they are for.

    The scale s becomes α = s·r, or with ``rslora`` α = s·√r. Without a rank, each map is written as far as it is used: its
    last rank indices whose column of B is zero are left out. What a method merged into the model itself (FLoRA, FedEx-LoRA) is
    not part of an adapter: see `merged`. Raises RecipeError for a module without adapters, or a rank that is not there.
    """
    from safetensors.torch import save

    found = adapters(module)
    if not found:
        raise RecipeError("this model has no adapters to write: set lora.ranks")
    ranks = _ranks(module, rank)
    tensors: dict[str, Tensor] = {}
    for path, adapter in found.items():
        A, B = adapter.factors(ranks[path])
        name = PREFIX + _theirs(module, path)
        tensors |= {
            f"{name}.lora_A.weight": A.detach().contiguous(),
            f"{name}.lora_B.weight": B.detach().contiguous(),
        }
    size, scale = max(ranks.values()), next(iter(found.values())).scale
    # `peft` takes the first pattern that fits, also to the end of a name
    others = sorted((p for p in found if ranks[p] != size), key=lambda p: (-len(p), p))
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": size,
        "lora_alpha": scale * _divisor(size, rslora),
        "rank_pattern": {_theirs(module, p): ranks[p] for p in others},
        "alpha_pattern": {_theirs(module, p): scale * _divisor(ranks[p], rslora) for p in others},
        "use_rslora": rslora,
        "target_modules": [_theirs(module, path) for path in found],
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": any(adapter.turned for adapter in found.values()),
        "inference_mode": True,
    }
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / TENSORS, save(tensors))
        write_atomically(folder / CONFIG, json.dumps(config, indent=1).encode())
    except OSError as error:
        raise RecipeError(f"cannot write into {str(folder)!r} ({error.strerror}): give a folder") from None
    return folder


@torch.no_grad()
def load_adapter_(module: nn.Module, folder: str | Path) -> None:
    """Fill the adapters of a module from a folder; their scales are taken into B. A smaller rank leaves the rest of B zero.

    Raises RecipeError where files are missing or are not those of plain LoRA, maps do not fit, or a rank is larger than the
    module's; then nothing is changed.
    """
    found = adapters(module)
    try:
        place = located(folder)
        config = Config.read(place / CONFIG)
        if not (place / TENSORS).exists() and (place / "adapter_model.bin").exists():
            raise Unreadable(
                "adapter_model.bin is never read, since that can execute code: save it again with safe_serialization=True"
            )
        with open_tensors(place / TENSORS) as tensors:
            _check(module, config, tensors)
            pairs = {
                path: _pair(_theirs(module, path), config, tensors, adapter.scale) for path, adapter in found.items()
            }
    except Unreadable as error:
        raise RecipeError(f"cannot read an adapter of peft's format in {str(folder)[:200]!r}: {error}") from None
    for path, adapter in found.items():
        (A, B), low = pairs[path], 0
        for a, b in zip(adapter.lora_A, adapter.lora_B, strict=True):
            high = low + len(a)
            part = A[low:high]
            a[: len(part)] = part
            b.zero_()[:, : len(part)] = B[:, low:high]
            low = high


@dataclass(frozen=True)
class Config:
    """What `peft` writes beside the tensors, as far as it says what is computed."""

    rank: int
    alpha: float
    ranks: Mapping[re.Pattern[str], int]  # where a map's name, or its end from a dot on, fits
    alphas: Mapping[re.Pattern[str], float]
    rslora: bool

    @classmethod
    def read(cls, file: Path) -> Config:
        """Raises Unreadable for what is not plain LoRA on a model as it was."""
        raw = read_json(file)
        if raw.get("peft_type") != "LORA":
            raise Unreadable(f"peft_type is {shown(raw.get('peft_type'))}, and only LORA can be read")
        for key, value in sorted(raw.items()):
            if key not in (*SAYS_NOTHING, *READ) and (value is True or (isinstance(value, dict | list) and value)):
                raise Unreadable(
                    f"{key[:60]} = {shown(value)} makes it more than plain LoRA, and only that can be read"
                )
        init = raw.get("init_lora_weights")
        if not any(init is x or (isinstance(x, str) and init == x) for x in KEEPS_THE_BASE):
            raise Unreadable(
                f"init_lora_weights = {shown(init)} is none of true, gaussian, eva, orthogonal and mica: others (pissa, olora, corda, "
                "loftq, lora_ga) change the weights of the model too, which such a folder lacks; have peft convert it when it is "
                "saved (path_initial_model_for_weight_conversion)"
            )
        if not isinstance(raw.get("use_rslora", False), bool):
            raise Unreadable(f"use_rslora = {shown(raw['use_rslora'])} is not true or false")
        ranks, alphas = (raw.get(key) or {} for key in ("rank_pattern", "alpha_pattern"))
        for key, pattern in (("rank_pattern", ranks), ("alpha_pattern", alphas)):
            if not isinstance(pattern, dict):
                raise Unreadable(f"{key} = {shown(pattern)} is no object")
        return cls(
            _rank(raw.get("r"), "r"),
            _alpha(raw.get("lora_alpha"), "lora_alpha"),
            {_pattern(k): _rank(v, f"rank_pattern: {k[:200]}") for k, v in ranks.items()},
            {_pattern(k): _alpha(v, f"alpha_pattern: {k[:200]}") for k, v in alphas.items()},
            bool(raw.get("use_rslora", False)),
        )

    def of(self, name: str) -> tuple[int, float]:
        """Rank and scale of a map."""
        rank = next((r for pattern, r in self.ranks.items() if pattern.match(name)), self.rank)  # the first that fits
        alpha = next((a for pattern, a in self.alphas.items() if pattern.match(name)), self.alpha)
        return rank, alpha / _divisor(rank, self.rslora)


def _rank(value: Any, key: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise Unreadable(
            f"{key} = {shown(value)} is no rank: it is a whole number from 1 on" if value is not None else _missing(key)
        )
    return value


def _alpha(value: Any, key: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < abs(value) < 1e30:
        raise Unreadable(f"{key} = {shown(value)} is no number to scale with" if value is not None else _missing(key))
    return float(value)


def _missing(key: str) -> str:
    return f"{key} is missing: write it into {CONFIG}, as it was in training"


def _divisor(rank: int, rslora: bool) -> float:
    return math.sqrt(rank) if rslora else rank


def _pattern(text: str) -> re.Pattern[str]:
    """As `peft` has it. Raises Unreadable for what is no regular expression, and for one that could search for ever."""
    if len(text) > 1000 or len(re.findall(r"[*+?{]", text)) > 4 or re.search(r"[*+?})][*+{]", text):
        raise Unreadable(f"the pattern {shown(text)} is too complicated")
    try:
        return re.compile(rf"(.*\.)?({text})$")
    except (re.error, RecursionError, OverflowError):
        raise Unreadable(f"the pattern {shown(text)} is no regular expression") from None


def _pair(name: str, config: Config, tensors: Tensors, scale: float) -> tuple[Tensor, Tensor]:
    """A ``[r, d_in]`` and B ``[d_out, r]`` of a map, as they are to be for another scale."""
    A, B = (tensors[f"{PREFIX}{name}.lora_{x}.weight"] for x in "AB")
    return A, B.to(torch.promote_types(B.dtype, torch.float32)) * (config.of(name)[1] / scale)


def _check(module: nn.Module, config: Config, tensors: Tensors) -> None:
    """Whether the folder has all that the module's adapters need, and nothing else. Reads no tensor."""
    there, found = set(tensors.shapes), adapters(module)
    maps = {_theirs(module, path) for path in (*found, *linear_maps(module))}
    of = {n: m[1] for n in sorted(there) if (m := re.fullmatch(rf"{re.escape(PREFIX)}(.+)\.lora_[AB]\.weight", n))}
    for path, adapter in found.items():
        name = _theirs(module, path)
        keys = [f"{PREFIX}{name}.lora_{x}.weight" for x in "AB"]
        if not there.issuperset(keys):
            raise Unreadable(f"it has nothing for {name}: " + _targets(sorted(maps.intersection(of.values())), maps))
        there -= set(keys)
        (d_out, d_in), room = adapter.matrix.shape, sum(len(a) for a in adapter.lora_A)
        A, B = (tensors.shapes[key] for key in keys)
        rank = config.of(name)[0]
        if (A[1:], B[:-1]) != ((d_in,), (d_out,)) or len(A) != 2 or len(B) != 2 or A[0] != B[1]:
            raise Unreadable(
                f"it has A {list(A)} and B {list(B)} for {name}, which is a map of {d_in} to {d_out}: they are of another model"
            )
        if A[0] != rank:
            raise Unreadable(f"its config gives {name} rank {rank}, and A there has {A[0]}: one of them was changed")
        if rank > room:
            raise Unreadable(
                f"{name} has rank {rank} there and room for rank {room} here: set lora.ranks to at least its rank"
            )
    for key in sorted(there)[:1]:
        if of.get(key) in maps:
            raise Unreadable(f"it also has {of[key]}: add {of[key].rpartition('.')[2]} to lora.targets")
        raise Unreadable(f"it also has {key[:200]}, which {_what(key)}")


def _what(key: str) -> str:
    """What a tensor is that our adapters have no place for."""
    kinds = {
        ".bias": "is a bias, and biases stay as they are here",
        "token_adapter": "belongs to trained tokens, and embeddings stay as they are here",
        "lora_embedding": "is an adapter of an embedding, and only linear maps have adapters here",
        "magnitude": "is a magnitude of DoRA, and only plain LoRA can be read",
    }
    if "lora_" in key and not any(word in key for word in kinds):
        return "is for no linear map of this model: it is of another one"
    whole = "is a tensor that was trained as a whole (modules_to_save), and only adapters can be read"
    return next((words for word, words in kinds.items() if word in key), whole)


def _targets(given: Sequence[str], maps: Collection[str]) -> str:
    """The lora.targets of a folder with adapters for the maps ``given``: ends of names, if these mean no others."""
    ends = sorted({n.rpartition(".")[2] for n in given})
    meant = {n for n in maps if n.rpartition(".")[2] in ends}
    names = json.dumps(ends if meant == set(given) else list(given))
    return f"set lora.targets={names[:300]}" if given else "it has no adapter for any linear map of this model"


@torch.no_grad()
def merged(module: nn.Module, rank: Ranks = None) -> dict[str, Tensor]:
    """All tensors of the model by the names that they have without adapters, with the adapters (cut to ``rank``) added."""
    found, ranks = adapters(module), _ranks(module, rank)
    out = {n: p.detach() for n, p in module.named_parameters() if ".lora_" not in n}
    for path, adapter in found.items():
        A, B = adapter.factors(ranks[path])
        out[f"{path}.weight"] = adapter.as_matrix(adapter.matrix + adapter.scale * B @ A)
    return {_theirs(module, n): p.contiguous() for n, p in out.items()}


def _ranks(module: nn.Module, rank: Ranks) -> dict[str, int]:
    """To which rank the adapter of each map is cut. Raises RecipeError for one that is not there."""
    found = adapters(module)
    if rank is None:
        used = {path: _used(adapter) for path, adapter in found.items()}
        full = not any(used.values())  # nothing was trained yet: all of it is to be
        return {p: sum(len(a) for a in x.lora_A) if full else max(1, used[p]) for p, x in found.items()}
    named = dict.fromkeys(found, rank) if isinstance(rank, int) else dict[str, int]()
    for target, size in rank.items() if isinstance(rank, Mapping) else ():
        paths = [p for p in found if p == target or p.endswith("." + target)]
        if not paths:
            raise RecipeError(one_of("adapted map", target, sorted({p.rpartition(".")[2] for p in found})))
        named |= dict.fromkeys(paths, size)
    with cut_to(module, *named.values()):  # raises for a rank that is not there
        return {p: sum(len(a) for a in x.lora_A) for p, x in found.items()} | named


def ranks_of(text: str) -> Ranks:
    """``8``, or ``q_proj=4,v_proj=8``. Raises RecipeError for anything else."""
    if re.fullmatch(r"-?\d{1,9}", text):
        return int(text)
    parts = [re.fullmatch(r"\s*([\w.]+)\s*=\s*(\d{1,9})\s*", part) for part in text.split(",")]
    if not all(parts):
        raise RecipeError(f"--rank {text[:200]!r} is no rank: write one for all maps (8), or some (q_proj=4,v_proj=8)")
    return {m[1]: int(m[2]) for m in parts if m}


def _used(adapter: LoRALinear) -> int:
    """Up to which rank index B is anything but zero."""
    columns = torch.cat(list(adapter.lora_B), 1).ne(0).any(0).nonzero()
    return int(columns[-1]) + 1 if len(columns) else 0


def _theirs(module: nn.Module, path: str) -> str:
    """The path as the model itself has it, without our wrapper around a transformer."""
    return path.removeprefix("model.") if isinstance(module, HFModule) else path
