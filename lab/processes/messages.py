"""Messages as files: each says of which run it is, who sent it and as what, and has the hash of its content; nothing in it is executed.

::

    {"isthmus":1,"run":"8c1f…","from":2,"name":"all.17","bytes":5120,"of":"float64[640]","sha256":"…","hmac":"…"}
    5120 bytes

With a secret that all sites share, ``hmac`` is the HMAC-SHA256 (RFC 2104) of the line without it, and so of all that is said. Whoever
does not know the secret can then hold a run up, but not speak in it.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from dataclasses import dataclass
from typing import Any

VERSION = 1
HEAD_BYTES = 4096  # of the first line, at most


class Refused(ValueError):
    """Why a file is not the message that was waited for."""


class Unfit(Refused):
    """Why a message cannot be used, although it is that of this sender and name: another shape, other numbers, none at all."""


@dataclass(frozen=True)
class Seal:
    """What messages of a run are closed with.

    run
        its identity. None: of any run, for what tells of one.
    secret
        shared by all sites; None: messages are not signed.
    """

    run: str | None
    secret: bytes | None = None

    def close(self, sender: int, name: str, data: bytes, of: str | None = None) -> bytes:
        """Return the file of a message; ``of``: what numbers it has."""
        head: dict[str, Any] = {"isthmus": VERSION, "run": self.run, "from": sender, "name": name}
        head |= {"bytes": len(data)} | ({} if of is None else {"of": of})
        head |= {"sha256": hashlib.sha256(data).hexdigest()}
        if self.secret is not None:
            head["hmac"] = self._signed(head)
        return json.dumps(head, separators=(",", ":")).encode() + b"\n" + data

    def open(self, file: bytes, sender: int, name: str, num_bytes: int | None = None, of: str | None = None) -> bytes:
        """Return the content of a message, if it is that of this sender and name.

        Raises
        ------
        Refused
            for any other file: torn, foreign, of another run, not signed with this secret.
        Unfit
            for one that says that it has other numbers than ``of``, or another size than ``num_bytes``, and is whole.
        """
        head, line_bytes = self._head(file)
        said = head.pop("hmac", None)
        if self.secret is not None:
            if not isinstance(said, str):
                raise Refused("it is not signed")
            if not hmac.compare_digest(said.encode(), self._signed(head).encode()):
                raise Refused("it is not signed with the secret of this run")
        elif said is not None:
            raise Refused("it is signed, and this site was given no secret")
        if head.get("isthmus") != VERSION:
            raise Refused(f"it is a message of version {head.get('isthmus')!r}")
        if self.run is not None and head.get("run") != self.run:
            raise Refused("it is of another run")
        if (head.get("from"), head.get("name")) != (sender, name):
            raise Refused("it is another message")
        data, said = file[line_bytes:], head.get("of")
        if of is not None and said is not None and said != of:
            raise Unfit(f"it has {str(said)[:40]} and {of} was expected")
        if num_bytes is not None and head.get("bytes") != num_bytes:
            raise Unfit(f"it has {str(head.get('bytes'))[:20]} bytes and {num_bytes} were expected")
        if head.get("bytes") != len(data) or head.get("sha256") != hashlib.sha256(data).hexdigest():
            raise Refused("its content does not match its hash")
        return data

    def _head(self, file: bytes) -> tuple[dict[str, Any], int]:
        end = file.find(b"\n", 0, HEAD_BYTES)
        try:
            head = json.loads(file[:end]) if end >= 0 else None
        except (ValueError, RecursionError):
            head = None
        if not isinstance(head, dict):
            raise Refused("it is no message")
        return head, end + 1

    def _signed(self, head: dict[str, Any]) -> str:
        assert self.secret is not None
        line = json.dumps(head, separators=(",", ":"), sort_keys=True).encode()
        return hmac.new(self.secret, line, hashlib.sha256).hexdigest()
