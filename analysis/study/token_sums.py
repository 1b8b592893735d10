"""What a pool needs to know of each response token by token: log-probabilities, entropies, logit energies, the output layer's norm."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from opo.batch import Rollouts
from opo.model.logprobs import token_logprobs
from opo.model.policy import Policy

HEAD_LOGITS = 2**23  # logits held at once by `head_norms`


class TokenSums(NamedTuple):
    """Sums over the tokens of R responses, (R,) float64, and the log-probabilities token by token, a tensor a response."""

    logprobs: list[Tensor]  # nats
    entropies_R: Tensor  # nats
    energies_R: Tensor
    head_norm2_R: Tensor


@torch.no_grad()
def sums_of(policy: Policy, hidden_R: list[Tensor], tokens_R: list[Tensor]) -> TokenSums:
    """From the last hidden states that predict each response, (length, D), and its tokens."""
    hidden_KH, targets_K = torch.cat(hidden_R), torch.cat(tokens_R).to(hidden_R[0].device)
    lengths = [len(tokens) for tokens in tokens_R]
    found = token_logprobs(hidden_KH, policy.head, targets_K, policy.temperature, with_entropy=True, with_energy=True)
    assert found.entropies_M is not None
    assert found.energies_M is not None
    logprobs, entropies, energies = (
        x.double().cpu().split(lengths) for x in (found.logprobs_M, found.entropies_M, found.energies_M)
    )
    entropies_R, energies_R = (torch.stack([x.sum() for x in parts]) for parts in (entropies, energies))
    return TokenSums(list(logprobs), entropies_R, energies_R, head_norms(policy, hidden_KH, targets_K, lengths))


def token_sums(policy: Policy, rollouts: Rollouts, keep: Tensor, hidden_R: list[Tensor]) -> TokenSums:
    """Of the responses `keep`, duplicates once, from the hidden states that predict them."""
    first = rollouts.first_N[keep].tolist()
    place = {row: first.index(row) for row in dict.fromkeys(first)}
    order = {row: i for i, row in enumerate(place)}
    tokens = [rollouts.tokens_NT[row][rollouts.mask_NT[row]] for row in place]
    sums, of = sums_of(policy, [hidden_R[i] for i in place.values()], tokens), [order[row] for row in first]
    return TokenSums([sums.logprobs[i] for i in of], sums.entropies_R[of], sums.energies_R[of], sums.head_norm2_R[of])


def mean_gap(logprobs_R: list[Tensor], rollouts: Rollouts, keep: Tensor) -> float:
    """Mean absolute difference to the sampler's log-probabilities over all tokens that have one, nats; NaN: none has."""
    if rollouts.logprobs_NT is None:
        return float("nan")
    sampled = [rollouts.logprobs_NT[n][rollouts.mask_NT[n]] for n in keep.tolist()]
    return float((torch.cat(logprobs_R) - torch.cat(sampled)).abs().nanmean())


def head_norms(policy: Policy, hidden_KH: Tensor, targets_K: Tensor, lengths: list[int]) -> Tensor:
    """|d log pi(y) / d W|_F^2 of the output matrix W as if it were untied, of responses laid end to end: (M,) float64.

    With e_t = d log pi(y_t) / d logits and h_t the hidden state, the gradient is sum_t e_t h_t^T and its squared norm
    sum_ts <e_t, e_s> <h_t, h_s>.
    """
    head, slope = policy.head, policy.head.scale / policy.temperature
    norms, most = [], max(max(lengths), HEAD_LOGITS // len(head.weight_VD))
    for start, stop, group in _runs(lengths, most):
        hidden_TH, targets_T = hidden_KH[start:stop], targets_K[start:stop]
        raw_TV = torch.nn.functional.linear(hidden_TH, head.weight_VD, head.bias_V).float() * head.scale
        capped_TV = raw_TV if head.softcap is None else torch.tanh(raw_TV / head.softcap) * head.softcap
        error_TV = -torch.softmax(capped_TV / policy.temperature, -1)
        error_TV[torch.arange(len(targets_T)), targets_T] += 1
        if head.softcap is not None:
            error_TV *= 1 - (capped_TV / head.softcap) ** 2
        products_TT = (error_TV @ error_TV.T).double() * (hidden_TH @ hidden_TH.T).double()
        own = torch.block_diag(*(torch.ones(length, length) for length in group)).to(products_TT)
        norms.append(torch.stack([x.sum() for x in (products_TT * own).sum(1).split(group)]).cpu() * slope**2)
    return torch.cat(norms)


def _runs(lengths: list[int], most: int) -> Iterator[tuple[int, int, list[int]]]:
    """Consecutive responses of at most so many tokens together: first token, end, their lengths."""
    start, group = 0, list[int]()
    for length in lengths:
        if group and sum(group) + length > most:
            yield start, start + sum(group), group
            start, group = start + sum(group), []
        group.append(length)
    yield start, start + sum(group), group
