"""A loss tried on made-up responses: does it take batches of this shape, and learn from them. Needs torch."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from opo.algorithms import ALGORITHMS, token_weights
from opo.batch import Rollouts


def learns(name: str, hyperparameters: Mapping[str, Any], num_prompts: int, group_size: int) -> bool:
    """Whether random rewards and log-probabilities of two tokens give any token a weight. Raises the loss's own ValueError."""
    rollouts = _made_up(num_prompts, group_size)
    assert rollouts.logprobs_NT is not None
    weights_NT = token_weights(
        lambda leaf_NT: ALGORITHMS[name].loss(leaf_NT, rollouts, **hyperparameters), rollouts.logprobs_NT
    )
    return bool(weights_NT.any())


def _made_up(num_prompts: int, group_size: int) -> Rollouts:
    """Responses of two tokens, with everything that a loss may need."""
    random = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.rand(shape, generator=random, dtype=torch.float64)

    shape_NT = num_prompts * group_size, 2
    answers: list[list[str | None]] = [[str(g % 2) for g in range(group_size)]] * num_prompts
    return Rollouts(
        prompt_ids=[[0]] * num_prompts,
        tokens_NT=torch.zeros(shape_NT, dtype=torch.int64),
        mask_NT=torch.ones(shape_NT, dtype=torch.bool),
        rewards_PG=draw(num_prompts, group_size),
        logprobs_NT=-draw(*shape_NT),
        reference_logprobs_NT=-draw(*shape_NT),
        values_NT=draw(*shape_NT),
        entropies_NT=draw(*shape_NT),
        logit_energy_NT=draw(*shape_NT),
        score_norm2_PG=draw(num_prompts, group_size),
        greedy_rewards_P=draw(num_prompts),
        reference_rewards_P=draw(num_prompts),
        answer_gains_NT=draw(*shape_NT),
        answers=answers,
    )
