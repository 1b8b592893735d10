"""Guides: samplers that help a policy along, with a hint or with the beginning of another policy's response."""

from dataclasses import replace

import torch

from opo.batch import Rollouts
from opo.config import parts as options
from opo.model.policy import Policy
from opo.rollout.collect import Collected, Collector, encode_prompt
from opo.system.seeding import generator_for, rng_for
from opo.tasks import Prompt, render


class Hinted(options.Hinted):
    """Guide: a group whose mean reward is at most `failed` is drawn again with the beginning of a reference solution in its prompt.

    The hint is the first `share` of the characters of the prompt's `solution` (in its metadata, else its answer), put in by `template`. The new
    responses then stand under the bare prompt: log-probabilities are the policy's there, and `behaviour_logprobs_NT` those with the
    hint. No step with a hint is certified on-policy. A prompt without a solution or answer is not asked again.
    Source: arXiv 2506.13923.
    """

    behaviour = True  # with a hint another distribution answers

    def collect(self, collector: Collector, policy: Policy, count: int, step: int, seed: int) -> Collected:
        """The batch of this step."""
        prompts, ids = collector.prompts(step * count, count)
        first = collector.respond(prompts, ids, generator_for(seed, "rollout", step))
        means_P = first.rollouts.rewards_PG.nanmean(1)
        failed = [p for p in range(count) if float(means_P[p]) <= self.failed and hint_of(prompts[p], self.share)]
        plain = first.rollouts
        assert plain.logprobs_NT is not None
        if not failed:
            return first
        texts = [self.template.format(prompt=prompts[p].text, hint=hint_of(prompts[p], self.share)) for p in failed]
        hinted = [replace(prompts[p], text=text, messages=()) for p, text in zip(failed, texts, strict=True)]
        tokenizer = collector.tokenizer
        hinted_ids = [encode_prompt(tokenizer, render(p, tokenizer), p.chat) for p in hinted]
        second = collector.respond([prompts[p] for p in failed], hinted_ids, generator_for(seed, "hinted", step))
        return put_in(first, second, failed, policy)


def hint_of(prompt: Prompt, share: float) -> str:
    """The beginning of the reference solution, at least one character of it; empty where there is none."""
    solution = str(prompt.metadata.get("solution") or prompt.answer)
    return solution[: max(1, int(share * len(solution)))]


def put_in(first: Collected, second: Collected, places: list[int], policy: Policy) -> Collected:
    """The groups of `second` in these places of `first`, under the prompts of `first`."""
    which = {place: i for i, place in enumerate(places)}

    def merged(ours: list, theirs: list) -> list:
        return [theirs[which[p]] if p in which else group for p, group in enumerate(ours)]

    samples = replace(
        first.samples,
        **{
            name: merged(getattr(first.samples, name), getattr(second.samples, name))
            for name in ("response_ids", "logprobs", "finished", "versions")
        },
    )
    ours, theirs = first.rollouts, second.rollouts
    assert ours.answers is not None
    assert theirs.answers is not None
    rewards_PG = ours.rewards_PG.clone()
    rewards_PG[places] = theirs.rewards_PG
    rollouts = Rollouts.from_lists(
        ours.prompt_ids,
        samples.response_ids,
        rewards_PG,
        samples.logprobs,
        versions=samples.versions,
        answers=merged(ours.answers, theirs.answers),
        finished_PG=torch.tensor(samples.finished),
    )
    assert rollouts.logprobs_NT is not None
    drawn_NT, own_NT = rollouts.logprobs_NT, rollouts.logprobs_NT.clone()
    rows = rollouts.rows_of(places)
    own_NT[rows] = (policy.measure(rollouts, places).logprobs_NT * rollouts.mask_NT)[rows]
    rollouts = rollouts.with_(logprobs_NT=own_NT, behaviour_logprobs_NT=drawn_NT)
    group = rollouts.group_size
    reasons = {key: why for key, why in first.reasons.items() if key[0] not in which}
    reasons |= {(places[p], g): why for (p, g), why in second.reasons.items() if g < group}
    return Collected(rollouts, first.prompts, merged(first.responses, second.responses), samples, reasons)


class GuidedStart(options.GuidedStart):
    """RLGF (PPO++): some groups begin where a sample of the guide was broken off, and only what the policy adds is learnt from.

        with probability `probability`, for a prompt:  u ~ guide(x),  l uniform in 1 .. |u| - 1,  the group answers (x, u_1 .. u_l)

    The guide is the reference policy, the one that training began with (stand-in: in the source a stronger one). The prefix becomes a part of
    the prompt, so that any group baseline is one for the prefix; the reward is of the whole text. At most half of the token limit goes to
    the prefix. What is trained is another distribution of starts, by design. A guide's sample of one token gives no prefix.
    AggreVaTeD, in which the guide finishes what the policy began, is left out.
    Source: arXiv 2306.11816 and its code (PPO++).
    """

    def collect(
        self, collector: Collector, policy: Policy, count: int, step: int, seed: int, guide: Policy, version: int
    ) -> Collected:
        """The batch of this step, with guided prompts among its prompts; `version` is the policy's."""
        prompts, ids = collector.prompts(step * count, count)
        rng, sampling = rng_for(seed, "guided", step), collector.sampling
        chosen = [p for p in range(count) if rng.random() < self.probability]
        prefixes: list[list[int]] = [[] for _ in prompts]
        if chosen:
            collector.sampler.load_weights(guide.model, version)
            most = max(1, sampling.max_new_tokens // 2)
            begun = collector.respond(
                [prompts[p] for p in chosen],
                [ids[p] for p in chosen],
                generator_for(seed, "guide", step),
                replace(sampling, group_size=1),
            )
            collector.sampler.load_weights(policy.whole(), version)
            for p, group in zip(chosen, begun.samples.response_ids, strict=True):
                longest = min(len(group[0]) - 1, most)
                prefixes[p] = group[0][: int(rng.integers(1, longest + 1))] if longest >= 1 else []
        rest = replace(sampling, max_new_tokens=sampling.max_new_tokens - max(map(len, prefixes)))
        return collector.respond(prompts, ids, generator_for(seed, "rollout", step), rest, prefixes)
