"""Runs of a small policy under torchrun, or in one process, with a reward that it can learn from; settings come as JSON.

python -m torch.distributed.run --standalone --nproc-per-node=2 tests/support/ranks.py '{"FOLDER": {"algo": {"name": "opo"}}}'
"""

import json
import os
import subprocess
import sys
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from opo.tasks.base import Prompt

HERE = Path(__file__).parent
PROJECT = HERE.parents[1]


@dataclass(frozen=True)
class SumConfig:
    """The modulus of the rewards; with one all are zero."""

    name: str = "token_sums"
    modulus: int = 7


@dataclass(frozen=True)
class TokenSums:
    """Prompts of a few characters; the reward is what the characters of the response add up to, modulo seven or another number."""

    config: SumConfig = field(default_factory=SumConfig)
    name: str = "token_sums"
    stop: tuple[str, ...] = ()

    def prompt(self, index: int, split: str = "train") -> Prompt:
        return Prompt(index, f"{index % 10}+{index * 3 % 10}=", "")

    def score(self, prompt: Prompt, response: str) -> float:
        return sum(map(ord, response)) % self.config.modulus / self.config.modulus

    def extract(self, response: str) -> str | None:
        return response


def settings(source: Path, **changes: Any) -> dict[str, Any]:
    """What `main` takes: groups of RunConfig's keys."""
    return {
        "algo": {"name": "opo"},
        "model": {"name": "pretrained", "path": str(source), "dtype": "float64"},
        "rollout": {"num_prompts": 5, "group_size": 4, "max_new_tokens": 12},
        "optim": {"learning_rate": 1e-2, "tokens_per_microbatch": 64},
        "parallel": {"mode": "replicated"},
        "checkpoint": {"every": 2},
        "steps": 3,
    } | changes


def start(jobs: dict[Path, dict[str, Any]], ranks: int) -> subprocess.Popen[str]:
    """The runs, one after the other, in one child process or so many, one thread each."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"] if ranks > 1 else []
    texts = {str(folder): given for folder, given in jobs.items()}
    command = [sys.executable, *launcher, str(HERE / "ranks.py"), json.dumps(texts)]
    paths = os.pathsep.join([str(PROJECT), str(HERE), *filter(None, sys.path)])
    environment = os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def run(jobs: dict[Path, dict[str, Any]], ranks: int) -> None:
    """Start the runs and wait for them; what counts is what each has written."""
    out, err = start(jobs, ranks).communicate(timeout=900)
    for folder in jobs:
        assert (folder / "DONE").exists(), f"{folder.name}: {out}{err}"


def small_policy(folder: Path) -> Path:
    """GPT-2 in float64 over the characters of the arithmetic task, not trained."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    from opo.model.tiny import character_tokenizer

    tokenizer = character_tokenizer()
    torch.manual_seed(0)
    shape = GPT2Config(
        vocab_size=len(tokenizer),
        n_embd=32,
        n_layer=2,
        n_head=2,
        n_positions=64,
        initializer_range=0.2,
        bos_token_id=None,
        eos_token_id=1,
    )
    GPT2LMHeadModel(shape).double().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def main(folder: Path, given: dict[str, Any]) -> None:
    from ranks import SumConfig, TokenSums  # as the reward workers find them

    from opo.algorithms import ALGORITHMS
    from opo.config import schema
    from opo.tasks import TASKS
    from opo.train.loop import train

    TASKS["token_sums"] = (SumConfig, TokenSums)
    algo, task = dict(given.pop("algo")), SumConfig(**given.pop("task", {}))
    algo["hyperparameters"] = ALGORITHMS[algo["name"]].hyperparameters({})
    groups = {
        "model": schema.ModelConfig,
        "rollout": schema.RolloutConfig,
        "optim": schema.OptimConfig,
        "parallel": schema.ParallelConfig,
        "checkpoint": schema.CheckpointConfig,
    }
    given = {key: groups[key](**value) if key in groups else value for key, value in given.items()}
    config = schema.RunConfig.of(
        task, algo=schema.AlgoConfig(**algo), tracking=schema.TrackingConfig(mode="off"), **given
    )
    train(replace(config, threads=1, device="cpu"), folder)


if __name__ == "__main__":
    import torch.distributed

    from opo.cli import guarded

    if int(os.environ.get("WORLD_SIZE", 1)) > 1:  # once for all runs: torchrun's meeting place serves one group
        torch.distributed.init_process_group("gloo")
    for name, job in json.loads(sys.argv[1]).items():
        guarded(partial(main, Path(name), job))
