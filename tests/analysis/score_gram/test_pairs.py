"""The ways to a Gram matrix that make no gradient, against the gradients themselves."""

from dataclasses import replace

import torch
from scores import relative
from torch import Tensor

from analysis.score_gram.accumulate import GramAccumulator
from analysis.score_gram.layers import Lookup, Outer
from analysis.score_gram.pairs import Tokens, pair_gram, tied_gram
from analysis.score_gram.shared_prefix import split_by_span


def outer(tokens: int, rows: int, columns: int, responses: int = 5, seed: int = 0) -> Outer:
    rng = torch.Generator().manual_seed(seed)
    left, right = (torch.randn(responses, tokens, size, generator=rng, dtype=torch.float64) for size in (rows, columns))
    return Outer(left, right)


def gradients(contribution: Outer) -> Tensor:
    return torch.einsum("ntr,ntc->nrc", contribution.left_NTR, contribution.right_NTC).flatten(1)


def test_the_cheaper_of_two_ways_is_taken_and_both_are_right():
    for tokens, rows, columns in ((2, 300, 200), (40, 6, 5)):
        contribution = outer(tokens, rows, columns)
        expected = gradients(contribution) @ gradients(contribution).T
        accumulator = GramAccumulator(5, lambda name: name, {})
        accumulator.take("w", torch.Size((rows, columns)), [contribution], torch.float64)
        assert relative(accumulator.grams["w"], expected) < 1e-12
        assert relative(pair_gram(Tokens.of([contribution]), 5), expected) < 1e-12


def test_tokens_without_a_gradient_are_left_out():
    contribution = outer(7, 4, 6)
    contribution.left_NTR[1, 2:] = contribution.right_NTC[3, :5] = 0
    contribution.left_NTR[4] = 0
    tokens = Tokens.of([contribution])
    assert len(tokens.response_K) == 5 * 7 - 5 - 5 - 7
    assert relative(pair_gram(tokens, 5), gradients(contribution) @ gradients(contribution).T) < 1e-12


def test_parts_of_one_layer_that_come_one_after_the_other():
    whole = outer(7, 4, 6)
    parts = [Outer(whole.left_NTR[low:high], whole.right_NTC[low:high], low) for low, high in ((0, 2), (2, 5))]
    again = outer(3, 4, 6, seed=1)
    expected = gradients(whole) + gradients(again)
    assert relative(pair_gram(Tokens.of([*parts, again]), 5), expected @ expected.T) < 1e-12


def test_a_table_that_is_read_and_multiplied():
    head = outer(3, 11, 6)
    rng = torch.Generator().manual_seed(2)
    ids = torch.tensor([4, 4, 9, 0])[torch.randint(0, 4, (5, 8), generator=rng)]
    lookup = Lookup(ids, torch.randn(5, 8, 6, generator=rng, dtype=torch.float64))
    table = torch.zeros(5, 11, 6, dtype=torch.float64)
    lookup.write(table, 0, 11, fresh=True)
    expected = table.flatten(1) + gradients(head)
    found = tied_gram([lookup], [head], ids.unique(), Tokens.of([head]), 5)
    assert relative(found, expected @ expected.T) < 1e-12


def test_the_span_of_a_shared_prompt():
    contribution = outer(9, 12, 8)
    contribution.right_NTC[:, :4] = contribution.right_NTC[0, :4].clone()
    contribution.right_NTC[:, 3] = contribution.right_NTC[
        :, 1
    ]  # a token that comes twice: the inputs do not span four directions
    parts = split_by_span(replace(contribution, shared=4))
    assert parts is not None
    grams = [gradients(part) @ gradients(part).T for part in parts]
    assert relative(grams[0] + grams[1], gradients(contribution) @ gradients(contribution).T) < 1e-12
    assert parts[0].right_NTC.shape[-1] == 4
    assert split_by_span(replace(contribution, shared=5)) is None  # the fifth input differs
