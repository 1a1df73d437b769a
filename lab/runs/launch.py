"""Runs over several processes: what each process runs (`train`), starting them, and reading their events."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from lab.data.cache import read_corpus
from lab.data.tasks.examples import task_name
from lab.events import Event
from lab.ground.errors import LabError, RecipeError
from lab.ground.files import located, working_folder
from lab.processes import rendezvous
from lab.processes.environment import MAILBOX, launched
from lab.processes.invitation import secret
from lab.processes.peers import TIMEOUT_SECONDS, ManyProcesses, PeerLost, check_timeout, join, share_out
from lab.processes.places import place
from lab.recipes.recipe import Recipe
from lab.runs import child
from lab.runs.columns import Columns
from lab.runs.control import Listener, Reports
from lab.runs.finished import check_finished
from lab.runs.folder import RunFolder
from lab.runs.meetings import Meetings
from lab.runs.shared_folder import SharedFolder
from lab.runs.site_folder import SiteFolder, check_same, invite
from lab.runs.track import Track, sinks, tracked
from lab.runs.trainer import Folder, Trainer

LAUNCHED = "ISTHMUS_LAUNCHED"  # set in processes whose launcher will say that one was lost
INTERRUPTED = 130  # exit code of a process that Ctrl-C has ended

rendezvous.register()  # for notebook_launcher, where this is imported for `train`


def train(
    recipe: Recipe,
    folder: str | Path | None = None,
    *,
    each: Callable[[Event], None] = lambda event: None,
    progress: bool = False,
    world: ManyProcesses | None = None,
    timeout_seconds: float = TIMEOUT_SECONDS,
    accept_new_text: bool = False,
    track: Track | None = None,
    deadline_seconds: float | None = None,
) -> Columns:
    """`lab.runs.trainer.train` in every process that a launcher has started: the first sees all events, others those of the loop.

    Parameters
    ----------
    world
        the processes, if they have met before.
    timeout_seconds
        after which a process that does not answer counts as lost.
    track
        trackers that keep what happens; the first process feeds them.
    deadline_seconds
        through a mailbox, after which the run goes on without a site (`lab.runs.meetings`); the first site says it to all.
    """
    if LAUNCHED in os.environ:
        _end_with_launcher(folder, os.environ.get("RANK") == "0")
    world = world or _joined(recipe, folder, timeout_seconds, accept_new_text, deadline_seconds)
    if world.first:
        _note_open_port()
    run_folder = RunFolder(folder) if folder is not None and world.first else None
    columns, reports = Columns(), Reports(world)
    meetings = _meetings(world, reports)
    attached = sinks(track, recipe, run_folder) if world.first else []
    if world.all_gather_json(run_folder is not None and run_folder.done)[0]:
        if run_folder is not None:
            check_finished(run_folder.path, recipe, accept_new_text)
        stream = run_folder.events() if run_folder is not None else iter(())
    else:
        made = partial(Trainer, recipe, world=world, accept_new_text=accept_new_text, knob_source=reports.knobs)
        trainer = _prepared(partial(made, meetings=meetings), recipe, world, progress)
        stream = trainer.events(_folder(world, run_folder) if folder is not None else None)
    with contextlib.closing(tracked(stream, attached)) as events:
        for event in events:
            columns.add(event)
            each(event)
            reports.send(event)
    return columns


def _prepared(made: Callable[..., Trainer], recipe: Recipe, world: ManyProcesses, progress: bool) -> Trainer:
    """The first process prepares text and starting values, the others find them ready."""
    for phase in range(2):
        if world.first == (phase == 0):
            say = progress and world.first
            plain = recipe.data is None and not task_name(recipe.corpus)
            corpus = read_corpus(recipe.corpus, tokenizer=recipe.tokenizer, progress=say) if plain else None
            trainer = made(corpus=corpus, progress=say)
        world.all_gather_json(None)
    return trainer


def _joined(
    recipe: Recipe,
    folder: str | Path | None,
    timeout_seconds: float,
    accept_new_text: bool,
    deadline_seconds: float | None,
) -> ManyProcesses:
    """Meet the others. The first site of a mailbox says there which run it is, unless whoever started it has done so."""
    place_of_all = os.environ.get(MAILBOX)
    here = launched()
    if place_of_all is not None and LAUNCHED not in os.environ and here is not None and not here.index:
        if folder is None:
            raise RecipeError("a run through a mailbox is written into a folder: name one")
        invite(place(place_of_all), secret(), RunFolder(folder), recipe, here.num, accept_new_text, deadline_seconds)
    world = join(recipe.num_workers, timeout_seconds, recipe.compute.device)
    if world.post is not None:
        check_same(world.post, recipe)
        world.post.keeps = folder is not None and recipe.checkpoint_every > 0
    return world


def _meetings(world: ManyProcesses, reports: Reports) -> Meetings | None:
    """How sites with a deadline take their steps; None: without one."""
    deadline = None if world.post is None else world.post.deadline
    if deadline is not None and reports.asks:
        raise RecipeError(
            "a run with a deadline cannot be steered by hand, as its knobs are asked of all in every step: leave it out"
        )
    return None if deadline is None else Meetings(world, deadline)


def _folder(world: ManyProcesses, run_folder: RunFolder | None) -> Folder:
    return SharedFolder(world, run_folder) if world.post is None else SiteFolder(world, run_folder, world.post)


def _note_open_port() -> None:
    """Print a note if another launcher has opened a port that was not needed."""
    here = launched()
    if here is not None and here.one_machine and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        sys.stderr.write(
            f"note: the launcher listens to every network of this machine at port {here.port}; with --rdzv-backend "
            f"{rendezvous.NAME} (rdzv_backend={rendezvous.NAME!r} of notebook_launcher) it opens none\n"
        )


def _end_with_launcher(folder: str | Path | None, first: bool) -> None:
    """End this process when its launcher has ended: nothing else would supervise or stop the run."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1.0)
        if not first:
            time.sleep(3.0)  # or the first one would see that this one has gone, and end before it has spoken
        else:
            sys.stderr.write(f"lab: the command that started this run has gone; go on with: lab resume {folder}\n")
            sys.stderr.flush()
        os._exit(PeerLost.exit_code)  # all is on disk

    threading.Thread(target=watch, daemon=True).start()


