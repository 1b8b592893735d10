"""Diversity of a group of responses, and repetition within a response. A token is anything hashable."""

from collections import Counter
from collections.abc import Hashable, Sequence
from functools import partial
from typing import Any

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
    """Mean sentence BLEU of each response against the others of its group (Zhu et al. 2018, arXiv 1802.01886): one where all are equal.

    nltk's, with orders up to max_n (or the response's length, where that is below four) and 0.1 matches counted for an order that has
    none (Chen and Cherry 2014, method 1); 0 for a response that shares no token with the others. None for fewer than two responses;
    empty ones are left out.
    """
    from nltk.translate.bleu_score import SmoothingFunction, sentence_bleu  # a second to import

    given = [list(response) for response in responses if len(response)]
    if len(given) < 2:
        return None
    options: Any = {"weights": (1 / max_n,) * max_n, "smoothing_function": SmoothingFunction(epsilon=SMOOTHING).method1}
    bleu: Any = partial(sentence_bleu, auto_reweigh=True, **options)
    return sum(float(bleu(given[:i] + given[i + 1 :], given[i])) for i in range(len(given))) / len(given)
