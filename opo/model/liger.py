"""Log-probabilities and entropies by Liger (https://github.com/linkedin/Liger-Kernel): one fused kernel on a Hopper GPU.

The only file that imports liger_kernel. On other GPUs Liger computes the same function in plain torch, 512 positions at
a time, and is no faster than `opo.model.logprobs`. It supports neither float32 nor a bias, a logit cap or the logit
energy, sums the head's gradient in bfloat16, and rounds entropies to bfloat16 (by up to 0.4 %).
"""

import importlib
import importlib.util

import torch
from torch import Tensor

from opo.errors import UserError
from opo.model.logprobs import Head, TokenStats


def check_liger(head: Head) -> None:
    """Raises UserError where Liger or the package of its kernel is not installed, and where it does not support this head."""
    if importlib.util.find_spec("liger_kernel") is None:
        raise UserError("model.head_kernel=liger: liger-kernel is not installed (extra liger); allowed is tiled")
    device = head.weight_VD.device
    if device.type == "cuda" and torch.cuda.get_device_capability(device) == (9, 0):
        try:
            importlib.import_module("liger_kernel.ops.cutedsl.ops")
        except ImportError as error:
            reason = " ".join(str(error).split())
            raise UserError(
                f"model.head_kernel=liger: its kernel needs extra liger ({reason}); allowed is tiled"
            ) from None
    if head.bias_V is not None or head.softcap is not None:
        raise UserError("model.head_kernel=liger: the model's head has a bias or a cap; allowed is tiled")


def liger_logprobs(hidden_MD: Tensor, head: Head, targets_M: Tensor, temperature: float = 1.0) -> TokenStats:
    """What `opo.model.logprobs.token_logprobs` gives with entropies, from products in bfloat16; differentiable in hidden states and weight."""
    from liger_kernel.ops.fused_linear_scaled_cross_entropy import LigerFusedLinearScaledCrossEntropyFunction as Fused

    hidden_MD, weight_VD = hidden_MD.to(torch.bfloat16), head.weight_VD.to(torch.bfloat16)
    surprisals_M, entropies_M = Fused.apply(
        hidden_MD, weight_VD, targets_M, temperature / head.scale, return_entropy=True
    )
    return TokenStats(-surprisals_M.float(), entropies_M.float(), None)
