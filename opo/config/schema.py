"""Typed schema of a training config: every key with its default and meaning. `opo/config/load.py` reads and judges it."""

from dataclasses import MISSING, asdict, field, fields
from typing import Annotated, Any, Literal, Self, get_type_hints

from pydantic import Field
from pydantic.dataclasses import dataclass

from opo.errors import UserError
from opo.keys import (
    HUGE,
    STRICT,
    Compute,
    Count,
    Decay,
    Device,
    HeadKernel,
    KLEstimator,
    LearningRate,
    NonNegative,
    Positive,
    Real,
    Seed,
    Share,
    Temperature,
    Threads,
    ZeroOrMore,
)


@dataclass(config=STRICT)
class AlgoConfig:
    """An algorithm and the keys that every algorithm has; `hyperparameters` are the keywords of its loss."""

    name: str = "opo"
    updates_per_rollout: Count = 1  # optimizer steps for each rollout batch; 1 is exactly on-policy
    minibatches: Count = 1  # parts of a rollout batch; updates_per_rollout / minibatches = epochs
    kl_coef: NonNegative = 0.0  # 0: no reference model exists
    kl_estimator: KLEstimator = "k3"
    kl_placement: Literal["loss", "reward"] = "loss"
    entropy_coef: NonNegative = 0.0  # bonus on the mean entropy of the sampled tokens' distributions
    filter: Any = (
        None  # responses or tokens that are learnt from: a name of opo/config/parts.py, or {name: ..., its options}
    )
    sampler: Any = None  # which prompts are asked, and which weights answer
    regulariser: Any = None  # a term on the tokens' entropies
    gradient: Any = None  # what the optimizer is given in place of the batch's own gradient
    shaper: Any = None  # of the rewards
    hyperparameters: dict[str, Any] = field(default_factory=dict)


@dataclass(config=STRICT)
class TinyConfig:
    """The built-in policy: its architecture and its supervised warm-up."""

    hidden_size: Count = 128
    intermediate_size: Count = 512
    layers: Count = 4
    heads: Count = 4
    seed: Seed = 0
    init_std: Positive = 0.06  # of the weights before the warm-up
    warmup_steps: Count = 400
    warmup_rows: Count = 8  # of 96 tokens of demonstrations, in each step
    warmup_muon_rate: Positive = 0.02  # of the matrices
    warmup_adamw_rate: Positive = 3e-3  # of embeddings and norms


@dataclass(config=STRICT)
class ModelConfig:
    """The policy that is trained."""

    name: Annotated[
        str,
        Field(
            pattern=r"^(tiny|smollm2|gemma3_270m|pretrained)$", description="tiny, smollm2, gemma3_270m or pretrained"
        ),
    ] = "tiny"
    path: str | None = None  # a folder or hub id; null for tiny, smollm2 and gemma3_270m
    dtype: Literal["float32", "bfloat16", "float64"] = "float32"  # of the weights
    compute: Compute = "float32"  # of the products of linear layers
    head_kernel: HeadKernel = "tiled"  # what makes log-probabilities from hidden states
    lora_rank: ZeroOrMore = 0  # 0: all parameters are trained
    lora_alpha: Count = 16
    lora_targets: str | list[str] = "all-linear"  # or names of modules
    tiny: TinyConfig = field(default_factory=TinyConfig)


@dataclass(config=STRICT)
class RolloutConfig:
    """How responses are sampled."""

    engine: Literal["hf", "vllm"] = "hf"
    num_prompts: Count = 16
    group_size: Count = 8
    max_new_tokens: Count = 48
    temperature: Temperature = 1.0
    top_p: Share = 1.0
    top_k: ZeroOrMore = 0
    max_sequences: Count = 256  # hf: responses sampled at once
    kv_cache_gib: Positive = 1.0  # vllm on the CPU
    gpu_memory_utilization: Share = 0.4  # vllm on a GPU
    max_model_len: Count | None = None  # vllm: tokens of prompt and response
    devices: list[ZeroOrMore] | None = None  # vllm: CUDA devices of the engine's own; none: where the trainer is


@dataclass(config=STRICT)
class OptimConfig:
    """The optimizer and how its gradient is made."""

    method: Literal["adamw", "sgd"] = (
        "adamw"  # sgd: plain steps, for gradient estimators with a step length of their own
    )
    learning_rate: LearningRate = 3e-4
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    warmup_steps: ZeroOrMore = 0  # updates
    weight_decay: NonNegative = 0.0
    beta1: Decay = 0.9
    beta2: Decay = 0.95
    eps: Positive = 1e-8
    max_grad_norm: NonNegative = 1.0  # 0: no clipping
    tokens_per_microbatch: Count = 4096  # padded tokens in one forward and backward pass
    shared_prefix: bool = True  # encode each prompt once for its group


