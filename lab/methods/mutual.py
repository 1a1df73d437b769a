"""Mutual learning of a general and a group model (Iacob et al. 2023, arXiv 2305.12134): sensors apart, and what all of them know."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated

from pydantic import Field
from torch import Tensor, nn

from lab.engine.comm import Communicator
from lab.engine.optim import AdamW, Optimizer, reset_
from lab.engine.stack import Layout, Stack, clip_
from lab.engine.state import Grad, State
from lab.ground.config import Period, Positive, RecipeView, config, unused
from lab.ground.errors import RecipeError
from lab.methods.registry import method, never_synced
from lab.methods.rounds import InnerStates, Weight, beginning, fetching, weights_of
from lab.models.distillation import First, apart, loss_and_predictions
from lab.models.in_groups import GROUPS, add_groups_, group_models

ALONE = "all"  # the group, where a recipe has none


@method("mutual", server=True, own_loss=True)
@config
class Mutual:
    """Client k of group m trains two models side by side, F that all have and G_m of its group; each learns from labels and from the other.

    On every batch, with p(·) = softmax(logits / T) and the other's probabilities taken as they are (no gradient):

        L_F = α·T²·KL(p(F) ‖ p(G_m)) + (1 − α)·CE(F)        L_G = α·T²·KL(p(G_m) ‖ p(F)) + (1 − α)·CE(G_m)

    The divergence is the mean over what counts as a target; of numbers, instead of classes, it is that of normal distributions around
    them, (F − G_m)² / 2T² (ours). At the end of a round the server takes the mean of F over all clients, and that of G_m over the clients of group m; a group of which
    nobody is there keeps its model. With α = 0 the two do not know of each other: F goes the way of FedAvg, and G_m that of FedAvg within
    its group.

    Sends: ``params`` (F) and ``group`` (G_m), both down at the beginning of a round and up at its end. State: the server's F and all G_m in
    ``shared``; inner states local. What is reported is CE(F), and the agreed model, as it is scored, is F; scores by group are events of
    their own. Who is in which group a recipe says in ``groups`` (`lab.recipes.groups`); without any, all are in one.

    share
        α, the part of a loss that is distillation; the authors' early code has 0.5.
    temperature
        T; there 1.
    first
        which distribution stands first in the divergence: the model's ``own``, as written above, or that of the ``other``, as is usual in
        distillation (Zhang et al. 2018, arXiv 1706.00384). Which of them the authors took is not known [inferred].
    inner
        the authors' is AdamW.
    inner_states
        ``reset`` at the beginning of a round, or ``kept`` (ours: it is not said).
    weight
        ``samples``: a client counts as much as it has examples, among all and in its group; ``uniform``.
    max_norm
        largest norm of a client's gradient, of each model by itself; None, as in the paper: no clipping.

    That G_m begins as F does is ours [inferred].
    """

    sync_every: Period = 16
    share: Annotated[float, Field(ge=0, le=1)] = 0.5
    temperature: Positive = 1.0
    first: First = "own"
    inner: Optimizer = Field(default_factory=lambda: AdamW(lr=3e-3))
    inner_states: InnerStates = "reset"
    weight: Weight = "samples"
    max_norm: Positive | None = None

    def __post_init__(self) -> None:
        if self.inner_states == "reset":
            self.inner.check_reset()

    @property
    def averages(self) -> tuple[str, ...]:
        return ("params", "group")

    def check(self, recipe: RecipeView) -> None:
        if recipe.groups and recipe.clients.take_turns(recipe.num_workers):
            raise RecipeError(
                "mutual gives every worker the model of its group, but clients take turns as workers: let every client be a worker, and "
                "draw who takes part with scenario.sample"
            )
        if recipe.lora.ranks:
            raise RecipeError("mutual trains two whole models, and lora.ranks asks for adapters: leave out lora.ranks")
        if recipe.model.layers_and_experts[1]:
            raise RecipeError("mutual trains two whole models at a worker, without experts: use another model")

    def notes(self, recipe: RecipeView) -> Iterator[str]:
        yield from never_synced(self.sync_every, recipe.steps)
        if not self.share:
            yield from unused(self, ("temperature", "first"), "share above 0", "method.")
        if not recipe.groups:
            yield "groups is empty: all clients are in one, and both models are averaged over everybody"

    def in_groups(self, module: nn.Module, groups: Sequence[str]) -> nn.Module:
        return add_groups_(module, groups or (ALONE,))

    def init(self, s: State) -> None:
        s.optimizers["inner"] = self.inner.over(s.local["params"], s.grads)
        s.shared["params"] = beginning(s.fleet)  # F, and every G_m

    def step(self, s: State, grad: Grad, comm: Communicator, t: int) -> Tensor:
        to = fetching(s, t, self.sync_every)
        for state, blocks in both(s) if to else ():  # F and G_m of the server
            comm.broadcast_(part(s.shared["params"], blocks), part(s.local["params"], blocks), state, to=to)
        if to and self.inner_states == "reset":
            reset_(s.optimizers["inner"], s.local["params"], [w in to for w in range(s.fleet.num_workers)])
        loss_W = grad(s, self._mutual)
        for _, blocks in both(s):
            clip_(part(s.grads, blocks), self.max_norm)
        self.inner.step_(s, t)
        if t % self.sync_every == 0:
            for state, blocks in both(s):
                self._take_mean_(s, comm, state, blocks)
        return loss_W

    def _mutual(self, module: nn.Module, worker: int, inputs: Tensor, targets: Tensor) -> Tensor:
        """The value is CE(F), the gradient that of L_F + L_G."""
        (group,) = group_models(module).values()
        loss_F, of_F = loss_and_predictions(module, inputs, targets)
        loss_G, of_G = loss_and_predictions(group, inputs, targets)
        whole = self._loss(loss_F, of_F, of_G, targets) + self._loss(loss_G, of_G, of_F, targets)
        return loss_F.detach() + (whole - whole.detach())

    def _loss(self, loss: Tensor, own: Tensor, other: Tensor, targets: Tensor) -> Tensor:
        if not self.share:
            return loss
        far = apart(own, other, targets, self.temperature, self.first)
        return self.share * self.temperature**2 * far + (1 - self.share) * loss

    def _take_mean_(self, s: State, comm: Communicator, state: str, blocks: Sequence[int]) -> None:
        known = part(s.shared["params"], blocks)
        mean = comm.mean(
            part(s.local["params"], blocks), state, weights_W=weights_of(s, self.weight), fallback=known, to_server=True
        )
        agreed = list(s.shared["params"].blocks)
        for i, x in zip(blocks, mean.blocks, strict=True):
            agreed[i] = x
        s.shared["params"] = Stack(s.shared["params"].layout, agreed)


def both(s: State) -> list[tuple[str, list[int]]]:
    """The state under which each model travels, and its blocks: F, and the models of all groups."""
    of_groups = [b.names[0].startswith(GROUPS) for b in s.fleet.layout.blocks]
    return [
        (state, [i for i, x in enumerate(of_groups) if x == own]) for state, own in (("params", False), ("group", True))
    ]


def part(stack: Stack, blocks: Sequence[int]) -> Stack:
    """Some blocks of a stack as one by itself; the same tensors."""
    layout = stack.layout
    place = {name: (k, j) for k, i in enumerate(blocks) for j, name in enumerate(layout.blocks[i].names)}
    return Stack(Layout([layout.blocks[i] for i in blocks], place, layout.mine), [stack.blocks[i] for i in blocks])
