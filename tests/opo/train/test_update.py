"""Minibatches, schedules and the gradient of a whole batch."""

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from small import random_rollouts, small_gpt2

from opo.algorithms import ALGORITHMS, token_weights
from opo.batch import Rollouts
from opo.config.schema import AlgoConfig, CertificateConfig, OptimConfig, RolloutConfig, RunConfig
from opo.errors import StoppedRun
from opo.gae import gae, value_loss
from opo.model.gradient import accumulate, clip_gradients, gradient_norm
from opo.model.policy import Policy
from opo.train.critic import Critic, update_critic
from opo.train.learner import Learner
from opo.train.optimizer import learning_rate, take_step
from opo.train.prepare import prepare
from opo.train.update import loss_of, minibatch, unit_weights


def config(prompts: int, minibatches: int) -> Any:
    return SimpleNamespace(
        algo=AlgoConfig(minibatches=minibatches), rollout=SimpleNamespace(num_prompts=prompts), seed=3
    )


@pytest.mark.parametrize("minibatches", [1, 2, 4])
def test_every_epoch_uses_every_prompt_once(minibatches):
    asked = config(8, minibatches)
    for epoch in range(3):
        parts = [minibatch(asked, 5, epoch * minibatches + part) for part in range(minibatches)]
        assert sorted(p for part in parts for p in part) == list(range(8))
        assert {len(part) for part in parts} == {8 // minibatches}
    if minibatches > 1:
        assert minibatch(asked, 5, 0) != minibatch(asked, 5, minibatches)  # another epoch, another permutation
        assert minibatch(asked, 5, 0) == minibatch(asked, 5, 0)


def test_schedules_in_closed_form():
    assert learning_rate(2.0, "constant", 0, 7, 10) == 2.0
    assert learning_rate(2.0, "linear", 0, 5, 10) == pytest.approx(1.0)
    assert learning_rate(2.0, "cosine", 0, 5, 10) == pytest.approx(1.0)
    assert learning_rate(2.0, "cosine", 0, 2, 8) == pytest.approx(1 + math.cos(math.pi / 4))
    assert [learning_rate(1.0, "linear", 4, u, 8) for u in range(5)] == [0.25, 0.5, 0.75, 1.0, 1.0]


def gradient(model: Any) -> torch.Tensor:
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


@pytest.mark.parametrize("name", ["opo", "grpo", "rloo", "dapo", "reinforce_pp"])
def test_the_gradient_is_that_of_the_loss_through_the_model(name):
    """Weights carried through the model part by part equal autograd through loss and model at once."""
    model, rollouts = small_gpt2(), random_rollouts(prompts=4, group=4, seed=2)
    policy = Policy(model, None, token_budget=25)  # type: ignore[arg-type]
    measured = policy.measure(rollouts, [0, 1, 2, 3]).logprobs_NT
    rollouts = rollouts.with_(logprobs_NT=measured)
    algo = AlgoConfig(name=name, hyperparameters={k: p.default for k, p in ALGORITHMS[name].parameters.items()})
    model.zero_grad()
    accumulate(policy, rollouts, [0, 1, 2, 3], token_weights(loss_of(algo, rollouts), measured))
    parts = gradient(model)

    model.zero_grad()
    logprobs_NT = torch.zeros_like(measured)
    for n in range(16):
        prompt, length = rollouts.prompt_ids[n // 4], int(rollouts.lengths_N[n])
        ids = torch.cat([torch.tensor(prompt), rollouts.tokens_NT[n, :length]])[None]
        logits_TV = model(input_ids=ids).logits[0, len(prompt) - 1 : -1]
        row_T = logits_TV.log_softmax(-1).gather(1, rollouts.tokens_NT[n, :length, None]).squeeze(1)
        logprobs_NT = logprobs_NT.index_put((torch.tensor([n]), torch.arange(length)), row_T)
    loss_of(algo, rollouts)(logprobs_NT).backward()
    assert (parts - gradient(model)).norm() <= 1e-12 * gradient(model).norm()


def test_clipping_scales_to_the_norm_and_reports_the_unclipped_one():
    parameter = torch.nn.Parameter(torch.zeros(2))
    parameter.grad = torch.tensor([3.0, 4.0])
    norm = gradient_norm([parameter])
    assert norm == pytest.approx(5.0)
    assert clip_gradients([parameter], norm, 1.0)
    assert parameter.grad.norm().item() == pytest.approx(1.0, rel=1e-5)
    assert not clip_gradients([parameter], 1.0, 0.0)
    assert not clip_gradients([parameter], 1.0, 2.0)


@pytest.mark.parametrize("on_breach", ["stop", "correct"])
@pytest.mark.parametrize("minibatches", [1, 2])
def test_one_token_of_older_weights_stops_the_run(tmp_path: Path, on_breach: Any, minibatches: int) -> None:
    """In the middle of one response, in the last minibatch, with log-probabilities that show nothing."""
    run = RunConfig.of(
        None,
        algo=AlgoConfig(minibatches=minibatches),
        rollout=RolloutConfig(num_prompts=4, group_size=3),
        certificate=CertificateConfig(on_breach),
    )
    policy = Policy(small_gpt2(), None)  # type: ignore[arg-type]
    rollouts = random_rollouts(lengths=(5, 11))
    current_NT = 7 * rollouts.mask_NT.long()
    rollouts = rollouts.with_(logprobs_NT=policy.measure(rollouts, [0, 1, 2, 3]).logprobs_NT, versions_NT=current_NT)
    stale_NT = current_NT.clone()
    stale_NT[rollouts.rows_of(minibatch(run, 0, minibatches - 1))[1], 2] = 6
    learner = Learner(run, policy, tmp_path)
    learner.version = 7
    before = [p.clone() for p in policy.parameters()]
    with pytest.raises(StoppedRun, match=r"step 1 .*weights of version 6, 7, allowed only 7$"):
        learner.update(rollouts.with_(versions_NT=stale_NT))
    assert learner.version == 7
    assert all(torch.equal(old, new) for old, new in zip(before, policy.parameters(), strict=True))
    learner.update(rollouts)  # without that token all is well
    assert learner.version == 8


@pytest.mark.parametrize("budget", [16, 4096])
def test_a_critic_sees_each_response_once_and_counts_its_copies(budget: int) -> None:
    """Against one whole pass over the plain rows: copies with their own rewards, old values and one without a reward."""
    same, other = [3, 4, 5, 6], [3, 4]
    responses = [[same, other, same], [other, same, same], [[9], [9], [9]]]
    rewards = [[1.0, 0.0, math.nan], [0.25, 1.0, 0.0], [0.0, 1.0, 1.0]]
    rollouts = Rollouts.from_lists([[7, 8], [7, 8, 9], [1]], responses, rewards)
    g = torch.Generator().manual_seed(0)
    old_NT = torch.randn(rollouts.mask_NT.shape, generator=g, dtype=torch.float64) * rollouts.mask_NT
    rollouts = rollouts.with_(values_NT=old_NT)
    no_tokenizer: Any = None
    critic = Critic(Policy(small_gpt2(), no_tokenizer, token_budget=budget))
    torch.nn.init.normal_(critic.head.weight, generator=g)

    expected_NT = torch.zeros_like(old_NT)
    for n, length in enumerate(rollouts.lengths_N.tolist()):
        prompt = rollouts.prompt_ids[n // 3]
        ids = torch.cat([torch.tensor(prompt), rollouts.tokens_NT[n, : length - 1]])[None]
        expected_NT[n, :length] = critic.head(critic.decoder(input_ids=ids).last_hidden_state)[0, len(prompt) - 1 :, 0]
    torch.testing.assert_close(critic.values(rollouts), expected_NT.detach(), rtol=1e-6, atol=1e-6)
    asked = RunConfig.of(
        None,
        algo=AlgoConfig("ppo"),
        optim=OptimConfig(tokens_per_microbatch=budget, max_grad_norm=0.0),
    )
    hyperparameters = {name: p.default for name, p in ALGORITHMS["ppo"].parameters.items()}
    _, target_NT = gae(
        rollouts.token_rewards_NT, old_NT, rollouts.mask_NT, hyperparameters["gamma"], hyperparameters["lam"]
    )
    rows = rollouts.rows_of([0, 2])
    inside_NT = (rollouts.mask_NT & rollouts.scored_N[:, None])[rows]
    loss = value_loss(expected_NT[rows], old_NT[rows], target_NT[rows], inside_NT, hyperparameters["value_clip"])
    parameters = [p for p in critic.parameters() if p.requires_grad]
    gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
    optimizer = torch.optim.SGD(parameters, lr=1.0)
    before = [p.detach().clone() for p in parameters]
    found, norm = update_critic(critic, optimizer, rollouts, [0, 2], asked)
    assert found == pytest.approx(loss.item(), rel=1e-5)
    moved = torch.cat([(a - b.detach()).flatten() for a, b in zip(before, parameters, strict=True)])
    wanted = torch.cat(
        [(torch.zeros_like(p) if d is None else d).flatten() for p, d in zip(parameters, gradients, strict=True)]
    )
    assert (moved - wanted).norm() < 1e-5 * wanted.norm()
    assert norm == pytest.approx(float(wanted.norm()), rel=1e-5)


def learner_of(algo: AlgoConfig, path: Path, **changes: Any) -> Learner:
    """A learner of a small policy at its start."""
    no_tokenizer: Any = None
    rollout = RolloutConfig(num_prompts=4, group_size=3)
    config = RunConfig.of(None, algo=algo, rollout=rollout, optim=OptimConfig(**changes))
    return Learner(config, Policy(small_gpt2(), no_tokenizer), path)


def test_a_kl_reward_is_exactly_zero_where_the_policy_is_the_reference(tmp_path):
    """So that whitening has nothing to blow up: all rewards equal, nothing moves."""
    algo = AlgoConfig("reinforce_pp", kl_coef=0.1, kl_placement="reward", kl_estimator="k1")
    algo.hyperparameters = ALGORITHMS["reinforce_pp"].hyperparameters({})
    learner = learner_of(algo, tmp_path)
    rollouts = random_rollouts()
    rollouts = rollouts.with_(
        rewards_PG=torch.zeros(4, 3, dtype=torch.float64), versions_NT=torch.zeros_like(rollouts.tokens_NT)
    )
    sampled_NT = learner.policy.measure(rollouts, [0, 1, 2, 3]).logprobs_NT
    noise_NT = 1e-12 * torch.randn(sampled_NT.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    rollouts = rollouts.with_(logprobs_NT=(sampled_NT + noise_NT) * rollouts.mask_NT)
    batch: Any = SimpleNamespace(rollouts=rollouts)
    no_collector: Any = None
    ready = prepare(batch, learner, no_collector)
    assert ready.kl_rewards_NT is not None
    assert not ready.kl_rewards_NT.any()
    metrics = learner.update(ready)
    assert metrics["train/grad_norm"] == 0.0
    assert metrics["train/moved_fraction"] == 0.0


@pytest.mark.parametrize(
    ("name", "options", "per_token"),
    [
        ("opo", {}, lambda lengths_N: torch.ones_like(lengths_N) / 11),
        ("dr_grpo", {"denominator": 7.0}, lambda lengths_N: torch.ones_like(lengths_N) / 77),
        ("gspo", {}, lambda lengths_N: 1 / (11 * lengths_N)),
        ("dapo", {}, lambda lengths_N: torch.ones_like(lengths_N) / lengths_N[1:].sum()),
    ],
)
def test_penalties_and_bonuses_are_scaled_as_the_policy_term_and_leave_out_unscored_responses(name, options, per_token):
    rollouts = random_rollouts()
    rewards_PG = rollouts.rewards_PG.clone()
    rewards_PG[0, 0] = math.nan
    rollouts = rollouts.with_(rewards_PG=rewards_PG)
    algo = AlgoConfig(name, hyperparameters=ALGORITHMS[name].hyperparameters(options))
    expected_N = per_token(rollouts.lengths_N.double())
    expected_N[0] = 0.0
    torch.testing.assert_close(unit_weights(algo, rollouts), expected_N[:, None] * rollouts.mask_NT)


def test_weights_that_an_update_leaves_where_they_were_are_counted(tmp_path):
    """A step far below the rounding of bfloat16 moves next to nothing; in float32 it moves all that has a gradient."""
    shares = []
    for dtype in (torch.float32, torch.bfloat16):
        parameter = torch.nn.Parameter((1 + torch.rand(1000, generator=torch.Generator().manual_seed(0))).to(dtype))
        parameter.grad = torch.ones_like(parameter)
        shares.append(take_step(torch.optim.SGD([parameter], lr=1e-5)))
    assert shares[0] == 1.0
    assert shares[1] < 0.01
