"""Rollouts: the one record that flows from the sampler to the loss, and the legend of the shape letters.

P prompts, G responses per prompt, N = P * G responses (response n belongs to prompt n // G), L tokens of prompt and
response, T response tokens, V vocabulary. `rewards_PG` has one row per prompt; `logprobs_NT` is right-padded and starts
at each response's first token. A response has at least one token and a group at least one response, so no mean is over
an empty set.
"""

from dataclasses import dataclass, fields, replace
from typing import Any, Self

import torch
from torch import Tensor

from opo.rounding import levelled


@dataclass(frozen=True, eq=False)
class Rollouts:
    """G sampled responses to each of P prompts, with what was recorded when they were sampled.

    A reward of NaN marks a response that could not be scored: it stays out of every baseline and has zero advantage.
    Rewards of a group that are equal up to rounding are made equal (`opo.rounding`), before anyone compares them.
    """

    prompt_ids: list[list[int]]  # P lists of token ids
    tokens_NT: Tensor  # int64, right-padded with zeros
    mask_NT: Tensor  # bool, true on response tokens, the sampled end-of-text included
    rewards_PG: Tensor  # float64, NaN = unscored
    logprobs_NT: Tensor | None = None  # of the policy that sampled, natural log, at the sampling temperature
    versions_NT: Tensor | None = None  # int64, number of updates before the weights that sampled each token
    reference_logprobs_NT: Tensor | None = None  # of the frozen reference policy
    behaviour_logprobs_NT: Tensor | None = None  # of what drew the tokens, where it was not the policy at this prompt
    kl_rewards_NT: Tensor | None = None  # per-token reward that stands for a KL penalty
    values_NT: Tensor | None = None  # the critic's value before each token
    entropies_NT: Tensor | None = None  # nats, of the policy that sampled
    logit_energy_NT: Tensor | None = None  # 1 - 2 pi + sum pi^2 of each sampled token
    score_norm2_PG: Tensor | None = None  # squared norm of each response's score, over the trained parameters
    position_PG: Tensor | None = None  # a position in each response, in tokens
    greedy_rewards_P: Tensor | None = None  # reward of the greedy response to each prompt
    reference_rewards_P: Tensor | None = None  # reward of a response of the reference policy to each prompt
    answer_gains_NT: Tensor | None = None  # by how much the tokens up to each place made the reference answer likelier
    answers: list[list[str | None]] | None = None  # extracted answers, P lists of G
    finished_PG: Tensor | None = None  # bool, true where the response ended by itself, not at the token limit
    present_NT: Tensor | None = (
        None  # bool, true also on tokens between turns that the policy did not produce; None: mask_NT
    )

    def __post_init__(self) -> None:
        object.__setattr__(self, "rewards_PG", levelled(self.rewards_PG))

    @classmethod
    def from_lists(
        cls,
        prompt_ids: list[list[int]],
        response_ids: list[list[list[int]]],
        rewards_PG: Any,
        logprobs: list[list[list[float]]] | None = None,
        answers: list[list[str | None]] | None = None,
        versions: list[list[list[int]]] | None = None,
        **others: Any,
    ) -> Self:
        """Pad P lists of G responses into one record.

        Raises ValueError that names the prompt where groups differ in size, a response has no token, a log-probability
        is missing or not finite, a version is missing, or a reward is infinite.
        """
        rewards_PG = torch.as_tensor(rewards_PG, dtype=torch.float64)
        group_size = len(response_ids[0]) if response_ids else 0
        if not response_ids or len(prompt_ids) != len(response_ids):
            raise ValueError(
                f"{len(prompt_ids)} prompts but {len(response_ids)} groups of responses: give one group for each prompt"
            )
        for p, group in enumerate(response_ids):
            if len(group) != group_size or group_size == 0:
                raise ValueError(f"prompt {p}: {len(group)} responses where {group_size or 'at least one'} are needed")
            for g, response in enumerate(group):
                if not response:
                    raise ValueError(f"prompt {p}: response {g} has no token")
        if rewards_PG.shape != (len(prompt_ids), group_size):
            raise ValueError(f"rewards have shape {tuple(rewards_PG.shape)}, responses {(len(prompt_ids), group_size)}")
        if rewards_PG.isinf().any():
            raise ValueError(f"prompt {int(rewards_PG.isinf().any(1).nonzero()[0])}: a reward is infinite")
        responses = [torch.as_tensor(r, dtype=torch.int64) for group in response_ids for r in group]
        tokens_NT = torch.nn.utils.rnn.pad_sequence(responses, batch_first=True)
        lengths_N = torch.tensor([len(r) for r in responses])
        mask_NT = torch.arange(tokens_NT.shape[1]) < lengths_N[:, None]
        if logprobs is not None:
            others["logprobs_NT"] = _per_token(logprobs, lengths_N, torch.float64, "finite log-probabilities")
        if versions is not None:
            others["versions_NT"] = _per_token(versions, lengths_N, torch.int64, "versions of weights")
        return cls(prompt_ids, tokens_NT, mask_NT, rewards_PG, answers=answers, **others)

    @property
    def num_prompts(self) -> int:
        return self.rewards_PG.shape[0]

    @property
    def group_size(self) -> int:
        return self.rewards_PG.shape[1]

    @property
    def lengths_N(self) -> Tensor:
        """Response tokens of each response, int64."""
        return self.mask_NT.sum(1)

    @property
    def lengths_PG(self) -> Tensor:
        """Response tokens of each response by group, float64: the weights of the length-weighted baseline."""
        return self.lengths_N.view(self.num_prompts, self.group_size).double()

    @property
    def versions(self) -> set[int]:
        """Every version of the weights that sampled a token of this batch; ValueError where none was kept."""
        if self.versions_NT is None:
            raise ValueError("these rollouts do not say which version of the weights sampled them")
        return set(self.versions_NT[self.mask_NT].tolist())

    @property
    def returns_PG(self) -> Tensor:
        """Reward of each response plus its KL rewards summed over tokens; NaN where the reward is."""
        if self.kl_rewards_NT is None:
            return self.rewards_PG
        return levelled(self.rewards_PG + (self.kl_rewards_NT * self.mask_NT).sum(1).view_as(self.rewards_PG))

    @property
    def token_rewards_NT(self) -> Tensor:
        """The reward on each response's last token (zero if unscored) plus the KL rewards on every token."""
        last_NT = torch.arange(self.mask_NT.shape[1], device=self.mask_NT.device) == self.lengths_N[:, None] - 1
        rewards_NT = last_NT * self.rewards_PG.nan_to_num(0.0).view(-1, 1)
        return rewards_NT if self.kl_rewards_NT is None else rewards_NT + self.kl_rewards_NT * self.mask_NT

    @property
    def scored_N(self) -> Tensor:
        """Bool: true where the response has a reward."""
        return ~self.rewards_PG.isnan().view(-1)

    @property
    def cut_N(self) -> Tensor:
        """Bool: true where the token limit ended the response; nowhere, if that was not recorded."""
        return torch.zeros_like(self.scored_N) if self.finished_PG is None else ~self.finished_PG.view(-1)

    @property
    def first_N(self) -> Tensor:
        """For each response the index of the first one to the same prompt with the same tokens, int64.

        Duplicates have the same log-probabilities, so only the first goes through the model.
        """
        first_index: dict[tuple[int, bytes], int] = {}
        present_NT = self.mask_NT if self.present_NT is None else self.present_NT
        marked_NT = torch.where(self.mask_NT, self.tokens_NT, -2 - self.tokens_NT)
        rows = marked_NT.masked_fill(~present_NT, -1).cpu().numpy()
        return torch.tensor(
            [first_index.setdefault((n // self.group_size, row.tobytes()), n) for n, row in enumerate(rows)]
        )

    def rows_of(self, prompts: list[int]) -> Tensor:
        """Indices into N of all responses to these prompts, int64."""
        rows = [p * self.group_size + g for p in prompts for g in range(self.group_size)]
        return torch.tensor(rows, dtype=torch.int64)

    def select(self, prompts: list[int]) -> Self:
        """The same record of these prompts alone, in this order; padding is cut to the longest response left."""
        rows = self.rows_of(prompts)
        present_NT = self.mask_NT if self.present_NT is None else self.present_NT
        width = int(present_NT[rows].any(0).sum())
        picked: dict[str, Any] = {}
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, Tensor):
                picked[field.name] = value[rows][:, :width] if field.name.endswith("_NT") else value[prompts]
            elif isinstance(value, list):
                picked[field.name] = [value[p] for p in prompts]
            else:
                picked[field.name] = value
        return type(self)(**picked)

    def pick(self, index_PG: Tensor) -> Self:
        """The same prompts with responses `index_PG` of each group, in this order; a response may come several times."""
        rows = (torch.arange(self.num_prompts)[:, None] * self.group_size + index_PG).view(-1)
        picked: dict[str, Any] = {}
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, Tensor) and field.name.endswith("_NT"):
                picked[field.name] = value[rows]
            elif isinstance(value, Tensor) and field.name.endswith("_PG"):
                picked[field.name] = value.gather(1, index_PG)
            elif field.name == "answers" and value is not None:
                picked[field.name] = [
                    [row[g] for g in index] for row, index in zip(value, index_PG.tolist(), strict=True)
                ]
        return self.with_(**picked)

    def with_(self, **changes: Any) -> Self:
        """A copy with these fields replaced."""
        return replace(self, **changes)


def _per_token(numbers: list[list[list[Any]]], lengths_N: Tensor, dtype: torch.dtype, what: str) -> Tensor:
    """P lists of G lists, padded with zeros to (N, T); ValueError unless every token has a finite one."""
    rows = [torch.as_tensor(row, dtype=dtype) for group in numbers for row in group]
    for n, (row, length) in enumerate(zip(rows, lengths_N.tolist(), strict=True)):
        if len(row) != length or not row.isfinite().all():
            p, g = divmod(n, len(numbers[0]))
            raise ValueError(f"prompt {p}: response {g} needs {length} {what}")
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
