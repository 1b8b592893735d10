"""Typed schema of a training config: every key with its default and meaning. `opo/config/load.py` reads and judges it."""

from dataclasses import MISSING, asdict, dataclass, field, fields
from typing import Any, Literal, Self, get_type_hints

from opo.model.logprobs import HeadKernel
from opo.model.precision import Compute


@dataclass
class AlgoConfig:
    """An algorithm and what is universal about how it is run; `knobs` are the keywords of its loss."""

    name: str = "opo"
    updates_per_rollout: int = 1  # optimizer steps for each rollout batch; 1 is exactly on-policy
    minibatches: int = 1  # parts of a rollout batch; updates_per_rollout / minibatches = epochs
    kl_coef: float = 0.0  # 0: no reference model exists
    kl_estimator: Literal["k1", "k2", "k3"] = "k3"
    kl_placement: Literal["loss", "reward"] = "loss"
    entropy_coef: float = 0.0  # bonus on the mean entropy of the sampled tokens' distributions
    knobs: dict[str, Any] = field(default_factory=dict)


@dataclass
class TinyConfig:
    """The built-in policy: its architecture and its supervised warm-up."""

    hidden_size: int = 128
    intermediate_size: int = 512
    layers: int = 4
    heads: int = 4
    seed: int = 0
    init_std: float = 0.06  # of the weights before the warm-up
    warmup_steps: int = 400
    warmup_rows: int = 8  # of 96 tokens of demonstrations, in each step
    warmup_muon_rate: float = 0.02  # of the matrices
    warmup_adamw_rate: float = 3e-3  # of embeddings and norms


@dataclass
class ModelConfig:
    """Which policy is trained, and in what form."""

    name: str = "tiny"
    path: str | None = None  # a folder or hub id; null for tiny and smollm2
    dtype: Literal["float32", "bfloat16", "float64"] = "float32"  # of the weights
    compute: Compute = "float32"  # of the products of linear layers
    head_kernel: HeadKernel = "tiled"  # what makes log-probabilities from hidden states
    lora_rank: int = 0  # 0: all parameters are trained
    lora_alpha: int = 16
    lora_targets: str | list[str] = "all-linear"  # or names of modules
    tiny: TinyConfig = field(default_factory=TinyConfig)


@dataclass
class RolloutConfig:
    """How responses are sampled."""

    engine: Literal["hf", "vllm"] = "hf"
    num_prompts: int = 16
    group_size: int = 8
    max_new_tokens: int = 48
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    max_sequences: int = 256  # hf: responses sampled at once
    kv_cache_gib: float = 1.0  # vllm on the CPU
    gpu_memory_utilization: float = 0.4  # vllm on a GPU
    max_model_len: int | None = None  # vllm: tokens of prompt and response
    devices: list[int] | None = None  # vllm: CUDA devices of the engine's own; none: where the trainer is


@dataclass
class OptimConfig:
    """AdamW and how its gradient is made."""

    learning_rate: float = 3e-4
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    warmup_steps: int = 0  # updates
    weight_decay: float = 0.0
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-8
    max_grad_norm: float = 1.0  # 0: no clipping
    tokens_per_microbatch: int = 4096  # padded tokens in one forward and backward pass
    shared_prefix: bool = True  # encode each prompt once for its group


@dataclass
class CriticConfig:
    """The value network of algorithms that need one."""

    learning_rate: float = 1e-3


@dataclass
class RewardConfig:
    """Where rewards are computed: in processes that can be killed."""

    timeout_s: float = 10.0
    workers: int = 1


@dataclass
class EvaluateConfig:
    """Reward on held-out prompts during training."""

    every: int = 0  # steps; 0: never
    num_prompts: int = 64
    group_size: int = 4


@dataclass
class CheckpointConfig:
    """What a killed run goes on from."""

    every: int = 25  # steps; 0: at the end alone
    keep: int = 2


@dataclass
class TrackingConfig:
    """W&B beside metrics.jsonl, which is always written."""

    mode: Literal["offline", "online", "off"] = "offline"
    project: str = "opo"
    entity: str | None = None
    completions_every: int = 10  # steps between tables of completions; 0: none
    completions: int = 32  # responses in each
    samples_every: int = 0  # steps between looks at three responses on the terminal; 0: none


@dataclass
class CertificateConfig:
    """What `exactly on-policy` means in numbers, and what happens where it does not hold."""

    on_breach: Literal["stop", "correct"] = "stop"
    logprob_abs_mean_nats: float = 1e-4  # float32 stays near 1e-6, bfloat16 reaches 3e-2
    logprob_abs_max_nats: float = 1e-2  # float32 stays near 1e-5, bfloat16 reaches 1
    cap: float = 2.0  # of truncated importance weights, where on_breach=correct


@dataclass
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
    steps: int = 80
    seed: int = 0
    study: str = "default"
    device: str = "auto"
    threads: int = 2
    kl_init_every: int = 1  # steps between measurements of KL to the initial policy; 0: never, and no copy is held

    @classmethod
    def of(cls, task: Any, **given: Any) -> Self:
        """A run on this task with the schema's defaults in every group and key that is not given."""
        types = get_type_hints(cls)
        groups = {f.name: types[f.name] for f in fields(cls) if f.default is MISSING and f.name not in {"task", *given}}
        return cls(task=task, **{name: kind() for name, kind in groups.items()}, **given)


def to_dict(config: RunConfig) -> dict[str, Any]:
    """The config as plain dicts, shaped as in conf/: an algorithm's knobs stand beside its other keys."""
    plain = asdict(config)
    plain["algo"] |= plain["algo"].pop("knobs")
    return plain
