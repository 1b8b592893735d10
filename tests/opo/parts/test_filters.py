"""Filters of responses and the curvature mask: weights by hand, draws, and the quadratic model against the real change."""

import pytest
import torch
from batches import close, f64
from small import random_rollouts, small_gpt2

from opo.model.policy import Policy
from opo.parts.curvature import CurvatureMask, quadratic, token_step, top_logits
from opo.parts.filters import Best, BestRandom, BestWorst, Power, drawn

NAN = float("nan")


@pytest.mark.parametrize(
    ("part", "rewards", "expected"),
    [
        (Best(), [0.2, 1.0, 0.5, NAN], [0, 1, 0, 0]),
        (Best(), [1.0, 1.0, 0.5, 0.0], [0.5, 0.5, 0, 0]),
        (BestRandom(), [0.2, 1.0, 0.5, NAN], [0.25, 0.5, 0.25, 0]),
        (BestWorst(), [0.2, 1.0, 0.5, NAN], [0.5, 0.5, 0, 0]),
        (BestWorst(), [0.3, 0.3, 0.3, 0.3], [0.25] * 4),
        (Power(exponent=2.0), [-1.0, 1.0, 0.0, NAN], [0.5, 0.5, 0, 0]),
        (Power(exponent=1.0), [0.0, 0.0, NAN, 0.0], [1 / 3, 1 / 3, 0, 1 / 3]),
    ],
)
def test_weights_by_hand(part, rewards, expected):
    close(part.weights(f64([rewards])), f64([expected]))


@pytest.mark.parametrize("part", [Best(), BestRandom(), BestWorst(), Power()])
def test_weights_follow_the_responses_and_sum_to_one(part):
    rewards_PG = torch.rand(5, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64).round(decimals=1)
    order = [3, 1, 5, 0, 2, 4]
    weights_PG = part.weights(rewards_PG)
    close(weights_PG.sum(1), 1.0)
    close(part.weights(rewards_PG[:, order]), weights_PG[:, order])


@pytest.mark.parametrize("part", [Best(), BestRandom(), BestWorst()])
def test_ties_up_to_rounding_share(part):
    rollouts = random_rollouts(prompts=2, group=4)
    rounded = rollouts.with_(rewards_PG=f64([[0.3, 0.1 + 0.2, 0.0, 0.3], [1.0, -0.3, -0.1 - 0.2, 0.5]]))
    exact = rollouts.with_(rewards_PG=f64([[0.3, 0.3, 0.0, 0.3], [1.0, -0.3, -0.3, 0.5]]))
    close(part.weights(rounded.rewards_PG), part.weights(exact.rewards_PG))


def test_drawn_groups_hold_what_weighs_something():
    rollouts = random_rollouts(prompts=3, group=4)
    rewards_PG = f64([[0.0, 1.0, 0.5, 0.2], [0.0, 0.0, 0.0, 1.0], [NAN] * 4])
    rollouts = rollouts.with_(rewards_PG=rewards_PG, answers=[["a", "b", "c", "d"]] * 3)
    chosen = drawn(rollouts, Best().weights(rewards_PG), torch.Generator().manual_seed(0))
    assert chosen.rewards_PG[:2].tolist() == [[1.0] * 4] * 2
    assert chosen.answers == [["b"] * 4, ["d"] * 4, ["a", "b", "c", "d"]]
    assert torch.equal(chosen.tokens_NT[:4], rollouts.tokens_NT[[1] * 4])
    assert torch.equal(chosen.tokens_NT[8:], rollouts.tokens_NT[8:])  # nothing scored: as it was
    assert chosen.lengths_N.tolist() == [int(rollouts.lengths_N[n]) for n in [1] * 4 + [7] * 4 + [8, 9, 10, 11]]


def test_draws_have_the_frequencies_of_their_weights():
    rollouts = random_rollouts(prompts=1, group=4000)
    rollouts = rollouts.with_(rewards_PG=(torch.arange(4000) % 4).double()[None])
    chosen = drawn(rollouts, BestRandom().weights(rollouts.rewards_PG), torch.Generator().manual_seed(0))
    assert float((chosen.rewards_PG == 3).double().mean()) == pytest.approx(0.5, abs=0.03)  # 4 standard errors


def head_step(advantage: float, mask: CurvatureMask, seed: int = 0):
    """One token of a policy over 11 tokens with 5 hidden units, every token likely enough to count."""
    rng = torch.Generator().manual_seed(seed)
    weight_VD = torch.randn(11, 5, generator=rng, dtype=torch.float64)
    hidden_D = torch.randn(5, generator=rng, dtype=torch.float64)
    logits_KV = (weight_VD @ hidden_D)[None]
    found = top_logits(logits_KV, torch.tensor([4]), 11)
    return weight_VD, hidden_D, token_step(*found, hidden_D[None], f64([advantage]), temperature=1.0, mask=mask)


