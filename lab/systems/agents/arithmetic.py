"""Copies of one small model of the lab that add two numbers, and have learnt to read what others say: a setting with real texts, offline.

The model is trained by the lab itself on the task ``arithmetic`` (`lab.data.tasks.arithmetic`), once, on sums with and without answers of
others before them. Copies differ in what they draw, at a temperature of 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from lab.data.tasks import arithmetic, scores
from lab.data.tasks.data import Encoder
from lab.data.tasks.examples import Example
from lab.data.tokenizer import load_tokenizer
from lab.ground.config import Count, Positive, config
from lab.ground.seeds.permutations import uniforms
from lab.ground.seeds.surroundings import isolated
from lab.models.shape import Shape
from lab.recipes.recipe import Recipe
from lab.runs.trainer import trained_once
from lab.systems.agents.agent import Answer, Call, Setting
from lab.systems.agents.encoders import encoder
from lab.systems.agents.questions import of_task

CONTEXT = 28  # tokens: six answers, the sum, its answer
LONGEST = 3  # tokens of an answer with its end


@config
class Arithmetic:
    """Sums below twenty, and copies of a GPT that was trained on most of them.

    steps, batch_size, lr
        of the training (AdamW, cosine, two workers by `ddp`): about half a minute of one core. The model is kept in the cache.
    model_seed
        of its first values and its batches.
    temperature, seed
        of the copies; order of the questions, and what copies draw.
    """

    steps: Count = 2000
    batch_size: Count = 16
    lr: Positive = 8e-3
    size: str = "nano"
    model_seed: int = 0
    temperature: Positive = 1.0
    seed: int = 0

    def recipe(self) -> Recipe:
        inner = {"name": "AdamW", "lr": self.lr, "options": {"betas": [0.9, 0.95], "weight_decay": 0.0}}
        return Recipe.of(
            {
                "method": {"name": "ddp", "inner": inner},
                "model": self.size,
                "corpus": "task:arithmetic",
                "num_workers": 2,
                "steps": self.steps,
                "batch_size": self.batch_size,
                "context": CONTEXT,
                "seed": self.model_seed,
                "schedule": {"kind": "cosine", "warmup": min(20, self.steps // 10)},
                "eval_every": 0,
                "checkpoint_every": 0,
            }
        )

    def setting(self, cache: Path | None = None) -> Setting:
        """Questions are single sums; those that the model was not trained on are held out. Answers are compared by hashed n-grams."""
        questions = of_task("arithmetic", "alone", seed=self.seed)
        return Setting(questions, Adders(trained(self.recipe(), cache), self.temperature, self.seed), encoder("ngrams"))


def trained(recipe: Recipe, cache: Path | None = None) -> nn.Module:
    """The agreed model of a recipe, from the cache, or trained now. Raises RecipeError where the cache cannot be written."""
    file = trained_once(recipe, "agents", "a model that adds, once", cache, progress=False)
    module = recipe.model.module(Shape(load_tokenizer("bytes").vocab_size, CONTEXT), recipe.seed)
    module.load_state_dict(load_file(file), strict=True)
    return module.eval()


@dataclass(frozen=True, eq=False)
class Adders:
    """Copies of one model (`lab.systems.agents.agent.Agents`); what each draws depends on the seed, the question, the agent, and whether it heard others."""

    model: nn.Module
    temperature: float = 1.0
    seed: int = 0

    def answer(self, calls: Sequence[Call]) -> list[Answer]:
        """See `lab.systems.agents.agent.Agents`. All at once; tokens are those of the model, ends included."""
        row = Encoder(load_tokenizer("bytes"), CONTEXT, LONGEST)
        asked = [Example(arithmetic.prompt(c.query.text, c.heard), "", "") for c in calls]
        prompts = row.rows(asked, whole=False).prompts(np.arange(len(calls)))
        ids = np.array([[c.query.number, c.agent, bool(c.heard)] for c in calls])
        u = torch.from_numpy(uniforms(self.seed, "tokens", ids, LONGEST))

        def draw(logits: Tensor, rows: Tensor, place: int) -> Tensor:
            reached = (logits.double() / self.temperature).softmax(1).cumsum(1)
            return (reached <= u[rows, place, None]).sum(1).clamp(max=logits.shape[1] - 1)

        with isolated():
            written = scores.generate(self.model, prompts, LONGEST, row.end, draw)
        texts = [row.tokenizer.decode(ids.tolist()) for ids in written]
        return [Answer(t, len(p), len(w) + (len(w) < LONGEST)) for t, p, w in zip(texts, prompts, written, strict=True)]
