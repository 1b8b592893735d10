"""Estimators as weights: what multiplies the score of each response of a group, g = (1/G) sum_i A_i z_i.

An estimator is a name and a function from groups to A. `resolve` takes three kinds:

    a baseline of `opo.baselines`      A_i = r_i - b_i
    an algorithm of `opo.algorithms`   A_i = N w_i, with w_i the weight that its loss gives to every token score of
                                       response i in a batch of N responses; known up to the loss's scale, so of
                                       their measures only the scale-free ones mean anything (not bias, not mse)
    anything else                      fn(rewards_MG, lengths_MG) -> weights_MG, numpy arrays, groups on the first axis

Where an estimator couples prompts, its groups come as (M, P, G): M batches of P prompts.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray

from analysis.variance.names import COUPLED_BASELINES, known_names
from opo.algorithms import ALGORITHMS, score_weights
from opo.baselines import BASELINES
from opo.batch import Rollouts

Array = NDArray[np.float64]
WeightFunction = Callable[[Array, Array], Array]

_WEIGHTED_BY = {
    "length_weighted": "lengths",
    "score_norm_weighted": "score_norms",
    "logit_energy_weighted": "logit_energy",
}
_STD_EPS = 1e-6
_TOKENS_AT_ONCE = 2_000_000


@dataclass(frozen=True)
class Groups:
    """Inputs of an estimator, each (M, G), or (M, P, G) in batches of P prompts."""

    rewards: Array
    lengths: Array
    score_norms: Array  # squared norms of the scores
    logit_energy: Array | None = None
    greedy_rewards: Array | None = None  # (M,) or (M, P)
    answers: NDArray[np.object_] | None = None


@dataclass(frozen=True)
class Estimator:
    """A named weighting. `averaging` is the field of Groups that weights a group's baseline, "equal", or None."""

    name: str
    weights: Callable[[Groups], Array]
    couples_prompts: bool = False
    averaging: str | None = None

    def effective_sample_size(self, groups: Groups) -> float | None:
        """Mean over groups of (sum w)^2 / sum w^2, the effective number of responses in the baseline, or None."""
        if self.averaging is None:
            return None
        if self.averaging == "equal":
            return float(groups.rewards.shape[-1])
        w_MG = baseline_weights(self.name, self.averaging, groups)
        square_M = (w_MG**2).sum(-1)
        size_M = np.where(square_M > 0, w_MG.sum(-1) ** 2 / np.where(square_M > 0, square_M, 1.0), w_MG.shape[-1])
        return float(size_M.mean())


def resolve(estimators: Sequence[str | Estimator] | Mapping[str, str | WeightFunction | Estimator]) -> list[Estimator]:
    """Estimators in the order given. Raises ValueError naming one that is unknown, weighs tokens, or occurs twice."""
    if isinstance(estimators, str):
        raise ValueError(f"estimators={estimators!r}: give a list of names")
    given = (
        list(estimators.items())
        if isinstance(estimators, Mapping)
        else [(str(getattr(e, "name", e)), e) for e in estimators]
    )
    resolved = [_one(name, what) for name, what in given]
    names = [estimator.name for estimator in resolved]
    if len(set(names)) < len(names):
        raise ValueError(f"estimator {next(n for n in names if names.count(n) > 1)!r} is listed twice")
    if not resolved:
        raise ValueError("no estimators: give at least one name")
    return resolved


def _one(name: str, what: str | WeightFunction | Estimator) -> Estimator:
    if isinstance(what, Estimator):
        return Estimator(name, what.weights, what.couples_prompts, what.averaging)
    if callable(what):
        return Estimator(name, partial(_custom, name, what))
    if what in BASELINES:
        coupled = what in COUPLED_BASELINES
        field = next((f for prefix, f in _WEIGHTED_BY.items() if prefix in what), None)
        averaging = None if coupled or what == "none" else field or "equal"
        return Estimator(name, partial(_minus_baseline, what, field), coupled, averaging)
    if what == "group_standardized":
        return Estimator(name, _group_standardized, averaging="equal")
    if what in ALGORITHMS:
        if ALGORITHMS[what].token_level:
            raise ValueError(
                f"estimator {what!r} weighs tokens, not responses: measure it with token_level.compare_token_weights"
            )
        return Estimator(name, partial(_algorithm, what), ALGORITHMS[what].couples_prompts)
    raise ValueError(f"estimator {what!r} is unknown: choose from {', '.join(known_names())}")


