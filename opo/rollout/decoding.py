"""Faster decoding with transformers on a CPU, in float32.

A decoding step multiplies a few rows by every weight. Packing the weights for this shape beforehand makes the products
about 1.5 times as fast, at the price of a second copy of the weights while sampling. Grouped-query attention is
computed without repeating keys and values for each query head.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from opo.model.precision import ONEDNN, linear, packed_weight

SMALLEST = 2**17  # entries of a weight that is worth packing
SHARED_KEYS = "sdpa_shared_keys"


@contextmanager
def packed_weights(model: nn.Module, rows: int) -> Iterator[None]:
    """Linear layers use copies of their weights that are packed for products with `rows` rows; undone on leaving."""
    layers: list[Any] = [module for module in model.modules() if ONEDNN and _can_be_packed(module)]
    try:
        for layer in layers:
            layer.forward = partial(linear, weight=packed_weight(layer.weight, rows), bias=layer.bias)
        yield
    finally:
        for layer in layers:
            layer.__dict__.pop("forward", None)


def _can_be_packed(module: Any) -> bool:
    plain = getattr(type(module), "forward", None) is nn.Linear.forward and "forward" not in vars(module)
    return (
        plain
        and (module.weight.device.type, module.weight.dtype) == ("cpu", torch.float32)
        and module.weight.numel() >= SMALLEST
    )


@contextmanager
def shared_keys(model: Any) -> Iterator[None]:
    """Use `attention` below in models with grouped-query attention (fewer key heads than query heads) that use torch's own kernel."""
    model = model.get_base_model() if hasattr(model, "get_base_model") else model
    config, before = model.config.get_text_config(), model.config._attn_implementation
    heads = getattr(config, "num_attention_heads", None)
    if before != "sdpa" or getattr(config, "num_key_value_heads", heads) == heads:
        yield
        return
    model.set_attn_implementation(SHARED_KEYS)
    try:
        yield
    finally:
        model.set_attn_implementation(before)


def attention(
    module: nn.Module,
    query_BHTD: Tensor,
    key_BKLD: Tensor,
    value_BKLD: Tensor,
    attention_mask: Tensor | None,
    **others: Any,
) -> tuple[Tensor, None]:
    """Scaled dot-product attention in which, for one new token, the H / K queries that share a key head are rows of one product.

    The mask (B, 1, 1, L) says which keys a sequence has, for every head. In all other cases it is transformers' own
    function. Returns (B, T, H, D) and no weights.
    """
    batch, heads, length, width = query_BHTD.shape
    keys = key_BKLD.shape[1]
    plain = heads == keys or length > 1 or others.get("position_bias") is not None
    if plain or attention_mask is None or attention_mask.shape[1] > 1 or attention_mask.shape[2] > 1:
        return sdpa_attention_forward(module, query_BHTD, key_BKLD, value_BKLD, attention_mask, **others)
    query_BKRD = query_BHTD.view(batch, keys, heads // keys, width)
    mask = attention_mask.expand(-1, -1, heads // keys, -1)
    out = F.scaled_dot_product_attention(query_BKRD, key_BKLD, value_BKLD, attn_mask=mask, scale=others.get("scaling"))
    return out.reshape(batch, 1, heads, value_BKLD.shape[-1]), None


ALL_ATTENTION_FUNCTIONS.register(SHARED_KEYS, attention)
ALL_MASK_ATTENTION_FUNCTIONS.register(SHARED_KEYS, sdpa_mask)
