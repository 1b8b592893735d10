"""One training step beside TRL's: the same weights, prompts, lengths and threads, every arm in a process of its own.

    OMP_NUM_THREADS=1 python tests/benchmarks/bench_step.py [--policies tiny,smollm2] [--rounds 2] [--steps 5]

The arms take turns, `rounds` times each; medians over all steps but the first of each process. All responses have the
full length (no stop tokens here, `min_new_tokens` there), float32, AdamW, one update per batch.

    opo        sampling with transformers, update, certificate
    opo_half_backward, opo_half    the same with model.compute=bfloat16_backward and bfloat16
    opo_vllm   the same with `rollout=vllm`
    trl, trl_half   GRPOTrainer, beta 0, one iteration; with bf16=True
    generate   `model.generate` alone: what sampling costs by the plain way
    opo_train, trl_train    training as it comes, with a task, a stop token and responses that end and repeat: `opo train` as it is, but
                            for the KL to the initial policy, which TRL does not take with beta 0; means over all steps but the first
    opo_standing, trl_standing  the same at a learning rate so small that the policy stays where it starts
"""

import argparse
import importlib
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback

SHAPES = {"tiny": (16, 8, 48), "smollm2": (4, 8, 64)}  # prompts, responses to each, tokens
MICROBATCH = {"tiny": 4096, "smollm2": 2560}  # tokens, as in conf/
TRAINING = ("opo_standing", "trl_standing", "opo_train", "trl_train")
ARMS = ("opo", "opo_half_backward", "opo_half", "opo_vllm", "trl", "trl_half", "generate", *TRAINING)
TRAINING_STEPS = {"tiny": 30, "smollm2": 8}
LEARNING_RATE = {"tiny": 3e-4, "smollm2": 1e-5}  # as in conf/
STANDING = 1e-6  # a learning rate at which responses stay what they are at the start


def prompts_of(policy: str, count: int) -> list[str]:
    if policy == "tiny":
        return [f"{i}+{i * 7 % 50}-{i * 3 % 20}=" for i in range(10, 10 + count)]
    return [f"What is {i} plus {i * 7 % 50}? Think step by step." for i in range(count)]


def reward(text: str) -> float:
    return len(text) % 7 / 7


def opo(policy_name: str, steps: int, engine: Any = "hf", compute: Any = "float32") -> list[dict[str, float]]:
    from opo.batch import Rollouts
    from opo.config.schema import CertificateConfig, ModelConfig, OptimConfig, RolloutConfig, RunConfig
    from opo.model.load import load_policy
    from opo.rollout.base import Sampling
    from opo.rollout.factory import make_sampler
    from opo.system.threads import use_machine
    from opo.train.learner import Learner

    use_machine(torch.get_num_threads())
    prompts, group, tokens = SHAPES[policy_name]
    config = RunConfig.of(
        None,
        model=ModelConfig(policy_name, compute=compute),
        rollout=RolloutConfig(engine, prompts, group, tokens),
        optim=OptimConfig(learning_rate=STANDING, tokens_per_microbatch=MICROBATCH[policy_name]),
        certificate=CertificateConfig(logprob_abs_mean_nats=0.1, logprob_abs_max_nats=2.0),
        device="cpu",
        kl_init_every=0,
    )
    policy = load_policy(config.model, device="cpu")
    texts = prompts_of(policy_name, prompts * (steps + 1))
    times = []
    with tempfile.TemporaryDirectory() as folder, make_sampler(config.model, config.rollout) as sampler:
        learner = Learner(config, policy, Path(folder))
        sampler.load_weights(policy.model, 0)
        for step in range(steps + 1):
            start = time.perf_counter()
            ids = [policy.tokenizer.encode(text) for text in texts[step * prompts : (step + 1) * prompts]]
            samples = sampler.generate(ids, Sampling(group, tokens), torch.Generator().manual_seed(step))
            rewards = [[reward(str(policy.tokenizer.decode(r))) for r in group] for group in samples.response_ids]
            sampled = time.perf_counter()
            rollouts = Rollouts.from_lists(
                ids, samples.response_ids, rewards, samples.logprobs, versions=samples.versions
            )
            learner.update(rollouts)
            updated = time.perf_counter()
            sampler.load_weights(policy.model, learner.version)
            done = time.perf_counter()
            assert bool((rollouts.lengths_N == tokens).all())
            times.append({"step": done - start, "sampling": sampled - start, "update": updated - sampled})
    return times[1:]


def trl(policy_name: str, steps: int, half: bool = False) -> list[dict[str, float]]:
    prompts, _, tokens = SHAPES[policy_name]
    settings = {"learning_rate": STANDING, "bf16": half, "generation_kwargs": {"min_new_tokens": tokens}}
    rows = {"prompt": prompts_of(policy_name, prompts * (steps + 2))}
    return _trl(policy_name, steps, rows, lambda completions, **_: [reward(c) for c in completions], settings)


