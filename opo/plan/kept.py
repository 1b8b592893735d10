"""What a forward pass leaves in memory for its backward pass, counted, not guessed: the tensors that autograd saves.

Works on a model with weights and on one without (`opo.plan.shape.on_paper`).
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from opo.model.forward import positions


def kept_bytes(model: nn.Module, forward: Callable[[], Any], by_response: bool = False) -> int:
    """Bytes that `forward()` keeps until its backward pass, each storage once, the model's own tensors left out.

    `by_response`: as the Gram pass runs it (`analysis.score_gram`), which needs no gradients of weights but keeps the inputs of the
    layers that own them.
    """
    own = {_key(x) for x in [*model.parameters(), *model.buffers()]}
    kept: dict[int, Any] = {}

    def keep(x: Any) -> Any:
        if isinstance(x, Tensor) and _key(x) not in own:
            kept[_key(x)] = x.untyped_storage()
        return x

    def called(module: nn.Module, args: Any, options: Any, output: Any) -> Any:
        for x in tree_leaves((args, options)):
            keep(x)
        begins = isinstance(output, Tensor) and output.is_floating_point() and not output.requires_grad
        return output.detach().requires_grad_() if begins else None

    saving = torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x)
    with _layers_hooked(model, called if by_response else None), torch.enable_grad(), saving:
        forward()
    return sum(storage.nbytes() for storage in kept.values())


@contextmanager
def _layers_hooked(model: nn.Module, called: Any) -> Iterator[None]:
    """`called` hears the layers that own trainable parameters, which are frozen meanwhile; nothing happens without it."""
    trained = [p for p in model.parameters() if p.requires_grad and called is not None]
    layers = [m for m in model.modules() if any(p.requires_grad for p in m.parameters(recurse=False))]
    handles = [layer.register_forward_hook(called, with_kwargs=True) for layer in layers if called is not None]
    for p in trained:
        p.requires_grad_(False)
    try:
        yield
    finally:
        for p in trained:
            p.requires_grad_(True)
        for handle in handles:
            handle.remove()


def _key(x: Tensor) -> int:
    return x.untyped_storage()._cdata  # not data_ptr(), which is 0 for all that has no numbers


@dataclass(frozen=True)
class KeptPerRow:
    """Bytes that one row of L tokens keeps: linear L + square L^2, the second of masks and of attention weights where they are kept."""

    linear: float
    square: float

    @classmethod
    def of(cls, model: Any, by_response: bool = False, length: int = 16) -> Self:
        """From forward passes of the decoder over two rows of `length` tokens, and of twice as many, one of them padded."""
        device, base = (
            next(model.parameters()).device,
            model.get_base_model() if hasattr(model, "get_base_model") else model,
        )

        def kept(tokens: int) -> int:
            ids_2L = torch.ones(2, tokens, dtype=torch.int64, device=device)
            mask_2L = torch.cat([ids_2L[:, 1:], ids_2L.new_tensor([[1], [0]])], 1)  # without padding there is no mask
            options = {"attention_mask": mask_2L, "position_ids": positions(mask_2L), "use_cache": False}
            return kept_bytes(model, lambda: base.base_model(input_ids=ids_2L, **options), by_response)

        once, twice = kept(length), kept(2 * length)
        square = max(0.0, (twice - 2 * once) / (4 * length**2))
        return cls(once / (2 * length) - square * length, square)

    def bytes(self, length: int) -> float:
        """Of one row of `length` tokens."""
        return self.linear * length + self.square * length**2
