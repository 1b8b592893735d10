"""The exact Gram matrix of per-response gradients, parameter by parameter and a few rows at a time."""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from analysis.score_gram.layers import Lookup, Outer, Use, as_matrix, row_blocks
from opo.model.precision import linear


class GramSink:
    """Sums <gradient_n, gradient_m> over parameters into one float64 matrix for each group of parameters.

    `scales` holds P^{-1/2} of a diagonal metric P by parameter name; `squared_norms[name]` are each parameter's diagonal.
    """

    def __init__(self, num_responses: int, group_of: Callable[[str], str], scales: Mapping[str, Tensor]) -> None:
        self.num_responses, self.group_of, self.scales = num_responses, group_of, scales
        self.grams: dict[str, Tensor] = {}
        self.squared_norms: dict[str, Tensor] = {}
        self._buffer = torch.empty(0)

    def take(self, name: str, shape: torch.Size, uses: Sequence[Use], dtype: torch.dtype) -> None:
        """Add one parameter, all of whose uses are given."""
        rows, columns = as_matrix(shape)
        scale = self.scales[name].reshape(rows, columns) if name in self.scales else None
        lookups = [use for use in uses if isinstance(use, Lookup)]
        outers = [use for use in uses if isinstance(use, Outer)]
        if len(lookups) == len(uses):  # rows that were never read are zero
            ids = torch.cat([use.ids_NT.flatten() for use in lookups]).unique()
            uses = [
                Lookup(torch.searchsorted(ids, use.ids_NT.contiguous()), use.grad_NTC, use.first) for use in lookups
            ]
            rows, scale = len(ids), None if scale is None else scale[ids]
        if len(outers) == len(uses) and rows < columns:
            # More rows than columns make larger products of each chunk; the Gram of the transposed gradients is the same.
            uses = outers = [use.transposed() for use in outers]
            rows, columns, scale = columns, rows, None if scale is None else scale.T
        if len(outers) == len(uses) == 1 and scale is None and self._tokens_are_cheaper(outers[0], rows, columns):
            gram = token_gram(outers[0].left_NTR, outers[0].right_NTC)
        else:
            gram = self._gram_by_rows(uses, rows, columns, scale, dtype)
        group = self.group_of(name)
        self.grams[group] = self.grams[group] + gram if group in self.grams else gram
        self.squared_norms[name] = gram.diagonal()

    def _gram_by_rows(
        self, uses: Sequence[Use], rows: int, columns: int, scale: Tensor | None, dtype: torch.dtype
    ) -> Tensor:
        n, device = self.num_responses, uses[0].device
        step = max(1, min(rows, chunk_elements(device) // (n * columns)))
        step -= step % 16 if step > 16 else 0
        if self._buffer.numel() < n * step * columns or self._buffer.dtype != dtype or self._buffer.device != device:
            self._buffer = torch.empty(n * step * columns, dtype=dtype, device=device)
        gram = torch.zeros(n, n, dtype=torch.float64, device=device)
        for _, block_ND in row_blocks(uses, self._buffer, (n, rows, columns), step, scale):
            add_product(gram, block_ND)
        return gram.triu() + gram.triu(1).T

    def _tokens_are_cheaper(self, use: Outer, rows: int, columns: int) -> bool:
        """Compare the multiply-adds of the two ways; products over fewer than 32 tokens are bound by memory, hence the 32."""
        n, length = use.right_NTC.shape[:2]
        by_tokens = (n * length) ** 2 * (rows + columns + 32) * 0.6
        by_rows = n * rows * columns * (max(length, 32) + 0.6 * n)
        return n == self.num_responses and by_tokens < by_rows


def chunk_elements(device: torch.device) -> int:
    """Numbers in one buffer of gradients: what stays in the cache of a CPU, what fills a GPU."""
    return 2**26 if device.type == "cuda" else 2**20


def add_product(gram_NN: Tensor, block_ND: Tensor) -> None:
    """gram += block block^T on and above the diagonal, by panels: the product is symmetric, so half of it is enough."""
    n = len(block_ND)
    panel = min(n, max(16, min(n // 4, 256)))
    for high in range(panel, n + panel, panel):
        gram_NN[:high, high - panel : high] += linear(block_ND[:high], block_ND[high - panel : high])


def token_gram(left_NTR: Tensor, right_NTC: Tensor) -> Tensor:
    """sum_{t,s} <left_nt, left_ms> <right_nt, right_ms>: the Gram matrix of sum_t left_t right_t^T without any gradient."""
    n, length, _ = left_NTR.shape
    left, right = left_NTR.flatten(0, 1), right_NTC.flatten(0, 1)
    gram = torch.zeros(n, n, dtype=torch.float64, device=left.device)
    panel = max(1, min(n, 2**22 // (length * n * length)))
    for low in range(0, n, panel):
        high = min(low + panel, n)
        mine = slice(low * length, high * length)
        product = (left[: high * length] @ left[mine].T).mul_(right[: high * length] @ right[mine].T)
        gram[:high, low:high] = product.view(high, length, high - low, length).sum((1, 3), dtype=torch.float64)
    return gram.triu() + gram.triu(1).T
