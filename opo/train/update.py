"""The parts of an update: the loss on a batch, the weight of each token's entropy, and which prompts an update takes."""

from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from opo.algorithms import ALGORITHMS, token_weights
from opo.batch import Rollouts
from opo.config.parts import GuidedStart
from opo.config.schema import AlgoConfig, RunConfig
from opo.errors import StoppedRun
from opo.kl import kl_penalty
from opo.system.seeding import rng_for


def needs_reference(algo: AlgoConfig) -> bool:
    """True where the algorithm, its KL penalty or its sampler needs the reference policy in every step."""
    needs = ALGORITHMS[algo.name].needs
    return algo.kl_coef != 0 or any(need.startswith("reference_") for need in needs) or guided_start(algo)


def guided_start(algo: AlgoConfig) -> bool:
    """True where the reference policy begins some responses."""
    return isinstance(algo.sampler, GuidedStart)


def loss_of(algo: AlgoConfig, rollouts: Rollouts) -> Callable[[Tensor], Tensor]:
    """The algorithm's loss on this batch as a function of log-probabilities (N, T), the KL penalty included."""
    chosen = ALGORITHMS[algo.name]

    def loss(logprobs_NT: Tensor) -> Tensor:
        value = chosen.loss(logprobs_NT, rollouts, **algo.hyperparameters)
        if algo.kl_coef and algo.kl_placement == "loss":
            penalty_NT = kl_penalty(logprobs_NT, rollouts, algo.kl_estimator)
            value = value + algo.kl_coef * chosen.average(penalty_NT, rollouts, algo.hyperparameters)
        return value

    return loss


def unit_weights(algo: AlgoConfig, rollouts: Rollouts) -> Tensor:
    """What one unit of a token's value adds to the algorithm's average, (N, T): the scale of its policy term."""
    chosen = ALGORITHMS[algo.name]
    return -token_weights(
        lambda values_NT: chosen.average(values_NT, rollouts, algo.hyperparameters), torch.zeros(rollouts.mask_NT.shape)
    )


def minibatch(config: RunConfig, step: int, update: int) -> list[int]:
    """The prompts of update number `update` of a rollout batch: parts of a fresh permutation in every epoch, whole groups."""
    parts, count = config.algo.minibatches, config.rollout.num_prompts
    epoch, part = divmod(update, parts)
    order = rng_for(config.seed, "minibatches", step, epoch).permutation(count) if parts > 1 else range(count)
    return [int(p) for p in order][part * count // parts : (part + 1) * count // parts]


def stop_nonfinite(path: Path, step: int, rollouts: Rollouts, weights_NT: Tensor, logprobs_NT: Tensor) -> None:
    """Write the batch that made a gradient or a log-probability infinite or NaN and leave; raises StoppedRun."""
    file = path / f"nonfinite-step-{step + 1:06d}.safetensors"
    tensors = {"tokens": rollouts.tokens_NT, "mask": rollouts.mask_NT, "rewards": rollouts.rewards_PG}
    tensors |= {"weights": weights_NT, "logprobs": logprobs_NT}
    save_file({k: v.contiguous() for k, v in tensors.items()}, file)
    bad = (~logprobs_NT.isfinite() | ~weights_NT.isfinite()).any(1).nonzero()
    where = (
        f"response {int(bad[0]) % rollouts.group_size} to prompt {int(bad[0]) // rollouts.group_size}"
        if len(bad)
        else "the backward pass"
    )
    raise StoppedRun(
        f"{path}: step {step + 1} has a gradient that is not finite, first seen in {where}; the batch is in {file.name}"
    )
