"""Algorithms, one per file: the docstring is a short account of the method, the function its formula.

An algorithm is a function `loss(logprobs_NT, rollouts, *, knobs...) -> scalar`: `logprobs_NT` are the current policy's
log-probabilities of the sampled tokens (the only thing that is differentiated), `rollouts` what was sampled, the
keyword arguments its knobs, whose annotations and defaults are their schema. Whatever it computes, its gradient is
sum_nt w_nt grad log pi(y_nt) with w = -dLoss/dlogprobs: so the trainer does not know which algorithm it runs, and the
variance meter reads w off the loss with no work of the model.

A new algorithm is one file here with one decorated function of the file's name, and `conf/algo/NAME.yaml`.
"""

import inspect
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from opo.batch import Rollouts


@dataclass(frozen=True)
class Algorithm:
    """A loss over token log-probabilities and what a run must provide for it."""

    name: str
    loss: Callable[..., Tensor]
    needs: tuple[str, ...]  # fields of Rollouts beyond tokens, mask, rewards and log-probabilities
    on_policy_only: bool  # one update per rollout batch is part of its definition
    couples_prompts: bool  # its weights for one prompt depend on the other prompts of the batch
    token_level: bool  # its weights differ between the tokens of one response

    @property
    def knobs(self) -> Mapping[str, inspect.Parameter]:
        """Its keyword arguments with annotation and default."""
        parameters = inspect.signature(self.loss).parameters
        return {k: p for k, p in parameters.items() if p.kind is inspect.Parameter.KEYWORD_ONLY}


_REGISTRY: dict[str, Algorithm] = {}


def algorithm(
    *,
    needs: tuple[str, ...] = (),
    on_policy_only: bool = False,
    couples_prompts: bool = False,
    token_level: bool = False,
) -> Callable[[Callable[..., Tensor]], Callable[..., Tensor]]:
    """Register the decorated loss under its own name."""

    def register(loss: Callable[..., Tensor]) -> Callable[..., Tensor]:
        name = loss.__name__
        _REGISTRY[name] = Algorithm(name, loss, needs, on_policy_only, couples_prompts, token_level)
        return loss

    return register


for _module in pkgutil.iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")

ALGORITHMS: Mapping[str, Algorithm] = MappingProxyType(dict(sorted(_REGISTRY.items())))


def token_weights(loss: Callable[[Tensor], Tensor], logprobs_NT: Tensor) -> Tensor:
    """w_nt = -dLoss/dlogprobs_nt at `logprobs_NT`, (N, T) float64, zero where the loss does not look."""
    leaf_NT = logprobs_NT.detach().double().requires_grad_()
    with torch.enable_grad():
        value = loss(leaf_NT)
    if not value.requires_grad:
        return torch.zeros_like(leaf_NT)
    (gradient_NT,) = torch.autograd.grad(value, leaf_NT)
    return -gradient_NT


def score_weights(
    name: str, rollouts: Rollouts, *, policy_logprobs_NT: Tensor | None = None, **overrides: Any
) -> Tensor:
    """Weights of the token scores at the on-policy point: w_nt = -dLoss/dlogprobs_nt, (N, T) float64, zero in padding.

    They are known up to the loss's overall scale, so only scale-free measures of them mean anything. Log-probabilities
    and a reference that are not given equal the policy's; `policy_logprobs_NT` are the policy's where it is no longer
    the one that sampled. `overrides` are knobs of the algorithm or fields of Rollouts it needs. Raises ValueError
    naming the unknown algorithm or keyword, or the field that is missing.
    """
    if name not in ALGORITHMS:
        raise ValueError(f"algorithm {name!r} is unknown: choose one of {', '.join(ALGORITHMS)}")
    chosen = ALGORITHMS[name]
    fields = {k: v for k, v in overrides.items() if k in Rollouts.__dataclass_fields__}
    knobs = {k: v for k, v in overrides.items() if k not in fields}
    # a field with a shape suffix is a tensor of real numbers; the others (answers) are lists
    fields = {
        k: torch.as_tensor(v, dtype=torch.float64) if k.endswith(("_NT", "_PG", "_P")) else v for k, v in fields.items()
    }
    if unknown := set(knobs) - set(chosen.knobs):
        raise ValueError(f"{name} has no keyword {sorted(unknown)[0]!r}: it takes {', '.join(chosen.knobs) or 'none'}")
    rollouts = rollouts.with_(**fields)
    logprobs_NT = rollouts.logprobs_NT
    if logprobs_NT is None:
        logprobs_NT = torch.zeros(rollouts.mask_NT.shape, dtype=torch.float64, device=rollouts.mask_NT.device)
    given = {"logprobs_NT": logprobs_NT, "reference_logprobs_NT": rollouts.reference_logprobs_NT}
    rollouts = rollouts.with_(**{k: logprobs_NT if v is None else v for k, v in given.items()})
    for need in chosen.needs:
        if getattr(rollouts, need) is None:
            raise ValueError(f"{name} needs {need}: give it as a keyword")
    at_NT = logprobs_NT if policy_logprobs_NT is None else policy_logprobs_NT
    return token_weights(lambda leaf_NT: chosen.loss(leaf_NT, rollouts, **knobs), at_NT) * rollouts.mask_NT
