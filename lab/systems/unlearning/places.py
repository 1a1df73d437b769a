"""Where in a causal model: its blocks and the down-projection of each, by name, and what goes through them.

A model is any module with ``forward(ids [B, T]) -> logits [B, T, V]``, or one of ``transformers``, which is wrapped. Prompts are int64
tensors ``[T]`` of any lengths, not empty; rows are filled up on the right, which earlier positions of a causal model do not see.

Legend: L blocks, n prompts or rows, T positions, d width, p width of the down-projection's input, V vocabulary.
"""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import count, takewhile
from typing import Any

import torch
from torch import Tensor, nn

from lab.data.tasks.scores import AT_ONCE, generate
from lab.ground.errors import RecipeError
from lab.models.hf import HFModule
from lab.models.lora import linear_maps

# Of block {l}, the map whose output is added to the residual stream last: this lab's GPT, Llama and its like, GPT-2, GPT-NeoX, OPT.
PATTERNS = (
    "blocks.{l}.mlp.2",
    "model.layers.{l}.mlp.down_proj",
    "transformer.h.{l}.mlp.c_proj",
    "gpt_neox.layers.{l}.mlp.dense_4h_to_h",
    "model.decoder.layers.{l}.fc2",
)

Within = Callable[
    [int], AbstractContextManager[object]
]  # what is done to the model while prompts of this length are gone on with


@dataclass(frozen=True, eq=False)
class Places:
    """The blocks of a model in their order, and the down-projection of each.

    names
        of the matrices ``[d, p]`` (of a ``Conv1D``: its transpose), as the model's own parameters are called.
    """

    model: nn.Module
    blocks: tuple[nn.Module, ...]
    downs: tuple[nn.Module, ...]
    names: tuple[str, ...]

    @classmethod
    def of(cls, model: nn.Module, pattern: str = "") -> Places:
        """Those of a model, in eval mode from here on.

        Parameters
        ----------
        pattern
            name of the down-projection of block ``{l}``, as in ``model.layers.{l}.mlp.down_proj``; a block is what ends in its number. Empty:
            one of `PATTERNS`.

        Raises
        ------
        RecipeError
            for a name that this model does not have, for what is no linear map, and for a map whose output is not simply added to the stream.
        """
        module = _wrapped(model).eval()
        maps = linear_maps(module)
        found = [p for p in ([pattern] if pattern else PATTERNS) if _paths(module, p)]
        if not found:
            ends = sorted({re.sub(r"\.\d+\.", ".{l}.", path) for path in maps if re.search(r"\.\d+\.", path)})
            raise RecipeError(
                f"{pattern or 'a down-projection'} is in no block of {type(model).__name__}: name it with {{l}} for the block's number, for "
                f"example {', '.join(ends[:6]) or 'model.layers.{l}.mlp.down_proj'}"
            )
        paths = _paths(module, found[0])
        for _, path in paths:
            if path not in maps:
                kind = type(module.get_submodule(path)).__name__
                raise RecipeError(
                    f"{path} is a {kind} and no linear map: name the block's down-projection (merge adapters first)"
                )
        blocks = tuple(module.get_submodule(block) for block, _ in paths)
        places = cls(
            module, blocks, tuple(maps[path] for _, path in paths), tuple(f"{path}.weight" for _, path in paths)
        )
        places._check()
        return places

    @torch.no_grad()
    def _check(self) -> None:
        """Raises RecipeError unless what a down-projection gives more comes out of its block."""
        ids = torch.zeros(1, 1, dtype=torch.int64)
        with _outputs(self.blocks) as plain:
            _run(self.model, ids)
        for i, (down, before) in enumerate(zip(self.downs, plain, strict=True)):
            more = before.norm() * torch.ones_like(before) / before.numel() ** 0.5
            with _changed(down, partial(torch.add, more)), _outputs(self.blocks[i : i + 1]) as after:
                _run(self.model, ids)
            if not float((after[0] - before - more).norm()) <= 0.05 * float(more.norm()):
                raise RecipeError(
                    f"what {self.names[i]} gives is not added to the stream as it is: name the map that a block ends with, one that nothing "
                    "scales or normalises"
                )

    @property
    def num_layers(self) -> int:
        return len(self.blocks)

    def matrix(self, layer: int) -> Tensor:
        """W of block ``layer``, ``[d, p]``: a view of the model's own."""
        down: Any = self.downs[layer]
        weight: Tensor = down.weight.detach()
        return weight if isinstance(down, nn.Linear) else weight.T

    @torch.no_grad()
    def last_states(self, prompts: Sequence[Tensor]) -> Tensor:
        """a_l: what comes out of every block (and goes into the next) at the last token of each prompt, float64 ``[L, n, d]``."""
        found = []
        for ids, length in batches(prompts):
            with _outputs(self.blocks) as states:
                _run(self.model, ids)
            at = torch.arange(len(ids), device=states[0].device)
            found.append(torch.stack([x[at, length.to(x.device) - 1].double().cpu() for x in states]))
        return torch.cat(found, 1)

    @torch.no_grad()
    def rows(self, layer: int, prompts: Sequence[Tensor], last: bool = False) -> tuple[Tensor, Tensor]:
        """What goes into a down-projection and what comes out, a row for each token of the prompts (or the ``last`` alone).

        Float64 ``[n, p]`` and ``[n, d]``.
        """
        into, out = [], []
        for ids, length in batches(prompts):
            with _inputs(self.downs[layer]) as x, _outputs(self.downs[layer : layer + 1]) as m:
                _run(self.model, ids)
            place = torch.arange(ids.shape[1])
            keep = (place < length[:, None]) & ((place == length[:, None] - 1) if last else True)
            into.append(x[0][keep.to(x[0].device)].double().cpu())
            out.append(m[0][keep.to(m[0].device)].double().cpu())
        return torch.cat(into), torch.cat(out)

    @contextlib.contextmanager
    def steered(self, layer: int, shift: Tensor, length: int) -> Iterator[None]:
        """Inside, ``shift [d]`` is added to what comes out of a block, at the first ``length`` positions: those of a prompt."""

        def change(x: Tensor) -> Tensor:
            return torch.cat([x[:, :length] + shift.to(x), x[:, length:]], 1)

        with _changed(self.blocks[layer], change):
            yield

    @contextlib.contextmanager
    def skipped(self, layer: int) -> Iterator[None]:
        """Inside, a block gives what it is given."""

        def skip(module: nn.Module, args: Any, options: Any, out: Any) -> Any:
            return _with_first(out, args[0] if args else options["hidden_states"])

        handle = self.blocks[layer].register_forward_hook(skip, with_kwargs=True)
        try:
            yield
        finally:
            handle.remove()

    def written(
        self,
        prompts: Sequence[Tensor],
        max_tokens: int,
        end: int | None = None,
        within: Within = lambda length: nullcontext(),
    ) -> list[Tensor]:
        """What the model goes on with after each prompt, by likeliest tokens; prompts of one length together, ``within`` what is done to it."""
        found: dict[int, Tensor] = {}
        for length in sorted({len(p) for p in prompts}):
            these = [i for i, p in enumerate(prompts) if len(p) == length]
            with within(length):
                found |= zip(these, generate(self.model, [prompts[i] for i in these], max_tokens, end), strict=True)
        return [found[i] for i in range(len(prompts))]


