"""Batches for the Gram and its error."""

from typing import Any

import torch
from torch import Tensor


def batch() -> dict[str, Any]:
    """Six responses: padded left, padded right, full, without a token, of one token, with a gap between two turns."""
    rng = torch.Generator().manual_seed(1)
    ids = torch.randint(3, 29, (6, 11), generator=rng)
    attention = torch.ones_like(ids)
    response = torch.ones_like(ids)
    response[:, :4] = 0
    attention[0, :2] = 0
    attention[1, 8:] = 0
    response[1, 8:] = 0
    response[3] = 0
    response[4, 5:] = 0
    response[5, 6:8] = 0
    weights = torch.rand(ids.shape, generator=rng, dtype=torch.float64) - 0.3
    return {"input_ids": ids, "attention_mask": attention, "response_mask": response, "token_weights": weights}


def relative(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())
