"""The exact Gram matrix of per-response gradients, parameter by parameter and a few rows at a time."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from analysis.gram_layers import Lookup, Outer, Use, as_matrix, row_blocks


class GramSink:
    """Sums <gradient_n, gradient_m> over parameters into one float64 matrix for each group of parameters.

    `scales` holds P^{-1/2} of a diagonal metric P by parameter name; `squared_norms[name]` are each parameter's diagonal.
    """

    def __init__(self, num_responses: int, group_of: Callable[[str], str], scales: Mapping[str, Tensor]) -> None:
        self.num_responses, self.group_of, self.scales = num_responses, group_of, scales
        self.grams: dict[str, Tensor] = {}
        self.squared_norms: dict[str, Tensor] = {}
        self._buffer = torch.empty(0)

    def take(self, name: str, shape: torch.Size, uses: list[Use], dtype: torch.dtype) -> None:
        """Add one parameter, all of whose uses are given."""
        rows, columns = as_matrix(shape)
        scale = self.scales[name].reshape(rows, columns) if name in self.scales else None
        use, device = uses[0], uses[0].device
        if all(isinstance(u, Lookup) for u in uses):  # rows that were never read are zero
            ids = torch.cat([u.ids_NT.flatten() for u in uses]).unique()
            uses = [Lookup(torch.searchsorted(ids, u.ids_NT), u.grad_NTC, u.first) for u in uses]
            rows, scale = len(ids), None if scale is None else scale[ids]
        if len(uses) == 1 and scale is None and isinstance(use, Outer) and self._tokens_are_cheaper(use, rows, columns):
            gram = token_gram(use.left_NTR, use.right_NTC)
        else:
            n = self.num_responses
            if rows < columns and all(isinstance(u, Outer) and isinstance(u.left_NTR, Tensor) for u in uses):
                # More rows than columns make larger products of each chunk; the Gram of the transposed gradients is the same.
                uses, rows, columns = [u.transposed() for u in uses if isinstance(u, Outer)], columns, rows
                scale = None if scale is None else scale.T
            step = max(1, min(rows, chunk_elements(device) // (n * columns)))
            step -= step % 16 if step > 16 else 0
            if self._buffer.numel() < n * step * columns or self._buffer.dtype != dtype or self._buffer.device != device:
                self._buffer = torch.empty(n * step * columns, dtype=dtype, device=device)
            gram = torch.zeros(n, n, dtype=torch.float64, device=device)
            for _, block_ND in row_blocks(uses, self._buffer, (n, rows, columns), step, scale):
                add_product(gram, block_ND)
            gram = gram.triu() + gram.triu(1).T
        group = self.group_of(name)
        self.grams[group] = self.grams[group] + gram if group in self.grams else gram
        self.squared_norms[name] = gram.diagonal()

    def _tokens_are_cheaper(self, use: Outer, rows: int, columns: int) -> bool:
        """Compare the multiply-adds of the two ways; products over fewer than 32 tokens are bound by memory, hence the 32."""
        n, length = use.right_NTC.shape[:2]
        if not isinstance(use.left_NTR, Tensor) or n < self.num_responses:
            return False
        by_tokens = (n * length) ** 2 * (rows + columns + 32) * 0.6
        by_rows = n * rows * columns * (max(length, 32) + 0.6 * n)
        return by_tokens < by_rows


def chunk_elements(device: torch.device) -> int:
    """Numbers in one buffer of gradients: what stays in the cache of a CPU, what fills a GPU."""
    return 2**26 if device.type == "cuda" else 2**20


def add_product(gram_NN: Tensor, block_ND: Tensor) -> None:
    """gram += block block^T on and above the diagonal, by panels: the product is symmetric, so half of it is enough."""
    n = len(block_ND)
    panel = min(n, max(16, min(n // 4, 256)))
    for high in range(panel, n + panel, panel):
        gram_NN[:high, high - panel : high] += short_product(block_ND[:high], block_ND[high - panel : high])


def short_product(x_MD: Tensor, y_ND: Tensor) -> Tensor:
    """x y^T for few rows and many columns. oneDNN's kernel, which inductor uses too, does this shape 1.3 times as fast as `mm`."""
    if x_MD.dtype == torch.float32 and x_MD.device.type == "cpu" and torch.backends.mkldnn.is_available():
        return torch.ops.mkldnn._linear_pointwise(x_MD, y_ND, None, "none", [], "")
    return x_MD @ y_ND.T


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
