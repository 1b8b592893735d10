"""Baselines against their definitions, written out as loops, and at the edges."""

import math

import numpy as np
import pytest
import torch

from opo.baselines import BASELINES, batch_weighted_mean, leave_one_out, shrinkage

IN_GROUP = ["group_mean", "leave_one_out", "length_weighted", "length_weighted_loo"]
NEEDS_WEIGHTS = [name for name in BASELINES if "weighted" in name]
NAN = math.nan


def sample(num_prompts=5, group_size=6, seed=0, unscored=()):
    generator = torch.Generator().manual_seed(seed)
    rewards_PG = torch.randn(num_prompts, group_size, generator=generator, dtype=torch.float64)
    weights_PG = torch.rand(num_prompts, group_size, generator=generator, dtype=torch.float64) * 50 + 1
    for p, g in unscored:
        rewards_PG[p, g] = NAN
    return rewards_PG, weights_PG


def slow_baseline(name, rewards_G, weights_G, i):
    """One number of the definition: a mean over scored responses, plain or weighted, with or without response i."""
    kept = [j for j in range(len(rewards_G)) if not math.isnan(rewards_G[j]) and not (j == i and "loo" in name)]
    w = [float(weights_G[j]) if "weighted" in name else 1.0 for j in kept]
    return sum(wj * float(rewards_G[j]) for wj, j in zip(w, kept, strict=True)) / sum(w)


@pytest.mark.parametrize("name", [name for name in BASELINES if not name.startswith(("batch", "shrinkage", "none"))])
def test_group_baselines_are_means_of_scored_rewards(name):
    rewards_PG, weights_PG = sample(unscored=[(1, 0), (1, 3), (4, 5)])
    baseline_PG = BASELINES[name](rewards_PG, weights_PG)
    slow_name = name.replace("leave_one_out", "loo")
    expected = [[slow_baseline(slow_name, rewards_PG[p], weights_PG[p], g) for g in range(6)] for p in range(5)]
    torch.testing.assert_close(baseline_PG, torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=1e-12)


def test_published_triple_of_group_of_eight_with_three_right():
    rewards_PG = torch.tensor([[1, 1, 1, 0, 0, 0, 0, 0]], dtype=torch.float64)
    centred, left_out = (rewards_PG - BASELINES[name](rewards_PG) for name in ("group_mean", "leave_one_out"))
    assert centred[0, [0, 3]].tolist() == [0.625, -0.375]
    torch.testing.assert_close(left_out[0, [0, 3]], torch.tensor([5 / 7, -3 / 7], dtype=torch.float64))


def test_identities():
    rewards_PG, weights_PG = sample()
    mean, loo = (rewards_PG - BASELINES[name](rewards_PG) for name in ("group_mean", "leave_one_out"))
    torch.testing.assert_close(mean, (1 - 1 / 6) * loo, rtol=1e-13, atol=1e-14)
    opo = rewards_PG - BASELINES["length_weighted"](rewards_PG, weights_PG)
    torch.testing.assert_close((weights_PG * opo).sum(1), torch.zeros(5, dtype=torch.float64), rtol=0, atol=1e-12)
    pair, pair_weights = rewards_PG[:, :2], weights_PG[:, :2]
    torch.testing.assert_close(BASELINES["length_weighted_loo"](pair, pair_weights), leave_one_out(pair))
    constant_weights = torch.full_like(weights_PG, 7.0)
    torch.testing.assert_close(
        BASELINES["length_weighted"](rewards_PG, constant_weights), BASELINES["group_mean"](rewards_PG)
    )


def slow_shrinkage(rewards, i, j):
    """The paper's formula with the sums written out, for groups without unscored responses."""
    num_prompts, group_size = rewards.shape
    others = [k for k in range(num_prompts) if k != i]
    means = {k: float(rewards[k].mean()) for k in others}
    grand = sum(means.values()) / len(others)
    within = sum(float(rewards[k].var()) / group_size for k in others) / len(others)
    between = sum((means[k] - grand) ** 2 for k in others) / len(others)
    shrink = (num_prompts - 1) / num_prompts * within / (within + between)
    own = float(rewards[i].sum() - rewards[i, j]) / (group_size - 1)
    return (1 - shrink) * own + shrink * grand


def test_shrinkage_is_the_written_out_formula_and_blind_to_the_response_itself():
    rewards_PG, _ = sample()
    baseline_PG = shrinkage(rewards_PG)
    expected = torch.tensor(
        [[slow_shrinkage(rewards_PG, i, j) for j in range(6)] for i in range(5)], dtype=torch.float64
    )
    torch.testing.assert_close(baseline_PG, expected, rtol=1e-12, atol=1e-13)
    rewards_PG[2, 3] += 10
    changed_PG = shrinkage(rewards_PG)
    assert changed_PG[2, 3] == baseline_PG[2, 3]
    assert (changed_PG != baseline_PG).sum() == 29


def test_shrinkage_with_unscored_responses_ignores_prompts_it_cannot_use():
    rewards_PG, _ = sample(unscored=[(0, g) for g in range(5)] + [(1, g) for g in range(6)])
    baseline_PG = shrinkage(rewards_PG)
    assert baseline_PG.isfinite().all()
    kept_PG = rewards_PG[2:]
    assert baseline_PG[0, 5] == pytest.approx(float(kept_PG.mean()), rel=1e-12)
    assert torch.equal(
        shrinkage(torch.full((4, 3), 0.1, dtype=torch.float64)), torch.full((4, 3), 0.1, dtype=torch.float64)
    )