def launch(
    folder: RunFolder,
    num: int,
    restarts: int = 0,
    timeout_seconds: float = TIMEOUT_SECONDS,
    accept_new_text: bool = False,
    track: Sequence[str] = (),
) -> None:
    """Run what a folder's recipe says over ``num`` processes of this machine, to its end; they print, and write the folder.

    torchelastic (which ``accelerate launch`` uses as well) starts them and watches over them. When one is lost the others are
    ended, and up to ``restarts`` times all start again from the last checkpoint.

    Raises
    ------
    PeerLost
        if a process was lost and there are no restarts left: one line that says how to go on. One that hangs is killed 30 s
        after the others have noticed.
    SystemExit
        with its exit code, if the run ended with an error that it has printed.
    """
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    for name in list(logging.root.manager.loggerDict):
        if name.startswith("torch.distributed.elastic"):
            logging.getLogger(name).setLevel(logging.CRITICAL)  # says all that is said below, at length
    env = child.environment()
    os.environ.pop("PYTHONPATH", None)
    os.environ |= env | {"OMP_NUM_THREADS": "1", LAUNCHED: "1"}
    one_node = partial(LaunchConfig, min_nodes=1, max_nodes=1, nproc_per_node=num)
    config = one_node(rdzv_backend=rendezvous.NAME, max_restarts=restarts, run_id=folder.path.name)
    options = ["--accept-new-text"] * accept_new_text + [f"--track={name}" for name in track]
    command = child.command("lab", "resume", str(folder.path), "--timeout", str(timeout_seconds), *options)
    try:
        elastic_launch(config, command[0])(*command[1:])
    except SignalException:
        raise KeyboardInterrupt from None
    except ChildFailedError as error:
        raise how_it_ended(
            folder, {p: (f.exitcode, f.timestamp) for p, f in error.failures.items()}, num, timeout_seconds
        ) from None
    finally:
        del os.environ[LAUNCHED]


def how_it_ended(
    folder: RunFolder, failures: Mapping[int, tuple[int, float]], num: int, timeout_seconds: float, options: str = ""
) -> BaseException:
    """Return the exception for processes that failed, from their exit codes and times; ``options`` to go on with."""
    codes = [code for code, _ in failures.values()]
    if INTERRUPTED in codes:
        return KeyboardInterrupt()
    own = [code for code in codes if code > 0 and code != PeerLost.exit_code]
    if own:  # it has said why
        if not (folder.path / "events.jsonl").exists():
            _forget(folder)
        return SystemExit(own[0])
    return PeerLost(
        f"{_lost(failures, num, timeout_seconds)}: the run has stopped; go on with: lab resume {folder.path} --processes {num}"
        f"{options} (--restarts 3 does so by itself)"
    )


def _forget(folder: RunFolder) -> None:
    """A run that was refused before it began leaves nothing behind."""
    (folder.path / "recipe.json").unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # something else is there
        folder.path.rmdir()


CLOSING_SECONDS = 30  # torchelastic's: after them it kills what it has asked to end


