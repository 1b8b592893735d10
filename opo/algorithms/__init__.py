"""Algorithms, one per file: the docstring is a short account of the method, the function its formula.

An algorithm is a function `loss(logprobs_NT, rollouts, *, hyperparameters...) -> scalar`: `logprobs_NT` are the current policy's
log-probabilities of the sampled tokens (the only thing that is differentiated), `rollouts` what was sampled, the
keyword arguments its hyperparameters, whose annotations and defaults are their schema. Whatever it computes, its gradient is
sum_nt w_nt grad log pi(y_nt) with w = -dLoss/dlogprobs: so the trainer does not know which algorithm it runs, and the
variance instrument takes w from the loss without running the model.

A new algorithm is one file here with one decorated function of the file's name, and `conf/algo/NAME.yaml`.
"""

import inspect
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from types import MappingProxyType
from typing import Any, get_args

import torch
from torch import Tensor

from opo.batch import Rollouts
from opo.keys import Aggregation
from opo.losses import aggregate


@dataclass(frozen=True)
class Algorithm:
    """A loss over token log-probabilities and what a run must provide for it."""

    name: str
    loss: Callable[..., Tensor]
    needs: tuple[str, ...] = ()  # fields of Rollouts beyond tokens, mask, rewards and log-probabilities
    on_policy_only: bool = False  # one update per rollout batch is part of its definition
    couples_prompts: bool = False  # its weights for one prompt depend on the other prompts of the batch
    token_level: bool = False  # its weights differ between the tokens of one response
    unbiased_for: str = ""  # what its first update on a batch estimates, or "no" and why
    kl_reward: bool = True  # it looks at returns, of which a KL reward is a part; False: at rewards alone
    aggregation: str = (
        "sequence_sum"  # of its policy term over tokens: one of `Aggregation`, or the hyperparameter that says which
    )
    denominator: str | None = None  # the hyperparameter that its policy term is divided by
    critic: tuple[str, str, str] | None = (
        None  # its hyperparameters for discount, lambda and value clip of the critic's training
    )
    critic_on_finished: bool = False  # responses that the token limit cut do not train the critic

    @property
    def parameters(self) -> Mapping[str, inspect.Parameter]:
        """Its keyword arguments with annotation and default."""
        parameters = inspect.signature(self.loss).parameters
        return {k: p for k, p in parameters.items() if p.kind is inspect.Parameter.KEYWORD_ONLY}

    def average(self, values_NT: Tensor, rollouts: Rollouts, given: Mapping[str, Any]) -> Tensor:
        """One number from values of each token, on the scale of the policy term of the loss under the hyperparameters `given`.

        So a penalty or bonus times its coefficient weighs against the reward as it does in E[r] - c E[sum of penalties], times
        whatever the algorithm scales its policy term by. Responses without a reward are left out.
        """
        values = self.hyperparameters(given)
        mean = aggregate(values_NT, rollouts, values.get(self.aggregation, self.aggregation))
        return mean / values[self.denominator] if self.denominator else mean

    def critic_hyperparameters(self, given: Mapping[str, Any]) -> tuple[float, float, float | None]:
        """Discount, lambda and value clip (None: no clip) of the critic's training. ValueError for an algorithm without a critic."""
        if self.critic is None:
            raise ValueError(f"{self.name} declares no hyperparameters of a critic")
        values = self.hyperparameters(given)
        discount, lam, clip = (values[name] for name in self.critic)
        return discount, lam, clip

    def hyperparameters(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """All keyword arguments of the loss: those given, and the defaults of the others."""
        return {name: p.default for name, p in self.parameters.items()} | dict(given)


_REGISTRY: dict[str, Algorithm] = {}


def algorithm(**properties: Any) -> Callable[[Callable[..., Tensor]], Callable[..., Tensor]]:
    """Register the decorated loss under its own name; `properties` are fields of `Algorithm`, as literals.

    Raises ValueError where one names a hyperparameter that the loss does not have.
    """

    def register(loss: Callable[..., Tensor]) -> Callable[..., Tensor]:
        made = Algorithm(loss.__name__, loss, **properties)
        named = [
            made.denominator,
            *(made.critic or ()),
            None if made.aggregation in get_args(Aggregation) else made.aggregation,
        ]
        if unknown := {name for name in named if name is not None} - set(made.parameters):
            raise ValueError(f"{made.name}: {min(unknown)} is declared in @algorithm and is no keyword of the loss")
        _REGISTRY[made.name] = made
        return loss

    return register


for _module in pkgutil.iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")

ALGORITHMS: Mapping[str, Algorithm] = MappingProxyType(dict(sorted(_REGISTRY.items())))


def token_weights(loss: Callable[[Tensor], Tensor], logprobs_NT: Tensor) -> Tensor:
    """w_nt = -dLoss/dlogprobs_nt at `logprobs_NT`, (N, T) float64, zero where the loss does not depend on it."""
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
    the one that sampled. `overrides` are hyperparameters of the algorithm or fields of Rollouts it needs. Raises ValueError
    naming the unknown algorithm or keyword, or the field that is missing.
    """
    if name not in ALGORITHMS:
        raise ValueError(f"algorithm {name!r} is unknown: choose one of {', '.join(ALGORITHMS)}")
    chosen = ALGORITHMS[name]
    fields = {k: v for k, v in overrides.items() if k in Rollouts.__dataclass_fields__}
    hyperparameters = {k: v for k, v in overrides.items() if k not in fields}
    # a field with a shape suffix is a tensor of real numbers; the others (answers) are lists
    fields = {
        k: torch.as_tensor(v, dtype=torch.float64) if k.endswith(("_NT", "_PG", "_P")) else v for k, v in fields.items()
    }
    if unknown := set(hyperparameters) - set(chosen.parameters):
        raise ValueError(
            f"{name} has no keyword {sorted(unknown)[0]!r}: it takes {', '.join(chosen.parameters) or 'none'}"
        )
    rollouts = rollouts.with_(**fields)
    logprobs_NT = rollouts.logprobs_NT
    if logprobs_NT is None:
        logprobs_NT = torch.zeros(rollouts.mask_NT.shape, dtype=torch.float64, device=rollouts.mask_NT.device)
    given = {"logprobs_NT": logprobs_NT, "reference_logprobs_NT": rollouts.reference_logprobs_NT}
    rollouts = rollouts.with_(**{k: logprobs_NT if v is None else v for k, v in given.items()})
    for need in chosen.needs:
        if getattr(rollouts, need) is None:
            raise ValueError(f"{name} needs {need}: give it as a keyword")
    if rollouts.kl_rewards_NT is not None and not chosen.kl_reward:
        raise ValueError(f"{name} takes no KL reward: leave kl_rewards_NT out")
    at_NT = logprobs_NT if policy_logprobs_NT is None else policy_logprobs_NT
    return token_weights(lambda leaf_NT: chosen.loss(leaf_NT, rollouts, **hyperparameters), at_NT) * rollouts.mask_NT
