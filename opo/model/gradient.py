"""Gradients of the model from weights on token scores: the only place where the policy is differentiated.

A loss is a function of token log-probabilities; its gradient with respect to them, w = -dLoss/dlogprobs, is
backpropagated through the model micro-batch by micro-batch. So a loss that couples the responses of a group or a batch
gives the same gradient however the micro-batches are cut.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from opo.batch import Rollouts
from opo.model.forward import microbatches
from opo.model.policy import Policy


@dataclass(frozen=True)
class Pass:
    """Log-probabilities and entropies (nats) from an update's forward pass: (N, T) on the CPU, zero outside the minibatch's responses."""

    logprobs_NT: Tensor
    entropies_NT: Tensor


def accumulate(
    policy: Policy,
    rollouts: Rollouts,
    prompts: list[int],
    weights_NT: Tensor,
    *,
    entropy_coef: float = 0.0,
    token_budget: int = 16384,
    shared_prefix: bool = True,
) -> Pass:
    """Add -sum_nt w_nt grad log pi(y_nt) - entropy_coef grad(mean entropy) over these prompts to the parameters' gradients.

    A prompt whose responses all have zero weight (as with equal rewards and most baselines) has no backward pass, and
    duplicate responses go through the model once, with the sum of their weights.
    """
    first_N = rollouts.first_N
    weights_NT = torch.zeros_like(weights_NT).index_add(0, first_N, weights_NT)
    copies_N = torch.bincount(first_N, minlength=len(first_N))
    weighted = [p for p in prompts if entropy_coef or bool(weights_NT[rollouts.rows_of([p])].any())]
    unweighted = [p for p in prompts if p not in weighted]
    measured = policy.measure(rollouts, unweighted, token_budget, shared_prefix=shared_prefix)
    logprobs_NT, entropies_NT = measured.logprobs_MT, measured.entropies_MT
    tokens = int(rollouts.mask_NT[rollouts.rows_of(prompts)].sum())
    for part in microbatches(rollouts, weighted, token_budget, distinct=True):
        scores = policy.scores(rollouts, part, shared_prefix=shared_prefix, entropy_grad=entropy_coef != 0)
        width = scores.mask_MT.shape[1]
        weights_MT = weights_NT[part.rows_M, :width].to(scores.logprobs_MT)
        objective = (weights_MT * scores.logprobs_MT).sum()
        if entropy_coef:
            copies_M1 = copies_N[part.rows_M, None].to(scores.entropies_MT)
            objective = objective + entropy_coef * (copies_M1 * scores.entropies_MT).sum() / tokens
        (-objective).backward()
        logprobs_NT[part.rows_M, :width] = scores.logprobs_MT.detach().double().cpu()
        entropies_NT[part.rows_M, :width] = scores.entropies_MT.detach().double().cpu()
    if not weighted:  # a zero gradient, not a missing one, so that the optimizer's momentum decays
        for parameter in policy.parameters():
            parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
    return Pass(logprobs_NT[first_N], entropies_NT[first_N])


def gradient_norm(parameters: list[torch.nn.Parameter]) -> float:
    """Euclidean norm of all gradients, before any clipping."""
    return float(torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None]))


def clip_gradients(parameters: list[torch.nn.Parameter], norm: float, max_norm: float) -> bool:
    """Scale the gradients down to `max_norm` (0: never); true where that was needed."""
    if not max_norm or norm <= max_norm:
        return False
    torch.nn.utils.clip_grads_with_norm_(parameters, max_norm, torch.tensor(norm))
    return True
