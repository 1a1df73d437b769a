"""What unlearning is measured by: is it gone, is all else there, and how does a model say that it does not know?

Legend: n answers, D numbers of an embedding, k tokens of an answer, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor, nn

from lab.data.tasks.scores import generate
from lab.ground.errors import RecipeError
from lab.models.sentences import sentence_model

Embed = Callable[[Sequence[str]], np.ndarray]  # texts → rows of length one, [n, D]
HASHED = "hashed"
FEATURES = 4096
FIRST = 100  # ranks that count as a hit

# Ways to say that one does not know which are good; the paper's release has ten of its own, which these are not.
REFUSALS = (
    "I do not have information about that.",
    "I cannot find anything on this.",
    "The question is too unspecific for me to answer.",
    "This is not publicly known, as far as I can tell.",
    "I am not aware of any such thing.",
    "There is nothing I can say about it for certain.",
    "No record of this is known to me.",
    "I could not locate any details on the subject.",
    "I have never come across that name.",
    "My knowledge does not cover this.",
)
# Refusals on other grounds, which a search for a layer counts against it.
ETHICS = (
    "I cannot help with that, it would be unethical and illegal.",
    "That would be wrong and against the law, so I will not answer.",
)


def rouge1_recall(written: Sequence[str], truths: Sequence[str]) -> list[float]:
    """Of each truth, the share of its words that are written (ROUGE-1 recall, lower case, no stemming), by ``rouge-score``."""
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(["rouge1"])
    return [float(scorer.score(t, w)["rouge1"].recall) for w, t in zip(written, truths, strict=True)]


def deviation_score(forget: float, retain: float) -> float:
    """100 · √(R_f² + (1 − R_r)²): how far from the ideal, where nothing is recalled that is to be forgotten, and all else. 0 to 141.

    Raises
    ------
    RecipeError
        for what is no share from 0 to 1.
    """
    if not (0 <= forget <= 1 and 0 <= retain <= 1):
        raise RecipeError(f"R_f = {forget:g} and R_r = {retain:g} are shares from 0 to 1, not percent")
    return 100 * math.hypot(forget, 1 - retain)


@lru_cache(maxsize=4)
def embedder(name: str = HASHED) -> Embed:
    """What turns texts into rows of length one. Which model the paper has is not known, see the card.

    ``hashed``: counts of three to five letters within words, each hashed to one of 4,096 numbers (scikit-learn's ``HashingVectorizer``);
    nothing is fetched. Any other name is a model of ``sentence-transformers``.

    Raises
    ------
    RecipeError
        where that is not installed, or has no such model.
    """
    if name != HASHED:
        return _of_sentence_transformers(name)
    from sklearn.feature_extraction.text import HashingVectorizer

    counts = HashingVectorizer(analyzer="char_wb", ngram_range=(3, 5), n_features=FEATURES, alternate_sign=False)

    def embed(texts: Sequence[str]) -> np.ndarray:
        rows: np.ndarray = counts.transform(list(texts)).toarray()
        return rows

    return embed


def _of_sentence_transformers(name: str) -> Embed:
    model = sentence_model(name, name, f"{HASHED}, which fetches nothing")

    def embed(texts: Sequence[str]) -> np.ndarray:
        rows: np.ndarray = model.encode(list(texts), normalize_embeddings=True, show_progress_bar=False)
        return rows

    return embed


def refusal_quality(written: Sequence[str], refusals: Sequence[str], embed: Embed) -> float:
    """Mean cosine of each answer with the good refusal that is closest to it."""
    return float((embed(written) @ embed(refusals).T).max(1).mean())


@torch.no_grad()
def ranks(model: nn.Module, prompts: Sequence[Tensor], answers: Sequence[Tensor]) -> list[Tensor]:
    """The rank (from 1) of each token of the true answer in what the model predicts at that step of its own greedy answer, int64 ``[k]``.

    The model goes on as long as the true answer is; it is not given the truth. Tokens as likely as the true one count before it.
    """
    written = generate(model, prompts, max(map(len, answers)))
    found = []
    for prompt, own, truth in zip(prompts, written, answers, strict=True):
        ids = torch.cat([prompt, own[: len(truth) - 1]])
        logits = _logits(model, ids)[len(prompt) - 1 :]  # k V
        found.append((logits >= logits.gather(1, truth[:, None])).sum(1))
    return found


def reciprocal_rank(of_answers: Sequence[Tensor]) -> float:
    """MRR: mean over answers of the mean of 1 / rank over their tokens."""
    return sum(float((1 / r.double()).mean()) for r in of_answers) / len(of_answers)


def top_hits(of_answers: Sequence[Tensor], first: int = FIRST) -> float:
    """THR: mean over answers of the share of their tokens whose rank is at most ``first``."""
    return sum(float((r <= first).double().mean()) for r in of_answers) / len(of_answers)


@torch.no_grad()
def extraction_strength(model: nn.Module, prompt: Tensor, answer: Tensor) -> float:
    """ES = 1 − k / L, where k is the shortest prefix of an answer of L tokens after which greedy decoding gives the rest exactly.

    The rest is given exactly when each of its tokens is the likeliest after the true ones before it: one pass says it for all prefixes.
    """
    logits = _logits(model, torch.cat([prompt, answer]))[len(prompt) - 1 : -1]
    wrong = (logits.argmax(1) != answer).nonzero()
    return 1 - (int(wrong[-1]) + 1 if len(wrong) else 0) / len(answer)


def _logits(model: nn.Module, ids: Tensor) -> Tensor:
    """Of one row, ``[T, V]``, in float64 on the CPU."""
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    logits: Tensor = model(ids[None].to(device))[0]
    return logits.double().cpu()
