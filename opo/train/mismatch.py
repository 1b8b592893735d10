"""The rollout-trainer mismatch check: was a batch sampled by exactly the weights that are updated with it.

Sampler and trainer are two programs that should compute the same log pi. A prefix cache that outlived an update, a weight
synchronisation that was missed, a temperature applied on one side only or a position off by one all show up as a difference of
their log-probabilities of the sampled tokens. It is measured at every step, in float64 and before anything is clipped or truncated.
"""

import json
import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, Self

import torch
from torch import Tensor

from opo.config.schema import CertificateConfig
from opo.errors import StoppedRun, UserError
from opo.run.checkpoint import checkpoints
from opo.run.folder import CERTIFICATE
from opo.system.atomic import write_text
from opo.system.records import read_json

FILE = CERTIFICATE


class MismatchBreach(StoppedRun):
    """A batch that is not exactly on-policy, in a run that must be."""


@dataclass(frozen=True)
class Mismatch:
    """Difference between trainer and sampler, with d = log pi_trainer - log pi_sampler of one sampled token, r = exp d."""

    mean_abs: float  # nats: mean over tokens of |d|
    max_abs: float  # nats: largest |d|; every importance ratio r lies within exp(-max) and exp(max)
    k1: float  # nats per token: mean of -d, unbiased for KL(sampler || trainer), of either sign
    k3: float  # nats per token: mean of r - 1 - d, unbiased for the same KL, never negative (Schulman 2020, "Approximating KL")
    ess_fraction: float  # (sum w)^2 / (N sum w^2) of the responses' weights w = exp(sum of d), between 1/N and 1

    def metrics(self) -> dict[str, float]:
        """Under the names of `opo.run.metrics.METRICS`."""
        return {
            "mismatch/logprob_abs_mean_nats": self.mean_abs,
            "mismatch/logprob_abs_max_nats": self.max_abs,
            "mismatch/k1_nats": self.k1,
            "mismatch/k3_nats": self.k3,
            "mismatch/ess_fraction": self.ess_fraction,
        }


def measure_mismatch(sampler_logprobs_NT: Tensor, trainer_logprobs_NT: Tensor, mask_NT: Tensor) -> Mismatch:
    """The mismatch over the true entries of the mask, in float64.

    Raises ValueError where the mask is empty, or a log-probability in it is not finite (naming the response).
    """
    difference_NT = _difference(sampler_logprobs_NT, trainer_logprobs_NT, mask_NT)
    difference_M = difference_NT[mask_NT]
    if not len(difference_M):
        raise ValueError("the mismatch of sampler and trainer needs at least one response token; the mask has none")
    weights_N = torch.softmax(
        difference_NT.sum(1), 0
    )  # normalised: a common factor does not change the effective sample size
    return Mismatch(
        mean_abs=float(difference_M.abs().mean()),
        max_abs=float(difference_M.abs().max()),
        k1=float(-difference_M.mean()),
        k3=float((torch.expm1(difference_M) - difference_M).mean()),
        ess_fraction=float(1 / (len(weights_N) * weights_N.square().sum())),
    )


def truncated_ratios(sampler_logprobs_NT: Tensor, trainer_logprobs_NT: Tensor, mask_NT: Tensor, cap: float) -> Tensor:
    """Truncated importance weights min(cap, pi_trainer / pi_sampler) of each token, (N, T) float64, zero outside the mask.

    Multiplied onto -dLoss/dlogprobs they correct, token by token and up to the truncation, for having sampled from the sampler
    (Ionides 2008; for language models "truncated importance sampling", Yao et al. 2025). The prefix stays uncorrected.
    """
    difference_NT = _difference(sampler_logprobs_NT, trainer_logprobs_NT, mask_NT)
    return difference_NT.clamp(max=math.log(cap)).exp() * mask_NT


def _difference(sampler_logprobs_NT: Tensor, trainer_logprobs_NT: Tensor, mask_NT: Tensor) -> Tensor:
    """d, zero outside the mask."""
    difference_NT = (trainer_logprobs_NT.detach().double() - sampler_logprobs_NT.double()).masked_fill(~mask_NT, 0.0)
    bad_N = ~difference_NT.isfinite().all(1)
    if bad_N.any():
        raise ValueError(
            f"response {int(bad_N.nonzero()[0])}: a log-probability of the sampler or the trainer is not finite"
        )
    return difference_NT


