"""Small models and prompts in which something is to be forgotten."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from lab.ground.seeds import generator
from lab.models.gpt import GPT
from lab.systems.unlearning.lunar import Request

V, D, P = 11, 8, 12


def gpt() -> nn.Module:
    return GPT(dim=D, num_layers=3, num_heads=2, mlp_dim=P).build(V, 16, seed=3).double()


def of_transformers(kind: str) -> nn.Module:
    import transformers

    shape: dict[str, Any] = {"num_hidden_layers": 3, "num_attention_heads": 2, "hidden_size": D}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if kind == "llama":
            config = transformers.LlamaConfig(vocab_size=V, max_position_embeddings=16, intermediate_size=P, **shape)
            return transformers.LlamaForCausalLM(config).double()
        gpt2 = transformers.GPT2Config(vocab_size=V, n_positions=16, n_embd=D, n_layer=3, n_head=2, n_inner=P)
        return transformers.GPT2LMHeadModel(gpt2).double()


MODELS: dict[str, Callable[[], nn.Module]] = {
    "gpt": gpt,
    "llama": lambda: of_transformers("llama"),
    "gpt2": lambda: of_transformers("gpt2"),
}


def prompts(num: int, seed: int) -> list[Tensor]:
    """Of three to six tokens."""
    g = generator(seed, "prompts")
    return [torch.randint(V, (3 + i % 4,), generator=g) for i in range(num)]


def request(retain: int = 5) -> Request:
    return Request(prompts(2, 1), prompts(retain, 2), prompts(4, 3))
