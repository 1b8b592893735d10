"""How much likelier each step of a response made a reference answer (IGPO)."""

import torch
from torch import Tensor

from opo.batch import Rollouts
from opo.model.policy import Policy


def answer_gains(policy: Policy, rollouts: Rollouts, answer_ids: list[list[int]], step_tokens: int) -> Tensor:
    """p_k - p_{k-1} at the last token of each step, (N, T) float64 on the CPU; p_k = exp of the answer's mean token log-probability.

    `answer_ids` has one answer a prompt; none: no gain. Steps are windows of `step_tokens` tokens. The last step of a response, which holds its own
    answer, has none. Equal prefixes of a prompt's responses go through the model once.
    """
    group, contexts = rollouts.group_size, dict[tuple[int, tuple[int, ...]], int]()
    places: list[list[int]] = []  # of each response: the context before each step
    for n, tokens_T in enumerate(rollouts.tokens_NT):
        length = int(rollouts.lengths_N[n])
        starts = range(0, length, step_tokens) if answer_ids[n // group] else range(0)
        prefixes = [tuple(tokens_T[:start].tolist()) for start in starts]
        places.append([contexts.setdefault((n // group, prefix), len(contexts)) for prefix in prefixes])
    gains_NT = torch.zeros(rollouts.mask_NT.shape, dtype=torch.float64)
    if not contexts:
        return gains_NT
    asked = Rollouts.from_lists(
        [[*rollouts.prompt_ids[p], *prefix] for p, prefix in contexts],
        [[answer_ids[p]] for p, _ in contexts],
        torch.zeros(len(contexts), 1),
    )
    logprobs_CT = policy.measure(asked, list(range(len(contexts)))).logprobs_NT
    likely_C = ((logprobs_CT * asked.mask_NT).sum(1) / asked.lengths_N).exp()
    for n, mine in enumerate(places):
        for k in range(1, len(mine)):
            gains_NT[n, k * step_tokens - 1] = likely_C[mine[k]] - likely_C[mine[k - 1]]
    return gains_NT
