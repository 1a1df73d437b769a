"""What a model is made for, as the data says it, and what every model of a recipe can do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import nn

from lab.ground.config import RecipeView
from lab.ground.errors import RecipeError


@dataclass(frozen=True)
class Shape:
    """What goes into a model and what comes out, by the data.

    vocab_size, context
        of text: tokens that there are, tokens of a sequence; 0 where it is none.
    input
        of an example of a task, without the batch axis.
    outputs
        classes, or numbers that are to be predicted.
    of_each
        whether outputs are of each token: which one comes next, as in text.
    """

    vocab_size: int = 0
    context: int = 0
    input: tuple[int, ...] = ()
    outputs: int = 0
    of_each: bool = False

    def tokens_for(self, model: str) -> int:
        """``vocab_size``, for a model that reads tokens. Raises RecipeError where the data is no text."""
        if not self.vocab_size or (self.outputs and not self.of_each):
            raise RecipeError(
                f"model {model} predicts tokens, and the data has examples of shape {list(self.input)}: name another model, for example "
                "model=mlp, or leave data out for running text"
            )
        return self.vocab_size


class Model(Protocol):
    """A model as recipes name it: a frozen dataclass (`lab.ground.config.config`) with what makes the module."""

    @property
    def vocab_size(self) -> int | None:
        """Tokens, where the model and not the text says how many; None else."""

    @property
    def layers_and_experts(self) -> tuple[int, int]:
        """Layers with experts that may lie apart, and experts of each; (0, 0): none."""

    def check(self, recipe: RecipeView) -> None:
        """Raises RecipeError where the rest of a recipe does not go with it."""

    def module(self, shape: Shape, seed: int) -> nn.Module:
        """The module, with first values drawn from ``seed`` and no global generator; under the meta device only shapes.

        Raises
        ------
        RecipeError
            where it cannot be made for data of this shape.
        """
