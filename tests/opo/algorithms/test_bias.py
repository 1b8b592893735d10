"""Bias of the estimators, by enumeration of every group that a small policy can produce."""

import itertools

import pytest
import torch
from batches import batch, close, f64

from opo.algorithms import score_weights


class TabularPolicy:
    """Five responses of one or two tokens: token 0 ends at once, 1 and 2 are followed by 0 or 1."""

    responses = ((0,), (1, 0), (1, 1), (2, 0), (2, 1))
    rewards = f64([0.0, 1.0, 0.0, 0.0, 1.0])

    def __init__(self) -> None:
        self.logits = f64([0.3, -0.2, 0.5, 0.4, -0.6, -0.1, 0.2]).requires_grad_()
        first = self.logits[:3].log_softmax(0)
        second = [self.logits[3:5].log_softmax(0), self.logits[5:].log_softmax(0)]
        token_logprobs = [[first[r[0]]] + [second[r[0] - 1][t] for t in r[1:]] for r in self.responses]
        self.probabilities = torch.stack([torch.stack(row).sum().exp() for row in token_logprobs])
        self.token_scores = [[self.gradient(lp) for lp in row] for row in token_logprobs]

    def gradient(self, value):
        return torch.autograd.grad(value, self.logits, retain_graph=True)[0]

    def true_gradient(self):
        return self.gradient(self.probabilities @ self.rewards)

    def expected_estimate(self, name, group_size, rewards=None, **overrides):
        """E[g] over all groups, one prompt per batch, in the loss's own scale."""
        rewards = self.rewards if rewards is None else rewards
        total = torch.zeros_like(self.logits)
        for group in itertools.product(range(5), repeat=group_size):
            rollouts = batch([rewards[list(group)].tolist()], [[len(self.responses[y]) for y in group]])
            weights_NT = score_weights(name, rollouts, **overrides)
            scores = (
                w * z for n, y in enumerate(group) for w, z in zip(weights_NT[n], self.token_scores[y], strict=False)
            )
            total = total + self.probabilities[list(group)].prod() * sum(scores)
        return total.detach()


UNBIASED = {
    "reinforce": {},
    "rloo": {},
    "remax": {"greedy_rewards_P": [0.7]},
    "pit": {"reference_rewards_P": [0.7]},
    "p3o": {},
    "copg": {},
}


@pytest.mark.parametrize("name", UNBIASED)
def test_unbiased_by_enumeration(name):
    policy = TabularPolicy()
    close(policy.expected_estimate(name, 3, **UNBIASED[name]), policy.true_gradient())


@pytest.mark.parametrize("name", ["group_mean", "dr_grpo", "nft"])
def test_shrunken_by_its_own_response_by_enumeration(name):
    policy = TabularPolicy()
    close(policy.expected_estimate(name, 3), 2 / 3 * policy.true_gradient())


def test_biased_ones_are_biased_by_enumeration():
    policy = TabularPolicy()
    truth = policy.true_gradient()

    def cosine(name, **overrides):
        return float(torch.cosine_similarity(policy.expected_estimate(name, 3, **overrides), truth, dim=0))

    # Binary rewards and one prompt: dividing by the standard deviation keeps the direction, by lengths does not.
    assert cosine("grpo", aggregation="sequence_sum") == pytest.approx(1.0, abs=1e-9)
    assert cosine("grpo") < 0.99
    assert cosine("gspo") == pytest.approx(cosine("grpo"), abs=1e-9)
    assert 0.9 < cosine("opo") < 1 - 1e-4
    assert cosine("group_mean") == pytest.approx(1.0, abs=1e-12)


def test_max_rl_is_the_truncated_log_likelihood_by_enumeration():
    policy = TabularPolicy()
    fails = 1 - float(policy.probabilities.detach() @ policy.rewards)
    close(policy.expected_estimate("max_rl", 3), (1 + fails) * policy.true_gradient())
    close(policy.expected_estimate("max_rl", 4), (1 + fails + fails**2) * policy.true_gradient())
