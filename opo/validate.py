"""What a training config must satisfy, checked before anything is loaded: types by the schema, the rest by the rules below."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from opo.algorithms import ALGORITHMS, Algorithm
from opo.build import build, convert, near, unknown_key
from opo.config import AlgoConfig, RunConfig
from opo.errors import UserError
from opo.tasks import TASKS

UNIVERSAL = [name for name in AlgoConfig.__dataclass_fields__ if name != "knobs"]
NO_BASELINE = {"reinforce", "remax", "ppo"}  # a group of one is enough: their baseline is not the group's


def load_config(plain: Mapping[str, Any]) -> RunConfig:
    """The typed config; raises UserError, one line, naming the first key that is wrong."""
    values = dict(plain)
    task = values.pop("task", None)
    algo = values.pop("algo", None)
    values["algo"], values["task"] = {}, None
    config = build(RunConfig, values)
    config.algo = _algorithm(algo)
    config.task = _task(task)
    for rule in RULES:
        for complaint in rule(config):
            raise UserError(complaint)
    return config


def _algorithm(values: Any) -> AlgoConfig:
    if not isinstance(values, Mapping) or values.get("name") not in ALGORITHMS:
        name = values.get("name") if isinstance(values, Mapping) else values
        raise UserError(
            f"algo={name}: unknown algorithm{near(str(name), ALGORITHMS)}; choose one of {', '.join(ALGORITHMS)}"
        )
    chosen = ALGORITHMS[values["name"]]
    config = build(
        AlgoConfig,
        {k: v for k, v in values.items() if k not in chosen.knobs and k != "knobs"} | _unknown(values, chosen),
    )
    config.knobs = {
        name: convert(chosen.knobs[name].annotation, value, f"algo.{name}")
        for name, value in values.items()
        if name in chosen.knobs
    }
    return config


def _unknown(values: Mapping[str, Any], chosen: Algorithm) -> dict[str, Any]:
    for name in values:
        if name not in UNIVERSAL and name not in chosen.knobs:
            raise unknown_key(f"algo.{name}", name, [*UNIVERSAL, *chosen.knobs])
    return {}


def _task(values: Any) -> Any:
    name = values.get("name") if isinstance(values, Mapping) else values
    if name not in TASKS:
        raise UserError(f"task={name}: unknown task{near(str(name), TASKS)}; choose one of {', '.join(TASKS)}")
    return build(TASKS[name][0], values, "task")


Rule = Callable[[RunConfig], Iterator[str]]


def at_least(key: str, low: float, strictly: bool = False) -> Rule:
    def rule(config: RunConfig) -> Iterator[str]:
        value = _at(config, key)
        if value is not None and (value < low or (strictly and value == low)):
            yield f"{key}={value}: must be {'above' if strictly else 'at least'} {low:g}"

    return rule


def between(key: str, low: float, high: float, open_low: bool = False) -> Rule:
    def rule(config: RunConfig) -> Iterator[str]:
        value = _at(config, key)
        if value < low or value > high or (open_low and value == low):
            yield f"{key}={value}: must lie between {low:g}{' (excluded)' if open_low else ''} and {high:g}"

    return rule


def _at(config: Any, key: str) -> Any:
    for name in key.split("."):
        config = getattr(config, name)
    return config


def knobs_in_range(config: RunConfig) -> Iterator[str]:
    """No knob of any algorithm means anything below zero; rates of decay stay below one."""
    for name, value in config.algo.knobs.items():
        if isinstance(value, int | float) and not isinstance(value, bool) and value < 0:
            yield f"algo.{name}={value}: must be at least 0"
        if name in {"gamma", "lam", "clip_low"} and isinstance(value, float) and value > 1:
            yield f"algo.{name}={value}: must be at most 1"


def exactly_on_policy(config: RunConfig) -> Iterator[str]:
    """An algorithm without an importance ratio is right for one update per rollout batch and wrong for the next."""
    algo = config.algo
    if ALGORITHMS[algo.name].on_policy_only and algo.updates_per_rollout != 1:
        yield (
            f"algo.updates_per_rollout={algo.updates_per_rollout}: {algo.name} is exactly on-policy, one update per rollout batch; "
            "allowed is 1 (grpo, dapo, gspo, cispo and ppo take more)"
        )


def untruncated(config: RunConfig) -> Iterator[str]:
    """Top-p and top-k sample from another distribution than the one that is differentiated."""
    if ALGORITHMS[config.algo.name].on_policy_only:
        if config.rollout.top_p != 1:
            yield f"rollout.top_p={config.rollout.top_p}: {config.algo.name} is exactly on-policy and samples untruncated; allowed is 1"
        if config.rollout.top_k != 0:
            yield f"rollout.top_k={config.rollout.top_k}: {config.algo.name} is exactly on-policy and samples untruncated; allowed is 0"


def group_of_one(config: RunConfig) -> Iterator[str]:
    """A group baseline of one response is that response's own reward: every advantage would be zero."""
    if config.rollout.group_size == 1 and config.algo.name not in NO_BASELINE:
        yield f"rollout.group_size=1: {config.algo.name} compares the responses of a group; at least 2 are needed"