def _lost(failures: Mapping[int, tuple[int, float]], num: int, timeout_seconds: float) -> str:
    """Describe in words which process failed and how, from the exit code and time of each that did."""
    first = min(when for _, when in failures.values())
    killed = {p: -code for p, (code, _) in sorted(failures.items()) if code < 0}
    hung = [p for p in killed if killed[p] == signal.SIGKILL and failures[p][1] - first > CLOSING_SECONDS / 2]
    others = [p for p in killed if p not in hung and killed[p] != signal.SIGTERM]  # by that it ends the rest
    if others:
        return f"process {others[0]} of {num} was killed by {signal.Signals(killed[others[0]]).name}"
    if hung:
        return f"process {hung[0]} of {num} did not answer within {timeout_seconds:g} s"
    if len(killed) == len(failures):
        return f"a process of {num} was ended by SIGTERM"
    return f"a process of {num} ended, or did not answer within {timeout_seconds:g} s"


def train_over_processes(
    num: int,
    recipe: Recipe,
    folder: str | Path,
    *,
    restarts: int = 0,
    timeout_seconds: float = TIMEOUT_SECONDS,
    each: Callable[[Event], None] = lambda event: None,
    track: Track | None = None,
    mailbox: str | None = None,
    deadline_seconds: float | None = None,
) -> Columns:
    """`lab.runs.trainer.train` over ``num`` processes of this machine, from a script or a notebook: their events arrive as they happen.

    The processes are fresh ones, so that it does not matter what this one has done before (threads, a GPU). Leaving with an
    exception ends them. `lab.start` with ``processes`` does the same in the background, with knobs. With a ``mailbox``, a folder or a
    URL of `fsspec`, they talk through that place alone; with a deadline the run goes on without one that takes longer
    (`lab.runs.meetings`).

    Raises
    ------
    LabError
        with the message that the run ended with.
    """
    columns, run_folder = Columns(), RunFolder(located(folder))
    over = partial(events_over_processes, num, recipe, run_folder, restarts, timeout_seconds, mailbox=mailbox)
    stream = over(deadline_seconds=deadline_seconds)
    with contextlib.closing(tracked(stream, sinks(track, recipe, run_folder))) as events:
        for event in events:
            columns.add(event)
            each(event)
    return columns


def events_over_processes(
    num: int,
    recipe: Recipe,
    folder: RunFolder,
    restarts: int = 0,
    timeout_seconds: float = TIMEOUT_SECONDS,
    knob_source: Callable[[int, Callable[[], bool]], Iterable[tuple[str, Any]]] | None = None,
    stopping: Callable[[], bool] = lambda: False,
    accept_new_text: bool = False,
    mailbox: str | None = None,
    deadline_seconds: float | None = None,
) -> Iterator[Event]:
    """The events of a run over ``num`` processes that are started here; each once, also where a restart does steps again.

    Parameters
    ----------
    knob_source
        called as ``knob_source(t, still)``: knobs to set before step t in all processes; may wait while ``still()``. With it, the
        processes exchange a few hundred bytes in every step.
    stopping
        whether to end instead of doing that step.
    mailbox, deadline_seconds
        the place through which the processes talk, and after what the run goes on without one of them.

    Raises LabError with the message that the run ended with.
    """
    prepare(folder, recipe, num, timeout_seconds)
    if folder.done:
        check_finished(folder.path, recipe, accept_new_text)
        yield from folder.events()
        return
    options = ["--processes", str(num), "--restarts", str(restarts), "--timeout", str(timeout_seconds)]
    options += [] if deadline_seconds is None else ["--deadline", str(deadline_seconds)]
    command = child.command("lab", "resume", str(folder.path), *options, *["--accept-new-text"] * accept_new_text)
    listener, talk = Listener(asks=knob_source is not None), {} if mailbox is None else {MAILBOX: mailbox}
    env = child.environment() | listener.environment() | talk
    with (
        tempfile.TemporaryFile("w+", encoding="utf-8") as said,
        subprocess.Popen(  # in a session of its own: what interrupts a cell does not end the run
            command, env=env, cwd=working_folder(), stdout=said, stderr=said, start_new_session=True
        ) as started,
    ):
        try:
            yield from listener.events(lambda: started.poll() is None, knob_source or (lambda t, still: ()), stopping)
        finally:
            started.terminate()
        if started.wait():
            said.seek(0)
            raise LabError(said.read().strip().splitlines()[-1].removeprefix("lab: "))


def prepare(folder: RunFolder, recipe: Recipe, num: int, timeout_seconds: float = TIMEOUT_SECONDS) -> None:
    """Put a recipe where ``num`` processes will find it.

    Raises
    ------
    RecipeError
        where they cannot share its workers, for a timeout that is none, a folder that holds the run of another recipe, or a place
        to meet that others can reach.
    """
    share_out(recipe.num_workers, num)
    check_timeout(timeout_seconds)
    rendezvous.own_folder()
    folder.check_recipe(recipe)
    folder.write_recipe(recipe)
