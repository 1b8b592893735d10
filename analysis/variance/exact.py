"""Policies small enough to enumerate: the true gradient, its covariance and every estimator's moments in float64.

A `Population` is one prompt with all responses y that can occur: pi(y), the score z(y) = grad log pi(y), reward, length
and logit energy. Everything that `analysis.variance.compare` estimates from a pool is known here, so the whole chain can be
tested against it, and the notebooks can show what sampling hides.

With mu = E r, S = E|z|^2 and V_b = E[(r - b)^2 |z|^2] - |grad E r|^2, a group of G with a constant baseline has
tr Cov(g) = V_b / G, and V_b = V_{b*} + S (b - b*)^2 with b* = E[|z|^2 r] / S (Greensmith, Bartlett, Baxter 2004).
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations_with_replacement, product

import numpy as np
import torch
from numpy.typing import ArrayLike
from scipy.special import gammaln
from torch import Tensor

from analysis.variance.estimators import Array, Estimator, Groups, WeightFunction, resolve
from analysis.variance.moments import Moments
from analysis.variance.partition import Index
from analysis.variance.pool import Pool

_GROUPS_AT_ONCE = 20_000


@dataclass(frozen=True, eq=False)
class Population:
    """All Y responses to one prompt: probabilities, rewards, lengths, logit energies (Y,), scores (Y, D), float64."""

    probabilities: Array
    scores: Array
    rewards: Array
    lengths: Array
    logit_energy: Array

    def __post_init__(self) -> None:
        if abs(self.probabilities.sum() - 1) > 1e-9 or (self.probabilities < 0).any():
            raise ValueError(f"probabilities must be >= 0 and sum to one, not {self.probabilities.sum()}")

    @cached_property
    def gram(self) -> Array:
        """Inner products of all scores, (Y, Y)."""
        return self.scores @ self.scores.T

    @property
    def gradient(self) -> Array:
        """grad E[r] = E[r z], (D,)."""
        return (self.probabilities * self.rewards) @ self.scores

    @property
    def score_norms(self) -> Array:
        """|z|^2 of each response, (Y,)."""
        return np.diag(self.gram)

    @property
    def mean_score_norm(self) -> float:
        """S = E|z|^2."""
        return float(self.probabilities @ self.score_norms)

    @property
    def mean_reward(self) -> float:
        """mu = E r."""
        return float(self.probabilities @ self.rewards)

    @property
    def best_baseline(self) -> float:
        """b* = E[|z|^2 r] / E|z|^2, the constant of least variance."""
        return self._weighted_reward(self.score_norms)

    @property
    def length_baseline(self) -> float:
        """b_L = E[L r] / E[L], what OPO's baseline estimates."""
        return self._weighted_reward(self.lengths)

    def covariance(self, baseline: float = 0.0) -> Array:
        """Cov((r - b) z), (D, D)."""
        terms_YD = (self.rewards - baseline)[:, None] * self.scores
        return (self.probabilities * terms_YD.T) @ terms_YD - np.outer(self.gradient, self.gradient)

    def variance(self, baseline: float) -> float:
        """V_b = E[(r - b)^2 |z|^2] - |grad E r|^2, the trace of `covariance`."""
        second = self.probabilities @ ((self.rewards - baseline) ** 2 * self.score_norms)
        return float(second - self.gradient @ self.gradient)

    def sample(self, size: int, rng: np.random.Generator) -> Pool:
        """A pool of independent responses."""
        drawn = rng.choice(len(self.probabilities), size=size, p=self.probabilities)
        gram = self.gram[np.ix_(drawn, drawn)]
        return Pool(gram, self.rewards[drawn], self.lengths[drawn], self.logit_energy[drawn])

    def _weighted_reward(self, weights: Array) -> float:
        return float((self.probabilities * weights) @ self.rewards / (self.probabilities @ weights))