def batches(prompts: Sequence[Tensor], at_once: int = AT_ONCE) -> Iterator[tuple[Tensor, Tensor]]:
    """Some prompts at a time: ids ``[B, T]``, filled up with zeros, and how long each is, ``[B]``."""
    for i in range(0, len(prompts), at_once):
        some = list(prompts[i : i + at_once])
        yield nn.utils.rnn.pad_sequence(some, batch_first=True), torch.tensor([len(p) for p in some])


def _run(model: nn.Module, ids: Tensor) -> None:
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    model(ids.to(device))


def _wrapped(model: nn.Module) -> nn.Module:
    transformers: Any = sys.modules.get("transformers")
    return HFModule(model) if transformers is not None and isinstance(model, transformers.PreTrainedModel) else model


def _paths(module: nn.Module, pattern: str) -> list[tuple[str, str]]:
    """Of each block, from 0 on, its name and that of the map in it; inside of a model that is wrapped, too."""
    block, number, rest = pattern.partition("{l}")
    parts = {path for path, _ in module.named_modules()}
    for prefix in ("", "model."):
        names = (f"{prefix}{block}{i}" for i in count())
        found = (
            list(takewhile(lambda pair: pair[1] in parts, ((name, name + rest) for name in names))) if number else []
        )
        if found:
            return found
    return []


def _first(out: Any) -> Tensor:
    """The stream in what a block gives: a tensor, or the first of several things."""
    x: Tensor = out[0] if isinstance(out, tuple) else out
    return x


def _with_first(out: Any, x: Tensor) -> Any:
    return (x, *out[1:]) if isinstance(out, tuple) else x


@contextlib.contextmanager
def _outputs(modules: Sequence[nn.Module]) -> Iterator[list[Tensor]]:
    """Collects what comes out of each, in their order, in one pass. Raises RecipeError for one that is gone through several times."""
    seen: dict[int, Tensor] = {}

    def look(i: int, out: Any) -> None:
        if i in seen:
            raise RecipeError(
                "a block of this model is gone through several times: unlearning needs one that has each once"
            )
        seen[i] = _first(out)

    handles = [m.register_forward_hook(lambda m, a, out, i=i: look(i, out)) for i, m in enumerate(modules)]
    found: list[Tensor] = []
    try:
        yield found
        found += [seen[i] for i in range(len(modules))]
    finally:
        for handle in handles:
            handle.remove()


@contextlib.contextmanager
def _inputs(module: nn.Module) -> Iterator[list[Tensor]]:
    found: list[Tensor] = []
    handle = module.register_forward_pre_hook(lambda m, args: found.append(args[0]))
    try:
        yield found
    finally:
        handle.remove()


@contextlib.contextmanager
def _changed(module: nn.Module, change: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Inside, what comes out of a module is changed."""
    handle = module.register_forward_hook(lambda m, args, out: _with_first(out, change(_first(out))))
    try:
        yield
    finally:
        handle.remove()
