"""The certificate that a batch is exactly on-policy: who sampled it, and how far sampler and trainer are apart on its tokens.

With d_t = log pi_trainer(y_t) - log pi_sampler(y_t) over the sampled tokens, before anything is truncated:

    mean and max of |d|        nats
    k1 = mean(-d)              KL(sampler || trainer) per token, unbiased, either sign
    k3 = mean(exp(d) - 1 - d)  the same, unbiased, never negative
    ess = (sum_n w_n)^2 / (N sum_n w_n^2) with w_n = exp(sum_t d_nt), one for identical policies
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

import torch
from torch import Tensor

from opo.atomic import write_text
from opo.config import CertificateConfig
from opo.errors import StoppedRun


@dataclass(frozen=True)
class Gap:
    """Between the log-probabilities of the engine that sampled and those of the trainer."""

    mean_abs_nats: float
    max_abs_nats: float
    k1_nats: float
    k3_nats: float
    ess_fraction: float

    def metrics(self) -> dict[str, float]:
        """Named as in `METRICS`."""
        return {
            "mismatch/logprob_abs_mean_nats": self.mean_abs_nats,
            "mismatch/logprob_abs_max_nats": self.max_abs_nats,
            "mismatch/k1_nats": self.k1_nats,
            "mismatch/k3_nats": self.k3_nats,
            "mismatch/ess_fraction": self.ess_fraction,
        }


def measure_gap(sampler_logprobs_NT: Tensor, trainer_logprobs_NT: Tensor, mask_NT: Tensor) -> Gap:
    """The gap over all tokens of the mask, in float64."""
    mask_NT = mask_NT.bool()
    difference_NT = torch.where(mask_NT, trainer_logprobs_NT.double() - sampler_logprobs_NT.double(), 0.0)
    difference = difference_NT[mask_NT]
    log_weights_N = difference_NT.sum(1)
    weights_N = (log_weights_N - log_weights_N.max()).exp()  # the largest is one: the ratio below has no scale
    return Gap(
        float(difference.abs().mean()),
        float(difference.abs().max()),
        float(-difference.mean()),
        float((torch.expm1(difference) - difference).mean()),
        float(weights_N.sum() ** 2 / (len(weights_N) * weights_N.square().sum())),
    )


class Certificate:
    """Checks every batch of a run and keeps `certificate.json` in its folder: what was asked, the worst seen, every breach."""

    def __init__(self, file: Path, config: CertificateConfig) -> None:
        self.file, self.config = file, config
        self.seen = {"steps_checked": 0, "worst_mean_abs_nats": 0.0, "worst_max_abs_nats": 0.0, "corrected": False}
        self.breaches: list[dict[str, object]] = []

    @classmethod
    def open(cls, folder: Path, config: CertificateConfig) -> Self:
        """The folder's certificate, gone on with where there is one."""
        certificate = cls(folder / "certificate.json", config)
        if certificate.file.exists():
            stored = json.loads(certificate.file.read_text())
            certificate.seen = {key: stored[key] for key in certificate.seen}
            certificate.breaches = stored["breaches"]
        return certificate

    def check(self, step: int, sampled_version: int, current_version: int, gap: Gap) -> None:
        """Book a batch; raises StoppedRun at a breach unless it is to be corrected. A stale version is never corrected."""
        complaint = None
        if sampled_version != current_version:
            complaint = f"sampled by version {sampled_version} of the weights, trained at version {current_version}"
        elif not gap.mean_abs_nats <= self.config.logprob_abs_mean_nats:
            complaint = _exceeds("mean", gap.mean_abs_nats, "certificate.logprob_abs_mean_nats", self.config.logprob_abs_mean_nats)
        elif not gap.max_abs_nats <= self.config.logprob_abs_max_nats:
            complaint = _exceeds("largest", gap.max_abs_nats, "certificate.logprob_abs_max_nats", self.config.logprob_abs_max_nats)
        self.seen["steps_checked"] += 1
        self.seen["worst_mean_abs_nats"] = max(self.seen["worst_mean_abs_nats"], gap.mean_abs_nats)
        self.seen["worst_max_abs_nats"] = max(self.seen["worst_max_abs_nats"], gap.max_abs_nats)
        corrects = self.config.on_breach == "correct" and sampled_version == current_version
        if complaint:
            self.breaches.append({"step": step + 1, "complaint": complaint, "corrected": corrects, **asdict(gap)})
        self.write()
        if complaint and not corrects:
            raise StoppedRun(f"{self.file.parent}: step {step + 1} is not on-policy: {complaint}")

    def correction(self, sampler_logprobs_NT: Tensor, trainer_logprobs_NT: Tensor, rows: Tensor) -> Tensor:
        """Truncated importance weights min(cap, exp(d_t)) of these rows' tokens, one elsewhere, (N, T); marks the run."""
        self.seen["corrected"] = True
        factors_NT = torch.ones_like(sampler_logprobs_NT)
        ratios = (trainer_logprobs_NT[rows] - sampler_logprobs_NT[rows]).exp()
        factors_NT[rows] = ratios.clamp(max=self.config.cap)
        return factors_NT

    def write(self) -> None:
        """Put the certificate on disk."""
        exactly = not self.breaches and not self.seen["corrected"]
        stored = {"exactly_on_policy": exactly, "asked": asdict(self.config), **self.seen, "breaches": self.breaches}
        write_text(self.file, json.dumps(stored, indent=2) + "\n")


def _exceeds(which: str, measured: float, key: str, allowed: float) -> str:
    return f"the {which} log-probability gap is {measured:.2e} nats, {key} allows {allowed:.2e}"