def test_the_quadratic_model_foresees_the_change_of_the_ratio_to_third_order():
    mask = CurvatureMask(direction="sgd")
    weight_VD, hidden_D, step = head_step(0.7, mask)
    direction_VD = torch.zeros_like(weight_VD).index_add(0, step.ids_KC[0], step.gradient_KCD[0])
    errors = []
    for rate in (0.02, 0.01):
        before, after = ((w @ hidden_D).log_softmax(0)[4] for w in (weight_VD, weight_VD + rate * direction_VD))
        objective_K, _ = quadratic(step, rate)
        errors.append(float(0.7 * torch.expm1(after - before) - objective_K[0]))
    assert errors[0] / errors[1] == pytest.approx(8, rel=0.1)  # an error of third order: half the step, an eighth of it


def test_the_mean_of_the_policy_term_is_the_kl_of_the_step():
    mask = CurvatureMask(direction="sgd")
    rate, ratios = 1e-3, []
    weight_VD, hidden_D, step = head_step(1.0, mask)
    direction_VD = torch.zeros_like(weight_VD).index_add(0, step.ids_KC[0], step.gradient_KCD[0])
    probabilities_V = (weight_VD @ hidden_D).softmax(0)
    moved_V = ((weight_VD + rate * direction_VD) @ hidden_D).log_softmax(0)
    kl = float((probabilities_V * (probabilities_V.log() - moved_V)).sum())
    change_V = direction_VD @ hidden_D  # of the logits, the same whichever token is asked
    for token in range(11):
        slope = change_V[token] - probabilities_V @ change_V
        ratios.append(float(probabilities_V[token] * rate**2 / 2 * slope**2))
    assert sum(ratios) == pytest.approx(kl, rel=1e-2)
    _, policy_K = quadratic(step, rate)
    assert float(policy_K[0]) == pytest.approx(ratios[4] / float(probabilities_V[4]), rel=1e-9)


def test_adam_direction_is_that_of_the_optimizer():
    mask = CurvatureMask()
    weight_VD, hidden_D, step = head_step(0.7, mask)
    gradient_VD = torch.zeros_like(weight_VD).index_add(0, step.ids_KC[0], step.gradient_KCD[0])
    mask._remember(gradient_VD)
    _, _, second = head_step(0.3, mask)
    parameter = torch.nn.Parameter(weight_VD.clone())
    adam = torch.optim.Adam([parameter], lr=1.0, betas=(0.9, 0.999), eps=1e-8, maximize=True)
    for gradient in (gradient_VD, torch.zeros_like(weight_VD).index_add(0, second.ids_KC[0], second.gradient_KCD[0])):
        before = parameter.detach().clone()
        parameter.grad = gradient
        adam.step()
    change_V = (parameter.detach() - before) @ hidden_D
    close(second.change_KC[0], change_V[second.ids_KC[0]], 1e-9)


@pytest.mark.parametrize("token_budget", [20, 10_000])
def test_the_mask_keeps_everything_or_nothing_by_its_limits(token_budget):
    rollouts = random_rollouts()
    policy = Policy(small_gpt2(), None, token_budget=token_budget)  # type: ignore[arg-type]
    advantages_NT = torch.randn(rollouts.mask_NT.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    everything = CurvatureMask(limit_objective=1e6, limit_policy=1e6)
    close(everything(policy, rollouts, advantages_NT, 1e-3), rollouts.mask_NT.double())
    nothing = CurvatureMask(limit_objective=0.0)
    close(nothing(policy, rollouts, advantages_NT, 1e-3), 0.0)
    assert everything.first_VD is not None
    assert nothing.first_VD is not None
    assert bool(everything.first_VD.any())
    assert not bool(nothing.first_VD.any())


def test_the_mask_renormalises_by_what_stays_and_resumes():
    rollouts = random_rollouts()
    policy = Policy(small_gpt2(), None)  # type: ignore[arg-type]
    advantages_NT = torch.randn(rollouts.mask_NT.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    plain, scaled = CurvatureMask(renormalise=False), CurvatureMask()
    for rate in (3e-4, 3e-4):
        factor_NT = plain(policy, rollouts, advantages_NT, rate)
        scaled_NT = scaled(policy, rollouts, advantages_NT, rate)
    kept_N = factor_NT.sum(1)
    assert 0 < float(kept_N.sum()) < int(rollouts.mask_NT.sum())
    close(scaled_NT.sum(1), torch.where(kept_N > 0, rollouts.lengths_N.double(), 0.0))
    again = CurvatureMask(renormalise=False)
    again.load(plain.state())
    close(again(policy, rollouts, advantages_NT, 3e-4), plain(policy, rollouts, advantages_NT, 3e-4))
