"""The shared prefix, the cut into micro-batches and padding change nothing but the work."""

from typing import Any

import pytest
import torch
from small import random_rollouts, small_gpt2, small_llama

from opo.batch import Rollouts
from opo.model.forward import microbatches, response_hidden
from opo.model.gradient import accumulate, open_pass
from opo.model.logprobs import CHUNK, token_logprobs
from opo.model.policy import Policy


def plain_gradient(
    model, rollouts: Rollouts, weights_NT: torch.Tensor, temperature: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """The slow twin: one response at a time, no padding, the model's own logits."""
    model.zero_grad()
    logprobs_NT = torch.zeros_like(weights_NT)
    for n in range(len(rollouts.lengths_N)):
        prompt, length = rollouts.prompt_ids[n // rollouts.group_size], int(rollouts.lengths_N[n])
        response = rollouts.tokens_NT[n, :length]
        ids = torch.cat([torch.tensor(prompt), response])[None]
        logits_TV = model(input_ids=ids).logits[0, len(prompt) - 1 : -1] / temperature
        logprobs_T = logits_TV.log_softmax(-1).gather(1, response[:, None]).squeeze(1)
        (-(weights_NT[n, :length] * logprobs_T).sum()).backward()
        logprobs_NT[n, :length] = logprobs_T.detach()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]), logprobs_NT


@pytest.mark.parametrize("shared_prefix", [True, False])
@pytest.mark.parametrize("token_budget", [1, 17, 40, 10_000])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("chunk", [CHUNK, (4, 7)])  # the second one makes the head's logits in tiles
def test_gradient_equals_one_response_at_a_time(shared_prefix, token_budget, temperature, chunk, monkeypatch):
    monkeypatch.setitem(token_logprobs.__kwdefaults__, "chunk", chunk)
    model, rollouts = small_gpt2(), random_rollouts()
    weights_NT = torch.randn(rollouts.mask_NT.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    expected, logprobs_NT = plain_gradient(model, rollouts, weights_NT * rollouts.mask_NT, temperature)
    model.zero_grad()
    policy = Policy(model, None, temperature, token_budget=token_budget, shared_prefix=shared_prefix)  # type: ignore[arg-type]
    seen = accumulate(policy, rollouts, [2, 0, 3, 1], weights_NT)
    actual = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    assert (actual - expected).norm() <= 1e-12 * expected.norm()
    assert torch.allclose(seen.logprobs_NT, logprobs_NT, rtol=0, atol=1e-12)


@pytest.mark.parametrize("entropy_coef", [0.0, 0.3])
def test_responses_that_are_the_same_go_through_the_model_once(entropy_coef):
    model, rollouts = small_gpt2(), random_rollouts()
    same = [[0, 0, 0], [0, 1, 0], [0, 1, 2], [0, 1, 1]]
    rows = torch.tensor([3 * p + g for p, group in enumerate(same) for g in group])
    rollouts = rollouts.with_(tokens_NT=rollouts.tokens_NT[rows], mask_NT=rollouts.mask_NT[rows])
    assert rollouts.first_N.tolist() == rows.tolist()
    weights_NT = torch.randn(rollouts.mask_NT.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    policy = Policy(model, None, token_budget=40)  # type: ignore[arg-type]
    (part,) = microbatches(rollouts, [0, 1, 2, 3], 10_000)
    assert len(part.rows_M) == 12
    scores, width = policy.scores(rollouts, part, entropy_grad=True), rollouts.mask_NT.shape[1]
    objective = (weights_NT[part.rows_M, :width] * scores.logprobs_MT).sum()
    (objective + entropy_coef * scores.entropies_MT.sum() / rollouts.mask_NT.sum()).neg().backward()
    expected = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    model.zero_grad()
    (part,) = microbatches(rollouts, [0, 1, 2, 3], 10_000, distinct=True)
    assert sorted(part.rows_M.tolist()) == sorted(set(rows.tolist()))
    bonus_NT = entropy_coef * rollouts.mask_NT.double() / rollouts.mask_NT.sum()
    seen = accumulate(policy, rollouts, [0, 1, 2, 3], weights_NT, bonus_NT if entropy_coef else None)
    actual = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    assert (actual - expected).norm() <= 1e-12 * expected.norm()
    assert torch.equal(seen.logprobs_NT, seen.logprobs_NT[rows])
    assert bool((seen.entropies_NT[rollouts.mask_NT] > 0).all())


@pytest.mark.parametrize("silent", [[1], [0, 2, 3], [0, 1, 2, 3]])
def test_prompts_without_weight_are_measured_and_add_nothing(silent):
    model, rollouts = small_gpt2(), random_rollouts()
    weights_NT = torch.randn(rollouts.mask_NT.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    weights_NT[rollouts.rows_of(silent)] = 0.0
    expected, logprobs_NT = plain_gradient(model, rollouts, weights_NT * rollouts.mask_NT, 1.0)
    model.zero_grad(set_to_none=True)
    seen = accumulate(Policy(model, None, token_budget=40), rollouts, [0, 1, 2, 3], weights_NT)  # type: ignore[arg-type]
    actual = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    assert (actual - expected).norm() <= 1e-12 * expected.norm()
    assert torch.allclose(seen.logprobs_NT, logprobs_NT, rtol=0, atol=1e-12)
    assert bool((seen.entropies_NT[rollouts.mask_NT] > 0).all())


@pytest.mark.parametrize("token_budget", [40, 10_000])
@pytest.mark.parametrize("likely", [[0, 1, 2, 3], [0, 2], []])
@pytest.mark.parametrize("silent", [[], [0, 2], [1], [0, 1, 2, 3]])
@pytest.mark.parametrize("entropy_coef", [0.0, 0.3])
def test_an_open_pass_gives_what_two_passes_give(token_budget, likely, silent, entropy_coef, generator):
    model, rollouts = small_gpt2(), random_rollouts()
    policy, prompts = Policy(model, None, token_budget=token_budget), [2, 0, 3, 1]  # type: ignore[arg-type]
    likely_NT, bonus_NT = torch.zeros(rollouts.mask_NT.shape), None
    likely_NT[rollouts.rows_of(likely)] = 1.0
    if entropy_coef:
        bonus_NT = entropy_coef * rollouts.mask_NT.double() / rollouts.mask_NT.sum()
        bonus_NT[rollouts.rows_of(silent)] = 0.0
    measured = policy.measure(rollouts, prompts)
    weights_NT = measured.logprobs_NT * torch.randn(
        measured.logprobs_NT.shape, generator=generator, dtype=torch.float64
    )
    weights_NT[rollouts.rows_of(silent)] = 0.0

    def gradient(opened: Any) -> tuple[torch.Tensor, Any]:
        model.zero_grad(set_to_none=True)
        seen = accumulate(policy, rollouts, prompts, weights_NT, bonus_NT, opened)
        return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]), seen

    expected, twice = gradient(None)
    now, opened = open_pass(policy, rollouts, prompts, likely_NT, bonus_NT)
    assert (opened is not None) == (token_budget > 40 and bool(likely or (bonus_NT is not None and len(silent) < 4)))
    actual, once = gradient(opened)
    assert (actual - expected).norm() <= 1e-12 * expected.norm()
    for found in (now, once):
        assert torch.allclose(found.logprobs_NT, twice.logprobs_NT, rtol=0, atol=1e-12)
        assert torch.allclose(found.entropies_NT, twice.entropies_NT, rtol=0, atol=1e-12)


@pytest.mark.parametrize("vocabulary", [29, 9000])  # the second one's logits are made in tiles
def test_a_backward_pass_in_half_precision_rounds_the_gradient_and_nothing_else(vocabulary):
    model, rollouts = small_llama(vocabulary=vocabulary), random_rollouts(prompts=40)
    weights_NT = torch.randn(rollouts.mask_NT.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))

    def gradient(compute: Any) -> tuple[torch.Tensor, torch.Tensor]:
        model.zero_grad()
        policy = Policy(model, None, compute=compute)  # type: ignore[arg-type]
        seen = accumulate(policy, rollouts, list(range(40)), weights_NT)
        return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]), seen.logprobs_NT

    (exact, logprobs_NT), (rounded, same_NT), (_, half_NT) = map(gradient, ("float32", "bfloat16_backward", "bfloat16"))
    assert torch.equal(logprobs_NT, same_NT)
    assert 1e-4 < (rounded - exact).norm() / exact.norm() < 2e-2
    assert 1e-4 < (half_NT - logprobs_NT).abs().max() < 0.3


