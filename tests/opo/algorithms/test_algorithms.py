"""Every algorithm's weights at the on-policy point: against hand-derived numbers, and identities between them."""

import math
from typing import Any

import pytest
import torch
from batches import batch, close, f64, per_response
from hypothesis import given, settings
from hypothesis import strategies as st

from opo.algorithms import ALGORITHMS, score_weights

# One group, the first of four right, lengths 1 2 3 2. Mean 1/4, standard deviation 1/2 (ddof 1) or sqrt(3)/4 (ddof 0);
# the length-weighted mean is 1/8, over tokens the standard deviation is sqrt(7)/8.
ONE_GROUP = ([[1.0, 0.0, 0.0, 0.0]], [[1, 2, 3, 2]])
TOKENS, SCORES = 8, [1.0, 2.0, 3.0, 2.0]
Z = [1.5, -0.5, -0.5, -0.5]
LOGISTIC = 1 / (1 + math.exp(-2 / 3)) - 0.5  # win rates 1 and 1/3
RANK_GAPS = [1 / math.log(2) - 1 / math.log(1 + k) for k in (2, 3, 4)]
GAINS = 2 - 2 ** (1 / 3)

HAND_DERIVED = [
    ("opo", {}, [v / 4 for v in (7 / 8, -1 / 8, -1 / 8, -1 / 8)]),
    ("reinforce", {}, [1 / 4, 0, 0, 0]),
    ("group_mean", {}, [v / 4 for v in (0.75, -0.25, -0.25, -0.25)]),
    ("rloo", {}, [v / 4 for v in (1, -1 / 3, -1 / 3, -1 / 3)]),
    ("remax", {"greedy_rewards_P": [0.5]}, [v / 4 for v in (0.5, -0.5, -0.5, -0.5)]),
    ("dr_grpo", {"denominator": 10.0}, [v / 40 for v in (0.75, -0.25, -0.25, -0.25)]),
    ("grpo", {"std_eps": 0.0}, [z / (4 * length) for z, length in zip(Z, SCORES, strict=True)]),
    ("grpo", {"std_eps": 0.5}, [z / (8 * length) for z, length in zip(Z, SCORES, strict=True)]),
    ("grpo", {"std_eps": 0.0, "aggregation": "sequence_sum"}, [z / 4 for z in Z]),
    ("gspo", {"std_eps": 0.0}, [z / (4 * length) for z, length in zip(Z, SCORES, strict=True)]),
    ("dapo", {"std_eps": 0.0}, [z / TOKENS for z in Z]),
    ("cispo", {"std_eps": 0.0}, [z / TOKENS for z in Z]),
    ("reinforce_pp", {"std_eps": 0.0}, [v / math.sqrt(7) / TOKENS for v in (7, -1, -1, -1)]),
    ("reinforce_pp_baseline", {"std_eps": 0.0}, [v / math.sqrt(3) / TOKENS for v in (3, -1, -1, -1)]),
    ("gpg", {}, [v / TOKENS for v in (0.75, -0.25, -0.25, -0.25)]),
    ("nft", {}, [v / 4 for v in (0.75, -0.25, -0.25, -0.25)]),
    ("nft", {"prompt_weight": "one"}, [v / 4 for v in (1, -1 / 3, -1 / 3, -1 / 3)]),
    ("nft", {"prompt_weight": "odds"}, [v / math.sqrt(3) / 4 for v in (3, -1, -1, -1)]),
    ("nft", {"negative_weight": 0.0}, [0.75 / 4, 0, 0, 0]),
    ("p3o", {"clip": "separate"}, [v / 4 for v in (1, -1 / 3, -1 / 3, -1 / 3)]),
    ("p3o", {"clip": "joint"}, [v / 4 for v in (1, -1 / 3, -1 / 3, -1 / 3)]),
    ("copg", {}, [v / 4 for v in (1, -1 / 3, -1 / 3, -1 / 3)]),
    ("dno", {"eta": 0.1}, [v * 0.1 * LOGISTIC / 4 for v in (1, -1 / 3, -1 / 3, -1 / 3)]),
    ("lipo", {"beta": 0.2}, [v * 0.1 * GAINS for v in (sum(RANK_GAPS), *(-gap for gap in RANK_GAPS))]),
    ("trpa", {"beta": 0.1}, [v * 0.125 / n for v, n in zip((1, -1 / 3, -1 / 3, -1 / 3), SCORES, strict=True)]),
    ("inpo", {"eta": 0.005}, [200 * v for v in (1, -1 / 3, -1 / 3, -1 / 3)]),
    ("max_rl", {}, [v / 4 for v in (3, -1, -1, -1)]),
    ("ppo", {"values_NT": [[0.0] * 3] * 4, "lam": 1.0, "whiten": False}, [1 / TOKENS, 0, 0, 0]),
]


