"""``python -m lab``: the ``lab`` command, also as one process of several (``accelerate launch … -m lab run …``)."""

from __future__ import annotations

import os
import sys
import traceback

from lab.cli import main
from lab.processes.environment import several


def code_of(left: SystemExit) -> int:
    return left.code if isinstance(left.code, int) else 0 if left.code is None else 1


if not several():
    main()
code = 1
try:
    main()
except SystemExit as left:
    code = code_of(left)
except BaseException:
    traceback.print_exc()
# Gloo's threads may abort or hold up an interpreter that is taken down in order (pytorch/pytorch#179291).
sys.stdout.flush()
sys.stderr.flush()
os._exit(code)
