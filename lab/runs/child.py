"""Processes that the lab starts are this very lab, whatever lies in the working directory.

``python -m lab`` looks into the working directory first: a ``lab.py``, ``torch.py`` or ``json.py`` that somebody keeps there would run
in place of the real one. So the lab starts this file by its path, and it runs one of the modules of this very package.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import importlib.util
import os
import runpy
import sys
from collections.abc import Iterator
from pathlib import Path


def command(module: str, *arguments: str) -> list[str]:
    """Return the command that runs a module of the lab in a process of its own, as ``python -m`` would: ``command("lab", "run", "des_loc")``."""
    return [sys.executable, "-P", __file__, module, *arguments]


def environment() -> dict[str, str]:
    """This process's environment for such a process: with its PYTHONPATH, but for empty entries, which mean the working directory."""
    env = dict(os.environ)
    return env | _python_path(env.pop("PYTHONPATH", None))


def quick_() -> None:
    """Let this process search for cycles of garbage seldom, and not at its end, where everything goes anyway.

    Both are a third of the time that it takes to import the lab and to end: with torch there are hundreds of thousands of objects,
    and none of them is garbage.
    """
    gc.set_threshold(20_000)
    atexit.register(gc.freeze)


@contextlib.contextmanager
def directory_last() -> Iterator[str]:
    """Kernels that start meanwhile look into their working directory after all else: a notebook's helpers are found, and nothing more.

    Gives the line of code that each of them runs first.
    """
    own = {name: os.environ.get(name) for name in ("PYTHONSAFEPATH", "PYTHONPATH")}
    os.environ["PYTHONSAFEPATH"] = "1"
    os.environ.pop("PYTHONPATH", None)
    os.environ.update(_python_path(own["PYTHONPATH"]))
    line = "__import__('sys').path.append('')"
    if own["PYTHONSAFEPATH"] is None:  # not for what cells start
        line += "; del __import__('os').environ['PYTHONSAFEPATH']"
    try:
        yield line
    finally:
        for name, value in own.items():
            os.environ.pop(name, None)
            os.environ.update({} if value is None else {name: value})


def _python_path(own: str | None) -> dict[str, str]:
    entries = [entry for entry in (own or "").split(os.pathsep) if entry]
    return {"PYTHONPATH": os.pathsep.join(entries)} if entries else {}


def _run() -> None:
    quick_()
    here = Path(__file__).parents[1]
    spec = importlib.util.spec_from_file_location("lab", here / "__init__.py", submodule_search_locations=[str(here)])
    assert spec is not None
    assert spec.loader is not None
    sys.modules["lab"] = lab = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(lab)
    del sys.argv[0]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    _run()