def test_entropy_and_its_gradient():
    model, rollouts = small_gpt2(), random_rollouts()
    model.zero_grad()
    policy = Policy(model, None, token_budget=30)  # type: ignore[arg-type]
    zero_NT = torch.zeros(rollouts.mask_NT.shape, dtype=torch.float64)
    seen = accumulate(policy, rollouts, [0, 1, 2, 3], zero_NT, 0.3 * rollouts.mask_NT.double() / rollouts.mask_NT.sum())
    actual = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    model.zero_grad()
    total = torch.zeros((), dtype=torch.float64)
    for n in range(len(rollouts.lengths_N)):
        prompt, length = rollouts.prompt_ids[n // rollouts.group_size], int(rollouts.lengths_N[n])
        ids = torch.cat([torch.tensor(prompt), rollouts.tokens_NT[n, :length]])[None]
        logprobs_TV = model(input_ids=ids).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
        entropies_T = -(logprobs_TV.exp() * logprobs_TV).sum(-1)
        assert torch.allclose(entropies_T, seen.entropies_NT[n, :length], rtol=0, atol=1e-12)
        total = total + entropies_T.sum()
    (-0.3 * total / rollouts.mask_NT.sum()).backward()
    expected = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    assert (actual - expected).norm() <= 1e-12 * expected.norm()


@pytest.mark.parametrize("token_budget", [1, 20, 33, 64, 1000])
def test_microbatches_hold_every_response_once_and_keep_the_budget(token_budget):
    rollouts = random_rollouts(prompts=7, group=5, seed=3)
    seen: list[int] = []
    for part in microbatches(rollouts, [6, 2, 4, 0], token_budget):
        rows = part.rows_M.tolist()
        seen += rows
        assert [part.prompts[i] for i in part.prompt_of_M] == [n // 5 for n in rows]
        longest_prompt = max(len(rollouts.prompt_ids[p]) for p in part.prompts)
        cost = len(part.prompts) * longest_prompt + len(rows) * int(rollouts.lengths_N[rows].max())
        assert cost <= token_budget or len(rows) == 1
    assert sorted(seen) == sorted(p * 5 + g for p in [6, 2, 4, 0] for g in range(5))


def test_prompt_is_encoded_once_for_its_group():
    model, rollouts = small_gpt2(), random_rollouts(prompts=2, group=3)
    fed = []
    decoder: Any = model.transformer
    hook = decoder.register_forward_pre_hook(lambda m, a, kw: fed.append(kw["input_ids"].shape), with_kwargs=True)
    (part,) = microbatches(rollouts, [0, 1], 10_000)
    response_hidden(decoder, rollouts, part)
    hook.remove()
    assert fed[0][0] == 2  # two prompts
    assert fed[1] == (6, int(rollouts.lengths_N.max()) - 1)  # six responses, without their prompts
