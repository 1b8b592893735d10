"""The Gram matrix of gradients that are sums over tokens, from inner products of tokens: no gradient is made.

For z_n = sum_t left_t right_t^T over the tokens t of response n,

    <z_n, z_m> = sum_{t in n} sum_{s in m} <left_t, left_s> <right_t, right_s>,

K^2 (R + C) multiply-adds for K tokens and gradients of R x C, where N gradients and their products take K R C + N^2 R C.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from analysis.score_gram.layers import Lookup, Outer, row_blocks

PRODUCTS = 2**22  # of pairs of tokens, held at once
TABLE = 2**24  # numbers of a table's gradients, held at once


@dataclass(frozen=True)
class Tokens:
    """The K tokens of all responses at which a layer has a gradient, in the order of the responses."""

    left_KR: Tensor
    right_KC: Tensor
    response_K: Tensor

    @classmethod
    def of(cls, contributions: Sequence[Outer]) -> Self:
        parts = []
        for contribution in contributions:
            n, t = (contribution.left_NTR.any(-1) & contribution.right_NTC.any(-1)).nonzero(as_tuple=True)
            parts.append((contribution.left_NTR[n, t], contribution.right_NTC[n, t], n + contribution.first))
        left, right, response = (torch.cat(x) if len(parts) > 1 else x[0] for x in zip(*parts, strict=True))
        order = response.argsort(stable=True) if len(parts) > 1 else slice(None)
        return cls(left[order], right[order], response[order])

    def cost(self, rows: int, columns: int) -> float:
        """Multiply-adds; products over fewer than 32 numbers are bound by memory, hence the 32."""
        return 0.6 * len(self.response_K) ** 2 * (rows + columns + 32)


def pair_gram(tokens: Tokens, num_responses: int) -> Tensor:
    """<z_n, z_m>, (N, N) float64."""
    left, right, response = tokens.left_KR, tokens.right_KC, tokens.response_K
    gram = torch.zeros(num_responses, num_responses, dtype=torch.float64, device=left.device)
    count = len(response)
    step = max(1, PRODUCTS // max(count, 1))
    for low in range(0, count, step):
        mine = slice(low, min(low + step, count))
        products = (left[: mine.stop] @ left[mine].T).mul_(right[: mine.stop] @ right[mine].T)
        earlier, own = (
            _by_response(products[rows], response[rows], response[mine], gram) for rows in (slice(low), mine)
        )
        gram += earlier + earlier.T + own
    return gram


def _by_response(products_JK: Tensor, row_J: Tensor, column_K: Tensor, gram_NN: Tensor) -> Tensor:
    """Sums over the tokens of each response, of rows and then of columns."""
    n = len(gram_NN)
    sums_NK = products_JK.new_zeros(n, products_JK.shape[1]).index_add_(0, row_J, products_JK)
    return torch.zeros_like(gram_NN).index_add_(1, column_K, sums_NK.double())


def table_cost(tokens: Tokens, ids_U: Tensor, num_responses: int, columns: int) -> float:
    """Multiply-adds of what `tied_gram` adds to `pair_gram`."""
    per_id = len(tokens.response_K) + 1.6 * num_responses**2
    return len(ids_U) * columns * per_id


def tied_gram(lookups: Sequence[Lookup], outers: Sequence[Outer], ids_U: Tensor, tokens: Tokens, n: int) -> Tensor:
    """The same of a table that was read by its ids, whose gradient there is D, and used as a matrix besides, with gradient H.

    <D_n + H_n, D_m + H_m>: H alone by pairs of tokens, and what D has a part in from the U rows alone that were read.
    """
    gram = pair_gram(tokens, n)
    read = [
        Lookup(torch.searchsorted(ids_U, contribution.ids_NT.contiguous()), contribution.grad_NTC, contribution.first)
        for contribution in lookups
    ]
    used = [
        Outer(contribution.left_NTR[..., ids_U], contribution.right_NTC, contribution.first) for contribution in outers
    ]
    columns = used[0].right_NTC.shape[-1]
    shape, step = (n, len(ids_U), columns), max(1, min(len(ids_U), TABLE // (n * columns)))
    tables, heads = (tokens.right_KC.new_empty(n * step * columns) for _ in range(2))
    blocks = zip(row_blocks(read, tables, shape, step), row_blocks(used, heads, shape, step), strict=True)
    for (_, table_ND), (_, head_ND) in blocks:
        cross_NN = (table_ND @ head_ND.T).double()
        gram += cross_NN + cross_NN.T + (table_ND @ table_ND.T)
    return gram