def softmax_bandit(logits: ArrayLike, rewards: ArrayLike, lengths: ArrayLike | None = None) -> Population:
    """One choice among Y arms, z(y) = e_y - pi; lengths are free numbers (ones by default)."""
    logits_Y = np.asarray(logits, dtype=np.float64)
    pi_Y = np.exp(logits_Y - logits_Y.max())
    pi_Y /= pi_Y.sum()
    lengths_Y = np.ones_like(pi_Y) if lengths is None else np.asarray(lengths, dtype=np.float64)
    energy_Y = 1 - 2 * pi_Y + (pi_Y**2).sum()
    return Population(pi_Y, np.eye(len(pi_Y)) - pi_Y, np.asarray(rewards, dtype=np.float64), lengths_Y, energy_Y)


def autoregressive(
    next_logits: Callable[[tuple[int, ...]], Tensor],
    parameters: Sequence[Tensor],
    reward: Callable[[tuple[int, ...]], float],
    max_tokens: int,
    end: int = 0,
) -> Population:
    """Any differentiable policy over a small vocabulary, enumerated token by token.

    `next_logits` maps the tokens so far to the logits (V,) of the next one. A response ends with the token `end`, or is
    cut off at `max_tokens`. Scores are of all `parameters` in their order, by automatic differentiation.
    """
    responses = list(_responses(next_logits, (), max_tokens, end))
    scores = []
    for _, log_probability, _ in responses:
        gradients = torch.autograd.grad(log_probability, parameters, retain_graph=True, materialize_grads=True)
        scores.append(torch.cat([g.double().flatten() for g in gradients]).numpy())
    return Population(
        probabilities=np.array([log_probability.exp().item() for _, log_probability, _ in responses]),
        scores=np.stack(scores),
        rewards=np.array([reward(tokens) for tokens, _, _ in responses], dtype=np.float64),
        lengths=np.array([len(tokens) for tokens, _, _ in responses], dtype=np.float64),
        logit_energy=np.array([energy for _, _, energy in responses]),
    )


def tabular(
    num_tokens: int,
    max_tokens: int,
    reward: Callable[[tuple[int, ...]], float],
    rng: np.random.Generator,
    spread: float = 1.0,
) -> Population:
    """An autoregressive policy with logits of its own for every prefix, normal with deviation `spread`; 0 ends."""
    prefixes = [p for n in range(max_tokens) for p in product(range(1, num_tokens), repeat=n)]
    table = torch.tensor(rng.normal(size=(len(prefixes), num_tokens)) * spread, dtype=torch.float64, requires_grad=True)
    place = {prefix: row for row, prefix in enumerate(prefixes)}
    return autoregressive(lambda tokens: table[place[tokens]], [table], reward, max_tokens)


def exact_moments(
    populations: Sequence[Population], estimator: str | Estimator | WeightFunction, group_size: int
) -> Moments:
    """The true moments of one group's estimate for each prompt, by enumeration.

    E|g|^2 is the sum over all multisets of G responses of their multinomial probability times c^T K c, and E g
    likewise: estimators do not look at the order of a group. For an estimator that couples prompts the prompts are one
    batch, and all combinations of their multisets are enumerated. There are (Y + G - 1 choose G) multisets for each
    prompt.
    """
    (chosen,) = resolve({"estimator": estimator})
    batches = [list(populations)] if chosen.couples_prompts else [[population] for population in populations]
    return Moments.join([moments for batch in batches for moments in _batch_moments(batch, chosen, group_size)])


