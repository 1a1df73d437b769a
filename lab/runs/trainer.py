"""The step loop: a generator of events.

The consumer of the events drives the run: a progress bar, a notebook cell, a test. The run pauses while none is asked for.
"""

from __future__ import annotations

import itertools
import math
import os
import platform
import sys
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import FrozenInstanceError
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors.torch import save
from torch import Tensor
from tqdm import tqdm

from lab.costs.calendar import calendar
from lab.data import Corpus
from lab.data.cache import cache_folder
from lab.engine.checkpoint import Checkpoint, Part, restore_, snapshot
from lab.engine.fleet import Fleet
from lab.engine.stack import Stack
from lab.engine.world import World
from lab.events import (
    VERSION,
    Checkpointed,
    Ended,
    Evaluated,
    Event,
    KnobChanged,
    Placed,
    Sent,
    Started,
    Stepped,
    Warned,
)
from lab.ground.errors import Diverged, LabError, RecipeError
from lab.ground.files import damage, located, working_folder, working_in, write_with_digest
from lab.ground.seeds.surroundings import isolated, one_core
from lab.methods import name_of
from lab.probes.health import not_finite
from lab.probes.probe import Agreed
from lab.processes.events import with_all_workers
from lab.recipes.notes import notes as idle
from lab.recipes.recipe import Recipe
from lab.runs.build import Built, build
from lab.runs.columns import Columns
from lab.runs.finished import check_finished
from lab.runs.folder import RunFolder
from lab.runs.inputs import Inputs, of_digests, same_everywhere
from lab.runs.knobs import STOP, KnobSource
from lab.runs.meetings import Meetings
from lab.runs.pretrain import base_recipe
from lab.runs.track import Track, sinks, tracked


class Folder(Protocol):
    """Where a run is written: a `RunFolder`, or what several processes have instead (`lab.runs.shared_folder`)."""

    def lock(self) -> None:
        """Lock the folder for this run until `close`."""

    def load(self, recipe: Recipe | None = None) -> tuple[Checkpoint | None, list[str]]:
        """The checkpoint to go on from, with its tensors at the first process, and notes for the reader."""

    def check_inputs(self, now: Inputs, was: Mapping[str, str] | None, accept_new_text: bool = False) -> list[str]:
        """Refuse to go on with other data; notes on what is accepted."""

    def record_inputs(self, now: Inputs) -> None:
        """Write down what the run reads from now on."""

    def knobs_after(self, after: int) -> dict[int, dict[str, Any]]:
        """Return the knobs that were set after a step, by the step in which they became effective."""

    def open(self, recipe: Recipe, keep_bytes: int = 0, step: int = 0) -> None:
        """Begin to write, after so many bytes of events."""

    def events(self) -> Iterator[Event]:
        """Yield the events that are written there."""

    def append(self, event: Event) -> None: ...

    def flush(self) -> None: ...

    def append_end(self, ended: Ended) -> None: ...

    def save(self, step: int, tensors: dict[str, Tensor], extra: dict[str, Any]) -> Checkpointed:
        """Write a checkpoint, and the event that there is one."""

    def gather(
        self, step: int, parts: Sequence[Part], world: World, device: torch.device
    ) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """`lab.engine.checkpoint.snapshot`, for a checkpoint after this step."""

    def last_step_saved(self) -> int | None: ...

    def clients(self) -> Path | None:
        """Where lies what clients keep; None at all processes but the first."""

    def close(self) -> None: ...


