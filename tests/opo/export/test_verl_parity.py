"""Where verl imports: what is exported composes against its config, passes its validation, and has its token weights."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from opo.algorithms import ALGORITHMS, token_weights
from opo.batch import Rollouts
from opo.cli.compose import composed
from opo.export.config import VerlExport, load_config
from opo.export.verl import overrides
from opo.export.verl_files import written
from opo.losses import standardized_advantages

pytest.importorskip("verl", reason="verl is not installed here (make prove installs it)")
pytestmark = pytest.mark.prove


def batch() -> Rollouts:
    """Groups of mixed lengths and rewards, one of them constant."""
    rng = np.random.default_rng(0)
    lengths, rewards = rng.integers(1, 12, (6, 8)), rng.integers(0, 2, (6, 8)).astype(float)
    rewards[2] = 1.0
    ids = [[[1] * int(n) for n in row] for row in lengths]
    return Rollouts.from_lists([[1]] * 6, ids, rewards.tolist(), [[[-1.0] * len(r) for r in row] for row in ids])


def verl_config(lines: list[str]) -> Any:
    from hydra import compose, initialize_config_dir

    spec = find_spec("verl")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    with initialize_config_dir(f"{next(iter(spec.submodule_search_locations))}/trainer/config", version_base=None):
        return compose("ppo_trainer", lines)


def verl_advantages(name: str, rollouts: Rollouts, **given: Any) -> torch.Tensor:
    """Advantages by verl's estimator of this name, (N, T)."""
    from verl.trainer.ppo.core_algos import get_adv_estimator_fn  # pyright: ignore

    mask_NT = rollouts.mask_NT.double()
    index = np.repeat(np.arange(rollouts.num_prompts), rollouts.group_size)
    rewards_NT = torch.zeros_like(mask_NT)
    rewards_NT.scatter_(1, rollouts.lengths_N[:, None] - 1, rollouts.rewards_PG.view(-1, 1))
    return get_adv_estimator_fn(name)(token_level_rewards=rewards_NT, response_mask=mask_NT, index=index, **given)[0]


def verl_weights(config: Any, rollouts: Rollouts) -> torch.Tensor:
    """Token weights at the on-policy point of verl's own advantage function and policy loss, under its config."""
    from verl.trainer.ppo.core_algos import get_policy_loss_fn  # pyright: ignore
    from verl.utils.config import omega_conf_to_dataclass  # pyright: ignore

    mask_NT, name = rollouts.mask_NT.double(), config.algorithm.adv_estimator
    given = {"norm_adv_by_std_in_grpo": config.algorithm.norm_adv_by_std_in_grpo} if name == "grpo" else {}
    advantages = verl_advantages(name, rollouts, config=config.algorithm, **given)
    actor = omega_conf_to_dataclass(config.actor_rollout_ref.actor)
    actor.global_batch_info["loss_scale_factor"] = actor.loss_scale_factor
    old_NT = rollouts.logprobs_NT
    assert old_NT is not None
    leaf_NT = old_NT.clone().requires_grad_()
    mode = actor.loss_agg_mode
    loss, _ = get_policy_loss_fn("vanilla")(old_NT, leaf_NT, advantages, mask_NT, loss_agg_mode=mode, config=actor)
    (gradient_NT,) = torch.autograd.grad(loss, leaf_NT)
    return -gradient_NT


@pytest.mark.parametrize(
    ("lines", "tolerance"),
    [
        (["algo=opo"], 1e-12),
        (["algo=dr_grpo"], 1e-12),
        (["algo=dr_grpo", "algo.denominator=48"], 1e-12),
        (["algo=rloo"], 1e-12),
        (["algo=grpo"], 1e-7),  # verl adds 1e-8 to the length
        (["algo=grpo", "algo.aggregation=token_mean"], 1e-12),
        (["algo=grpo", "algo.updates_per_rollout=8", "algo.minibatches=4", "algo.kl_coef=0.01"], 1e-7),
        (["algo=opo", "algo.kl_coef=0.01", "algo.kl_placement=reward", "algo.entropy_coef=0.01"], 1e-12),
    ],
    ids=str,
)
def test_verl_takes_the_config_and_has_the_same_token_weights(
    lines: list[str], tolerance: float, tmp_path: Path
) -> None:
    from verl.utils.config import validate_config  # pyright: ignore

    asked = load_config(composed("export", [*lines, f"path={tmp_path}/new", "optim.beta2=0.97"]))
    assert isinstance(asked, VerlExport)
    told = overrides(asked.run, 8, 1) | {"data.max_prompt_length": 10}
    config = verl_config([f"{key}={written(value)}" for key, value in told.items()])
    validate_config(config, use_reference_policy=asked.algo.kl_coef > 0, use_critic=False)
    assert list(config.actor_rollout_ref.actor.optim.betas) == [0.9, 0.97]
    rollouts = batch()
    assert rollouts.logprobs_NT is not None
    loss, hyper = ALGORITHMS[asked.algo.name].loss, asked.algo.hyperparameters
    own_NT = token_weights(lambda leaf_NT: loss(leaf_NT, rollouts, **hyper), rollouts.logprobs_NT)
    assert float((own_NT - verl_weights(config, rollouts)).abs().max()) <= tolerance * float(own_NT.abs().max())


def test_verl_refuses_a_key_that_it_does_not_know() -> None:
    with pytest.raises(Exception, match="los_agg_mode"):
        verl_config(["actor_rollout_ref.actor.los_agg_mode=x"])


