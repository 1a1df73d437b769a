"""All of them: ``make bench``, or some: ``python -m bench fleet start``."""

from __future__ import annotations

import importlib
import sys

ALL = (
    "fleet",
    "scaling",
    "memory",
    "start",
    "dry",
    "experts",
    "nested",
    "live",
    "watching",
    "page",
    "board",
    "real_ddp",
    "compute",
    "track",
    "attach",
)

for name in sys.argv[1:] or ALL:
    importlib.import_module(f"bench.{name}").main()