class Trainer:
    """One run: all that it works with (`lab.runs.build`), and the loop over its local steps.

    ``dry=True`` is the dry run: the same loop and the same ``step`` on tensors without storage. No text is read, no loss
    computed; what comes out is the communication calendar. ``world`` are the processes, if the workers are spread over
    several: all of them build a trainer and take its events. A dry run can take over the ``fleet`` of another with the same
    table (the same model, placement and adapters). ``accept_new_text``: go on from a checkpoint also where the text is not what it
    was trained on until then. ``knob_source``: called before every local step for the knobs to set; may wait.
    ``meetings``: of sites that do not wait for each other without end.
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
        knob_source: KnobSource = lambda t: (),
        meetings: Meetings | None = None,
    ):
        self.place = working_folder()  # what names of files in the recipe are relative to
        recipe = recipe.here()
        self.recipe, self.accept_new_text, self.knob_source = recipe, accept_new_text, knob_source
        self.corpus, self.meetings = corpus, meetings
        self._work_with(
            build(recipe, dry=dry, corpus=corpus, progress=progress, world=world, fleet=fleet, base_model=pretrained)
        )
        self.folder: Folder | None = None
        self.t = 0  # finished local steps
        self._saved: int | None = None  # the step of the last checkpoint
        self.again: dict[int, dict[str, Any]] = {}  # knobs of a run that was cut off, by the step they were turned for
        self.pending: list[Event] = []  # since the processes last exchanged their losses

    def _work_with(self, built: Built) -> None:
        if self.meetings is not None:
            self.meetings.follow(built.roll_call)
        self.built, self.setup, self.probes, self.knobs = built, built.setup, built.probes, built.knobs
        self.fleet, self.state, self.comm, self.world = (
            self.setup.fleet,
            self.setup.state,
            self.setup.comm,
            self.setup.world,
        )

    def events(self, folder: Folder | None = None) -> Iterator[Event]:
        """All events of the run, from the first on.

        With a folder they are also written there, with checkpoints. What the folder already holds of this run is replayed
        up to its last whole checkpoint, and the run goes on from there. Between two events the run works apart from what its
        thread has set for itself (`lab.ground.seeds.surroundings`); whoever takes the events has that back.
        """
        events = self._events(folder)
        try:
            while True:
                with isolated(), working_in(self.place):
                    event = next(events, None)
                if event is None:
                    return
                yield event
        finally:
            with isolated(), working_in(self.place):
                events.close()

    def _events(self, folder: Folder | None) -> Generator[Event, None, None]:
        self.folder = folder
        notes: list[str] = []
        try:
            same_everywhere(self.world.all_gather_json(of_digests(self.built.inputs)))
            if folder is not None:
                folder.lock()
                notes = self._take_up(folder)
                yield from folder.events()
            try:
                for event in self._run(notes):
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

    def _take_up(self, folder: Folder) -> list[str]:
        """Restore the last checkpoint of a folder, if there is one; return notes for the reader."""
        checkpoint, notes = folder.load(self.recipe)
        inputs = self.built.inputs
        if checkpoint is not None:
            accepted = folder.check_inputs(inputs, checkpoint.extra.get("inputs"), self.accept_new_text)
            self.restore(checkpoint)
            for probe in self.probes if accepted else ():
                probe.forget()
            self._saved = checkpoint.step
            notes += [*accepted, f"resumed after step {self.t}"]
        elif notes:
            notes.append("no whole checkpoint is left: starting again from the beginning")
        self.again = folder.knobs_after(self.t)
        if self.built.roll_call.seating is not None:
            self.built.roll_call.seating.open(folder.clients())
        folder.open(self.recipe, checkpoint.events_bytes if checkpoint is not None else 0, self.t)
        folder.record_inputs(inputs)
        return notes

    # the loop

    def _run(self, notes: list[str]) -> Iterator[Event]:
        yield from self._begin(notes)
        stopping = False
        while self.t < self.recipe.steps and not stopping:
            stopping = yield from self.next_step() if self.meetings is None else self.meetings.next_step(self)
            if not stopping and self._saves(self.t) and self.t < self.recipe.steps:
                yield self._save()
        yield from self._end()

    def next_step(self) -> Generator[Event, None, bool]:
        """Take one local step, and yield the events of it; returns whether the run is to stop instead."""
        t = self.comm.t = self.t + 1
        stopping = yield from self._set_knobs(t)
        if not stopping:
            began = time.perf_counter()
            yield from self._roll_call(t)
            loss_W = self._step(t)
            yield from self._report(t, loss_W, time.perf_counter() - began)
        return stopping

    def _begin(self, notes: list[str]) -> Iterator[Event]:
        data, experts = self.setup.data, self.setup.experts
        if self.t == 0:
            yield self.started()
            if data is not None and data.note:
                yield Warned(0, data.note)
            if experts is not None:
                yield Placed(1, experts.table, 0)
            if data is not None:
                notes = [*idle(self.recipe, self.built.roll_call.up_TW), *self.built.buffers.notes(), *notes]
        for note in notes:
            yield Warned(self.t, note)

    def _set_knobs(self, t: int) -> Generator[Event, None, bool]:
        """Set the knobs for local step ``t`` and yield the events of that; returns whether the run is to stop."""
        stopping = False
        for knob, value in itertools.chain(self.again.pop(t, {}).items(), self.knob_source(t)):
            if knob == STOP:
                stopping = value
            elif self.knobs.set_knob(knob, value):
                yield KnobChanged(t, knob, self.knobs.values[knob])
        return stopping

    def _roll_call(self, t: int) -> Iterator[Event]:
        called = list(self.built.roll_call.call(t))
        self.pending += called
        if called and self.world.meets_every_step:
            yield from self._flush()

    def _step(self, t: int) -> Tensor:
        try:
            self.built.buffers.before_(t)
            loss_W: Tensor = self.knobs.method.step(self.state, self.built.grad, self.comm, t)
            self.built.buffers.after_(t)
        except FrozenInstanceError as error:
            raise RecipeError(
                f"step of method {name_of(self.knobs.method)} changes the method ({error}), which is frozen: numbers that it has to "
                "remember go into s.facts, tensors into s.local or s.shared"
            ) from None
        except torch.linalg.LinAlgError:  # type: ignore[attr-defined]  # a decomposition of what is no number
            raise Diverged(f"what is to be decomposed in step {t} is no longer finite: {self._last_good()}") from None
        if not isinstance(loss_W, Tensor):
            raise RecipeError(
                f"step of method {name_of(self.knobs.method)} returned no losses: end it with return loss_W"
            )
        if loss_W.shape != (self.recipe.num_workers,):
            raise RecipeError(
                f"step of method {name_of(self.knobs.method)} returned losses of shape {list(loss_W.shape)}: one for each of the "
                f"{self.recipe.num_workers} workers, as grad(s) gave them: return loss_W"
            )
        self.t = t
        return loss_W

    def _report(self, t: int, loss_W: Tensor, seconds: float) -> Iterator[Event]:
        """Yield the events of local step ``t``, and those of the probes."""
        agreed = Agreed(self.setup)
        self.pending += self.built.roll_call.placed(t)
        if not self.setup.dry:
            losses = [x if up else None for x, up in zip(loss_W.tolist(), self.fleet.up, strict=True)]
            self.pending.append(Stepped(t, losses, self.state.schedule(t), seconds))
        sent = self.comm.ledger.new()
        self.pending += sent
        for probe in self.probes:
            self.pending += probe.by_worker(t, agreed)
        due = any(probe.due(t) for probe in self.probes)
        if self.world.meets_every_step or sent or due or self._saves(t):
            yield from self._flush()
        for probe in self.probes:
            yield from probe.after_step(t, agreed)

    def _flush(self) -> Iterator[Event]:
        """Yield the pending events, with the losses of all processes; they are exchanged only where processes communicate anyway."""
        pending, self.pending = self.pending, []
        pending = with_all_workers(pending, self.fleet.mine, self.world)
        yield from pending
        for event in (e for e in pending if isinstance(e, Stepped)):
            for w, loss in enumerate(event.loss_W):
                if loss is not None and not math.isfinite(loss):
                    raise Diverged(f"loss of worker {w} is {loss} in step {event.step}: {self._last_good()}")

    def _end(self) -> Iterator[Event]:
        done = self.t == self.recipe.steps
        yield from self.meetings.rest() if self.meetings is not None else ()
        if self.folder is not None and (self.recipe.checkpoint_every if done else self.t) and self._saved != self.t:
            yield self._save()
        for probe in self.probes if done else ():
            yield from probe.ended(self.t)
        yield Ended(self.t, "done" if done else "stopped", "")

    # checkpoints

    def _saves(self, t: int) -> bool:
        every = self.recipe.checkpoint_every
        return self.folder is not None and not self.setup.dry and every > 0 and t % every == 0

    def _save(self) -> Checkpointed:
        assert self.folder is not None
        here = not_finite(self.fleet.params, self.t)[:1]
        for found in self.world.all_gather_json(here) if self.meetings is None else [here]:
            if found:
                raise Diverged(found[0] + self._last_good())
        event = self.folder.save(self.t, *self.snapshot())
        self._saved = self.t
        return event

    def _last_good(self) -> str:
        step = self.folder.last_step_saved() if self.folder is not None else None
        there = (
            f"the last good checkpoint is that of step {step}"
            if step is not None
            else "there is no checkpoint before it"
        )
        return f"{there}; try a smaller learning rate (method.inner.lr) or more warm-up"

    def snapshot(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return the whole state of the run: tensors by name (at the first process only) and small JSON values."""
        if self.folder is None:
            tensors, extra = snapshot(self.built.parts, self.world, self.fleet.device)
        else:
            tensors, extra = self.folder.gather(self.t, self.built.parts, self.world, self.fleet.device)
        return tensors, extra | {"inputs": of_digests(self.built.inputs)}

    def build_anew_(self) -> None:
        """Make all that it works with once more, as at the beginning."""
        self.fleet.close()
        self._work_with(build(self.recipe, corpus=self.corpus, world=self.world, base_model=pretrained))

    def restore(self, checkpoint: Checkpoint) -> None:
        """Restore the state after the checkpoint's step."""
        restore_(self.built.parts, checkpoint, self.world, self.fleet.device)
        self.t = self.comm.t = checkpoint.step

    # what it is

    def agreed(self) -> Stack:
        """Return the agreed model (`lab.probes.probe.Setup.agreed`)."""
        return self.setup.agreed()

    def started(self) -> Started:
        """What the run is, before its first step."""
        recipe, fleet, data = self.recipe, self.fleet, self.setup.data
        return Started(
            version=VERSION,
            recipe=recipe.to_dict(),
            num_params=sum(b.numel for b in fleet.layout.blocks),
            params_per_worker=[fleet.num_params(w) for w in range(recipe.num_workers)],
            tokens_per_step=recipe.num_workers * recipe.per_batch,
            counted=recipe.counted,
            floor_nats=data.floor_nats if data else None,
            bytes_per_token=data.bytes_per_token if data else 1.0,
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
            inputs=of_digests(self.built.inputs),
        )


