"""A run on tensors without storage: what it will send, from the same ``step``, where steps that are alike are left out."""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from lab.engine.state import Grad
from lab.events import Sent
from lab.ground.seeds.surroundings import isolated
from lab.methods import Method
from lab.probes.probe import Setup
from lab.runs.buffers import BufferSync
from lab.runs.roll_call import RollCall


class DryRun:
    """`lab.costs.calendar.DryRun` of a dry set-up that has not begun."""

    def __init__(self, setup: Setup, method: Method, grad: Grad, buffers: BufferSync, roll_call: RollCall):
        self.setup, self.method, self.grad, self.buffers, self.roll_call = setup, method, grad, buffers, roll_call

    @property
    def up_TW(self) -> np.ndarray:
        up_TW, asked_TW = self.roll_call.up_TW, self.roll_call.asked_TW
        return up_TW if asked_TW is up_TW else np.concatenate([up_TW, asked_TW], axis=1)

    def dry_step(self, number: int, t: Any) -> list[Sent]:
        setup = self.setup
        setup.comm.t = number
        with isolated():
            for _ in self.roll_call.follow_(number, t):
                pass
            self.buffers.before_(t)
            self.method.step(setup.state, self.grad, setup.comm, t)
            self.buffers.after_(t)
        return setup.comm.ledger.new()

    def skip_to(self, up: list[bool]) -> None:
        self.setup.fleet.set_up(up[: self.setup.fleet.num_workers])

    def who(self) -> tuple[tuple[bool, ...], tuple[bool, ...]]:
        return tuple(self.setup.fleet.up), tuple(self.setup.fleet.last_up)

    def structure(self) -> tuple[Any, ...]:
        s, layout, experts = self.setup.state, self.setup.fleet.layout, self.setup.experts
        stacks = [*s.local.items(), *s.shared.items(), *self.setup.comm.residuals.items()]
        own = [(name, x.layout is not layout and tuple(b.shape for b in x.blocks)) for name, x in stacks]
        return (
            tuple(own),
            tuple((name, len(optimizer.state)) for name, optimizer in s.optimizers.items()),
            json.dumps(s.facts),
            experts.draw if experts is not None else 0,
        )