@pytest.mark.parametrize(("name", "overrides", "expected"), HAND_DERIVED)
def test_weights_by_hand(name, overrides, expected):
    close(per_response(name, batch(*ONE_GROUP), **overrides)[0], expected)


def test_weights_of_optimal_token_baseline_by_hand():
    # Energies 1/2 a token: W = t/2 for whoever has a token t. At t = 1 all four, then three, then only the third.
    expected = [[0.75, 0, 0], [-0.25, 0, 0], [-0.25, 0, 0], [-0.25, 0, 0]]
    close(score_weights("otb", batch(*ONE_GROUP), logit_energy_NT=[[0.5] * 3] * 4), f64(expected) / 4)
    # Unequal energies: B_1 = 2 * 1 / (2 + 1), B_2 = (2 + 1) / (2 + 1 + 1 + 3); a lone tail is its own baseline or none.
    rollouts = batch([[1.0, 0.0]], [[3, 2]])
    energy = [[2.0, 1.0, 4.0], [1.0, 3.0, 0.0]]
    close(score_weights("otb", rollouts, logit_energy_NT=energy), [[1 / 6, 2 / 7, 0], [-1 / 3, -3 / 14, 0]])
    close(score_weights("otb", rollouts, logit_energy_NT=energy, zero_tail=True)[0, 2], 1 / 2)


def test_weights_of_ppo_by_hand():
    # gamma = lam = 1/2, reward 1 on the second token: delta = (-1 + 2/2, 1 - 2) = (0, -1), A = (0 - 1/4, -1)
    rollouts = batch([[1.0, 0.0]], [[2, 1]])
    weights = score_weights("ppo", rollouts, values_NT=[[1.0, 2.0], [3.0, 9.0]], gamma=0.5, lam=0.5, whiten=False)
    close(weights, f64([[-0.25, -1.0], [-3.0, 0.0]]) / 3)
    whitened = score_weights("ppo", rollouts, values_NT=[[1.0, 2.0], [3.0, 9.0]], gamma=0.5, lam=0.5, std_eps=0.0)
    plain = f64([-0.25, -1.0, -3.0])
    close(whitened[rollouts.mask_NT], (plain - plain.mean()) / plain.std(correction=0) / 3)


def test_weights_with_kl_rewards():
    # KL rewards -1 a token join the return: 1 - 2 and 0 - 1 as a sequence; to go (-1, 0) and (-1) by token.
    rollouts = batch([[1.0, 0.0]], [[2, 1]])
    kl: dict[str, Any] = {"kl_rewards_NT": [[-1.0, -1.0], [-1.0, -5.0]]}
    close(per_response("reinforce", rollouts, **kl)[0], [-0.5, -0.5])
    to_go = f64([-1.0, 0.0, -1.0])
    expected = (to_go - to_go.mean()) / to_go.std(correction=0) / 3
    close(score_weights("reinforce_pp", rollouts, std_eps=0.0, **kl)[rollouts.mask_NT], expected)


def test_weights_of_two_prompts_by_hand():
    # The second prompt's rewards are all equal: out of DAPO's count, made up for by GPG's alpha of 2.
    rollouts = batch([[1.0, 0.0], [1.0, 1.0]], [[1, 3], [2, 2]])
    root = math.sqrt(0.5)
    close(per_response("dapo", rollouts, std_eps=0.0), f64([[root, -root], [0, 0]]) / 4)
    kept = per_response("dapo", rollouts, std_eps=0.0, drop_constant_groups=False)
    close(kept, f64([[root, -root], [0, 0]]) / 8)
    close(per_response("gpg", rollouts), f64([[1.0, -1.0], [0, 0]]) / 8)
    scaled = per_response("reinforce_pp_baseline", rollouts, std_eps=0.0)
    close(scaled, f64([[1.0, -1.0], [0, 0]]) * (0.5 / math.sqrt(0.125)) / 8)
    # REINFORCE++ takes the mean over tokens: (1 + 0 * 3 + 2 + 2) / 8 = 5/8
    whole = per_response("reinforce_pp", rollouts, std_eps=0.0)
    close(whole, f64([[3.0, -5.0], [3.0, 3.0]]) / math.sqrt(15) / 8)


