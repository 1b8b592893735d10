"""Responses that begin with the same tokens: linear layers see the prompt once, and its inputs span few directions.

In a causal decoder every activation at a prompt token is the same for all responses; only the gradients that come back differ. So the
forward products of linear layers there are taken from one pass over the prompt alone, and a weight's gradient
sum_t b_nt a_t^T is split by the span of the T inputs a_t of the prompt, with an orthonormal basis Q (C, T):

    z_n = (z_n Q) Q^T + z_n (I - Q Q^T),    <z_n, z_m> = <z_n Q, z_m Q> + <z_n (I - Q Q^T), z_m (I - Q Q^T)>.

The first part has T columns in place of C, the second no prompt tokens.
"""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
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
    """x W^T + b whose first T columns are known, of the other places only those in `index_K`; the rest, padding, is zero.

    The gradient is that of the plain product.
    """

    @staticmethod
    def forward(
        ctx: Any, x_NLC: Tensor, weight_RC: Tensor, bias_R: Tensor | None, known_1TR: Tensor, index_K: Tensor
    ) -> Tensor:
        ctx.save_for_backward(weight_RC, index_K)
        ctx.shared = known_1TR.shape[1]
        out_NLR = x_NLC.new_zeros(*x_NLC.shape[:2], len(weight_RC))
        out_NLR[:, : ctx.shared] = known_1TR
        out_NLR.view(-1, len(weight_RC))[index_K] = F.linear(x_NLC.flatten(0, 1)[index_K], weight_RC, bias_R)
        return out_NLR

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        weight_RC, index_K = ctx.saved_tensors
        grad_NLR = grads[0]
        grad_x = grad_NLR.new_zeros(*grad_NLR.shape[:2], weight_RC.shape[1])
        grad_x[:, : ctx.shared] = grad_NLR[:, : ctx.shared] @ weight_RC
        grad_x.view(-1, weight_RC.shape[1])[index_K] = grad_NLR.flatten(0, 1)[index_K] @ weight_RC
        return grad_x, None, None, None, None


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

    def __init__(self, products: Mapping[Tensor, Known | None], shape: tuple[int, int], index_K: Tensor) -> None:
        super().__init__()
        self.products, self.shape, self.index_K = products, shape, index_K

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.linear and len(args) > 1 and args[0].dim() == 3 and args[0].shape[:2] == self.shape:
            known, version = self.products.get(args[1]) or (None, 0)
            bias = args[2] if len(args) > 2 else (kwargs or {}).get("bias")
            constant = not any(p is not None and p.requires_grad for p in (args[1], bias))
            if known is not None and known._version == version and constant:
                return _PrefixGiven.apply(args[0], args[1], bias, known, self.index_K)
        return func(*args, **(kwargs or {}))


def prompt_products(run_prompt: Callable[[], Any], attention_NL: Tensor, shared: int) -> AbstractContextManager[Any]:
    """A context in which linear layers take the columns of the prompt from `run_prompt()`, run once here, and leave padding out.

    For forward passes alone: autograd puts such contexts aside, so what runs again in a backward pass enters it anew.
    """
    with torch.no_grad(), _Recording() as record:
        run_prompt()
    within_NL = attention_NL.flip(1).cumsum(1).flip(1) > 0  # up to the last attended token
    within_NL[:, :shared] = False
    index_K = within_NL.flatten().nonzero().squeeze(1)
    return _Reusing(record.products, (attention_NL.shape[0], attention_NL.shape[1]), index_K)


def split_by_span(contribution: Outer) -> tuple[Outer, Outer] | None:
    """The two parts of a gradient whose first `shared` inputs are the same for all responses; None where they are not."""
    prompt_TC, right_NTC, shared = contribution.shared_inputs, contribution.right_NTC, contribution.shared
    if prompt_TC is None:
        return None
    basis_CQ = torch.linalg.qr(prompt_TC.T).Q
    along_NSQ = right_NTC[:, shared:] @ basis_CQ
    along_NTQ = torch.cat([(prompt_TC @ basis_CQ).expand(len(right_NTC), -1, -1), along_NSQ], 1)
    across_NSC = right_NTC[:, shared:] - along_NSQ @ basis_CQ.T
    return Outer(contribution.left_NTR, along_NTQ, contribution.first), Outer(
        contribution.left_NTR[:, shared:], across_NSC, contribution.first
    )