def train(
    recipe: Recipe | str | Mapping[str, Any],
    folder: str | Path | None = None,
    *,
    each: Callable[[Event], None] = lambda event: None,
    progress: bool = False,
    accept_new_text: bool = False,
    track: Track | None = None,
) -> Columns:
    """Run a recipe to its end and fold it. With a folder: what is finished there is read, what was cut off goes on.

    Neither is done where the text, or another file that the recipe names, is not what the run there has read: that raises
    RecipeError, unless it is text and ``accept_new_text`` says so. ``track``: trackers that keep what happens, such as ``"trackio"``
    (`lab.runs.track`).
    """
    recipe = Recipe.of(recipe)
    run_folder = RunFolder(located(folder)) if folder is not None else None
    if run_folder is not None:
        run_folder.check_recipe(recipe)
    attached = sinks(track, recipe, run_folder)
    if run_folder is not None and run_folder.done:
        check_finished(run_folder.path, recipe, accept_new_text)
        stream = run_folder.events()
    else:
        stream = Trainer(recipe, progress=progress, accept_new_text=accept_new_text).events(run_folder)
    columns = Columns()
    with one_core(), closing(tracked(stream, attached)) as events:  # one core: once for all events
        for event in events:
            columns.add(event)
            each(event)
    return columns


