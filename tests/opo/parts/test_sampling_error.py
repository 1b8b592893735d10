"""PROPS on a policy whose responses can be counted: the whole group's frequencies come nearer to their expectation."""

import pytest
import torch
from small import small_gpt2

from opo.batch import Rollouts
from opo.model.policy import Policy
from opo.parts.samplers import SamplingErrorCorrection

VOCABULARY, PROMPT, HALF = 6, [1, 2, 3], 8


@pytest.fixture(scope="module")
def policy() -> Policy:
    return Policy(small_gpt2(seed=1, vocabulary=VOCABULARY), None)  # pyright: ignore[reportArgumentType]


def distribution(policy: Policy) -> torch.Tensor:
    """Of the one token that answers the prompt."""
    every = Rollouts.from_lists([PROMPT], [[[v] for v in range(VOCABULARY)]], [[0.0] * VOCABULARY])
    return policy.measure(every, [0]).logprobs_NT[:, 0].exp()


def expected_error(counts_V: torch.Tensor, second_V: torch.Tensor, truth_V: torch.Tensor) -> float:
    """E sum_v (frequency of v in the whole group - pi(v))^2 over the second half, given the first: exact."""
    mean_V = (counts_V + HALF * second_V) / (2 * HALF)
    return float((mean_V - truth_V).square().sum() + (second_V * (1 - second_V)).sum() * HALF / (2 * HALF) ** 2)


@pytest.mark.parametrize(
    ("options", "at_least"), [({}, 0.05), ({"kl_limit": 0.1}, 0.15), ({"learning_rate": 1e-4}, 0.1)]
)
def test_the_second_half_fills_in_what_the_first_lacks(policy, options, at_least):
    truth_V = distribution(policy)
    part = SamplingErrorCorrection(**options)
    generator = torch.Generator().manual_seed(0)
    corrected, plain = [], []
    for _ in range(12):
        ids = torch.multinomial(truth_V, HALF, replacement=True, generator=generator).tolist()
        counts_V = torch.bincount(torch.tensor(ids), minlength=VOCABULARY).double()
        first = Rollouts.from_lists(
            [PROMPT], [[[i] for i in ids]], [[0.0] * HALF], [[[float(truth_V[i].log())] for i in ids]]
        )
        behaviour_V = distribution(part.fitted(policy, first))
        corrected.append(expected_error(counts_V, behaviour_V, truth_V))
        plain.append(expected_error(counts_V, truth_V, truth_V))
    assert all(mine < other for mine, other in zip(corrected, plain, strict=True))
    assert sum(corrected) < (1 - at_least) * sum(plain)


def test_a_step_that_passes_the_limit_is_shortened_or_taken_back(policy):
    ids = [[0], [0], [0], [5]]
    first = Rollouts.from_lists([PROMPT], [ids], [[0.0] * 4])
    truth_V = distribution(policy)
    for limit in (0.02, 0.0):
        behaviour_V = distribution(SamplingErrorCorrection(learning_rate=0.5, kl_limit=limit).fitted(policy, first))
        change = (behaviour_V / truth_V).log()[torch.tensor([0, 0, 0, 5])]
        assert float((change.exp() - 1 - change).mean()) <= limit + 1e-12
    torch.testing.assert_close(behaviour_V, truth_V)
