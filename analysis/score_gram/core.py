"""Gram matrix of per-response scores z_n = grad sum_t w_nt log pi(y_nt | y_n<t): K_nm = <z_n, z_m>, exact, in float64.

One forward and one backward pass over the batch. Each layer's part of K is computed as the backward pass reaches it: for a
weight that multiplies its input, z_n = sum_t b_nt a_nt^T with inputs a and output gradients b, so N small products give N
gradients of a few rows at a time, and their products give K. N gradients are never held, parameter gradients never computed.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from itertools import combinations
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from analysis.score_gram.accumulate import GramAccumulator
from analysis.score_gram.buffers import USUAL, Buffers
from analysis.score_gram.byproducts import ByproductCollector, Byproducts
from analysis.score_gram.capture import Capture, frozen
from analysis.score_gram.grouping import Split, grouping
from analysis.score_gram.head import HeadScores, LanguageModelHead, Terms
from analysis.score_gram.inputs import Batch, causal_model, log_probability, model_inputs, working_dtype
from analysis.score_gram.layers import Contribution
from analysis.score_gram.recompute import recomputed_layers
from analysis.score_gram.shared_prefix import common_prefix, prompt_products
from opo.model.forward import evaluating

# Relative error up to which the norm of a parameter's score may differ from autograd's before the model is refused.
TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-2}
HALF_TOLERANCE = (
    0.5  # half precision: rounding differs between one response alone and a batch; a missed contribution is off by more
)


class Receiver(Protocol):
    """Receives the per-response gradients of one parameter after another."""

    def take(self, name: str, shape: torch.Size, contributions: Sequence[Contribution], dtype: torch.dtype) -> None: ...


class Accumulator(Receiver, Protocol):
    """Knows the squared norm of each parameter's part of each score."""

    squared_norms: dict[str, Tensor]


def score_gram(
    model: nn.Module,
    input_ids: Tensor,
    attention_mask: Tensor,
    response_mask: Tensor,
    token_weights: Tensor | None = None,
    *,
    temperature: float = 1.0,
    method: Literal["hooks", "loop"] = "hooks",
    metric: Mapping[str, Tensor] | None = None,
    metric_eps: float = 1e-8,
    split: Split | None = None,
    responses_per_pass: int | None = None,
    recompute: bool = False,
    verify: bool = True,
    byproducts: Byproducts | None = None,
    buffers: Buffers = USUAL,
) -> Any:
    """(N, N) float64 Gram matrix of the scores of N responses over all parameters with requires_grad.

    z_n = sum_t weight_nt grad log softmax(logits_n,t-1 / temperature)[ids_nt] over t >= 1 where response_mask is set.

    input_ids, attention_mask, response_mask, token_weights: (N, L), padding on either side. A token with nothing before it has
    no term; a response without terms has a zero row. Tied parameters count once, with the cross terms of their contributions.

    metric: second moments v (Adam's exp_avg_sq) of every trainable parameter by name; the Gram is then that of P^{-1/2} z with
    P = diag(sqrt(v) + metric_eps). split: "layer", "kind" or "parameter" gives a dict of Grams that sum to the whole.
    recompute: keep the input of each decoder layer only and run the layer again in the backward pass: a forward pass more in
    time, the activations of one layer in memory. responses_per_pass: the largest number of responses in the model at once; blocks
    of half as many are combined in all pairs, so that time grows with the number of blocks: try recompute first.
    Responses that are equal, or equal but for a factor of their weights, go through the model once.
    method="loop" is the slow reference, one backward pass per response. verify=True compares the norm of each parameter's
    score for the shortest response with autograd's: a layer that is not captured exactly is refused by name.
    byproducts: filled on the way, at little cost (not by the loop). buffers: how much is held at once.

    Raises ValueError for shapes, masks, values and layers that it cannot treat exactly.
    """
    batch = Batch.of(input_ids, attention_mask, response_mask, token_weights, temperature).on(model)
    parameters = trainable_parameters(model)
    scales = metric_scales(parameters, metric, metric_eps)
    group_of = grouping(model, split)
    n = len(batch)
    _refuse_options(method, responses_per_pass, n)
    if method == "loop":
        grams = loop_grams(model, batch, parameters, group_of, scales)
    else:
        rows, of_N, factor_N = batch.distinct()
        grams, m = {}, len(rows)
        collector = None if byproducts is None else ByproductCollector(byproducts, m, of_N, factor_N)
        for places in passes(m, responses_per_pass or m):
            part = rows.select(places)
            accumulator = GramAccumulator(len(part), group_of, scales, buffers)
            both = accumulator if collector is None else collector.beside(accumulator, places)
            head = accumulate_scores(model, part, parameters, both, recompute, buffers)
            if collector is not None:
                collector.keep_hidden(head, places)
            if verify and not grams:
                verify_norms(model, part, parameters, scales, accumulator)
            index = torch.tensor(places)
            for group, gram in accumulator.grams.items():
                target = grams.setdefault(group, torch.zeros(m, m, dtype=torch.float64, device=gram.device))
                target[index[:, None], index] = gram
        grams = {group: repeat_rows(gram, of_N, factor_N) for group, gram in grams.items()}
        if collector is not None:
            collector.finish()
    total = sum(grams.values(), torch.zeros(n, n, dtype=torch.float64, device=batch.input_ids.device))
    if not total.isfinite().all():
        raise ValueError(f"response {int((~total.diagonal().isfinite()).nonzero()[0])}: its score is not finite")
    return total if split is None else grams


