"""In which precision linear layers multiply: float32, bfloat16 on the way back alone, or bfloat16 both ways.

Two thirds of an update's arithmetic are the two products of each linear layer's backward pass. Taken in bfloat16 with float32 sums
they are about twice as fast where the processor has instructions for it, and they leave log-probabilities, ratios and the certificate
as they are in float32: the gradient alone is rounded, by less than 1 % of its norm. In bfloat16 both ways the sampler and the trainer
round differently, by about 3e-2 nats a token.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

Compute = Literal["float32", "bfloat16_backward", "bfloat16"]


def computing(compute: Compute, device: str) -> AbstractContextManager[Any]:
    """The context of a forward pass, or of sampling, whose products are to be taken so."""
    if compute == "bfloat16":
        return torch.autocast(device, torch.bfloat16)
    return HalfBackward() if compute == "bfloat16_backward" else nullcontext()


class HalfBackward(TorchFunctionMode):
    """Linear layers of float32 that are called inside multiply in bfloat16 when their gradients are taken."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.linear and torch.is_grad_enabled():
            x, weight, bias = _operands(*args, **(kwargs or {}))
            if x.dtype == weight.dtype == torch.float32 and (x.requires_grad or weight.requires_grad):
                return _Linear.apply(x, weight, bias)
        return func(*args, **(kwargs or {}))


def _operands(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor | None]:
    return input, weight, bias


class _Linear(torch.autograd.Function):
    """y = x W^T + b in float32; dx = dy W and dW = dy^T x in bfloat16, summed in float32."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return F.linear(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        need_x, need_weight, need_bias = ctx.needs_input_grad
        rows = grad.flatten(0, -2)
        half = rows.bfloat16()
        grad_x = (half @ weight.bfloat16()).float().view(x.shape) if need_x else None
        grad_weight = (half.T @ x.flatten(0, -2).bfloat16()).float() if need_weight else None
        return grad_x, grad_weight, rows.sum(0) if need_bias else None