def _trl(
    policy_name: str,
    steps: int,
    rows: dict[str, list[Any]],
    score: Callable[..., list[float]],
    settings: dict[str, Any],
) -> list[dict[str, float]]:
    peer, datasets = importlib.import_module("trl"), importlib.import_module("datasets")  # `make bench` installs them

    prompts, group, tokens = SHAPES[policy_name]
    model, tokenizer = plain_model(policy_name)
    settings = {
        "per_device_train_batch_size": prompts * group,
        "num_generations": group,
        "max_completion_length": tokens,
        "max_steps": steps + 1,
        "beta": 0.0,
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "report_to": [],
        "logging_steps": 1,
        "save_strategy": "no",
        "disable_tqdm": True,
    } | settings
    times: list[dict[str, float]] = []

    class Clock(TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            self.start = time.perf_counter()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            times.append({"step": time.perf_counter() - self.start})

    with tempfile.TemporaryDirectory() as folder:
        trainer = peer.GRPOTrainer(
            model=model,
            reward_funcs=score,
            args=peer.GRPOConfig(output_dir=folder, **settings),
            train_dataset=datasets.Dataset.from_dict(rows),
            processing_class=tokenizer,
            callbacks=[Clock()],
        )
        trainer.train()
    logged = [row for row in trainer.state.log_history if "reward" in row]
    names = {"reward": "reward", "length": "completions/mean_length"}
    return [step | {part: row[name] for part, name in names.items()} for step, row in zip(times, logged, strict=True)][
        1:
    ]


def training_task(policy_name: str) -> Any:
    from opo.tasks import make_task
    from opo.tasks.arithmetic import ArithmeticConfig
    from opo.tasks.reasoning_gym import ReasoningGymConfig

    options = {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1}
    return make_task(
        ArithmeticConfig() if policy_name == "tiny" else ReasoningGymConfig(options=options, template="chat")
    )


def opo_train(policy_name: str, rate: float) -> list[dict[str, float]]:
    from opo.config.schema import ModelConfig, OptimConfig, RolloutConfig, RunConfig
    from opo.train.loop import train

    steps = TRAINING_STEPS[policy_name]
    config = RunConfig.of(
        training_task(policy_name).config,
        model=ModelConfig(policy_name),
        rollout=RolloutConfig("hf", *SHAPES[policy_name]),
        optim=OptimConfig(learning_rate=rate, tokens_per_microbatch=MICROBATCH[policy_name]),
        steps=steps,
        kl_init_every=0,
        threads=torch.get_num_threads(),
        device="cpu",
    )
    with tempfile.TemporaryDirectory() as folder:
        train(config, Path(folder) / "run")
        rows = [json.loads(line) for line in (Path(folder) / "run" / "metrics.jsonl").read_text().splitlines()]
    names = {
        "step": "time/step_s",
        "sampling": "time/rollout_s",
        "update": "time/update_s",
        "reward": "train/reward_mean",
        "length": "length/tokens_mean",
    }
    return [{part: row[name] for part, name in names.items()} for row in rows[1:]]


def trl_train(policy_name: str, rate: float) -> list[dict[str, float]]:
    from opo.tasks import render

    task, (_, tokenizer), steps = training_task(policy_name), plain_model(policy_name), TRAINING_STEPS[policy_name]
    prompts = [task.prompt(i) for i in range(SHAPES[policy_name][0] * (steps + 1))]

    def score(completions: list[str], index: list[int], **_: Any) -> list[float]:
        return [task.score(prompts[i], text) for i, text in zip(index, completions, strict=True)]

    settings = {"learning_rate": rate, "lr_scheduler_type": "constant", "shuffle_dataset": False}
    rows = {"prompt": [render(p, tokenizer) for p in prompts], "index": list(range(len(prompts)))}
    return _trl(policy_name, steps - 1, rows, score, settings)


def generate(policy_name: str, steps: int) -> list[dict[str, float]]:
    prompts, group, tokens = SHAPES[policy_name]
    model, tokenizer = plain_model(policy_name)
    texts, times = prompts_of(policy_name, prompts * (steps + 1)), []
    for step in range(steps + 1):
        start = time.perf_counter()
        part = texts[step * prompts : (step + 1) * prompts]
        inputs = tokenizer(part, return_tensors="pt", padding=True, padding_side="left", return_token_type_ids=False)
        model.generate(
            **inputs,
            do_sample=True,
            top_k=0,
            num_return_sequences=group,
            min_new_tokens=tokens,
            max_new_tokens=tokens,
        )
        times.append({"sampling": time.perf_counter() - start})
    return times[1:]


def plain_model(policy_name: str) -> tuple[Any, Any]:
    from opo.config.schema import ModelConfig
    from opo.model.load import model_source

    folder = model_source(ModelConfig(policy_name))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32), tokenizer


def matmul_rate() -> float:
    """FLOP/s of one large float32 product on this many threads."""
    a, b, c = torch.randn(3, 2048, 2048)
    times = []
    for _ in range(5):
        start = time.perf_counter()
        torch.mm(a, b, out=c)
        times.append(time.perf_counter() - start)
    return 2 * 2048**3 / statistics.median(times)


