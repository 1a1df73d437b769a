"""A device that is none: its tensors lie in main memory, but to torch they are on ``far:0``.

On a machine without a GPU it shows what would fail on one: a tensor left on the CPU that meets one on the device, numbers
read where they are not, a generator of the wrong device. Every operation on far tensors is done by the CPU's own kernel, so a run
on ``far`` has the numbers of the same run on the CPU; an operation that mixes devices is refused as on a GPU.

python -m tests.support.fake_device FOLDER, with ACCELERATE_TORCH_DEVICE=far:0, runs `cases.ON_A_DEVICE` there. What was begun is resumed.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import return_and_correct_aliasing
from torch.utils._pytree import tree_flatten, tree_map
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

from lab.runs.folder import RunFolder
from lab.runs.trainer import Trainer
from tests.support.cases import ON_A_DEVICE
from tests.support.recipes import corpus
from tests.support.stories import tell

_setup_privateuseone_for_python_backend("far")
FAR = torch.device("far:0")
aten = torch.ops.aten
BETWEEN = (aten.copy_.default, aten._to_copy.default)  # what may move numbers between devices
BY_INDEX = (aten.index.Tensor, aten.index_put_.default, aten.index_put.default, aten._index_put_impl_.default)


class Far(Tensor):
    raw: Tensor

    @staticmethod
    def __new__(cls, raw: Tensor) -> Far:
        return torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined, no-any-return]
            cls,
            raw.size(),
            strides=raw.stride(),
            storage_offset=raw.storage_offset(),
            dtype=raw.dtype,
            device=FAR,
            requires_grad=raw.requires_grad,
        )

    def __init__(self, raw: Tensor):
        self.raw = raw

    def __repr__(self, **_: Any) -> str:
        return f"Far({self.raw!r})"

    def tolist(self) -> Any:
        return self.raw.tolist()

    def data_ptr(self) -> int:
        return self.raw.data_ptr()

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        tensors = [x for x in tree_flatten((args, kwargs))[0] if isinstance(x, Tensor)]
        both = tensors[:1] if func in BY_INDEX else tensors  # an index may lie on the CPU, as with CUDA
        near = [x for x in both if not isinstance(x, Far) and x.dim()]
        if near and func not in BETWEEN:
            raise RuntimeError(f"{func}: a tensor {list(near[0].shape)} on the CPU meets tensors on {FAR}")
        to_cpu = kwargs.get("device") is not None and torch.device(kwargs["device"]).type == "cpu"
        if kwargs.get("device") is not None:
            kwargs["device"] = torch.device("cpu")
        plain_args, plain = tree_map(lambda x: x.raw if isinstance(x, Far) else x, (args, kwargs))
        out = func(*plain_args, **plain)
        if func is aten.copy_.default and not isinstance(args[0], Far):
            return args[0]
        if to_cpu:
            return out
        out = tree_map(lambda x: Far(x) if isinstance(x, Tensor) else x, out)
        return return_and_correct_aliasing(func, args, kwargs, out)


def _empty(
    size: Any,
    dtype: Any = None,
    layout: Any = None,
    device: Any = None,
    pin_memory: Any = None,
    memory_format: Any = None,
) -> Tensor:
    return Far(torch.empty(size, dtype=dtype or torch.get_default_dtype(), device="cpu"))


def _empty_strided(
    size: Any, stride: Any, dtype: Any = None, layout: Any = None, device: Any = None, pin_memory: Any = None
) -> Tensor:
    return Far(torch.empty_strided(size, stride, dtype=dtype or torch.get_default_dtype(), device="cpu"))


def _copy_from(source: Tensor, to: Tensor, non_blocking: bool = False) -> Tensor:
    (to.raw if isinstance(to, Far) else to).copy_(source.raw if isinstance(source, Far) else source)
    return to


_library = torch.library.Library("aten", "IMPL")
_library.impl("empty.memory_format", _empty, "PrivateUse1")
_library.impl("empty_strided", _empty_strided, "PrivateUse1")
_library.impl("_copy_from", _copy_from, "PrivateUse1")
_others = torch.library.Library("_", "IMPL")
_others.fallback(lambda func, *args, **kwargs: Far.__torch_dispatch__(func, (), args, kwargs), "PrivateUse1")


def main(out: Path) -> None:
    for name, recipe in ON_A_DEVICE.items():
        trainer = Trainer(recipe, corpus=corpus())
        assert {x.device for x in (*trainer.fleet.params.blocks, *trainer.fleet.constants.values())} == {FAR}
        tell(trainer.events(RunFolder(out / name)), out, name)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