def whole_minibatches(config: RunConfig) -> Iterator[str]:
    """Minibatches are whole groups of one size, and epochs are whole."""
    algo = config.algo
    if config.rollout.num_prompts % algo.minibatches:
        yield f"algo.minibatches={algo.minibatches}: must divide rollout.num_prompts={config.rollout.num_prompts}"
    if algo.updates_per_rollout % algo.minibatches:
        yield f"algo.updates_per_rollout={algo.updates_per_rollout}: must be a multiple of algo.minibatches={algo.minibatches}"


def reachable_model(config: RunConfig) -> Iterator[str]:
    """A path that looks like a folder must be one that transformers can load."""
    path = config.model.path
    if path is None and config.model.name == "pretrained":
        yield "model.path: give a folder or a hub id, as in model=FOLDER"
    if path is None:
        return
    looks_local = path.startswith((".", "/", "~")) or path.count("/") != 1
    if (looks_local or Path(path).exists()) and not (Path(path) / "config.json").is_file():
        yield f"model.path={path}: no model folder there (a folder with config.json, or a hub id such as org/name)"


def tiny_shape(config: RunConfig) -> Iterator[str]:
    """vLLM's attention wants heads of at least 32."""
    tiny = config.model.tiny
    if tiny.hidden_size % tiny.heads or tiny.hidden_size // tiny.heads < 32:
        yield f"model.tiny.heads={tiny.heads}: model.tiny.hidden_size={tiny.hidden_size} must divide into heads of at least 32"


def online_tracking(config: RunConfig) -> Iterator[str]:
    """Names become folders."""
    if not config.study or "/" in config.study or config.study.startswith("."):
        yield f"study={config.study!r}: a folder name without slashes is needed"


def float_on_vllm(config: RunConfig) -> Iterator[str]:
    """The engine has no double precision."""
    if config.rollout.engine == "vllm" and config.model.dtype == "float64":
        yield "model.dtype=float64: rollout.engine=vllm takes float32 or bfloat16"


RULES: list[Rule] = [
    at_least("steps", 1),
    at_least("seed", 0),
    at_least("threads", 1),
    at_least("kl_init_every", 0),
    at_least("algo.updates_per_rollout", 1),
    at_least("algo.minibatches", 1),
    at_least("algo.kl_coef", 0),
    at_least("algo.entropy_coef", 0),
    at_least("model.lora_rank", 0),
    at_least("model.tiny.layers", 1),
    at_least("model.tiny.heads", 1),
    at_least("model.tiny.warmup_steps", 1),
    at_least("model.tiny.warmup_batch", 1),
    at_least("rollout.num_prompts", 1),
    at_least("rollout.group_size", 1),
    at_least("rollout.max_new_tokens", 1),
    at_least("rollout.max_sequences", 1),
    at_least("rollout.temperature", 0, strictly=True),
    between("rollout.top_p", 0, 1, open_low=True),
    at_least("rollout.top_k", 0),
    at_least("rollout.kv_cache_gib", 0, strictly=True),
    between("rollout.gpu_memory_utilization", 0, 1, open_low=True),
    at_least("optim.learning_rate", 0),
    at_least("optim.warmup_steps", 0),
    at_least("optim.weight_decay", 0),
    between("optim.beta1", 0, 0.9999999),
    between("optim.beta2", 0, 0.9999999),
    at_least("optim.eps", 0, strictly=True),
    at_least("optim.max_grad_norm", 0),
    at_least("optim.tokens_per_microbatch", 1),
    at_least("critic.learning_rate", 0),
    at_least("reward.timeout_s", 0, strictly=True),
    at_least("reward.workers", 1),
    at_least("evaluate.every", 0),
    at_least("evaluate.num_prompts", 2),
    at_least("evaluate.group_size", 1),
    at_least("checkpoint.every", 0),
    at_least("checkpoint.keep", 1),
    at_least("tracking.completions_every", 0),
    at_least("tracking.completions", 1),
    at_least("tracking.samples_every", 0),
    at_least("certificate.logprob_abs_mean_nats", 0, strictly=True),
    at_least("certificate.logprob_abs_max_nats", 0, strictly=True),
    at_least("certificate.cap", 1),
    knobs_in_range,
    exactly_on_policy,
    untruncated,
    group_of_one,
    whole_minibatches,
    reachable_model,
    tiny_shape,
    online_tracking,
    float_on_vllm,
]
