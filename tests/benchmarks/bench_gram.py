"""Time and memory of the exact score Gram beside one training step and beside other ways to per-response gradients.

    OMP_NUM_THREADS=1 python -m tests.benchmarks.bench_gram [--repeats 5] [--arms plain,hooks,loop] [--memory]

Time: a 6.6M-parameter Llama, 64 responses of 64 tokens, one thread, float32; the arms take turns in one process, medians.
Memory: peak resident size of one process each, SmolLM2-135M's shape with random weights, 48 responses of 64 tokens.
"""

import argparse
import copy
import importlib
import importlib.util
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.func import functional_call, grad, vmap
from transformers import LlamaConfig, PreTrainedModel

from analysis.score_gram.core import score_gram
from opo.plan.shape import PACKAGED

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))
from small import random_model

SMALL = {
    "vocab_size": 512,
    "hidden_size": 256,
    "intermediate_size": 688,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
    "tie_word_embeddings": False,
}
SMOLLM2_135M = {key: value for key, value in PACKAGED["smollm2"].items() if key != "model_type"}
Inputs = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def inputs_of(vocabulary: int, responses: int, prompt: int, tokens: int) -> Inputs:
    rng = torch.Generator().manual_seed(0)
    ids = torch.randint(0, vocabulary, (responses, prompt + tokens), generator=rng)
    mask = torch.ones_like(ids)
    response = mask.clone()
    response[:, :prompt] = 0
    return ids, mask, response


def loss_of(model: Callable[..., Any], ids: torch.Tensor, mask: torch.Tensor, response: torch.Tensor) -> torch.Tensor:
    logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, :-1]
    logprobs = logits.log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0]
    return -(logprobs * response[:, 1:]).sum()


def plain(model: PreTrainedModel, inputs: Inputs) -> None:
    model.zero_grad(set_to_none=True)
    loss_of(model, *inputs).backward()
    model.zero_grad(set_to_none=True)


def loop(model: PreTrainedModel, inputs: Inputs) -> None:
    score_gram(model, *inputs, method="loop")


def hooks(model: PreTrainedModel, inputs: Inputs) -> None:
    score_gram(model, *inputs)


def hooks_unverified(model: PreTrainedModel, inputs: Inputs) -> None:
    score_gram(model, *inputs, verify=False)


def hooks_recompute(model: PreTrainedModel, inputs: Inputs) -> None:
    score_gram(model, *inputs, recompute=True)


def vmapped(model: PreTrainedModel, inputs: Inputs) -> None:
    """torch.func.vmap(grad) over responses, then one product; the model must use eager attention."""
    parameters = {name: p.detach() for name, p in model.named_parameters()}

    def loss(parameters: dict[str, torch.Tensor], *row: torch.Tensor) -> torch.Tensor:
        def forward(**kwargs: object) -> object:
            return functional_call(model, parameters, (), kwargs)

        return loss_of(forward, *(x[None] for x in row))

    grads = vmap(grad(loss), in_dims=(None, 0, 0, 0))(parameters, *inputs)
    flat_NP = torch.cat([g.flatten(1) for g in grads.values()], 1)
    torch.mm(flat_NP, flat_NP.T)


ARMS: dict[str, Callable[[PreTrainedModel, Inputs], None]] = {
    "plain": plain,
    "hooks": hooks,
    "hooks_unverified": hooks_unverified,
    "hooks_recompute": hooks_recompute,
    "loop": loop,
    "vmap": vmapped,
}
DELIVERS = {
    "plain": "mean gradient",
    "hooks": "exact N x N Gram, verified on one response",
    "hooks_unverified": "exact N x N Gram",
    "hooks_recompute": "the same, with the memory of one layer",
    "loop": "exact N x N Gram, one backward per response",
    "vmap": "exact N x N Gram, all N gradients held",
    "ghost": "norms only (Opacus)",
}


def ghost_arm(model: PreTrainedModel) -> Callable[[PreTrainedModel, Inputs], None]:
    """Per-response gradient norms by Opacus' ghost clipping, on a copy that it may alter."""
    opacus = importlib.import_module("opacus.grad_sample")

    wrapped = opacus.GradSampleModuleFastGradientClipping(
        copy.deepcopy(model).train(), batch_first=True, loss_reduction="sum", max_grad_norm=1.0, use_ghost_clipping=True
    )

    def ghost(_: PreTrainedModel, inputs: Inputs) -> None:
        wrapped.zero_grad(set_to_none=True)
        loss_of(wrapped, *inputs).backward()
        wrapped.get_norm_sample()

    return ghost


def time_arms(names: list[str], repeats: int) -> None:
    torch.manual_seed(0)
    model = random_model(LlamaConfig, **SMALL)
    eager = copy.deepcopy(model)
    eager.set_attn_implementation("eager")
    inputs = inputs_of(SMALL["vocab_size"], responses=64, prompt=1, tokens=63)
    arms = dict(ARMS)
    if "ghost" in names:
        if importlib.util.find_spec("opacus"):
            arms["ghost"] = ghost_arm(model)
        else:
            print("ghost: left out, opacus is not installed")
            names = [name for name in names if name != "ghost"]
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for repeat in range(repeats + 1):  # the first round warms up
        for name in names:
            started = time.perf_counter()
            arms[name](eager if name == "vmap" else model, inputs)
            if repeat:
                seconds[name].append(time.perf_counter() - started)
    count = sum(p.numel() for p in model.parameters())
    print(
        f"{count / 1e6:.1f}M parameters, 64 responses x 64 tokens, {torch.get_num_threads()} thread, float32, {repeats} repeats"
    )
    print(f"{'arm':18}{'median s':>10}{'min s':>10}{'x plain':>10}  delivers")
    unit = statistics.median(seconds["plain"])
    for name, values in seconds.items():
        median = statistics.median(values)
        print(f"{name:18}{median:10.3f}{min(values):10.3f}{median / unit:10.2f}  {DELIVERS[name]}")


def peak_of(name: str) -> None:
    """Run one arm once in this process and print its peak resident size in MiB."""
    torch.manual_seed(0)
    model = random_model(LlamaConfig, **SMOLLM2_135M)
    ARMS[name](model, inputs_of(SMOLLM2_135M["vocab_size"], responses=48, prompt=16, tokens=64))
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def compare_memory() -> None:
    print("peak resident size, SmolLM2-135M's shape, 48 responses x (16 + 64) tokens")
    peaks = {}
    for name in ("plain", "hooks", "hooks_recompute"):
        command = [sys.executable, "-m", "tests.benchmarks.bench_gram", "--peak-of", name]
        peaks[name] = float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])
        print(f"{name:18}{peaks[name]:8.0f} MiB {peaks[name] / peaks['plain']:8.2f} x plain")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--arms", default="plain,hooks,hooks_unverified,hooks_recompute,loop,vmap,ghost")
    parser.add_argument("--memory", action="store_true", help="memory alone")
    parser.add_argument("--peak-of", choices=list(ARMS), help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.peak_of:
        peak_of(options.peak_of)
    else:
        if not options.memory:
            time_arms(options.arms.split(","), options.repeats)
        compare_memory()
