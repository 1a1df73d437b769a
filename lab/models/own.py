"""A module of one's own: any function or class that makes an ``nn.Module``, by its reference.

The factory is called with the options of the recipe. What only the data knows it may ask for by name: ``vocab_size`` and ``context`` of
text, ``input_shape`` (of an example, without the batch axis) and ``num_outputs`` of a task. It is called once for a run; the module of
every worker has the parts of that one.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from lab.ground.config import RecipeView
from lab.ground.config.references import Call, only_recorded, resolve
from lab.ground.errors import RecipeError, plain, shown
from lab.ground.seeds import derive
from lab.ground.seeds.draws import Draws
from lab.models.gpt import cross_entropy
from lab.models.shape import Shape

TaskLoss = Callable[[nn.Module, Tensor, Tensor], Tensor]  # of a module, on inputs and targets
FROM_DATA = ("vocab_size", "context", "input_shape", "num_outputs")


@dataclass(frozen=True)
class Factory:
    """A model of a recipe: what makes the module, and its options."""

    call: Call

    @property
    def vocab_size(self) -> int | None:
        """None: where it depends on the text, its factory asks for it."""
        return None

    @property
    def layers_and_experts(self) -> tuple[int, int]:
        return 0, 0

    def check(self, recipe: RecipeView) -> None:
        """Raises RecipeError where there is no such factory, or it does not take these options."""
        if not only_recorded():
            self.call.check(self.found(), "model", FROM_DATA)

    def found(self) -> Any:
        """The function or class itself. Raises RecipeError where it is not here."""
        found = resolve(self.call.name, "model")
        if not callable(found):
            raise RecipeError(
                f"model {self.call.name} is {shown(found)}: name a function or class that makes an nn.Module"
            )
        return found

    def module(self, shape: Shape, seed: int) -> nn.Module:
        """See `lab.models.shape.Model`. Parameters become float32. Raises RecipeError for what is no module, or cannot be made."""
        make, name = self.found(), self.call.name
        known: Mapping[str, Any] = dict(
            zip(FROM_DATA, (shape.vocab_size, shape.context, shape.input, shape.outputs), strict=True)
        )
        asks = inspect.signature(make).parameters
        options = {key: value for key, value in known.items() if key in asks} | self.call.options
        try:
            with Draws(derive(seed, "init")):
                module = make(**options)
        except RecipeError:
            raise
        except Exception as error:
            if torch.empty(0).is_meta:  # it reads values, which there are none of here
                with torch.device("cpu"):
                    return skeleton(self.module(shape, seed))
            given = ", ".join(f"{key}={options[key]}" for key in known if key in options)
            of_data = f" (from the data: {given})" if given else ""
            raise RecipeError(f"model {name} cannot be made{of_data}: {one_line(error)}") from error
        if not isinstance(module, nn.Module):
            raise RecipeError(f"model {name} gave {shown(module)}: return an nn.Module")
        _check_parameters(module, name)
        return module.train() if not torch.empty(0).is_meta else skeleton(module.train())


def _check_parameters(module: nn.Module, name: str) -> None:
    trained = False
    for key, p in module.named_parameters():
        if isinstance(p, nn.parameter.UninitializedParameter):
            raise RecipeError(
                f"model {name}: {key} has no shape before its first batch (a lazy module): give its sizes, or call it once in the factory"
            )
        if p.requires_grad and not p.is_floating_point():
            raise RecipeError(f"model {name}: {key} is {p.dtype}, and only floats are trained")
        trained = trained or p.requires_grad
    if not trained:
        raise RecipeError(f"model {name} has no parameters to train")


def skeleton(module: nn.Module) -> nn.Module:
    """The same module with tensors of the same shapes and no storage (on ``meta``): nothing is copied."""
    memo: dict[int, Any] = {}
    for p in module.parameters():
        memo[id(p)] = nn.Parameter(torch.empty_like(p, device="meta"), requires_grad=p.requires_grad)
    for b in module.buffers():
        memo[id(b)] = torch.empty_like(b, device="meta")
    return copy.deepcopy(module, memo)


def loss_of_tokens(module: nn.Module, ids: Tensor, targets: Tensor) -> Tensor:
    """Nats per token, of a module with ``forward(ids [B, T]) -> logits [B, T, V]``."""
    return cross_entropy(module(ids), targets)


def with_loss(module: nn.Module, loss: TaskLoss | None) -> nn.Module:
    """The module with ``module.loss(inputs, targets)``: the task's; without a task its own, or else that of its logits for tokens."""
    if loss is None and "loss" not in dir(module):
        loss = loss_of_tokens
    if loss is not None:
        module.loss = partial(loss, module)  # type: ignore[assignment]
    return module


def one_line(error: BaseException) -> str:
    """An error of code that is not the lab's, with its class."""
    lines = str(error).strip().splitlines()
    return plain(f"{type(error).__name__}: {lines[0] if lines else ''}".rstrip(": "), 300)
