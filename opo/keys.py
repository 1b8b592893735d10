"""What a key of a config may be: strict dataclasses, and numbers and names whose range is part of their type.

    @dataclass(config=STRICT)
    class OptimConfig:
        learning_rate: LearningRate = 3e-4

pydantic refuses what does not fit; `opo.config.read` makes one line of it. Neither torch nor transformers is needed here.
"""

from typing import Annotated

from pydantic import ConfigDict, Field

from opo.names import Aggregation, Compute, HeadKernel, KLEstimator, Split

__all__ = ["Aggregation", "Compute", "HeadKernel", "KLEstimator", "Split"]  # from opo.names, for schemas

STRICT = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)  # nothing is rounded or parsed from text

LARGEST = 2**31 - 1  # of counts: what torch, Arrow and vLLM can hold
HUGE = 1e6  # of real numbers: far beyond any sensible value, far below what overflows

Count = Annotated[int, Field(ge=1, le=LARGEST)]
AtLeastTwo = Annotated[int, Field(ge=2, le=LARGEST)]
ZeroOrMore = Annotated[int, Field(ge=0, le=LARGEST)]
Seed = Annotated[int, Field(ge=0, le=2**63 - 1)]
Threads = Annotated[int, Field(ge=1, le=4096)]

Real = Annotated[float, Field(ge=-HUGE, le=HUGE)]
NonNegative = Annotated[float, Field(ge=0, le=HUGE)]
Positive = Annotated[float, Field(gt=0, le=HUGE)]
Share = Annotated[float, Field(gt=0, le=1)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Decay = Annotated[float, Field(ge=0, lt=1)]
LearningRate = Annotated[float, Field(ge=0, le=1)]
Temperature = Annotated[float, Field(gt=0, le=100)]

Device = Annotated[str, Field(pattern=r"^(auto|cpu|cuda(:\d{1,3})?)$", description="auto, cpu, cuda or cuda:N")]
