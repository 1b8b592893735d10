"""Off-policy forms on enumerable policies, by lag: the responses come from the policy of so many updates ago.

Ratios of whole responses give the policy's own gradient at every lag, exactly; ratios of tokens, which forget what came before a token, do so
at lag zero alone.
"""

import itertools

import pytest
import torch
from batches import batch, close, f64

from opo.algorithms import score_weights

LAGS, STEP, GROUP = (0, 1, 2, 4, 8), 1.5, 2
FREE = {"clip_low": 1.0, "clip_high": 1e6}  # no clip
BRANCHES, FIRST = 3, 3  # responses: one token that ends at once (0), or a branch and a second token


class Tree:
    """Responses of one or two tokens over random logits and rewards: everything about them can be summed."""

    responses = ((0,), *((b, t) for b in range(1, FIRST) for t in range(BRANCHES)))

    def __init__(self, seed: int) -> None:
        rng = torch.Generator().manual_seed(seed)
        self.logits = [torch.randn(FIRST + (FIRST - 1) * BRANCHES, generator=rng, dtype=torch.float64)]
        self.rewards = torch.rand(len(self.responses), generator=rng, dtype=torch.float64).round(decimals=1)
        for _ in range(max(LAGS)):  # plain gradient ascent makes the later policies
            theta, probabilities, _ = self.at(len(self.logits) - 1)
            (slope,) = torch.autograd.grad(probabilities @ self.rewards, theta)
            self.logits.append((theta + STEP * slope).detach())

    def at(self, time: int):
        """(logits, probability of each response, log-probabilities of its tokens) of the policy after `time` updates."""
        theta = self.logits[time].clone().requires_grad_()
        first = theta[:FIRST].log_softmax(0)
        second = [theta[FIRST + b * BRANCHES : FIRST + (b + 1) * BRANCHES].log_softmax(0) for b in range(FIRST - 1)]
        tokens = [[first[r[0]], *(second[r[0] - 1][t] for t in r[1:])] for r in self.responses]
        return theta, torch.stack([torch.stack(row).sum().exp() for row in tokens]), tokens

    def truth(self) -> torch.Tensor:
        theta, probabilities, _ = self.at(max(LAGS))
        return torch.autograd.grad(probabilities @ self.rewards, theta)[0]

    def expected(self, name: str, lag: int, **overrides) -> torch.Tensor:
        """E over all groups of the older policy of the update's direction at the newest."""
        theta, _, now = self.at(max(LAGS))
        _, drawn, then = self.at(max(LAGS) - lag)
        total = torch.zeros_like(theta)
        for group in itertools.product(range(len(self.responses)), repeat=GROUP):
            lengths = [len(self.responses[y]) for y in group]
            old = [[[lp.item() for lp in then[y]] for y in group]]
            rollouts = batch([self.rewards[list(group)].tolist()], [lengths], logprobs=old)
            new_NT = torch.zeros(rollouts.mask_NT.shape, dtype=torch.float64)
            for n, y in enumerate(group):
                new_NT[n, : lengths[n]] = torch.stack(now[y]).detach()
            weights_NT = score_weights(name, rollouts, policy_logprobs_NT=new_NT, **overrides)
            terms = [w * lp for n, y in enumerate(group) for w, lp in zip(weights_NT[n], now[y], strict=False)]
            objective = torch.stack(terms).sum()
            (slope,) = torch.autograd.grad(objective, theta, retain_graph=True)
            total = total + drawn[list(group)].prod().detach() * slope
        return total


TREES = [Tree(seed) for seed in range(3)]


@pytest.mark.parametrize("lag", LAGS)
def test_sequence_ratios_are_unbiased_at_every_lag(lag):
    for tree in TREES:
        close(tree.expected("p3o", lag, clip_range=1e9), tree.truth(), 1e-10)


def error(mean: torch.Tensor, truth: torch.Tensor) -> float:
    """What is left of the truth after the best rescaling of the mean, relative."""
    return float((1 - torch.cosine_similarity(mean, truth, dim=0).square()).clamp(min=0).sqrt())


def test_token_ratios_are_unbiased_at_lag_zero_alone():
    for tree in TREES:
        truth = tree.truth()
        close(tree.expected("dr_grpo", 0, **FREE), (1 - 1 / GROUP) * truth, 1e-10)
        errors = [error(tree.expected("dr_grpo", lag, **FREE), truth) for lag in LAGS]
        assert errors[0] < 1e-6
        assert min(errors[1:]) > 1e-3
        assert errors[-1] > errors[1]


def test_without_a_ratio_and_with_a_clip_the_older_responses_mislead():
    for tree in TREES:
        truth = tree.truth()
        assert error(tree.expected("rloo", 8), truth) > 0.01
        assert error(tree.expected("dr_grpo", 8), truth) > 0.01
        assert float((tree.expected("rloo", 0) - truth).norm() / truth.norm()) < 1e-10


def test_vcpo_has_a_whole_response_ratio_and_an_in_sample_baseline():
    """Without truncation its mean at any lag is that of its baseline alone: not the truth, and another than without the ratio."""
    for tree in TREES[:1]:
        truth = tree.truth()
        flat = {"score_norm2_PG": [[1.0, 1.0]], "cap": 1e9}
        plain = tree.expected("vcpo", 0, **flat)
        close(plain, (1 - 1 / GROUP) * truth, 1e-10)  # equal norms at lag zero: the group mean
        assert error(tree.expected("vcpo", 4, **flat), truth) < error(tree.expected("rloo", 4), truth)


def test_rewards_and_policies_are_not_trivial():
    for tree in TREES:
        assert len(set(tree.rewards.tolist())) > 2
        assert f64(tree.logits[0].tolist()).ne(tree.logits[-1]).any()
