"""What a module draws by itself: dropout and noise, from generators of its own instead of torch's global one."""

from __future__ import annotations

import functools
import sys
import threading
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.utils.checkpoint
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode, _pop_mode, _push_mode

from lab.ground.errors import LabError


class Draws(TorchDispatchMode):
    """Inside, whatever torch draws in this thread (dropout, noise) comes from generators of this seed, one a device.

    ``nn.Dropout`` and its like take no generator: they draw from torch's global one, which all threads share, those of a
    user's cells included. Here every operation that draws is given one of its own, and the global ones are neither read nor
    moved. A generator that a module hands in itself is left alone. On a CPU the numbers are those that the global generator
    would give after ``torch.manual_seed(seed)``.

    May be entered several times: the draws go on. ``forward`` and ``backward`` say where there were any.
    """

    def __init__(self, seed: int):
        super().__init__()
        self.seed, self.forward, self.backward = seed, False, False
        self.states: dict[torch.device, torch.Tensor] | None = None  # of what is computed again
        self._generators: dict[torch.device, torch.Generator] = {}

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # else the first operation of a process would import torch's compiler, which takes seconds

    # The parent's __enter__ and __exit__ also keep flags for all threads together, which several threads would leave wrong.

    def __enter__(self) -> Draws:
        _push_mode(self)
        _inside().append(self)
        return self

    def __exit__(self, *_: object) -> None:
        _inside().pop()
        _pop_mode()

    def __torch_dispatch__(
        self, func: OpOverload, types: object, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if not _may_draw(func):
            return func(*args, **kwargs)
        device, names = _device(args, kwargs), [a.name for a in func._schema.arguments]
        given = dict(zip(names, args, strict=False)) | kwargs
        if device.type == "meta" or given.get("generator") is not None or _cannot_drop(func, given):
            return func(*args, **kwargs)
        self._note()
        g = self.generator(device)
        if func is torch.ops.aten.native_dropout.default:
            return _native_dropout(*args, generator=g)
        if "generator" in names:
            return func(*args, **kwargs | {"generator": g})
        twin = _with_generator(func)
        if twin is not None:
            return twin(*args, **kwargs, generator=g)
        with self:  # several operations in one, some of which draw
            whole = func.decompose(*args, **kwargs)
        return whole if whole is not NotImplemented else self._lent(func, args, kwargs, device)

    def generator(self, device: torch.device) -> torch.Generator:
        if device not in self._generators:
            try:
                new = torch.Generator(device)
            except RuntimeError:  # a device that has none of its own: it draws from the CPU's
                new = torch.Generator()
            self._generators[device] = new.manual_seed(self.seed)
        return self._generators[device]

    def now(self) -> dict[torch.device, torch.Tensor]:
        """The states of all generators."""
        return {device: g.get_state() for device, g in self._generators.items()}

    def go_to(self, states: dict[torch.device, torch.Tensor]) -> None:
        """Draw on as from there."""
        for device, g in self._generators.items():
            if device in states:
                g.set_state(states[device])
            else:  # had not drawn yet
                g.manual_seed(self.seed)

    def _note(self) -> None:
        if torch._C._current_graph_task_id() == -1:  # no backward pass is going on in this thread
            self.forward = True
        elif self.states is None:
            self.backward = True
            if _is_checkpointed():
                raise LabError(
                    "the model draws random numbers (dropout) where torch.utils.checkpoint computes it again, and they would be "
                    "others: give checkpoint preserve_rng_state=False, context_fn=lab.ground.seeds.draws.same_draws"
                )

    def _lent(self, func: OpOverload, args: Sequence[Any], kwargs: dict[str, Any], device: torch.device) -> Any:
        """A kernel that takes no generator (fused attention on a GPU): the device's global one, seeded and put back."""
        lent = _global_generator(device)
        seed = torch.randint(2**62, (), generator=self.generator(torch.device("cpu")), dtype=torch.int64, device="cpu")
        with _LENDING:
            before = lent.get_state()
            try:
                lent.manual_seed(int(seed))
                return func(*args, **kwargs)
            finally:
                lent.set_state(before)


class _Again(AbstractContextManager[None]):
    """Inside, draws are those from these states on; afterwards they go on where they were. May be entered again and again."""

    def __init__(self, draws: Draws):
        self.draws, self.states = draws, draws.now()

    def __enter__(self) -> None:
        self.before, self.present = self.draws.states, self.draws.now()
        self.draws.states = self.states
        self.draws.go_to(self.states)
        self.draws.__enter__()

    def __exit__(self, *_: object) -> None:
        self.draws.__exit__()
        self.draws.go_to(self.present)
        self.draws.states = self.before


def same_draws() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """``context_fn`` for `torch.utils.checkpoint.checkpoint`: what is computed again draws what it drew the first time.

    Goes with ``preserve_rng_state=False``, since what that would set and put back is the global generator, in mid-run.
    """
    return nullcontext(), _Again(_inside()[-1]) if _inside() else nullcontext()


_THREAD = threading.local()
_LENDING = threading.Lock()


def _inside() -> list[Draws]:
    """Those that this thread is inside of."""
    if not hasattr(_THREAD, "inside"):
        _THREAD.inside = []
    return _THREAD.inside  # type: ignore[no-any-return]


@functools.cache
def _may_draw(func: OpOverload) -> bool:
    schema, tags = getattr(func, "_schema", None), getattr(func, "tags", ())
    return torch.Tag.nondeterministic_seeded in tags or any(
        a.name == "generator" for a in (schema.arguments if schema else ())
    )


def _cannot_drop(func: OpOverload, given: dict[str, Any]) -> bool:
    """Whether a dropout leaves all as it is."""
    if "dropout" not in str(func) and "dropout_p" not in given:
        return "attention" in str(func)  # left out: 0
    return given.get("dropout_p", given.get("p")) == 0 or given.get("train") is False


@functools.cache
def _with_generator(func: OpOverload) -> OpOverload | None:
    """``rand.generator`` for ``rand.default``: the same operation with this argument more."""
    names = [a.name for a in func._schema.arguments]
    for overload in func.overloadpacket.overloads():
        twin: OpOverload = getattr(func.overloadpacket, overload)
        theirs = [a.name for a in twin._schema.arguments]
        if "generator" in theirs and [name for name in theirs if name != "generator"] == names:
            return twin
    return None


def _device(args: Sequence[Any], kwargs: dict[str, Any]) -> torch.device:
    """Where an operation draws."""
    found = next((x.device for x in (*args, *kwargs.values()) if isinstance(x, torch.Tensor)), None)
    return found if found is not None else torch.device(kwargs.get("device") or "cpu")


def _native_dropout(
    x: torch.Tensor, p: float, train: bool | None, *, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """What is left of ``x``, scaled, and where it is left."""
    kept = torch.empty_like(x, dtype=torch.bool).bernoulli_(1 - p, generator=generator)
    return x * kept * (1 / (1 - p) if p < 1 else 0.0), kept


def _global_generator(device: torch.device) -> torch.Generator:
    if device.type == "cpu":
        return torch.default_generator
    module: Any = torch.get_device_module(device)
    if device.type == "mps":
        return module._get_default_mps_generator()  # type: ignore[no-any-return]
    index = module.current_device() if device.index is None else device.index
    return module.default_generators[index]  # type: ignore[no-any-return]


def _is_checkpointed() -> bool:
    """Whether `torch.utils.checkpoint` is computing something again in this thread."""
    frame: Any = sys._getframe()
    while frame is not None:
        if frame.f_code.co_filename == torch.utils.checkpoint.__file__:
            return True
        frame = frame.f_back
    return False
