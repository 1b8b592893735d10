"""The weights that a separate sampler is given: the policy's, with LoRA adapters merged."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from opo.errors import UserError


@torch.no_grad()
def merged_weights(model: Any, tied: bool = False) -> Iterator[tuple[str, Tensor]]:
    """Names and tensors as in a model without adapters, with W + scaling B A in place of W.

    Tensors that share memory are given once, under the first name, or with `tied` under every name. The model is only
    read: merging in place and undoing it would change its weights by rounding. Raises UserError for adapters that are
    not an additive change of the weights.
    """
    adapted = hasattr(model, "get_base_model")
    model = model.get_base_model() if adapted else model
    deltas: dict[str, Tensor] = {}
    for name, module in model.named_modules() if adapted else ():
        if not hasattr(module, "base_layer"):
            continue
        if not hasattr(module, "get_delta_weight") or any(getattr(module, "use_dora", {}).values()):
            raise UserError(
                f"rollout.engine=vllm: {name} is adapted by {type(module).__name__}; only plain LoRA can be merged"
            )
        for adapter in module.active_adapters:
            delta = module.get_delta_weight(adapter)
            deltas[f"{name}.weight"] = deltas[f"{name}.weight"] + delta if f"{name}.weight" in deltas else delta
    given: set[int] = set()
    for key, tensor in model.state_dict().items():
        if (tensor.data_ptr() in given and not tied) or (adapted and ".lora_" in key):
            continue
        given.add(tensor.data_ptr())
        name = key.replace(".base_layer.", ".")
        yield name, tensor + deltas[name] if name in deltas else tensor
