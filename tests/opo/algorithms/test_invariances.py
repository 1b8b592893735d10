"""What holds for every algorithm: invariances, unscored responses, the flags, and the YAML files."""

from dataclasses import fields
from pathlib import Path
from typing import get_args

import pytest
import torch
import yaml
from batches import close
from every_algorithm import HYPERPARAMETERS, NOT_ZERO_AT_EQUAL_REWARDS, REWARDS, every_algorithm, random_batch, weights

from opo.algorithms import ALGORITHMS
from opo.batch import Rollouts
from opo.config.parts import OPTIONS
from opo.kl import KLEstimator


def rearranged(rollouts: Rollouts, rows: list[int], prompts: list[int]) -> Rollouts:
    """The record of these responses; `prompts` says which prompt each row of the new table belongs to."""
    group = len(rows) // len(prompts)
    picked = {}
    for field in fields(rollouts):
        value = getattr(rollouts, field.name)
        if field.name.endswith("_NT") and value is not None:
            picked[field.name] = value[rows]
        elif field.name.endswith("_PG") and value is not None:
            picked[field.name] = value.reshape(-1)[rows].view(-1, group)
        elif field.name.endswith("_P") and value is not None:
            picked[field.name] = value[prompts]
        elif field.name == "answers" and value is not None:
            flat = [answer for answers in value for answer in answers]
            picked[field.name] = [[flat[n] for n in rows[p * group : (p + 1) * group]] for p in range(len(prompts))]
    return rollouts.with_(prompt_ids=[rollouts.prompt_ids[p] for p in prompts], **picked)


@every_algorithm
@pytest.mark.parametrize("on_policy", [True, False])
def test_finite_and_zero_outside_responses(name, on_policy):
    rollouts, logprobs_NT = random_batch(on_policy=on_policy)
    weights_NT = weights(name, rollouts, logprobs_NT)
    assert weights_NT.isfinite().all()
    assert (weights_NT[~rollouts.mask_NT] == 0).all()
    assert (weights_NT != 0).any()


# p3o, nft, cispo, vcpo and guide_grpo hold parts of their loss fixed, so that its slope is not their gradient
@pytest.mark.parametrize("name", sorted(ALGORITHMS.keys() - {"p3o", "nft", "cispo", "vcpo", "guide_grpo"}))
def test_weights_are_the_slope_of_the_loss(name):
    rollouts, logprobs_NT = random_batch()
    weights_NT = weights(name, rollouts, logprobs_NT)
    loss, hyperparameters, step = ALGORITHMS[name].loss, HYPERPARAMETERS.get(name, {}), 1e-6
    for n, t in [(0, 0), (1, 3), (4, 2), (6, 1), (9, 0), (11, 5)]:
        nudge_NT = torch.zeros_like(logprobs_NT)
        nudge_NT[n, t] = step
        ends = [loss(logprobs_NT + sign * nudge_NT, rollouts, **hyperparameters) for sign in (1, -1)]
        close((ends[1] - ends[0]) / (2 * step), weights_NT[n, t], 1e-6)


# kalman filters the rewards in the order of the responses
@pytest.mark.parametrize("name", sorted(ALGORITHMS.keys() - {"kalman"}))
def test_order_of_responses_and_prompts_does_not_matter(name):
    rollouts, logprobs_NT = random_batch()
    weights_NT = weights(name, rollouts, logprobs_NT)
    for prompts, order in [([0, 1, 2], [2, 0, 3, 1]), ([2, 0, 1], [0, 1, 2, 3]), ([1, 2, 0], [3, 1, 2, 0])]:
        rows = [p * 4 + g for p in prompts for g in order]
        close(weights(name, rearranged(rollouts, rows, prompts), logprobs_NT[rows]), weights_NT[rows], 1e-11)


@every_algorithm
def test_padding_does_not_matter(name):
    rollouts, logprobs_NT = random_batch()
    junk = {f.name: getattr(rollouts, f.name) for f in fields(rollouts) if f.name.endswith("_NT")}
    padding_N3 = torch.full((12, 3), 1e4, dtype=torch.float64)
    for key in [k for k, v in junk.items() if v is not None and k != "tokens_NT"]:
        padding = torch.zeros(12, 3, dtype=torch.bool) if key == "mask_NT" else padding_N3
        junk[key] = torch.cat([torch.where(rollouts.mask_NT, junk[key], padding.flatten()[0]), padding], 1)
    junk["tokens_NT"] = torch.nn.functional.pad(rollouts.tokens_NT, (0, 3))
    padded_NT = torch.cat([torch.where(rollouts.mask_NT, logprobs_NT, 2e4), 2 * padding_N3], 1)
    padded = weights(name, rollouts.with_(**junk), padded_NT)
    close(padded[:, :-3], weights(name, rollouts, logprobs_NT), 1e-11)
    close(padded[:, -3:], 0.0)


# copo's standard deviation over prompts has ddof = 1, and shrinkage leaves a prompt out of its mean: both count them
@pytest.mark.parametrize("name", sorted(ALGORITHMS.keys() - {"copo", "shrinkage"}))
def test_a_batch_twice_over_has_the_same_mean(name):
    rollouts, logprobs_NT = random_batch()
    rows, prompts = list(range(12)) * 2, [0, 1, 2] * 2
    doubled = weights(name, rearranged(rollouts, rows, prompts), logprobs_NT[rows])
    single = weights(name, rollouts, logprobs_NT)
    close(doubled, torch.cat([single, single]) / 2, 1e-11)