def update_flops(model: Any, prompt_tokens: int, responses: int, tokens: int) -> float:
    """Three products a weight (forward, and two backward) for each distinct prompt token and each response token; attention left out."""
    head = model.get_output_embeddings().weight
    body = sum(p.numel() for p in model.parameters() if p.dim() == 2 and p is not head)
    return 3 * 2 * (body * (prompt_tokens + responses * (tokens - 1)) + head.numel() * responses * tokens)


def run_arm(arm: str, policy: str, steps: int) -> None:
    """In the child: measure and print one line of JSON."""
    ways: dict[str, Callable[[], list[dict[str, float]]]] = {
        "opo": lambda: opo(policy, steps),
        "opo_half_backward": lambda: opo(policy, steps, compute="bfloat16_backward"),
        "opo_half": lambda: opo(policy, steps, compute="bfloat16"),
        "opo_vllm": lambda: opo(policy, steps, "vllm"),
        "trl": lambda: trl(policy, steps),
        "trl_half": lambda: trl(policy, steps, half=True),
        "generate": lambda: generate(policy, steps),
        "opo_standing": lambda: opo_train(policy, STANDING),
        "trl_standing": lambda: trl_train(policy, STANDING),
        "opo_train": lambda: opo_train(policy, LEARNING_RATE[policy]),
        "trl_train": lambda: trl_train(policy, LEARNING_RATE[policy]),
    }
    times = ways[arm]()
    print(json.dumps({"times": times, "gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20}))


@dataclass
class Found:
    """What the processes of one arm measured."""

    training: bool = False
    seconds: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    gib: float = 0.0

    def add(self, line: str) -> None:
        report = json.loads(line)
        self.gib = max(self.gib, report["gib"])
        for times in report["times"]:
            for part, value in times.items():
                self.seconds[part].append(value)

    def typical(self, part: str) -> float | None:
        """The median; the mean of training, whose steps differ in length."""
        average = statistics.mean if self.training else statistics.median
        return average(self.seconds[part]) if part in self.seconds else None


def measure(policy: str, arms: list[str], rounds: int, steps: int) -> dict[str, Found]:
    """The arms one after the other, `rounds` times, each in a process of its own."""
    found = {arm: Found(arm in TRAINING) for arm in arms}
    for arm in arms * rounds:
        command = [sys.executable, __file__, "--child", arm, policy, "--steps", str(steps)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            sys.exit(f"{arm} on {policy}: {done.stderr[-2000:]}")
        found[arm].add(done.stdout.splitlines()[-1])
    return found


def table_of(policy: str, found: dict[str, Found]) -> Table:
    prompts, group, length = SHAPES[policy]
    tokens = prompts * group * length
    table = Table(title=f"{policy}: {prompts} prompts x {group} responses x {length} tokens, float32 weights")
    for heading in (
        "",
        "s a step",
        "from - to",
        "sampling",
        "tokens/s",
        "update",
        "tokens/s",
        "peak GiB",
        "TRL / this",
    ):
        table.add_column(heading)
    for arm, times in found.items():
        row, step = [arm], times.typical("step")
        beside = found.get(arm.replace("opo", "trl") if times.training else "trl")
        peer = beside.typical("step") if beside else None
        row += ["", ""] if step is None else [f"{step:.3f}", "{:.3f} - {:.3f}".format(*extremes(times.seconds["step"]))]
        for part in ("sampling", "update"):
            value = times.typical(part)
            row += ["", ""] if value is None else [f"{value:.3f}", "" if times.training else f"{tokens / value:.0f}"]
        table.add_row(*row, f"{times.gib:.2f}", "" if step is None or peer is None else f"{peer / step:.2f}")
    return table


def extremes(values: list[float]) -> tuple[float, float]:
    return min(values), max(values)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--policies", default="tiny,smollm2")
    parser.add_argument("--arms", default=",".join(ARMS))
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--child", nargs=2, metavar=("ARM", "POLICY"))
    options = parser.parse_args()
    if options.child:
        arm, policy = options.child
        run_arm(arm, policy, options.steps)
        return
    rate, console = matmul_rate(), Console(width=120)
    console.print(f"{torch.get_num_threads()} thread(s); a large float32 product: {rate / 1e9:.0f} GFLOP/s")
    for policy in options.policies.split(","):
        found = measure(policy, options.arms.split(","), options.rounds, options.steps)
        console.print(table_of(policy, found))
        for arm in (arm for arm, times in found.items() if times.training):
            reward, length = (statistics.mean(found[arm].seconds[part]) for part in ("reward", "length"))
            console.print(f"{arm}: mean reward {reward:.2f}, mean length {length:.1f} tokens")
        if "opo" in found and (update := found["opo"].typical("update")) is not None:
            model, tokenizer = plain_model(policy)
            prompts, group, tokens = SHAPES[policy]
            prompt_tokens = sum(len(tokenizer.encode(text)) for text in prompts_of(policy, prompts))
            flops = update_flops(model, prompt_tokens, prompts * group, tokens)
            console.print(f"the update of opo: {flops / update / rate:.0%} of that rate\n")


if __name__ == "__main__":
    main()
