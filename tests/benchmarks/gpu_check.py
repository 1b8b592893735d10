"""Does this source tree compute on a GPU what it computes on the CPU, how fast, and in how much memory?

    PYTHONPATH=. python tests/benchmarks/gpu_check.py                       # every part, one after the other
    PYTHONPATH=. python tests/benchmarks/gpu_check.py --parts steps,gram-0.5b --json found.json
    PYTHONPATH=. python tests/benchmarks/gpu_check.py --device cpu --tiny   # the same code where there is no GPU

Needs torch 2.9 or newer, transformers, safetensors and numpy, no network: random weights. Each part takes less than three minutes and can be
run again alone; a part that fails is reported and the others go on, exit status 1. vLLM is tried by tests/opo/model/test_gpu.py.

    bodies      log-probabilities, gradient, sampling and score Gram of a small model, on the device against the CPU
    steps       twenty OPO steps of the built-in policy's shape, device against CPU; steps-0.5b: of Qwen2-0.5B's
    gram-SHAPE  the exact Gram of 64 responses x 256 tokens against a plain pass, in float32 and bfloat16; error against float64
    speed-SHAPE tokens a second of sampling and of the update, and the update's share of the device's matrix products (MFU)
"""

import argparse
import copy
import json
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

from analysis.score_gram import score_gram
from opo.baselines import BASELINES
from opo.batch import Rollouts
from opo.model.gradient import accumulate
from opo.model.policy import Policy
from opo.rollout.base import Sampling
from opo.rollout.hf import HfSampler


@dataclass(frozen=True)
class Size:
    """Of a part's batch."""

    prompts: int
    group: int
    prompt_tokens: int
    tokens: int


QWEN: dict[str, Any] = {
    "0.5b": {
        "num_hidden_layers": 24,
        "hidden_size": 896,
        "num_attention_heads": 14,
        "num_key_value_heads": 2,
        "intermediate_size": 4864,
    },
    "1.5b": {
        "num_hidden_layers": 28,
        "hidden_size": 1536,
        "num_attention_heads": 12,
        "num_key_value_heads": 2,
        "intermediate_size": 8960,
    },
    "tiny": {
        "num_hidden_layers": 2,
        "hidden_size": 64,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "intermediate_size": 128,
    },
}


def qwen(shape: str, dtype: torch.dtype = torch.float32, device: str = "cpu") -> Any:
    """Random weights of this shape of Qwen2."""
    torch.manual_seed(0)
    vocabulary = 256 if shape == "tiny" else 151_936
    with torch.device(device):
        model: Any = Qwen2ForCausalLM(Qwen2Config(**QWEN[shape], vocab_size=vocabulary, tie_word_embeddings=True))
    return model.to(dtype).eval()


def built_in() -> LlamaForCausalLM:
    """The shape of the built-in policy."""
    torch.manual_seed(0)
    shape: dict[str, Any] = {
        "hidden_size": 128,
        "intermediate_size": 344,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
    }
    return LlamaForCausalLM(LlamaConfig(**shape, num_key_value_heads=4, vocab_size=32, tie_word_embeddings=True)).eval()


def policy_of(model: Any, device: str) -> Policy:
    no_tokenizer: Any = None
    return Policy(model.to(device), no_tokenizer, 1.0, token_budget=16384)


def sample(policy: Policy, size: Size, seed: int) -> Rollouts:
    """Scored responses to random prompts; the reward is one where more than half of the tokens are even."""
    rng = torch.Generator().manual_seed(seed)
    vocabulary = policy.model.config.vocab_size
    prompts = torch.randint(0, vocabulary, (size.prompts, size.prompt_tokens), generator=rng).tolist()
    sampler = HfSampler(size.prompts * size.group)
    sampler.load_weights(policy.model, 0)
    samples = sampler.generate(prompts, Sampling(size.group, size.tokens, stop_token_ids=(0,)), rng)
    rewards = [[float(sum(t % 2 == 0 for t in r) > len(r) / 2) for r in group] for group in samples.response_ids]
    return Rollouts.from_lists(prompts, samples.response_ids, rewards, samples.logprobs)


def opo_gradient(policy: Policy, rollouts: Rollouts) -> None:
    """-(1/N) sum_n (r_n - b) grad log pi(y_n), with OPO's length-weighted baseline, into the parameters' gradients."""
    advantages_PG = rollouts.rewards_PG - BASELINES["length_weighted"](rollouts.rewards_PG, rollouts.lengths_PG)
    weights_NT = advantages_PG.view(-1, 1) * rollouts.mask_NT / rollouts.mask_NT.shape[0]
    policy.model.zero_grad(set_to_none=True)
    accumulate(policy, rollouts, list(range(rollouts.num_prompts)), weights_NT)


