"""Parts of one's own tried out on one batch, before anything trains: what is wrong with them is said in one line."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from lab.data.training_data import TrainingData
from lab.ground.errors import RecipeError
from lab.ground.seeds import derive
from lab.ground.seeds.draws import Draws
from lab.models.gpt import GPT
from lab.models.own import Factory, one_line, with_loss
from lab.models.shape import Shape
from lab.recipes.recipe import Recipe


def try_out(recipe: Recipe, data: TrainingData, shape: Shape) -> None:
    """`try_on_one_batch`, where the model or the task is not the lab's own, or the task is one that few models go with."""
    odd = shape.of_each and not isinstance(recipe.model, GPT)
    if isinstance(recipe.model, Factory) or "data" in recipe.own or odd:
        try_on_one_batch(recipe, data, shape)


def try_on_one_batch(recipe: Recipe, data: TrainingData, shape: Shape) -> None:
    """Forward and backward of the model on the first batch of worker 0, twice; nothing of it stays.

    Raises
    ------
    RecipeError
        for a model that does not go with the data, and for what a fleet of workers cannot train: a loss that is no finite number, a
        model that changes what it is given, parameters whose names or shapes change, a backward pass that works once only.
    """
    name = recipe.model.call.name if isinstance(recipe.model, Factory) else type(recipe.model).__name__
    module = recipe.model.module(shape, recipe.seed).to(getattr(torch, recipe.dtype))
    _check_names(recipe, module, shape, name)
    inputs, targets = data.batches.get(0, 1)
    before = _shapes(module)
    for again in (False, True):
        given, goals = inputs.clone(), targets.clone()
        loss = _loss(recipe, data, module, given, goals, name)
        if not torch.equal(given, inputs) or not torch.equal(goals, targets):
            raise RecipeError(
                f"model {name} changes its inputs in place, which others read too: make a copy of them first"
            )
        _backward(loss, name, again)
        if _shapes(module) != before:
            raise RecipeError(
                f"model {name} makes or renames parameters in its forward pass: make them all in __init__"
            )


def _shapes(module: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(p.shape) for name, p in module.named_parameters()}


def _check_names(recipe: Recipe, module: nn.Module, shape: Shape, name: str) -> None:
    """Two modules of one factory have the same parameters: same name, same tensor."""
    again = _shapes(recipe.model.module(shape, recipe.seed))
    here = _shapes(module)
    for key in sorted(here.keys() | again.keys()):
        if here.get(key) != again.get(key):
            raise RecipeError(
                f"model {name} has other parameters each time it is made ({key} is {here.get(key, 'not there')}, then "
                f"{again.get(key, 'not there')}): workers share a tensor by its name, so let names and shapes follow from the options"
            )


def _loss(recipe: Recipe, data: TrainingData, module: nn.Module, inputs: Tensor, targets: Tensor, name: str) -> Tensor:
    given = f"inputs {list(inputs.shape)} {_dtype(inputs)}, targets {list(targets.shape)} {_dtype(targets)}"
    try:
        with Draws(derive(recipe.seed, "trial")):
            loss = with_loss(module, data.loss).loss(inputs, targets)  # type: ignore[operator]
    except RecipeError:
        raise
    except Exception as error:
        raise RecipeError(f"model {name} does not go with its data ({given}): {one_line(error)}") from error
    if not isinstance(loss, Tensor) or loss.numel() != 1 or not loss.is_floating_point():
        what = f"{list(loss.shape)} of {_dtype(loss)}" if isinstance(loss, Tensor) else type(loss).__name__
        raise RecipeError(f"the loss of model {name} is {what}: it has to be one number, the mean over the batch")
    if not loss.requires_grad:
        raise RecipeError(
            f"the loss of model {name} does not depend on its parameters: leave out detach(), .data, argmax and the like"
        )
    if not torch.isfinite(loss):
        raise RecipeError(
            f"the first loss of model {name} is {float(loss.detach())} ({given}): look at its first values and at the data"
        )
    return loss


def _backward(loss: Tensor, name: str, again: bool) -> None:
    try:
        loss.backward()  # type: ignore[no-untyped-call]
    except RuntimeError as error:
        if again and "second time" in str(error):
            raise RecipeError(
                f"model {name} keeps a graph from one step to the next: detach what it remembers"
            ) from error
        raise RecipeError(f"model {name} cannot be differentiated: {one_line(error)}") from error


def _dtype(x: Tensor) -> str:
    return str(x.dtype).removeprefix("torch.")


def floats_kept(module: nn.Module, shape: Shape) -> int:
    """How many numbers a backward pass needs of an example, found by a forward pass without storage; 0 where that is not possible."""
    kept: dict[int, int] = {}

    def note(x: Tensor) -> Tensor:
        kept[id(x)] = x.numel()
        return x

    parameters = {id(p) for p in module.parameters()}
    try:
        with torch.autograd.graph.saved_tensors_hooks(note, lambda x: x):
            module(_example(shape))
    except Exception:  # it reads values, which there are none of
        return 0
    return sum(n for i, n in kept.items() if i not in parameters)


def products(recipe: Recipe, shape: Shape) -> int:
    """Products that a forward pass takes for an example, found without storage; 0 where that is not possible."""
    with torch.device("meta"):
        module = recipe.model.module(shape, recipe.seed)
    counter = FlopCounterMode(display=False)
    try:
        with counter, torch.no_grad():
            module.eval()(_example(shape))
    except Exception:
        return 0
    return counter.get_total_flops() // 2


def _example(shape: Shape) -> Tensor:
    if shape.vocab_size:
        return torch.zeros(1, shape.context, dtype=torch.long, device="meta")
    return torch.zeros(1, *shape.input, device="meta")