def test_batch_forms_are_one_group():
    rewards_PG, weights_PG = sample(unscored=[(0, 0)])
    scored = ~rewards_PG.isnan()
    mean = rewards_PG[scored].mean()
    weighted = (weights_PG * rewards_PG)[scored].sum() / weights_PG[scored].sum()
    torch.testing.assert_close(BASELINES["batch_mean"](rewards_PG), mean.expand(5, 6))
    torch.testing.assert_close(batch_weighted_mean(rewards_PG, weights_PG), weighted.expand(5, 6))


@pytest.mark.parametrize("name", BASELINES)
def test_axes_in_front_are_replicates(name):
    rewards_PG, weights_PG = sample(num_prompts=12)
    together = BASELINES[name](rewards_PG.view(3, 4, 6), weights_PG.view(3, 4, 6))
    apart = [BASELINES[name](r, w) for r, w in zip(rewards_PG.view(3, 4, 6), weights_PG.view(3, 4, 6), strict=True)]
    torch.testing.assert_close(together, torch.stack(apart), rtol=1e-13, atol=1e-14)
    assert together.dtype == torch.float64


@pytest.mark.parametrize("name", [name for name in BASELINES if name != "none"])
@pytest.mark.parametrize("group_size", [2, 3, 7, 10])
def test_equal_rewards_leave_exactly_nothing(name, group_size):
    rewards_PG = torch.full((3, group_size), 0.1, dtype=torch.float64)
    weights_PG = torch.linspace(1, 90, 3 * group_size, dtype=torch.float64).view(3, group_size)
    assert torch.equal(BASELINES[name](rewards_PG, weights_PG), rewards_PG)


@pytest.mark.parametrize("name", IN_GROUP)
def test_a_lone_scored_response_has_zero_advantage_and_an_empty_group_a_finite_baseline(name):
    rewards_PG = torch.tensor([[NAN, 0.7, NAN], [NAN, NAN, NAN]], dtype=torch.float64)
    baseline_PG = BASELINES[name](rewards_PG, torch.ones(2, 3))
    assert baseline_PG[0, 1] == 0.7
    assert baseline_PG.isfinite().all()


@pytest.mark.parametrize("name", ["score_norm_weighted", "score_norm_weighted_loo"])
def test_weights_that_vanish_count_as_equal(name):
    rewards_PG = torch.tensor([[1.0, 0.0, 0.5]], dtype=torch.float64)
    plain = BASELINES["group_mean" if name == "score_norm_weighted" else "leave_one_out"](rewards_PG)
    torch.testing.assert_close(BASELINES[name](rewards_PG, torch.zeros(1, 3)), plain)
    only_first = BASELINES["score_norm_weighted_loo"](rewards_PG, torch.tensor([[3.0, 0.0, 0.0]]))
    torch.testing.assert_close(only_first, torch.tensor([[0.25, 1.0, 1.0]], dtype=torch.float64))


def test_one_dominant_weight_does_not_cancel():
    rewards_PG = torch.tensor([[5.0, 1.0, 0.0]], dtype=torch.float64)
    baseline_PG = BASELINES["score_norm_weighted_loo"](
        rewards_PG, torch.tensor([[1e18, 1.0, 3.0]], dtype=torch.float64)
    )
    assert baseline_PG[0, 0] == pytest.approx(0.25, rel=1e-14)


@pytest.mark.parametrize("name", NEEDS_WEIGHTS)
def test_weights_are_asked_for_and_checked(name):
    rewards_PG, weights_PG = sample()
    with pytest.raises(ValueError, match="needs weights_PG"):
        BASELINES[name](rewards_PG)
    weights_PG[3, 1] = -1
    with pytest.raises(ValueError, match=r"prompt 3.*weight is negative"):
        BASELINES[name](rewards_PG, weights_PG)


@pytest.mark.parametrize(
    "name", [name for name in BASELINES if name not in ("none", "batch_mean", "batch_length_weighted")]
)
def test_a_group_of_one_and_an_infinite_reward_are_refused(name):
    with pytest.raises(ValueError, match="prompt 0"):
        BASELINES[name](torch.ones(4, 1), torch.ones(4, 1))
    rewards_PG, weights_PG = sample()
    rewards_PG[2, 2] = torch.inf
    with pytest.raises(ValueError, match="prompt 2"):
        BASELINES[name](rewards_PG, weights_PG)


def test_shrinkage_refuses_a_single_prompt():
    with pytest.raises(ValueError, match="at least two prompts"):
        shrinkage(torch.tensor([[0.0, 1.0, 1.0, 0.0]]))


# published by an independent study: MSE of the shrunken leave-one-out mean, averaged over the group, against the group mean's
SHRINKAGE_TABLE = {2: -0.513, 4: -0.400, 8: -0.270, 16: -0.160}


@pytest.mark.parametrize("size", SHRINKAGE_TABLE)
def test_the_published_table_of_shrinkage(size):
    """32 prompts with p ~ Beta(1.2, 2.2) and rewards 0 or 1 (the study's setting; 4,000 batches, standard error 0.2 points)."""
    rng = np.random.default_rng(0)
    p_BP = torch.from_numpy(rng.beta(1.2, 2.2, (4000, 32)))
    rewards_BPG = torch.from_numpy((rng.random((4000, 32, size)) < p_BP[..., None].numpy()).astype(np.float64))
    shrunken = (shrinkage(rewards_BPG).mean(-1) - p_BP).square().mean()
    plain = (rewards_BPG.mean(-1) - p_BP).square().mean()
    assert float(shrunken / plain - 1) == pytest.approx(SHRINKAGE_TABLE[size], abs=0.01)
