"""pass@k and maj@k against enumeration of every draw, diversity against closed forms, the table against hand counts."""

import math
from collections import Counter
from fractions import Fraction
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import hypergeom

from analysis.evaluation.diversity import distinct_n, repetition_n, self_bleu
from analysis.evaluation.intervals import rate_interval
from analysis.evaluation.measures import Estimate, by_prompt, differences, evaluate, maj_at_k, pass_at_k


def mean(values):
    values = list(values)
    return sum(values) / len(values)


def enumerated_maj(answers, rewards, k):
    """Every draw of k, every winner of a tie: the slow twin."""
    worth = {a: mean(Fraction(r) for b, r in zip(answers, rewards, strict=True) if a == b) for a in answers}
    total = []
    for draw in combinations(range(len(answers)), k):
        votes = Counter(answers[i] for i in draw if answers[i] is not None)
        top = max(votes.values(), default=0)
        total.append(mean(worth[a] for a, count in votes.items() if count == top) if votes else Fraction(0))
    return float(mean(total))


@pytest.mark.parametrize("k", [1, 2, 3, 7])
@pytest.mark.parametrize("correct", range(8))
def test_pass_at_k_is_the_share_of_draws_with_a_correct_response(correct, k):
    hits = [any(i < correct for i in draw) for draw in combinations(range(7), k)]
    assert pass_at_k(correct, 7, k) == pytest.approx(mean(hits), abs=1e-15)


def test_pass_at_k_is_unbiased_where_the_plug_in_is_not():
    n, k, p = 6, 3, 0.3
    chance = [math.comb(n, c) * p**c * (1 - p) ** (n - c) for c in range(n + 1)]
    truth = 1 - (1 - p) ** k
    assert sum(w * pass_at_k(c, n, k) for c, w in enumerate(chance)) == pytest.approx(truth, abs=1e-14)
    assert sum(w * (1 - (1 - c / n) ** k) for c, w in enumerate(chance)) < truth - 0.03


def test_pass_at_k_of_many_responses_neither_overflows_nor_cancels():
    assert pass_at_k(1, 1000, 500) == pytest.approx(0.5, rel=1e-12)
    assert pass_at_k(0, 1000, 1000) == 0.0


@given(
    st.lists(
        st.tuples(st.sampled_from(["a", "b", "c", "d", None]), st.sampled_from([0.0, 0.25, 1.0])),
        min_size=1,
        max_size=8,
    ),
    st.data(),
)
def test_maj_at_k_equals_enumeration(responses, data):
    answers, rewards = zip(*responses, strict=True)
    k = data.draw(st.integers(1, len(answers)))
    assert maj_at_k(answers, rewards, k) == pytest.approx(enumerated_maj(answers, rewards, k), abs=1e-12)


def test_maj_at_k_edges():
    assert maj_at_k([None, None], [0.0, 0.0], 2) == 0.0
    assert maj_at_k(["a"] * 5, [1.0] * 5, 4) == pytest.approx(1.0)
    assert maj_at_k(["right", "wrong"], [1.0, 0.0], 2) == pytest.approx(0.5)  # a tie
    answers = ["right"] * 60 + ["wrong"] * 40  # an odd draw is a hypergeometric majority
    truth = hypergeom(100, 60, 31).sf(15)
    assert maj_at_k(answers, [1.0] * 60 + [0.0] * 40, 31) == pytest.approx(truth, rel=1e-12)
    with pytest.raises(ValueError, match="k=3 of 2"):
        maj_at_k(["a", "b"], [1.0, 0.0], 3)
    with pytest.raises(ValueError, match="finite reward"):
        maj_at_k(["a", "b"], [1.0, math.nan], 1)


@pytest.mark.parametrize(("correct", "scored", "k"), [(1, 4, 0), (1, 4, 5), (5, 4, 1), (-1, 4, 1), (1, 1001, 1)])
def test_pass_at_k_refuses(correct, scored, k):
    with pytest.raises(ValueError, match=r"allowed|need"):
        pass_at_k(correct, scored, k)


def test_distinct_and_repetition_closed_forms():
    assert distinct_n(["abab", "ab"], 2) == 2 / 4  # ab ba ab ab
    assert distinct_n(["abc", "xyz"], 1) == 1.0
    assert distinct_n(["a", ""], 2) is None
    assert repetition_n(["a" * 10], 5) == pytest.approx(1 - 1 / 6)
    assert repetition_n(["abcdefgh", "a" * 6, "abc"], 5) == pytest.approx((0 + 0.5) / 2)
    assert repetition_n(["abc"], 5) is None


def test_self_bleu_closed_forms():
    assert self_bleu(["abcde"] * 3) == pytest.approx(1.0)
    assert self_bleu(["ab", "ab"]) == pytest.approx(1.0)  # shorter than four: orders one and two alone
    assert self_bleu(["abcd", "wxyz"]) == 0  # no token in common
    # precisions of "abcd" given "axyz": 1/4, 0.1/3, 0.1/2, 0.1/1
    assert self_bleu(["abcd", "axyz"]) == pytest.approx((1 / 4 * 0.1 / 3 * 0.1 / 2 * 0.1) ** 0.25)
    # precisions of "aab" given "ab": 2/3, 1/2, 0.1/1; of "ab" given "aab": 1, 1, shorter than its reference
    first, second = (2 / 3 * 1 / 2 * 0.1) ** (1 / 3), math.exp(1 - 3 / 2)
    assert self_bleu(["aab", "ab"]) == pytest.approx((first + second) / 2)
    assert self_bleu(["abc", ""]) is None