def _batch_moments(batch: list[Population], estimator: Estimator, group_size: int) -> list[Moments]:
    second_P = np.zeros(len(batch))
    mean_PY = [np.zeros_like(population.probabilities) for population in batch]
    for outcomes_PMG, chance_M in _outcomes(batch, group_size):
        rewards, lengths, score_norms, logit_energy = (
            _gather([getattr(population, field) for population in batch], outcomes_PMG, estimator.couples_prompts)
            for field in ("rewards", "lengths", "score_norms", "logit_energy")
        )
        groups = Groups(rewards, lengths, score_norms, logit_energy)
        weights_MG = estimator.weights(groups) / group_size  # (M, P, G) where prompts are coupled
        for p, (population, outcome_MG) in enumerate(zip(batch, outcomes_PMG, strict=True)):
            own_MG = weights_MG[:, p] if estimator.couples_prompts else weights_MG
            block_MGG = population.gram[outcome_MG[:, :, None], outcome_MG[:, None, :]]
            second_P[p] += np.einsum("m,mg,mgh,mh->", chance_M, own_MG, block_MGG, own_MG, optimize=True)
            np.add.at(mean_PY[p], outcome_MG, chance_M[:, None] * own_MG)
    return [_moments_of(*row) for row in zip(batch, second_P, mean_PY, strict=True)]


def _moments_of(population: Population, second: float, mean_Y: Array) -> Moments:
    """From E|g|^2 and the coefficients of E g in the scores."""
    mean_D, true_D = mean_Y @ population.scores, population.gradient
    difference_D = mean_D - true_D
    values = second, mean_D @ mean_D, true_D @ true_D, mean_D @ true_D, difference_D @ difference_D
    return Moments(*(np.array([value]) for value in values))


def _gather(values_PY: Sequence[Array], outcomes_PMG: Sequence[Index], coupled: bool) -> Array:
    picked = [values_Y[outcome_MG] for values_Y, outcome_MG in zip(values_PY, outcomes_PMG, strict=True)]
    return np.stack(picked, axis=1) if coupled else picked[0]


def _outcomes(batch: Sequence[Population], group_size: int) -> Iterator[tuple[list[Index], Array]]:
    """All combinations of a multiset of G responses for each prompt, in blocks: P arrays (M, G), and chances (M,)."""
    parts = [_multisets(population.probabilities, group_size) for population in batch]
    shape = tuple(len(chance) for _, chance in parts)
    total = int(np.prod(shape))
    for start in range(0, total, _GROUPS_AT_ONCE):
        places = np.unravel_index(np.arange(start, min(start + _GROUPS_AT_ONCE, total)), shape)
        chance_M = np.prod([chance[place] for (_, chance), place in zip(parts, places, strict=True)], axis=0)
        yield [outcome[place] for (outcome, _), place in zip(parts, places, strict=True)], chance_M


def _multisets(probabilities_Y: Array, group_size: int) -> tuple[Index, Array]:
    """Every multiset of G responses, (M, G), and its multinomial probability, (M,)."""
    outcome_MG = np.array(list(combinations_with_replacement(range(len(probabilities_Y)), group_size)))
    counts_MY = (outcome_MG[:, :, None] == np.arange(len(probabilities_Y))).sum(1)
    log_orders_M = gammaln(group_size + 1) - gammaln(counts_MY + 1).sum(1)
    return outcome_MG, np.exp(log_orders_M) * np.prod(probabilities_Y**counts_MY, axis=1)


def _responses(
    next_logits: Callable[[tuple[int, ...]], Tensor], start: tuple[int, ...], max_tokens: int, end: int
) -> Iterator[tuple[tuple[int, ...], Tensor, float]]:
    """Every response that begins with `start`: its tokens, log-probability and logit energy of what follows."""
    log_pi_V = next_logits(start).double().log_softmax(-1)
    pi_V = log_pi_V.detach().exp()
    energy_V = (1 - 2 * pi_V + (pi_V**2).sum()).tolist()
    for token, energy in enumerate(energy_V):
        tokens = (*start, token)
        if token == end or len(tokens) == max_tokens:
            yield tokens, log_pi_V[token], energy
        else:
            for longer, log_probability, more in _responses(next_logits, tokens, max_tokens, end):
                yield longer, log_pi_V[token] + log_probability, energy + more
