"""What a run shares with everybody else in its process, and neither reads nor leaves changed.

A notebook's kernel has one working directory, one default dtype, one number of threads, one global generator; its cells may be
in inference mode, on another default device, under autocast. None of it may decide a run's numbers, and a run that goes on
in the background must not disturb a cell that uses them. So values have a dtype wherever they are made, draws have generators
(`lab.ground.seeds`), names of files mean the working directory in which a run began (`lab.ground.files`), and what belongs to a thread is
set aside while that thread works for a run.
"""

from __future__ import annotations

import ctypes
import os
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import TypeVar

import torch

T = TypeVar("T")

# --- threads, modes --------------------------------------------------------------------------------------------------

_COUNTING = threading.Lock()


def _library() -> tuple[Callable[[int], object], ...]:
    """What sets the threads of OpenMP, and of MKL where there is one, for the calling thread; nothing where it cannot be found."""
    kind = {"linux": "so", "darwin": "dylib"}.get(sys.platform)
    try:
        torch_cpu = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / f"libtorch_cpu.{kind}"))
        found = torch_cpu.omp_set_num_threads, getattr(torch_cpu, "MKL_Set_Num_Threads_Local", None)
    except (OSError, AttributeError):
        return ()
    return tuple(function for function in found if function is not None)


def set_threads_here(num: int) -> None:
    """Intra-op threads of this thread alone; all others keep theirs, also those that are still to come.

    `torch.set_num_threads` is for the thread that calls it, and for all that use torch for the first time later on. Where
    its libraries cannot be asked themselves, those to come get theirs back a moment later.
    """
    torch.get_num_threads()  # a thread that never asked would take, at its first operation, what is for those to come
    for set_here in _LIBRARY:
        set_here(num)
    if torch.get_num_threads() == num:
        return
    with _COUNTING:
        to_come = in_a_new_thread(torch.get_num_threads)
        torch.set_num_threads(num)
        if to_come != num:
            in_a_new_thread(partial(torch.set_num_threads, to_come))


_LIBRARY = _library()


def in_a_new_thread(function: Callable[[], T]) -> T:
    found: list[T] = []
    thread = threading.Thread(target=lambda: found.append(function()))
    thread.start()
    thread.join()
    return found[0]


def one_core_() -> None:
    """This thread computes on one core from now on: more would fight over the cores with other workers."""
    set_threads_here(1)


@contextmanager
def one_core() -> Iterator[None]:
    """Inside, this thread computes on one core."""
    before = torch.get_num_threads()
    if before == 1:
        yield
        return
    set_threads_here(1)
    try:
        yield
    finally:
        set_threads_here(before)


class isolated(AbstractContextManager[None]):
    """Context manager: this thread computes with default settings (one core, gradients on, no autocast, default device CPU).

    The trainer enters it for every event, so it costs nothing where the settings are the default ones already.
    ``one_core=False``: with the cores that it has, as in a loop that is somebody's own.
    """

    def __init__(self, one_core: bool = True):
        self.one_core = one_core

    def __enter__(self) -> None:
        self.imported = [name in sys.modules for name in _LEAVE]
        self.aside = ExitStack()
        if torch.is_inference_mode_enabled() or not torch.is_grad_enabled():
            self.aside.enter_context(torch.inference_mode(False))
            self.aside.enter_context(torch.enable_grad())
        for kind in ("cpu", "cuda", "mps"):
            if torch.is_autocast_enabled(kind):
                self.aside.enter_context(torch.autocast(kind, enabled=False))
        # A default device is one of the modes on this stack; to ask for it takes longer than all else here.
        if torch._C._len_torch_function_stack() and torch.get_default_device().type != "cpu":
            self.aside.enter_context(torch.device("cpu"))
        if self.one_core and torch.get_num_threads() != 1:
            self.aside.enter_context(one_core())

    def __exit__(self, *error: object) -> None:
        self.aside.close()
        _tidy(self.imported)


# What torch imports when an operation first needs it (in dry runs, under vmap), and what that sets for all.
_LEAVE: dict[str, Callable[[], object]] = {
    "sympy": lambda: [warnings.filters.remove(f) for f in [*warnings.filters] if f[2].__module__.startswith("sympy.")],  # type: ignore[attr-defined]
    "torch._inductor.runtime.cache_dir_utils": lambda: os.environ.pop("TORCHINDUCTOR_CACHE_DIR", None),
}


def _tidy(imported: list[bool]) -> None:
    """Undo what was set by modules that were imported meanwhile."""
    for (name, undo), before in zip(_LEAVE.items(), imported, strict=True):
        if not before and name in sys.modules:
            undo()
