"""The contribution of one layer to each response's gradient, in factored form until rows of it are needed.

A parameter is seen as a matrix of R rows and C columns (its last dimension; a vector is one row). T counts the places at which
a layer was applied to one response. `write` adds rows [low, high) of the N gradients of shape (R, C) to a buffer, `add_sum` adds
sum_n c_n gradient_n to one matrix; a contribution covers the responses from `first` on, because the head is applied to a few
responses at a time.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vjp, vmap
from torch.nn import functional as F
from torch.utils._pytree import tree_flatten, tree_unflatten
from transformers.pytorch_utils import Conv1D

SUM_ROWS = 2**24  # output gradients of a wide layer made at once for a sum


@dataclass
class Outer:
    """Gradient sum_t left_t right_t^T: a weight that multiplies its input."""

    left_NTR: Tensor
    right_NTC: Tensor
    first: int = 0
    shared: int = 0  # of the T: the first so many have the same right_NTC in every response

    @property
    def device(self) -> torch.device:
        return self.right_NTC.device

    @cached_property
    def shared_inputs(self) -> Tensor | None:
        """The inputs at the first `shared` places, (T, C); None where there are none or the responses' differ there."""
        shared, right_NTC = self.shared, self.right_NTC
        if not shared:
            return None
        prompt_TC = right_NTC[0, :shared]
        apart = (right_NTC[:, :shared] - prompt_TC).abs().amax()
        return prompt_TC if apart <= 1e3 * torch.finfo(right_NTC.dtype).eps * prompt_TC.abs().amax() else None

    def transposed(self) -> "Outer":
        return Outer(self.right_NTC, self.left_NTR, self.first)

    def write(self, out_NRC: Tensor, low: int, high: int, fresh: bool) -> None:
        add_outer(out_NRC, self.left_NTR[..., low:high], self.right_NTC, self.first, fresh)

    def add_sum(self, out_RC: Tensor, coefficients_N: Tensor) -> None:
        mine_N = coefficients_N[self.first : self.first + len(self.right_NTC)]
        own = self
        if (prompt_TC := self.shared_inputs) is not None:  # the prompt's tokens have one input for all responses
            left_TR = torch.einsum("n,ntr->tr", mine_N, self.left_NTR[:, : self.shared])
            out_RC.addmm_(left_TR.T, prompt_TC)
            own = Outer(self.left_NTR[:, self.shared :], self.right_NTC[:, self.shared :])
        n, t = own.left_NTR.any(-1).nonzero(as_tuple=True)
        out_RC.addmm_((own.left_NTR[n, t] * mine_N[n, None]).T, own.right_NTC[n, t])


