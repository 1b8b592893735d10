"""The systems that need something extra: what each is where its extra does nothing, and its formula where it does."""

import itertools

import pytest
import torch
from batches import batch, close, f64, per_response

from opo.algorithms import score_weights
from opo.algorithms.dpo import token_credit
from opo.gae import gae

REWARDS, LENGTHS = [[1.0, 0.0, 0.5, 0.0], [0.0, 1.0, 1.0, 0.5]], [[1, 4, 2, 3], [5, 2, 2, 1]]
VALUES_NT = torch.rand(8, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
PLAIN = {"whiten": False, "aggregation": "sequence_sum"}


def test_t_ppo_without_a_cut_is_ppo():
    for finished_PG in (None, torch.ones(2, 4, dtype=torch.bool)):
        rollouts = batch(REWARDS, LENGTHS, finished_PG=finished_PG)
        close(
            score_weights("t_ppo", rollouts, values_NT=VALUES_NT), score_weights("ppo", rollouts, values_NT=VALUES_NT)
        )


def test_t_ppo_bootstraps_a_cut_response_from_its_last_value_and_leaves_its_reward_out():
    finished_PG = torch.tensor([[True, False, True, True], [False, True, True, True]])
    rollouts = batch(REWARDS, LENGTHS, finished_PG=finished_PG)
    own_NT = 8 * score_weights("t_ppo", rollouts, values_NT=VALUES_NT, lam=1.0, **PLAIN)
    close(own_NT[1, :4], VALUES_NT[1, 3] - VALUES_NT[1, :4])
    close(own_NT[4, :5], VALUES_NT[4, 4] - VALUES_NT[4, :5])
    close(own_NT[5, :2], 1.0 - VALUES_NT[5, :2])
    changed = rollouts.with_(rewards_PG=rollouts.rewards_PG + f64([[0, 7, 0, 0], [7, 0, 0, 0]]))
    close(8 * score_weights("t_ppo", changed, values_NT=VALUES_NT, lam=1.0, **PLAIN), own_NT)
    close(score_weights("t_ppo", rollouts, values_NT=torch.zeros(8, 5), **PLAIN)[1], 0.0)


def test_extended_advantages_by_their_sum():
    """A_t = sum_k (gamma lam)^(k - t) delta_k with V(s_l) = V(s_{l-1}), term by term."""
    gamma, lam, rewards_NT = 0.9, 0.7, f64([[0.0, 0.3, 0.0]])
    values_NT, mask_NT = f64([[0.5, 0.2, 0.4]]), torch.ones(1, 3, dtype=torch.bool)
    after = [0.2, 0.4, 0.4]
    deltas = [float(rewards_NT[0, t]) + gamma * after[t] - float(values_NT[0, t]) for t in range(3)]
    expected = [sum((gamma * lam) ** (k - t) * deltas[k] for k in range(t, 3)) for t in range(3)]
    close(gae(rewards_NT, values_NT, mask_NT, gamma, lam, torch.tensor([True]))[0], [expected])


def test_pit_is_reinforce_less_a_number_for_each_prompt():
    reference_P = f64([0.25, 1.0])
    weights_PG = per_response("pit", batch(REWARDS, LENGTHS), reference_rewards_P=reference_P)
    close(8 * weights_PG, f64(REWARDS) - reference_P[:, None])
    lost = per_response("pit", batch(REWARDS, LENGTHS), reference_rewards_P=f64([float("nan"), 1.0]))
    close(lost[0], 0.0)


def test_dpo_pulls_every_pair_by_half_of_beta_at_the_reference():
    close(per_response("dpo", batch([[1.0, 0.0]], [[2, 3]]), beta=0.3), [[0.15, -0.15]])
    three = per_response("dpo", batch([[1.0, 0.5, 0.0]], [[2, 3, 1]]), beta=0.3)
    close(three, 0.15 / 3 * f64([[2.0, 0.0, -2.0]]))
    close(per_response("dpo", batch([[1.0, 1.0]], [[2, 3]])), 0.0)


def test_dpo_is_the_smoothed_loss_of_right_and_wrong_answers():
    rollouts = batch([[1.0, 0.0, 1.0], [0.0, 0.0, 1.0]], [[2, 3, 1], [1, 1, 2]])
    reference_NT = torch.randn(6, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    given = {"reference_logprobs_NT": reference_NT, "beta": 0.7}
    close(score_weights("dpo", rollouts, **given), score_weights("mcts_dpo", rollouts, **given))


def test_token_credit_at_the_optimum_is_the_advantage_of_the_token():
    """On a tree of three levels: beta log pi*/ref = Q* - V*, and over a response it sums to its reward less the value of the prompt."""
    rng, beta, branches, depth = torch.Generator().manual_seed(0), 0.4, 3, 3
    leaves = list(itertools.product(range(branches), repeat=depth))
    rewards = dict(zip(leaves, torch.rand(len(leaves), generator=rng, dtype=torch.float64), strict=True))
    inner = [prefix for level in range(depth) for prefix in itertools.product(range(branches), repeat=level)]
    reference = {p: torch.rand(branches, generator=rng, dtype=torch.float64).log_softmax(0) for p in inner}
    value = dict(rewards)
    for prefix in reversed(inner):  # V*(s) = beta log sum_a ref(a|s) exp(V*(s a) / beta)
        below = torch.stack([value[*prefix, a] for a in range(branches)])
        value[prefix] = beta * (reference[prefix] + below / beta).logsumexp(0)
    best = {p: reference[p] + (torch.stack([value[*p, a] for a in range(branches)]) - value[p]) / beta for p in inner}
    for logprobs in best.values():
        close(logprobs.exp().sum(), 1.0)
    rollouts = batch([[float(rewards[leaf]) for leaf in leaves]], [[depth] * len(leaves)])

    def along(table) -> torch.Tensor:
        return torch.stack([torch.stack([table[leaf[:t]][leaf[t]] for t in range(depth)]) for leaf in leaves])

    credit_NT = token_credit(along(best), rollouts.with_(reference_logprobs_NT=along(reference)), beta)
    advantage_NT = torch.stack(
        [torch.stack([value[leaf[: t + 1]] - value[leaf[:t]] for t in range(depth)]) for leaf in leaves]
    )
    close(credit_NT, advantage_NT, 1e-11)
    close(credit_NT.sum(1), torch.stack([rewards[leaf] for leaf in leaves]) - value[()], 1e-11)


def test_igpo_without_gains_is_the_group_mean_of_those_who_reach_a_step():
    rollouts = batch([[1.0, 0.0, 0.5]], [[1, 4, 2]])
    given = {"answer_gains_NT": torch.zeros(3, 4), "step_tokens": 2, "aggregation": "sequence_sum"}
    expected = f64([[0.5, 0, 0, 0], [-0.5, -0.5, 0.0, 0.0], [0.0, 0.0, 0, 0]])  # nobody else reaches the second step
    close(3 * score_weights("igpo", rollouts, **given), expected)


def test_igpo_adds_the_gains_that_are_still_to_come():
    rollouts = batch([[1.0, 0.0]], [[4, 4]])
    gains_NT = f64([[0.0, 0.3, 0.0, 0.1], [0.0, -0.1, 0.0, 0.0]])
    given = {"answer_gains_NT": gains_NT, "step_tokens": 2, "aggregation": "sequence_sum"}
    first, second = (1.4 - (-0.1)) / 2, 1.1 / 2
    close(
        2 * score_weights("igpo", rollouts, **given),
        [[first, first, second, second], [-first, -first, -second, -second]],
    )
    close(2 * score_weights("igpo", rollouts, strength=0.0, **given), f64([[0.5] * 4, [-0.5] * 4]))


def test_guide_grpo_without_hints_is_dapo_with_an_even_clip():
    rollouts = batch([*REWARDS, [1.0] * 4], [*LENGTHS, [2] * 4])
    expected = score_weights("dapo", rollouts, clip_high=0.2)
    close(score_weights("guide_grpo", rollouts), expected)
    none_NT = torch.zeros(12, 5, dtype=torch.float64)
    close(score_weights("guide_grpo", rollouts, behaviour_logprobs_NT=none_NT, logprobs_NT=none_NT), expected)


def test_guide_grpo_shapes_the_ratio_of_hinted_tokens():
    """d/dlogpi of A rho/(rho + g) = A rho g / (rho + g)^2; the other group's weights are GRPO's."""
    rollouts = batch([[1.0, 0.0], [1.0, 0.0]], [[2, 1], [1, 1]])
    mu_NT = f64([[1.0, 0.5], [-0.7, 0.0], [0.0, 0.0], [0.0, 0.0]])
    weights_NT = score_weights("guide_grpo", rollouts, behaviour_logprobs_NT=mu_NT, std_eps=0.0)
    ratios = (-f64([1.0, 0.5, -0.7])).exp()
    g = ratios.sort().values[2]  # the 90th percentile of three
    z = 0.5**0.5
    expected = z * f64([1, 1, -1]) * ratios * g / (ratios + g) ** 2 / 5
    close(weights_NT[[0, 0, 1], [0, 1, 0]], expected)
    close(weights_NT[2:, 0], f64([z, -z]) / 5)


@pytest.mark.parametrize("name", ["t_ppo", "pit", "dpo", "igpo", "guide_grpo"])
def test_all_wrong_ties_by_rounding_and_a_group_of_two(name):
    given = {
        "values_NT": torch.zeros(2, 2),
        "reference_rewards_P": torch.zeros(1),
        "answer_gains_NT": torch.zeros(2, 2),
    }
    for rewards in ([[0.0, 0.0]], [[0.1 + 0.2, 0.3]]):
        weights_NT = score_weights(name, batch(rewards, [[2, 2]]), **given)
        assert bool(weights_NT.isfinite().all())
        if rewards == [[0.0, 0.0]]:
            assert not weights_NT.any()
