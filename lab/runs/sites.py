"""Sites of a run that talk through a mailbox: started here, each a process of its own, and started again alone when one is lost."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from lab.events import Event
from lab.ground.config.references import is_reference
from lab.ground.errors import RecipeError
from lab.ground.files import located
from lab.processes.environment import MAILBOX
from lab.processes.invitation import Invitation, secret
from lab.processes.peers import TIMEOUT_SECONDS, PeerLost, check_timeout
from lab.processes.places import URL, place
from lab.recipes.recipe import Recipe
from lab.runs import child
from lab.runs.columns import Columns
from lab.runs.folder import RunFolder
from lab.runs.launch import CLOSING_SECONDS, LAUNCHED, how_it_ended, train
from lab.runs.meetings import check_deadline
from lab.runs.site_folder import invite

LOOK_SECONDS = 0.05  # between two looks at the processes


def check_mailbox(
    mailbox: str | None,
    num: int,
    recipe: Recipe | None = None,
    restarts: int = 0,
    sites: Sequence[int] = (),
    deadline_seconds: float | None = None,
    timeout_seconds: float = TIMEOUT_SECONDS,
) -> None:
    """Raises RecipeError for a place that cannot be opened, one that nobody needs, and sites that are none or could not come back.

    With a deadline also for a run that could not go on without one of its sites.
    """
    if deadline_seconds is not None and mailbox is None:
        raise RecipeError(
            f"--deadline {deadline_seconds:g} is for sites that talk through a place: name one with --mailbox"
        )
    for site in sites:
        if mailbox is None or site >= num:
            raise RecipeError(f"--site {site} is for a run with --mailbox and with --processes of {site + 1} or more")
    if mailbox is None:
        return
    place(mailbox)
    secret()
    if num < 2:
        raise RecipeError(
            f"--mailbox {mailbox} is for several processes: say how many with --processes, or leave it out"
        )
    if deadline_seconds is not None and recipe is not None:
        check_deadline(recipe, num, deadline_seconds, timeout_seconds)
    if restarts and recipe is not None and not recipe.checkpoint_every:
        raise RecipeError(
            f"--restarts {restarts}: with checkpoint_every=0 no site keeps what it would come back with: give a period, or leave it out"
        )


def _elsewhere(mailbox: str) -> str:
    """The same place, from whatever working directory."""
    return mailbox if URL.fullmatch(mailbox) else str(located(mailbox))


def _environment(index: int, num: int, mailbox: str) -> dict[str, str]:
    """What makes a process a site. Nobody is at the address: launchers have a word for it, which is not needed here."""
    where = {MAILBOX: _elsewhere(mailbox), "WORLD_SIZE": str(num), "RANK": str(index), "OMP_NUM_THREADS": "1"}
    return where | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}


@dataclass
class Host:
    """Some sites of a run as processes of this machine.

    Parameters
    ----------
    mailbox
        the place in which all leave messages for each other.
    sites
        which of the ``num`` are here.
    restarts
        how often each of them is started again, alone, when it is lost; the others wait meanwhile.
    options
        of ``lab resume``, for each of them.
    deadline_seconds
        after which the run goes on without a site (`lab.runs.meetings`), so that one which is lost ends nothing; None: all wait for it.
    """

    folder: RunFolder
    recipe: Recipe
    num: int
    mailbox: str
    sites: Sequence[int]
    timeout_seconds: float = TIMEOUT_SECONDS
    restarts: int = 0
    options: Sequence[str] = ()
    deadline_seconds: float | None = None
    started: dict[int, subprocess.Popen[bytes]] = field(default_factory=dict)
    left: dict[int, int] = field(default_factory=dict)  # restarts, by site

    def run(self) -> None:
        """Run them to the end.

        Raises
        ------
        PeerLost
            if one was lost too often: one line that says how to go on.
        SystemExit
            with its exit code, if the run ended with an error that a site has printed.
        """
        if 0 in self.sites:
            anew = "--accept-new-text" in self.options
            seconds = self.deadline_seconds
            invite(place(self.mailbox), secret(), self.folder, self.recipe, self.num, anew, seconds)
        self.left = dict.fromkeys(self.sites, self.restarts)
        for p in self.sites:
            self._start(p)
        try:
            failures = self._watch()
        finally:
            self._close()
        if failures:
            raise how_it_ended(
                self.folder,
                failures,
                self.num,
                self.timeout_seconds,
                f" --mailbox {place(self.mailbox)}{self._deadline}",
            )

    @property
    def _deadline(self) -> str:
        return "" if self.deadline_seconds is None else f" --deadline {self.deadline_seconds:g}"

    def _start(self, index: int) -> None:
        env = child.environment() | {LAUNCHED: "1"} | _environment(index, self.num, self.mailbox)
        env |= {"LOCAL_RANK": str(index), "LOCAL_WORLD_SIZE": str(self.num)}
        command = ["lab", "resume", str(self.folder.path), "--timeout", str(self.timeout_seconds), *self.options]
        self.started[index] = subprocess.Popen(child.command(*command), env=env)

    def _watch(self) -> dict[int, tuple[int, float]]:
        """Wait until all have ended, or one has failed for good; return the exit code of each that has, and when that was seen."""
        while True:
            codes = {p: process.poll() for p, process in self.started.items()}
            for p, code in codes.items():
                if code is not None and _is_loss(code) and self.left[p] and not self._over():
                    self.left[p] -= 1
                    said = f"{self.restarts - self.left[p]} of {self.restarts}"
                    sys.stderr.write(f"note: site {p} of {self.num} was lost, so it starts again, alone ({said})\n")
                    self._start(p)
                    codes[p] = None
                elif self.deadline_seconds is not None and p and code is not None and _is_loss(code):
                    sys.stderr.write(f"note: site {p} of {self.num} was lost: the others go on without it\n")
                    self.started.pop(p)
                    codes[p] = 0
            failures = {p: (code, time.time()) for p, code in codes.items() if code}
            if failures or all(process.poll() is not None for process in self.started.values()):
                return {} if failures and self._over() else failures
            time.sleep(LOOK_SECONDS)

    def _over(self) -> bool:
        """Whether the run has come to its end, so that nobody needs a site that was lost after that."""
        there = Invitation.found(place(self.mailbox), secret())
        return there is not None and there.ended

    def _close(self) -> None:
        for process in self.started.values():
            process.terminate()
        until = time.monotonic() + CLOSING_SECONDS
        for process in self.started.values():
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, until - time.monotonic()))
            process.kill()


def _is_loss(exit_code: int) -> bool:
    return exit_code < 0 or exit_code == PeerLost.exit_code


def join_run(
    mailbox: str,
    site: int,
    *,
    timeout_seconds: float = TIMEOUT_SECONDS,
    each: Callable[[Event], None] = lambda event: None,
    begun: Callable[[Recipe], None] = lambda recipe: None,
) -> Columns:
    """Be one site of the run in a place, in this process; its recipe comes from there. Also for one that was lost, to come back.

    Parameters
    ----------
    site
        from 1; site 0 has the run folder, and begins the run (``lab run … --mailbox``).
    each, begun
        called with each event of the loop, and before that with the recipe.

    Raises
    ------
    RecipeError
        if there is no such site; if the recipe names code that is not the lab's own, which nobody but the user of this machine may name.
    PeerLost
        if another site did not answer in time.
    """
    check_timeout(timeout_seconds)
    there = Invitation.awaited(place(mailbox), secret(), timeout_seconds)
    if not 0 < site < there.processes:
        first = " (site 0 has the run folder: it begins the run, with lab run … --processes N --mailbox PLACE)" * (
            not site
        )
        sites = "only site 1" if there.processes == 2 else f"sites 1 to {there.processes - 1}"
        raise RecipeError(f"--site {site}: the run in mailbox {mailbox} has {sites} to join{first}")
    for what in ("method", "model", "data"):
        part = there.recipe.get(what)
        name = part.get("name") if isinstance(part, dict) else part
        if is_reference(name):
            raise RecipeError(
                f"{what} {name} is code that is not the lab's own, and a mailbox is no reason to run any: give the recipe here, "
                f"with lab run RECIPE --processes {there.processes} --mailbox {mailbox} --site {site}"
            )
    recipe = Recipe.recorded(there.recipe)
    begun(recipe)
    with _set(_environment(site, there.processes, mailbox)):
        return train(recipe, Path("runs") / recipe.id, each=each, timeout_seconds=timeout_seconds)


@contextlib.contextmanager
def _set(names: dict[str, str]) -> Iterator[None]:
    """This process's environment, with these names."""
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(names)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            os.environ.update({} if value is None else {name: value})
