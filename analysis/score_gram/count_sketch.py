"""Count sketch: a random projection that keeps inner products, S with E[S^T S] = I, without a matrix.

Every coordinate goes, with a random sign, into one of d bins (Charikar, Chen and Farach-Colton 2002; Weinberger et al. 2009), so

    E <S x, S y> = <x, y>,     Var <S x, S y> <= (|x|^2 |y|^2 + <x, y>^2) / d.
"""

import zlib

import numpy as np
import torch
from torch import Tensor


def count_sketch(vectors_NC: Tensor, dim: int, *key: int | str) -> Tensor:
    """Each row's sketch, (N, dim) float64; the same signs and bins for the same key.

    Stretches of `dim` coordinates go to the bins in order, turned by a random offset: two coordinates meet with a chance of 1 / dim at
    most, which is all that the error needs.
    """
    num_rows, size = vectors_NC.shape
    words = [zlib.crc32(part.encode()) if isinstance(part, str) else part for part in key]
    rng = np.random.Generator(np.random.SFC64(np.random.SeedSequence(words)))
    bits = np.unpackbits(np.frombuffer(rng.bytes(-(-size // 8)), np.uint8), count=size)
    signed_NC = vectors_NC * (1 - 2 * torch.from_numpy(bits).to(vectors_NC.device).to(vectors_NC.dtype))
    stretches = torch.nn.functional.pad(signed_NC, (0, -size % dim)).view(num_rows, -1, dim).unbind(1)
    sketch_ND = torch.zeros(num_rows, dim, dtype=torch.float64, device=vectors_NC.device)
    for stretch_ND, offset in zip(stretches, rng.integers(dim, size=len(stretches)).tolist(), strict=True):
        sketch_ND[:, offset:] += stretch_ND[:, : dim - offset]
        sketch_ND[:, :offset] += stretch_ND[:, dim - offset :]
    return sketch_ND
