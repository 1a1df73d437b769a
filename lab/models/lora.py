"""Low-rank adapters in rank segments: y = W₀·x + s·B·A·x, where A and B are held in pieces of the rank.

The ranks that occur in a federation, r_1 < … < r_M, cut 1 … r_M into M *segments* (r_{m−1}, r_m]. Every segment of A and
of B is a tensor of its own, ``….lora_A.m`` and ``….lora_B.m``, and a client of rank r_k has only those with r_m ≤ r_k: a
prefix. W₀ is frozen. An adapter can be cut to any prefix, in training and afterwards.

Legend: B sequences, T positions, R truncations in one pass, r a rank.
"""

from __future__ import annotations

import contextlib
import math
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lab.ground.config import Count, Positive, RecipeView, config
from lab.ground.errors import RecipeError, one_of
from lab.ground.seeds import generator


@config
class LoRA:
    """Which linear maps get adapters, and of which rank.

    ranks
        one number for all workers, or one for each; none: no adapters, the whole model is trained.
    targets
        names, or ends of names, of ``nn.Linear`` modules: ``attention.qkv`` (the default of the lab's own models),
        ``q_proj``, ``v_proj``; of GPT-2's ``Conv1D`` too (``c_attn``). A map whose weight is tied to another tensor (a head to
        the embedding) is untied: its adapter changes that map alone.
    scale
        s, the same for every rank, so that a prefix means the same to all clients.
    alpha
        the usual α instead: a client of rank r works with the scale α/r. What it hands over is converted to the scale of
        the largest rank, and back when it receives.
    train
        ``B`` freezes every A at its first value (FFA-LoRA): then only B is trained, sent and kept track of.
    values
        a folder with an adapter in `peft`'s format to begin with, or none.
    init
        of A: Kaiming-uniform with a = √5 (as `peft` does it), or Gaussian with variance 1/d_in. B starts at zero.
    """

    ranks: tuple[Count, ...] = ()
    targets: tuple[str, ...] = ("attention.qkv",)
    scale: Positive = 2.0
    alpha: Positive | None = None
    train: Literal["both", "B"] = "both"
    init: Literal["kaiming", "gaussian"] = "kaiming"
    values: str = ""

    def __post_init__(self) -> None:
        if not self.targets:
            raise RecipeError(
                "lora.targets is empty: name the maps that get adapters, for example attention.qkv, or leave it out"
            )
        if self.values and not self.ranks:
            raise RecipeError(
                "lora.values names an adapter to begin with, but there is none without lora.ranks: set both"
            )

    def check(self, recipe: RecipeView) -> None:
        """Raises RecipeError where the rest of a recipe does not go with these adapters."""
        if not self.ranks:
            return
        self.check_number(recipe.num_workers)
        if recipe.placement.overlap is not None:
            raise RecipeError(
                "placement.overlap spreads experts that are trained, but lora freezes them: leave out one"
            )

    def check_number(self, num_workers: int) -> None:
        """Raises RecipeError where there are not as many ranks as workers."""
        if len(self.ranks) not in (1, num_workers):
            raise RecipeError(
                f"lora.ranks has {len(self.ranks)} numbers for {num_workers} workers: give one for all, or one for each"
            )

    def ranks_W(self, num_workers: int) -> tuple[int, ...]:
        """The rank of every worker's adapter. Raises RecipeError where their number does not fit."""
        self.check_number(num_workers)
        return self.ranks if len(self.ranks) == num_workers else self.ranks * num_workers

    @property
    def bounds(self) -> tuple[int, ...]:
        """Where segments end: r_1 < … < r_M."""
        return tuple(sorted(set(self.ranks)))

    def scale_of(self, rank: int) -> float:
        return self.scale if self.alpha is None else self.alpha / rank


class Cut:
    """To which rank all adapters of one module are cut at this moment; there is one object for all of them."""

    def __init__(self, rank: int):
        self.rank = rank  # of the tensors that are there
        self.ranks: tuple[int, ...] = ()  # none: uncut; one: cut to it; several: the batch is so many copies, each cut
        self.weights: Tensor | None = None  # factor of every rank index
        self.copies: Tensor | None = None  # the first input of this pass, whose copies are still equal


