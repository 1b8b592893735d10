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


def batch_of_one_prompt() -> dict[str, Any]:
    """Eight responses to one prompt: two equal ones, one of them again with the padding on the left and one with three times the weight;
    four others, of which one is the beginning of another.
    """
    rng = torch.Generator().manual_seed(1)
    ids = torch.randint(3, 29, (8, 14), generator=rng)
    ids[:, :7] = ids[0, :7].clone()
    ids[1:4] = ids[0].clone()
    ids[5] = ids[4].clone()
    lengths = torch.tensor([4, 4, 4, 4, 7, 2, 3, 1])
    places = torch.arange(14).expand(8, -1)
    attention = (places < 7 + lengths[:, None]).long()
    response = attention * (places >= 7)
    weights = torch.rand(ids.shape, generator=rng, dtype=torch.float64) - 0.3
    weights[1:4] = weights[0] * torch.tensor([1.0, 1.0, 3.0], dtype=torch.float64)[:, None]
    found = {"input_ids": ids, "attention_mask": attention, "response_mask": response, "token_weights": weights}
    for x in found.values():
        x[2] = x[2].roll(3)
    return found
