"""The exact Gram matrix of per-response gradients, parameter by parameter and a few rows at a time."""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from analysis.score_gram.buffers import USUAL, Buffers
from analysis.score_gram.layers import Contribution, Lookup, Outer, as_matrix, row_blocks
from analysis.score_gram.pairs import Tokens, pair_gram, table_cost, tied_gram
from analysis.score_gram.shared_prefix import split_by_span
from opo.model.precision import linear


class GramAccumulator:
    """Sums <gradient_n, gradient_m> over parameters into one float64 matrix for each group of parameters.

    `scales` holds P^{-1/2} of a diagonal metric P by parameter name; `squared_norms[name]` are each parameter's diagonal.
    """

    def __init__(
        self,
        num_responses: int,
        group_of: Callable[[str], str],
        scales: Mapping[str, Tensor],
        buffers: Buffers = USUAL,
    ) -> None:
        self.num_responses, self.group_of, self.scales, self.buffers = num_responses, group_of, scales, buffers
        self.grams: dict[str, Tensor] = {}
        self.squared_norms: dict[str, Tensor] = {}
        self._buffer = torch.empty(0)

    def take(self, name: str, shape: torch.Size, contributions: Sequence[Contribution], dtype: torch.dtype) -> None:
        """Add one parameter, all of whose contributions are given."""
        rows, columns = as_matrix(shape)
        scale = self.scales[name].reshape(rows, columns) if name in self.scales else None
        lookups = [contribution for contribution in contributions if isinstance(contribution, Lookup)]
        outers = [contribution for contribution in contributions if isinstance(contribution, Outer)]
        if len(lookups) == len(contributions):  # rows that were never read are zero
            ids = read_ids(lookups)
            contributions = [
                Lookup(
                    torch.searchsorted(ids, contribution.ids_NT.contiguous()), contribution.grad_NTC, contribution.first
                )
                for contribution in lookups
            ]
            gram = self._gram_by_rows(contributions, len(ids), columns, None if scale is None else scale[ids], dtype)
        elif scale is None and len(outers) == len(contributions):
            gram = self._gram_of_outers(outers, rows, columns, dtype)
        elif scale is None and len(outers) + len(lookups) == len(contributions):
            gram = self._gram_of_table(lookups, outers, rows, columns, dtype)
        else:
            gram = self._gram_by_rows(contributions, rows, columns, scale, dtype)
        group = self.group_of(name)
        self.grams[group] = self.grams[group] + gram if group in self.grams else gram
        self.squared_norms[name] = gram.diagonal()

    def _gram_of_outers(self, contributions: Sequence[Outer], rows: int, columns: int, dtype: torch.dtype) -> Tensor:
        """By pairs of tokens, by the span of a shared prompt, or by rows, whichever takes the fewest multiply-adds."""
        shared = contributions[0].shared if len(contributions) == 1 else 0
        if 0 < shared < 0.7 * columns and (parts := split_by_span(contributions[0])):
            along, across = parts
            gram = self._gram_of_factors([along], rows, along.right_NTC.shape[-1], dtype)
            return gram + self._gram_of_outers([across], rows, columns, dtype)
        tokens = Tokens.of(contributions)
        if tokens.cost(rows, columns) < self._cost_by_rows(contributions, rows, columns):
            return pair_gram(tokens, self.num_responses)
        return self._gram_of_factors(contributions, rows, columns, dtype)

    def _gram_of_factors(self, contributions: Sequence[Outer], rows: int, columns: int, dtype: torch.dtype) -> Tensor:
        """More rows than columns make larger products of each chunk; the Gram of the transposed gradients is the same."""
        if rows < columns:
            return self._gram_by_rows(
                [contribution.transposed() for contribution in contributions], columns, rows, None, dtype
            )
        return self._gram_by_rows(contributions, rows, columns, None, dtype)

    def _gram_of_table(
        self, lookups: Sequence[Lookup], outers: Sequence[Outer], rows: int, columns: int, dtype: torch.dtype
    ) -> Tensor:
        """Of a table that is a matrix besides, such as an embedding tied to the head."""
        tokens, ids = Tokens.of(outers), read_ids(lookups)
        by_tokens = tokens.cost(rows, columns) + table_cost(tokens, ids, self.num_responses, columns)
        if by_tokens < self._cost_by_rows(outers, rows, columns):
            return tied_gram(lookups, outers, ids, tokens, self.num_responses)
        return self._gram_by_rows([*lookups, *outers], rows, columns, None, dtype)

    def _cost_by_rows(self, contributions: Sequence[Outer], rows: int, columns: int) -> float:
        """Multiply-adds of gradients and of their products."""
        places = sum(
            len(contribution.right_NTC) * max(contribution.right_NTC.shape[1], 32) for contribution in contributions
        )
        return rows * columns * (places + 0.6 * self.num_responses**2)

    def _gram_by_rows(
        self, contributions: Sequence[Contribution], rows: int, columns: int, scale: Tensor | None, dtype: torch.dtype
    ) -> Tensor:
        n, device = self.num_responses, contributions[0].device
        step = max(1, min(rows, self.buffers.gradients_on(device.type) // (n * columns)))
        step -= step % 16 if step > 16 else 0
        if self._buffer.numel() < n * step * columns or self._buffer.dtype != dtype or self._buffer.device != device:
            self._buffer = torch.empty(n * step * columns, dtype=dtype, device=device)
        gram = torch.zeros(n, n, dtype=torch.float64, device=device)
        for _, block_ND in row_blocks(contributions, self._buffer, (n, rows, columns), step, scale):
            add_product(gram, block_ND)
        return gram.triu() + gram.triu(1).T


def read_ids(lookups: Sequence[Lookup]) -> Tensor:
    """Rows of the table that were read, sorted."""
    return torch.cat([contribution.ids_NT.flatten() for contribution in lookups]).unique()


def add_product(gram_NN: Tensor, block_ND: Tensor) -> None:
    """gram += block block^T on and above the diagonal, by panels: the product is symmetric, so half of it is enough."""
    n = len(block_ND)
    panel = min(n, max(16, min(n // 4, 256)))
    for high in range(panel, n + panel, panel):
        gram_NN[:high, high - panel : high] += linear(block_ND[:high], block_ND[high - panel : high])
