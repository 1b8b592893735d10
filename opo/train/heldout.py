"""Evaluation on held-out prompts during training."""

import math
from dataclasses import replace

from scipy import stats

from opo.config.schema import EvaluateConfig
from opo.rollout.collect import Collector
from opo.system.seeding import generator_for


def evaluate(collector: Collector, config: EvaluateConfig, seed: int) -> dict[str, float]:
    """Mean reward on the first prompts of the eval stream with its 95 % interval (Student's t over prompts).

    The same prompts and random numbers each time, so that two evaluations of a run differ by the policy alone. Unscored
    responses are left out.
    """
    sampling = replace(collector.sampling, group_size=config.group_size, top_p=1.0, top_k=0)
    batch = collector.collect(0, config.num_prompts, generator_for(seed, "eval"), sampling, "eval")
    means_P = batch.rollouts.rewards_PG.nanmean(1)
    means_P = means_P[~means_P.isnan()]
    metrics = {"eval/length_tokens_mean": float(batch.rollouts.lengths_N.double().mean())}
    if len(means_P):
        metrics["eval/reward_mean"] = mean = float(means_P.mean())
        if len(means_P) > 1:
            half = float(stats.t.ppf(0.975, len(means_P) - 1)) * float(means_P.std()) / math.sqrt(len(means_P))
            metrics |= {"eval/reward_low": mean - half, "eval/reward_high": mean + half}
    return metrics
