"""One OPO step on a GPU: sampling and update of models of Qwen2.5's shapes with random weights, nothing downloaded.

    python tests/benchmarks/bench_gpu.py [--shapes 0.5b,1.5b] [--arms ...] [--steps 3]
    python tests/benchmarks/bench_gpu.py --device cpu --shapes tiny     # the same code where there is no GPU

Every arm has a process of its own; medians over all steps but the first. Responses have the full length. Products are taken in
bfloat16; the utilisation is the update's model FLOPs over the rate of one large bfloat16 product, measured in the same process.

    hf          sampling with transformers; weights in float32, model.compute=bfloat16
    hf_half     the same with weights in bfloat16; hf_liger: and log-probabilities by Liger's kernel
    vllm, vllm_half     sampling with vLLM in the trainer's process
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from bench_step import Found, update_flops
from rich.console import Console
from rich.table import Table
from transformers import Qwen2Config, Qwen2ForCausalLM


@dataclass(frozen=True)
class Shape:
    """Of the model, and of one rollout batch."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    intermediate: int
    vocabulary: int = 151_936
    prompts: int = 32
    group: int = 8
    prompt_tokens: int = 64
    tokens: int = 256
    microbatch: int = 16_384  # tokens

    def config(self) -> Qwen2Config:
        return Qwen2Config(
            num_hidden_layers=self.layers,
            hidden_size=self.hidden,
            num_attention_heads=self.heads,
            num_key_value_heads=self.kv_heads,
            intermediate_size=self.intermediate,
            vocab_size=self.vocabulary,
            max_position_embeddings=4096,
            tie_word_embeddings=True,
            architectures=["Qwen2ForCausalLM"],
        )


SHAPES = {
    "0.5b": Shape(24, 896, 14, 2, 4864),
    "1.5b": Shape(28, 1536, 12, 2, 8960),
    "tiny": Shape(2, 64, 2, 1, 128, 256, prompts=4, group=4, prompt_tokens=8, tokens=16, microbatch=256),
}
ARMS: dict[str, tuple[Any, Any, Any, Any]] = {  # engine, dtype of the weights, model.compute, model.head_kernel
    "hf": ("hf", "float32", "bfloat16", "tiled"),
    "hf_half": ("hf", "bfloat16", "float32", "tiled"),
    "hf_liger": ("hf", "bfloat16", "float32", "liger"),
    "vllm": ("vllm", "float32", "bfloat16", "tiled"),
    "vllm_half": ("vllm", "bfloat16", "float32", "tiled"),
}


def measure(arm: str, shape: Shape, device: str, steps: int) -> dict[str, Any]:
    """Seconds of each step, and of the process: peak GiB, FLOP/s of the update's median and of a large product, worst mean gap (nats)."""
    from opo.batch import Rollouts
    from opo.config.schema import CertificateConfig, ModelConfig, OptimConfig, RolloutConfig, RunConfig
    from opo.model.load import DTYPES
    from opo.model.policy import Policy
    from opo.rollout.base import Sampling
    from opo.rollout.factory import make_sampler
    from opo.train.learner import Learner
    from opo.train.step_metrics import peak_memory_mib

    engine, dtype, compute, kernel = ARMS[arm]
    generator, times = torch.Generator().manual_seed(0), []
    rate = matmul_rate(device)
    with tempfile.TemporaryDirectory() as folder:
        shape.config().save_pretrained(folder)
        rollout = RolloutConfig(
            engine, shape.prompts, shape.group, shape.tokens, max_model_len=shape.prompt_tokens + shape.tokens
        )
        config = RunConfig.of(
            None,
            model=ModelConfig("pretrained", folder, dtype, compute, kernel),
            rollout=rollout,
            optim=OptimConfig(learning_rate=1e-6, tokens_per_microbatch=shape.microbatch),
            certificate=CertificateConfig(logprob_abs_mean_nats=0.2, logprob_abs_max_nats=5.0),
            device=device,
            kl_init_every=0,
        )
        torch.manual_seed(0)
        model: Any = Qwen2ForCausalLM(shape.config())
        model = model.to(device, DTYPES[dtype]).eval()
        no_tokenizer: Any = None
        policy = Policy(model, no_tokenizer, compute=compute, head_kernel=kernel)
        learner = Learner(config, policy, Path(folder))
        with make_sampler(config.model, config.rollout) as sampler:
            sampler.load_weights(model, 0)
            for _ in range(steps + 1):
                size = (shape.prompts, shape.prompt_tokens)
                ids = torch.randint(shape.vocabulary, size, generator=generator).tolist()
                start = now(device)
                samples = sampler.generate(ids, Sampling(shape.group, shape.tokens), generator)
                sampled = now(device)
                rewards = torch.rand(shape.prompts, shape.group, generator=generator, dtype=torch.float64)
                rollouts = Rollouts.from_lists(
                    ids, samples.response_ids, rewards, samples.logprobs, versions=samples.versions
                )
                learner.update(rollouts)
                updated = now(device)
                sampler.load_weights(model, learner.version)
                times.append({"step": now(device) - start, "sampling": sampled - start, "update": updated - sampled})
    seconds = statistics.median(step["update"] for step in times[1:])
    flops = update_flops(model, shape.prompts * shape.prompt_tokens, shape.prompts * shape.group, shape.tokens)
    return {
        "times": times[1:],
        "gib": peak_memory_mib() / 2**10,
        "flops": flops / seconds,
        "rate": rate,
        "gap": learner.check.worst["mean_abs"],
    }


