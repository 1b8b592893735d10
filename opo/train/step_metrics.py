"""The numbers of one training step, named as in `opo.tracking.METRICS`."""

import resource
import sys
import time

import torch
from torch import Tensor

from opo.batch import Rollouts
from opo.kl import kl_estimate
from opo.model.policy import BatchScores
from opo.rollout.collect import Collected
from opo.rounding import all_equal
from opo.system.world import World
from opo.train.mismatch import Mismatch


class Clock:
    """Seconds by phase of a step; `lap` adds the time since the last lap to a phase."""

    def __init__(self, world: World | None = None) -> None:
        self.world = world or World()
        self.start = self.last = time.perf_counter()
        self.waited_s = self.world.waited_s
        self.seconds: dict[str, float] = {}

    def lap(self, phase: str) -> None:
        now = time.perf_counter()
        self.seconds[phase] = self.seconds.get(phase, 0.0) + now - self.last
        self.last = now

    def metrics(self, rollouts: Rollouts) -> dict[str, float]:
        """The phases, the whole step, and generated tokens per second of sampling and of updating."""
        tokens, whole = int(rollouts.lengths_N.sum()), self.last - self.start
        sampling = self.seconds["time/rollout_s"]
        ranks = {"time/ranks_wait_s": self.world.waited_s - self.waited_s} if self.world.size > 1 else {}
        return (
            self.seconds
            | ranks
            | {
                "time/step_s": whole,
                "time/wait_share": min(sampling, whole - sampling) / whole,
                "rollout/tokens_per_s": tokens / self.seconds["time/rollout_s"],
                "update/tokens_per_s": tokens / self.seconds["time/update_s"],
                "memory/peak_mib": peak_memory_mib(),
            }
        )


def peak_memory_mib() -> float:
    """Peak of the GPU that this process used most, or of the process itself where it used none."""
    gpus = [torch.cuda.max_memory_allocated(i) for i in range(torch.cuda.device_count())]
    if any(gpus):
        return max(gpus) / 2**20
    unit = 2**20 if sys.platform == "darwin" else 2**10  # bytes there, KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def batch_metrics(batch: Collected) -> dict[str, float]:
    """Rewards and lengths of a batch as it was sampled; what is undefined is absent."""
    rollouts = batch.rollouts
    lengths_N, scored_N = rollouts.lengths_N.double(), rollouts.scored_N
    rewards_N = rollouts.rewards_PG.view(-1)[scored_N]
    metrics = {
        "train/unscorable_count": float((~scored_N).sum()),
        "length/tokens_mean": float(lengths_N.mean()),
        "length/tokens_min": float(lengths_N.min()),
        "length/tokens_max": float(lengths_N.max()),
        "length/tokens_std": float(lengths_N.std()),
    }
    if rollouts.finished_PG is not None:
        metrics["length/truncated_fraction"] = float((~rollouts.finished_PG).double().mean())
    if len(rewards_N):
        metrics |= {f"reward/{name}_mean": float(part_PG.nanmean()) for name, part_PG in batch.parts.items()}
        metrics["train/reward_mean"] = float(rewards_N.mean())
        metrics["train/constant_groups_fraction"] = float(all_equal(rollouts.rewards_PG).double().mean())
    if len(rewards_N) > 1:
        metrics["train/reward_std"] = float(rewards_N.std())
        both = torch.stack([rewards_N, lengths_N[scored_N]])
        if bool((both.std(1) > 0).all()):
            metrics["length/reward_correlation"] = float(torch.corrcoef(both)[0, 1])
    return metrics


class UpdateTally:
    """Metrics of the updates of one rollout batch, gathered for one row."""

    def __init__(self, rollouts: Rollouts, on_policy_NT: Tensor) -> None:
        self.rollouts, self.on_policy_NT = rollouts, on_policy_NT
        self.norms: list[float] = []
        self.clipped: list[float] = []
        self.moved: list[float] = []
        self.critic_steps: list[tuple[float, float]] = []
        self.ratio_sum = self.ratio_max = self.tokens = self.clipped_tokens = self.active = 0.0
        self.row = {"mismatch/corrected": 0.0}

    def add(self, rows: Tensor, current_NT: Tensor, weights_NT: Tensor) -> None:
        """Importance ratios and the tokens that clipping removed: weight zero now, not zero where the ratio is one."""
        assert self.rollouts.logprobs_NT is not None
        mask = self.rollouts.mask_NT[rows]
        ratios = (current_NT - self.rollouts.logprobs_NT)[rows][mask].exp()
        active = self.on_policy_NT[rows][mask] != 0
        self.ratio_sum += float(ratios.sum())
        self.ratio_max = max(self.ratio_max, float(ratios.max()))
        self.tokens += len(ratios)
        self.clipped_tokens += float((active & (weights_NT[rows][mask] == 0)).sum())
        self.active += float(active.sum())

    def first(self, rows: Tensor, forward: BatchScores, mismatch: Mismatch) -> None:
        """Entropy, KL to the initial policy and the rollout-trainer mismatch, before any update on this batch."""
        mask_NT = self.rollouts.mask_NT
        self.row["train/entropy_mean_nats"] = float(forward.entropies_NT[rows][mask_NT[rows]].mean())
        self.row["train/entropy_sampled_nats"] = -float(forward.logprobs_NT[rows][mask_NT[rows]].mean())
        if self.rollouts.reference_logprobs_NT is not None:
            assert self.rollouts.logprobs_NT is not None
            k3_NT = kl_estimate(self.rollouts.logprobs_NT, self.rollouts.reference_logprobs_NT, "k3")
            self.row["train/kl_init_nats"] = float(k3_NT[mask_NT].mean())
        self.row |= mismatch.metrics()

    def step(self, norm: float, clipped: bool, rate: float, moved: float) -> None:
        self.norms.append(norm)
        self.clipped.append(float(clipped))
        self.moved.append(moved)
        self.row["train/learning_rate"] = rate

    def critic(self, loss: float, norm: float) -> None:
        self.critic_steps.append((loss, norm))

    def metrics(self) -> dict[str, float]:
        """Means over the updates of this batch."""
        row = self.row | {
            "train/grad_norm": sum(self.norms) / len(self.norms),
            "train/clipped": sum(self.clipped) / len(self.clipped),
            "train/moved_fraction": sum(self.moved) / len(self.moved),
            "train/ratio_mean": self.ratio_sum / self.tokens,
            "train/ratio_max": self.ratio_max,
            "train/clip_fraction": self.clipped_tokens / max(1.0, self.active),
        }
        if self.critic_steps:
            losses, norms = zip(*self.critic_steps, strict=True)
            row |= {"critic/loss": sum(losses) / len(losses), "critic/grad_norm": sum(norms) / len(norms)}
        return row
