"""Gradients of the model from weights on token scores: the only place where the policy is differentiated.

A loss is a function of token log-probabilities; its gradient with respect to them, w = -dLoss/dlogprobs, is
backpropagated through the model micro-batch by micro-batch. So a loss that couples the responses of a group or a batch
gives the same gradient however the micro-batches are cut.
"""

from typing import Any

import torch
from torch import Tensor

from opo.batch import Rollouts
from opo.model.policy import BatchScores, Policy


def accumulate(
    policy: Policy,
    rollouts: Rollouts,
    prompts: list[int],
    weights_NT: Tensor,
    entropy_weights_NT: Tensor | None = None,
) -> BatchScores:
    """Add -sum_nt (w_nt grad log pi(y_nt) + c_nt grad H_nt) over these prompts to the parameters' gradients.

    H_nt is the entropy of the distribution that token t of response n was drawn from, and c_nt its weight (none: no entropy term).
    A prompt whose responses all have zero weight (equal rewards, with most baselines) has no backward pass, and responses
    that are the same go through the model once, with the sum of their weights.
    """
    first_N = rollouts.first_N
    weights_NT = torch.zeros_like(weights_NT).index_add(0, first_N, weights_NT)
    c_NT = torch.zeros_like(weights_NT)
    if entropy_weights_NT is not None:
        c_NT = c_NT.index_add(0, first_N, entropy_weights_NT)
    weighs_N = ((weights_NT != 0) | (c_NT != 0)).any(1)
    active = [p for p in prompts if bool(weighs_N[rollouts.rows_of([p])].any())]
    measured = policy.measure(rollouts, [p for p in prompts if p not in active])
    logprobs_NT, entropies_NT = torch.zeros_like(measured.logprobs_NT), torch.zeros_like(measured.entropies_NT)
    for part in policy.parts(rollouts, active):
        scores = policy.scores(rollouts, part, entropy_grad=entropy_weights_NT is not None)
        width = scores.mask_MT.shape[1]
        objective = (weights_NT[part.rows_M, :width].to(scores.logprobs_MT) * scores.logprobs_MT).sum()
        if entropy_weights_NT is not None:
            objective = objective + (c_NT[part.rows_M, :width].to(scores.entropies_MT) * scores.entropies_MT).sum()
        if part.idle:
            (0.0 * objective).backward()
            continue
        (-objective).backward()
        logprobs_NT[part.rows_M, :width] = scores.logprobs_MT.detach().double().cpu()
        entropies_NT[part.rows_M, :width] = scores.entropies_MT.detach().double().cpu()
    if not active:  # a zero gradient, not a missing one, so that the optimizer's momentum decays
        for parameter in policy.parameters():
            parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
    policy.add_gradients()
    policy.world.add(logprobs_NT, entropies_NT)
    return BatchScores(measured.logprobs_NT + logprobs_NT[first_N], measured.entropies_NT + entropies_NT[first_N])


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
