"""Any causal language model of Hugging Face's ``transformers``, from the hub or from a folder, as a model of the lab.

Needs the extra: ``pip install 'isthmus[hf]'``. Weights are read from ``safetensors`` files alone.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from lab.config import config
from lab.errors import RecipeError
from lab.models.gpt import cross_entropy


@config
class HF:
    """A model by its name on the hub (``HuggingFaceTB/SmolLM2-135M``) or the path of a folder with its files.

    ``start`` of the recipe stays empty: the values are those of the files. The text is to be cut by the model's own
    tokenizer: ``tokenizer=hub:<name>``, or the path of its ``tokenizer.json``.
    """

    path: str
    vocab_size: ClassVar[int | None] = None  # its own

    def build(self, vocab_size: int, context: int, seed: int = 0) -> nn.Module:
        """The module with its values; under the meta device only its shapes. Raises RecipeError where it cannot be read."""
        try:
            import transformers
        except ImportError:
            raise RecipeError("models of Hugging Face need transformers: pip install 'isthmus[hf]'") from None
        try:
            settings = transformers.AutoConfig.from_pretrained(self.path)
            if torch.empty(0).is_meta:
                model = transformers.AutoModelForCausalLM.from_config(settings)
            else:
                model = transformers.AutoModelForCausalLM.from_pretrained(
                    self.path, config=settings, use_safetensors=True, dtype=torch.float32
                )
        except (OSError, ValueError, KeyError) as error:
            reason = " ".join(str(error).split())[:200]
            raise RecipeError(
                f"cannot read model {self.path!r} ({reason}): check the name and the network (this machine may be offline), or "
                "use one of the lab's own, for example model=micro"
            ) from error
        known, room = model.config.vocab_size, getattr(model.config, "max_position_embeddings", context)
        if known < vocab_size:
            raise RecipeError(
                f"{self.path} knows {known} tokens and the text has {vocab_size}: use its own tokenizer, tokenizer=hub:{self.path} "
                "or the path of its tokenizer.json"
            )
        if room < context:
            raise RecipeError(f"context = {context} is too long for {self.path}, which has {room} positions")
        return HFModule(model.train())

    def floats_per_token(self, vocab_size: int) -> int:
        """A rough count of what backward keeps of a token: as of a transformer of the lab with this shape."""
        with torch.device("meta"):
            module: Any = self.build(0, 1)
        shape = module.model.config
        wide = getattr(shape, "intermediate_size", None) or 4 * shape.hidden_size
        return int(shape.num_hidden_layers * (9 * shape.hidden_size + 3 * wide) + 2 * shape.vocab_size)


class HFModule(nn.Module):
    """``forward(ids [B, T]) -> logits [B, T, V]``; ``loss(ids, targets)`` is the mean cross entropy in nats per token."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, ids: Tensor) -> Tensor:
        return self.model(input_ids=ids, use_cache=False).logits  # type: ignore[no-any-return]

    def loss(self, ids: Tensor, targets: Tensor) -> Tensor:
        return self.criterion(self(ids), targets)

    criterion = staticmethod(cross_entropy)

    @staticmethod
    def tensor_group(name: str) -> str:
        """What a tensor is, for reading a ledger."""
        if "norm" in name or "ln_" in name:
            return "norm"
        return next((part for part in ("embed", "attn", "mlp", "head") if part in name), "other")
