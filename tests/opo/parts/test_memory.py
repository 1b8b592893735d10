"""Parts with a memory: running moments, the entropy band, and what a checkpoint keeps of them."""

import math

import torch
from batches import close, f64
from small import random_rollouts

from opo.parts.regularisers import EntropyBand
from opo.parts.shapers import RunningMoments, Verified

NAN = float("nan")


def test_running_moments_are_those_of_all_rewards_so_far():
    rng = torch.Generator().manual_seed(0)
    shaper, seen = RunningMoments(clip=1.0), []
    rollouts = random_rollouts(prompts=2, group=3)
    for step in range(4):
        rewards_PG = torch.randn(2, 3, generator=rng, dtype=torch.float64) + 3
        rewards_PG[0, step % 3] = NAN
        seen.append(rewards_PG[~rewards_PG.isnan()])
        shaped_PG = shaper(rollouts.with_(rewards_PG=rewards_PG))
        past = torch.cat(seen)
        close(shaped_PG.nan_to_num(9), ((rewards_PG - past.mean()) / (past.std() + 1e-8)).clamp(-1, 1).nan_to_num(9))
        again = RunningMoments(clip=1.0)
        again.load(shaper.state())
        shaper = again


def test_equal_rewards_are_shaped_to_zero():
    rollouts = random_rollouts(prompts=2, group=3).with_(rewards_PG=torch.full((2, 3), 0.1, dtype=torch.float64))
    assert RunningMoments()(rollouts).tolist() == [[0.0] * 3] * 2


def test_verified_rewards_are_scaled_and_unfinished_ones_are_worst():
    rollouts = random_rollouts(prompts=1, group=3).with_(
        rewards_PG=f64([[1.0, 0.0, NAN]]), finished_PG=torch.tensor([[True, False, False]])
    )
    assert Verified()(rollouts).nan_to_num(7).tolist() == [[10.0, -10.0, 7.0]]


def test_the_entropy_band_is_the_slope_of_its_formula():
    rollouts = random_rollouts(prompts=2, group=2)
    rng = torch.Generator().manual_seed(0)
    band = EntropyBand(coef=0.5, low=0.6, high=1.3, alpha=0.2, decay=2.0)
    means = []
    for step in range(3):
        entropies_NT = torch.rand(rollouts.mask_NT.shape, generator=rng, dtype=torch.float64) * 2
        entropies_NT.requires_grad_()
        mask_NT, steps = rollouts.mask_NT, 10
        bonus = entropies_NT[mask_NT].sum()
        if means:
            past = sum(means) / len(means)
            strength = 0.2 * (1 + math.exp(-2.0 * step / 5))
            inside = entropies_NT[mask_NT]
            bonus = bonus - strength * ((0.6 * past - inside).clamp(min=0) + (inside - 1.3 * past).clamp(min=0)).sum()
        (expected_NT,) = torch.autograd.grad(0.5 * bonus, entropies_NT)
        close(band.slopes(rollouts.with_(entropies_NT=entropies_NT.detach()), step, steps), expected_NT)
        means.append(float(entropies_NT[mask_NT].mean().detach()))
        again = EntropyBand(coef=0.5, low=0.6, high=1.3, alpha=0.2, decay=2.0)
        again.load(band.state())
        band = again
