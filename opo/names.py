"""Names that a key may have, for rooms that compute and need no schema (`opo.keys` has ranges and the rest)."""

from typing import Literal

Split = Literal["train", "eval"]
Aggregation = Literal["sequence_sum", "sequence_mean", "token_mean"]
Compute = Literal["float32", "bfloat16_backward", "bfloat16"]
HeadKernel = Literal["tiled", "liger"]
KLEstimator = Literal["k1", "k2", "k3"]
