"""Samples that count more or less in the loss: a policy that any method trains with, if its loss is the model's own."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from lab.ground.config import Count, Positive, RecipeView, config
from lab.ground.errors import RecipeError
from lab.methods.registry import Absent, Method, declared
from lab.methods.weights import Reduce

By = Literal["none", "uniform", "adapt", "bm25", "softmax", "hard", "lin_upper", "random", "domains"]
TO_ANCHORS = ("adapt", "bm25", "softmax", "hard")  # by likeness to anchors
OF_STATES = ("adapt", "softmax", "hard")  # in the model's own last hidden states
GATED = ("adapt", "bm25")  # each sample by itself, by the gate


@config
class Weighting:
    """How much each sample (a window of text, or an example of a ``task:``) counts (`lab.methods.weights`: ADAPT and rivals).

    by
        ``none``; ``uniform``: all alike, with the model's own loss. By likeness to anchors: ``adapt``, in the model's own last hidden states;
        ``bm25``, by terms alone, once and for all, standardised; ``softmax`` in the batch, of ADAPT's score; ``hard``: the ``share`` of the
        batch with the highest of these scores. ``lin_upper``: by the loss, capped. ``random``: a fixed ``share`` of all samples, drawn from
        the seed. ``domains``: samples of these domains alone (an oracle, for comparison). With all but ``none`` the loss is told by domain.
    target, anchors, source
        anchors are so many samples of this domain, out of the ``held_out`` ones (then nothing of their documents is scored: every other
        document of the domain) or the ones to ``train`` on (then nobody trains on them). They are set apart as soon as there is a target, also
        where ``by`` needs none, so that runs that are compared train on and are scored on the same.
    every
        R: local steps between two looks at the anchors with the present parameters of each worker; 0: before the first step alone.
    tau, clip
        of the gate w = σ(s/τ), which is then clipped (``adapt``, ``bm25``); τ of ``softmax``. 1 in the paper; its clip is not published.
    standardize
        of ``adapt``: s less its mean, over its standard deviation, of a worker's own samples before this batch.
    center
        of hidden states: directions as seen from their mean, for models whose states all point the same way. Both are found, when the
        anchors are looked at, from as many of a worker's own samples as there are anchors (the paper has neither); what standardises then
        follows the batches, as scores move with the model.
    terms
        of ``bm25``: lower-cased ``words`` between white space, or ``pairs`` of tokens next to each other, for what has no words.
    share, cap
        of ``hard`` and ``random``; of ``lin_upper``, where the weight no longer grows with the loss, from 0 (its least in the batch) to 1.
    domains
        of ``by=domains``.
    reduce
        what is trained on: the ``mean`` of w·ℓ over the batch, the ``sum`` (the paper's eq. 7; with AdamW a factor changes nothing but what
        is clipped), or ``normalised``, over Σ w. A run tells the plain loss, whatever is trained on.
    """

    by: By = "none"
    target: str = ""
    anchors: Count = 64
    source: Literal["held_out", "train"] = "held_out"
    every: Annotated[int, Field(ge=0)] = 50
    tau: Positive = 1.0
    clip: tuple[float, float] = (0.0, 10.0)
    standardize: bool = False
    center: bool = False
    terms: Literal["words", "pairs"] = "words"
    share: Annotated[float, Field(gt=0, le=1)] = 0.3
    cap: Annotated[float, Field(gt=0, le=1)] = 0.5
    domains: tuple[str, ...] = ()
    reduce: Reduce = "mean"

    @property
    def asked_for(self) -> bool:
        return self.by != "none"

    @property
    def has_anchors(self) -> bool:
        return self.asked_for and bool(self.target)

    @property
    def of_states(self) -> bool:
        """Whether it scores samples in the last hidden states of the model."""
        return self.by in OF_STATES

    @property
    def looks_at_own(self) -> bool:
        """Whether it looks, beside anchors, at as many of a worker's own samples."""
        return self.of_states and (self.center or (self.standardize and self.by == "adapt"))

    @property
    def looked_at(self) -> int:
        """Samples of a look at the anchors, at each worker."""
        return self.anchors * (1 + self.looks_at_own) if self.of_states else 0

    def turn(self, t: int) -> int:
        """Which look at the anchors local step ``t`` goes by."""
        return (t - 1) // self.every if self.every else 0

    def check(self, recipe: RecipeView) -> None:
        """Raises RecipeError where the rest of a recipe does not go with it."""
        if not self.asked_for:
            if self.target:
                raise RecipeError(
                    f"weighting.target = {self.target!r} without weighting.by: set it, to adapt for example"
                )
            return
        if self.by in TO_ANCHORS and not self.target:
            raise RecipeError(
                f"weighting.by = {self.by!r} needs anchors: name their domain by weighting.target, for example target of corpus=mixture"
            )
        if self.by == "domains" and not self.domains:
            raise RecipeError('weighting.by = domains: name them by weighting.domains, as in ["target","related"]')
        if not 0 <= self.clip[0] <= self.clip[1] or self.clip[1] == 0:
            raise RecipeError(
                f"weighting.clip = {list(self.clip)} must be two numbers from 0 on, the smaller one first"
            )
        if recipe.data is not None:
            raise RecipeError(
                "weighting weighs windows of text, or examples of corpus=task:…, and data names a task of another kind: leave one out"
            )
        if recipe.compute.accumulate > 1:
            raise RecipeError(
                "weighting looks at a batch as a whole, and compute.accumulate cuts it into passes: leave out one"
            )
        recipe.compute.one_by_one("weighting")

    def check_method(self, method: Method) -> None:
        """Raises RecipeError for a method that trains a loss of its own."""
        if self.asked_for and not isinstance(method, Absent) and declared(method).own_loss:
            raise RecipeError(
                f"weighting weighs the model's own loss, and method {declared(method).name} trains one of its own: use another method, "
                "for example des_loc or diloco"
            )

    def check_model(self, has_states: bool, what: str) -> None:
        """Raises RecipeError for a model whose module has no ``with_hidden(ids)``, which gives last hidden states and logits."""
        if self.by not in ("none", "uniform") and not has_states:
            raise RecipeError(
                f"weighting.by = {self.by!r} needs losses and hidden states of single samples, which model {what} does not give: use a "
                "GPT, abbie, hf:<model>, or a module with with_hidden(ids) -> (hidden [B, T, D], logits [B, T, V])"
            )
