"""Gradients of the model from weights on token scores: the only place where the policy is differentiated.

A loss is a function of token log-probabilities; its gradient with respect to them, w = -dLoss/dlogprobs, is
backpropagated through the model micro-batch by micro-batch. So a loss that couples the responses of a group or a batch
gives the same gradient however the micro-batches are cut.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from opo.batch import Rollouts
from opo.model.forward import Microbatch
from opo.model.policy import BatchScores, Policy, TokenScores


@dataclass(frozen=True)
class OpenPass:
    """A forward pass over these prompts whose backward pass waits for weights."""

    prompts: list[int]
    part: Microbatch
    scores: TokenScores


def open_pass(
    policy: Policy,
    rollouts: Rollouts,
    prompts: list[int],
    likely_NT: Tensor,
    entropy_weights_NT: Tensor | None = None,
) -> tuple[BatchScores, OpenPass | None]:
    """`policy.measure` of these prompts, for weights that depend on what it gives, in the forward pass that `accumulate` would repeat.

    The graph is kept of prompts that have a nonzero weight in `likely_NT`, if they are one micro-batch of one process; otherwise
    there is none, and `accumulate` makes its own.
    """
    likely = _weighing(rollouts, prompts, likely_NT, entropy_weights_NT)
    parts = list(policy.parts(rollouts, likely)) if policy.world.size == 1 else []
    if len(parts) != 1:
        return policy.measure(rollouts, prompts), None
    opened = OpenPass(likely, parts[0], policy.scores(rollouts, parts[0], entropy_grad=entropy_weights_NT is not None))
    rest = policy.measure(rollouts, [p for p in prompts if p not in likely])
    passed = BatchScores.zeros(rollouts)
    passed.place(opened.part, opened.scores)
    return rest.plus(passed, rollouts), opened


def accumulate(
    policy: Policy,
    rollouts: Rollouts,
    prompts: list[int],
    weights_NT: Tensor,
    entropy_weights_NT: Tensor | None = None,
    opened: OpenPass | None = None,
) -> BatchScores:
    """Add -sum_nt (w_nt grad log pi(y_nt) + c_nt grad H_nt) over these prompts to the parameters' gradients.

    H_nt is the entropy of the distribution that token t of response n was drawn from, and c_nt its weight (none: no entropy term).
    A prompt whose responses all have zero weight (equal rewards, with most baselines) has no backward pass, and responses
    that are the same go through the model once, with the sum of their weights. `opened`, which serves once, comes from `open_pass`
    at the same parameters, and with entropy weights if there are some here.
    """
    weights_NT = _of_first(rollouts, weights_NT)
    c_NT = torch.zeros_like(weights_NT) if entropy_weights_NT is None else _of_first(rollouts, entropy_weights_NT)
    active = _weighing(rollouts, prompts, weights_NT, c_NT)
    done = opened.prompts if opened is not None and any(p in active for p in opened.prompts) else []
    measured = policy.measure(rollouts, [p for p in prompts if p not in active and p not in done])
    passed = BatchScores.zeros(rollouts)
    passes: Iterator[tuple[Microbatch, TokenScores]] = (
        (part, policy.scores(rollouts, part, entropy_grad=entropy_weights_NT is not None))
        for part in policy.parts(rollouts, [p for p in active if p not in done])
    )
    for part, scores in chain(passes, [(opened.part, opened.scores)] if opened is not None and done else []):
        width = scores.mask_MT.shape[1]
        objective = (weights_NT[part.rows_M, :width].to(scores.logprobs_MT) * scores.logprobs_MT).sum()
        if entropy_weights_NT is not None:
            objective = objective + (c_NT[part.rows_M, :width].to(scores.entropies_MT) * scores.entropies_MT).sum()
        if part.idle:
            (0.0 * objective).backward()
            continue
        (-objective).backward()
        passed.place(part, scores)
    if not active:  # a zero gradient, not a missing one, so that the optimizer's momentum decays
        for parameter in policy.parameters():
            parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
    policy.add_gradients()
    policy.world.add(passed.logprobs_NT, passed.entropies_NT)
    return measured.plus(passed, rollouts)


def _of_first(rollouts: Rollouts, weights_NT: Tensor) -> Tensor:
    """Each response's weights with those of its duplicates, at the first of them."""
    return torch.zeros_like(weights_NT).index_add(0, rollouts.first_N, weights_NT)


def _weighing(rollouts: Rollouts, prompts: list[int], weights_NT: Tensor, c_NT: Tensor | None) -> list[int]:
    """The prompts with a response that has a nonzero weight."""
    weighs_NT = weights_NT != 0 if c_NT is None else (weights_NT != 0) | (c_NT != 0)
    weighs_N = weighs_NT.any(1)
    return [p for p in prompts if bool(weighs_N[rollouts.rows_of([p])].any())]


def gradient_norm(parameters: list[torch.nn.Parameter]) -> float:
    """Euclidean norm of all gradients, before any clipping."""
    norm: Any = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    return float(norm.full_tensor() if hasattr(norm, "full_tensor") else norm)  # of all ranks where they are cut


def clip_gradients(parameters: list[torch.nn.Parameter], norm: float, max_norm: float) -> bool:
    """Scale the gradients down to `max_norm` (0: never); true where that was needed."""
    if not max_norm or norm <= max_norm:
        return False
    torch.nn.utils.clip_grads_with_norm_(parameters, max_norm, torch.tensor(norm))
    return True