def test_weights_of_copo_by_hand():
    # Prompt 0 agrees on its answers (H = 0) and is compared with prompt 1; that has two (H = 1), compared inside.
    rollouts = batch([[0.0, 0.0], [1.0, 0.0]], [[1, 1], [1, 1]])
    answers = [["a", "a"], ["b", None]]
    root = math.sqrt(0.5)
    weights = per_response("copo", rollouts, answers=answers, std_eps=0.0, threshold=0.5, sharpness=1000.0)
    close(weights, f64([[-root, -root], [root, -root]]) / 4)
    half = per_response("copo", rollouts, answers=answers, std_eps=0.0, threshold=1.0)[
        1
    ]  # H = threshold: both weigh one half
    close(half, f64([2 * root, 0.0]) / 2 / 4)


def test_weights_of_empg_by_hand():
    # Two steps of one token; entropies 0 and 1 are the extremes, so g = 1 and e^-1 over their mean.
    rollouts = batch([[1.0, 0.0]], [[2, 1]])
    e = math.exp(-1)
    mean_gain = (1 + e + 1) / 3
    raw = [math.sqrt(0.5) / mean_gain + 0.1 * e, math.sqrt(0.5) * e / mean_gain, -math.sqrt(0.5) / mean_gain]
    expected = [(x - sum(raw) / 3) / 3 for x in raw]
    weights = score_weights(
        "empg", rollouts, entropies_NT=[[0.0, 1.0], [0.0, 8.0]], step_tokens=1, bonus=0.1, std_eps=0.0
    )
    close(weights[rollouts.mask_NT], expected, 1e-7)  # the range of entropies has 1e-8 added


def test_numbers_published_for_three_right_of_eight():
    # The unit test of Relax pull request 205: GRPO, the centred form, and leave-one-out.
    rollouts = batch([[1.0] * 3 + [0.0] * 5], [[1] * 8])
    close(8 * per_response("grpo", rollouts)[0, [0, 7]], [1.2076, -0.7246], 1e-4)
    close(8 * per_response("dr_grpo", rollouts)[0, [0, 7]], [0.625, -0.375])
    close(8 * per_response("rloo", rollouts)[0, [0, 7]], [0.7143, -0.4286], 1e-4)


# Identities on random batches


@st.composite
def batches(draw, rewards=None, equal_lengths=False):
    """Up to three prompts of two to five responses."""
    prompts, group = draw(st.integers(1, 3)), draw(st.integers(2, 5))
    reward = st.integers(-4, 4).map(lambda k: k / 4) if rewards is None else rewards
    length = st.just(draw(st.integers(1, 4))) if equal_lengths else st.integers(1, 5)
    table = [[draw(reward) for _ in range(group)] for _ in range(prompts)]
    return batch(table, [[draw(length) for _ in range(group)] for _ in range(prompts)])


BINARY = st.integers(0, 1).map(float)
quick = settings(max_examples=40, deadline=None)


@quick
@given(batches())
def test_length_weighted_advantages_sum_to_zero_over_tokens(rollouts):
    weights_PG = per_response("opo", rollouts)
    close((rollouts.lengths_PG * weights_PG).sum(1), 0.0)


@quick
@given(batches(equal_lengths=True))
def test_equal_lengths_make_it_the_group_mean(rollouts):
    close(per_response("opo", rollouts), per_response("group_mean", rollouts))