def inputs_of(model: Any, responses: int, prompt: int, tokens: int) -> tuple[Tensor, Tensor, Tensor]:
    """Random responses to one random prompt."""
    rng = torch.Generator().manual_seed(1)
    ids = torch.randint(0, model.config.vocab_size, (responses, prompt + tokens), generator=rng)
    ids[:, :prompt] = ids[0, :prompt].clone()
    mask = torch.ones_like(ids)
    return ids, mask, mask * (torch.arange(prompt + tokens) >= prompt)


def relative(found: Tensor, exact: Tensor) -> float:
    found, exact = found.double().cpu(), exact.double().cpu()
    return float((found - exact).norm() / exact.norm())


def seconds(device: str, run: Callable[[], Any]) -> float:
    """Of the second of two runs."""
    for _ in range(2):
        _wait(device)
        start = time.perf_counter()
        run()
        _wait(device)
    return time.perf_counter() - start


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def peak_gib(device: str, run: Callable[[], Any]) -> float | None:
    if device != "cuda":
        run()
        return None
    torch.cuda.reset_peak_memory_stats()
    run()
    return torch.cuda.max_memory_allocated() / 2**30


def bodies(device: str, tiny: bool) -> dict[str, Any]:
    """The same small model on both: everything within the rounding of float32."""
    size = Size(4, 4, 7, 12)
    here, there = (policy_of(qwen("tiny"), where) for where in ("cpu", device))
    rollouts, again = sample(here, size, 0), sample(there, size, 0)
    prompts, gradients = list(range(size.prompts)), []
    for policy in (here, there):
        opo_gradient(policy, rollouts)
        gradients.append(torch.cat([p.grad.flatten().cpu() for p in policy.parameters() if p.grad is not None]))
    inputs = inputs_of(here.model, 6, 7, 12)
    measured = [policy.measure(rollouts, prompts).logprobs_NT for policy in (here, there)]
    assert again.logprobs_NT is not None
    found = {
        "logprob_largest_nats": float((measured[0] - measured[1]).abs().max()),
        "sampler_trainer_largest_nats": float(
            (again.logprobs_NT - there.measure(again, prompts).logprobs_NT).abs().max()
        ),
        "gradient_relative": relative(gradients[1], gradients[0]),
        "gram_relative": relative(score_gram(there.model, *inputs), score_gram(here.model, *inputs)),
        "gram_loop_relative": relative(
            score_gram(there.model, *inputs), score_gram(there.model, *inputs, method="loop")
        ),
    }
    found["ok"] = max(found.values()) < 1e-3
    return found


def steps(device: str, tiny: bool, shape: str | None = None) -> dict[str, Any]:
    """OPO steps from the same weights and the same uniform numbers on both; one differing token makes later batches differ."""
    size = Size(8, 8, 8, 32) if shape is None or tiny else Size(1, 4, 16, 16)
    count = 3 if tiny else 20
    model = built_in() if shape is None else qwen("tiny" if tiny else shape)
    found: dict[str, Any] = {"steps": count}
    runs = {"cpu": [], device: []} if device != "cpu" else {"cpu": []}
    for where in runs:
        policy = policy_of(copy.deepcopy(model), where)
        optimizer = torch.optim.AdamW(policy.parameters(), lr=1e-4 if shape is None else 1e-6)
        start = time.perf_counter()
        for step in range(count):
            rollouts = sample(policy, size, step)
            opo_gradient(policy, rollouts)
            optimizer.step()
            runs[where].append(rollouts)
        _wait(where)
        found[f"seconds_{where}"] = time.perf_counter() - start
    pairs = list(zip(runs["cpu"], runs[device], strict=True))
    same = [torch.equal(a.tokens_NT, b.tokens_NT) for a, b in pairs]
    rewards = [abs(float(a.rewards_PG.mean() - b.rewards_PG.mean())) for a, b in pairs]
    return found | {"same_batches": sum(same), "reward_difference_mean": sum(rewards) / count, "ok": same[0]}


def gram(device: str, tiny: bool, shape: str) -> dict[str, Any]:
    """Time and memory against one plain forward and backward pass, and the error on a small part against float64."""
    responses, prompt, tokens = (6, 8, 16) if tiny else (64, 64, 256)
    shape, found = "tiny" if tiny else shape, dict[str, Any]()
    exact_inputs = inputs_of(qwen("tiny"), 6, 8, 12)
    exact = score_gram(qwen("tiny").double(), *exact_inputs, method="loop")
    for dtype in (torch.float32, torch.bfloat16):
        name, model = str(dtype).removeprefix("torch."), qwen(shape, dtype, device)
        inputs = inputs_of(model, responses, prompt, tokens)
        policy, rollouts = policy_of(model, device), as_rollouts(*inputs, prompt)
        ones_NT = rollouts.mask_NT.double()

        def plain(policy: Policy = policy, rollouts: Rollouts = rollouts, ones_NT: Tensor = ones_NT) -> None:
            accumulate(replace(policy, shared_prefix=False, token_budget=4096), rollouts, [0], ones_NT)
            policy.model.zero_grad(set_to_none=True)

        def whole(model: Any = model, inputs: Any = inputs) -> None:
            score_gram(model, *inputs, recompute=True, verify=False)

        found[f"{name}_plain_s"], found[f"{name}_gram_s"] = seconds(device, plain), seconds(device, whole)
        found[f"{name}_ratio"] = found[f"{name}_gram_s"] / found[f"{name}_plain_s"]
        found[f"{name}_plain_gib"], found[f"{name}_gram_gib"] = peak_gib(device, plain), peak_gib(device, whole)
        # weights drawn on the CPU, as the exact one's
        small = score_gram(qwen("tiny", dtype).to(device), *exact_inputs)
        found[f"{name}_error"] = relative(small, exact)
        del model, policy
    return found | {"ok": found["float32_error"] < 1e-3 and found["bfloat16_error"] < 0.2}


