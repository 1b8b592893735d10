"""The examples of notebooks and tests: a bandit that can be enumerated, and a finished `opo verify` reduced to what its figures need."""

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np

from analysis.runs.load import run_folders
from analysis.study.pools import PromptPool
from analysis.study.result import load
from analysis.variance.exact import Population, softmax_bandit
from opo.run.metrics import read_rows

METRICS = (
    "train/step",
    "train/tokens",
    "train/reward_mean",
    "train/kl_init_nats",
    "train/entropy_mean_nats",
    "train/grad_norm",
    "train/clip_fraction",
    "train/ratio_max",
    "train/updates",
    "length/tokens_mean",
)
RUN_FILES = ("config.yaml", "run.json", "certificate.json", "DONE")


def wordy_bandit(arms: int = 12, seed: int = 0) -> Population:
    """A bandit whose arms are answers: long ones are rare and mostly right, short ones likely and mostly wrong."""
    rng = np.random.default_rng(seed)
    lengths = np.sort(rng.integers(2, 40, arms))
    rewards = (rng.random(arms) < 0.2 + 0.6 * lengths / lengths.max()).astype(float)
    return softmax_bandit(-0.06 * lengths + 0.3 * rng.normal(size=arms), rewards, lengths)


def reduce(verify: Path, folder: Path) -> None:
    """Copy a result of `opo verify` without what no figure needs: checkpoints, rollouts, W&B files, other metrics than `METRICS`, the pools
    of later policies, and of the first policy's pools the gradients. `python -m analysis.examples runs/verify notebooks/example`.
    """
    study = load(verify / "variance")
    for policy in study.policies:
        policy["paths"] = [_below(path, verify) for path in policy["paths"]]
    study.save(folder / "variance")
    (folder / "variance" / "variance.parquet").unlink()  # the moments, which result.json has too
    result = folder / "variance" / "result.json"
    result.write_text(json.dumps(json.loads(result.read_text()), separators=(",", ":")) + "\n")
    first = study.policies[0]["name"]
    for file in sorted((verify / "variance" / "pools" / first).glob("prompt-*.npz")):
        pool = replace(PromptPool.load(file), gradient_D=np.empty(0, np.float32))
        pool.save(folder / "variance" / "pools" / first / file.name)
    for run in sorted(run_folders(verify)):
        target = folder / run.relative_to(verify)
        target.mkdir(parents=True, exist_ok=True)
        for name in RUN_FILES:
            if (run / name).is_file():
                shutil.copy2(run / name, target / name)
        rows = [{name: row[name] for name in METRICS if name in row} for row in read_rows(run / "metrics.jsonl")]
        (target / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def _below(path: str, folder: Path) -> str:
    """The path from `folder` on, where it lies in it."""
    inside = Path(path).is_relative_to(folder.resolve())
    return str(Path(path).relative_to(folder.resolve())) if inside else path


if __name__ == "__main__":
    reduce(Path(sys.argv[1]), Path(sys.argv[2]))
