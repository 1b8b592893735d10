"""Estimators that weigh tokens, in one pass, against one backward pass per replicate of their own loss."""

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from small import random_rollouts, small_gpt2
from torch import Tensor, nn

from analysis.variance.table import Table
from analysis.variance.token_level import compare_losses, compare_token_weights, sequences
from opo.algorithms import ALGORITHMS
from opo.batch import Rollouts

KNOWN = ("second", "signal", "reference", "cross", "error")


def records(prompts: int, seeds: tuple[int, ...] = (0, 1, 2)) -> list[Rollouts]:
    """Eight responses to each prompt, with what token-level algorithms ask for; the sampler is not the model."""
    found = []
    for seed in seeds:
        rollouts, rng = random_rollouts(prompts, 8, seed, lengths=(1, 3, 6)), np.random.default_rng(seed)
        shape = rollouts.mask_NT.shape
        numbers = {
            name: torch.from_numpy(rng.random(shape)) for name in ("logit_energy_NT", "values_NT", "entropies_NT")
        }
        found.append(rollouts.with_(**numbers, rewards_PG=torch.from_numpy(rng.random((prompts, 8)))))
    return found


def logprobs(model: nn.Module, rollouts: Rollouts) -> Tensor:
    """(N, T) by the model's plain forward pass, one response at a time."""
    rows = []
    for n, mask_T in enumerate(rollouts.mask_NT):
        prompt, tokens = rollouts.prompt_ids[n // rollouts.group_size], rollouts.tokens_NT[n, mask_T]
        logits = model(input_ids=torch.cat([torch.tensor(prompt), tokens])[None]).logits[0, len(prompt) - 1 : -1]
        row = logits.double().log_softmax(-1).gather(1, tokens[:, None])[:, 0]
        rows.append(nn.functional.pad(row, (0, len(mask_T) - len(row))))
    return torch.stack(rows)


def loss_of(name: str, on_policy: bool, model: nn.Module, replicate: Rollouts) -> Tensor:
    now_NT = logprobs(model, replicate)
    given = {"reference_logprobs_NT": replicate.logprobs_NT}
    if on_policy:
        given = {"logprobs_NT": now_NT.detach(), "reference_logprobs_NT": now_NT.detach()}
    return ALGORITHMS[name].loss(now_NT, replicate.with_(**given))


def moments(table: Table, name: str, fields: tuple[str, ...] = KNOWN) -> list[np.ndarray]:
    return [getattr(table[name].moments, field) for field in fields]


@pytest.mark.parametrize(("name", "prompts"), [("otb", 1), ("ppo", 2), ("empg", 2), ("reinforce_pp", 2), ("copg", 1)])
def test_token_weights_in_one_pass_are_the_gradients_of_the_loss(name: str, prompts: int):
    model = small_gpt2()
    samples = [r.with_(logprobs_NT=logprobs(model, r).detach()) for r in records(prompts)]
    fast = compare_token_weights(
        model, samples, 3, [name], np.random.default_rng(7), num_bootstrap=100, num_partitions=2
    )
    slow = compare_losses(
        model,
        samples,
        3,
        {name: partial(loss_of, name, True)},
        np.random.default_rng(7),
        num_bootstrap=100,
        num_partitions=2,
    )
    for row in (name, "leave_one_out"):
        np.testing.assert_allclose(moments(fast, row), moments(slow, row), rtol=1e-8, atol=1e-12)
    assert len(fast[name].moments.second) == 3


@pytest.mark.parametrize("name", ["grpo", "gspo", "ppo"])
def test_ratios_to_the_sampler_enter_clipped_off_policy(name: str, generator: torch.Generator):
    model, samples = small_gpt2(), records(2, (0, 1))
    now = [logprobs(model, r).detach() for r in samples]
    near = [
        r.with_(logprobs_NT=x - 0.3 * torch.rand(x.shape, dtype=torch.float64, generator=generator))
        for r, x in zip(samples, now, strict=True)
    ]
    found = compare_token_weights(model, near, 4, [name], np.random.default_rng(7), num_bootstrap=100, logprobs=now)
    slow = compare_losses(
        model, near, 4, {name: partial(loss_of, name, False)}, np.random.default_rng(7), num_bootstrap=100
    )
    np.testing.assert_allclose(
        moments(found, name, ("second", "signal")), moments(slow, name, ("second", "signal")), rtol=1e-8, atol=1e-13
    )
    on_policy = compare_token_weights(model, near, 4, [name], np.random.default_rng(7), num_bootstrap=100)
    assert abs(on_policy[name].moments.second / found[name].moments.second - 1).max() > 1e-3


def test_the_off_policy_reference_is_weighted_by_the_ratio_of_the_response():
    """u = (1/G) sum_i rho_i (r_i - b_i) z_i against its gradient written out."""
    model, (sample,) = small_gpt2(), records(1, (0,))
    now_NT = logprobs(model, sample)
    shift_NT = 0.2 * torch.from_numpy(np.random.default_rng(4).normal(size=now_NT.shape))
    sample = sample.with_(logprobs_NT=now_NT.detach() + shift_NT)
    table = compare_token_weights(
        model, [sample], 4, ["rloo"], np.random.default_rng(3), num_bootstrap=100, logprobs=[now_NT.detach()]
    )
    rng, order = np.random.default_rng(3), np.arange(8)
    groups = rng.permuted(order[None], axis=1).reshape(2, 4)
    ratio_N = (-shift_NT * sample.mask_NT).sum(1).exp()
    gradients = []
    for group in groups:
        r = sample.rewards_PG[0, group]
        weight = ratio_N[group] * (r - (r.sum() - r) / 3) / 4
        total = (weight * (now_NT * sample.mask_NT)[group].sum(1)).sum()
        grads = torch.autograd.grad(total, list(model.parameters()), retain_graph=True)
        gradients.append(torch.cat([g.flatten() for g in grads]))
    first, second = gradients
    assert table["leave_one_out"].moments.reference[0] == pytest.approx(float(first @ second), rel=1e-8)
    assert table["leave_one_out"].moments.second[0] == pytest.approx(
        float(first @ first + second @ second) / 2, rel=1e-8
    )


def test_rloo_is_its_own_reference_and_comparisons_are_paired():
    table = compare_token_weights(
        small_gpt2(), records(1), 4, {"mine": "rloo"}, np.random.default_rng(0), num_bootstrap=200
    )
    (difference,) = table.against("leave_one_out")
    assert difference.ratio == pytest.approx(1, rel=1e-9)
    assert not difference.resolved


def test_a_loss_over_the_whole_vocabulary_takes_the_slow_way():
    """An entropy bonus adds the same direction to every replicate of one response: more signal, and a bias."""
    model, samples = small_gpt2(), records(1)

    def with_entropy(model: Any, replicate: Rollouts) -> Tensor:
        ids, attended, response, _ = sequences(replicate, replicate.mask_NT.double())
        log_pi = model(input_ids=ids, attention_mask=attended).logits.log_softmax(-1)
        entropy = -(log_pi.exp() * log_pi).sum(-1)[response.bool()].mean()
        return loss_of("rloo", True, model, replicate) - 5.0 * entropy

    losses = {"rloo": partial(loss_of, "rloo", True), "bonus": with_entropy}
    table = compare_losses(model, samples, 4, losses, np.random.default_rng(0), num_bootstrap=200)
    assert table["rloo"].bias == pytest.approx(0, abs=1e-6)
    assert table["bonus"].moments.error.mean() > 1
    assert np.isfinite(table["bonus"].moments.trace).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"group_size": 5}, "record 0: 8 responses do not hold two disjoint groups of 5"),
        ({"records": []}, "at least one record"),
        ({"estimators": ["leave_one_out"]}, "'leave_one_out' is in every table"),
        ({"estimators": ["opoo"]}, "algorithm 'opoo' is unknown"),
        ({"estimators": ["remax"]}, "remax needs greedy_rewards_P"),
        ({"logprobs": []}, "logprobs= needs one tensor for each record"),
    ],
)
def test_bad_input_is_one_clear_line(change: dict[str, Any], message: str):
    given = {
        "records": records(1, (0,)),
        "group_size": 2,
        "estimators": ["otb"],
        "rng": np.random.default_rng(0),
    } | change
    with pytest.raises(ValueError, match=message):
        compare_token_weights(small_gpt2(), **given)


def test_a_response_without_a_reward_is_refused():
    (record,) = records(1, (0,))
    record.rewards_PG[0, 3] = torch.nan
    with pytest.raises(ValueError, match="record 0: a response has no reward"):
        compare_token_weights(small_gpt2(), [record], 2, ["otb"], np.random.default_rng(0))
