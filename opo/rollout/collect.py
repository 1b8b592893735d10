"""From the task's prompts to scored rollouts: render, sample, decode, score."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from opo.batch import Rollouts
from opo.errors import UserError
from opo.rewards.runner import RewardRunner
from opo.rollout.base import Sampler, Samples, Sampling
from opo.tasks import Prompt, Task, render


@dataclass(frozen=True)
class Collected:
    """A batch of rollouts with its prompts and responses as text."""

    rollouts: Rollouts
    prompts: list[Prompt]
    responses: list[list[str]]
    samples: Samples
    reasons: dict[tuple[int, int], str]  # why (prompt, response) is unscored

    def rows(self, most: int) -> list[dict[str, Any]]:
        """One row per response, of the first `most` responses, for tables of completions."""
        group, rewards_N = self.rollouts.group_size, self.rollouts.rewards_PG.view(-1).tolist()
        return [
            {
                "prompt_index": self.prompts[n // group].index,
                "sample": n % group,
                "prompt": self.prompts[n // group].text,
                "response": self.responses[n // group][n % group],
                "reward": None if math.isnan(reward) else reward,
                "unscorable": self.reasons.get((n // group, n % group)),
                "tokens": len(self.samples.response_ids[n // group][n % group]),
                "logprob_nats": sum(self.samples.logprobs[n // group][n % group]),
                "finished": self.samples.finished[n // group][n % group],
                "version": min(self.samples.versions[n // group][n % group]),
            }
            for n, reward in enumerate(rewards_N[:most])
        ]


def stop_token_ids(tokenizer: Any, stop: tuple[str, ...]) -> tuple[int, ...]:
    """End-of-text, and every token whose text contains one of the task's stop strings (each within one token)."""
    ends = {tokenizer.eos_token_id} - {None}
    if stop:
        texts = tokenizer.batch_decode([[i] for i in range(len(tokenizer))])
        ends |= {i for i, text in enumerate(texts) if any(s in text for s in stop)}
    return tuple(sorted(ends))


def response_text(tokenizer: Any, ids: list[int], stop: tuple[str, ...]) -> str:
    """The response as text, without special tokens, cut before the first stop string."""
    text = tokenizer.decode(ids, skip_special_tokens=True)
    for s in stop:
        text = text.partition(s)[0]
    return text


@dataclass(frozen=True)
class Collector:
    """Samples and scores responses to prompts that are given by their number in the task's stream."""

    task: Task
    tokenizer: PreTrainedTokenizerBase
    sampler: Sampler
    rewards: RewardRunner
    max_length: int  # largest number of tokens of prompt and response together

    def prompts(self, first: int, count: int, split: str = "train") -> tuple[list[Prompt], list[list[int]]]:
        """Prompts number first .. first + count - 1 of a stream and their token ids."""
        prompts = [self.task.prompt(index, split) for index in range(first, first + count)]
        ids = [self.tokenizer.encode(render(p, self.tokenizer), add_special_tokens=not p.chat) for p in prompts]
        return prompts, ids

    def collect(
        self, first: int, count: int, sampling: Sampling, generator: torch.Generator, split: str = "train"
    ) -> Collected:
        """Sample and score `sampling.group_size` responses to each of `count` prompts."""
        prompts, ids = self.prompts(first, count, split)
        for prompt, tokens in zip(prompts, ids, strict=True):
            if not tokens or len(tokens) + sampling.max_new_tokens > self.max_length:
                raise UserError(
                    f"rollout.max_new_tokens={sampling.max_new_tokens}: prompt {prompt.index} of the {split} stream has {len(tokens)} "
                    f"tokens and the model holds {self.max_length} in all"
                )
        samples = self.sampler.generate(ids, sampling, generator)
        responses = [
            [response_text(self.tokenizer, r, self.task.stop) for r in group] for group in samples.response_ids
        ]
        scored = self.rewards.score(prompts, responses)
        rollouts = Rollouts.from_lists(
            ids,
            samples.response_ids,
            scored.rewards_PG,
            samples.logprobs,
            versions=samples.versions,
            answers=[[self.task.extract(r) for r in group] for group in responses],
            finished_PG=torch.tensor(samples.finished),
            prompt_index_P=torch.tensor([p.index for p in prompts]),
        )
        return Collected(rollouts, prompts, responses, samples, scored.reasons)
