"""The ledger against closed forms: verdicts, Holm's correction, replicates needed, and evidence from studies and runs."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from scipy import stats
from studies import bandit_study, write_run

from analysis.claims.evidence import SENSIBLE, Evidence, Material, MeanEvidence, paired_evidence
from analysis.claims.ledger import ALPHA, judge, save
from analysis.claims.records import CLAIMS, RAW, Claim, evidence_of
from analysis.runs.ends import final_values
from analysis.runs.groups import with_groups
from analysis.runs.load import load
from analysis.study.result import Study


def claim(low: float | None, high: float | None, name: str = "c") -> Claim:
    return Claim(name, "A sentence.", "someone", "a number", low, high, "because", lambda _: None)


def seeds(*values: float) -> MeanEvidence:
    return MeanEvidence.of(values, "seeds")


def verdict(evidence: Evidence, low: float | None, high: float | None) -> str:
    return judge({"c": evidence}, [claim(low, high)])[0]["verdict"]


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (None, 0.5, "refuted"),
        (0.5, None, "supported"),
        (None, 2.0, "supported"),
        (2.0, None, "refuted"),
        (0.9, 1.1, "supported"),
        (1.1, 1.3, "refuted"),
        (None, 1.001, "not resolved"),
        (1.0, 1.001, "not resolved"),
    ],
)
def test_verdict_by_region(low: float | None, high: float | None, expected: str) -> None:
    assert verdict(seeds(0.99, 1.0, 1.01, 1.0), low, high) == expected


def test_p_value_is_student_of_the_threshold() -> None:
    values = (0.2, 0.5, 0.35, 0.1, 0.4)
    row = judge({"c": seeds(*values)}, [claim(0.1, None)])[0]
    assert row["p_value"] == pytest.approx(stats.ttest_1samp(values, 0.1)[1], rel=3e-3)
    assert (row["low"], row["high"]) == pytest.approx(stats.t.interval(0.95, 4, np.mean(values), stats.sem(values)))


def test_one_seed_gives_no_verdict_and_no_interval() -> None:
    row = judge({"c": seeds(10.0)}, [claim(0.1, None)])[0]
    assert (row["verdict"], row["low"], row["high"], row["p_value"]) == ("not resolved", None, None, None)
    assert row["would_resolve"] == 3
    assert "needs at least 3" in row["note"]
    assert judge({"c": seeds(10.0, 10.0)}, [claim(0.1, None)])[0]["verdict"] == "not resolved"


def test_holm_over_the_family() -> None:
    """Evidence that holds alone does not hold as the only good one of twelve claims; claims without replicates do not count."""
    good, weak = seeds(1.0, 1.4, 1.2, 1.6), seeds(-1.0, 1.0, 0.5, -0.5)
    alone = judge({"c0": good}, [claim(0.5, None, "c0")])[0]
    assert alone["p_value"] == alone["p_holm"] < ALPHA
    claims = [claim(0.5, None, f"c{i}") for i in range(12)]
    family = judge({f"c{i}": weak if i else good for i in range(12)}, claims)
    assert family[0]["p_value"] == alone["p_value"]
    assert family[0]["p_holm"] == pytest.approx(12 * alone["p_value"])
    assert (alone["verdict"], family[0]["verdict"]) == ("supported", "not resolved")
    single = judge({f"c{i}": seeds(5.0) if i else good for i in range(12)}, claims)
    assert single[0]["verdict"] == "supported"


def test_replicates_needed_make_students_interval_clear_the_threshold() -> None:
    values = (0.0, 0.2, 0.1, 0.16, 0.04)
    row = judge({"c": seeds(*values)}, [claim(0.05, None)])[0]
    n, spread, distance = row["would_resolve"], np.std(values, ddof=1), np.mean(values) - 0.05
    half = [stats.t.ppf(0.975, m - 1) * spread / math.sqrt(m) for m in (n, n - 1)]
    assert half[0] < distance <= half[1]


def test_a_number_of_replicates_beyond_reason_is_said_to_be_so() -> None:
    row = judge({"c": seeds(0.0, 0.2, 0.1, 0.16, 0.04)}, [claim(0.0999, None)])[0]
    assert row["would_resolve"] is None
    assert row["outlook"] == f"not at any sensible size (more than {SENSIBLE['seeds']} seeds)"
    near = judge({"c": seeds(0.0, 0.2, 0.1, 0.16, 0.04)}, [claim(0.05, None)])[0]
    assert near["outlook"] == f"about {near['would_resolve']} seeds"
    wide = Evidence(1.0, lambda _: (0.0, 2.0), "prompts", 24)
    assert judge({"c": wide}, [claim(None, 1.01)])[0]["outlook"] == "not at any sensible size (more than 5,000 prompts)"


def test_exact_evidence_needs_no_replicates_to_narrow() -> None:
    exact = Evidence(1.0, lambda _: (1.0, 1.0), "prompts", 24)
    assert verdict(exact, None, 0.95) == "refuted"
    assert verdict(exact, 0.9, 1.1) == "supported"


def test_log_evidence_is_a_ratio() -> None:
    evidence = paired_evidence({0: 2.0, 1: 2.2, 2: 4.0}, {0: 1.0, 1: 1.1, 2: 2.0, 9: 7.0}, ratio=True, note="")
    assert evidence is not None
    assert evidence.effect == pytest.approx(2.0)
    assert evidence.interval(0.95) == pytest.approx((2.0, 2.0))
    assert paired_evidence({0: 1.0}, {1: 1.0}, ratio=False, note="") is None
    assert paired_evidence({0: 0.0}, {0: 1.0}, ratio=True, note="") is None


@pytest.fixture(scope="module")
def study() -> Study:
    return bandit_study()


def test_what_is_printed_twice_has_one_interval(study: Study) -> None:
    """Every number of the tables and of each policy's ledger, by policy and value: one value, one interval."""
    seen: dict[tuple[str, float], set[tuple[float | None, float | None]]] = {}

    def add(policy: str, value: float | None, low: float | None, high: float | None) -> None:
        if value is not None and value not in (0.0, 1.0):  # what is known exactly says little about which number it is
            ends = tuple(end and float(f"{end:.9g}") for end in (low, high))
            seen.setdefault((policy, float(f"{value:.9g}")), set()).add(ends)  # pyright: ignore[reportArgumentType]

    twice = 0
    for table in (study.moments, study.comparisons, study.audits):
        for row in table.iter_rows(named=True):
            if row.get("measure") != "effective_sample_size":
                add(row["policy"], row["value"], row["low"], row["high"])
    for policy in study.policies:
        for row in judge(evidence_of(Material(study.only(policy["name"])))):
            assert row["policy"] == policy["name"]
            twice += (policy["name"], float(f"{row['effect']:.9g}")) in seen if row["effect"] is not None else 0
            add(row["policy"], row["effect"], row["low"], row["high"])
    assert twice >= 12
    assert {key: ends for key, ends in seen.items() if len(ends) > 1} == {}


