"""From the task's prompts to scored rollouts: render, sample, decode, score."""

import json
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from opo.batch import Rollouts
from opo.config.schema import ModelConfig, RewardConfig, RolloutConfig
from opo.errors import UserError
from opo.model.load import embedding_rows, max_length
from opo.model.policy import Policy
from opo.rewards.runner import RewardRunner, ScoredRewards
from opo.rollout.base import Sampler, Samples, Sampling
from opo.rollout.factory import make_sampler
from opo.system.world import World
from opo.tasks import Prompt, Task, render

GAVE_NONE = "not a number: NoneType"  # the reason of a response whose scorer returned None
LOOK_AHEAD, LOOK_AHEAD_S = 16384, 5.0  # prompts that are read, and seconds spent on it, before a run starts


@dataclass(frozen=True)
class Collected:
    """A batch of rollouts with its prompts and responses as text."""

    rollouts: Rollouts
    prompts: list[Prompt]
    responses: list[list[str]]
    samples: Samples
    reasons: dict[tuple[int, int], str]  # why (prompt, response) is unscored
    parts: dict[str, torch.Tensor] = field(default_factory=dict)  # (P, G) by name, of a reward of several functions

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
                "reward_parts": self._parts_of(n) if self.parts and not math.isnan(reward) else None,
                "unscorable": self.reasons.get((n // group, n % group)),
                "tokens": len(self.samples.response_ids[n // group][n % group]),
                "logprob_nats": sum(self.samples.logprobs[n // group][n % group]),
                "finished": self.samples.finished[n // group][n % group],
                "version": min(self.samples.versions[n // group][n % group]),
            }
            for n, reward in enumerate(rewards_N[:most])
        ]

    def _parts_of(self, n: int) -> str:
        return json.dumps({name: float(part_PG.view(-1)[n]) for name, part_PG in self.parts.items()})

    def refuse_failed_rewards(self, task: Task) -> None:
        """Raise UserError where the scorer failed for every response: it raised, crashed, took too long or gave no number.

        None, a scorer's way to give no reward on purpose, is no failure.
        """
        failed = [reason for reason in self.reasons.values() if reason != GAVE_NONE]
        if failed and len(failed) == self.rollouts.rewards_PG.numel():
            scorer = getattr(task, "scored_by", f"task={task.name}")
            raise UserError(
                f"{scorer}: failed for all {len(failed)} responses of a batch, for the first with {failed[0]}"
            )


def stop_token_ids(policy: Policy, stop: tuple[str, ...]) -> tuple[int, ...]:
    """Every token that ends a response: the tokenizer's end of text, those of the model's generation config (there may be several,
    such as the end of a turn), and each whose text contains one of the task's stop strings.
    """
    tokenizer: Any = policy.tokenizer
    named = getattr(getattr(policy.causal_lm, "generation_config", None), "eos_token_id", None)
    ends = {tokenizer.eos_token_id, *(named if isinstance(named, list | tuple) else [named])} - {None}
    if stop:
        texts = tokenizer.batch_decode([[i] for i in range(len(tokenizer))])
        ends |= {i for i, text in enumerate(texts) if any(s in text for s in stop)}
    return tuple(sorted(ends))


def encode_prompt(tokenizer: Any, text: str, chat: bool = False) -> list[int]:
    """Token ids of a prompt, special tokens as the tokenizer adds them (with `chat` the template has written them already).

    The beginning of text comes once, also where the text spells it and the tokenizer adds it, and no end of text after the prompt.
    """
    ids = list(tokenizer.encode(text, add_special_tokens=not chat))
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    if bos is not None and ids[:2] == [bos, bos]:
        ids = ids[1:]
    if not chat and eos is not None and len(ids) > 1 and ids[-1] == eos and not text.endswith(tokenizer.eos_token):
        ids = ids[:-1]
    return ids


def response_text(tokenizer: Any, ids: list[int], stop: tuple[str, ...]) -> str:
    """The response as text, without special tokens, cut before the first stop string."""
    text = tokenizer.decode(ids, skip_special_tokens=True)
    for s in stop:
        text = text.partition(s)[0]
    return text


@dataclass
class Count:
    """How many response tokens have been sampled."""

    tokens: int = 0


@dataclass(frozen=True)
class Collector:
    """Samples and scores responses to prompts that are given by their number in the task's stream."""

    task: Task
    tokenizer: PreTrainedTokenizerBase
    sampler: Sampler
    rewards: RewardRunner
    sampling: Sampling  # unless another is asked for
    max_length: int  # tokens of prompt and response that the model has positions for
    vocabulary: int  # tokens that the model has an embedding for
    world: World = field(default_factory=World)  # the ranks that share the prompts; every one gets the whole batch
    sampled: Count = field(default_factory=Count)  # by all ranks, for whatever purpose

    def prompts(self, first: int, count: int, split: str = "train") -> tuple[list[Prompt], list[list[int]]]:
        """Prompts number first .. first + count - 1 of a stream and their token ids. Raises UserError for one that does not fit."""
        prompts = [self.task.prompt(index, split) for index in range(first, first + count)]
        ids = [encode_prompt(self.tokenizer, render(p, self.tokenizer), p.chat) for p in prompts]
        for prompt, tokens in zip(prompts, ids, strict=True):
            if not tokens or len(tokens) + self.sampling.max_new_tokens > self.max_length:
                raise UserError(
                    f"rollout.max_new_tokens={self.sampling.max_new_tokens}: prompt {prompt.index} of the {split} stream has "
                    f"{len(tokens)} tokens and the model holds {self.max_length} in all"
                )
            if max(tokens) >= self.vocabulary:
                token = self.tokenizer.convert_ids_to_tokens(max(tokens))
                raise UserError(
                    f"model: prompt {prompt.index} of the {split} stream has the token {token!r} ({max(tokens)}), and the model's embedding "
                    f"has {self.vocabulary} rows"
                )
        return prompts, ids

    def look_ahead(self, first: int, count: int, split: str = "train") -> None:
        """Raise UserError now for a prompt of these that will not fit, as far as `LOOK_AHEAD` prompts and seconds reach."""
        self.world.by_first(lambda: self._look_ahead(first, count, split))

    def _look_ahead(self, first: int, count: int, split: str) -> None:
        deadline = time.monotonic() + LOOK_AHEAD_S
        for start in range(first, first + min(count, LOOK_AHEAD), 64):
            self.prompts(start, min(64, first + count - start), split)
            if time.monotonic() > deadline:
                return

    def collect(
        self, first: int, count: int, generator: torch.Generator, sampling: Sampling | None = None, split: str = "train"
    ) -> Collected:
        """Sample and score `group_size` responses to each of `count` prompts."""
        return self.respond(*self.prompts(first, count, split), generator, sampling)

    def respond(
        self,
        prompts: list[Prompt],
        ids: list[list[int]],
        generator: torch.Generator,
        sampling: Sampling | None = None,
        begun: Sequence[list[int]] | None = None,
    ) -> Collected:
        """Sample and score responses to these prompts, which `prompts` has encoded; every rank its part, and all have the whole.

        `begun` are tokens that a response to each prompt begins with: they count as the prompt's, and are scored with what follows.
        """
        if begun is not None:
            ids = [[*prompt, *start] for prompt, start in zip(ids, begun, strict=True)]
        which = self.world.mine(range(len(prompts)))
        samples = self.sampler.generate(ids, sampling or self.sampling, generator, which)
        responses = [
            [response_text(self.tokenizer, [*(begun[p] if begun else ()), *r], self.task.stop) for r in group]
            for p, group in zip(which, samples.response_ids, strict=True)
        ]
        scored = self.rewards.score([prompts[p] for p in which], responses)
        samples, responses, scored = _together(self.world.gather((which, samples, responses, scored)))
        self.sampled.tokens += sum(len(ids) for group in samples.response_ids for ids in group)
        return Collected(
            self._rollouts(prompts, ids, samples, responses, scored.rewards_PG),
            prompts,
            responses,
            samples,
            scored.reasons,
            dict(zip(getattr(self.task, "parts", ()), scored.parts_PGK.unbind(2), strict=True)),
        )

    def _rollouts(
        self,
        prompts: list[Prompt],
        ids: list[list[int]],
        samples: Samples,
        responses: list[list[str]],
        rewards_PG: torch.Tensor,
    ) -> Rollouts:
        return Rollouts.from_lists(
            ids,
            samples.response_ids,
            rewards_PG,
            samples.logprobs,
            versions=samples.versions,
            answers=[[self.task.extract(r) for r in group] for group in responses],
            finished_PG=torch.tensor(samples.finished),
        )


def joined(first: Collected, second: Collected) -> Collected:
    """Two batches of responses to the same prompts as one, the second's behind the first's in every group."""
    size = first.rollouts.group_size
    samples = Samples(
        *(
            [[*a, *b] for a, b in zip(getattr(first.samples, f.name), getattr(second.samples, f.name), strict=True)]
            for f in fields(Samples)
        )
    )
    left, right = first.rollouts, second.rollouts
    assert left.answers is not None
    assert right.answers is not None
    rollouts = Rollouts.from_lists(
        left.prompt_ids,
        samples.response_ids,
        torch.cat([left.rewards_PG, right.rewards_PG], 1),
        samples.logprobs,
        versions=samples.versions,
        answers=[[*a, *b] for a, b in zip(left.answers, right.answers, strict=True)],
        finished_PG=torch.tensor(samples.finished),
    )
    responses = [[*a, *b] for a, b in zip(first.responses, second.responses, strict=True)]
    reasons = first.reasons | {(p, g + size): reason for (p, g), reason in second.reasons.items()}
    parts = {name: torch.cat([part_PG, second.parts[name]], 1) for name, part_PG in first.parts.items()}
    return Collected(rollouts, first.prompts, responses, samples, reasons, parts)


def _together(
    parts: list[tuple[list[int], Samples, list[list[str]], ScoredRewards]],
) -> tuple[Samples, list[list[str]], ScoredRewards]:
    """What the ranks have sampled and scored, each its own prompts, as one batch in the prompts' order."""
    place = {p: (rank, i) for rank, (which, *_) in enumerate(parts) for i, p in enumerate(which)}
    order = [place[p] for p in sorted(place)]

    def gathered(name: str) -> list[Any]:
        return [getattr(parts[rank][1], name)[i] for rank, i in order]

    samples = Samples(*(gathered(field.name) for field in fields(Samples)))
    rewards_PG, parts_PGK = (
        torch.stack([getattr(parts[rank][3], name)[i] for rank, i in order]) for name in ("rewards_PG", "parts_PGK")
    )
    reasons = {(which[p], g): why for which, _, _, scored in parts for (p, g), why in scored.reasons.items()}
    responses = [parts[rank][2][i] for rank, i in order]
    return samples, responses, ScoredRewards(rewards_PG, dict(sorted(reasons.items())), parts_PGK)


@contextmanager
def open_collector(
    policy: Policy, task: Task, model: ModelConfig, rollout: RolloutConfig, reward: RewardConfig, version: int = 0
) -> Iterator[Collector]:
    """Everything that samples and scores: the engine with the policy's weights, reward workers, and how responses are drawn.

    `version` says how many updates the weights have seen. Engine and workers are closed on the way out.
    """
    sampling = Sampling(
        rollout.group_size,
        rollout.max_new_tokens,
        rollout.temperature,
        rollout.top_p,
        rollout.top_k,
        stop_token_ids=stop_token_ids(policy, task.stop),
    )
    world = policy.world
    with (
        RewardRunner(task, reward.timeout_s, reward.workers) as rewards,
        make_sampler(model, rollout, world) as sampler,
    ):
        sampler.load_weights(policy.whole(), version)
        longest, rows = max_length(policy.causal_lm), embedding_rows(policy.causal_lm)
        yield Collector(task, policy.tokenizer, sampler, rewards, sampling, longest, rows, world)
