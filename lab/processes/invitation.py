"""What a place says of the run in it: its identity, how many sites it has, and its recipe, as data that nothing executes."""

from __future__ import annotations

import json
import os
import secrets
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from lab.ground.errors import Damaged, LabError, RecipeError, plain
from lab.processes.messages import Refused, Seal
from lab.processes.places import Place

FILE = "run"
SECRET = "ISTHMUS_SECRET"  # the environment variable with what sites sign with
MOST_BYTES = 1 << 24


@dataclass(frozen=True)
class Invitation:
    run: str  # its identity: another one each time that a run begins anew
    processes: int
    recipe: Mapping[str, Any]
    begins: int | None = None  # after which step of an earlier one
    ended: bool = False
    deadline_seconds: float | None = None  # after which the run goes on without a site; None: all wait

    @staticmethod
    def new(
        processes: int, recipe: Mapping[str, Any], begins: int | None = None, deadline_seconds: float | None = None
    ) -> Invitation:
        return Invitation(secrets.token_hex(8), processes, recipe, begins, deadline_seconds=deadline_seconds)

    def over(self) -> Invitation:
        """The same, of a run that has ended."""
        return replace(self, ended=True)

    def put(self, place: Place, secret: bytes | None) -> None:
        """Put it in the place of what is there.

        Raises
        ------
        RecipeError
            if the place cannot be written to.
        """
        try:
            place.put(FILE, Seal(None, secret).close(0, FILE, json.dumps(vars(self)).encode()), lasting=True)
        except Exception as error:  # whatever a file system behind a URL raises
            raise RecipeError(
                f"mailbox {place} cannot be written to ({type(error).__name__}: {error}): give a folder or a URL that can"
            ) from None

    @staticmethod
    def found(place: Place, secret: bytes | None) -> Invitation | None:
        """What is there; None where nothing is.

        Raises
        ------
        RecipeError
            if it is no invitation, or not signed with this secret.
        """
        try:
            raw = place.get(FILE, MOST_BYTES)
            return None if raw is None else _parsed(json.loads(Seal(None, secret).open(raw, 0, FILE)))
        except (Refused, Damaged, RecursionError, ValueError, TypeError, KeyError) as why:
            reason = str(why) if isinstance(why, Refused | Damaged) else "it is no message of this version"
            raise RecipeError(
                f"the file {FILE!r} in mailbox {place} does not say which run is there ({reason}): give the secret of that run "
                "(ISTHMUS_SECRET), another place, or remove the file"
            ) from None
        except LabError:
            raise
        except Exception as error:
            raise LabError(f"mailbox {place} cannot be read ({type(error).__name__}: {error})") from None

    @staticmethod
    def awaited(place: Place, secret: bytes | None, timeout_seconds: float) -> Invitation:
        """That of a run that has not ended, as soon as it is there.

        Raises
        ------
        LabError
            if it does not come in time.
        """
        until, wait, told = time.monotonic() + timeout_seconds, place.first_seconds, False
        while (found := Invitation.found(place, secret)) is None or found.ended:
            if time.monotonic() > until:
                there = "no run" if found is None else "only a run that has ended"
                raise LabError(
                    f"there is {there} in mailbox {place} after {timeout_seconds:g} s: begin one with lab run … --processes N "
                    f"--mailbox {place}"
                )
            if not told:
                tell(f"no run in mailbox {place} yet: waiting for one, up to {timeout_seconds:g} s")
                told = True
            time.sleep(wait)
            wait = min(2 * wait, place.most_seconds)
        return found


def tell(line: str) -> None:
    """A line to who has started this site."""
    print(f"lab: {plain(line)}", file=sys.stderr, flush=True)


def _parsed(said: Any) -> Invitation:
    run, processes, recipe, begins, ended = (said[k] for k in ("run", "processes", "recipe", "begins", "ended"))
    right = (
        isinstance(run, str) and len(run) == 16 and run.isalnum() and run.isascii()
    )  # it becomes the name of a folder
    if not (right and type(processes) is int and 1 < processes < 10_000 and isinstance(recipe, dict)):
        raise ValueError
    seconds = said.get("deadline_seconds")
    if seconds is not None and not (type(seconds) in (int, float) and 0 < seconds < 1e6):
        raise ValueError
    return Invitation(run, processes, recipe, begins if type(begins) is int else None, ended is True, seconds)


def secret() -> bytes | None:
    """What sites sign with, from this process's environment. Raises RecipeError for one that could be guessed."""
    said = os.environ.get(SECRET)
    if said is None:
        return None
    if len(said.encode()) < 16:
        raise RecipeError(f"{SECRET} must have 16 characters or more, since whoever guesses it can speak in the run")
    return said.encode()