def test_a_ledger_is_about_one_policy_and_says_which(study: Study) -> None:
    found = evidence_of(Material(study))
    own = found["variance_below_leave_one_out"]
    assert (own.policy, own.step, own.group_size, own.about) == ("step-000020", 20, 8, "step 20, G = 8")
    row = study.compare("step-000020").filter(estimator="length_weighted").row(0, named=True)
    assert own.effect == pytest.approx(row["value"])
    assert RAW in {row["id"]: row for row in judge(found)}["variance_below_leave_one_out_raw"]["note"]
    assert found["norm_proportional_to_length"].about == "step 20"
    dealt = replace(study, policies=[policy | {"paths": ["a", "b", "b"]} for policy in study.policies])
    about = evidence_of(Material(dealt))["small_bias"].about
    assert about == "step 20, prompts dealt to the weights of 2 runs, G = 8"


def test_equal_rewards_are_one_sentence_and_no_ledger_of_open_ends() -> None:
    study = bandit_study(reward=1.0)
    assert [sentence for sentence in study.notices() if "all responses to a prompt earn the same reward" in sentence]
    found = evidence_of(Material(study))
    assert set(found) == {"norm_proportional_to_length", "length_explains_norm", "tokens_orthogonal"}
    assert bandit_study().notices() == []


def test_fewer_than_eight_prompts_give_points_and_no_interval() -> None:
    study = bandit_study(prompts=7)
    assert "7 prompts give points and no intervals" in study.notices()[0]
    for table in (study.moments, study.comparisons, study.audits):
        unknown = table.filter(pl.col("low").is_not_null() | pl.col("high").is_not_null())
        assert (unknown["low"] == unknown["high"]).all()  # known without data, such as a bias of zero
    assert study.select("relative_variance")["value"].null_count() < 6
    for row in judge(evidence_of(Material(study))):
        assert row["verdict"] == "not resolved"
        assert "needs at least 8" in row["note"]
    assert bandit_study(prompts=8).select("relative_variance")["low"].null_count() == 0


