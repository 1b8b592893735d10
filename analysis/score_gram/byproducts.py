"""What the pass that gives the Gram matrix gives besides: a weighted sum of the scores, and the hidden states of each response."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from analysis.score_gram.head import HeadScores
from analysis.score_gram.layers import Contribution, as_matrix


@dataclass
class Byproducts:
    """Asked of `score_gram`; a metric changes neither.

    `receive` gets, by the names of parameters, parts that add up to sum_n c_n z_n, each of its parameter's shape. `hidden_N` is
    filled: for each response the last hidden states that predict its terms, (terms, D).
    """

    coefficients_N: Tensor
    receive: Callable[[str, Tensor], None]
    hidden_N: list[Tensor] = field(default_factory=list)


class ByproductCollector:
    """Makes the byproducts of N responses from passes over parts of their M distinct rows, in which a row may come several times."""

    def __init__(self, byproducts: Byproducts, num_rows: int, of_N: Tensor, factor_N: Tensor) -> None:
        self.byproducts, self.of_N = byproducts, of_N
        coefficients_N = byproducts.coefficients_N.to(factor_N) * factor_N
        self.coefficients_M = coefficients_N.new_zeros(num_rows).index_add_(0, of_N, coefficients_N)
        self.hidden_M: dict[int, Tensor] = {}

    def beside(self, accumulator: Any, rows: list[int]) -> "WithSum":
        """The accumulator for a pass over these rows; what an earlier pass has summed is not summed again."""
        fresh = torch.tensor([row not in self.hidden_M for row in rows], device=self.of_N.device)
        return WithSum(accumulator, self.coefficients_M[rows] * fresh, self.byproducts.receive)

    def keep_hidden(self, head: HeadScores, rows: list[int]) -> None:
        """After the pass over these rows."""
        counts = (head.terms.weight_NS != 0).sum(1).tolist()
        for row, count, hidden_SD in zip(rows, counts, head.hidden_NSD, strict=True):
            self.hidden_M.setdefault(row, hidden_SD[:count])

    def finish(self) -> None:
        self.byproducts.hidden_N = [self.hidden_M[row] for row in self.of_N.tolist()]


class WithSum:
    """Passes each parameter's contributions to another accumulator, and sum_n c_n of them to `receive`."""

    def __init__(self, accumulator: Any, coefficients_N: Tensor, receive: Callable[[str, Tensor], None]) -> None:
        self.accumulator, self.coefficients_N, self.receive = accumulator, coefficients_N, receive

    def take(self, name: str, shape: torch.Size, contributions: Sequence[Contribution], dtype: torch.dtype) -> None:
        self.accumulator.take(name, shape, contributions, dtype)
        total_RC = torch.zeros(as_matrix(shape), dtype=dtype, device=contributions[0].device)
        coefficients_N = self.coefficients_N.to(total_RC)
        for contribution in contributions:
            contribution.add_sum(total_RC, coefficients_N)
        self.receive(name, total_RC.view(shape))
