"""What the environment of a process says of the others: who launched it, as which of how many, on how many machines."""

from __future__ import annotations

import ipaddress
import os
import socket
from dataclasses import dataclass

from lab.ground.errors import RecipeError

STORE = "ISTHMUS_STORE"  # the file in which processes of one machine meet, where our own launcher started them
MAILBOX = "ISTHMUS_MAILBOX"  # the place in which sites leave messages for each other, where that is how they talk


@dataclass(frozen=True)
class Launched:
    """What the launcher says of this process: its rank and the number of processes and machines."""

    index: int  # of this process, from 0
    num: int  # processes
    local_index: int  # of those of this machine
    local_num: int | None  # processes of this machine, if the launcher says so
    address: str  # of the first machine
    port: int

    @property
    def first_here(self) -> bool:
        return self.local_index == 0

    @property
    def one_machine(self) -> bool:
        """Whether all processes are on this machine."""
        if STORE in os.environ or self.local_num is not None:
            return STORE in os.environ or self.local_num == self.num
        return is_loopback(self.address)

    def check_options(self, processes: int, restarts: int) -> None:
        """Raises RecipeError for options that are for our own launcher, and would mean nothing under another."""
        wrong = f"--restarts {restarts}" if restarts else f"--processes {processes}"
        if restarts or processes not in (1, self.num):
            raise RecipeError(
                f"{wrong} is for processes that the lab itself starts, but a launcher has started this one as one of {self.num}: "
                "leave it out, and tell the launcher (torchrun: --nproc-per-node, --max-restarts)"
            )


def several() -> bool:
    """Whether a launcher says that this is one of several processes. Cheap, and never fails."""
    return os.environ.get("WORLD_SIZE", "").strip() not in ("", "1")


def launched() -> Launched | None:
    """This process among several; None where it is alone.

    Raises
    ------
    RecipeError
        for an environment that says half of it, or what cannot be.
    """
    if not several():
        return None
    num = _number("WORLD_SIZE", 1, 1_000_000)
    missing = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if not os.environ.get(name, "").strip()]
    if missing:
        raise RecipeError(
            f"WORLD_SIZE={num} says that this is one of {num} processes, but {', '.join(missing)} "
            f"{'is' if len(missing) == 1 else 'are'} not set: for one process unset WORLD_SIZE, for several use "
            f"--processes {num}, or a launcher that sets all of them"
        )
    index = _number("RANK", 0, num - 1)
    local_num = _number("LOCAL_WORLD_SIZE", 1, num) if os.environ.get("LOCAL_WORLD_SIZE", "").strip() else None
    local = _number("LOCAL_RANK", 0, (local_num or num) - 1) if os.environ.get("LOCAL_RANK", "").strip() else index
    return Launched(index, num, local, local_num, os.environ["MASTER_ADDR"].strip(), _number("MASTER_PORT", 0, 65535))


def restarted() -> str | None:
    """``1 of 3``, where a launcher (torchelastic) has started the processes again; None the first time."""
    count = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    return None if count == "0" else f"{count} of {os.environ.get('TORCHELASTIC_MAX_RESTARTS')}"


def _number(name: str, least: int, most: int) -> int:
    text = os.environ[name].strip()
    if not (text.isascii() and text.isdigit() and least <= int(text) <= most):
        raise RecipeError(
            f"{name}={text!r} in the environment: a launcher sets it to a whole number from {least} to {most}; "
            "unset WORLD_SIZE to run one process"
        )
    return int(text)


def is_loopback(address: str) -> bool:
    """Whether an address or a host name is of the loopback; False for names that cannot be resolved."""
    try:
        found = {place[4][0] for place in socket.getaddrinfo(address, None, type=socket.SOCK_STREAM)}
        return all(ipaddress.ip_address(str(a).partition("%")[0]).is_loopback for a in found)
    except (OSError, ValueError, UnicodeError):
        return False
