"""Runs over several processes: each one's part, starting them, and reading along."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from lab.columns import Columns
from lab.data import load_corpus
from lab.errors import LabError
from lab.events import Event
from lab.processes.control import Listener, Reports
from lab.processes.folder import SharedFolder
from lab.processes.peers import TIMEOUT_SECONDS, PeerLost, Peers, join, share_out
from lab.recipe import Recipe
from lab.run import Trainer
from lab.store import RunFolder, write_atomically
from lab.tasks.examples import task_name

LAUNCHED = "ISTHMUS_LAUNCHED"  # set in processes whose launcher will say that one was lost


def train(
    recipe: Recipe,
    folder: str | Path | None = None,
    *,
    each: Callable[[Event], None] = lambda event: None,
    progress: bool = False,
    peers: Peers | None = None,
    timeout_seconds: float = TIMEOUT_SECONDS,
) -> Columns:
    """`lab.run.train` in every process that a launcher has started: the first sees all events, others those of the loop.

    Parameters
    ----------
    peers
        the processes, if they have met before.
    timeout_seconds
        after which a process that does not answer counts as lost.
    """
    peers = peers or join(recipe.num_workers, timeout_seconds, recipe.compute.device)
    run_folder = RunFolder(folder) if folder is not None and peers.first else None
    ended = run_folder.ended() if run_folder is not None else None
    columns, reports = Columns(), Reports(peers)
    if peers.share(ended is not None and ended.status == "done")[0]:
        stream = run_folder.events() if run_folder is not None else iter(())
    else:
        for turn in range(2):  # the first process prepares text and starting values, the others find them ready
            if peers.first == (turn == 0):
                say = progress and peers.first
                plain = not task_name(recipe.corpus)
                corpus = load_corpus(recipe.corpus, tokenizer=recipe.tokenizer, progress=say) if plain else None
                trainer = Trainer(recipe, corpus=corpus, progress=say, peers=peers)
            peers.share(None)
        reports.follow_(trainer)
        stream = trainer.events(SharedFolder(peers, trainer, run_folder) if folder is not None else None)
    for event in stream:
        columns.add(event)
        each(event)
        reports.say(event)
    return columns


def launch(folder: RunFolder, num: int, restarts: int = 0, timeout_seconds: float = TIMEOUT_SECONDS) -> None:
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

    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # says all that is said below, at length
    # With torchelastic's own store, processes that start again find the addresses of those before them.
    os.environ |= {"OMP_NUM_THREADS": "1", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1", LAUNCHED: "1"}
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=num,
        rdzv_backend="c10d",
        rdzv_endpoint="127.0.0.1:0",
        max_restarts=restarts,
        run_id=folder.path.name,
    )
    command = ("-m", "lab", "resume", str(folder.path.resolve()), "--timeout", str(timeout_seconds))
    try:
        elastic_launch(config, sys.executable)(*command)
    except SignalException:
        raise KeyboardInterrupt from None
    except ChildFailedError as error:
        failures = sorted(error.failures.items())
        killed = [(p, f.exitcode) for p, f in failures if f.exitcode < 0 and f.exitcode != -signal.SIGTERM]
        if not killed and any(f.exitcode != PeerLost.exit_code for _, f in failures):
            sys.exit(next(f.exitcode for _, f in failures if f.exitcode != PeerLost.exit_code))
        what = f"process {killed[0][0]} of {num} was killed by {signal.Signals(-killed[0][1]).name}" if killed else None
        what = what or f"a process of {num} ended, or did not answer within {timeout_seconds:g} s"
        raise PeerLost(
            f"{what}: the run has stopped; go on with: lab resume {folder.path} --processes {num} (--restarts 3 does so by itself)"
        ) from None
    finally:
        del os.environ[LAUNCHED]


def over(
    num: int,
    recipe: Recipe,
    folder: str | Path,
    *,
    restarts: int = 0,
    timeout_seconds: float = TIMEOUT_SECONDS,
    each: Callable[[Event], None] = lambda event: None,
) -> Columns:
    """`lab.run.train` over ``num`` processes of this machine, from a script or a notebook: their events arrive as they happen.

    The processes are fresh ones, so that it does not matter what this one has done before (threads, a GPU). Leaving with an
    exception ends them. `lab.start` with ``processes`` does the same in the background, with knobs.

    Raises
    ------
    LabError
        with the message that the run ended with.
    """
    columns = Columns()
    for event in events_over(num, recipe, RunFolder(folder), restarts, timeout_seconds):
        columns.add(event)
        each(event)
    return columns


def events_over(
    num: int,
    recipe: Recipe,
    folder: RunFolder,
    restarts: int = 0,
    timeout_seconds: float = TIMEOUT_SECONDS,
    between: Callable[[int, Callable[[], bool]], Iterable[tuple[str, Any]]] | None = None,
    stopping: Callable[[], bool] = lambda: False,
) -> Iterator[Event]:
    """The events of a run over ``num`` processes that are started here; each once, also where a restart does steps again.

    Parameters
    ----------
    between
        knobs to turn before step t, in all processes; may wait as long as its second argument says so. With it, the
        processes exchange a few hundred bytes in every step.
    stopping
        whether to end instead of doing that step.

    Raises
    ------
    LabError
        with the message that the run ended with.
    """
    prepare(folder, recipe, num)
    command = [sys.executable, "-m", "lab", "resume", str(folder.path), "--processes", str(num)]
    command += ["--restarts", str(restarts), "--timeout", str(timeout_seconds)]
    listener = Listener(asks=between is not None)
    env = os.environ | listener.environment()
    with (
        tempfile.TemporaryFile("w+") as said,
        # In a session of its own: what interrupts a cell does not end the run.
        subprocess.Popen(command, env=env, stdout=said, stderr=said, start_new_session=True) as started,
    ):
        try:
            yield from listener.events(lambda: started.poll() is None, between or (lambda t, still: ()), stopping)
        finally:
            started.terminate()
        if started.wait():
            said.seek(0)
            raise LabError(said.read().strip().splitlines()[-1].removeprefix("lab: "))


def prepare(folder: RunFolder, recipe: Recipe, num: int) -> None:
    """Put a recipe where ``num`` processes will find it. Raises RecipeError where they cannot share its workers."""
    share_out(recipe.num_workers, num)
    folder.path.mkdir(parents=True, exist_ok=True)
    write_atomically(folder.path / "recipe.json", json.dumps(recipe.to_dict(), indent=1).encode())
