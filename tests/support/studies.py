"""A variance study of enumerable policies and runs written by hand: what reports and figures look at, in a second, without a model."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import yaml

from analysis.examples import wordy_bandit
from analysis.study.config import VarianceConfig, load_config
from analysis.study.pools import PromptPool
from analysis.study.result import Study
from analysis.study.tables import analyse
from opo.config.schema import ModelConfig
from opo.run.policies import EvaluatedPolicy, Weights

ESTIMATORS = ["none", "group_mean", "leave_one_out", "length_weighted", "length_weighted_loo", "group_standardized"]


def bandit_pool(seed: int, responses: int = 32, reward: float | None = None) -> PromptPool:
    """The pool of a prompt whose answers are the arms of a bandit; all earn `reward` where it is given."""
    pool = wordy_bandit(seed=seed).sample(responses, np.random.default_rng(seed))
    norms = np.diag(pool.gram)
    return PromptPool(
        prompt_id=str(seed),
        prompt=f"prompt {seed}",
        unscorable=0,
        responses=np.array(["x" * int(length) for length in pool.lengths]),
        rewards_R=pool.rewards if reward is None else np.full(responses, reward),
        lengths_R=pool.lengths.astype(np.int64),
        logprobs_R=-pool.lengths,
        gram_RR=pool.gram,
        logit_energy_R=pool.logit_energy,
        head_norm2_R=norms * 0.5,
        parts=np.array(["layer 0", "head"]),
        part_norm2_SR=np.stack([norms * 0.25, norms * 0.75]),
        token_sum_norm2_K=norms[:1],
        token_norm2_sum_K=norms[:1] * 1.1,
        gradient_D=np.array([1.0 + 0.1 * (seed % 5), 0.2 * (seed % 3), float(pool.rewards.mean())], dtype=np.float32),
        gap_nats=0.0,
        entropies_R=pool.lengths * 1.0,
    )


def config(**changes: object) -> VarianceConfig:
    values = {"estimators": ESTIMATORS, "group_sizes": [2, 8], "prompts": 10, "responses": 32, "num_bootstrap": 200}
    return load_config(values | changes)


def bandit_study(reward: float | None = None, **changes: object) -> Study:
    """Two checkpoints, each with pools of its own."""
    weights = [Weights(ModelConfig(), None, None)]
    stages = [
        EvaluatedPolicy("step-000000", "start", 0, weights),
        EvaluatedPolicy("step-000020", "step 20", 20, weights),
    ]
    asked = config(**changes)
    pools = {
        stage.name: [bandit_pool(100 * i + p, reward=reward) for p in range(asked.num_prompts)]
        for i, stage in enumerate(stages)
    }
    pools["step-000020"] = [
        replace(after, prompt_id=before.prompt_id)
        for before, after in zip(pools["step-000000"], pools["step-000020"], strict=True)
    ]
    return analyse(asked, stages, pools)


def write_run(
    folder: Path, algo: str, seed: int, gain: float, steps: int = 20, updates: int = 1, done: bool = True
) -> Path:
    """A run folder whose reward rises by `gain` a step from 0.3, with a little noise."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng([seed, updates, len(algo)])
    values = {
        "algo": {"name": algo, "updates_per_rollout": updates},
        "task": {"name": "arithmetic"},
        "model": {"name": "tiny"},
        "rollout": {},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(values | {"study": "s", "seed": seed, "steps": steps}))
    (folder / "run.json").write_text(json.dumps({"wandb_run_id": "0"}))
    rows = [
        {
            "train/step": step,
            "train/tokens": 100 * step,
            "train/reward_mean": 0.3 + gain * step + 0.01 * rng.normal(),
            "train/kl_init_nats": 0.01 * step * updates * (1 + 0.05 * rng.random()),
            "train/entropy_mean_nats": 1.0 / updates + 0.01 * rng.normal(),
            "length/tokens_mean": 12 + rng.normal(),
        }
        for step in range(1, steps + 1)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    if done:
        (folder / "DONE").write_text(f"{steps}\n")
    return folder
