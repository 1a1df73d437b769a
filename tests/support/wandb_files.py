"""The files that Weights & Biases writes offline: a log as of LevelDB, each record a message of its own protocol."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

BLOCK, HEAD = 32768, 7  # bytes; a head is a checksum, a length and whether the record goes on


def records(file: Path) -> list[Any]:
    """All whole records of a file."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, at, whole, out = file.read_bytes(), HEAD, b"", []
    while at + HEAD <= len(data):
        if BLOCK - at % BLOCK < HEAD:  # no room for a head: the rest of a block is empty
            at += BLOCK - at % BLOCK
            continue
        _, length, kind = struct.unpack("<IHB", data[at : at + HEAD])
        if at + HEAD + length > len(data):  # it is being written
            break
        whole += data[at + HEAD : at + HEAD + length]
        at += HEAD + length
        if kind in (1, 4):  # all of it, or the last part
            out.append(Record.FromString(whole))
            whole = b""
    return out
