"""LUNAR: unlearning by redirecting activations (Shen et al., NeurIPS 2025, arXiv 2502.07218).

What a model makes of prompts that it is to forget is moved to where prompts lie that it does not know: one down-projection W of one block is
fitted so that the stream behind it has been shifted by the unlearning vector for the former, and is as before for what it is to retain.

    r_UV(l) = mean of a_l(x) over reference prompts − mean over prompts to forget        at the last token of each, for every block l
    l       = the block for which S(l) = s1 − s2 is best, of answers to steered prompts
    y       = m + c · r_UV(l) for every token of a prompt to forget, m for every token of one to retain (and of its answer, where there is one)
    W       = argmin Σ ‖W x − y‖² (+ ρ ‖W − W0‖²), all else frozen

Where the paper's text and its code differ, or say nothing, a docstring has the word [inferred].

Legend: L blocks, n rows (tokens of prompts), d width, p width of a down-projection's input, r rank.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from lab.ground.config import Count, Positive, config
from lab.ground.errors import RecipeError
from lab.ground.seeds import generator, numpy_generator
from lab.systems.unlearning.places import Places

LORA_STD = 0.01  # of the first values of A and B, both


@dataclass(frozen=True)
class Request:
    """What is to be forgotten: prompts as tokens, int64 ``[T]`` each.

    retain
        what is to be answered as before; may be empty.
    reference
        what the model does not know, or refuses; it need not have to do with the others.
    answers
        those to ``retain``, one for each, int64 ``[T]``; or none. With them W is held where it was at their tokens, too: what is fitted to
        prompts alone is free there, and a model whose stream is moved while it answers loses the thread after the first word. The paper's
        text speaks of data to retain, its code forwards prompts; answers are ours.
    """

    forget: Sequence[Tensor]
    retain: Sequence[Tensor]
    reference: Sequence[Tensor]
    answers: Sequence[Tensor] = ()

    def __post_init__(self) -> None:
        if len(self.answers) not in (0, len(self.retain)):
            raise RecipeError(
                f"{len(self.answers)} answers to {len(self.retain)} prompts to retain: give one for each, or none"
            )
        for name, prompts in (("forget", self.forget), ("reference", self.reference)):
            if not len(prompts):
                raise RecipeError(f"a request without prompts to {name}: give at least one")


@config
class Lunar:
    """How a request is carried out.

    layers
        the blocks whose down-projection is changed, from 0; none: the ``top`` best of a search (`layer_scores`).
    coefficient
        c: how much of the unlearning vector is added. 1 in the paper's formulas, 2 in its code.
    fit
        ``closed``: the one best W (the paper's proof, not its code). ``adamw``: the code's recipe, ``epochs`` over rows in batches of
        ``batch``, with ``lr`` times ``decay`` to the power of epochs done. ``lora``: the same of A and B of ``rank``, merged after it.
    ridge
        ρ of the closed form: what holds W to where it was, in units of a squared activation times rows [inferred].
    retain
        ``all`` prompts to retain, as the code has it, or ``equal``: as many as there are to forget, drawn (the paper's text).
    rows
        ``all`` tokens of a prompt, and of the answer to one to retain where the request has it; those of ``prompts``, as the code has it; or
        the ``last`` of a prompt alone.
    seed
        of what is drawn: prompts to retain, the order of rows, first values of A and B.
    """

    layers: tuple[Annotated[int, Field(ge=0)], ...] = ()
    top: Count = 1
    coefficient: Annotated[float, Field(ge=-100, le=100)] = 1.0
    fit: Literal["closed", "adamw", "lora"] = "closed"
    ridge: Positive = 1.0
    retain: Literal["all", "equal"] = "all"
    rows: Literal["all", "prompts", "last"] = "all"
    epochs: Count = 20
    batch: Count = 64
    lr: Positive = 1e-2
    decay: Annotated[float, Field(gt=0, le=1)] = 0.9
    rank: Count = 8
    seed: Annotated[int, Field(ge=0)] = 0


@dataclass(frozen=True)
class Edit:
    """What was done to one matrix.

    vector
        c · r_UV of the block, ``[d]``, float64.
    before
        W as it was, ``[d, p]``: with it the edit can be undone.
    rows
        tokens of what is to be forgotten, and retained, that W was fitted to.
    """

    layer: int
    name: str
    vector: Tensor
    before: Tensor
    rows: tuple[int, int]


@dataclass(frozen=True)
class Score:
    """What a search says of a block: mean similarity of steered answers to ignorance of that very question (s1), and to ethics (s2)."""

    layer: int
    ignorance: float
    ethics: float

    @property
    def s(self) -> float:
        """S = s1 − s2."""
        return self.ignorance - self.ethics


@dataclass(frozen=True)
class Search:
    """What a search for a block needs to know of text.

    decode
        tokens to text.
    ignorance
        what one would say to each prompt to forget who does not know.
    ethics
        refusals on other grounds: such answers count against a block.
    embed
        texts to rows of length one, ``[n, D]`` (`lab.systems.unlearning.metrics.embedder`).
    """

    decode: Callable[[Tensor], str]
    ignorance: Sequence[str]
    ethics: Sequence[str]
    embed: Callable[[Sequence[str]], np.ndarray]
    max_tokens: int
    end: int | None = None


def unlearn_(model: nn.Module | Places, request: Request, how: Lunar, search: Search | None = None) -> list[Edit]:
    """Carry out a request, in place; further ones go on from there. One matrix changes for each of the layers.

    With several layers each is fitted on the model that those before it have left, the lowest first [inferred].

    Raises
    ------
    RecipeError
        for a model whose blocks are not found (`Places.of`), a layer that it does not have, and a search without what it needs.
    """
    places = model if isinstance(model, Places) else Places.of(model)
    layers = sorted(how.layers or best(layer_scores(places, request, how.coefficient, search), how.top))
    if layers[-1] >= places.num_layers:
        raise RecipeError(
            f"layers: {layers[-1]} is not in a model of {places.num_layers} blocks: use 0 to {places.num_layers - 1}"
        )
    return [edit_(places, request, how, layer) for layer in layers]


def unlearning_vectors(places: Places, forget: Sequence[Tensor], reference: Sequence[Tensor]) -> Tensor:
    """r_UV of every block, float64 ``[L, d]``: from the mean of what is to be forgotten to that of what is not known."""
    return places.last_states(reference).mean(1) - places.last_states(forget).mean(1)


def layer_scores(places: Places, request: Request, coefficient: float, search: Search | None) -> list[Score]:
    """Of every block: the answers to prompts to forget, with c · r_UV added behind it while a prompt is read, and what they are like."""
    if search is None:
        raise RecipeError("which layers? Name them (layers), or give a Search, so that they can be looked for")
    ignorance, ethics = search.embed(search.ignorance), search.embed(search.ethics)
    found = []
    for layer, vector in enumerate(unlearning_vectors(places, request.forget, request.reference)):
        steer = partial(places.steered, layer, coefficient * vector)
        written = places.written(request.forget, search.max_tokens, search.end, steer)
        answers = search.embed([search.decode(x) for x in written])
        s1 = float((answers * ignorance).sum(1).mean())  # [inferred] as much as: each against its own
        s2 = float((answers @ ethics.T).mean())
        found.append(Score(layer, s1, s2))
    return found


def best(scores: Sequence[Score], top: int = 1) -> list[int]:
    """The ``top`` layers with the largest S; of equal ones those that come first."""
    return [x.layer for x in sorted(scores, key=lambda x: -x.s)[:top]]


def edit_(places: Places, request: Request, how: Lunar, layer: int) -> Edit:
    """Fit and write back W of one block."""
    vector = how.coefficient * unlearning_vectors(places, request.forget, request.reference)[layer]
    x, residual, counts = training_rows(places, request, how, layer, vector)
    weight = places.matrix(layer)
    before = weight.clone()
    weight.copy_(before.double() + FITS[how.fit](before.double().cpu(), x, residual, how).to(weight.device))
    return Edit(layer, places.names[layer], vector, before, counts)


def training_rows(
    places: Places, request: Request, how: Lunar, layer: int, vector: Tensor
) -> tuple[Tensor, Tensor, tuple[int, int]]:
    """X ``[n, p]``, what is to be added to W0·x ``[n, d]``, and how many rows are to forget and to retain.

    As y − m, and not as y: for what is to be retained that is zero, and W0·x = m (less a bias, which stays).
    """
    last, retain = how.rows == "last", list(request.retain)
    if request.answers and how.rows == "all":
        retain = [torch.cat(pair) for pair in zip(retain, request.answers, strict=True)]
    if how.retain == "equal":
        chosen = numpy_generator(how.seed, "retain").permutation(len(retain))[: len(request.forget)]
        retain = [retain[i] for i in sorted(chosen.tolist())]
    x, m = places.rows(layer, request.forget, last)
    if not retain:
        return x, vector.expand(len(x), -1), (len(x), 0)
    kept, _ = places.rows(layer, retain, last)
    residual = torch.cat([vector.expand(len(x), -1), m.new_zeros(len(kept), m.shape[1])])
    return torch.cat([x, kept]), residual, (len(x), len(kept))


# How W is fitted: (W0 [d, p], x [n, p], residual [n, d], how) → what is added to W0, all in float64.


def gram(x: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
    """All that the closed form needs of some rows, and a sum over rows: X Xᵀ ``[p, p]`` and X·residual ``[p, d]``."""
    return x.T @ x, x.T @ residual


def solved(products: Tensor, cross: Tensor, ridge: float) -> Tensor:
    """The closed form from these sums: (Y − W0 X) Xᵀ (X Xᵀ + ρI)⁻¹, ``[d, p]``."""
    eye = torch.eye(len(products), dtype=products.dtype, device=products.device)
    return torch.cholesky_solve(cross, torch.linalg.cholesky(products + ridge * eye)).T


def closed(w0: Tensor, x: Tensor, residual: Tensor, how: Lunar) -> Tensor:
    """The least squares, with a ridge on what is added: rows with residual zero alone change nothing. Costs n·p² + p³."""
    return solved(*gram(x, residual), how.ridge)


def adamw(w0: Tensor, x: Tensor, residual: Tensor, how: Lunar) -> Tensor:
    """The code's recipe. Without weight decay, of which nothing is said, and in float64 where the code has bfloat16 [inferred]."""
    added = nn.Parameter(torch.zeros_like(w0))
    _descend([added], lambda some: some @ added.T, x, residual, how)
    return added.detach()


def lora(w0: Tensor, x: Tensor, residual: Tensor, how: Lunar) -> Tensor:
    """The same of B·A with rank r, whose first values are normal and small, and which is merged."""
    g = generator(how.seed, "lunar lora")
    a, b = (
        nn.Parameter(LORA_STD * torch.randn(shape, generator=g, dtype=torch.float64))
        for shape in ((how.rank, w0.shape[1]), (w0.shape[0], how.rank))
    )
    _descend([a, b], lambda some: some @ a.T @ b.T, x, residual, how)
    return (b @ a).detach()


def _descend(
    params: list[nn.Parameter], added: Callable[[Tensor], Tensor], x: Tensor, residual: Tensor, how: Lunar
) -> None:
    """Mean squared error of what is ``added`` to W0·x, by AdamW, row by row in an order of each epoch's own."""
    optimizer = torch.optim.AdamW(params, lr=how.lr, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, gamma=how.decay)
    g = generator(how.seed, "lunar rows")
    for _ in range(how.epochs):
        for some in torch.randperm(len(x), generator=g).split(how.batch):
            optimizer.zero_grad()
            (added(x[some]) - residual[some]).square().mean().backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        schedule.step()


FITS = {"closed": closed, "adamw": adamw, "lora": lora}


def undo_(places: Places, edits: Sequence[Edit]) -> None:
    """Put back what edits have changed."""
    for edit in reversed(edits):
        places.matrix(edit.layer).copy_(edit.before)