class LoRALinear(nn.Module):
    """A frozen linear map with an adapter in segments. Bounds are those of its own segments, r_1 < … < r_k.

    ``weight`` is kept as the map itself has it: ``[d_out, d_in]``, or ``[d_in, d_out]`` of a ``Conv1D``.
    """

    weight: Tensor
    bias: Tensor | None

    def __init__(self, base: nn.Module, bounds: Sequence[int], scale: float, train: str, cut: Cut):
        super().__init__()
        self.weight, self.bias, self.scale, self.cut = base.weight, base.bias, scale, cut  # type: ignore[assignment]
        self.turned = not isinstance(base, nn.Linear)
        widths = [high - low for low, high in zip([0, *bounds], bounds, strict=False)]
        d_out, d_in = self.matrix.shape
        new = self.weight.new_zeros
        self.lora_A = nn.ParameterList(nn.Parameter(new(w, d_in), requires_grad=train == "both") for w in widths)
        self.lora_B = nn.ParameterList(nn.Parameter(new(d_out, w)) for w in widths)

    def as_matrix(self, weight: Tensor) -> Tensor:
        """A weight of this map as ``[d_out, d_in]``, or such a matrix as a weight; a view."""
        return weight.T if self.turned else weight

    @property
    def matrix(self) -> Tensor:
        """W₀ ``[d_out, d_in]``."""
        return self.as_matrix(self.weight)

    def factors(self, rank: int | None = None) -> tuple[Tensor, Tensor]:
        """A ``[r, d_in]`` and B ``[d_out, r]``, cut to ``rank``."""
        A, B = torch.cat(list(self.lora_A)), torch.cat(list(self.lora_B), 1)
        return (A, B) if rank is None else (A[:rank], B[:, :rank])

    def forward(self, x: Tensor) -> Tensor:
        cut = self.cut
        if len(cut.ranks) > 1:
            return self._copies(x)
        A, B = self.factors(cut.ranks[0] if cut.ranks else None)
        h = F.linear(x, A)  # … r
        if cut.weights is not None:
            h = h * cut.weights
        return F.linear(x, self.matrix, self.bias) + self.scale * F.linear(h, B)

    def _copies(self, x: Tensor) -> Tensor:
        """R copies of a batch one after another, ``[R·B, …]``, each cut to another rank.

        One product with W₀ for all of them. Before the first adapter the copies are equal: there the products with W₀
        and with A are those of one copy.
        """
        cut, R = self.cut, len(self.cut.ranks)
        if cut.copies is None:
            cut.copies = x
        equal = cut.copies is x
        one = x[: len(x) // R] if equal else x
        A, B = self.factors()
        keep = torch.arange(len(A), device=x.device) < torch.tensor(cut.ranks, device=x.device)[:, None]  # R r
        keep = keep.to(x.dtype).view(R, *[1] * (x.dim() - 1), len(A))
        h = F.linear(one, A).unflatten(0, (-1, len(one) // (1 if equal else R)))  # (1 or R) B … r
        base = F.linear(one, self.matrix, self.bias)
        base = base.repeat(R, *[1] * (x.dim() - 1)) if equal else base
        return base + self.scale * F.linear((h * keep).flatten(0, 1), B)


def adapt_(module: nn.Module, lora: LoRA, rank: int, seed: int = 0) -> nn.Module:
    """Freeze a model and put adapters of this rank where ``lora`` wants them, in place.

    Values of A depend on the seed, the place and the index in the rank alone, so that all clients begin with prefixes of
    one adapter. Raises RecipeError for a target that is no linear map of this model, and a rank that is too large for it.
    """
    linear = linear_maps(module)
    found = {t: [p for p in linear if p == t or p.endswith("." + t)] for t in lora.targets}
    ends = sorted({".".join(p.split(".")[-2:]) for p in linear})
    for target, paths in found.items():
        if not paths:
            raise RecipeError(one_of("lora target", target, ends))
    most = {p: min(linear[p].weight.shape) for paths in found.values() for p in paths}
    narrowest = min(most, key=lambda p: most[p])
    if rank > most[narrowest]:
        d_in, d_out = linear[narrowest].weight.shape[:: -1 if isinstance(linear[narrowest], nn.Linear) else 1]
        raise RecipeError(
            f"lora.ranks: {rank} is more than {narrowest} ({d_in} to {d_out}) can have: use at most {min(d_in, d_out)}"
        )
    times = Counter(id(p) for m in module.modules() for p in m._parameters.values() if p is not None)
    module.requires_grad_(False)
    cut = Cut(rank)
    bounds = [b for b in lora.bounds if b <= rank]
    for path in [p for p in linear if any(p in paths for paths in found.values())]:
        if times[id(linear[path].weight)] > 1:  # tied: the same values, and memory, under a name of its own
            linear[path].weight = nn.Parameter(linear[path].weight.detach(), requires_grad=False)
        adapter = LoRALinear(linear[path], bounds, lora.scale_of(rank), lora.train, cut)
        if not adapter.weight.is_meta:
            init_(adapter, lora, generator(seed, "lora", path))
        parent, _, leaf = path.rpartition(".")
        setattr(module.get_submodule(parent), leaf, adapter)
    inner: Callable[[str], str] = getattr(module, "tensor_group", lambda name: "all")
    labels = [f"ranks {low + 1}-{high}" for low, high in zip([0, *lora.bounds], lora.bounds, strict=False)]

    def tensor_group(name: str) -> str:
        """Adapters by rank segment, for reading a ledger."""
        return labels[int(name.rpartition(".")[2])] if ".lora_" in name else inner(name)

    module.cut, module.tensor_group = cut, tensor_group  # type: ignore[assignment]
    return module


def linear_maps(module: nn.Module) -> dict[str, Any]:
    """The maps of a module that can have an adapter by path: ``nn.Linear``, and the ``Conv1D`` of GPT-2 and its like."""
    kinds = (nn.Linear, getattr(sys.modules.get("transformers.pytorch_utils"), "Conv1D", nn.Linear))
    return {path: m for path, m in module.named_modules() if isinstance(m, kinds)}


@torch.no_grad()
def init_(adapter: LoRALinear, lora: LoRA, g: torch.Generator) -> None:
    """First values: A is drawn, B is zero."""
    widths = [len(A) for A in adapter.lora_A]
    for A, new in zip(adapter.lora_A, fresh_A(lora, sum(widths), adapter.matrix, g).split(widths), strict=True):
        A.copy_(new)
    for B in adapter.lora_B:
        B.zero_()


def fresh_A(lora: LoRA, rank: int, like: Tensor, g: torch.Generator) -> Tensor:
    """A new A ``[rank, d_in]``, of the dtype and d_in of ``like […, d_in]``; row by row, so that none hangs on their number."""
    d_in = like.shape[-1]
    draw = torch.randn if lora.init == "gaussian" else torch.rand
    rows = torch.stack([draw(d_in, generator=g, dtype=torch.float64) for _ in range(rank)])
    rows = rows if lora.init == "gaussian" else 2 * rows - 1
    return (rows / math.sqrt(d_in)).to(like)


def adapters(module: nn.Module) -> dict[str, LoRALinear]:
    """The adapted maps of a module by path."""
    return {path: m for path, m in module.named_modules() if isinstance(m, LoRALinear)}


@contextlib.contextmanager
def cut_to(module: nn.Module, *ranks: int) -> Iterator[nn.Module]:
    """Inside, all adapters of ``module`` are cut: to one rank; or, for several, copy by copy of a batch that is R copies.

    Raises RecipeError for a rank that is not there.
    """
    cut: Cut = module.cut  # type: ignore[assignment]
    for rank in ranks:
        if not 1 <= rank <= cut.rank:
            raise RecipeError(f"a prefix of rank {rank} of adapters of rank {cut.rank}: use 1 to {cut.rank}")
    cut.ranks = ranks
    try:
        yield module
    finally:
        cut.ranks, cut.copies = (), None


@contextlib.contextmanager
def weighted(module: nn.Module, weights: Tensor) -> Iterator[nn.Module]:
    """Inside, rank index i counts ``weights[i]``: y = W₀·x + s·B·diag(weights)·A·x."""
    cut: Cut = module.cut  # type: ignore[assignment]
    cut.weights = weights
    try:
        yield module
    finally:
        cut.weights = None


def prefix_losses(module: nn.Module, ids: Tensor, targets: Tensor, ranks: Sequence[int]) -> Tensor:
    """The loss with the adapters cut to each of ``ranks``, ``[R]``, in one pass over R copies of the batch.

    ids, targets ``[B, …]``. Costs about R passes; what R copies share are the products with W₀ (one large product for
    all), and everything before the first adapter's output is computed from one copy's product. A loss that is the task's, not
    the module's own criterion on logits, is computed pass by pass.
    """
    if "loss" in vars(module) or "criterion" not in dir(module):
        return torch.stack([_cut_loss(module, ids, targets, rank) for rank in ranks])
    with cut_to(module, *ranks):
        logits: Tensor = module(torch.cat([ids] * len(ranks)) if len(ranks) > 1 else ids)  # R·B T V
    criterion: Callable[[Tensor, Tensor], Tensor] = module.criterion  # type: ignore[assignment]
    return torch.stack([criterion(part, targets) for part in logits.chunk(len(ranks))])


def _cut_loss(module: nn.Module, inputs: Tensor, targets: Tensor, rank: int) -> Tensor:
    with cut_to(module, rank):
        return module.loss(inputs, targets)  # type: ignore[operator, no-any-return]