def test_where_the_losses_of_verl_deviate_as_named() -> None:
    """Its seq-mean-token-sum-norm divides by the padded width, so it hangs on the padding; ours divides by a number that is given."""
    from verl.trainer.ppo.core_algos import agg_loss  # pyright: ignore

    rng = torch.Generator().manual_seed(0)
    values_NT = torch.rand(4, 6, generator=rng, dtype=torch.float64)
    mask_NT = (torch.arange(6) < torch.tensor([[6], [2], [3], [1]])).double()
    summed = (values_NT * mask_NT).sum(1).mean()
    for padding in (0, 5):
        wide = [torch.nn.functional.pad(x, (0, padding)) for x in (values_NT, mask_NT)]
        assert float(agg_loss(*wide, "seq-mean-token-sum-norm")) == pytest.approx(float(summed) / (6 + padding))
        assert float(agg_loss(*wide, "seq-mean-token-sum")) == pytest.approx(float(summed))
        token_mean = (values_NT * mask_NT).sum() / mask_NT.sum()
        assert float(agg_loss(*wide, "token-mean")) == pytest.approx(float(token_mean))


def test_gspo_of_verl_is_its_token_form() -> None:
    """Its weights are ours where no sequence is clipped: the token form has the gradient of the sequence's ratio (arXiv 2507.18071, 4.3)."""
    from verl.trainer.ppo.core_algos import get_policy_loss_fn  # pyright: ignore
    from verl.workers.config import ActorConfig  # pyright: ignore

    rollouts = batch()
    old_NT = rollouts.logprobs_NT
    assert old_NT is not None
    rng = torch.Generator().manual_seed(0)
    new_NT = old_NT + 0.02 * torch.randn(old_NT.shape, generator=rng, dtype=torch.float64) * rollouts.mask_NT
    own_NT = token_weights(lambda x_NT: ALGORITHMS["gspo"].loss(x_NT, rollouts, clip_low=0.9, clip_high=0.9), new_NT)
    advantages_N = standardized_advantages(rollouts, 1e-6)
    leaf_NT = new_NT.clone().requires_grad_()
    actor = ActorConfig(
        strategy="fsdp",
        rollout_n=8,
        ppo_micro_batch_size_per_gpu=1,
        clip_ratio=0.9,
        clip_ratio_low=0.9,
        clip_ratio_high=0.9,
    )
    loss, _ = get_policy_loss_fn("gspo")(
        old_NT,
        leaf_NT,
        advantages_N[:, None].expand_as(old_NT),
        rollouts.mask_NT.double(),
        loss_agg_mode="seq-mean-token-mean",
        config=actor,
    )
    (grad_NT,) = torch.autograd.grad(loss, leaf_NT)
    torch.testing.assert_close(-grad_NT, own_NT, rtol=1e-6, atol=1e-9)


def own_weights(name: str, rollouts: Rollouts) -> torch.Tensor:
    """Token weights of our own algorithm, times the number of tokens where its loss is their mean."""
    assert rollouts.logprobs_NT is not None
    loss = ALGORITHMS[name].loss
    weights_NT = token_weights(lambda leaf_NT: loss(leaf_NT, rollouts), rollouts.logprobs_NT)
    return weights_NT * (rollouts.mask_NT.sum() if name != "remax" else rollouts.mask_NT.shape[0])


def test_what_is_said_of_the_algorithms_that_are_refused() -> None:
    """Each difference is the whole difference: corrected for it, the advantages agree."""
    from verl.trainer.config import AlgoConfig  # pyright: ignore

    rollouts = batch()
    greedy_P, mask_NT = torch.tensor([0.0, 1, 0, 1, 1, 0], dtype=torch.float64), rollouts.mask_NT
    rollouts = rollouts.with_(greedy_rewards_P=greedy_P)
    tokens, lengths_N = int(mask_NT.sum()), rollouts.lengths_N.double()
    corrected = (tokens - 1) ** 0.5 / tokens**0.5  # from a standard deviation by n to one by n - 1

    def close(one_NT: torch.Tensor, other_NT: torch.Tensor) -> bool:
        return float((one_NT - other_NT).abs().max()) <= 1e-6 * float(one_NT.abs().max())

    def verl(name: str, **given: Any) -> torch.Tensor:
        return verl_advantages(name, rollouts, config=AlgoConfig(), **given)

    assert close(verl("remax", reward_baselines=greedy_P.repeat_interleave(8)), own_weights("remax", rollouts))
    assert close(verl("reinforce_plus_plus"), own_weights("reinforce_pp", rollouts) * corrected)
    centred_N = own_weights("reinforce_pp_baseline", rollouts)[:, 0]  # up to its scale
    centred_N = centred_N - (lengths_N * centred_N).sum() / tokens
    scale = ((lengths_N * centred_N**2).sum() / (tokens - 1)) ** 0.5
    assert close(verl("reinforce_plus_plus_baseline"), centred_N[:, None] / scale * mask_NT)
    varied, earned = 5 / 6, float((rollouts.rewards_PG != 0).double().mean())  # one group of the six is constant
    assert close(verl("gpg"), own_weights("gpg", rollouts) * varied / earned)
    without = ALGORITHMS["dapo"].loss, ALGORITHMS["grpo"].loss
    given = {"clip_high": 0.28, "aggregation": "token_mean"}
    assert rollouts.logprobs_NT is not None
    dapo_NT = token_weights(lambda x_NT: without[0](x_NT, rollouts, drop_constant_groups=False), rollouts.logprobs_NT)
    grpo_NT = token_weights(lambda x_NT: without[1](x_NT, rollouts, **given), rollouts.logprobs_NT)
    assert torch.equal(dapo_NT, grpo_NT)
