"""What clients make of the agreed model on their own examples, and what they have without it: trained beside the run, scored, thrown away.

Legend: C clients that are looked at, R of them at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import nn

from lab.data.splits import cut
from lab.data.training_data import HeldOut
from lab.engine.checkpoint import Json
from lab.engine.comm import Communicator
from lab.engine.fleet import Fleet
from lab.engine.stack import Stack
from lab.engine.state import Grad, State
from lab.events import Adapted
from lab.ground.seeds.surroundings import isolated
from lab.methods.holding_on import gradients_, open_
from lab.methods.rounds import beginning
from lab.probes.evaluation import Evaluator
from lab.probes.fairness import (
    KEPT_AT_ONCE,
    Own,
    OwnExamples,
    listed,
    personal_blocks,
    rows_of_present,
    sample,
    together,
)
from lab.probes.probe import Agreed, Probe, Setup
from lab.recipes.adaptation import How

AT_ONCE, NUMBERS = 64, 1 << 24  # clients that are trained together, at most, and parameters of them all
Gradients = Callable[
    [Fleet, Communicator], Grad
]  # of a fleet on the run's examples, as its communicator says the local step


class AdaptationProbe(Probe):
    """`lab.recipes.adaptation.Adaptation`: each way of it from the agreed model, and once a model of each client's own.

    The clients are the rows of a fleet beside the run's, whose parameters are copies. So the run is left as it is, and nothing is sent. All of
    it happens at the first process: how many there are makes no difference.

    kept
        what clients that are away keep of their personal parameters, at the first process. Who has not had a turn has the agreed ones.
    """

    def __init__(self, setup: Setup, held_out: HeldOut, kept: Callable[[Sequence[int]], Own], gradients: Gradients):
        recipe, self.setup, self.kept, self.gradients = setup.recipe, setup, kept, gradients
        self.settings, self.evaluator = recipe.adaptation, Evaluator(setup)
        self.clients = sample(recipe.num_clients, self.settings.clients, recipe.seed)
        self.own = OwnExamples(held_out, recipe.eval_windows, self.clients)
        personal = [n for i in personal_blocks(setup) for n in setup.fleet.layout.blocks[i].names]
        self.settings.check_head(list(setup.fleet.layout.place), personal)
        self.at_once = rows_at_once(recipe.num_workers, sum(b.numel for b in setup.fleet.layout.blocks))
        self.first = beginning(setup.fleet) if self.settings.local_steps else None  # values of the run's first step
        self.local_C: dict[str, list[float | None]] | None = None

    def due(self, t: int) -> bool:
        return self.settings.due(t, self.setup.recipe.steps)

    def after_step(self, t: int, agreed: Agreed) -> Iterator[Adapted]:
        if not self.due(t):
            return
        first, rows = agreed.gather_(), rows_of_present(self.setup)
        found = [self._looked(agreed.whole, rows)] if first else []
        fields = self.setup.world.all_gather_json(found)[0][0]
        self.local_C = fields["local_C"]
        yield Adapted(t, self.settings.steps, self.settings.local_steps, **fields)

    def _looked(self, agreed: Stack, rows: Own) -> dict[str, object]:
        """The other fields of `Adapted`."""
        who = [c for c in self.clients.tolist() if len(self.own.of(c))]
        own = self._own(who, rows)
        with isolated():
            if self.local_C is None:
                self.local_C = {} if self.first is None else self._scores("local", self.first, who, {})
            before_C = self._scores("none", agreed, who, own)
            after_C = {way: self._scores(way, agreed, who, own) for way in self.settings.ways}
        return {"clients": who, "before_C": before_C, "after_C": after_C, "local_C": self.local_C}

    def _own(self, who: Sequence[int], rows: Own) -> Own:
        """What these clients have for themselves."""
        if not personal_blocks(self.setup):
            return {}
        away = np.array([c for c in who if c not in rows], dtype=np.int64)
        kept = [self.kept(part.tolist()) for part in cut(away, KEPT_AT_ONCE)]
        return {c: of for part in [*kept, rows] for c, of in part.items()}

    def _scores(self, how: How, start: Stack, who: Sequence[int], own: Own) -> dict[str, list[float | None]]:
        """By score and client, when each has trained from these values."""
        found: list[Mapping[str, float]] = []
        for part in cut(np.array(who, dtype=np.int64), self.at_once):
            fleet = self._fleet(how, start, len(part))
            self._put_(fleet, part.tolist(), own)
            self._train_(fleet, how, part.tolist())
            with torch.no_grad(), self.evaluator.precision(), self.evaluator.draws("adaptation"):
                found += [
                    self.own.scores(fleet.modules[row].eval(), client) for row, client in enumerate(part.tolist())
                ]
            fleet.close()
        return {name: listed(values) for name, values in together(found).items()}

    def _fleet(self, how: How, start: Stack, num: int) -> Fleet:
        """So many rows, all with these values and the buffers that the model has by now (alone: first had); what is frozen is in none."""
        of_run, settings = self.setup.fleet, self.settings
        buffers = of_run.agreed_buffers

        def build(worker: int | None) -> nn.Module:
            if worker is None:
                of_run.agreed_buffers = {} if how == "local" else buffers
                module = of_run.whole_model(start)
                of_run.agreed_buffers = buffers
            else:
                module = of_run.build(None)
            for name, p in module.named_parameters():
                p.requires_grad_(name in of_run.layout.place and (how != "frozen_base" or settings.is_head(name)))
            return module.train()

        personal = self.setup.recipe.clients.is_personal
        return Fleet(build, num, device=of_run.device, dtype=of_run.dtype, personal=personal)

    @torch.no_grad()
    def _put_(self, fleet: Fleet, who: Sequence[int], own: Own) -> None:
        """What clients have for themselves into their rows."""
        blocks = self.setup.fleet.layout.blocks
        for row, client in enumerate(who):
            for i, values in own.get(client, {}).items():
                parts = zip(blocks[i].names, blocks[i].shapes, blocks[i].offsets, strict=True)
                for name, shape, at in parts:
                    fleet.params[name][row].copy_(values[at : at + shape.numel()].view(shape))

    def _train_(self, fleet: Fleet, how: How, who: Sequence[int]) -> None:
        """As the clients of a round do, and nobody hands anything in."""
        if how == "none":
            return
        (hold, inner, steps), comm = self.settings.training(how), Communicator(fleet)
        s = State.of(fleet)
        s.clients_W, s.shared["params"] = who, beginning(fleet)
        s.optimizers["inner"] = inner.over(s.local["params"], s.grads)
        if hold.loss == "ewc":
            open_(s)
        grad = self.gradients(fleet, comm)
        for t in range(1, steps + 1):
            comm.t = t
            gradients_(s, grad, hold, range(len(who)) if t == 1 else ())
            inner.step_(s, t)

    # checkpoints

    def json(self) -> Json:
        return {"adaptation": self.local_C}

    def load_json(self, values: Json, step: int) -> None:
        self.local_C = values["adaptation"]


def rows_at_once(num_workers: int, num_params: int) -> int:
    """Clients that are trained together: as many as the run has workers, or more while they are small."""
    return max(num_workers, min(AT_ONCE, NUMBERS // max(1, num_params)))