@dataclass(config=STRICT)
class CriticConfig:
    """The value network of algorithms that need one."""

    learning_rate: LearningRate = 1e-3


@dataclass(config=STRICT)
class OwnReward:
    """A reward of one's own in place of the task's: one function, module:name, or a weighted sum of several."""

    function: str | list[str] | None = None
    weights: list[Real] | None = None  # of several functions, one each; null: 1

    @property
    def functions(self) -> dict[str, float] | None:
        """The weight of each function by its reference; None: the task's own reward. Raises UserError where the two keys disagree."""
        if self.function is None:
            if self.weights is not None:
                raise UserError("reward.weights: weighs the functions of reward.function=[...], and there are none")
            return None
        names = [self.function] if isinstance(self.function, str) else self.function
        weights = self.weights or [1.0] * len(names)
        if not names or len(set(names)) < len(names):
            raise UserError("reward.function: give one function or a list of different ones")
        if len(weights) != len(names):
            raise UserError(f"reward.weights has {len(weights)} numbers for {len(names)} functions: give one for each")
        return dict(zip(names, weights, strict=True))


@dataclass(config=STRICT)
class RewardConfig(OwnReward):
    """And the workers that compute it: processes that can be killed."""

    timeout_s: Positive = 10.0
    workers: Count = 1


@dataclass(config=STRICT)
class EvaluateConfig:
    """Reward on held-out prompts during training."""

    every: ZeroOrMore = 0  # steps; 0: never
    num_prompts: Count = 64
    group_size: Count = 4


@dataclass(config=STRICT)
class CheckpointConfig:
    """Checkpoints, from which an interrupted run resumes."""

    every: ZeroOrMore = 25  # steps; 0: at the end alone
    keep: Count = 2


@dataclass(config=STRICT)
class WandbConfig:
    """W&B beside the files that are always written."""

    mode: Literal["offline", "online", "off"] = "offline"
    project: str = "opo"
    entity: str | None = None  # null: the user's own
    notes: str | None = None  # a sentence on the run; null: a study's finding
    tags: list[str] = field(default_factory=list)  # besides the run's own


@dataclass(config=STRICT)
class TrackingConfig(WandbConfig):
    """W&B beside metrics.jsonl, and what of the responses is kept and shown."""

    completions_every: ZeroOrMore = 10  # steps between tables of completions; 0: none
    completions: Count = 32  # responses in each
    samples_every: ZeroOrMore = 0  # steps between prints of three responses on the terminal; 0: never


@dataclass(config=STRICT)
class CertificateConfig:
    """Tolerances of the rollout-trainer mismatch check, and what a breach does."""

    on_breach: Literal["stop", "correct"] = "stop"
    logprob_abs_mean_nats: Positive = 1e-4  # float32 stays near 1e-6, bfloat16 reaches 3e-2
    logprob_abs_max_nats: Positive = 1e-2  # float32 stays near 1e-5, bfloat16 reaches 1
    cap: Annotated[float, Field(ge=1, le=HUGE)] = 2.0  # of truncated importance weights, where on_breach=correct


@dataclass(config=STRICT)
class ParallelConfig:
    """How several processes under torchrun share a run; with one process it changes nothing."""

    mode: Literal["replicated", "sharded"] = "replicated"  # every rank the whole model, or its part of it (FSDP2)


@dataclass(config=STRICT)
class RunConfig:
    """One training run."""

    algo: AlgoConfig
    task: Any
    model: ModelConfig
    rollout: RolloutConfig
    optim: OptimConfig
    critic: CriticConfig
    reward: RewardConfig
    evaluate: EvaluateConfig
    checkpoint: CheckpointConfig
    tracking: TrackingConfig
    certificate: CertificateConfig
    parallel: ParallelConfig
    steps: Count = 80
    tokens: Count | None = None  # generated tokens after which the run ends before its last step; null: no such end
    seed: Seed = 0
    study: str = "default"
    device: Device = "auto"
    threads: Threads = 2
    kl_init_every: ZeroOrMore = (
        1  # steps between measurements of KL to the initial policy; 0: never, and no copy is held
    )

    @classmethod
    def of(cls, task: Any, **given: Any) -> Self:
        """A run on this task with the schema's defaults in every group and key that is not given."""
        types = get_type_hints(cls)
        groups = {f.name: types[f.name] for f in fields(cls) if f.default is MISSING and f.name not in {"task", *given}}
        return cls(task=task, **{name: kind() for name, kind in groups.items()}, **given)


def to_dict(config: RunConfig) -> dict[str, Any]:
    """The config as plain dicts, shaped as in conf/: an algorithm's hyperparameters stand beside its other keys."""
    plain = asdict(config)
    plain["algo"] |= plain["algo"].pop("hyperparameters")
    return plain
