"""Sites of a run that talk through a mailbox: started here, each a process of its own, and watched over."""

from __future__ import annotations

import contextlib
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from lab.errors import RecipeError
from lab.files import located
from lab.processes.environment import MAILBOX
from lab.processes.invitation import Invitation
from lab.processes.places import URL, place
from lab.processes.post import secret
from lab.recipes.recipe import Recipe
from lab.runs import child
from lab.runs.folder import RunFolder
from lab.runs.launch import CLOSING_SECONDS, LAUNCHED, how_it_ended

LOOK_SECONDS = 0.05  # between two looks at the processes


def check_mailbox(mailbox: str | None, num: int, restarts: int = 0) -> None:
    """Raises RecipeError for a place that cannot be opened, or one that nobody needs."""
    if mailbox is None:
        return
    place(mailbox)
    secret()
    if restarts:
        raise RecipeError(f"--restarts {restarts} is not for a mailbox: leave it out, and go on with lab resume")
    if num < 2:
        raise RecipeError(
            f"--mailbox {mailbox} is for several processes: say how many with --processes, or leave it out"
        )


def host(
    folder: RunFolder, recipe: Recipe, num: int, mailbox: str, timeout_seconds: float, options: Sequence[str]
) -> None:
    """Run all sites of a run as processes of this machine, to its end.

    Parameters
    ----------
    mailbox
        the place in which they leave messages for each other.
    options
        of ``lab resume``, for each of them.

    Raises
    ------
    PeerLost
        if one was lost: one line that says how to go on.
    SystemExit
        with its exit code, if the run ended with an error that a site has printed.
    """
    Invitation.new(num, recipe.to_dict()).put(place(mailbox), secret())
    started = {
        p: _site(folder.path, p, num, mailbox, ["--timeout", str(timeout_seconds), *options]) for p in range(num)
    }
    try:
        failures = _watched(started)
    finally:
        for process in started.values():
            process.terminate()
        until = time.monotonic() + CLOSING_SECONDS
        for process in started.values():
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, until - time.monotonic()))
            process.kill()
    if failures:
        raise how_it_ended(folder, failures, num, timeout_seconds)


def _watched(started: dict[int, subprocess.Popen[bytes]]) -> dict[int, tuple[int, float]]:
    """Wait until all have ended, or one has failed; return the exit code of each that has failed, and when that was seen."""
    while True:
        codes = {p: process.poll() for p, process in started.items()}
        failures = {p: (code, time.time()) for p, code in codes.items() if code}
        if failures or None not in codes.values():
            return failures
        time.sleep(LOOK_SECONDS)


def _site(run: Path, index: int, num: int, mailbox: str, options: Sequence[str]) -> subprocess.Popen[bytes]:
    """Start a site of a run on this machine."""
    where = mailbox if URL.fullmatch(mailbox) else str(located(mailbox))
    env = child.environment() | {"OMP_NUM_THREADS": "1", LAUNCHED: "1", MAILBOX: where}
    env |= {"WORLD_SIZE": str(num), "RANK": str(index), "LOCAL_WORLD_SIZE": str(num), "LOCAL_RANK": str(index)}
    env |= {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "0",
    }  # where nobody is: launchers' words for what is not needed here
    return subprocess.Popen(child.command("lab", "resume", str(run), *options), env=env)