@dataclass
class MismatchCheck:
    """The results of the check so far, kept in the run folder as `certificate.json` and continued by a resumed run.

    Three things are asserted of the first update on a batch: the version of the weights that sampled each token, the mean difference, and
    the largest difference, which bounds every importance ratio between exp(-max) and exp(max). The ratios a loss is given at that update
    are one by construction.

    A step that is done again after a resume replaces nothing: the worst of each number is kept, and no step is counted twice.
    """

    mean_allowed_nats: float
    max_allowed_nats: float
    on_breach: Literal["stop", "correct"] = "stop"
    cap: float = 2.0
    updates_per_rollout: int = 1
    behaviour: bool = False  # a sampler draws from other weights on purpose
    path: Path | None = None  # of the file; None: nothing is written
    steps_checked: int = 0
    last_step: int = 0  # counted from 1
    worst: dict[str, float] = field(default_factory=dict)  # by name of a Mismatch's field, `version_lag` beside them
    breaches: dict[str, str] = field(default_factory=dict)  # step -> what was wrong with it

    @classmethod
    def open(
        cls, folder: Path, config: CertificateConfig, updates_per_rollout: int = 1, behaviour: bool = False
    ) -> Self:
        """With the tolerances of the run's config, and what an interrupted run in this folder has checked already."""
        certificate = cls(
            config.logprob_abs_mean_nats,
            config.logprob_abs_max_nats,
            config.on_breach,
            config.cap,
            updates_per_rollout,
            behaviour,
            folder / FILE,
        )
        if (folder / FILE).exists():
            record = read_json(folder / FILE)
            try:
                certificate.steps_checked, certificate.last_step = record["steps_checked"], record["last_step"]
                certificate.worst, certificate.breaches = record["worst"], record["breaches"]
            except KeyError as error:
                raise UserError(
                    f"{folder / FILE}: damaged, it holds no {error.args[0]}; restore it from a copy"
                ) from None
        elif checkpoints(folder / "checkpoints"):
            raise UserError(
                f"{folder / FILE}: missing, and nothing else says whether the steps so far were on-policy; restore it from a copy, or "
                f"move {folder} away to start again"
            )
        return certificate

    def complaints(self, versions: set[int], current_version: int, mismatch: Mismatch) -> list[str]:
        """Why this batch is not exactly on-policy, measured against allowed; empty where it is."""
        reasons = []
        if versions != {current_version}:
            sampled = ", ".join(str(v) for v in sorted(versions))
            reasons.append(f"sampled with weights of version {sampled}, allowed only {current_version}")
        for what, measured, allowed, key in (
            ("mean", mismatch.mean_abs, self.mean_allowed_nats, "logprob_abs_mean_nats"),
            ("largest", mismatch.max_abs, self.max_allowed_nats, "logprob_abs_max_nats"),
        ):
            if measured > allowed:
                reasons.append(
                    f"{what} log-probability difference {measured:.2e} nats, allowed {allowed:.2e} (certificate.{key})"
                )
        return reasons

    def check(self, step: int, versions: set[int], current_version: int, mismatch: Mismatch) -> bool:
        """Check the first update on a batch and record the result; true where its weights have to be corrected.

        `versions` are those of the weights that sampled any token of the batch, `current_version` that of the weights about to be
        updated. A breach raises MismatchBreach. With `on_breach="correct"` a difference does not: multiply the batch's token weights
        by `truncated_ratios`, and certificate.json says so. A token of other weights always raises.
        """
        reasons = self.complaints(versions, current_version, mismatch)
        for name, value in (asdict(mismatch) | {"version_lag": current_version - min(versions)}).items():
            self.worst[name] = _worse(name, self.worst.get(name, value), value)
        if step > self.last_step:
            self.steps_checked, self.last_step = self.steps_checked + 1, step
        if reasons:
            self.breaches[str(step)] = "; ".join(reasons)
        if self.path is not None:
            write_text(self.path, json.dumps(self.record(), indent=1) + "\n")
        if reasons and (self.on_breach == "stop" or versions != {current_version}):
            raise MismatchBreach(f"step {step} is not exactly on-policy: {self.breaches[str(step)]}")
        return bool(reasons)

    def record(self) -> dict[str, Any]:
        """The verdict as data. Two facts make a run exactly on-policy: every batch checked was sampled by the weights that the first
        update moved (`sampled_on_policy`), and that update was the only one (`updates_per_rollout`). `corrected`: some batches were
        not, and were reweighted.
        """
        return {
            "exactly_on_policy": not self.breaches and self.updates_per_rollout == 1 and not self.behaviour,
            "sampled_on_policy": not self.breaches and not self.behaviour,
            "updates_per_rollout": self.updates_per_rollout,
            "corrected": bool(self.breaches) and self.on_breach == "correct",
            "steps_checked": self.steps_checked,
            "last_step": self.last_step,
            "breaches": self.breaches,
            "allowed": {"mean_abs": self.mean_allowed_nats, "max_abs": self.max_allowed_nats, "version_lag": 0},
            "on_breach": self.on_breach,
            "cap": self.cap,
            "worst": self.worst,
        }


def _worse(name: str, old: float, new: float) -> float:
    if name == "ess_fraction":
        return min(old, new)
    return max(old, new, key=abs)