def _refuse_options(method: str, responses_per_pass: int | None, n: int) -> None:
    if method not in ("hooks", "loop"):
        raise ValueError(f"method={method!r}: allowed are 'hooks' and 'loop'")
    if responses_per_pass is not None and responses_per_pass < min(n, 2):
        raise ValueError(f"responses_per_pass={responses_per_pass}: a pair of responses needs at least 2")


def repeat_rows(gram_MM: Tensor, of_N: Tensor, factor_N: Tensor) -> Tensor:
    """K_nm = f_n f_m <z_of(n), z_of(m)>, (N, N), for scores that are multiples of M others."""
    return gram_MM[of_N[:, None], of_N] * torch.outer(factor_N, factor_N)


def accumulate_scores(
    model: nn.Module,
    batch: Batch,
    parameters: dict[nn.Parameter, str],
    accumulator: Receiver,
    recompute: bool = False,
    buffers: Buffers = USUAL,
) -> HeadScores:
    """One forward and one backward pass over the batch; every parameter's per-response gradients go to the accumulator."""
    inner, dtype = causal_model(model), working_dtype(model)
    lm_head = LanguageModelHead(inner)

    def emit(p: nn.Parameter, contributions: Sequence[Contribution]) -> None:
        accumulator.take(parameters[p], p.shape, contributions, dtype)

    kept = batch.context()
    whole, context = batch.columns(slice(kept.start, None)), batch.columns(kept)
    terms, shape = Terms.of(whole), (len(context), context.input_ids.shape[1])
    with evaluating(model), torch.enable_grad(), frozen(parameters), ExitStack() as stack:
        capture = Capture(model, parameters, dtype, emit)
        capture.shared = common_prefix(context)
        stack.enter_context(capture.hooked())
        sharing: AbstractContextManager[Any] = nullcontext()
        if capture.shared:
            prompt = model_inputs(inner, context.select([0]).columns(slice(capture.shared)))
            sharing = prompt_products(
                lambda: lm_head.hidden(prompt, lambda: None), context.attention_mask, capture.shared
            )
        if recompute:
            stack.enter_context(recomputed_layers(inner, capture, shape, sharing))
        with sharing, capture.batch(*shape):
            hidden_NLD = lm_head.hidden(model_inputs(inner, context), capture.discover_head)
        head = HeadScores(lm_head, terms, batch.temperature, dtype, buffers)
        grad_NLD = head.backward(hidden_NLD, capture)
        if hidden_NLD.requires_grad:
            hidden_NLD.backward(grad_NLD)
        capture.flush(list(capture.contributions))
    return head


def trainable_parameters(model: nn.Module) -> dict[nn.Parameter, str]:
    """Each trainable parameter once, with the first of its names."""
    parameters = {p: name for name, p in model.named_parameters() if p.requires_grad}
    if not parameters:
        raise ValueError(f"{type(model).__name__} has no parameter with requires_grad")
    return parameters


