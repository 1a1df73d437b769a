"""Scores by groups of clients: the model for everybody, those of groups, and what they say together."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lab.events import GroupsScored
from lab.models.in_groups import group_models
from lab.probes.evaluation import Evaluator
from lab.probes.fairness import OwnExamples
from lab.probes.probe import Agreed, Probe, Setup


class Together(nn.Module):
    """Some models as one: the logarithm of the mean of their probabilities, ``[B, *]`` → ``[B, …, C]``."""

    def __init__(self, models: Sequence[nn.Module]):
        super().__init__()
        self.models = nn.ModuleList(models)

    def forward(self, x: Tensor) -> Tensor:
        each = torch.stack([model(x).log_softmax(-1) for model in self.models])
        return each.logsumexp(0) - torch.tensor(float(len(self.models)), dtype=each.dtype, device=each.device).log()


class GroupProbe(Probe):
    """Whenever the agreed model is evaluated. What clients hold out (``clients.held_out``) is scored by group, with the task's own scores."""

    def __init__(self, setup: Setup):
        self.setup, self.groups, self.evaluator = setup, setup.state.groups, Evaluator(setup)
        held_out, everybody = setup.data and setup.data.held_out, np.arange(setup.recipe.num_clients)
        self.own = OwnExamples(held_out, setup.recipe.eval_windows, everybody) if held_out else None

    def due(self, t: int) -> bool:
        return self.setup.evaluates(t)

    def after_step(self, t: int, agreed: Agreed) -> Iterator[GroupsScored]:
        if not self.due(t):
            return
        found = [self._seen(agreed.model())] if agreed.gather_() else []
        seen = self.setup.world.all_gather_json(found)[0][0]
        yield GroupsScored(t, {name: list(clients) for name, clients in self.groups.items()}, **seen)

    @torch.no_grad()
    def _seen(self, model: nn.Module) -> dict[str, Any]:
        """The scores of `GroupsScored`."""
        own = group_models(model)
        models = {"general": model} | {f"group {name}": x for name, x in own.items()}
        if own:
            models["ensemble"] = Together(list(models.values()))
        full = {name: self.evaluator.scores(x) for name, x in models.items()}
        native: dict[str, dict[str, dict[str, float]]] = {}
        for name, clients in self.groups.items():
            models = {"general": model}
            if name in own:
                models |= {"group": own[name], "both": Together([model, own[name]])}
            scored = {which: self._native(x, clients) for which, x in models.items()}
            native[name] = {which: dict(scores) for which, scores in scored.items() if scores}
        return {"full": full, "native": native}

    def _native(self, model: nn.Module, clients: Sequence[int]) -> Mapping[str, float]:
        """Of a model on what these clients hold out of their own, at most ``eval_windows`` examples of each; nothing where they do not."""
        if self.own is None:
            return {}
        index = np.concatenate([self.own.of(c) for c in clients])
        if not len(index):
            return {}
        with self.evaluator.precision(), self.evaluator.draws("groups"):
            return self.own.scores_on(model, index)
