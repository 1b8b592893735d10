"""Small batches of rollouts for tests of losses, and float64 comparison."""

import torch

from opo.algorithms import score_weights
from opo.batch import Rollouts


def batch(rewards_PG, lengths_PG, **fields) -> Rollouts:
    """Rollouts with these rewards and response lengths, every token the same."""
    responses = [[[7] * length for length in group] for group in lengths_PG]
    return Rollouts.from_lists([[1]] * len(rewards_PG), responses, rewards_PG, **fields)


def per_response(name, rollouts, **overrides) -> torch.Tensor:
    """Weight of each response's tokens, which must be one number per response, (P, G)."""
    weights_NT = score_weights(name, rollouts, **overrides)
    first_N1 = weights_NT[:, :1]
    torch.testing.assert_close(weights_NT, first_N1 * rollouts.mask_NT)
    return first_N1.view_as(rollouts.rewards_PG)


def f64(numbers) -> torch.Tensor:
    return torch.tensor(numbers, dtype=torch.float64)


def close(actual, expected, tolerance=1e-12) -> None:
    expected = torch.as_tensor(expected, dtype=torch.float64)
    torch.testing.assert_close(actual, expected.expand_as(actual), rtol=tolerance, atol=tolerance)


def known_logprobs(rollouts: Rollouts) -> torch.Tensor:
    assert rollouts.logprobs_NT is not None
    return rollouts.logprobs_NT
