"""The step loop: a generator of events.

Whoever takes the events drives the run: a progress bar, a notebook cell, a test. Not asking for the next one is a pause.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import platform
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from lab.costs.calendar import calendar
from lab.data import Corpus
from lab.engine.checkpoint import restore_, snapshot
from lab.engine.codecs import codec
from lab.engine.comm import Communicator
from lab.engine.fleet import Fleet
from lab.engine.optim import take_over_
from lab.engine.stack import Stack
from lab.engine.state import Loss, State
from lab.engine.surroundings import apart, one_core
from lab.engine.vectorised import Vectorised
from lab.engine.world import OneProcess, World
from lab.errors import Diverged, LabError
from lab.events import (
    VERSION,
    Checkpointed,
    Ended,
    Event,
    Placed,
    Sent,
    Started,
    Stepped,
    Turned,
    Warned,
    WorkersChanged,
)
from lab.files import located, working_folder, working_in
from lab.methods import declared
from lab.methods.lora_factors import Adapters
from lab.probes import buffers
from lab.probes.adapters import AdapterWatch
from lab.probes.drift import DriftWatch
from lab.probes.health import nobody_holds, not_finite
from lab.probes.looks import Looks
from lab.probes.routing import PROBE_WINDOWS, Watch
from lab.processes.events import with_all_workers
from lab.processes.moving import follow_rows
from lab.recipes.compute import device_of, vectorised
from lab.recipes.notes import notes as idle
from lab.recipes.recipe import Recipe
from lab.runs.build import build_fleet, check_memory, check_size
from lab.runs.columns import Columns
from lab.runs.data import Text, vocab_size_without_text
from lab.runs.folder import Checkpoint, RunFolder
from lab.runs.inputs import Inputs, check_finished, of_digests, of_run, same_everywhere
from lab.seeds import derive

if TYPE_CHECKING:
    from lab.probes.measure import Measures
    from lab.runs.shared_folder import SharedFolder


class Trainer:
    """Everything that one run works with, built and checked before anything is written.

    ``dry=True`` is the dry run: the same loop and the same ``step`` on tensors without storage. No text is read, no loss
    computed; what comes out is the communication calendar. ``world`` are the processes, if the workers are spread over
    several: all of them build a trainer and take its events. A dry run can take over the ``fleet`` of another with the same
    table (the same model, placement and adapters). ``accept_new_text``: go on from a checkpoint also where the text is not what it
    was trained on until then.
    """

    def __init__(
        self,
        recipe: Recipe,
        *,
        dry: bool = False,
        corpus: Corpus | None = None,
        progress: bool = False,
        world: World | None = None,
        fleet: Fleet | None = None,
        accept_new_text: bool = False,
    ):
        self.recipe, self.dry, self.world = recipe, dry, world or OneProcess()
        self.inputs: Inputs = {}
        self.accept_new_text = accept_new_text
        self.place = working_folder()  # what names of files in the recipe are relative to
        with apart():
            self._build(corpus, progress, fleet)

    def _build(self, corpus: Corpus | None, progress: bool, fleet: Fleet | None) -> None:
        recipe, dry = self.recipe, self.dry
        device = torch.device("meta") if dry else device_of(recipe.compute, recipe.dtype)
        workers = recipe.num_workers if self.world.mine is None else len(self.world.mine)
        check_size(recipe, workers, device)
        self.text = None if dry else Text.of(recipe, corpus, progress)
        vocab_size = self.text.vocab_size if self.text else vocab_size_without_text(recipe)
        if self.text:
            self.batches = self.text.batches
            self.validation = [(ids.to(device), targets.to(device)) for ids, targets in self.text.validation]
            check_memory(recipe, vocab_size, workers, device)
        self.experts = recipe.experts
        self.fleet = fleet or build_fleet(recipe, vocab_size, device, self.experts, self.world.mine)
        if self.text:
            self.inputs = of_run(recipe, self.text)
        self.vectorised: Vectorised | None = None  # all workers at once, where that is faster
        if not dry and recipe.compute.vectorised is not False:
            self.vectorised = vectorised(self.fleet, recipe.compute, recipe.batch_size * recipe.context)
        codecs = {state: codec(spec) for state, spec in recipe.codecs.items()}
        if not dry and any(c.sparse for c in codecs.values()):
            dry_run(recipe)  # whether they fit is known when the method first sends: better now than in mid-run
        self.comm = Communicator(self.fleet, codecs, self.world)
        self.watch: Watch | None = None
        self.adapters: Adapters | None = None
        self.adapter_watch: AdapterWatch | None = None
        samples_W = self.text.samples_W if self.text else None
        if recipe.lora.ranks:
            self.adapters = Adapters.of(recipe.lora, recipe.num_workers, list(self.fleet.layout.place))
            if not dry:
                self.adapter_watch = AdapterWatch(self.fleet, self.adapters, samples_W, self.world)
        elif not dry and self.experts is not None and recipe.routing_every:
            ids = torch.cat([ids for ids, _ in self.validation])[:PROBE_WINDOWS]
            self.watch = Watch(self.fleet, ids, self.experts, self.world)
        self.method = recipe.method
        self.knobs: dict[str, Any] = {}  # where those stand that were turned
        self.between: Callable[[int], Iterable[tuple[str, Any]]] = lambda t: ()  # knobs to turn before step t; may wait
        self.stopping = False  # no further step
        self._saved: int | None = None  # the step of the last checkpoint
        self._again: dict[int, dict[str, Any]] = {}  # knobs of a run that was cut off, by the step they were turned for
        schedule = recipe.schedule
        self.state = State.of(
            self.fleet,
            lambda t: 1.0 if dry else schedule.at(t, recipe.steps) * self.knobs.get("lr", 1.0),
            self.experts,
            self.adapters,
            samples_W,
            declared(recipe.method).server,
        )
        recipe.method.init(self.state)
        self.world.begin_(self.state.served)
        if self.world.num > 1:
            follow_rows(self.state, self.comm, self.world)
        self.drift, self.looks = DriftWatch(self.state, self.comm), Looks(self)
        if not dry:
            self.comm.observer = self.looks.at_average
        self.up_tW = recipe.scenario.trace(recipe.num_workers, recipe.steps, recipe.seed)
        self.measures: Measures | None = None
        if recipe.metrics and not dry:
            from lab.probes.measure import Measures

            self.measures = Measures(self)
        self.last_up = [True] * recipe.num_workers  # who holds the present state: all of them at the start
        self.t = 0  # finished local steps
        self._lost: set[str] = set()  # tensors that no worker which is up holds, as last reported
        self._untold: list[Event] = []  # what happened since the processes last told each other their losses

    # the loop

    def events(self, folder: RunFolder | SharedFolder | None = None) -> Iterator[Event]:
        """All events of the run, from the first on.

        With a folder they are also written there, with checkpoints. What the folder already holds of this run is replayed
        up to its last whole checkpoint, and the run goes on from there. Between two events the run works apart from what its
        thread has set for itself (`lab.engine.surroundings`); whoever takes the events has that back.
        """
        events = self._events(folder)
        try:
            while True:
                with apart(), working_in(self.place):
                    event = next(events, None)
                if event is None:
                    return
                yield event
        finally:
            with apart(), working_in(self.place):
                events.close()

    def _events(self, folder: RunFolder | SharedFolder | None) -> Generator[Event, None, None]:
        notes: list[str] = []
        try:
            same_everywhere(self.world.all_gather_json(of_digests(self.inputs)))
            if folder is not None:
                folder.lock()
                notes = self._take_up(folder)
                yield from folder.events()
            try:
                for event in self._steps(notes, folder):
                    if folder is not None and not isinstance(event, Checkpointed):  # save() writes that one itself
                        folder.append(event)
                    yield event
                if folder is not None:
                    folder.flush()
            except LabError as error:
                failed = Ended(self.t, "failed", str(error))
                if folder is not None:
                    folder.append_end(failed)
                yield failed
                raise
        finally:
            self.fleet.close()
            if folder is not None:
                folder.close()

    def _take_up(self, folder: RunFolder | SharedFolder) -> list[str]:
        """Go on from what a folder holds; what is to be said about that."""
        checkpoint, notes = folder.load(self.recipe)
        if checkpoint is not None:
            accepted = folder.check_inputs(self.inputs, checkpoint.extra.get("inputs"), self.accept_new_text)
            self.restore(checkpoint)
            if accepted and self.watch is not None:
                self.watch.forget()
            self._saved = checkpoint.step
            notes += [*accepted, f"resumed after step {self.t}"]
        elif notes:
            notes.append("no whole checkpoint is left: starting again from the beginning")
        self._again = folder.turned(self.t)
        folder.open(self.recipe, checkpoint.events_bytes if checkpoint is not None else 0, self.t)
        folder.record_inputs(self.inputs)
        return notes

    def _steps(self, notes: list[str], folder: RunFolder | SharedFolder | None) -> Iterator[Event]:
        recipe = self.recipe
        if self.t == 0:
            yield self.started()
            if self.text is not None and self.text.note:
                yield Warned(0, self.text.note)
            if self.experts is not None:
                yield Placed(1, self.experts.table, 0)
        for note in [*(idle(recipe, self.up_tW) if self.t == 0 and not self.dry else ()), *notes]:
            yield Warned(self.t, note)
        while self.t < recipe.steps:
            t = self.comm.t = self.t + 1
            yield from self._turned(t)
            if self.stopping:
                break
            before = time.perf_counter()
            changed = self._workers(t)
            if changed is not None:
                self._untold += [changed, *self._nobody_holds(t)]
                if self.world.meets_every_step:
                    yield from self._tell(folder)
            draw = self.experts.draw if self.experts is not None else 0
            try:
                loss_W = self.method.step(self.state, self._grad, self.comm, t)
            except torch.linalg.LinAlgError:  # type: ignore[attr-defined]  # a decomposition of what is no number
                raise Diverged(
                    f"what is to be decomposed in step {t} is no longer finite: {_last_good(folder)}"
                ) from None
            self.t = t
            seconds = time.perf_counter() - before
            if self.experts is not None and self.experts.draw != draw:
                self._untold += [Placed(t, self.experts.table, self.experts.moved), *self._nobody_holds(t)]
            losses = [x if up else None for x, up in zip(loss_W.tolist(), self.fleet.up, strict=True)]
            if not self.dry:
                self._untold.append(Stepped(t, losses, self.state.schedule(t), seconds))
            sent = self.comm.ledger.new()
            self._untold += sent
            if not self.dry:
                self._untold += self.looks.by_worker(t)
            saves = folder is not None and recipe.checkpoint_every > 0 and t % recipe.checkpoint_every == 0
            if self.world.meets_every_step or sent or saves or self.looks.due(t):
                yield from self._tell(folder)
            if not self.dry:
                yield from self.looks.together(t)
                if folder is not None and saves and t < recipe.steps:
                    yield self._save(folder)
        done = self.t == recipe.steps
        if self.adapter_watch is not None and done and not any(self.adapter_watch.last_M):
            yield Warned(self.t, "no round was finished, so nothing was aggregated: set method.sync_every below steps")
        if folder is not None and (recipe.checkpoint_every if done else self.t) and self._saved != self.t:
            yield self._save(folder)
        if done and self.watch is not None and self.watch.steps:
            yield self.watch.saturated(self.t)
        yield Ended(self.t, "done" if done else "stopped", "")

    def _tell(self, folder: RunFolder | SharedFolder | None) -> Iterator[Event]:
        """What happened lately, with the losses of all processes: they exchange them only where they meet anyway."""
        told, self._untold = self._untold, []
        told = with_all_workers(told, self.fleet.mine, self.world)
        yield from told
        for event in (e for e in told if isinstance(e, Stepped)):
            for w, loss in enumerate(event.loss_W):
                if loss is not None and not math.isfinite(loss):
                    raise Diverged(f"loss of worker {w} is {loss} in step {event.step}: {_last_good(folder)}")

    # knobs

    def turn(self, knob: str, value: Any) -> bool:
        """Turn a knob (`lab.runs.knobs`) before the next local step; False where it stands there already."""
        from lab.runs.knobs import turn  # a run that nobody touches does without

        return turn(self, knob, value)

    def _turned(self, t: int) -> Iterator[Turned]:
        for knob, value in itertools.chain(self._again.pop(t, {}).items(), self.between(t)):
            if self.turn(knob, value):
                yield Turned(t, knob, self.knobs[knob])

    def _grad(self, s: State, loss: Loss | None = None) -> Tensor:
        t, compute = self.t + 1, self.recipe.compute

        def losses(module: nn.Module, worker: int) -> Iterator[Tensor]:
            of: Any = module.loss if loss is None else partial(loss, module, worker)
            return compute.losses(of, *self.batches.get(worker, t), s.fleet.device)

        if self.vectorised is not None:
            loss_W = self.vectorised.backward(lambda worker: self.batches.get(worker, t), own_loss=loss is not None)
            if loss_W is not None:
                return loss_W
        return s.fleet.backward(losses, lambda worker: derive(self.recipe.seed, "forward", worker, t))

    def _workers(self, t: int) -> WorkersChanged | None:
        """Who is up in step ``t``; those who come back first receive what they missed."""
        self.state.returned = self.state.received = ()
        killed = self.knobs.get("down", ())
        now = [up and w not in killed for w, up in enumerate(self.up_tW[t - 1].tolist())]
        if now == self.fleet.up and t > 1:
            return None
        returned = [w for w, up in enumerate(now) if up and not self.last_up[w]]
        left = [w for w, up in enumerate(self.fleet.up) if up and not now[w]]
        self.state.returned = returned
        if returned and not self.state.served:  # else the method does so
            names = ["params"] if self.recipe.scenario.catch_up == "params" else list(self.state.local)
            self.state.received = names
            for name in names:
                known = self._agreed(name)
                self.comm.broadcast_(known, self.state.local[name], name, returned, self.last_up)
            if self.recipe.scenario.catch_up == "all":
                inner = self.state.optimizers["inner"]
                take_over_(inner, self.state.local["params"], returned, self.last_up, self.world.all_gather_by_worker)
            for name, stack in self.state.shared.items():  # kept once in this process; they receive it all the same
                self.comm.broadcast_(stack, stack, name, returned, self.last_up)
        self.fleet.up = now
        for block in self.fleet.layout.blocks:
            self.world.note_up(block, now)
        if any(now):
            self.last_up = now
        if t == 1 and all(now):
            return None
        return WorkersChanged(t, [w for w, up in enumerate(now) if up], returned, left)

    # a dry run, where steps that are alike are left out (`lab.costs.calendar`)

    @property
    def up_TW(self) -> np.ndarray:
        """Who is up in each local step, bool ``[steps, workers]``."""
        return self.up_tW.numpy()

    def dry_step(self, number: int, t: Any) -> list[Sent]:
        """Local step ``number``, which the method gets as ``t``: what was sent."""
        self.comm.t = number
        with apart():
            self._workers(number)
            self.method.step(self.state, self._grad, self.comm, t)
        return self.comm.ledger.new()

    def skip_to(self, up: list[bool]) -> None:
        """Go on as if steps had passed in which nothing changed but who is up."""
        self.fleet.up = up
        if any(up):
            self.last_up = up

    def who(self) -> tuple[tuple[bool, ...], tuple[bool, ...]]:
        """Who was up in the step before, and who holds the present state."""
        return tuple(self.fleet.up), tuple(self.last_up)

    def structure(self) -> tuple[Any, ...]:
        """Which states there are, of which shape, and which expert is where."""
        s = self.state
        stacks = [*s.local.items(), *s.shared.items(), *self.comm.residuals.items()]
        own = [(name, x.layout is not self.fleet.layout and tuple(b.shape for b in x.blocks)) for name, x in stacks]
        return (
            tuple(own),
            tuple((name, len(optimizer.state)) for name, optimizer in s.optimizers.items()),
            json.dumps(s.facts),
            self.experts.draw if self.experts is not None else 0,
        )

    def _nobody_holds(self, t: int) -> Iterator[Warned]:
        missing, self._lost = nobody_holds(self.fleet, t, self._lost)
        yield from missing

    # looking

    def agreed(self) -> Stack:
        """What the model is at this moment: the server's, or else the mean over those who hold its present state.

        The whole model that is made of it has the means of the workers' buffers.
        """
        self.fleet.agreed_buffers = buffers.means(self.fleet, self.last_up, self.world)
        if self.state.served:
            return self.world.sync_server_state(self.state.shared["params"])
        return self._agreed("params")

    def _agreed(self, name: str) -> Stack:
        """A local state as those have it who hold the present one; where nobody does, what a method keeps as agreed."""
        mine, shared = self.state.local[name], self.state.shared.get(name) if name == "params" else None
        return self.comm.agreed(mine, self.last_up, shared if shared and shared.layout is mine.layout else None)

    def started(self) -> Started:
        """What the run is, before its first step."""
        recipe, fleet, text = self.recipe, self.fleet, self.text
        return Started(
            version=VERSION,
            recipe=recipe.to_dict(),
            num_params=sum(b.numel for b in fleet.layout.blocks),
            params_per_worker=[fleet.num_params(w) for w in range(recipe.num_workers)],
            tokens_per_step=recipe.num_workers * recipe.batch_size * recipe.context,
            floor_nats=text.floor_nats if text else None,
            bytes_per_token=text.bytes_per_token if text else 1.0,
            environment={
                "python": platform.python_version(),
                "torch": torch.__version__,
                "platform": platform.platform(),
                "cores": os.cpu_count(),
                "device": str(fleet.device),
                "processes": self.world.num,
                "threads": fleet.threads,
                "threads_per_worker": 1,
            },
            inputs=of_digests(self.inputs),
        )

    def _save(self, folder: RunFolder | SharedFolder) -> Checkpointed:
        self._check_params(self.t, folder)
        event = folder.save(self.t, *self.snapshot())
        self._saved = self.t
        return event

    def _check_params(self, t: int, folder: RunFolder | SharedFolder) -> None:
        bad = not_finite(self.fleet.params, t)
        for found in self.world.all_gather_json(bad[:1]):
            if found:
                raise Diverged(found[0] + _last_good(folder))

    def snapshot(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """All that decides the rest of the run, as tensors by name and small JSON values."""
        return snapshot(self)

    def restore(self, checkpoint: Checkpoint) -> None:
        """Put everything back as it was after the checkpoint's step."""
        restore_(self, checkpoint)