def as_rollouts(ids: Tensor, mask: Tensor, response: Tensor, prompt: int) -> Rollouts:
    rows = ids[:, prompt:].tolist()
    return Rollouts.from_lists([ids[0, :prompt].tolist()], [rows], [[0.0] * len(rows)])


def speed(device: str, tiny: bool, shape: str) -> dict[str, Any]:
    """Sampling and update in bfloat16 weights; MFU = 6 x parameters x tokens a second over the rate of one large product."""
    size = Size(2, 4, 8, 16) if tiny else Size(16, 8, 64, 256)
    policy = policy_of(qwen("tiny" if tiny else shape, torch.bfloat16, device), device)
    rollouts = sample(policy, size, 0)
    tokens = int(rollouts.lengths_N.sum())
    sampling_s = seconds(device, lambda: sample(policy, size, 0))
    update_s = seconds(device, lambda: opo_gradient(replace(policy, shared_prefix=True), rollouts))
    side = 256 if tiny else 8192
    a, b = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
    flops = 2 * side**3 / seconds(device, lambda: a @ b)
    processed = len(set(rollouts.first_N.tolist())) / len(rollouts.first_N) * tokens + size.prompts * size.prompt_tokens
    parameters = sum(p.numel() for p in policy.parameters())
    return {
        "sampling_tokens_per_s": tokens / sampling_s,
        "update_tokens_per_s": tokens / update_s,
        "product_tflops": flops / 1e12,
        "mfu": 6 * parameters * processed / update_s / flops,
        "ok": True,
    }


PARTS: dict[str, Callable[[str, bool], dict[str, Any]]] = {
    "bodies": bodies,
    "steps": steps,
    "steps-0.5b": lambda device, tiny: steps(device, tiny, "0.5b"),
    "gram-0.5b": lambda device, tiny: gram(device, tiny, "0.5b"),
    "gram-1.5b": lambda device, tiny: gram(device, tiny, "1.5b"),
    "speed-0.5b": lambda device, tiny: speed(device, tiny, "0.5b"),
    "speed-1.5b": lambda device, tiny: speed(device, tiny, "1.5b"),
}


def run_part(name: str, device: str, tiny: bool) -> dict[str, Any]:
    """What a part found; one that fails has its error."""
    start = time.perf_counter()
    try:
        found = PARTS[name](device, tiny)
    except Exception as error:
        traceback.print_exc()
        found = {"ok": False, "error": f"{type(error).__name__}: {error}"}
    if device == "cuda":
        torch.cuda.empty_cache()
    return found | {"seconds": time.perf_counter() - start}


def lines(name: str, found: dict[str, Any]) -> str:
    rows = [
        f"  {key:32}{value:.4g}" if isinstance(value, float) else f"  {key:32}{value}" for key, value in found.items()
    ]
    return "\n".join([f"{name}: {'ok' if found['ok'] else 'FAILED'}", *rows])


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", default=",".join(PARTS), help="comma-separated")
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--tiny", action="store_true", help="tiny shapes")
    parser.add_argument("--json", type=Path, help="also write what was found to this file")
    options = parser.parse_args(arguments)
    names = options.parts.split(",")
    if unknown := [name for name in names if name not in PARTS]:
        parser.error(f"--parts: {unknown[0]} is not one of {', '.join(PARTS)}")
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch sees no GPU here; --device cpu --tiny runs the same code")
    card = torch.cuda.get_device_name() if options.device == "cuda" else "no GPU (CPU)"
    found: dict[str, Any] = {"card": card, "torch": torch.__version__, "transformers": transformers.__version__}
    print(", ".join([card, *(f"{name} {found[name]}" for name in ("torch", "transformers"))]), flush=True)
    for name in names:
        found[name] = run_part(name, options.device, options.tiny)
        print(lines(name, found[name]), flush=True)
        if options.json:  # after each part: a later one may be stopped
            options.json.write_text(json.dumps(found, indent=1) + "\n")
    return 0 if all(found[name]["ok"] for name in names) else 1


if __name__ == "__main__":
    sys.exit(main())
