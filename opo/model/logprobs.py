"""Log-probabilities, entropies and logit energies of sampled tokens, in memory that does not grow with positions x vocabulary.

Legend: M response positions laid end to end, D hidden units, V vocabulary. The logits (M, V) are the largest tensor of
a plain training step. Here they are computed one tile at a time in the forward pass (with a running log-sum-exp) and
again in the backward pass, so that memory is that of the hidden states and of the head's gradient. Logits of a
micro-batch that are few (`KEPT`) are kept for the backward pass.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from opo.errors import UserError
from opo.model.forward import decoder_of, evaluating
from opo.model.precision import linear

CHUNK = (1024, 8192)  # positions and tokens of the vocabulary in one tile: 32 MB in float32
KEPT = 2**27  # logits of a part that are kept for its backward pass, if there are no more: 512 MB in float32


@dataclass(frozen=True)
class TokenStats:
    """Of M sampled tokens, float64 for a float64 policy and float32 for any other."""

    logprobs_M: Tensor  # natural log
    entropies_M: Tensor | None  # nats, over the whole vocabulary
    energies_M: Tensor | None  # 1 - 2 pi + sum pi^2 = |d log pi / d logits|^2; carries no gradient


@dataclass(frozen=True)
class Head:
    """From hidden states to logits: cap(scale * (W h + b)) with cap(x) = softcap * tanh(x / softcap), the identity without one."""

    weight_VD: Tensor
    bias_V: Tensor | None = None
    scale: float = 1.0
    softcap: float | None = None

    @classmethod
    @torch.no_grad()
    def of(cls, model: Any) -> Self:
        """The head of a transformers causal model (or of one that peft has wrapped), with the scale and cap its config names.

        Whichever of them reproduces the model's own logits on two tokens is taken; UserError names a model where none
        does.
        """
        model = model.get_base_model() if hasattr(model, "get_base_model") else model
        config, module, name = model.config.get_text_config(), model.get_output_embeddings(), type(model).__name__
        if getattr(type(module), "forward", None) is not nn.Linear.forward:
            raise UserError(
                f"model: the head of {name} is {type(module).__module__}.{type(module).__name__}; a plain nn.Linear is needed"
            )
        ids = torch.tensor([[0, 1]], device=module.weight.device)
        with evaluating(model):
            hidden = decoder_of(model)(input_ids=ids, use_cache=False).last_hidden_state.flatten(0, 1)
            logits = model(input_ids=ids, use_cache=False).logits.flatten(0, 1).double()
        caps = [getattr(config, key, None) for key in ("final_logit_softcapping", "logits_soft_cap")]
        scales = [getattr(config, key, None) for key in ("logit_scale", "lm_head_multiplier", "logits_scaling")]
        scales += [1 / s for s in scales[2:] if s]  # Granite divides by it, others multiply
        tolerance = (1e-2 if hidden.dtype.itemsize < 4 else 1e-5) * logits.abs().max()
        for softcap in [*filter(None, caps), None]:
            for scale in [*filter(None, scales), 1.0]:
                head = cls(module.weight, module.bias, float(scale), softcap)
                if (head.logits(hidden).double() - logits).abs().max() <= tolerance:
                    return head
        raise UserError(
            f"model: {name} turns hidden states into logits in a way that is not a linear head, a scale and a tanh cap"
        )

    def logits(self, hidden_MD: Tensor) -> Tensor:
        """All of them, (M, V) in float32 or float64; temperature not applied."""
        return _Spec.of(hidden_MD, self, 1.0).s(hidden_MD, self.weight_VD, self.bias_V)


def token_logprobs(
    hidden_MD: Tensor,
    head: Head | nn.Linear,
    targets_M: Tensor,
    temperature: float = 1.0,
    *,
    chunk: tuple[int, int] = CHUNK,
    with_entropy: bool = False,
    with_energy: bool = False,
    backward_dtype: torch.dtype | None = None,
    kept: int = KEPT,
) -> TokenStats:
    """log pi(y) = s_y - log sum_v exp s_v with s = logits / temperature, and on demand H = -sum_v pi_v log pi_v and the energy.

    Exact, forward and backward, for any gradient on each token's log-probability and entropy, with respect to the hidden states,
    the head's weight (tied or not) and its bias. Half-precision logits are raised to float32 before anything is summed; inside
    autocast the products are taken in its dtype, as the head itself would; `backward_dtype`, where given, is that of the products that
    make gradients. No more than `kept` logits are kept for the backward pass, which otherwise makes them again. A target outside the vocabulary gives NaN or IndexError.
    """
    head = head if isinstance(head, Head) else Head(head.weight, head.bias)
    spec = _Spec.of(hidden_MD, head, temperature, backward_dtype)
    if len(targets_M) * len(head.weight_VD) <= chunk[0] * chunk[1]:  # one tile: what autograd keeps is no larger
        return _plain(hidden_MD, head, targets_M, spec, with_entropy, with_energy)
    with torch.autocast(hidden_MD.device.type, enabled=False):  # the spec has taken it into account
        keep = torch.is_grad_enabled() and len(targets_M) * len(head.weight_VD) <= kept
        options = (targets_M, spec, chunk, with_entropy, with_energy, keep)
        return TokenStats(*_Tiled.apply(hidden_MD, head.weight_VD, head.bias_V, *options))


class _Spec(NamedTuple):
    """How logits become s, and in which precision."""

    scale: float  # of the head, over the temperature
    cap: float | None  # of the head, over the temperature
    dtype: torch.dtype  # of matrix products
    backward_dtype: torch.dtype  # of those that make gradients
    sum_dtype: torch.dtype  # of everything else

    @classmethod
    def of(cls, hidden_MD: Tensor, head: Head, temperature: float, backward_dtype: torch.dtype | None = None) -> Self:
        dtype, device = torch.promote_types(hidden_MD.dtype, head.weight_VD.dtype), hidden_MD.device.type
        if torch.is_autocast_enabled(device) and dtype != torch.float64:
            dtype = torch.get_autocast_dtype(device)
        sum_dtype = torch.float64 if dtype == torch.float64 else torch.float32
        softcap = None if head.softcap is None else head.softcap / temperature
        return cls(head.scale / temperature, softcap, dtype, backward_dtype or dtype, sum_dtype)

    def s(self, hidden_MD: Tensor, weight_VD: Tensor, bias_V: Tensor | None) -> Tensor:
        """Scaled, capped, divided by the temperature: pi = softmax(s). Always a new tensor."""
        bias_V = None if bias_V is None else bias_V.to(self.dtype)
        s_MV = linear(hidden_MD.to(self.dtype), weight_VD.to(self.dtype), bias_V).to(self.sum_dtype)
        if self.cap is not None:
            return self.cap * torch.tanh(s_MV * (self.scale / self.cap))
        return s_MV if self.scale == 1 else s_MV * self.scale


def log_softmax(s_MV: Tensor) -> Tensor:
    """log pi = s - log sum_v exp s_v, the sum in float64: torch's own in float32 is 1e-5 nats too high at 49k tokens of vocabulary."""
    shifted_MV = s_MV - s_MV.detach().amax(-1, keepdim=True)
    return shifted_MV - shifted_MV.exp().sum(-1, keepdim=True, dtype=torch.float64).log().to(s_MV.dtype)


