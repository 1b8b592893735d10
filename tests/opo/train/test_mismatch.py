"""The gap's formulas against known distributions, and what the certificate writes, stops and corrects.

The planted faults (stale cache, missed synchronisation, temperature, positions) are in test_vllm.py, on a real engine; one stale token in a batch is in test_update.py.
"""

import json
import math
from dataclasses import astuple
from pathlib import Path

import pytest
import torch

from opo.config.schema import CertificateConfig
from opo.errors import UserError
from opo.run.checkpoint import save_checkpoint
from opo.train.mismatch import FILE, Mismatch, MismatchBreach, MismatchCheck, measure_mismatch, truncated_ratios

NO_MISMATCH = Mismatch(0.0, 0.0, 0.0, 0.0, 1.0)


def gap(mean_abs: float = 0.0, max_abs: float = 0.0) -> Mismatch:
    return Mismatch(mean_abs, max_abs, -mean_abs, 0.0, 1.0)


def test_formulas_on_four_tokens() -> None:
    sampler = torch.tensor([[-1.0, -2.0, 9.0], [-0.5, -1.5, 9.0]], dtype=torch.float64)
    difference = torch.tensor([[0.1, -0.3, 5.0], [0.2, 0.4, 5.0]], dtype=torch.float64)
    mask = torch.tensor([[True, True, False], [True, True, False]])
    measured = measure_mismatch(sampler, sampler + difference, mask)
    d = [0.1, -0.3, 0.2, 0.4]
    w = [math.exp(-0.2), math.exp(0.6)]
    assert measured.mean_abs == pytest.approx(0.25, rel=1e-12)
    assert measured.max_abs == pytest.approx(0.4, rel=1e-12)
    assert measured.k1 == pytest.approx(-0.1, rel=1e-12)
    assert measured.k3 == pytest.approx(sum(math.exp(x) - 1 - x for x in d) / 4, rel=1e-12)
    assert measured.ess_fraction == pytest.approx(sum(w) ** 2 / (2 * sum(x * x for x in w)), rel=1e-12)


def test_k1_and_k3_estimate_the_divergence_of_sampler_from_trainer() -> None:
    """Averaged over all tokens with the sampler's probabilities both are KL(sampler || trainer), in that direction."""
    counts = torch.tensor([5, 3, 2])
    sampler, trainer = (counts.double() / 10).log(), torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64).log()
    tokens = torch.repeat_interleave(
        torch.arange(3), counts
    )  # a sample whose frequencies are exactly the probabilities
    measured = measure_mismatch(sampler[tokens][None], trainer[tokens][None], torch.ones(1, 10, dtype=torch.bool))
    divergence = float((sampler.exp() * (sampler - trainer)).sum())
    assert measured.k1 == pytest.approx(divergence, rel=1e-12)
    assert measured.k3 == pytest.approx(divergence, rel=1e-12)


def test_equal_log_probabilities_have_no_gap_and_no_weight_dominates(generator) -> None:
    logprobs, mask = torch.randn(5, 7, generator=generator) * 100, torch.ones(5, 7, dtype=torch.bool)
    assert astuple(measure_mismatch(logprobs, logprobs, mask)) == pytest.approx(astuple(NO_MISMATCH))
    far = logprobs.clone()
    far[2] += 300  # exp(2100) overflows; the effective sample size does not
    assert measure_mismatch(logprobs, far, mask).ess_fraction == pytest.approx(1 / 5)


def test_a_small_gap_survives_float32_inputs_and_large_common_terms() -> None:
    sampler = torch.full((1, 4), -1.0, dtype=torch.float64)
    measured = measure_mismatch(sampler, sampler + 1e-7, torch.ones(1, 4, dtype=torch.bool))
    assert measured.k3 == pytest.approx(0.5e-14, rel=1e-1)


def test_what_cannot_be_compared_is_named() -> None:
    logprobs, mask = torch.zeros(3, 2), torch.ones(3, 2, dtype=torch.bool)
    bad = logprobs.clone()
    bad[1, 1] = torch.nan
    with pytest.raises(ValueError, match="response 1"):
        measure_mismatch(logprobs, bad, mask)
    assert measure_mismatch(logprobs, bad, mask & (bad == 0)) == pytest.approx(
        NO_MISMATCH
    )  # NaN outside the responses is no matter
    with pytest.raises(ValueError, match="at least one response token"):
        measure_mismatch(logprobs, logprobs, ~mask)


