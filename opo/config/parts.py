"""What parts exist and which options they have: strict dataclasses without torch, so that a wrong one is refused at once."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from opo.keys import STRICT, Count, Decay, Fraction, LearningRate, NonNegative, Positive, Real, Share


@dataclass(config=STRICT)
class Best:
    unbiased_for: ClassVar[str] = "no: the best responses alone"
    name: Literal["best"] = "best"


@dataclass(config=STRICT)
class BestRandom:
    unbiased_for: ClassVar[str] = "no: responses are chosen by their reward"
    name: Literal["best_random"] = "best_random"


@dataclass(config=STRICT)
class BestWorst:
    unbiased_for: ClassVar[str] = "no: responses are chosen by their reward"
    name: Literal["best_worst"] = "best_worst"


@dataclass(config=STRICT)
class Power:
    unbiased_for: ClassVar[str] = "no: responses are chosen by their reward"
    name: Literal["power"] = "power"
    exponent: NonNegative = 2.0


@dataclass(config=STRICT)
class Curvature:
    unbiased_for: ClassVar[str] = "no: tokens of large steps are left out"
    name: Literal["curvature"] = "curvature"
    limit_objective: NonNegative = 0.01  # of the foreseen change of the objective, in units of the advantage
    limit_policy: NonNegative = 1e-4  # of the foreseen change of the policy, nats
    top_k: Count = 50  # likeliest tokens that the last layer is modelled on
    beta1: Decay = 0.9
    beta2: Decay = 0.999
    eps: Positive = 1e-8
    direction: Literal["adam", "sgd"] = "adam"
    renormalise: bool = True  # by each response's share of kept tokens (CAPO); false: Dr. CAPO


@dataclass(config=STRICT)
class PromptCurriculum:
    unbiased_for: ClassVar[str] = "as the algorithm, on the prompts it chooses"
    name: Literal["prompt_curriculum"] = "prompt_curriculum"
    candidates: Count = 4  # times as many prompts are looked at as are asked
    target: Real = 0.5  # mean reward whose prompts are wanted
    value_learning_rate: LearningRate = 0.01


@dataclass(config=STRICT)
class SamplingErrorCorrection:
    unbiased_for: ClassVar[str] = "no: half of the group is not drawn from the policy"
    name: Literal["sampling_error_correction"] = "sampling_error_correction"
    learning_rate: LearningRate = 1e-3
    epochs: Count = 4  # steps of the behaviour policy
    clip: Fraction = 0.3
    kl_limit: NonNegative = 0.01  # nats per token from the policy to the behaviour policy


@dataclass(config=STRICT)
class Hinted:
    unbiased_for: ClassVar[str] = "no: hinted responses are not drawn from the policy"
    name: Literal["hinted"] = "hinted"
    failed: Fraction = 0.001  # mean reward of a group up to which it is asked again
    share: Share = 0.5  # of the reference solution's characters that the hint shows
    template: Annotated[str, Field(pattern=r"(?s).*\{hint\}.*", description="text with {prompt} and {hint}")] = (
        "{prompt}{hint}"
    )


@dataclass(config=STRICT)
class GuidedStart:
    unbiased_for: ClassVar[str] = "as the algorithm, from the starts that the guide gives"
    name: Literal["guided_start"] = "guided_start"
    probability: Fraction = 0.8  # of a prompt's group to begin where the guide was broken off


@dataclass(config=STRICT)
class EntropyBand:
    unbiased_for: ClassVar[str] = "no: an entropy term is added"
    name: Literal["entropy_band"] = "entropy_band"
    coef: NonNegative = 0.001
    low: NonNegative = 0.0  # edges of the band, as multiples of the mean entropy of past batches
    high: NonNegative = 2.0
    alpha: NonNegative = 0.1  # of the penalty outside of it
    decay: NonNegative = 1.0  # of the penalty's weight over the run


@dataclass(config=STRICT)
class LookAhead:
    unbiased_for: ClassVar[str] = "no: an average over steps, at weights ahead of the policy"
    name: Literal["look_ahead"] = "look_ahead"
    eta: Share = 0.3  # weight of the newest gradient
    normalise: bool = True


@dataclass(config=STRICT)
class HessianCorrected:
    unbiased_for: ClassVar[str] = "as the algorithm, averaged over steps"
    name: Literal["hessian_corrected"] = "hessian_corrected"
    eta: Share = 0.3
    normalise: bool = True
    difference: Positive = 1.0  # length of the finite difference, in steps


@dataclass(config=STRICT)
class RunningMoments:
    unbiased_for: ClassVar[str] = "no: rewards are clipped"
    name: Literal["running_moments"] = "running_moments"
    clip: Positive = 0.3  # standard deviations


@dataclass(config=STRICT)
class Verified:
    unbiased_for: ClassVar[str] = "as the algorithm, for the reward so changed"
    name: Literal["verified"] = "verified"
    value: Real = 10.0  # of a full reward
    unfinished: Real = -10.0  # of a response that the token limit cut


OPTIONS: Mapping[str, Mapping[str, type[Any]]] = MappingProxyType(
    {
        "filter": {
            "best": Best,
            "best_random": BestRandom,
            "best_worst": BestWorst,
            "power": Power,
            "curvature": Curvature,
        },
        "sampler": {
            "prompt_curriculum": PromptCurriculum,
            "sampling_error_correction": SamplingErrorCorrection,
            "hinted": Hinted,
            "guided_start": GuidedStart,
        },
        "regulariser": {"entropy_band": EntropyBand},
        "gradient": {"look_ahead": LookAhead, "hessian_corrected": HessianCorrected},
        "shaper": {"running_moments": RunningMoments, "verified": Verified},
    }
)
