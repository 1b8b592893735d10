"""Advantages of 65,536 responses (8,192 prompts x 8) beside verl's loops over responses, one thread.

OMP_NUM_THREADS=1 python tests/benchmarks/bench_advantages.py [--repeats 5]
"""

import argparse
import importlib
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from opo.baselines import leave_one_out, weighted_mean

PROMPTS, GROUP, TOKENS = 8192, 8, 16


def seconds(work: Callable[[], Tensor], repeats: int) -> tuple[float, Tensor]:
    """Median time, and what the work returned."""
    times, found = [], work()
    for _ in range(repeats):
        start = time.perf_counter()
        found = work()
        times.append(time.perf_counter() - start)
    return statistics.median(times), found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--repeats", type=int, default=5)
    repeats = parser.parse_args().repeats
    torch.set_num_threads(1)
    verl = importlib.import_module("verl.trainer.ppo.core_algos")  # `make bench` installs it
    rng = torch.Generator().manual_seed(0)
    rewards_PG = torch.randint(0, 2, (PROMPTS, GROUP), generator=rng).double()
    lengths_PG = torch.randint(1, TOKENS + 1, (PROMPTS, GROUP), generator=rng)
    mask_NT = (torch.arange(TOKENS) < lengths_PG.view(-1, 1)).double()
    token_rewards_NT = torch.zeros_like(mask_NT)
    token_rewards_NT[:, 0] = rewards_PG.view(-1)
    prompt_N = np.repeat(np.arange(PROMPTS), GROUP)
    ours = {
        "opo": lambda: rewards_PG - weighted_mean(rewards_PG, lengths_PG),
        "rloo": lambda: rewards_PG - leave_one_out(rewards_PG),
    }
    table = Table("advantages", "here, ms", "verl, ms", "verl / here", "largest difference")
    for name, work in ours.items():
        theirs = getattr(verl, f"compute_{name}_outcome_advantage")
        fast, found_PG = seconds(work, repeats)
        slow, expected_NT = seconds(lambda f=theirs: f(token_rewards_NT, mask_NT, prompt_N)[0], repeats)
        expected_PG = expected_NT[:, 0].view(PROMPTS, GROUP)  # the first token is in every response
        gap = float((found_PG - expected_PG).abs().max())
        table.add_row(name, f"{fast * 1e3:.2f}", f"{slow * 1e3:.0f}", f"{slow / fast:.0f}", f"{gap:.1e}")
    Console(width=100).print(f"{PROMPTS} prompts x {GROUP} responses", table)


if __name__ == "__main__":
    main()
