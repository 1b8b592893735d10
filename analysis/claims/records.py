"""The claims: what OPO's paper and others say, each with a threshold that was fixed before any data was seen, and what measures it.

One record a claim. To add one, add a record: the ledger, the page and the notebooks follow.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from analysis.claims.evidence import Evidence, Material, Measure, audit, bias, diversity, trained, variance_ratio

FEWER = 0.95  # a twentieth less noise is a twentieth fewer responses: less would not pay for changing an estimator
SAME = 1.05  # and less than a twentieth more is no loss that anyone would notice

RAW = "Raw traces of estimators with different means cannot be compared: the in-sample mean is (1 - 1/G) leave-one-out exactly."
KNOWN = "Known without data: one is a multiple of the other, so their relative variances are equal."


@dataclass(frozen=True)
class Claim:
    """One sentence that data can decide, where its effect must lie, and the function that measures the effect."""

    id: str
    claim: str
    whose: str
    measure: str
    low_threshold: float | None
    high_threshold: float | None
    reason: str  # why the threshold is what it is
    evidence: Measure
    note: str = ""  # what to know before quoting the verdict

    @property
    def borders(self) -> list[float]:
        """The thresholds that there are."""
        return [b for b in (self.low_threshold, self.high_threshold) if b is not None]


def _lower_variance(reference: str, words: str, raw: bool) -> Claim:
    return Claim(
        f"variance_below_{reference}{'_raw' if raw else ''}",
        f"OPO's gradient has lower {'raw' if raw else 'relative'} variance than {words}.",
        "OPO paper",
        f"{'tr Cov(g)' if raw else 'tr Cov(g) / |E g|²'} of length_weighted over that of {reference}",
        None,
        FEWER,
        "the same 5 % as the scale-free measure, so that the two can be compared"
        if raw
        else "5 % less variance saves 5 % of the responses",
        variance_ratio("length_weighted", reference, "trace_cov" if raw else "relative_variance"),
        RAW if raw else "",
    )


CLAIMS: tuple[Claim, ...] = (
    *(
        _lower_variance(name, words, raw)
        for name, words in (
            ("none", "no baseline"),
            ("group_mean", "the group mean"),
            ("leave_one_out", "leave-one-out (RLOO)"),
        )
        for raw in (False, True)
    ),
    Claim(
        "unbiased_opo_variance",
        "With the response left out of its own baseline, length weighting still has lower relative variance than leave-one-out.",
        "this project",
        "tr Cov(g) / |E g|² of length_weighted_loo over that of leave_one_out",
        None,
        FEWER,
        "what remains of the gain when no bias pays for it",
        variance_ratio("length_weighted_loo", "leave_one_out"),
    ),
    Claim(
        "best_baseline_gain",
        "Weighting a baseline by scores has something to gain.",
        "OPO paper",
        "Cov(r, |z|²)² / S over E[(r − mean)²|z|²], the gain of the optimal baseline, were it known",
        0.05,
        None,
        "the same 5 % of variance",
        audit("best_gain", needs_rewards=True),
    ),
    Claim(
        "small_bias",
        "OPO's in-sample baseline biases the gradient by less than a tenth.",
        "OPO paper",
        "|E g − ∇J| / |∇J| of length_weighted",
        None,
        0.1,
        "about what group_mean loses at G = 10 by its factor 1 − 1/G",
        bias("length_weighted"),
    ),
    Claim(
        "rloo_below_mean",
        "Leave-one-out has lower relative variance than the group mean.",
        "RLOO implementations",
        "tr Cov(g) / |E g|² of leave_one_out over that of group_mean",
        None,
        FEWER,
        "5 % less variance saves 5 % of the responses",
        variance_ratio("leave_one_out", "group_mean"),
        KNOWN,
    ),
    Claim(
        "standardization_free",
        "Dividing by the group's standard deviation (GRPO) costs no relative variance.",
        "GRPO paper",
        "tr Cov(g) / |E g|² of group_standardized over that of group_mean",
        None,
        SAME,
        "5 % more would cost 5 % more responses",
        variance_ratio("group_standardized", "group_mean"),
        "Prompts are weighted by 1 / std as well.",
    ),
    Claim(
        "norm_proportional_to_length",
        "The squared score norm is proportional to response length.",
        "OPO paper, (A1) and (A2)",
        "exponent a of |z|² ∝ lengthᵃ within prompts",
        0.9,
        1.1,
        "at ±0.1, responses that differ tenfold in length get weights that are wrong by at most a quarter",
        audit("norm_length_exponent"),
    ),
    Claim(
        "length_explains_norm",
        "Length explains most of what makes squared score norms differ.",
        "OPO paper, (A2)",
        "share of the variance of log |z|² within prompts that log length explains",
        0.5,
        None,
        "most means more than half",
        audit("norm_length_r2"),
    ),
    Claim(
        "tokens_orthogonal",
        "Scores of different tokens of a response are close to orthogonal.",
        "OPO paper, (A1)",
        "|Σ z_t|² / Σ|z_t|²",
        0.9,
        1.1,
        "cross terms of a tenth, the same tolerance as for the exponent",
        audit("token_orthogonality"),
    ),
    Claim(
        "on_policy_kl",
        "Exact on-policy training stays closer to the start than several updates per rollout.",
        "OPO paper",
        "KL to the start, GRPO with 1 update over GRPO with several, at equal tokens",
        None,
        0.9,
        "a tenth less drift; run-to-run differences of a few per cent are usual",
        trained("grpo", "off_policy", "train/kl_init_nats", ratio=True),
    ),
    Claim(
        "on_policy_entropy",
        "Exact on-policy training keeps entropy higher than several updates per rollout.",
        "OPO paper",
        "entropy, GRPO with 1 update over GRPO with several, at equal tokens",
        SAME,
        None,
        "a twentieth more",
        trained("grpo", "off_policy", "train/entropy_mean_nats", ratio=True),
    ),
    Claim(
        "reward_above_grpo",
        "OPO earns more reward than GRPO for the same tokens.",
        "OPO paper",
        "mean reward of OPO minus that of on-policy GRPO, at equal tokens",
        0.02,
        None,
        "two more right answers in a hundred",
        trained("opo", "grpo", "train/reward_mean"),
    ),
    Claim(
        "reward_above_ppo",
        "OPO earns more reward than PPO for the same tokens.",
        "OPO paper",
        "mean reward of OPO minus that of PPO, at equal tokens",
        0.02,
        None,
        "two more right answers in a hundred",
        trained("opo", "ppo", "train/reward_mean"),
    ),
    Claim(
        "distinct_above_grpo",
        "OPO's answers are more diverse than GRPO's: more distinct n-grams.",
        "OPO paper",
        "distinct-2 of OPO over that of GRPO with several updates",
        SAME,
        None,
        "a twentieth more",
        diversity("distinct_2", ratio=True),
    ),
    Claim(
        "self_bleu_below_grpo",
        "OPO's answers are more diverse than GRPO's: they resemble one another less.",
        "OPO paper",
        "self-BLEU of OPO over that of GRPO with several updates",
        None,
        FEWER,
        "a twentieth less",
        diversity("self_bleu", ratio=True),
    ),
    Claim(
        "repetition_below_grpo",
        "OPO's answers repeat themselves less than GRPO's.",
        "OPO paper",
        "repetition of OPO minus that of GRPO with several updates",
        None,
        -0.01,
        "one n-gram in a hundred",
        diversity("repetition_4", ratio=False),
    ),
)


def evidence_of(material: Material, claims: Sequence[Claim] = CLAIMS) -> dict[str, Evidence]:
    """By claim, what the material says; claims that it does not speak to are left out."""
    by_claim = {claim.id: claim.evidence(material) for claim in claims}
    return {name: evidence for name, evidence in by_claim.items() if evidence is not None}