def train(
    recipe: Recipe | str | Mapping[str, Any],
    folder: str | Path | None = None,
    *,
    each: Callable[[Event], None] = lambda event: None,
    progress: bool = False,
    accept_new_text: bool = False,
) -> Columns:
    """Run a recipe to its end and fold it. With a folder: what is finished there is read, what was cut off goes on.

    Neither is done where the text, or another file that the recipe names, is not what the run there has read: that raises
    RecipeError, unless it is text and ``accept_new_text`` says so.
    """
    recipe = Recipe.of(recipe)
    run_folder = RunFolder(located(folder)) if folder is not None else None
    if run_folder is not None:
        run_folder.check_recipe(recipe)
    if run_folder is not None and run_folder.done:
        check_finished(run_folder.path, recipe, accept_new_text)
        stream = run_folder.events()
    else:
        stream = Trainer(recipe, progress=progress, accept_new_text=accept_new_text).events(run_folder)
    columns = Columns()
    with one_core():  # once for all events
        for event in stream:
            columns.add(event)
            each(event)
    return columns


def dry_run(recipe: Recipe) -> list[Sent]:
    """The ledger that this recipe will write, from the same ``step`` on tensors without storage."""
    return list(calendar(Trainer(recipe, dry=True)))


def _last_good(folder: RunFolder | SharedFolder | None) -> str:
    step = folder.last_step_saved() if folder is not None else None
    if step is None:
        return "there is no checkpoint before it; try a smaller learning rate (method.inner.lr) or more warm-up"
    return f"the last good checkpoint is that of step {step}; try a smaller learning rate (method.inner.lr) or more warm-up"