def dry_run(recipe: Recipe) -> list[Sent]:
    """The ledger that this recipe will write, from the same ``step`` on tensors without storage."""
    return list(calendar(build(recipe, dry=True).dry_run()))


def pretrained(
    size: str = "nano",
    *,
    steps: int | None = None,
    context: int = 256,
    batch_size: int | None = None,
    corpus: str = "stdlib",
    tokenizer: str = "bytes",
    seed: int = 0,
    cache: Path | None = None,
    progress: bool = True,
) -> Path:
    """The file of a base model, trained now where the cache does not have it (with a line of progress on stderr).

    Two workers train by `ddp`. ``size`` is a named size of `lab.recipes.recipe.SIZES`, or width × layers (``24x2``); ``steps`` and ``batch_size`` (of a worker) are
    those of `lab.runs.pretrain.PLANS` where they are not given; ``context`` is the longest that a task may have; ``cache`` is a folder instead
    of the user's own.

    Raises
    ------
    RecipeError
        for an argument that is not allowed, and for a cache that cannot be written.
    """
    recipe = base_recipe(size, steps, context, batch_size, corpus, tokenizer, seed)
    return trained_once(recipe, size, f"pre-training {size}, once", cache, progress)


def trained_once(recipe: Recipe, prefix: str, doing: str, cache: Path | None = None, progress: bool = True) -> Path:
    """The file ``prefix-id.safetensors`` of the agreed model of a recipe, trained now where the cache does not have it whole.

    Parameters
    ----------
    doing
        what a line of progress on stderr says.
    cache
        a folder instead of the user's own.

    Raises
    ------
    RecipeError
        for a cache that cannot be written.
    """
    root = Path(cache) if cache is not None else cache_folder("models")
    file = root / f"{prefix}-{recipe.id}.safetensors"
    if file.exists() and not damage(file):
        return file
    started = time.perf_counter()
    trainer = Trainer(recipe, progress=progress)
    loss = float("nan")
    wait = 0.5 if sys.stderr.isatty() else 20.0  # seconds between two words on how far it is
    with tqdm(
        desc=doing, total=recipe.steps, unit=" steps", disable=not progress, mininterval=wait, maxinterval=wait
    ) as bar:
        for event in trainer.events():
            if isinstance(event, Stepped):
                bar.set_postfix_str(f"{event.loss:.2f} nats per token", refresh=False)
                bar.update()
            elif isinstance(event, Evaluated):
                loss = event.loss
    try:
        root.mkdir(parents=True, exist_ok=True)
        _write_base(file, trainer, loss, time.perf_counter() - started)
    except OSError as error:
        raise RecipeError(
            f"cannot write the base model to {str(error.filename or root)!r} ({error.strerror or error}): "
            "ISTHMUS_CACHE names another folder"
        ) from error
    return file


def _write_base(file: Path, trainer: Trainer, loss: float, seconds: float) -> None:
    """Write the agreed model of a run, and a JSON beside it; ``loss`` in nats per token."""
    model = trainer.fleet.whole_model(trainer.comm.agreed(trainer.state.local["params"]))
    assert trainer.setup.data is not None
    about = {
        "recipe": trainer.recipe.to_dict(),
        "validation_loss": loss,
        "bytes_per_token": trainer.setup.data.bytes_per_token,
        "python": platform.python_version(),
        "seconds": seconds,
    }
    write_with_digest(file, save({name: p.contiguous() for name, p in model.named_parameters()}), about)
