"""The interval of every number in a training config, by its key."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from opo.config.schema import RunConfig


@dataclass(frozen=True)
class Interval:
    """Numbers from `low` to `high`, each end included unless it is open."""

    low: float
    high: float = math.inf
    open_low: bool = False
    open_high: bool = False

    def __contains__(self, value: float) -> bool:
        above = value > self.low if self.open_low else value >= self.low
        return above and (value < self.high if self.open_high else value <= self.high)

    def __str__(self) -> str:
        low = f"{'above' if self.open_low else 'at least'} {self.low:g}"
        return low if self.high == math.inf else f"{low} and {'below' if self.open_high else 'at most'} {self.high:g}"


COUNT, ZERO_OR_MORE, POSITIVE = Interval(1), Interval(0), Interval(0, open_low=True)
SHARE, DECAY = Interval(0, 1, open_low=True), Interval(0, 1, open_high=True)

RANGES = {
    "steps": COUNT,
    "seed": ZERO_OR_MORE,
    "threads": COUNT,
    "kl_init_every": ZERO_OR_MORE,
    "algo.updates_per_rollout": COUNT,
    "algo.minibatches": COUNT,
    "algo.kl_coef": ZERO_OR_MORE,
    "algo.entropy_coef": ZERO_OR_MORE,
    "model.lora_rank": ZERO_OR_MORE,
    "model.lora_alpha": POSITIVE,
    "model.tiny.layers": COUNT,
    "model.tiny.heads": COUNT,
    "model.tiny.hidden_size": COUNT,
    "model.tiny.intermediate_size": COUNT,
    "model.tiny.seed": ZERO_OR_MORE,
    "model.tiny.init_std": POSITIVE,
    "model.tiny.warmup_steps": COUNT,
    "model.tiny.warmup_rows": COUNT,
    "model.tiny.warmup_muon_rate": POSITIVE,
    "model.tiny.warmup_adamw_rate": POSITIVE,
    "rollout.num_prompts": COUNT,
    "rollout.group_size": COUNT,
    "rollout.max_new_tokens": COUNT,
    "rollout.temperature": POSITIVE,
    "rollout.top_p": SHARE,
    "rollout.top_k": ZERO_OR_MORE,
    "rollout.max_sequences": COUNT,
    "rollout.kv_cache_gib": POSITIVE,
    "rollout.gpu_memory_utilization": SHARE,
    "rollout.max_model_len": COUNT,
    "optim.learning_rate": ZERO_OR_MORE,  # zero is the self-test: log-probabilities must not move
    "optim.warmup_steps": ZERO_OR_MORE,
    "optim.weight_decay": ZERO_OR_MORE,
    "optim.beta1": DECAY,
    "optim.beta2": DECAY,
    "optim.eps": POSITIVE,
    "optim.max_grad_norm": ZERO_OR_MORE,
    "optim.tokens_per_microbatch": COUNT,
    "critic.learning_rate": ZERO_OR_MORE,
    "reward.timeout_s": POSITIVE,
    "reward.workers": COUNT,
    "evaluate.every": ZERO_OR_MORE,
    "evaluate.num_prompts": COUNT,
    "evaluate.group_size": COUNT,
    "checkpoint.every": ZERO_OR_MORE,
    "checkpoint.keep": COUNT,
    "tracking.completions_every": ZERO_OR_MORE,
    "tracking.completions": COUNT,
    "tracking.samples_every": ZERO_OR_MORE,
    "certificate.logprob_abs_mean_nats": POSITIVE,
    "certificate.logprob_abs_max_nats": POSITIVE,
    "certificate.cap": COUNT,
}
KNOB_RANGES = {"gamma": Interval(0, 1), "lam": Interval(0, 1), "clip_low": Interval(0, 1)}  # others: at least 0


def in_range(config: RunConfig) -> Iterator[str]:
    """Every number lies in its interval; a null stands for the engine's own choice."""
    for key, allowed in RANGES.items():
        value: Any = config
        for name in key.split("."):
            value = getattr(value, name)
        if value is not None and value not in allowed:
            yield f"{key}={value}: allowed is {allowed}"


def knobs_in_range(config: RunConfig) -> Iterator[str]:
    """No knob of any algorithm means anything below zero; discounts and lower clips do not pass one."""
    for name, value in config.algo.knobs.items():
        allowed = KNOB_RANGES.get(name, ZERO_OR_MORE)
        if isinstance(value, int | float) and value not in allowed:
            yield f"algo.{name}={value}: allowed is {allowed}"
