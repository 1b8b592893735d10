"""Decoder layers that keep only their input and run again in the backward pass (Chen et al. 2016), in evaluation mode."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

from analysis.score_gram.capture import Capture, replaced_forward


def decoder_layers(model: nn.Module) -> list[nn.Module]:
    """The layers that can be recomputed; none where the model is not written with transformers' own."""
    return [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]


@contextmanager
def recomputed_layers(
    model: nn.Module, capture: Capture, shape: tuple[int, int], around: AbstractContextManager[Any]
) -> Iterator[None]:
    """Each decoder layer runs without a graph, then again, inside `around`, when its output's gradient has arrived.

    `capture` hears the second run, on a batch of `shape` = (responses, tokens).
    """
    layers = decoder_layers(model)
    if not layers:
        raise ValueError(f"{type(model).__name__} has no layers that can be recomputed; use recompute=False")
    with ExitStack() as stack:
        for layer in layers:
            stack.enter_context(replaced_forward(layer, _twice(layer.forward, capture, shape, around)))
        yield


def _twice(forward: Any, capture: Capture, shape: tuple[int, int], around: AbstractContextManager[Any]) -> Any:
    def run(*args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*args, **kwargs)
        with around, capture.batch(*shape, mode="again"):
            return forward(*args, **kwargs)

    def checkpointed(hidden: Tensor, *args: Any, **kwargs: Any) -> Any:
        if any(isinstance(x, Tensor) and x.requires_grad for x in tree_leaves((args, kwargs))):
            return forward(hidden, *args, **kwargs)  # a second path for gradients, which the recomputation would cut
        hidden = hidden if hidden.requires_grad else hidden.detach().requires_grad_()
        return checkpoint(partial(run, **kwargs), hidden, *args, use_reentrant=True, preserve_rng_state=False)

    return checkpointed
