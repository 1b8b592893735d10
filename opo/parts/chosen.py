"""The parts that a run asks for."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from torch import Tensor

from opo.config.parts import OPTIONS
from opo.config.schema import AlgoConfig
from opo.parts.curvature import CurvatureMask
from opo.parts.filters import Best, BestRandom, BestWorst, Power
from opo.parts.gradients import HessianCorrected, LookAhead
from opo.parts.guides import GuidedStart, Hinted
from opo.parts.regularisers import EntropyBand
from opo.parts.samplers import PromptCurriculum, SamplingErrorCorrection
from opo.parts.shapers import RunningMoments, Verified

RESPONSE_FILTERS = (Best, BestRandom, BestWorst, Power)
PARTS = (
    *RESPONSE_FILTERS,
    CurvatureMask,
    PromptCurriculum,
    SamplingErrorCorrection,
    Hinted,
    GuidedStart,
    EntropyBand,
    LookAhead,
    HessianCorrected,
    RunningMoments,
    Verified,
)
BY_OPTIONS = {part.__mro__[1]: part for part in PARTS}  # options class -> part


class Parts:
    """One part of each kind, or None."""

    def __init__(self, algo: AlgoConfig) -> None:
        made = {kind: _made(getattr(algo, kind)) for kind in OPTIONS}
        self.mask: CurvatureMask | None = made["filter"] if isinstance(made["filter"], CurvatureMask) else None
        self.filter = made["filter"] if isinstance(made["filter"], RESPONSE_FILTERS) else None
        self.sampler: PromptCurriculum | SamplingErrorCorrection | Hinted | GuidedStart | None = made["sampler"]
        self.regulariser: EntropyBand | None = made["regulariser"]
        self.gradient: LookAhead | HessianCorrected | None = made["gradient"]
        self.shaper: RunningMoments | Verified | None = made["shaper"]
        self._memories = {kind: part for kind, part in made.items() if hasattr(part, "state")}

    @property
    def needs(self) -> tuple[str, ...]:
        """Fields of Rollouts that the parts read."""
        return self.regulariser.needs if self.regulariser else ()

    def tensors(self) -> dict[str, Tensor]:
        """What the parts remember, as `parts/<kind>/<name>`."""
        return {f"parts/{kind}/{k}": v for kind, part in self._memories.items() for k, v in part.state().items()}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Put back what `tensors` gave."""
        for kind, part in self._memories.items():
            prefix = f"parts/{kind}/"
            part.load({k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)})


def _made(options: Any) -> Any:
    return None if options is None else BY_OPTIONS[type(options)](**asdict(options))