def test_self_bleu_clips_by_one_reference_not_by_all():
    one = self_bleu([["x", "x"], ["x", "y"], ["x", "z"]], max_n=1)
    assert one == pytest.approx((1 / 2 + 1 / 2 + 1 / 2) / 3)


def test_the_table_counts_prompts_and_leaves_unscored_responses_out():
    nan = math.nan
    rewards = [[1, 0, nan, 1], [0, 0, 0, 0], [nan, nan, nan, 1], [nan] * 4]
    answers = [["5", "6", "5", "5"], ["1", None, "1", "2"], ["7"] * 4, [None] * 4]
    tokens = [[[1, 2], [1, 2, 3], [4], [1, 2]]] * 4
    table = evaluate(rewards, answers, tokens, [1, 2, 4], np.random.default_rng(0))
    assert table["mean"].value == pytest.approx((2 / 3 + 0 + 1) / 3)
    assert (table["mean"].num_prompts, table["pass@2"].num_prompts, table["pass@4"].num_prompts) == (3, 2, 1)
    assert table["pass@1"].value == pytest.approx(table["mean"].value)
    assert table["pass@2"].value == pytest.approx((1 + 0) / 2)
    assert table["maj@2"].value == pytest.approx(((1 + 0.5 + 0.5) / 3 + 0) / 2)
    assert table["unscorable"].value == pytest.approx((1 + 0 + 3 + 4) / 16)
    assert table["tokens"].value == table["tokens"].low == table["tokens"].high == 2.0
    assert table["pass@4"] == Estimate(0.0, 0.0, 1.0, 1)
    assert "repetition_5" not in table  # nothing has five tokens
    for estimate in table.values():
        assert estimate.low <= estimate.value <= estimate.high
        assert not math.isnan(estimate.low + estimate.value)
    assert table["pass@1"].high <= 1


def test_same_generator_same_intervals():
    rng = np.random.default_rng(3)
    rewards = rng.integers(0, 2, (12, 8)).astype(float)
    answers = [[str(int(r)) for r in row] for row in rewards]
    tokens = [[list(rng.integers(0, 9, 12)) for _ in range(8)] for _ in range(12)]
    one, two = (evaluate(rewards, answers, tokens, [1, 4], np.random.default_rng(7)) for _ in range(2))
    assert one == two
    assert one["mean"].low < one["mean"].value < one["mean"].high
    assert one["mean"].value == pytest.approx(rewards.mean())


def test_rewards_beyond_one_have_a_mean_and_an_interval_of_their_own_scale():
    rng = np.random.default_rng(0)
    rewards = rng.normal(3.0, 2.0, (30, 4))
    mean = evaluate(rewards, [[None] * 4] * 30, [[[0]] * 4] * 30, [], rng)["mean"]
    assert mean.low < mean.value < mean.high
    assert mean.high > 1
    assert mean.high - mean.low == pytest.approx(2 * 2.045 * rewards.mean(1).std(ddof=1) / 30**0.5, rel=0.1)


def policy(rng, chance_P):
    rewards = (rng.random((len(chance_P), 8)) < chance_P[:, None]).astype(float)
    answers = [["right" if r else "wrong" for r in row] for row in rewards]
    return by_prompt(rewards, answers, [[[0]] * 8] * len(chance_P), [1, 4])


def test_policies_are_compared_prompt_by_prompt_with_one_correction_for_all():
    rng = np.random.default_rng(1)
    chance_P = rng.beta(2, 2, 48)
    policies = {"start": policy(rng, chance_P), "same": policy(rng, chance_P), "better": policy(rng, chance_P**0.5)}
    found = differences(policies)
    assert [(d.policy, d.reference) for d in found] == [("same", "start")] * 5 + [("better", "start")] * 5
    assert [d.measure for d in found[:5]] == ["mean", "pass@1", "pass@4", "maj@1", "maj@4"]
    for d in found:
        own, base = policies[d.policy][d.measure], policies[d.reference][d.measure]
        assert d.value == pytest.approx((own - base).mean())
        assert d.low <= d.value <= d.high
        assert (d.low > 0 or d.high < 0) == (d.p_value < 0.05)
        assert d.p_value <= d.p_holm <= min(1.0, len(found) * d.p_value)
        assert d.num_prompts == 48
    mean = {d.policy: d for d in found if d.measure == "mean"}
    assert mean["better"].low > 0
    assert mean["better"].p_holm < 0.001
    assert mean["same"].low < 0 < mean["same"].high
    apart = evaluate_width(policies["better"]["mean"]) + evaluate_width(policies["start"]["mean"])
    assert mean["better"].high - mean["better"].low < 0.7 * apart  # pairing pays
    assert differences({"start": policies["start"]}) == []


def evaluate_width(values_P):
    low, high = rate_interval(values_P)
    return high - low


def test_prompts_that_one_policy_does_not_define_are_left_out_of_the_pair():
    own, base = {"mean": np.array([1.0, math.nan, 0.5, 0.0])}, {"mean": np.array([0.0, 1.0, 0.5, math.nan])}
    (found,) = differences({"a": base, "b": own})
    assert (found.num_prompts, found.value) == (2, 0.5)
    (same,) = differences({"a": own, "b": own})
    assert (same.value, same.p_value) == (0.0, 1.0)
    assert same.low < 0 < same.high  # three prompts prove no equality
