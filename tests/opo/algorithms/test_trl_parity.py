"""Where TRL imports: its own loss functions give the same token weights, at the on-policy point and after the policy has moved."""

from collections import defaultdict
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from opo.algorithms import ALGORITHMS, token_weights
from opo.batch import Rollouts
from opo.config.schema import AlgoConfig
from opo.losses import standardized_advantages
from opo.train.update import loss_of

pytest.importorskip("trl", reason="TRL is not installed here (make prove installs it)")
pytestmark = pytest.mark.prove

LIMIT = 16  # TRL's max_completion_length
EPS = 1e-4  # what TRL adds to a standard deviation


def batch() -> Rollouts:
    """Groups of mixed lengths and rewards, one of them constant, with a reference policy."""
    rng = np.random.default_rng(0)
    lengths, rewards = rng.integers(1, 12, (6, 8)), rng.integers(0, 2, (6, 8)).astype(float)
    rewards[2] = 1.0
    ids = [[[1] * int(n) for n in row] for row in lengths]
    logprobs = [[(-rng.random(len(r))).tolist() for r in row] for row in ids]
    rollouts = Rollouts.from_lists([[1]] * 6, ids, rewards.tolist(), logprobs)
    assert rollouts.logprobs_NT is not None
    shift_NT = torch.from_numpy(rng.normal(scale=0.2, size=tuple(rollouts.mask_NT.shape)))
    return rollouts.with_(reference_logprobs_NT=(rollouts.logprobs_NT + shift_NT) * rollouts.mask_NT)


def trl_weights(name: str, rollouts: Rollouts, logprobs_NT: Tensor, advantages_N: Tensor, **given: Any) -> Tensor:
    """-dLoss/dlogprobs by `_compute_loss` of a trainer whose model gives these log-probabilities, (N, T)."""
    from accelerate import Accelerator
    from trl import GRPOTrainer, RLOOTrainer  # pyright: ignore

    kind = {"GRPOTrainer": GRPOTrainer, "RLOOTrainer": RLOOTrainer}[given.pop("trainer", "GRPOTrainer")]
    leaf_NT, old_NT = logprobs_NT.clone().requires_grad_(), rollouts.logprobs_NT
    assert old_NT is not None
    settings: dict[str, Any] = {
        "loss_type": name,
        "importance_sampling_level": "token",
        "epsilon_low": 0.2,
        "epsilon_high": 0.2,
        "beta": 0.0,
        "top_entropy_quantile": 1.0,
        "off_policy_mask_threshold": None,
        "use_vllm": False,
        "aux_loss_enabled": False,
        "_entropy_bonus_enabled": False,
        "max_completion_length": LIMIT,
        "current_gradient_accumulation_steps": 1,
    }
    trainer: Any = kind.__new__(kind)
    trainer.__dict__ |= settings | given
    trainer.args = SimpleNamespace(delta=None, use_bias_correction_kl=False, steps_per_generation=1)
    trainer.accelerator, trainer.model = Accelerator(cpu=True), SimpleNamespace(training=True)
    trainer._metrics = {"train": defaultdict(list)}
    trainer._get_per_token_logps_and_entropies = lambda *_, **__: (leaf_NT, torch.zeros_like(leaf_NT), None)
    ones = torch.ones(len(old_NT), 1, dtype=torch.int64)
    mask_NT = rollouts.mask_NT.double()
    inputs = {
        "prompt_ids": ones,
        "prompt_mask": ones,
        "completion_ids": rollouts.mask_NT.long(),
        "completion_mask": mask_NT,
        "advantages": advantages_N,
        "old_per_token_logps": old_NT,
        "old_logps": (old_NT * mask_NT).sum(1),
        "ref_per_token_logps": rollouts.reference_logprobs_NT,
        "num_items_in_batch": mask_NT.sum(),
    }
    (gradient_NT,) = torch.autograd.grad(trainer._compute_loss(trainer.model, inputs), leaf_NT)
    return -gradient_NT


def centred(rollouts: Rollouts) -> Tensor:
    return (rollouts.rewards_PG - rollouts.rewards_PG.mean(1, keepdim=True)).view(-1)


def left_out(rollouts: Rollouts) -> Tensor:
    return centred(rollouts) * rollouts.group_size / (rollouts.group_size - 1)


SCORED = {"std_eps": EPS}
CASES = {
    "grpo": ("grpo", SCORED, {}),
    "bnpo": ("grpo", SCORED | {"aggregation": "token_mean"}, {}),
    "dapo": ("dapo", SCORED | {"clip_high": 0.28, "drop_constant_groups": False}, {"epsilon_high": 0.28}),
    "dr_grpo": ("dr_grpo", {"denominator": float(LIMIT)}, {"advantages": centred}),
    "cispo": ("cispo", SCORED, {"epsilon_high": 5.0}),
    "grpo by sequences": (
        "gspo",
        SCORED | {"clip_low": 0.1, "clip_high": 0.1},
        {"importance_sampling_level": "sequence", "epsilon_low": 0.1, "epsilon_high": 0.1},
    ),
    "grpo with KL": ("grpo", SCORED, {"beta": 0.04}),
}


@pytest.mark.parametrize("moved", [0.0, 0.3], ids=["on-policy", "after updates"])
@pytest.mark.parametrize("case", CASES)
def test_token_weights_are_those_of_trl(case: str, moved: float) -> None:
    algorithm, hyper, given = CASES[case]
    rollouts, given = batch(), dict(given)
    old_NT = rollouts.logprobs_NT
    assert old_NT is not None
    shift_NT = torch.from_numpy(np.random.default_rng(1).normal(scale=1.0, size=tuple(old_NT.shape)))
    logprobs_NT = (old_NT + moved * shift_NT) * rollouts.mask_NT
    advantages_N = given.pop("advantages", lambda some: standardized_advantages(some, EPS))(rollouts)
    algo = AlgoConfig(algorithm, hyperparameters=hyper, kl_coef=given.get("beta", 0.0), kl_estimator="k3")
    own_NT = token_weights(loss_of(algo, rollouts), logprobs_NT)
    trl_NT = trl_weights(case.split()[0], rollouts, logprobs_NT, advantages_N, **given)
    assert float(own_NT.abs().max()) > 0
    assert float((own_NT - trl_NT).abs().max()) <= 1e-12 * float(trl_NT.abs().max())


def test_rloo_is_that_of_trl_where_the_policy_has_not_moved() -> None:
    """TRL's ratio is that of whole responses, so they differ once it has."""
    rollouts = batch()
    old_NT = rollouts.logprobs_NT
    assert old_NT is not None
    own_NT = token_weights(lambda some_NT: ALGORITHMS["rloo"].loss(some_NT, rollouts), old_NT)
    trl_NT = trl_weights("", rollouts, old_NT, left_out(rollouts), trainer="RLOOTrainer")
    assert float((own_NT - trl_NT).abs().max()) <= 1e-12 * float(trl_NT.abs().max())
