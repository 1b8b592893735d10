"""The sampler that a config names."""

from collections.abc import Iterator
from contextlib import contextmanager

from opo.config.schema import RunConfig
from opo.model.load import model_source
from opo.model.policy import Policy
from opo.rollout.base import Sampler
from opo.rollout.hf import HfSampler


@contextmanager
def make_sampler(config: RunConfig, policy: Policy) -> Iterator[Sampler]:
    """The engine of `rollout.engine`, closed on the way out."""
    if config.rollout.engine == "vllm":
        from opo.rollout.vllm import VllmSampler  # an optional dependency, and seconds of imports

        sampler: Sampler = VllmSampler(
            model_source(config.model),
            dtype="bfloat16" if config.model.compute == "bfloat16" else config.model.dtype,
            max_model_len=config.rollout.max_model_len,
            max_sequences=config.rollout.max_sequences,
            kv_cache_gib=config.rollout.kv_cache_gib,
            gpu_memory_utilization=config.rollout.gpu_memory_utilization,
            devices=config.rollout.devices,
        )
    else:
        sampler = HfSampler(config.rollout.max_sequences, config.model.compute)
    try:
        yield sampler
    finally:
        sampler.close()
