"""Hints and guided starts with a real sampler on a small policy, and the gains of a reference answer."""

from dataclasses import replace

import pytest
import torch
from batches import known_logprobs
from run_folders import SMALL

from opo.batch import Rollouts
from opo.cli.compose import composed
from opo.config.load import load_config
from opo.model.answer_gains import answer_gains
from opo.model.load import load_policy
from opo.parts.guides import GuidedStart, Hinted, hint_of
from opo.rollout.collect import encode_prompt, open_collector
from opo.tasks import make_task


@pytest.fixture(scope="module")
def bench():
    config = load_config(composed("train", [*SMALL, "reward.function=own_task:even_digits"]))
    policy = load_policy(config.model, 1.0, "cpu")
    task = make_task(config.task, config.reward.functions)
    with open_collector(policy, task, config.model, config.rollout, config.reward, 3) as collector:
        yield policy, collector


def test_a_solution_is_worked_out_and_begins_the_hint(bench):
    _, collector = bench
    prompt = collector.task.prompt(0)
    assert prompt.text == "5+3+3+1+2="
    assert prompt.metadata["solution"] == "8+3+1+2=11+1+2=12+2=14"
    assert hint_of(prompt, 0.5) == "8+3+1+2=11+"
    assert hint_of(replace(prompt, metadata={}), 0.01) == "1"
    assert hint_of(replace(prompt, metadata={}, answer=""), 0.5) == ""


def test_failed_groups_are_drawn_again_with_a_hint_and_stand_under_the_bare_prompt(bench):
    policy, collector = bench
    plain = Hinted(failed=0.0, share=0.5).collect(collector, policy, 6, 0, 1)
    every = Hinted(failed=1.0, share=0.5).collect(collector, policy, 6, 0, 1).rollouts
    assert every.prompt_ids == plain.rollouts.prompt_ids == collector.prompts(0, 6)[1]
    own_NT = policy.measure(every, list(range(6))).logprobs_NT
    torch.testing.assert_close(every.logprobs_NT, own_NT, rtol=0, atol=1e-5)
    hinted = [encode_prompt(collector.tokenizer, p.text + hint_of(p, 0.5)) for p in collector.prompts(0, 6)[0]]
    drawn_NT = policy.measure(every.with_(prompt_ids=hinted), list(range(6))).logprobs_NT
    torch.testing.assert_close(every.behaviour_logprobs_NT, drawn_NT, rtol=0, atol=1e-5)
    means_P = plain.rollouts.rewards_PG.mean(1)
    if not (means_P <= 0).any():
        assert plain.rollouts.behaviour_logprobs_NT is None


def test_only_groups_that_failed_are_asked_again(bench):
    policy, collector = bench
    first = collector.respond(*collector.prompts(0, 6), torch.Generator().manual_seed(0)).rollouts
    limit = float(first.rewards_PG.mean(1).median())
    part = Hinted(failed=limit, share=0.5)
    batch = part.collect(collector, policy, 6, 0, 5).rollouts
    again = Hinted(failed=-0.0, share=0.5).collect(collector, policy, 6, 0, 5).rollouts
    kept = [p for p in range(6) if float(again.rewards_PG[p].mean()) > limit]
    for p in kept:
        rows = batch.rows_of([p])
        ours, theirs = batch.select([p]), again.select([p])
        assert ours.tokens_NT.tolist() == theirs.tokens_NT.tolist()
        if batch.behaviour_logprobs_NT is not None:
            assert torch.equal(batch.behaviour_logprobs_NT[rows], known_logprobs(batch)[rows])


def test_a_guided_start_is_a_part_of_the_prompt_and_of_what_is_scored(bench):
    policy, collector = bench
    batch = GuidedStart(probability=1.0).collect(collector, policy, 6, 0, 1, guide=policy, version=3)
    _, bare = collector.prompts(0, 6)
    begun = [ids[len(b) :] for ids, b in zip(batch.rollouts.prompt_ids, bare, strict=True)]
    assert any(begun)
    assert all(len(start) <= 12 for start in begun)
    for p, start in enumerate(begun):
        text = collector.tokenizer.decode(start)
        assert all(response.startswith(text) for response in batch.responses[p])
        for g, response in enumerate(batch.responses[p]):
            assert float(batch.rollouts.rewards_PG[p, g]) == float(sum(c.isdigit() for c in response) % 2 == 0)
    own_NT = policy.measure(batch.rollouts, list(range(6))).logprobs_NT
    torch.testing.assert_close(batch.rollouts.logprobs_NT, own_NT, rtol=0, atol=1e-5)
    assert batch.rollouts.versions == {3}
    none = GuidedStart(probability=0.0).collect(collector, policy, 6, 0, 1, guide=policy, version=3)
    assert none.rollouts.prompt_ids == bare


def test_gains_are_differences_of_the_answers_likelihood(bench):
    policy, _ = bench
    prompts, answer = [[3, 4, 5], [6]], [[7, 8], [9]]
    responses = [[[1, 2, 3, 4, 5], [1, 2, 9]], [[5, 5, 5], [2]]]
    rollouts = Rollouts.from_lists(prompts, responses, [[0.0, 1.0]] * 2)

    def likely(context: list[int], ids: list[int]) -> float:
        one = Rollouts.from_lists([context], [[ids]], [[0.0]])
        return float(policy.measure(one, [0]).logprobs_NT.mean().exp())

    expected = torch.zeros(4, 5, dtype=torch.float64)
    for n in range(4):
        p, response = n // 2, responses[n // 2][n % 2]
        for start in range(2, len(response), 2):
            at = [likely(prompts[p] + response[:t], answer[p]) for t in (start - 2, start)]
            expected[n, start - 1] = at[1] - at[0]
    torch.testing.assert_close(answer_gains(policy, rollouts, answer, 2), expected, rtol=0, atol=1e-6)
    assert not answer_gains(policy, rollouts, [[], []], 2).any()