@every_algorithm
def test_an_unscored_response_might_as_well_not_be_there(name):
    """One of four lost in every group, then a whole group: the rest is weighed as if they had never been sampled."""
    rollouts, logprobs_NT = random_batch()
    lost = rollouts.rewards_PG.clone()
    lost[[0, 1, 2], [1, 3, 0]] = torch.nan
    rows = [n for n in range(12) if not lost.view(-1)[n].isnan()]
    with_holes = weights(name, rollouts.with_(rewards_PG=lost), logprobs_NT)
    close(with_holes[rows], weights(name, rearranged(rollouts, rows, [0, 1, 2]), logprobs_NT[rows]), 1e-11)
    close(with_holes[[1, 7, 8]], 0.0)

    lost = rollouts.rewards_PG.clone()
    lost[1] = torch.nan
    rows = [0, 1, 2, 3, 8, 9, 10, 11]
    with_hole = weights(name, rollouts.with_(rewards_PG=lost), logprobs_NT)
    close(with_hole[rows], weights(name, rearranged(rollouts, rows, [0, 2]), logprobs_NT[rows]), 1e-11)
    close(with_hole[4:8], 0.0)

    nothing_left = weights(name, rollouts.with_(rewards_PG=torch.full_like(lost, torch.nan)), logprobs_NT)
    close(nothing_left, 0.0)


@every_algorithm
def test_equal_rewards_give_no_gradient(name):
    rollouts, logprobs_NT = random_batch(rewards_PG=[[0.1] * 4] * 3)  # a number that floating point cannot average
    weights_NT = weights(name, rollouts, logprobs_NT)
    assert bool((weights_NT == 0).all()) == (name not in NOT_ZERO_AT_EQUAL_REWARDS)


@every_algorithm
def test_rewards_that_differ_by_rounding_are_equal(name):
    """0.1 + 0.2 in place of 0.3: in a constant group, in ties beside others, and between prompts of a constant batch."""
    for exact, rounded in [
        (
            [[0.3] * 4, [0.3, 1.0, 0.3, 0.0], [0.3] * 4],
            [[0.3, 0.1 + 0.2] * 2, [0.3, 1.0, 0.1 + 0.2, 0.0], [0.1 + 0.2] * 4],
        ),
        ([[0.3] * 4] * 3, [[0.3] * 4, [0.1 + 0.2] * 4, [0.1 + 0.2, 0.3] * 2]),
    ]:
        expected, found = (weights(name, *random_batch(rewards_PG=rewards)) for rewards in (exact, rounded))
        close(found, expected, 1e-9)


@every_algorithm
def test_flags_say_what_the_weights_do(name):
    flags = ALGORITHMS[name]
    rollouts, sampling_NT = random_batch(on_policy=True)
    _, moved_NT = random_batch()
    weights_NT = weights(name, rollouts, sampling_NT)
    ratio_free = torch.allclose(weights(name, rollouts, moved_NT), weights_NT, rtol=1e-9, atol=1e-12)
    assert flags.on_policy_only == ratio_free

    own_NT = weights_NT[:, :1] * rollouts.mask_NT
    assert flags.token_level == (not torch.allclose(weights_NT, own_NT, rtol=1e-9, atol=1e-12))

    # prompts 1 and 2 with other rewards, entropies, values and, by taking other rows for them, lengths and answers
    other, _ = random_batch(seed=1, rewards_PG=[REWARDS[0], [1.0, 1.0, 1.0, 1.0], [0.0, 0.0, 0.5, 0.0]])
    mixed = {}
    for field in fields(rollouts):
        mine, theirs = getattr(rollouts, field.name), getattr(other, field.name)
        if field.name.endswith("_NT") and mine is not None:
            mixed[field.name] = torch.cat([mine[:4], theirs[4:]])
        elif field.name.endswith(("_PG", "_P")) and mine is not None:
            mixed[field.name] = torch.cat([mine[:1], theirs[1:]])
    rows = [0, 1, 2, 3, 4, 5, 6, 7, 7, 5, 6, 7]
    changed = rearranged(rollouts.with_(**mixed), rows, [0, 1, 2])
    moved = weights(name, changed, sampling_NT[rows])[:4]
    assert flags.couples_prompts == (not torch.allclose(moved, weights_NT[:4], rtol=1e-9, atol=1e-12))


@every_algorithm
def test_missing_needs_are_named(name):
    rollouts, logprobs_NT = random_batch()
    for need in ALGORITHMS[name].needs:
        with pytest.raises(ValueError, match=need):
            ALGORITHMS[name].loss(logprobs_NT, rollouts.with_(**{need: None}))


CONF = Path(__file__).parents[3] / "conf" / "algo"
UNIVERSAL = {
    "name",
    "updates_per_rollout",
    "minibatches",
    "kl_coef",
    "kl_estimator",
    "kl_placement",
    "entropy_coef",
}


def test_every_algorithm_has_its_file():
    assert {path.stem for path in CONF.glob("*.yaml")} >= set(ALGORITHMS)


@every_algorithm
def test_the_yaml_says_what_the_function_says(name):
    text = (CONF / f"{name}.yaml").read_text()
    assert text.startswith("# ")
    config = yaml.safe_load(text)
    assert config["name"] == name
    hyperparameters = {k: v for k, v in config.items() if k not in {*UNIVERSAL, *OPTIONS}}
    assert set(config) - set(hyperparameters) - set(OPTIONS) == UNIVERSAL
    assert hyperparameters == {k: p.default for k, p in ALGORITHMS[name].parameters.items()}
    assert {k: type(v) for k, v in hyperparameters.items()} == {
        k: type(p.default) for k, p in ALGORITHMS[name].parameters.items()
    }
    assert config["kl_estimator"] in get_args(KLEstimator)
    assert config["kl_placement"] in ("loss", "reward")
    assert config["updates_per_rollout"] % config["minibatches"] == 0
    assert 16 % config["minibatches"] == 0
    assert not ALGORITHMS[name].on_policy_only or config["updates_per_rollout"] == 1
