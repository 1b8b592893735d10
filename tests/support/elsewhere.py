"""A device that stands in for a GPU where there is none: this machine's memory under another device's name.

Its tensors compute on the CPU, with the numbers of the CPU, and refuse what a GPU refuses: an operation on tensors of two devices, numpy,
a generator of the CPU. So a tensor left on the wrong device is found on any machine, in the code as it really runs. What it cannot
show is how a GPU rounds, how fast it is, and what its memory holds.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.backend_registration import _DummyBackendModule, _setup_privateuseone_for_python_backend

NAME = "elsewhere"
COPYING = {"aten::copy_", "aten::_to_copy"}  # from device to device
INDEXING = {
    "aten::index",
    "aten::index_put",
    "aten::index_put_",
    "aten::_index_put_impl_",
}  # CUDA takes indices of the CPU


@contextmanager
def elsewhere() -> Iterator[str]:
    """The device's name; it exists in here alone."""
    if not hasattr(torch, NAME):  # registered once for the process
        _setup_privateuseone_for_python_backend(NAME, backend_module=_Module())
    lifting, swapping = torch._C._only_lift_cpu_tensors(), torch.__future__.get_swap_module_params_on_conversion()
    torch._C._set_only_lift_cpu_tensors(
        True
    )  # torch.tensor(..., device=...): made on the CPU, then copied where we see it
    torch.__future__.set_swap_module_params_on_conversion(
        True
    )  # Module.to keeps tied parameters tied, as it does for a GPU
    try:
        with _Dispatch():
            yield NAME
    finally:
        torch._C._set_only_lift_cpu_tensors(lifting)
        torch.__future__.set_swap_module_params_on_conversion(swapping)


class _Module(_DummyBackendModule):
    """What `torch.elsewhere` is."""

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16]


class _Elsewhere(Tensor):
    """A tensor of that device; `inner`, of the CPU, holds its numbers."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> Any:
        made = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls, inner.size(), inner.stride(), inner.storage_offset(), dtype=inner.dtype, device=torch.device(NAME, 0)
        )
        made.inner = inner
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})

    def data_ptr(self) -> int:
        return self.inner.data_ptr()

    def untyped_storage(self) -> torch.UntypedStorage:
        return self.inner.untyped_storage()

    def storage(self) -> Any:
        return self.inner.storage()

    def tolist(self) -> Any:
        return self.inner.tolist()

    def numpy(self, *, force: bool = False) -> Any:
        raise TypeError(f"can't convert a tensor of {self.device} to numpy; copy it to the CPU first")

    def __repr__(self, *_: Any, **__: Any) -> str:
        return f"{self.inner!r} elsewhere"

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        copied = _Elsewhere(self.inner.detach().clone()).requires_grad_(self.requires_grad)
        if isinstance(self, torch.nn.Parameter):
            copied = torch.nn.Parameter(copied, self.requires_grad)
        return memo.setdefault(id(self), copied)


class _Dispatch(TorchDispatchMode):
    """Catches what makes tensors there, in which none of them takes part yet."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """The operation on the CPU, its results where they belong; RuntimeError where a GPU would refuse."""
    if (
        torch.is_inference_mode_enabled()
    ):  # compound operations arrive whole, and only their parts name devices as we read them
        with _Dispatch():
            parts = func.decompose(*args, **kwargs)
        if parts is not NotImplemented:
            return parts
    name, tensors = func._schema.name, [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
    here = [x for x in tensors if isinstance(x, _Elsewhere)]
    target = torch.device(kwargs["device"]).type == NAME if kwargs.get("device") is not None else bool(here)
    if name in INDEXING:
        if here and not isinstance(args[0], _Elsewhere):
            raise RuntimeError(f"{func}: indices should be on the CPU or on the device of the indexed tensor (cpu)")
        tensors = [x for x in tree_leaves((args[0], args[2:], kwargs)) if isinstance(x, Tensor)]
    if here and name not in COPYING and any(x.dim() and not isinstance(x, _Elsewhere) for x in tensors):
        raise RuntimeError(f"{func}: expected all tensors to be on one device, found {NAME} and cpu")
    if target and kwargs.get("generator") is not None:
        raise RuntimeError(f"{func}: expected a generator of {NAME}, found one of the CPU")
    if "device" in kwargs:
        kwargs = kwargs | {"device": torch.device("cpu")}
    args, kwargs = tree_map(lambda x: x.inner if isinstance(x, _Elsewhere) else x, (args, kwargs))
    wrapped = {id(x.inner): x for x in here}  # what an operation in place returns is what it was given

    def back(x: Any) -> Any:
        if not target or not isinstance(x, Tensor):
            return x
        return wrapped[id(x)] if id(x) in wrapped else _Elsewhere(x)

    return tree_map(back, func(*args, **kwargs))
