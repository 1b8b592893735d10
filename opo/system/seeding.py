"""Seeds: every random stream is a pure function of the run's seed, a name and indices such as the step.

No state is carried from step to step, so a run resumed at step s draws what an uninterrupted one would have drawn.
"""

import zlib

import numpy as np
import torch


def seed_for(seed: int, stream: str, *indices: int) -> int:
    """A 63-bit seed of the stream `stream` at `indices`; independent streams for different names or indices."""
    entropy = [seed, zlib.crc32(stream.encode()), *indices]
    return int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0] >> 1)


def generator_for(seed: int, stream: str, *indices: int, device: str = "cpu") -> torch.Generator:
    """A torch generator at the start of that stream."""
    return torch.Generator(device).manual_seed(seed_for(seed, stream, *indices))


def rng_for(seed: int, stream: str, *indices: int) -> np.random.Generator:
    """A numpy generator at the start of that stream."""
    return np.random.default_rng(seed_for(seed, stream, *indices))
