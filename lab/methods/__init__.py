"""One paper, one file. To add a method: write its file and list it here; the laws in ``tests`` then cover it."""

from __future__ import annotations

import contextlib
import inspect
from typing import Any

from lab.config import checked
from lab.engine.state import Grad, Loss, Method, State
from lab.errors import RecipeError, one_of, shown
from lab.methods.ddp import DDP
from lab.methods.demo import DeMo
from lab.methods.des_loc import DESLOC
from lab.methods.diloco import DiLoCo
from lab.methods.fedex_lora import FedExLoRA
from lab.methods.fedit import FedIT
from lab.methods.ffa_lora import FFALoRA
from lab.methods.flexlora import FlexLoRA
from lab.methods.flora import FLoRA
from lab.methods.fomoe import FoMoE
from lab.methods.hetlora import HetLoRA
from lab.methods.local_adam import LocalAdam
from lab.methods.local_sgd import LocalSGD
from lab.methods.lordo import LoRDO
from lab.methods.mt_dao import MTDAO
from lab.methods.noloco import NoLoCo
from lab.methods.photon import Photon
from lab.methods.prelort import PreLort
from lab.methods.raflora import RaFLoRA
from lab.methods.sparta import SPARTA
from lab.methods.streaming_diloco import StreamingDiLoCo
from lab.methods.zero_padding import ZeroPadding

METHODS: dict[str, type[Method]] = {
    "ddp": DDP,
    "local_sgd": LocalSGD,
    "local_adam": LocalAdam,
    "diloco": DiLoCo,
    "des_loc": DESLOC,
    "mt_dao": MTDAO,
    "lordo": LoRDO,
    "photon": Photon,
    "streaming_diloco": StreamingDiLoCo,
    "noloco": NoLoCo,
    "sparta": SPARTA,
    "demo": DeMo,
    "fomoe": FoMoE,
    "prelort": PreLort,
    "fedit": FedIT,
    "zero_padding": ZeroPadding,
    "hetlora": HetLoRA,
    "flora": FLoRA,
    "flexlora": FlexLoRA,
    "ffa_lora": FFALoRA,
    "fedex_lora": FedExLoRA,
    "raflora": RaFLoRA,
}
FEDERATED = ("prelort", "fedit", "zero_padding", "hetlora", "flora", "flexlora", "ffa_lora", "fedex_lora", "raflora")


def method(spec: Any) -> Method:
    """A method from its name, from ``{"name": …, option: value}``, or as it is.

    Raises
    ------
    RecipeError
        for an unknown name or option, a value that is not allowed, or an object of a class that is not listed.
    """
    if isinstance(spec, str):
        spec = {"name": spec}
    if isinstance(spec, dict):
        options = dict(spec)
        name = options.pop("name", None)
        if name is None:
            raise RecipeError(f"method.name is missing: use one of {', '.join(METHODS)}")
        if not isinstance(name, str) or name not in METHODS:
            raise RecipeError(one_of("method", name, METHODS))
        return checked(METHODS[name], options, "method")
    if spec is None or isinstance(spec, bool | int | float | list | tuple | type):
        raise RecipeError(
            f'method = {shown(spec)} is not allowed: it is a name, or {{"name": …}} with options; use one of {", ".join(METHODS)}'
        )
    name_of(spec)
    return spec  # type: ignore[no-any-return]


def averaged_states(m: Method) -> tuple[str, ...]:
    """The states of which a method takes means (`lab.engine.comm.Communicator.mean`): those that a recipe's codecs can stand for.

    What a method only hands out, or gathers as it is, is not among them. Of a method that does not say (``averages``): its
    parameters, gradients and inner states.
    """
    own: tuple[str, ...] | None = getattr(m, "averages", None)
    return own if own is not None else ("params", "grads", *m.inner.state_names)  # type: ignore[attr-defined]


def name_of(m: Method) -> str:
    """Under which name a method is listed.

    Raises
    ------
    RecipeError
        for one of a class that is not, also where a parent of it is: a recipe would then name the parent.
    """
    name = next((name for name, cls in METHODS.items() if type(m) is cls), None)
    if name is None:
        own = type(m).__name__
        raise RecipeError(
            f"method {own} is not listed, so that no recipe can name it: list it under a name of its own, for example "
            f"lab.methods.METHODS[{own.lower()!r}] = {own}"
        )
    return name


def source_of(m: Method) -> str:
    """The source of a method's class where it is none of the lab's: two of one name may differ. Nothing for the lab's own."""
    found = []
    for cls in type(m).__mro__:
        if cls.__module__.split(".")[0] not in ("lab", "builtins"):
            for function in filter(inspect.isfunction, vars(cls).values()):
                with contextlib.suppress(OSError, TypeError):  # made by `dataclass`, or typed where nobody keeps it
                    found.append(inspect.getsource(function))
    return "".join(found)


__all__ = [
    "DDP",
    "DESLOC",
    "FEDERATED",
    "METHODS",
    "MTDAO",
    "SPARTA",
    "DeMo",
    "DiLoCo",
    "FFALoRA",
    "FLoRA",
    "FedExLoRA",
    "FedIT",
    "FlexLoRA",
    "FoMoE",
    "Grad",
    "HetLoRA",
    "LoRDO",
    "LocalAdam",
    "LocalSGD",
    "Loss",
    "Method",
    "NoLoCo",
    "Photon",
    "PreLort",
    "RaFLoRA",
    "State",
    "StreamingDiLoCo",
    "ZeroPadding",
    "averaged_states",
    "method",
    "name_of",
    "source_of",
]