def baseline_weights(name: str, field: str, groups: Groups) -> Array:
    """The weights of a weighted baseline. Raises ValueError where the pools lack them."""
    w_MG = getattr(groups, field)
    if w_MG is None:
        raise ValueError(f"estimator {name!r} needs {field}= in every Pool")
    return w_MG


def _minus_baseline(name: str, field: str | None, groups: Groups) -> Array:
    """A_i = r_i - b_i."""
    w = None if field is None else torch.from_numpy(baseline_weights(name, field, groups))
    # A group is a prompt to the baseline; the groups of one batch of prompts share an axis.
    return groups.rewards - BASELINES[name](torch.from_numpy(groups.rewards), w).numpy()


def _group_standardized(groups: Groups) -> Array:
    """A_i = (r_i - mean) / (s + 1e-6), s with ddof = 1, zero in a group of equal rewards (GRPO, arXiv 2402.03300)."""
    centred_MG = _minus_baseline("group_mean", None, groups)
    deviation_M1 = np.sqrt((centred_MG**2).sum(-1, keepdims=True) / (centred_MG.shape[-1] - 1))
    return centred_MG / (deviation_M1 + _STD_EPS)


def _custom(name: str, function: WeightFunction, groups: Groups) -> Array:
    weights_MG = np.asarray(function(groups.rewards.copy(), groups.lengths.copy()), dtype=np.float64)
    if weights_MG.shape != groups.rewards.shape or not np.isfinite(weights_MG).all():
        raise ValueError(f"estimator {name!r} must return finite weights of shape {groups.rewards.shape}")
    return weights_MG


def _algorithm(name: str, groups: Groups) -> Array:
    """A_i = N w_i from the algorithm's loss: one batch at a time where it couples prompts, else many groups at once."""
    if not np.array_equal(groups.lengths, np.round(groups.lengths)):
        raise ValueError(f"estimator {name!r} counts tokens: lengths must be whole numbers")
    if ALGORITHMS[name].couples_prompts:
        batches = [_rollout_weights(name, groups, np.s_[m]) for m in range(len(groups.rewards))]
        return np.stack(batches)
    num_groups, group_size = groups.rewards.shape
    step = max(1, int(_TOKENS_AT_ONCE / (group_size * groups.lengths.max())))
    return np.concatenate([_rollout_weights(name, groups, np.s_[m : m + step]) for m in range(0, num_groups, step)])


def _rollout_weights(name: str, groups: Groups, rows: int | slice) -> Array:
    """Weights of the groups in these rows, which are one batch to the algorithm, (P, G)."""
    rewards_PG, lengths_PG = groups.rewards[rows], torch.from_numpy(groups.lengths[rows])
    lengths_N1 = lengths_PG.reshape(-1, 1).long()
    mask_NT = torch.arange(int(lengths_N1.max())) < lengths_N1
    greedy_P = None if groups.greedy_rewards is None else torch.from_numpy(groups.greedy_rewards[rows])
    rollouts = Rollouts(
        prompt_ids=[[0]] * len(rewards_PG),
        tokens_NT=torch.zeros(mask_NT.shape, dtype=torch.int64),
        mask_NT=mask_NT,
        rewards_PG=torch.from_numpy(rewards_PG),
        score_norm2_PG=torch.from_numpy(groups.score_norms[rows]),
        logit_energy_NT=_spread(groups.logit_energy, rows, mask_NT),
        greedy_rewards_P=greedy_P,
        answers=None if groups.answers is None else groups.answers[rows].tolist(),
    )
    weights_NT = score_weights(name, rollouts)
    first_N1 = weights_NT[:, :1]
    spread_NT = torch.where(mask_NT, (weights_NT - first_N1).abs(), 0.0)
    if spread_NT.max() > 1e-9 * weights_NT.abs().max():
        raise ValueError(
            f"estimator {name!r} weighs tokens, not responses: measure it with token_level.compare_token_weights"
        )
    return (first_N1[:, 0] * len(mask_NT)).numpy().reshape(rewards_PG.shape)


def _spread(energy: Array | None, rows: int | slice, mask_NT: torch.Tensor) -> torch.Tensor | None:
    """One number a response in equal shares over its tokens, (N, T); None where the pools have none."""
    if energy is None:
        return None
    energy_N1 = torch.from_numpy(energy[rows]).reshape(-1, 1)
    return energy_N1 / mask_NT.sum(1, keepdim=True) * mask_NT
