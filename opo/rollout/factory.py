"""The sampler that a config names."""

from collections.abc import Iterator
from contextlib import contextmanager

from opo.config.schema import ModelConfig, RolloutConfig
from opo.model.load import model_source
from opo.rollout.base import Sampler
from opo.rollout.hf import HfSampler


@contextmanager
def make_sampler(model: ModelConfig, rollout: RolloutConfig) -> Iterator[Sampler]:
    """The engine of `rollout.engine`, closed on the way out."""
    if rollout.engine == "vllm":
        from opo.rollout.vllm import VllmSampler  # an optional dependency, and seconds of imports

        sampler: Sampler = VllmSampler(
            model_source(model),
            dtype="bfloat16" if model.compute == "bfloat16" else model.dtype,
            max_model_len=rollout.max_model_len,
            max_sequences=rollout.max_sequences,
            kv_cache_gib=rollout.kv_cache_gib,
            gpu_memory_utilization=rollout.gpu_memory_utilization,
            devices=rollout.devices,
        )
    else:
        sampler = HfSampler(rollout.max_sequences, model.compute)
    try:
        yield sampler
    finally:
        sampler.close()
