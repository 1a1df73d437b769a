"""Federations for the laws: every registered method with more clients than rows, parts of their own, over-selection and nights."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from lab.engine.optim import set_counts_
from lab.engine.stack import Stack
from lab.events import Event, Seated, Sent, Stepped
from lab.methods import Method
from lab.probes.probe import Setup
from lab.recipes.recipe import Recipe
from lab.recipes.selection import Selected, Selection
from lab.runs.seating import Seating
from lab.runs.trainer import Trainer
from tests.support.listed import ADAPTED, LABELLED, LISTED, OF_LABELS, PACED, TREES
from tests.support.recipes import corpus, recipe

FEDERATED: dict[str, Method] = {name: m for name, m in LISTED.items() if name not in (*TREES, *PACED)} | ADAPTED
FEDERATED |= {name: LABELLED[name] for name in OF_LABELS}
ADAPTERS: dict[str, Any] = {"ranks": [2], "targets": ["attention.qkv", "mlp.0"]}  # of which the second is personal
# Clients without labels have pictures, and a model with a norm that is personal.
LABELLED_AT_SERVER: dict[str, Any] = {
    "data": "tests.support.parts:pictures",
    "model": {"name": "cnn", "channels": [2], "kernel": 3, "hidden": 4, "norm": "group"},
    "server": {"labelled": 3},
}
# Two rounds in which one of four is late, one in which all are asleep, one with a single client, one with two.
CLIENTS: dict[str, Any] = {"num": 7, "spread": 0.8, "wait_for": 3, "available": "day_night:2", "round_hours": 3}


def federation(name: str, *, kept: bool = True, personal: bool = True, **changes: Any) -> Recipe:
    """A recipe of a listed method, or of one that aggregates adapters, with clients that take turns."""
    own = ("*mlp.0.lora*",) if name in ADAPTED else ("norms.*",) if name in OF_LABELS else ("*norm.weight",)
    clients = CLIENTS | {"inner_states": "kept" if kept else "fresh", "personal": own if personal else ()}
    fields: dict[str, Any] = {"num_workers": 4, "steps": 12, "eval_every": 6, "clients": clients, "checkpoint_every": 0}
    if name in ADAPTED:
        fields["lora"] = ADAPTERS | ({"train": "B"} if name == "ffa_lora" else {})
    if name in OF_LABELS:
        fields |= LABELLED_AT_SERVER
    return recipe(**({"method": FEDERATED[name]} | fields | changes))


def run(r: Recipe) -> Trainer:
    """A federation that has come to its end."""
    trainer = Trainer(r, corpus=corpus())
    for _ in trainer.events():
        pass
    return trainer


def seating_of(trainer: Trainer) -> Seating:
    seating = trainer.built.roll_call.seating
    assert seating is not None
    return seating


def row_of(trainer: Trainer, worker: int) -> dict[str, Tensor]:
    """A copy of all that is in one row of the fleet: local states and what error feedback owes, by name."""
    stacks = trainer.state.local | {f"owed {k}": s for k, s in trainer.comm.residuals.items()}
    return {name: torch.cat([b[worker] for b in stack.blocks]) for name, stack in stacks.items()}


def kept_by(trainer: Trainer) -> dict[int, dict[str, Tensor]]:
    """What every client has in the store."""
    return {c: dict(kept) for c, kept in seating_of(trainer).store.get(range(trainer.recipe.clients.num)).items()}


def spoil_rows_(trainer: Trainer, monkeypatch: Any) -> None:
    """Whenever a round begins, and before anybody receives anything, what the rows hold is something else."""
    call, seating, latest = trainer.built.roll_call, seating_of(trainer), Setup.latest
    catch_up, arrive, state = call._catch_up_, seating.arrive, trainer.state

    def spoil_(stacks: Iterable[Stack], workers: Iterable[int], blocks: list[bool]) -> None:
        for block in itertools.chain.from_iterable(stack.blocks for stack in stacks):
            block.fill_(7.0)
        wrong = [{"step": 99.0, "fresh": 0.0} if itself else {} for itself in blocks]
        set_counts_(state.optimizers["inner"], state.local["params"], dict.fromkeys(workers, wrong))

    def spoilt_catch_up(returned: list[int]) -> None:
        known = {name: latest(trainer.setup, name).map(torch.clone) for name in state.local}
        away = [w for w, up in enumerate(trainer.fleet.last_up) if not up]  # the counts of others may be handed on
        with monkeypatch.context() as patch:
            patch.setattr(Setup, "latest", lambda self, name: known[name])
            spoil_(state.local.values(), away, [True] * len(state.local["params"].blocks))
            catch_up(returned)

    def spoilt_arrive() -> None:
        own = [trainer.fleet.grads, *trainer.comm.residuals.values(), *(state.local.values() if state.served else ())]
        spoil_(
            own, trainer.fleet.mine, [b.personal or not seating.receives_counts for b in trainer.fleet.layout.blocks]
        )
        arrive()

    monkeypatch.setattr(call, "_catch_up_", spoilt_catch_up)
    monkeypatch.setattr(seating, "arrive", spoilt_arrive)


def turn_rows_(monkeypatch: Any) -> None:
    """From now on the clients of every round sit in the reverse order."""
    of_round = Selection.of_round

    def turned(self: Selection, number: int) -> Selected:
        found = of_round(self, number)
        last = len(found.clients) - 1
        return Selected(found.clients[::-1], [last - row for row in reversed(found.late)])

    monkeypatch.setattr(Selection, "of_round", turned)


def by_client(events: Iterable[Event]) -> tuple[dict[tuple[int, int], float], list[tuple[Any, ...]]]:
    """What a federation did, in whatever rows: losses by step and client, and who sent or received what in each step."""
    losses: dict[tuple[int, int], float] = {}
    sent: list[tuple[Any, ...]] = []
    clients: list[int] = []
    for event in events:
        if isinstance(event, Seated):
            clients = event.clients
        elif isinstance(event, Stepped):
            losses |= {(event.step, clients[w]): x for w, x in enumerate(event.loss_W) if x is not None}
        elif isinstance(event, Sent):
            who = sorted(clients[w] for w in event.workers)
            sent.append((event.step, event.op, event.state, who, event.payload_bytes))
    alike = itertools.groupby(
        sent, key=lambda x: x[:3]
    )  # one message of each, or of some of the same size, in any order
    return losses, [x for _, same in alike for x in sorted(same, key=lambda x: x[3])]