def metric_scales(
    parameters: dict[nn.Parameter, str], metric: Mapping[str, Tensor] | None, eps: float
) -> dict[str, Tensor]:
    """P^{-1/2} = (sqrt(v) + eps)^{-1/2} by parameter name."""
    if metric is None:
        return {}
    scales = {}
    for p, name in parameters.items():
        if name not in metric:
            raise ValueError(f"metric has no second moments for the trainable parameter {name}")
        v = metric[name]
        if v.shape != p.shape or not v.isfinite().all() or (v < 0).any() or (eps <= 0 and (v == 0).any()):
            raise ValueError(
                f"metric of {name} must be finite, positive or zero with metric_eps > 0, of shape {tuple(p.shape)}"
            )
        dtype = torch.float64 if p.dtype == torch.float64 else torch.float32
        scales[name] = (v.to(p.device, torch.float64).sqrt() + eps).rsqrt().to(dtype)
    return scales


def passes(num_responses: int, at_most: int) -> list[list[int]]:
    """Sets of at most `at_most` responses such that every pair of responses is in one of them."""
    if num_responses <= at_most:
        return [list(range(num_responses))]
    size = at_most // 2
    blocks = [list(range(low, min(low + size, num_responses))) for low in range(0, num_responses, size)]
    return [first + second for first, second in combinations(blocks, 2)]


def loop_grams(
    model: nn.Module,
    batch: Batch,
    parameters: dict[nn.Parameter, str],
    group_of: Callable[[str], str],
    scales: Mapping[str, Tensor],
) -> dict[str, Tensor]:
    """The reference: one backward pass per response, all N gradients kept."""
    n, inner = len(batch), causal_model(model)
    with evaluating(model), torch.enable_grad():
        rows = [score_of(inner, batch.select([i]), parameters) for i in range(n)]
    grams: dict[str, Tensor] = {}
    for p, name in parameters.items():
        scale = scales[name].flatten() if name in scales else None
        gram = grams.setdefault(group_of(name), torch.zeros(n, n, dtype=torch.float64, device=p.device))
        step = max(1, USUAL.gradients_on(p.device.type) // n)
        for low in range(0, p.numel(), step):
            part_ND = torch.stack([row[name].flatten()[low : low + step].double() for row in rows])
            gram += (lambda x: x @ x.T)(part_ND if scale is None else part_ND * scale[low : low + step])
    return grams


def score_of(inner: nn.Module, batch: Batch, parameters: dict[nn.Parameter, str]) -> dict[str, Tensor]:
    """Gradient of the summed log-probability by plain autograd; zero where a parameter has no part in it."""
    grads = torch.autograd.grad(
        log_probability(inner, batch), list(parameters), allow_unused=True, materialize_grads=True
    )
    return dict(zip(parameters.values(), grads, strict=True))


def verify_norms(
    model: nn.Module,
    batch: Batch,
    parameters: dict[nn.Parameter, str],
    scales: Mapping[str, Tensor],
    accumulator: Accumulator,
) -> None:
    """Compare |z_n| of each parameter with plain autograd's for the response with the fewest tokens, without its padding."""
    has_terms = (batch.weights_NL != 0).any(1)
    if not has_terms.any():
        return
    n = int(torch.where(has_terms, batch.attention_mask.sum(1), batch.attention_mask.shape[1] + 1).argmin())
    with evaluating(model), torch.enable_grad():
        score = score_of(causal_model(model), batch.alone(n), parameters)
    expected = {
        name: float(torch.linalg.vector_norm(g * scales[name] if name in scales else g, dtype=torch.float64))
        for name, g in score.items()
    }
    half = any(p.dtype in (torch.bfloat16, torch.float16) for p in model.parameters())
    tolerance = HALF_TOLERANCE if half else TOLERANCE[working_dtype(model)]
    floor = 1e-3 * sum(x * x for x in expected.values()) ** 0.5
    for name, norm in expected.items():
        by_hooks = (
            float(accumulator.squared_norms[name][n].clamp(min=0).sqrt()) if name in accumulator.squared_norms else 0.0
        )
        if abs(by_hooks - norm) > tolerance * (norm + floor):
            raise ValueError(
                f"{name}: the norm of its score for response {int(batch.number_N[n])} is {norm:.6g} by autograd but {by_hooks:.6g} by hooks; "
                "this model needs method='loop'"
            )
