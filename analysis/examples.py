"""Small studies and runs that are made in seconds, for the notebooks; give a path to look at your own in their place."""

from pathlib import Path

import numpy as np

from analysis.runs.load import Runs
from analysis.runs.load import load as load_runs
from analysis.study.config import load_config
from analysis.study.result import Study
from analysis.study.result import load as load_study
from analysis.study.run import run_study
from analysis.variance.exact import Population, softmax_bandit
from opo.cli.compose import composed
from opo.config.load import load_config as load_run_config
from opo.train.loop import train

FOLDER = Path("runs/notebooks")
SMALL_STUDY = {"prompts": 8, "responses": 16, "group_sizes": [2, 4, 8], "threads": 1}
SMALL_RUN = ["rollout.num_prompts=4", "rollout.group_size=4", "tracking=off", "threads=1", "study=notebooks"]


def study(path: str | None = None) -> Study:
    """The study at `path`, or a small one of the built-in policy: few prompts and responses, so wide intervals."""
    if path is not None:
        return load_study(path)
    made = run_study(load_config(composed("variance") | SMALL_STUDY), FOLDER / "variance")
    assert made is not None
    return made


def runs(
    path: str | None = None,
    algorithms: tuple[str, ...] = ("opo", "grpo"),
    seeds: tuple[int, ...] = (0, 1),
    steps: int = 6,
) -> Runs:
    """The runs at `path`, or a few very short ones."""
    if path is not None:
        return load_runs(path)
    folders = []
    for algo in algorithms:
        for seed in seeds:
            overrides = [f"algo={algo}", f"seed={seed}", f"steps={steps}", *SMALL_RUN]
            folders.append(FOLDER / f"{algo}-s{seed}")
            train(load_run_config(composed("train", overrides)), folders[-1])
    return load_runs(*folders)


def wordy_bandit(arms: int = 12, seed: int = 0) -> Population:
    """A bandit whose arms are answers: long ones are rare and mostly right, short ones likely and mostly wrong."""
    rng = np.random.default_rng(seed)
    lengths = np.sort(rng.integers(2, 40, arms))
    rewards = (rng.random(arms) < 0.2 + 0.6 * lengths / lengths.max()).astype(float)
    return softmax_bandit(-0.06 * lengths + 0.3 * rng.normal(size=arms), rewards, lengths)
