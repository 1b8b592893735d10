"""How far rounding alone may take two computations of the same thing apart: the source of every bound in checks of a model.

A value passes through about 12 rounded operations in each of D layers on the way to a log-probability, and as many again on the way
back to a gradient. Roundings are off by up to u = eps / 2 each, independently as far as is known, so that n of them add up to u sqrt(n / 3)
(one standard deviation; Higham and Mary 2019). An inner product of K terms is K roundings where its sum is kept in the precision of its
factors, float32; bfloat16 products are summed in float32 and rounded once. A float64 model rounds to float32 inside its layers
(RMSNorm, rotary angles, ALiBi of transformers), once an operation. Five standard deviations are allowed, since the largest of many is looked at:

    gradient   5 u sqrt(24 D K / 3), relative to its norm
    log pi     5 u sqrt(12 D K / 3) max |log pi|, in nats; a mean of absolute differences a third of that
"""

import math
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor

OPERATIONS = 12  # of a layer, one way: two norms, four products, rotary angles, softmax, activation, gate, two sums
UNIT = {"float64": 2.0**-24, "float32": 2.0**-24, "bfloat16": 2.0**-8, "float16": 2.0**-11}
CANCELLATION = 100  # what is left of a parameter's sum over tokens, over what was summed: a hundredth


@dataclass(frozen=True)
class Rounding:
    """Of one model; `layers` D and `terms` K, the longest inner product of its layers."""

    layers: int
    terms: int

    @classmethod
    def of(cls, model: Any) -> Self:
        config: Any = getattr(model, "config", None)
        config = config.get_text_config() if hasattr(config, "get_text_config") else config
        longest = max((p.shape[-1] for p in model.parameters() if p.dim() == 2), default=1)
        return cls(int(getattr(config, "num_hidden_layers", 1)), longest)

    def gradient(self, dtype: str) -> float:
        """Relative to its norm."""
        return math.sqrt(2) * self._forward(dtype)

    def nats(self, dtype: str, logprobs: Tensor) -> float:
        """Of a log-probability, given all of them."""
        return self._forward(dtype) * max(1.0, float(logprobs.abs().max()))

    def norm(self, dtype: torch.dtype) -> float:
        """Of the norm of one parameter's score, relative; half at most, since a contribution that was missed is off by more."""
        name = str(dtype).removeprefix("torch.")
        return min(0.5, (1 if name == "float64" else CANCELLATION) * self.gradient(name))

    def _forward(self, dtype: str) -> float:
        terms = self.terms if dtype == "float32" else 1
        return 5 * UNIT[dtype] * math.sqrt(OPERATIONS * self.layers * terms / 3)