def test_the_group_mean_is_a_multiple_of_leave_one_out(study: Study) -> None:
    """Relative variances are equal, raw traces differ by (1 - 1/G)^2, both known exactly."""
    found = evidence_of(Material(study))
    assert found["rloo_below_mean"].interval(0.999) == pytest.approx((1.0, 1.0))
    relative, raw = (found[f"variance_below_{name}"] for name in ("group_mean", "group_mean_raw"))
    other = found["variance_below_leave_one_out"], found["variance_below_leave_one_out_raw"]
    assert relative.effect == pytest.approx(other[0].effect)
    assert raw.effect == pytest.approx(other[1].effect / (1 - 1 / 8) ** 2)
    verdicts = {row["id"]: row["verdict"] for row in judge(found)}
    assert verdicts["rloo_below_mean"] == "refuted"


def test_runs_evidence_pairs_seeds_at_equal_tokens(tmp_path: Path) -> None:
    for seed in range(3):
        write_run(tmp_path / f"opo-{seed}", "opo", seed, 0.02, steps=30)
        write_run(tmp_path / f"grpo-{seed}", "grpo", seed, 0.005)
        write_run(tmp_path / f"off-{seed}", "grpo", seed, 0.005, updates=4)
    runs = with_groups(load(tmp_path))
    part = dict(runs.select("role", "group").unique().iter_rows())
    assert part == {"opo": "opo", "grpo": "grpo", "off_policy": "grpo (4 updates)"}
    found = evidence_of(Material(runs=runs))
    assert set(found) == {"reward_above_grpo", "on_policy_kl", "on_policy_entropy"}
    # at 2000 tokens (20 steps), the last two steps: the lines differ by 0.015 x 19.5
    assert found["reward_above_grpo"].effect == pytest.approx(0.015 * 19.5, abs=0.02)
    assert found["on_policy_kl"].effect == pytest.approx(0.25, rel=0.05)
    assert found["on_policy_entropy"].effect == pytest.approx(4.0, rel=0.1)
    assert {row["verdict"] for row in judge(found)} == {"supported"}
    ends = final_values(runs.filter(group="opo"), "train/reward_mean", 2000)
    assert set(ends) == {0, 1, 2}
    assert ends[0] == pytest.approx(0.3 + 0.02 * 19.5, abs=0.03)


def test_claims_json_has_every_key_and_nothing_that_is_not_finite(study: Study, tmp_path: Path) -> None:
    rows = judge(
        evidence_of(Material(study))
        | {
            "reward_above_ppo": seeds(0.4),
            "best_baseline_gain": Evidence(math.inf, lambda _: (0.0, math.inf), "prompts", 10),
        }
    )
    content = json.loads(save(rows, tmp_path).read_text(), parse_constant=pytest.fail)
    assert content["family"] == len(rows) - 1
    keys = {
        "id",
        "claim",
        "whose",
        "measure",
        "reason",
        "low_threshold",
        "high_threshold",
        "effect",
        "low",
        "high",
        "unit",
    }
    keys |= {
        "replicates",
        "p_value",
        "p_holm",
        "verdict",
        "would_resolve",
        "note",
        "policy",
        "step",
        "group_size",
        "about",
        "outlook",
    }
    assert all(set(row) == keys for row in content["claims"])


def test_the_table_of_claims() -> None:
    """Every claim has a region, a reason and an id of its own, and the ones the project promises are there."""
    assert len({c.id for c in CLAIMS}) == len(CLAIMS)
    for c in CLAIMS:
        assert c.reason
        assert (c.low_threshold is None) + (c.high_threshold is None) < 2
    promised = {
        f"variance_below_{name}{raw}" for name in ("none", "group_mean", "leave_one_out") for raw in ("", "_raw")
    }
    promised |= {
        "norm_proportional_to_length",
        "on_policy_kl",
        "on_policy_entropy",
        "reward_above_grpo",
        "reward_above_ppo",
    }
    promised |= {"distinct_above_grpo", "self_bleu_below_grpo", "repetition_below_grpo"}
    assert promised <= {c.id for c in CLAIMS}


def test_an_interval_of_a_ratio_over_two_seeds_that_differ_may_have_no_end() -> None:
    evidence = MeanEvidence.of([-3.0, 4.0], "seeds", log=True)
    assert evidence.effect == pytest.approx(math.exp(0.5))
    low, high = evidence.interval(0.9999)
    assert low == pytest.approx(math.exp(0.5 - 3.5 * float(stats.t.ppf(0.99995, 1))))
    assert high == math.inf
