"""One batch with every field that any algorithm needs, and the weights of any algorithm on it."""

import pytest
import torch

from opo.algorithms import ALGORITHMS, token_weights
from opo.batch import Rollouts

LENGTHS = [[1, 4, 2, 3], [5, 2, 2, 1], [3, 3, 1, 6]]
REWARDS = [[1.0, 0.0, 0.25, 0.0], [0.0, 1.0, 1.0, 0.5], [0.5, 1.0, 0.75, 0.0]]


def random_batch(seed=0, rewards_PG=None, on_policy=False) -> tuple[Rollouts, torch.Tensor]:
    """Rollouts with every field that any algorithm needs, and log-probabilities of a policy near the sampling one."""
    rng = torch.Generator().manual_seed(seed)
    rollouts = Rollouts.from_lists([[1], [2], [3]], [[[7] * n for n in g] for g in LENGTHS], rewards_PG or REWARDS)
    shape = rollouts.mask_NT.shape

    def normal(scale: float) -> torch.Tensor:
        return scale * torch.randn(shape, generator=rng, dtype=torch.float64)

    def uniform(*size: int) -> torch.Tensor:
        return torch.rand(*size, generator=rng, dtype=torch.float64)

    sampling_NT = -1 - normal(1.0).abs()
    rollouts = rollouts.with_(
        logprobs_NT=sampling_NT * rollouts.mask_NT,
        reference_logprobs_NT=(sampling_NT + normal(0.3)) * rollouts.mask_NT,
        values_NT=normal(1.0) * rollouts.mask_NT,
        entropies_NT=2 * uniform(*shape) * rollouts.mask_NT,
        logit_energy_NT=uniform(*shape) * rollouts.mask_NT,
        score_norm2_PG=0.5 + uniform(3, 4),
        greedy_rewards_P=uniform(3),
        reference_rewards_P=uniform(3),
        answer_gains_NT=normal(0.1) * rollouts.mask_NT,
        finished_PG=torch.tensor([[True, False, True, True], [True, True, False, True], [True, True, True, False]]),
        answers=[["a", "b", "a", None], ["a", "a", "a", "a"], ["a", "b", "c", "d"]],
    )
    hinted_N1 = torch.tensor([0.0] * 4 + [1.0] * 4 + [0.0] * 4, dtype=torch.float64)[:, None]
    rollouts = rollouts.with_(behaviour_logprobs_NT=(sampling_NT + hinted_N1 * normal(0.4)) * rollouts.mask_NT)
    drift_NT = torch.zeros(shape, dtype=torch.float64) if on_policy else normal(0.2)
    return rollouts, (sampling_NT + drift_NT) * rollouts.mask_NT


HYPERPARAMETERS = {
    "empg": {"step_tokens": 2},
    "igpo": {"step_tokens": 2},
}  # the defaults are longer than any response here


def weights(name, rollouts, logprobs_NT) -> torch.Tensor:
    loss, hyperparameters = ALGORITHMS[name].loss, HYPERPARAMETERS.get(name, {})
    return token_weights(lambda x_NT: loss(x_NT, rollouts, **hyperparameters), logprobs_NT)


NOT_ZERO_AT_EQUAL_REWARDS = {
    "reinforce": "no baseline",
    "remax": "its baseline is another response",
    "ppo": "its baseline is the critic",
    "t_ppo": "its baseline is the critic",
    "igpo": "the gains are compared, too",
    "pit": "its baseline is another response",
    "empg": "a bonus for every response",
    "kalman": "its filter starts at zero",
    "trpa": "without pairs solved responses are pulled up",
    "copg": "away from its optimum the reference pulls",
    "dno": "ties pull a pair together",
}

every_algorithm = pytest.mark.parametrize("name", ALGORITHMS)