@dataclass
class RecomputedOuter:
    """The same for a wide layer, whose output gradients are recomputed on demand: left_rows(low, high) gives (N, T, high - low)."""

    left_rows: Callable[[int, int], Tensor]
    right_NTC: Tensor
    first: int = 0

    @property
    def device(self) -> torch.device:
        return self.right_NTC.device

    def write(self, out_NRC: Tensor, low: int, high: int, fresh: bool) -> None:
        add_outer(out_NRC, self.left_rows(low, high), self.right_NTC, self.first, fresh)

    def add_sum(self, out_RC: Tensor, coefficients_N: Tensor) -> None:
        step = max(1, SUM_ROWS // self.right_NTC.shape[:2].numel())
        weighted_NTC = self.right_NTC * coefficients_N[self.first : self.first + len(self.right_NTC), None, None]
        for low in range(0, len(out_RC), step):
            high = min(low + step, len(out_RC))
            out_RC[low:high].addmm_(self.left_rows(low, high).flatten(0, 1).T, weighted_NTC.flatten(0, 1))


def add_outer(out_NRC: Tensor, left_NTr: Tensor, right_NTC: Tensor, first: int, fresh: bool) -> None:
    if fresh and len(right_NTC) == len(out_NRC):
        torch.bmm(left_NTr.mT, right_NTC, out=out_NRC)
        return
    if fresh:
        out_NRC.zero_()
    out_NRC[first : first + len(right_NTC)].baddbmm_(left_NTr.mT, right_NTC)


@dataclass
class Lookup:
    """Gradient sum_t e_{id_t} grad_t^T: an embedding table of which row id_t was looked up."""

    ids_NT: Tensor
    grad_NTC: Tensor
    first: int = 0

    @property
    def device(self) -> torch.device:
        return self.grad_NTC.device

    def write(self, out_NRC: Tensor, low: int, high: int, fresh: bool) -> None:
        if fresh:
            out_NRC.zero_()
        n, t = ((self.ids_NT >= low) & (self.ids_NT < high)).nonzero(as_tuple=True)
        out_NRC.index_put_((n + self.first, self.ids_NT[n, t] - low), self.grad_NTC[n, t], accumulate=True)

    def add_sum(self, out_RC: Tensor, coefficients_N: Tensor) -> None:
        weighted_NTC = self.grad_NTC * coefficients_N[self.first : self.first + len(self.grad_NTC), None, None]
        out_RC.index_add_(0, self.ids_NT.flatten(), weighted_NTC.flatten(0, 1))


@dataclass
class Dense:
    """The gradients themselves, for vectors and for layers without a known factored form."""

    grad_NRC: Tensor
    first: int = 0

    @property
    def device(self) -> torch.device:
        return self.grad_NRC.device

    def write(self, out_NRC: Tensor, low: int, high: int, fresh: bool) -> None:
        if fresh:
            out_NRC.zero_()
        out_NRC[self.first : self.first + len(self.grad_NRC)] += self.grad_NRC[:, low:high]

    def add_sum(self, out_RC: Tensor, coefficients_N: Tensor) -> None:
        out_RC += torch.einsum("n,nrc->rc", coefficients_N[self.first : self.first + len(self.grad_NRC)], self.grad_NRC)


Contribution = Outer | RecomputedOuter | Lookup | Dense
Rule = Callable[
    ..., dict[str, Contribution]
]  # of the layer, its input and its output's gradient, both (N, T, features)


def row_blocks(
    contributions: Sequence[Contribution],
    buffer: Tensor,
    shape: tuple[int, int, int],
    step: int,
    scale_RC: Tensor | None = None,
) -> Iterator[tuple[int, Tensor]]:
    """The sum of these contributions as (N, rows * C) blocks in one buffer, each with its first row; scaled elementwise."""
    n, rows, columns = shape
    for low in range(0, rows, step):
        high = min(low + step, rows)
        block_NRC = buffer[: n * (high - low) * columns].view(n, high - low, columns)
        for i, contribution in enumerate(contributions):
            contribution.write(block_NRC, low, high, fresh=i == 0)
        if scale_RC is not None:
            block_NRC *= scale_RC[low:high]
        yield low, block_NRC.flatten(1)


def as_matrix(shape: torch.Size) -> tuple[int, int]:
    """Rows and columns under which a parameter of this shape is handled."""
    return (shape.numel() // shape[-1], shape[-1]) if len(shape) > 1 else (1, shape.numel())


def linear(module: nn.Linear, x_NTC: Tensor, grad_NTR: Tensor) -> dict[str, Contribution]:
    return {"weight": Outer(grad_NTR, x_NTC), **bias_of(module, grad_NTR)}


def conv1d(module: Conv1D, x_NTR: Tensor, grad_NTC: Tensor) -> dict[str, Contribution]:
    return {"weight": Outer(x_NTR, grad_NTC), **bias_of(module, grad_NTC)}


def layer_norm(module: nn.LayerNorm, x_NTC: Tensor, grad_NTC: Tensor) -> dict[str, Contribution]:
    normal_NTC = F.layer_norm(x_NTC, module.normalized_shape, eps=module.eps)
    return {"weight": Dense((normal_NTC * grad_NTC).sum(1, keepdim=True)), **bias_of(module, grad_NTC)}


def bias_of(module: nn.Linear | Conv1D | nn.LayerNorm, grad_NTC: Tensor) -> dict[str, Contribution]:
    return {} if module.bias is None else {"bias": Dense(grad_NTC.sum(1, keepdim=True))}


def rms_norm(module: nn.Module, x_NTC: Tensor, grad_NTC: Tensor) -> dict[str, Contribution]:
    mean_square_NT1 = torch.linalg.vector_norm(x_NTC, dim=-1, keepdim=True).square() / x_NTC.shape[-1]
    inverse_NT1 = (mean_square_NT1 + rms_epsilon(module)).rsqrt()
    return {"weight": Dense(((x_NTC * grad_NTC).mT @ inverse_NT1).mT)}


def rms_epsilon(module: nn.Module) -> float:
    return getattr(module, "variance_epsilon", getattr(module, "eps", math.nan))


def is_rms_norm(module: nn.Module, x: Tensor, output: Tensor) -> bool:
    """Whether the layer did x / rms(x) * (weight + c) with c = 0 or 1, judged by its output for a few tokens.

    In float64 the answer is no: these layers round to float32 inside, and only the replay reproduces that.
    """
    epsilon, weight = rms_epsilon(module), getattr(module, "weight", None)
    if x.dtype == torch.float64 or not isinstance(epsilon, float) or not isinstance(weight, Tensor):
        return False
    if weight.shape != x.shape[-1:] or output.shape != x.shape:
        return False
    x, output = (y.detach().flatten(0, -2)[:: max(1, y[..., 0].numel() // 8)].double() for y in (x, output))
    expected = x * (x.square().mean(-1, keepdim=True) + epsilon).rsqrt()
    tolerance = 1e-4 if weight.dtype == torch.float32 else 3e-2
    return any(torch.allclose(expected * (weight.double() + c), output, rtol=tolerance, atol=tolerance) for c in (0, 1))


def embedding(module: nn.Embedding, ids_NT: Tensor, grad_NTC: Tensor) -> dict[str, Contribution]:
    if module.padding_idx is not None:  # autograd leaves this row without a gradient
        grad_NTC = grad_NTC * (ids_NT != module.padding_idx)[..., None]
    return {"weight": Lookup(ids_NT, grad_NTC)}


def scaled_embedding(module: nn.Embedding, ids_NT: Tensor, grad_NTC: Tensor) -> dict[str, Contribution]:
    return embedding(module, ids_NT, grad_NTC * scale_of(module))


def scale_of(module: nn.Module) -> float:
    return float(getattr(module, "embed_scale", math.nan))


def is_scaled_embedding(module: nn.Module, ids: Tensor, output: Tensor) -> bool:
    """Whether the layer looked up rows and multiplied them by its `embed_scale`, judged by its output for all tokens."""
    if not isinstance(module, nn.Embedding) or ids.is_floating_point() or output.shape[:-1] != ids.shape:
        return False
    expected = module.weight.detach()[ids] * scale_of(module)
    return torch.allclose(expected.float(), output.detach().float(), rtol=2e-2 if output.dtype.itemsize < 4 else 1e-5)


# Keyed by the function that runs, not by the class: a subclass with a forward of its own is another layer.
RULES: dict[Any, Rule] = {
    nn.Linear.forward: linear,
    Conv1D.forward: conv1d,
    nn.LayerNorm.forward: layer_norm,
    nn.Embedding.forward: embedding,
}


def rule_of(module: nn.Module) -> Rule | None:
    """The closed form for this layer by the code that it runs, or None."""
    if isinstance(module, nn.Embedding) and (module.max_norm is not None or module.scale_grad_by_freq):
        return None
    if isinstance(module, nn.LayerNorm) and len(module.normalized_shape) != 1:
        return None
    return RULES.get(getattr(module.forward, "__func__", None))


def rule_by_values(module: nn.Module, x: Tensor, output: Tensor) -> Rule | None:
    """The closed form for a layer with a single weight by its output for this input, or None."""
    if is_rms_norm(module, x, output):
        return rms_norm
    return scaled_embedding if is_scaled_embedding(module, x, output) else None


@dataclass
class Call:
    """One call of a layer: enough to run it again for each response alone, and the outputs that gradients arrive for.

    Tensor arguments whose first dimension is N, N times the sequence length, or that of an output, are cut by response; others
    are shared.
    """

    module: nn.Module
    arguments: Any
    is_output: list[bool]
    num_responses: int
    length: int

    def versions(self) -> list[int]:
        """Of its arguments: they change where one is overwritten in place."""
        return [x._version for x in tree_flatten(self.arguments)[0] if isinstance(x, Tensor)]

    def contributions(
        self, parameters: dict[str, Tensor], grads: list[Tensor], dtype: torch.dtype
    ) -> dict[str, Contribution]:
        """Gradient of each parameter of the layer for each response, by a vector-Jacobian product of the layer alone."""
        leaves, spec = tree_flatten(self.arguments)
        n = self.num_responses
        by_response_sizes = {n, n * self.length, *(g.shape[0] for g in grads)}
        cut = [isinstance(x, Tensor) and x.dim() > 0 and x.shape[0] in by_response_sizes for x in leaves]

        def by_response(x: Tensor) -> Tensor:
            return x.unflatten(0, (n, x.shape[0] // n))

        rows = [by_response(x) for x, c in zip(leaves, cut, strict=True) if c]
        grads = [by_response(g) for g in grads]

        def outputs(parameters: dict[str, Tensor], rows: list[Tensor]) -> tuple[Tensor, ...]:
            remaining = iter(rows)
            args, kwargs = tree_unflatten([next(remaining) if c else x for x, c in zip(leaves, cut, strict=True)], spec)
            produced, _ = tree_flatten(functional_call(self.module, parameters, args, kwargs))
            return tuple(x for x, wanted in zip(produced, self.is_output, strict=True) if wanted)

        def single(rows: list[Tensor], grads: list[Tensor]) -> dict[str, Tensor]:
            return vjp(lambda p: outputs(p, rows), parameters)[1](tuple(grads))[0]

        def alone(i: int) -> dict[str, Tensor]:
            leaves = {name: p.requires_grad_() for name, p in parameters.items()}
            with torch.enable_grad():
                produced = outputs(leaves, [x[i].detach() for x in rows])
                total = torch.stack([(y * g[i]).sum() for y, g in zip(produced, grads, strict=True)]).sum()
            if not total.requires_grad:  # the weight is used outside the layer's own call
                return {name: torch.zeros_like(p) for name, p in leaves.items()}
            return dict(
                zip(leaves, torch.autograd.grad(total, list(leaves.values()), materialize_grads=True), strict=True)
            )

        simple = not any(True for _ in self.module.children()) and all(p.dim() == 1 for p in parameters.values())
        if simple:  # norms and scales; what routes by its data (experts) cannot be vectorised
            result = vmap(single)(rows, grads)
        else:
            singles = [alone(i) for i in range(n)]
            result = {name: torch.stack([s[name] for s in singles]) for name in parameters}
        return {name: Dense(g.to(dtype).reshape(n, *as_matrix(g.shape[1:]))) for name, g in result.items()}
