"""How the cost of a variance study grows with responses, tokens, parameters and prompts: processor seconds of its model work.

    OMP_NUM_THREADS=1 PYTHONPATH=. python tests/benchmarks/bench_growth.py

A Llama with random weights, random responses of equal length, no two alike; sampling is not counted. From one row to the next one size
is doubled, the others stay at their least (width: the middle). Least of three runs, time of this process alone.
"""

import time
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from analysis.study.pools import Measurement, measure_pool
from opo.batch import Rollouts
from opo.model.policy import Policy
from opo.model.tiny import character_tokenizer

PROMPT, VOCABULARY = 16, 512
WIDTHS = (128, 256, 512)  # hidden units of six layers


@dataclass(frozen=True)
class Study:
    """Sizes of a study."""

    responses: int = 16
    tokens: int = 32
    width: int = 256
    prompts: int = 2


AXES = {"responses": (16, 32, 64), "tokens": (32, 64, 128), "width": WIDTHS, "prompts": (2, 4, 8)}


def policy_of(width: int) -> Policy:
    torch.manual_seed(0)
    shape = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=width,
        intermediate_size=3 * width,
        num_hidden_layers=6,
        num_attention_heads=width // 64,
        num_key_value_heads=width // 64,
        tie_word_embeddings=True,
    )
    return Policy(LlamaForCausalLM(shape).eval(), character_tokenizer())


def seconds(study: Study) -> tuple[float, int]:
    """Processor seconds of all pools, and the parameters of the model."""
    policy, rng = policy_of(study.width), np.random.default_rng(0)
    taken = 0.0
    for prompt in range(study.prompts):
        ids = rng.integers(VOCABULARY, size=(study.responses, study.tokens)).tolist()
        rewards = [rng.random(study.responses).tolist()]
        rollouts = Rollouts.from_lists([rng.integers(VOCABULARY, size=PROMPT).tolist()], [ids], rewards)
        start = time.process_time()
        measure_pool(policy, str(prompt), "", [""] * study.responses, rollouts, Measurement(8.0, 0, verify=False))
        taken += time.process_time() - start
    return taken, sum(p.numel() for p in policy.model.parameters())


def main() -> None:
    torch.set_num_threads(1)
    seconds(Study(prompts=1))  # warms up
    for axis, sizes in AXES.items():
        rows = []
        for size in sizes:
            runs = [seconds(replace(Study(), **{axis: size})) for _ in range(3)]
            rows.append((runs[0][1] if axis == "width" else size, min(taken for taken, _ in runs)))
        powers = [
            np.log(after / before) / np.log(larger / smaller) for (smaller, before), (larger, after) in pairwise(rows)
        ]
        name = "parameters" if axis == "width" else axis
        cells = "  ".join(f"{size:>9,}: {taken:6.2f} s" for size, taken in rows)
        print(f"{name:11}{cells}   powers {', '.join(f'{power:.2f}' for power in powers)}", flush=True)


if __name__ == "__main__":
    main()
