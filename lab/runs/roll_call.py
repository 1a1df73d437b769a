"""Who is up in each local step, and which worker holds what: who comes back first receives what it missed."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

import numpy as np

from lab.engine.checkpoint import Json, Part
from lab.engine.optim import take_over_
from lab.events import Event, Placed, Seated, WorkersChanged
from lab.methods.registry import received
from lab.probes.health import nobody_holds
from lab.probes.probe import Setup
from lab.runs.seating import Seating


class RollCall(Part):
    """Says who is up, and has those that are back receive what they missed.

    Parameters
    ----------
    killed
        the workers that are down at the moment whatever the scenario says.
    seating
        who sits in which row, where there are more clients than workers.
    catch_up_
        sends those that come whatever is no state of the method, from those that were up last.
    """

    def __init__(
        self,
        setup: Setup,
        killed: Callable[[], Collection[int]] = tuple,
        seating: Seating | None = None,
        catch_up_: Callable[[Sequence[int], Sequence[bool]], None] = lambda returned, last_up: None,
    ):
        recipe = setup.recipe
        self.away: Callable[[], Collection[int]] = tuple  # workers of sites that did not come in time
        self.setup, self.killed, self.seating, self.catch_up_ = setup, killed, seating, catch_up_
        # Who is up in each local step, bool ``[steps, workers]``.
        self.up_TW: np.ndarray = recipe.scenario.trace(recipe.num_workers, recipe.steps, recipe.seed).numpy()
        self.asked_TW = self.up_TW  # who receives the model when a round begins, if it begins then
        if seating is not None and recipe.clients.some_are_missing:
            self.up_TW, self.asked_TW = seating.counted_TW(self.up_TW)
        self.experts = setup.experts
        self.draw = self.experts.draw if self.experts is not None else 0  # the table that was reported last
        self.lost: set[str] = set()  # tensors that no worker which is up holds, as last reported

    def call(self, t: int) -> Iterator[Event]:
        """Called before local step ``t``: set who is up, send those who come what they missed, and yield the events of that."""
        for event in self.follow_(t, t):
            yield event
            if isinstance(event, WorkersChanged):
                yield from self.nobody_holds(t)

    def placed(self, t: int) -> Iterator[Event]:
        """Called after local step ``t``: a `Placed` event, if experts have moved."""
        if self.experts is not None and self.experts.draw != self.draw:
            self.draw = self.experts.draw
            yield Placed(t, self.experts.table, self.experts.moved)
            yield from self.nobody_holds(t)

    def nobody_holds(self, t: int) -> Iterator[Event]:
        missing, self.lost = nobody_holds(self.setup.fleet, t, self.lost)
        yield from missing

    def follow_(self, number: int, t: Any) -> Iterator[Seated | WorkersChanged]:
        """Set who is up in local step ``number``, and who sits there; workers that come (back) first receive what they missed.

        ``t`` is the same number, as a dry run asks it (`lab.costs.calendar.Step`).
        """
        setup, fleet, state = self.setup, self.setup.fleet, self.setup.state
        state.returned = state.received = ()
        killed = {*self.killed(), *self.away()}
        now = [up and w not in killed for w, up in enumerate(self.up_TW[number - 1].tolist())]
        seating = self.seating if self.seating is not None and self.seating.begins(t) else None
        if now == fleet.up and number > 1 and seating is None:
            return
        back = [w for w, up in enumerate(now) if up and not fleet.last_up[w]]
        left = [w for w, up in enumerate(fleet.up) if up and not now[w]]
        returned = back
        if seating is not None:
            returned = [w for w, asked in enumerate(self.asked_TW[number - 1].tolist()) if asked and w not in killed]
            seating.leave()
            yield seating.sit_down(number)
        state.returned = returned
        if returned and not state.served:  # else the method does so
            self._catch_up_(returned)
        if seating is not None and not setup.dry:
            seating.arrive()
        if now == fleet.up and number > 1:
            return
        fleet.set_up(now)
        for block in fleet.layout.blocks:
            setup.world.note_up(block, now)
        if number > 1 or not all(now):
            yield WorkersChanged(number, [w for w, up in enumerate(now) if up], back, left)

    def _catch_up_(self, returned: list[int]) -> None:
        setup, state, last_up = self.setup, self.setup.state, self.setup.fleet.last_up
        catch_up: str = setup.recipe.scenario.catch_up
        from_shared = False
        names = ["params"] if catch_up == "params" else list(state.local)
        if self.seating is not None:  # they bring the rest themselves
            catch_up = "all" if self.seating.receives_counts else "agreed"
            names = [name for name in state.local if name in received(setup.recipe.method)]
            if "params" in state.shared and state.shared["params"].layout is state.local["params"].layout:
                names.remove("params")  # at the beginning of a round they are what is agreed, which is sent below
                from_shared = True
        state.received = names
        for name in names:
            setup.comm.broadcast_(setup.latest(name), state.local[name], name, returned, last_up)
        if catch_up == "all":
            inner, all_gather = state.optimizers["inner"], setup.world.all_gather_by_worker
            take_over_(inner, state.local["params"], returned, last_up, all_gather)
        for name, stack in state.shared.items():  # kept once in this process; they receive it all the same
            setup.comm.broadcast_(stack, stack, name, returned, last_up)
        if from_shared:
            state.local["params"].copy_(state.shared["params"], [w in returned for w in range(len(last_up))])
        self.catch_up_(returned, last_up)

    def json(self) -> Json:
        return {"last_up": self.setup.fleet.last_up, "up": self.setup.fleet.up}

    def load_json(self, values: dict[str, Any], step: int) -> None:
        """Restore who is up. Where experts are has been restored before (`lab.runs.parts.Holders`)."""
        fleet = self.setup.fleet
        fleet.last_up, fleet.up = values["last_up"], values["up"]
        for block in fleet.layout.blocks:
            self.setup.world.note_up(block, fleet.up)
        self.draw = self.experts.draw if self.experts is not None else 0