def _plain(hidden_MD: Tensor, head: Head, targets_M: Tensor, spec: _Spec, entropy: bool, energy: bool) -> TokenStats:
    """The same through autograd, with all logits in memory: faster for few logits, and the slow reference for many."""
    logprobs_MV = log_softmax(spec.s(hidden_MD, head.weight_VD, head.bias_V))
    logprobs_M = logprobs_MV.gather(1, targets_M[:, None]).squeeze(1)
    entropies_M = -(logprobs_MV.exp() * logprobs_MV).sum(1) if entropy else None
    energies_M = None
    if energy:
        with torch.no_grad():
            energies_M = 1 - 2 * logprobs_M.exp() + (2 * logprobs_MV).exp().sum(1)
    return TokenStats(logprobs_M, entropies_M, energies_M)


def _slices(size: int, step: int) -> Iterator[slice]:
    return (slice(start, min(start + step, size)) for start in range(0, size, step))


class _Tiled(torch.autograd.Function):
    """Tiles of `chunk` = (positions, tokens); the vocabulary is the outer loop, so that the head is read and written once."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_MD: Tensor,
        weight_VD: Tensor,
        bias_V: Tensor | None,
        targets_M: Tensor,
        spec: _Spec,
        chunk: tuple[int, int],
        with_entropy: bool,
        with_energy: bool,
        keep: bool,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        ctx.set_materialize_grads(False)
        ctx.spec, ctx.chunk = spec, chunk
        hidden_low = hidden_MD.to(spec.dtype)
        lowest = torch.finfo(spec.sum_dtype).min  # not -inf: lowest * 0 is 0
        top_M = torch.full((len(hidden_MD),), lowest, dtype=spec.sum_dtype, device=hidden_MD.device)  # largest s so far
        target_M = torch.full_like(top_M, torch.nan)  # s of the sampled token
        mass_M, moment_M, squares_M = torch.zeros_like(top_M), torch.zeros_like(top_M), torch.zeros_like(top_M)
        # sums of e, e (s - top) and e^2, where e = exp(s - top)
        kept: list[Tensor] = []
        for columns in _slices(len(weight_VD), chunk[1]):
            weight_CD = weight_VD[columns].to(spec.dtype)
            bias_C = None if bias_V is None else bias_V[columns]
            for rows in _slices(len(hidden_MD), chunk[0]):
                s_RC = spec.s(hidden_low[rows], weight_CD, bias_C)
                inside_R, column_R = _locate(targets_M[rows], columns)
                target_M[rows] = torch.where(inside_R, s_RC.gather(1, column_R[:, None]).squeeze(1), target_M[rows])
                top_R = torch.maximum(top_M[rows], s_RC.amax(1))
                drop_R = top_M[rows] - top_R
                if keep:
                    kept.append(s_RC)
                s_RC = s_RC - top_R[:, None] if keep else s_RC.sub_(top_R[:, None])
                e_RC = s_RC.exp()
                if with_entropy:
                    moment_M[rows] = drop_R.exp() * (moment_M[rows] + drop_R * mass_M[rows]) + (e_RC * s_RC).sum(1)
                mass_M[rows] = drop_R.exp() * mass_M[rows] + e_RC.sum(1)
                if with_energy:
                    squares_M[rows] = (2 * drop_R).exp() * squares_M[rows] + e_RC.square_().sum(1)
                top_M[rows] = top_R
        log_mass_M = mass_M.log()
        logprobs_M = (target_M - top_M) - log_mass_M
        entropies_M = log_mass_M - moment_M / mass_M if with_entropy else None
        energies_M = 1 - 2 * logprobs_M.exp() + squares_M / mass_M**2 if with_energy else None
        ctx.save_for_backward(hidden_MD, weight_VD, bias_V, targets_M, top_M, log_mass_M, entropies_M, *kept)
        if energies_M is not None:
            ctx.mark_non_differentiable(energies_M)
        return logprobs_M, entropies_M, energies_M

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g_M: Tensor | None, h_M: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, ...]:
        """d log pi_y / d s_v = [v = y] - pi_v and dH / d s_v = -pi_v (log pi_v + H), times the upstream g and h."""
        with torch.autocast(ctx.saved_tensors[0].device.type, enabled=False):
            return *_Tiled._gradients(ctx, g_M, h_M), None, None, None, None, None, None

    @staticmethod
    def _gradients(
        ctx: Any, g_M: Tensor | None, h_M: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        hidden_MD, weight_VD, bias_V, targets_M, top_M, log_mass_M, entropies_M, *kept = ctx.saved_tensors
        tiles = iter(kept)
        need_hidden, need_weight, need_bias = ctx.needs_input_grad[:3]
        g_M = torch.zeros_like(top_M) if g_M is None else g_M
        spec, hidden_low = ctx.spec, hidden_MD.to(ctx.spec.dtype)
        grad_hidden = torch.zeros(hidden_MD.shape, dtype=top_M.dtype, device=hidden_MD.device) if need_hidden else None
        grad_weight = torch.empty_like(weight_VD) if need_weight else None
        grad_bias = torch.empty_like(bias_V) if need_bias else None
        for columns in _slices(len(weight_VD), ctx.chunk[1]):
            weight_CD = weight_VD[columns].to(spec.dtype)
            bias_C = None if bias_V is None else bias_V[columns]
            sum_CD = None
            sum_C = torch.zeros(len(weight_CD), dtype=top_M.dtype, device=weight_CD.device) if need_bias else None
            for rows in _slices(len(hidden_MD), ctx.chunk[0]):
                s_RC = next(tiles) if kept else spec.s(hidden_low[rows], weight_CD, bias_C)
                slope_RC = None if spec.cap is None else 1 - (s_RC / spec.cap).square()  # of tanh
                s_RC = s_RC - top_M[rows, None]
                s_RC -= log_mass_M[rows, None]  # log pi; in two steps, since top + log mass would round log mass away
                pi_RC = s_RC.exp()
                if h_M is None:
                    d_RC = pi_RC.mul_(-g_M[rows, None])
                else:
                    d_RC = (
                        s_RC.add_(entropies_M[rows, None])
                        .mul_(h_M[rows, None])
                        .add_(g_M[rows, None])
                        .mul_(pi_RC)
                        .neg_()
                    )
                inside_R, column_R = _locate(targets_M[rows], columns)
                d_RC.scatter_add_(1, column_R[:, None], (inside_R * g_M[rows])[:, None])
                if slope_RC is not None:
                    d_RC *= slope_RC
                if spec.scale != 1:
                    d_RC *= spec.scale
                low_RC = d_RC.to(spec.backward_dtype)
                if grad_hidden is not None:
                    grad_hidden[rows] += linear(low_RC, weight_CD.to(spec.backward_dtype).t())
                if need_weight:
                    product_CD = (low_RC.T @ hidden_low[rows].to(spec.backward_dtype)).to(top_M.dtype)
                    sum_CD = product_CD if sum_CD is None else sum_CD.add_(product_CD)
                if sum_C is not None:
                    sum_C += d_RC.sum(0)
            if grad_weight is not None and sum_CD is not None:
                grad_weight[columns] = sum_CD
            if grad_bias is not None and sum_C is not None:
                grad_bias[columns] = sum_C
        return None if grad_hidden is None else grad_hidden.to(hidden_MD.dtype), grad_weight, grad_bias


def _locate(targets_R: Tensor, columns: slice) -> tuple[Tensor, Tensor]:
    """Whether each row's target lies in these columns, and where (zero if not)."""
    inside_R = (targets_R >= columns.start) & (targets_R < columns.stop)
    return inside_R, torch.where(inside_R, targets_R - columns.start, 0)
