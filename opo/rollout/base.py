"""What every sampler offers, whichever engine is behind it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from transformers import PreTrainedModel


@dataclass(frozen=True)
class Sampling:
    """How responses are drawn. The temperature is part of the policy: logits are divided by it wherever log-probabilities are computed."""

    group_size: int
    max_new_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0  # below 1 only for evaluation and for off-policy algorithms
    top_k: int = 0  # 0 = no truncation
    greedy: bool = False
    stop_token_ids: tuple[int, ...] = ()  # any of these ends a response and is its last token


@dataclass(frozen=True)
class Samples:
    """P lists of G responses with the log-probability of every sampled token under the policy that sampled it."""

    response_ids: list[list[list[int]]]
    logprobs: list[list[list[float]]]
    finished: list[list[bool]]  # ended by a stop token, not by the limit
    versions: list[list[list[int]]]  # of the weights that sampled each token


class Sampler(Protocol):
    """An engine that samples from the policy. `load_weights` must be called before the first `generate` and after every update."""

    def load_weights(self, model: PreTrainedModel, version: int) -> None:
        """Sample with `model`'s present weights from now on, and drop every cache that was computed with earlier ones."""
        ...

    def generate(
        self,
        prompt_ids: list[list[int]],
        sampling: Sampling,
        generator: torch.Generator,
        which: Sequence[int] | None = None,
    ) -> Samples:
        """Sample `group_size` responses to each prompt; the same generator state gives the same samples.

        `which` are the numbers of the prompts to take (none given: all); their samples do not depend on who takes the others.
        """
        ...

    def close(self) -> None:
        """Free processes and memory."""
        ...


def grouped(flat: list[Any], group: int) -> list[list[Any]]:
    """What is in the order of all responses, as one list for each prompt's group."""
    return [flat[i : i + group] for i in range(0, len(flat), group)]
