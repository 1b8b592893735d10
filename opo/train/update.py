"""The updates that one rollout batch is used for: exactly one for OPO, a number of minibatches and epochs for its rivals."""

import math
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from opo.algorithms import ALGORITHMS, token_weights
from opo.batch import Rollouts
from opo.config.schema import AlgoConfig, RunConfig
from opo.errors import StoppedRun
from opo.kl import kl_penalty
from opo.model.gradient import accumulate, clip_gradients, gradient_norm
from opo.model.policy import Policy
from opo.system.seeding import rng_for
from opo.train.critic import Critic, update_critic
from opo.train.mismatch import Certificate, measure_gap, truncated_ratios
from opo.train.state import TrainingState
from opo.train.step_metrics import UpdateTally


def loss_of(algo: AlgoConfig, rollouts: Rollouts) -> Callable[[Tensor], Tensor]:
    """The algorithm's loss on this batch as a function of log-probabilities (N, T), the KL penalty included."""

    def loss(logprobs_NT: Tensor) -> Tensor:
        value = ALGORITHMS[algo.name].loss(logprobs_NT, rollouts, **algo.knobs)
        if algo.kl_coef and algo.kl_placement == "loss":
            how = algo.knobs.get("aggregation", "sequence_sum")
            value = value + algo.kl_coef * kl_penalty(logprobs_NT, rollouts, algo.kl_estimator, how)
        return value

    return loss


def minibatch(config: RunConfig, step: int, update: int) -> list[int]:
    """The prompts of update number `update` of a rollout batch: parts of a fresh permutation in every epoch, whole groups."""
    parts, count = config.algo.minibatches, config.rollout.num_prompts
    epoch, part = divmod(update, parts)
    order = rng_for(config.seed, "minibatches", step, epoch).permutation(count) if parts > 1 else range(count)
    return [int(p) for p in order][part * count // parts : (part + 1) * count // parts]


def learning_rate(base: float, schedule: str, warmup_steps: int, update: int, total_updates: int) -> float:
    """The rate of update number `update` (from 0): linear warm-up, then constant, or linear or cosine decay to zero at the end."""
    if update < warmup_steps:
        return base * (update + 1) / warmup_steps
    progress = (update - warmup_steps) / max(1, total_updates - warmup_steps)
    decay = {"constant": 1.0, "linear": 1 - progress, "cosine": (1 + math.cos(math.pi * progress)) / 2}
    return base * decay[schedule]


def update_on(
    rollouts: Rollouts,
    config: RunConfig,
    policy: Policy,
    critic: Critic | None,
    state: TrainingState,
    certificate: Certificate,
    path: Path,
) -> dict[str, float]:
    """All updates of one rollout batch, and their metrics.

    The first update takes the sampler's log-probabilities as the policy's, so that every importance ratio is one; its own forward
    pass then measures how far the trainer's are from them. Raises StoppedRun, the batch on disk, where a gradient is not finite.
    """
    algo, optim = config.algo, config.optim
    assert rollouts.logprobs_NT is not None
    loss = loss_of(algo, rollouts)
    on_policy_NT = token_weights(loss, rollouts.logprobs_NT)
    total_updates = config.steps * algo.updates_per_rollout
    tally = UpdateTally(rollouts, on_policy_NT)
    for update in range(algo.updates_per_rollout):
        prompts = minibatch(config, state.step, update)
        rows = rollouts.rows_of(prompts)
        current_NT, weights_NT = rollouts.logprobs_NT, on_policy_NT
        if update > 0:
            measured = policy.measure(rollouts, prompts, optim.tokens_per_microbatch, shared_prefix=optim.shared_prefix)
            current_NT = current_NT.index_copy(0, rows, measured.logprobs_MT[rows])
            weights_NT = token_weights(loss, current_NT)
        elif config.certificate.on_breach == "correct":
            measured = policy.measure(rollouts, prompts, optim.tokens_per_microbatch, shared_prefix=optim.shared_prefix)
            gap = measure_gap(current_NT[rows], measured.logprobs_MT[rows], rollouts.mask_NT[rows])
            if certificate.check(state.step + 1, rollouts.versions, state.version, gap):
                inside_NT = torch.zeros_like(rollouts.mask_NT).index_copy(0, rows, rollouts.mask_NT[rows])
                tally.row["mismatch/corrected"] = 1.0
                weights_NT = weights_NT * truncated_ratios(
                    current_NT, measured.logprobs_MT, inside_NT, config.certificate.cap
                )
        tally.add(rows, current_NT, weights_NT)
        seen = accumulate(
            policy,
            rollouts,
            prompts,
            # the loss averages over the batch: rescaled, these prompts' rows alone average as the batch does
            weights_NT * (rollouts.num_prompts / len(prompts)),
            entropy_coef=algo.entropy_coef,
            token_budget=optim.tokens_per_microbatch,
            shared_prefix=optim.shared_prefix,
        )
        norm = gradient_norm(policy.parameters())
        if not math.isfinite(norm) or not bool(seen.logprobs_NT.isfinite().all()):
            stop_nonfinite(path, state.step, rollouts, weights_NT, seen.logprobs_NT)
        if update == 0:
            gap = measure_gap(rollouts.logprobs_NT[rows], seen.logprobs_NT[rows], rollouts.mask_NT[rows])
            if config.certificate.on_breach == "stop":
                certificate.check(state.step + 1, rollouts.versions, state.version, gap)
            tally.first(rows, seen, gap)
        clipped = clip_gradients(policy.parameters(), norm, optim.max_grad_norm)
        rate = learning_rate(optim.learning_rate, optim.schedule, optim.warmup_steps, state.version, total_updates)
        for group in state.optimizer.param_groups:
            group["lr"] = rate
        state.optimizer.step()
        state.optimizer.zero_grad(set_to_none=True)
        tally.step(norm, clipped, rate)
        if critic is not None and state.critic_optimizer is not None:
            tally.critic(*update_critic(critic, state.critic_optimizer, rollouts, prompts, config))
        state.version += 1
    return tally.metrics()


def stop_nonfinite(path: Path, step: int, rollouts: Rollouts, weights_NT: Tensor, logprobs_NT: Tensor) -> None:
    """Write the batch that made a gradient infinite or NaN and leave; raises StoppedRun."""
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
