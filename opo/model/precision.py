"""Precision of linear layers: float32, bfloat16 in the backward pass only (`bfloat16_backward`), or bfloat16 in both passes.

Two thirds of an update's arithmetic are the two matrix products in each linear layer's backward pass. In bfloat16 with
float32 sums they are about twice as fast where the processor has instructions for it. Log-probabilities, ratios and the
rollout-trainer mismatch are then those of float32; only the gradient is rounded, by less than 1 % of its norm. With
bfloat16 in both passes the sampler and the trainer round differently, by about 3e-2 nats per token.

On x86 processors float32 products go through oneDNN, which torch itself uses only for half precision: a tenth faster
than MKL on AMD.
"""

import platform
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from opo.names import Compute

ONEDNN = (
    platform.machine().lower() in ("x86_64", "amd64")
    and torch.backends.mkldnn.is_available()
    and hasattr(torch.ops.mkldnn, "_linear_pointwise")
)


def computing(compute: Compute, device: str) -> AbstractContextManager[Any]:
    """The context in which a forward pass, or sampling, uses this precision."""
    if compute == "bfloat16":
        return torch.autocast(device, torch.bfloat16)
    if compute == "bfloat16_backward":
        return LinearLayers(torch.bfloat16)
    return LinearLayers() if ONEDNN and device == "cpu" else nullcontext()


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """y = x W^T + b; `weight` may be a view and, where nothing is differentiated, one that `packed_weight` made."""
    differentiated = torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad)
    plain = x.device.type == "cpu" and x.dtype == weight.dtype == torch.float32 and x.numel() and not differentiated
    if ONEDNN and plain:
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return F.linear(x, weight, bias)


def in_float64(model: Any) -> Any:
    """The model itself, in float64. Mixtures of experts go through their experts one by one there: torch's grouped product has no float64."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    if getattr(base.config, "_experts_implementation", None) not in (None, "eager"):
        base.set_experts_implementation("eager")
    return model.double()


def packed_weight(weight: Tensor, rows: int) -> Tensor:
    """A copy of a float32 weight, laid out for `linear` with about this many rows of x; needs ONEDNN."""
    return torch.ops.mkldnn._reorder_linear_weight(weight.detach(), rows)


class LinearLayers(TorchFunctionMode):
    """Inside this context, float32 linear layers are `linear`, differentiated by `_Linear`: the same numbers with and without a gradient."""

    def __init__(self, backward_dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.backward_dtype = backward_dtype

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.linear:
            x, weight, bias = _operands(*args, **(kwargs or {}))
            if x.dtype == weight.dtype == torch.float32 and x.dim() > 1:
                differentiated = torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad)
                if not differentiated:
                    return linear(x, weight, bias)
                # rows outside of `_Linear`: what it gives must be no view of its own, which a model may not change in place
                rows = _Linear.apply(x.flatten(0, -2), weight, bias, self.backward_dtype)
                return rows.view(*x.shape[:-1], len(weight))
        return func(*args, **(kwargs or {}))


def _operands(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor | None]:
    return input, weight, bias


class _Linear(torch.autograd.Function):
    """y = x W^T + b in float32 for rows x; dx = dy W and dW = dy^T x in `dtype`, summed in float32."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.dtype = dtype
        return linear(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        need_x, need_weight, need_bias, _ = ctx.needs_input_grad
        low = grad.to(ctx.dtype)
        grad_x = linear(low, weight.to(ctx.dtype).t()).float() if need_x else None
        grad_weight = (low.t() @ x.to(ctx.dtype)).float() if need_weight else None
        return grad_x, grad_weight, grad.sum(0) if need_bias else None, None
