"""Probe of a tree of federations: how good its nodes are at what their workers hold out, and who attends to whom."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from copy import deepcopy
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lab.engine.stack import Stack
from lab.events import Branched
from lab.probes.evaluation import Evaluator
from lab.probes.probe import Agreed, Probe, Setup


class TreeProbe(Probe):
    """Whenever the agreed model is evaluated. The server has the models of all nodes; workers hand it what is their own."""

    def __init__(self, setup: Setup):
        self.setup, self.state, self.evaluator = setup, setup.state, Evaluator(setup)
        nodes: list[Any] = self.state.facts["nodes"]
        self.names, self.parents = [n for n, *_ in nodes], [p for _, p, _ in nodes]
        parent_of = {w: name for name, _, workers in nodes for w in workers}
        self.parent_W = [parent_of[w] for w in sorted(parent_of)]

    def due(self, t: int) -> bool:
        return self.setup.evaluates(t)

    def after_step(self, t: int, agreed: Agreed) -> Iterator[Branched]:
        if not self.due(t):
            return
        own, attention = self._of_workers("own"), self._of_workers("attention")
        found = [self._seen(own, attention)] if self.setup.world.first else []
        seen = self.setup.world.all_gather_json(found)[0][0]
        yield Branched(t, self.names, self.parents, self.parent_W, **seen)

    def _of_workers(self, name: str) -> Mapping[int, Mapping[str, Tensor]]:
        """A local state of all workers, at the first process; nothing where there is none."""
        stack = self.state.local.get(name)
        if stack is None:
            return {}
        workers = range(self.setup.fleet.num_workers)
        return self.setup.world.gather_to_server(
            {w: {n: stack.cell_or_shape(n, w) for n in stack.names()} for w in workers}
        )

    @torch.no_grad()
    def _seen(
        self, own: Mapping[int, Mapping[str, Tensor]], attention: Mapping[int, Mapping[str, Tensor]]
    ) -> dict[str, Any]:
        """The fields of `Branched` beside the tree."""
        facts, workers = self.state.facts, range(len(self.parent_W))
        models = {
            name: self.state.shared["params" if not up else f"node.{name}"]
            for name, up in zip(self.names, self.parents, strict=True)
        }
        loss_N: list[float | None] = [None] * len(self.names)
        loss_W: list[float | None] = [None] * len(workers)
        if self.setup.data is not None and self.setup.data.held_out is not None:
            with self.evaluator.precision(), self.evaluator.draws("tree"):
                for i, name in enumerate(self.names):
                    losses = [self._loss(models[name], w) for w in workers if self._is_below(w, name)]
                    known = [x for x in losses if x is not None]
                    loss_N[i] = sum(known) / len(known) if known else None
                for w in workers:
                    loss_W[w] = self._loss(_with(models[self.parent_W[w]], own.get(w, {})), w)
        return {
            "loss_N": loss_N,
            "loss_W": loss_W,
            "attention": deepcopy(facts.get("attention", {})),
            "attention_W": [{layer: x.tolist() for layer, x in attention.get(w, {}).items()} for w in workers],
            "routes": deepcopy(facts.get("routes", {})),
        }

    def _is_below(self, worker: int, name: str) -> bool:
        at = self.parent_W[worker]
        while at and at != name:
            at = self.parents[self.names.index(at)]
        return bool(at == name)

    def _loss(self, values: Stack, worker: int) -> float | None:
        """The loss of a model on at most ``eval_windows`` of the examples that a worker holds out."""
        assert self.setup.data is not None
        held_out = self.setup.data.held_out
        assert held_out is not None
        index, most = held_out.shards[worker], self.setup.recipe.eval_windows
        if len(index) > most:
            index = index[np.arange(most) * len(index) // most]
        if not len(index) or held_out.by_example is None:
            return None
        whole = Stack(self.setup.fleet.layout, values.blocks)
        loss = held_out.by_example(self.setup.fleet.whole_model(whole), *held_out.take(index))["loss"]
        return float(loss.nanmean())


def _with(model: Stack, own: Mapping[str, Tensor]) -> Stack:
    """A model with some tensors of one worker in their places."""
    if not own:
        return model
    mixed = model.clone()
    for name, x in own.items():
        mixed[name][0].copy_(x)
    return mixed