def test_truncated_ratios_correct_the_mean_of_any_function() -> None:
    """E_sampler[ratio f] = E_trainer[f] without truncation; with it, no weight exceeds the cap."""
    counts = torch.tensor([5, 3, 2])
    trainer = torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64)
    tokens = torch.repeat_interleave(torch.arange(3), counts)
    function, mask = torch.tensor([1.0, -2.0, 5.0], dtype=torch.float64), torch.ones(1, 10, dtype=torch.bool)
    pair = ((counts.double() / 10).log()[tokens][None], trainer.log()[tokens][None], mask)
    mean = (truncated_ratios(*pair, cap=10.0)[0] * function[tokens]).mean()
    assert float(mean) == pytest.approx(float((trainer * function).sum()), rel=1e-12)
    assert float(truncated_ratios(*pair, cap=2.0).max()) == pytest.approx(2.0, rel=1e-12)
    assert truncated_ratios(pair[0], pair[1], ~mask, cap=2.0).count_nonzero() == 0


@pytest.mark.parametrize(
    ("versions", "measured", "said"),
    [
        ({6}, NO_MISMATCH, r"step 3 is not exactly on-policy: sampled with weights of version 6, allowed only 7$"),
        ({7, 5}, NO_MISMATCH, r"version 5, 7, allowed only 7$"),
        (
            {7},
            gap(2e-4, 2e-4),
            r"mean log-probability difference 2.00e-04 nats, allowed 1.00e-04 \(certificate.logprob_abs_mean_nats\)$",
        ),
        (
            {7},
            gap(0.0, 0.02),
            r"largest log-probability difference 2.00e-02 nats, allowed 1.00e-02 \(certificate.logprob_abs_max_nats\)$",
        ),
        ({6}, gap(2e-3, 0.2), r"version 6.*mean.*largest"),
    ],
)
def test_a_breach_stops_the_run_and_says_by_how_much(
    tmp_path: Path, versions: set[int], measured: Mismatch, said: str
) -> None:
    certificate = MismatchCheck.open(tmp_path, CertificateConfig())
    with pytest.raises(MismatchBreach, match=said):
        certificate.check(3, versions, 7, measured)
    record = json.loads((tmp_path / FILE).read_text())
    assert (record["exactly_on_policy"], record["corrected"], list(record["breaches"])) == (False, False, ["3"])


def test_within_tolerance_the_worst_is_kept(tmp_path: Path) -> None:
    certificate = MismatchCheck.open(tmp_path, CertificateConfig())
    for step, size in enumerate((1e-5, 5e-5, 1e-6), start=1):
        assert not certificate.check(step, {step - 1}, step - 1, Mismatch(size, 2 * size, -size, size**2, 1 - size))
    record = json.loads((tmp_path / FILE).read_text())
    assert record["worst"] == {
        "mean_abs": 5e-5, "max_abs": 1e-4, "k1": -5e-5, "k3": 25e-10, "ess_fraction": 1 - 5e-5, "version_lag": 0
    }  # fmt: skip
    assert (record["exactly_on_policy"], record["steps_checked"], record["last_step"]) == (True, 3, 3)


def test_a_lost_certificate_is_not_begun_anew_where_a_run_goes_on(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "checkpoints", 3, lambda to: None, {}, {})
    with pytest.raises(UserError, match=r"certificate\.json: missing"):
        MismatchCheck.open(tmp_path, CertificateConfig())


def test_a_resumed_run_counts_no_step_twice_and_forgets_no_breach(tmp_path: Path) -> None:
    config = CertificateConfig(on_breach="correct")
    first = MismatchCheck.open(tmp_path, config)
    corrected = [first.check(step, {0}, 0, gap(1.0 if step == 2 else 0.0)) for step in (1, 2, 3)]
    assert corrected == [False, True, False]
    with pytest.raises(MismatchBreach, match="version 0, allowed only 1"):  # stale weights are never corrected
        MismatchCheck(1e-3, 0.1, "correct").check(1, {0}, 1, NO_MISMATCH)
    second = MismatchCheck.open(tmp_path, config)
    for step in (2, 3, 4):
        second.check(step, {0}, 0, NO_MISMATCH)
    record = json.loads((tmp_path / FILE).read_text())
    assert (record["steps_checked"], list(record["breaches"]), record["corrected"]) == (4, ["2"], True)
    assert record["worst"]["mean_abs"] == 1.0
