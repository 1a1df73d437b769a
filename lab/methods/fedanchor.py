"""FedAnchor (Qiu et al. 2024, arXiv 2402.10191): clients without labels, which they find by how near they are to the server's anchors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from lab.data.augmented import Augmentation
from lab.engine.comm import Communicator
from lab.engine.optim import Optimizer
from lab.engine.stack import Layout, Stack, clip_
from lab.engine.state import Grad, Loss, State, numeric
from lab.ground.config import Count, Period, Positive, RecipeView, config
from lab.ground.errors import RecipeError
from lab.methods.registry import method, never_synced
from lab.methods.rounds import InnerStates, Weight, fetch_, fetched
from lab.methods.server_labels import ServerTraining, begin_, end_round_, of_task, train_
from lab.models.distillation import predictions
from lab.models.two_heads import add_head_, latents

Denominator = Literal["first", "all", "others"]


@method("fedanchor", server=True, own_loss=True, unlabelled=True, holds=("params", "anchors"), bounded=True)
@config
class FedAnchor:
    """One encoder, two heads: classes W·f(x), and a latent z = g(f(x)) in which examples of one class lie near each other.

    1. The server descends CE + λ_a·(1/C)·Σ_c ℓ(c) on its labelled examples, the anchors (`label_contrast`).
    2. It hands out encoder, both heads, and the latents of the anchors as they are now.
    3. A client gives each of its examples the class whose anchors' latents are most like its own, by cosine similarity.
    4. It descends the cross entropy of what its examples look like when they are changed strongly, with these labels.
    5. The server takes the mean, and goes on with 1.

    The abstract has the two heads, the label-contrastive loss with cosine similarity on anchors alone, and labels by similarity of latents;
    the rest is inferred: the loss's denominator, how similarities to the anchors of a class become one number, λ_a, what clients do with
    the anchor head, what is handed out, and all values.

    Sends: ``params``, with both heads, down at the beginning of a round and up at its end; ``anchors`` down: latents, of which the place says
    the class, and no example. State: the server's model and the anchors' latents in ``shared``, which a client has at hand while it trains
    (a label is that of the model as fetched, whenever in the round an example's turn comes); inner states local.

    sync_every
        local steps of a round.
    latent
        p, dimensions of a latent.
    score
        what an example scores for a class: the ``mean`` of its similarities to the class's anchors, the largest one (``max``), or the mean of
        so many largest ones (a number). With classes of several kinds, the mean is far from all of them.
    temperature, contrast, denominator
        τ and λ_a of the server's loss, and which pairs it compares with (`label_contrast`).
    train_head
        clients train the anchor head as well: λ_a times the contrast of their labels is added to their loss. Without it nothing but weight
        decay moves it at a client.
    strong
        how a client changes what it trains on.
    server
        how the server trains.
    head
        path of the head in the model; left out: ``head``, or the last linear map.
    seed
        of the anchor head's first values and of what clients draw.
    """

    sync_every: Period = 16
    inner: Optimizer = Field(
        default_factory=lambda: Optimizer("SGD", 0.03, {"momentum": 0.9, "nesterov": True, "weight_decay": 5e-4})
    )
    latent: Count = 64
    score: Literal["mean", "max"] | Count = "max"
    temperature: Positive = 0.5
    contrast: Annotated[float, Field(ge=0)] = 1.0
    denominator: Denominator = "first"
    train_head: bool = False
    strong: Augmentation = Field(default_factory=lambda: Augmentation(0.15, 0.2, 0.3))
    server: ServerTraining = Field(default_factory=ServerTraining)
    inner_states: InnerStates = "reset"
    weight: Weight = "samples"
    max_norm: Positive | None = None
    head: str = ""
    seed: Annotated[int, Field(ge=0)] = 0

    def __post_init__(self) -> None:
        if self.inner_states == "reset":
            self.inner.check_reset()

    @property
    def averages(self) -> tuple[str, ...]:
        return ("params",)

    def notes(self, recipe: RecipeView) -> Iterator[str]:
        yield from never_synced(self.sync_every, recipe.steps)
        if not self.contrast and not self.train_head:
            yield "method.contrast = 0: nobody trains the anchor head, and latents are those of its first values"

    def prepare_(self, module: nn.Module, values: bool) -> None:
        add_head_(module, self.latent, self.seed, values, self.head)

    def init(self, s: State) -> None:
        s.optimizers["inner"] = self.inner.over(s.local["params"], s.grads)
        begin_(s)
        assert s.labelled is not None
        shape = torch.Size((*s.labelled[1].shape, self.latent))  # C n p
        if self.contrast and 1 in (shape[1], self.server.per_class):
            raise RecipeError(
                "the contrast needs two anchors of a class in a batch: set server.labelled and method.server.per_class to 2 or more (per_class=0: "
                "all), or method.contrast=0"
            )
        everybody = tuple(range(s.fleet.num_workers))
        layout = Layout.of({"latents": everybody}, {"latents": shape}, lambda name: "anchors", mine=s.fleet.layout.mine)
        s.shared["anchors"] = Stack(layout, [torch.zeros(1, shape.numel(), device=s.fleet.device, dtype=s.fleet.dtype)])

    def step(self, s: State, grad: Grad, comm: Communicator, t: int) -> Tensor:
        if t == 1:
            train_(s, comm, t, self.server, self.server.first, self.objective)
            self._place_anchors_(s)
        to = fetch_(s, comm, t, self.sync_every, self.inner_states)
        if to:
            comm.broadcast_(s.shared["anchors"], s.shared["anchors"], "anchors", to=to)
        loss_W = grad(s, self.loss(s, t))
        clip_(s.grads, self.max_norm)
        self.inner.step_(s, t)
        if t % self.sync_every == 0 and any(s.fleet.up):
            end_round_(s, comm, t, self.weight, self.server, self.objective)
            self._place_anchors_(s)
        return loss_W

    def objective(self, module: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
        """CE + λ_a·contrast: of the server on its anchors, or of a client on the labels that it has given."""
        with latents() as found:
            loss = of_task(module, inputs, targets)
        if self.contrast:
            loss = loss + self.contrast * label_contrast(found[-1], targets, self.temperature, self.denominator)
        return loss

    @numeric
    def _place_anchors_(self, s: State) -> None:
        """z of every anchor, by the server's model as it is now."""
        assert s.labelled is not None
        with latents() as found:
            s.fleet.whole_model(s.shared["params"])(s.labelled[0].flatten(0, 1))
        s.shared["anchors"].blocks[0].copy_(found[-1].reshape(1, -1))

    def loss(self, s: State, t: int) -> Loss:
        """A client's, in local step ``t``. Its own targets are handed over, and nobody looks at them."""
        values = fetched(s)

        def own(module: nn.Module, worker: int, inputs: Tensor, targets: Tensor) -> Tensor:
            labels = self.labels(s, module, inputs, values)
            changed = self.strong(inputs, self.seed, "strong", t)
            return (self.objective if self.train_head else of_task)(module, changed, labels)

        return own

    def labels(self, s: State, module: nn.Module, inputs: Tensor, values: Mapping[str, Tensor] | None = None) -> Tensor:
        """ŷ = argmax_c of the scores, int64 ``[B]``; ``values``: of the parameters, where they are not the module's."""
        with latents() as found:
            predictions(module, values or {}, inputs)
        return self.scores(found[-1], s.shared["anchors"]["latents"][0]).argmax(1)

    def scores(self, z: Tensor, anchors: Tensor) -> Tensor:
        """Of latents ``[B, p]`` against anchors ``[C, n, p]``, ``[B, C]``."""
        unit = F.normalize(anchors, dim=-1).flatten(0, 1)  # C·n p
        alike: Tensor = (F.normalize(z, dim=-1) @ unit.T).unflatten(1, anchors.shape[:2])  # B C n
        if self.score == "mean":
            return alike.mean(2)
        if self.score == "max":
            return alike.amax(2)
        return alike.topk(min(self.score, alike.shape[2]), 2).values.mean(2)


def label_contrast(z: Tensor, targets: Tensor, temperature: float, denominator: Denominator = "first") -> Tensor:
    """(1/C)·Σ_c ℓ(c) of latents ``[B, p]``, with s the cosine similarity of two of them, over pairs i ≠ j:

        ℓ(c) = −log( Σ_{y_i = y_j = c} exp(s_ij/τ)  /  Σ_D exp(s_ij/τ) )

    The paper's D could not be read. ``first``: all pairs whose first is of class c; ``all``: all pairs; ``others``: pairs of one of class c
    and one of another (the quotient may then exceed 1). C are the classes of which the batch has a pair; with ``others`` and no other class, none.
    """
    unit = F.normalize(z, dim=-1)
    exponent = unit @ unit.T / temperature  # B B
    classes = targets.unique()
    is_c = targets == classes[:, None]  # C B
    apart = ~torch.eye(len(z), dtype=torch.bool, device=z.device)
    same = is_c[:, :, None] & is_c[:, None] & apart  # C B B
    among = {
        "first": is_c[:, :, None] & apart,
        "all": apart.expand_as(same),
        "others": is_c[:, :, None] & ~is_c[:, None],
    }[denominator]
    there = same.flatten(1).any(1) & among.flatten(1).any(1)
    if not bool(there.any()):
        return 0.0 * z.sum()
    above, below = (exponent.where(pairs[there], -torch.inf).flatten(1).logsumexp(1) for pairs in (same, among))
    return (below - above).mean()
