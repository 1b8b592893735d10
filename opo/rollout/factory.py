"""The sampler that a config names."""

from collections.abc import Iterator
from contextlib import contextmanager

from opo.config.schema import ModelConfig, RolloutConfig
from opo.model.load import model_source
from opo.rollout.base import Sampler
from opo.rollout.hf import HfSampler
from opo.system.world import World


@contextmanager
def make_sampler(model: ModelConfig, rollout: RolloutConfig, world: World | None = None) -> Iterator[Sampler]:
    """The engine of `rollout.engine`, closed on the way out; with vLLM every rank has its own, on its share of `rollout.devices`."""
    if rollout.engine == "vllm":
        from opo.rollout.vllm import VllmSampler  # an optional dependency, and seconds of imports

        sampler: Sampler = VllmSampler(
            model_source(model),
            dtype="bfloat16" if model.compute == "bfloat16" else model.dtype,
            max_model_len=rollout.max_model_len,
            max_sequences=rollout.max_sequences,
            kv_cache_gib=rollout.kv_cache_gib,
            gpu_memory_utilization=rollout.gpu_memory_utilization,
            devices=(world or World()).share(rollout.devices) if rollout.devices else None,
        )
    else:
        sampler = HfSampler(rollout.max_sequences, model.compute)
    try:
        yield sampler
    finally:
        sampler.close()
