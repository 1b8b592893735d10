"""Responses that begin with the same tokens: linear layers see the prompt once, and its inputs span few directions.

In a causal decoder every activation at a prompt token is the same for all responses; only the gradients that come back differ. So the
forward products of linear layers there are taken from one pass over the prompt alone, and a weight's gradient
sum_t b_nt a_t^T is split by the span of the T inputs a_t of the prompt, with an orthonormal basis Q (C, T):

    z_n = (z_n Q) Q^T + z_n (I - Q Q^T),    <z_n, z_m> = <z_n Q, z_m Q> + <z_n (I - Q Q^T), z_m (I - Q Q^T)>.

The first part has T columns in place of C, the second no prompt tokens.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from analysis.score_gram.inputs import Batch
from analysis.score_gram.layers import Outer


def common_prefix(batch: Batch) -> int:
    """Tokens that all responses begin with; 0 where there is one response."""
    if len(batch) < 2:
        return 0
    same_L = (batch.input_ids == batch.input_ids[:1]).all(0) & batch.attention_mask.bool().all(0)
    return int(same_L.long().cumprod(0).sum())


class _PrefixGiven(torch.autograd.Function):
    """x W^T + b whose first T columns are known; the gradient is that of the plain product."""

    @staticmethod
    def forward(ctx: Any, x_NLC: Tensor, weight_RC: Tensor, bias_R: Tensor | None, known_1TR: Tensor) -> Tensor:
        ctx.save_for_backward(weight_RC)
        rest = F.linear(x_NLC[:, known_1TR.shape[1] :], weight_RC, bias_R)
        return torch.cat([known_1TR.expand(len(x_NLC), -1, -1), rest], 1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (weight_RC,) = ctx.saved_tensors
        return grads[0] @ weight_RC, None, None, None


Known = tuple[Tensor, int]  # a product and its version, by which one that is overwritten in place is known


class _Recording(TorchFunctionMode):
    """Keeps what F.linear makes of a prompt (1, T, C), by weight; a weight that is used twice is not kept."""

    def __init__(self) -> None:
        super().__init__()
        self.products: dict[Tensor, Known | None] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        if func is F.linear and len(args) > 1 and args[0].dim() == 3:
            self.products[args[1]] = None if args[1] in self.products else (output, output._version)
        return output


class _Reusing(TorchFunctionMode):
    """F.linear on (N, L, C) takes its first columns from the record."""

    def __init__(self, products: Mapping[Tensor, Known | None], shape: tuple[int, int]) -> None:
        super().__init__()
        self.products, self.shape = products, shape

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.linear and len(args) > 1 and args[0].dim() == 3 and args[0].shape[:2] == self.shape:
            known, version = self.products.get(args[1]) or (None, 0)
            bias = args[2] if len(args) > 2 else (kwargs or {}).get("bias")
            constant = not any(p is not None and p.requires_grad for p in (args[1], bias))
            if known is not None and known._version == version and constant:
                return _PrefixGiven.apply(args[0], args[1], bias, known)
        return func(*args, **(kwargs or {}))


@contextmanager
def prompt_products(run_prompt: Callable[[], Any], shape: tuple[int, int]) -> Iterator[None]:
    """Inside, linear layers applied to `shape` = (responses, tokens) take the prompt's columns from `run_prompt()`, run once here."""
    with torch.no_grad(), _Recording() as record:
        run_prompt()
    with _Reusing(record.products, shape):
        yield


def split_by_span(use: Outer, shared: int) -> tuple[Outer, Outer] | None:
    """The two parts of a gradient whose first `shared` inputs are the same for all responses; None where they are not."""
    prompt_TC, right_NTC = use.right_NTC[0, :shared], use.right_NTC
    apart = (right_NTC[:, :shared] - prompt_TC).abs().amax()
    if not apart <= 1e3 * torch.finfo(right_NTC.dtype).eps * prompt_TC.abs().amax():
        return None
    basis_CQ = torch.linalg.qr(prompt_TC.T).Q
    along_NTQ = right_NTC @ basis_CQ
    across_NSC = right_NTC[:, shared:] - along_NTQ[:, shared:] @ basis_CQ.T
    return Outer(use.left_NTR, along_NTQ, use.first), Outer(use.left_NTR[:, shared:], across_NSC, use.first)
