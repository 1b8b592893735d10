"""A pool: all responses to one prompt, as the variance meter sees them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from analysis.variance.intervals import Array
from opo.rounding import levelled


@dataclass(frozen=True, eq=False)
class Pool:
    """Gram matrix of the scores of all responses to one prompt (N, N), their rewards and lengths (N,), numpy or torch.

    Optional: `logit_energy` (N,), sum_t (1 - 2 pi_t + sum_v pi_v^2) of each response; `greedy_reward`, that of the
    greedy response (ReMax); `answers`, N extracted answers (COPO). Raises ValueError on a response without tokens, on
    anything that is not finite (a response that could not be scored has no place in a pool) and on a matrix that is
    not symmetric with a diagonal >= 0.
    """

    gram: Any
    rewards: Any
    lengths: Any
    logit_energy: Any = None
    greedy_reward: float | None = None
    answers: Sequence[str | None] | None = None

    def __post_init__(self) -> None:
        rewards = _vector("rewards", self.rewards, None)
        lengths = _vector("lengths", self.lengths, len(rewards))
        if (lengths <= 0).any():
            raise ValueError(f"response {int(np.argmax(lengths <= 0))} has no tokens: lengths must be above zero")
        energy = None if self.logit_energy is None else _vector("logit_energy", self.logit_energy, len(rewards))
        if energy is not None and (energy < 0).any():
            raise ValueError(f"response {int(np.argmax(energy < 0))}: logit_energy must not be negative")
        if self.greedy_reward is not None and not np.isfinite(self.greedy_reward):
            raise ValueError(f"greedy_reward is {self.greedy_reward}, it must be finite")
        if self.answers is not None and len(self.answers) != len(rewards):
            raise ValueError(f"{len(self.answers)} answers for {len(rewards)} rewards")
        given = {"gram": gram_matrix(self.gram, len(rewards)), "rewards": levelled(rewards).numpy(), "lengths": lengths}
        for name, value in {**given, "logit_energy": energy}.items():
            object.__setattr__(self, name, value)

    def __len__(self) -> int:
        return len(self.rewards)

    def take(self, responses: Any) -> "Pool":
        """The pool of these responses alone, by index or mask."""
        energy = None if self.logit_energy is None else self.logit_energy[responses]
        answers = None if self.answers is None else np.array(self.answers, dtype=object)[responses].tolist()
        gram = self.gram[responses][:, responses]
        return Pool(gram, self.rewards[responses], self.lengths[responses], energy, self.greedy_reward, answers)


def gram_matrix(matrix: Any, size: int) -> Array:
    """The matrix in float64, exactly symmetric. Raises ValueError where it is no Gram matrix of `size` vectors."""
    gram = _float64("gram", matrix)
    if gram.shape != (size, size):
        raise ValueError(f"gram has shape {gram.shape}, for {size} responses it must be {(size, size)}")
    if not np.isfinite(gram).all():
        raise ValueError(f"gram is not finite in row {int(np.argmin(np.isfinite(gram).all(1)))}")
    largest, norms = np.abs(gram).max(initial=0.0), np.diag(gram)
    if (norms < -1e-9 * largest).any() or np.abs(gram - gram.T).max(initial=0.0) > 1e-4 * largest:
        raise ValueError("gram is not a Gram matrix: it must be symmetric, with a diagonal >= 0")
    symmetric = (gram + gram.T) / 2
    np.fill_diagonal(symmetric, np.maximum(norms, 0.0))  # a score of zero may come out at -1e-20
    return symmetric


def _vector(name: str, values: Any, size: int | None) -> Array:
    vector = _float64(name, values)
    if vector.ndim != 1 or size not in (None, len(vector)):
        raise ValueError(f"{name} has shape {vector.shape}, it must be one number for each response")
    if not np.isfinite(vector).all():
        bad = int(np.argmin(np.isfinite(vector)))
        raise ValueError(f"response {bad}: {name} is {vector[bad]}, only finite values belong in a pool")
    return vector


def _float64(name: str, values: Any) -> Array:
    if isinstance(values, torch.Tensor):
        values = values.detach().cpu().to(torch.float64).numpy()
    array = np.asarray(values)
    if array.dtype.kind not in "biuf":
        raise ValueError(f"{name} must hold real numbers, not {array.dtype}")
    return array.astype(np.float64)
