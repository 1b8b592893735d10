"""How fast a rank samples and updates: as given, as two steps of the training itself show, or by the arithmetic of the model at a
rate of operations that is given too, or is that of a large matrix product on this machine (at best, then: a real run is slower).
"""

import json
import sys
import tempfile
import time
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from opo.catalogue import catalogue
from opo.config.schema import CheckpointConfig, EvaluateConfig, RunConfig, TrackingConfig
from opo.plan.machine import Machine
from opo.plan.training import Lengths, Microbatch

SIDE = 1024  # of the square matrices whose product is timed
SECONDS = 0.3  # at least
COUNTED = 64  # tokens whose arithmetic is counted


@dataclass(frozen=True)
class Speed:
    """Response tokens a second of one rank, and where they come from."""

    sampling: float
    update: float
    source: str  # in words
    mean_tokens: float | None = None  # of a response, where it was measured
    peak_bytes: float | None = None  # of the process that measured

    def step_seconds(self, run: RunConfig, ranks: int, tokens: float) -> float:
        """Of a step whose responses have so many tokens on average."""
        prompts = -(-run.rollout.num_prompts // ranks)
        sampled = prompts * run.rollout.group_size * tokens
        return sampled / self.sampling + sampled / self.update

    def run_seconds(self, run: RunConfig, ranks: int, tokens: float) -> float:
        """Of the run, evaluations included."""
        evaluations = run.steps // run.evaluate.every if run.evaluate.every else 0
        evaluated = -(-run.evaluate.num_prompts // ranks) * run.evaluate.group_size * tokens
        return run.steps * self.step_seconds(run, ranks, tokens) + evaluations * evaluated / self.sampling


def at_rate(run: RunConfig, model: Any, ranks: int, lengths: Lengths, rate: float, source: str) -> Speed:
    """From the model's arithmetic at `rate` operations a second: a pass forward for each sampled token, three for each that is learnt from.

    Updates beyond the first of a batch need the policy's log-probabilities before their weights: one pass more, unless the prompts
    are one micro-batch of one rank (`opo.model.gradient.open_pass`).
    """
    flops = forward_flops(model)
    share = 1 + lengths.prompt / (lengths.response * run.rollout.group_size)  # the prompt is encoded once for its group
    algo = run.algo
    epochs, once = algo.updates_per_rollout / algo.minibatches, ranks == 1 and Microbatch.of(run, 1, lengths).parts == 1
    passes = 3 * epochs + (0 if once else epochs - 1 / algo.minibatches)
    if run.kl_init_every or algo.kl_coef or "reference_logprobs_NT" in catalogue()[algo.name].needs:
        passes += 1 if algo.kl_coef else 1 / max(1, run.kl_init_every)
    if "values_NT" in catalogue()[algo.name].needs:
        passes += 1 + 3 * epochs
    return Speed(rate / (flops * share), rate / (flops * share * passes), source)


def forward_flops(model: Any) -> float:
    """Operations of a forward pass for one token, its log-probability included, attention to other tokens not."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    ids_1L = torch.ones(1, COUNTED, dtype=torch.int64, device=next(model.parameters()).device)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        base(input_ids=ids_1L, attention_mask=ids_1L, use_cache=False)
    return counter.get_total_flops() / COUNTED


def product_rate(machine: Machine, threads: int, compute: str) -> float:
    """Operations a second of a product of large matrices, with the threads and in the precision of the run."""
    before = torch.get_num_threads()
    if machine.kind == "cpu":
        torch.set_num_threads(threads)
    dtype = torch.bfloat16 if compute == "bfloat16" else torch.float32
    a, b = (torch.ones(SIDE, SIDE, dtype=dtype, device=machine.kind) for _ in range(2))
    try:
        count, start, spent = -1, 0.0, 0.0
        while spent < SECONDS or count < 2:  # the first product warms up
            if count == 0:
                start = time.perf_counter()
            torch.mm(a, b)
            if machine.kind == "cuda":
                torch.cuda.synchronize()
            count += 1
            spent = time.perf_counter() - start if count > 0 else 0.0
    finally:
        torch.set_num_threads(before)
    return 2 * SIDE**3 * count / spent


def measured(run: RunConfig, ranks: int) -> Speed:
    """From the second of two steps of this training with one rank's prompts, in a folder that is removed again.

    Raises what the training raises: UserError where it cannot be run here.
    """
    from opo.train.loop import train

    parts = run.algo.minibatches
    prompts = -(-run.rollout.num_prompts // (ranks * parts)) * parts
    short = replace(
        run,
        steps=2,
        rollout=replace(run.rollout, num_prompts=prompts),
        optim=replace(run.optim, warmup_steps=0),
        tracking=TrackingConfig(mode="off"),
        evaluate=EvaluateConfig(every=0),
        checkpoint=CheckpointConfig(every=0),
    )
    with tempfile.TemporaryDirectory() as folder, redirect_stdout(sys.stderr):
        train(short, Path(folder, "run"))
        row = json.loads(Path(folder, "run", "metrics.jsonl").read_text().splitlines()[-1])
    sampled = prompts * run.rollout.group_size * row["length/tokens_mean"]
    after = row["time/step_s"] - row["time/rollout_s"]
    return Speed(
        row["rollout/tokens_per_s"],
        sampled / after,
        f"measured now, in a process of {row['memory/peak_mib'] / 1024:.1f} GiB",
        row["length/tokens_mean"],
        row["memory/peak_mib"] * 2**20,
    )