def now(device: str) -> float:
    """Seconds, all work that was given to the device done."""
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def matmul_rate(device: str) -> float:
    """FLOP/s of one large bfloat16 product."""
    size = 8192 if device == "cuda" else 1024
    a, b = torch.randn(2, size, size, device=device, dtype=torch.bfloat16)
    times = []
    for _ in range(10):
        start = now(device)
        torch.mm(a, b)
        times.append(now(device) - start)
    return 2 * size**3 / statistics.median(times)


def table_of(name: str, device: str, found: dict[str, dict[str, Any]]) -> Table:
    shape, where = SHAPES[name], torch.cuda.get_device_name() if device == "cuda" else "the CPU"
    size = f"{shape.prompts} prompts x {shape.group} responses x {shape.tokens} tokens"
    table = Table(title=f"Qwen2 {name} with random weights on {where}: {size}")
    for heading in (
        "",
        "s a step",
        "sampling, tokens/s",
        "update, tokens/s",
        "TFLOP/s",
        "of a product's",
        "peak GiB",
        "gap, nats",
    ):
        table.add_column(heading)
    tokens = shape.prompts * shape.group * shape.tokens
    for arm, report in found.items():
        times = Found()
        times.add(json.dumps(report))
        step, sampling, update = (statistics.median(times.seconds[part]) for part in ("step", "sampling", "update"))
        rates = [f"{tokens / sampling:.0f}", f"{tokens / update:.0f}", f"{report['flops'] / 1e12:.3g}"]
        share = f"{report['flops'] / report['rate']:.0%}"
        table.add_row(arm, f"{step:.3f}", *rates, share, f"{report['gib']:.2f}", f"{report['gap']:.1e}")
    return table


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--shapes", default="0.5b,1.5b")
    parser.add_argument("--arms", default=",".join(ARMS))
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--child", nargs=2, metavar=("ARM", "SHAPE"))
    options = parser.parse_args(arguments)
    if options.device == "cuda" and not torch.cuda.is_available():
        print("a step on a GPU: not timed, there is no CUDA GPU here")
        return
    if options.child:
        arm, name = options.child
        print(json.dumps(measure(arm, SHAPES[name], options.device, options.steps)))
        return
    for name in options.shapes.split(","):
        found = {}
        for arm in options.arms.split(","):
            command = [sys.executable, __file__, "--child", arm, name, "--device", options.device]
            done = subprocess.run(
                [*command, "--steps", str(options.steps)], capture_output=True, text=True, check=False
            )
            if done.returncode:
                sys.exit(f"{arm} on {name}: {done.stderr[-2000:]}")
            found[arm] = json.loads(done.stdout.splitlines()[-1])
        Console(width=120).print(table_of(name, options.device, found))


if __name__ == "__main__":
    main()
