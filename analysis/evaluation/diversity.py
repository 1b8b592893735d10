"""Diversity of a group of responses, and repetition within a response. A token is anything hashable."""

import math
from collections import Counter
from collections.abc import Hashable, Sequence

Tokens = Sequence[Hashable]

SMOOTHING = 0.1  # counted where an order has no match, so that BLEU is not zero


def ngrams(tokens: Tokens, n: int) -> Counter[tuple[Hashable, ...]]:
    """How often each run of n tokens occurs; empty for fewer than n tokens."""
    return Counter(tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1))


def distinct_n(responses: Sequence[Tokens], n: int) -> float | None:
    """Different n-grams over all n-grams of a group (Li et al. 2016, arXiv 1510.03055). None where no response has n tokens."""
    counts = sum((ngrams(response, n) for response in responses), Counter())
    return len(counts) / counts.total() if counts else None


def repetition_n(responses: Sequence[Tokens], n: int) -> float | None:
    """Mean over responses of 1 - different n-grams / n-grams (Welleck et al. 2020, arXiv 1908.04319, seq-rep-n).

    Responses of fewer than n tokens have none and are left out; None where that leaves no response.
    """
    counts = [ngrams(response, n) for response in responses if len(response) >= n]
    return sum(1 - len(c) / c.total() for c in counts) / len(counts) if counts else None


def self_bleu(responses: Sequence[Tokens], max_n: int = 4) -> float | None:
    """Mean BLEU of each response against the others of its group (Zhu et al. 2018, arXiv 1802.01886): one where all are equal.

    BLEU = min(1, exp(1 - r/l)) exp(mean_n log p_n), with p_n the share of the response's n-grams that one other
    response has as often, n up to max_n or the response's length l, r the length among the others nearest to l (the
    shorter of two); no match counts as 0.1 matches (Chen and Cherry 2014, method 1). None for fewer than two responses;
    empty ones are left out.
    """
    responses = [response for response in responses if len(response)]
    if len(responses) < 2:
        return None
    orders = [[ngrams(response, n) for n in range(1, max_n + 1)] for response in responses]
    lengths = [len(response) for response in responses]
    return sum(_bleu(orders, lengths, i) for i in range(len(responses))) / len(responses)


def _bleu(orders: list[list[Counter[tuple[Hashable, ...]]]], lengths: list[int], i: int) -> float:
    length = lengths[i]
    nearest = min((abs(other - length), other) for j, other in enumerate(lengths) if j != i)[1]
    logs = []
    for n, own in enumerate(orders[i]):
        if not own:
            break
        references = [counts[n] for j, counts in enumerate(orders) if j != i]
        matches = sum(min(count, max(r[gram] for r in references)) for gram, count in own.items())
        logs.append(math.log((matches or SMOOTHING) / own.total()))
    return math.exp(min(0.0, 1 - nearest / length) + sum(logs) / len(logs))