@quick
@given(batches())
def test_leave_one_out_is_a_multiple_of_the_group_mean(rollouts):
    group = rollouts.group_size
    loo = per_response("rloo", rollouts)
    close(loo, group / (group - 1) * per_response("group_mean", rollouts))
    for name, overrides in [("p3o", {"clip": "separate"}), ("p3o", {"clip": "joint"}), ("copg", {})]:
        close(per_response(name, rollouts, **overrides), loo)
    close(per_response("dr_grpo", rollouts), per_response("group_mean", rollouts))


@quick
@given(batches())
def test_grpo_is_dr_grpo_over_std_and_length(rollouts):
    std_P1 = rollouts.rewards_PG.std(1, keepdim=True)
    centred_PG = per_response("dr_grpo", rollouts)
    expected_PG = torch.where(std_P1 > 0, centred_PG / std_P1, 0.0)
    close(per_response("grpo", rollouts, std_eps=0.0, aggregation="sequence_sum"), expected_PG, 1e-9)
    close(per_response("grpo", rollouts, std_eps=0.0), expected_PG / rollouts.lengths_PG, 1e-9)
    close(per_response("gspo", rollouts), per_response("grpo", rollouts))
    token_mean_PG = per_response("grpo", rollouts, aggregation="token_mean")
    close(per_response("cispo", rollouts), token_mean_PG)
    close(per_response("dapo", rollouts, drop_constant_groups=False), token_mean_PG)


@quick
@given(batches(rewards=BINARY))
def test_nft_on_policy_is_dr_grpo_or_grpo(rollouts):
    close(per_response("nft", rollouts), per_response("dr_grpo", rollouts))
    std_P1 = rollouts.rewards_PG.std(1, correction=0, keepdim=True)
    expected_PG = torch.where(std_P1 > 0, per_response("dr_grpo", rollouts) / std_P1, 0.0)
    close(per_response("nft", rollouts, prompt_weight="odds"), expected_PG)


@quick
@given(batches())
def test_a_critic_of_zeros_is_reinforce(rollouts):
    zeros = torch.zeros(rollouts.mask_NT.shape)
    ppo_PG = per_response("ppo", rollouts, values_NT=zeros, lam=1.0, whiten=False)
    scale = rollouts.rewards_PG.numel() / rollouts.lengths_PG.sum()
    close(ppo_PG, scale * per_response("reinforce", rollouts))
    close(per_response("ppo", rollouts, values_NT=zeros, lam=1.0), per_response("reinforce_pp", rollouts))


@quick
@given(batches())
def test_gaps_of_two_responses_agree_in_every_leave_one_out_form(rollouts):
    pairs = batch(rollouts.rewards_PG[:, :2].tolist(), rollouts.lengths_PG[:, :2].int().tolist())
    gap_P = (pairs.rewards_PG[:, 0] - pairs.rewards_PG[:, 1]) / pairs.rewards_PG.numel()
    for name in ("rloo", "p3o", "copg"):
        close(per_response(name, pairs), torch.stack([gap_P, -gap_P], 1))


@settings(max_examples=15, deadline=None)
@given(batches(), st.floats(0.1, 10), st.integers(-3, 3))
def test_shift_and_scale_of_the_reward(rollouts, scale, shift):
    # a different shift for every prompt
    shifts_P1 = shift * torch.arange(1, rollouts.num_prompts + 1)[:, None]
    moved = rollouts.with_(rewards_PG=rollouts.rewards_PG + shifts_P1)
    stretched = rollouts.with_(rewards_PG=rollouts.rewards_PG * scale)
    linear = ["opo", "group_mean", "rloo", "dr_grpo", "gpg", "p3o", "copg"]
    scale_free = ["grpo", "gspo", "cispo", "dapo", "reinforce_pp_baseline"]
    for name in linear + scale_free:
        exact: dict[str, Any] = {} if "std_eps" not in ALGORITHMS[name].parameters else {"std_eps": 0.0}
        weights_NT = score_weights(name, rollouts, **exact)
        close(score_weights(name, moved, **exact), weights_NT, 1e-9)
        factor = scale if name in linear else 1.0
        close(score_weights(name, stretched, **exact), factor * weights_NT, 1e-9)
    for name in ("dno", "lipo", "inpo"):  # the order of the rewards alone
        cubed = rollouts.with_(rewards_PG=rollouts.rewards_PG**3)
        close(score_weights(name, cubed), score_weights(name, rollouts))
