"""Sampling with transformers: log-probabilities, the distribution, what ends a response, and independence of the company."""

import pytest
import torch
from scipy import stats
from small import VOCABULARY, small_gpt2, small_llama
from transformers import Gemma3TextConfig, LlamaConfig, MistralConfig, Qwen2Config

from opo.batch import Rollouts
from opo.model.policy import Policy
from opo.rollout import decoding
from opo.rollout.base import Sampling
from opo.rollout.hf import HfSampler, draw, policy_logits

PROMPTS = [[3, 4, 5], [6], [7, 8, 9, 10, 11]]


def sampler(model, **keywords) -> HfSampler:
    made = HfSampler(**keywords)
    made.load_weights(model, 5)
    return made


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_logprobs_are_those_of_the_policy(temperature):
    model = small_gpt2()
    sampling = Sampling(4, 12, temperature, stop_token_ids=(0, 1, 2))
    samples = sampler(model).generate(PROMPTS, sampling, torch.Generator().manual_seed(0))
    rollouts = Rollouts.from_lists(PROMPTS, samples.response_ids, torch.zeros(3, 4), samples.logprobs)
    measured = Policy(model, None, temperature).measure(rollouts, [0, 1, 2])  # type: ignore[arg-type]
    assert rollouts.logprobs_NT is not None
    assert torch.allclose(measured.logprobs_NT, rollouts.logprobs_NT, rtol=0, atol=1e-12)
    assert samples.versions == [[[5] * len(r) for r in group] for group in samples.response_ids]


def test_a_stop_token_ends_a_response_and_belongs_to_it():
    samples = sampler(small_gpt2()).generate(
        PROMPTS, Sampling(8, 10, stop_token_ids=(0, 1, 2, 3)), torch.Generator().manual_seed(1)
    )
    responses = [r for group in samples.response_ids for r in group]
    finished = [f for group in samples.finished for f in group]
    assert any(finished)
    assert not all(finished)
    for response, done in zip(responses, finished, strict=True):
        assert done == (response[-1] in (0, 1, 2, 3))
        assert len(response) == 10 or done
        assert not set(response[:-1]) & {0, 1, 2, 3}


def test_samples_depend_on_their_own_random_numbers_alone():
    model, sampling = small_llama(), Sampling(4, 12, stop_token_ids=(0, 1, 2, 3, 4))
    together = sampler(model).generate(PROMPTS, sampling, torch.Generator().manual_seed(2))
    apart = sampler(model, max_sequences=4).generate(PROMPTS, sampling, torch.Generator().manual_seed(2))
    assert together.response_ids == apart.response_ids
    other = sampler(model).generate(PROMPTS, sampling, torch.Generator().manual_seed(3))
    assert together.response_ids != other.response_ids


def test_first_token_follows_the_policy():
    """Chi-square of 4000 first tokens against the softmax; fails for a wrong temperature (checked below)."""
    model = small_gpt2()
    with torch.no_grad():
        logits_V = model(input_ids=torch.tensor([PROMPTS[0]])).logits[0, -1]
    samples = sampler(model, max_sequences=4000).generate(
        [PROMPTS[0]], Sampling(4000, 1, 0.8), torch.Generator().manual_seed(4)
    )
    counts_V = torch.bincount(torch.tensor([r[0] for r in samples.response_ids[0]]), minlength=VOCABULARY).double()

    def p_value(temperature: float) -> float:
        expected_V = 4000 * (logits_V / temperature).softmax(-1)
        keep_V = expected_V >= 5
        observed = torch.cat([counts_V[keep_V], counts_V[~keep_V].sum()[None]]).numpy()
        expected = torch.cat([expected_V[keep_V], expected_V[~keep_V].sum()[None]]).numpy()
        return stats.chisquare(observed[expected > 0], expected[expected > 0]).pvalue

    assert p_value(0.8) > 1e-3
    assert p_value(1.0) < 1e-6


def test_inverse_cdf_hits_each_interval():
    logprobs_BV = torch.tensor([[0.2, 0.0, 0.5, 0.3]], dtype=torch.float64).log().expand(5, 4)
    uniforms_B = torch.tensor([0.0, 0.199999, 0.2, 0.699999, 0.999999], dtype=torch.float64)
    tokens_B, drawn_B = draw(logprobs_BV + 7, torch.arange(5), uniforms_B)
    assert tokens_B.tolist() == [0, 0, 2, 2, 3]
    torch.testing.assert_close(drawn_B, logprobs_BV[0, tokens_B], rtol=0, atol=1e-15)
    assert draw(logprobs_BV, torch.tensor([0, 0, 3]), None)[0].tolist() == [2] * 3


@pytest.mark.parametrize("vocabulary", [7, 128, 129, 1000, 49_152])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_blocks_of_the_vocabulary_draw_what_one_sum_over_it_draws(vocabulary, dtype):
    generator = torch.Generator().manual_seed(vocabulary)
    s_BV = (5 * torch.randn(64, vocabulary, generator=generator)).to(dtype)
    s_BV[:, torch.rand(vocabulary, generator=generator) < 0.3] = -torch.inf
    uniforms_B = torch.rand(64, generator=generator, dtype=torch.float64)
    uniforms_B[:2] = torch.tensor([0.0, 1 - 2**-53], dtype=torch.float64)
    exact_BV = s_BV.double().log_softmax(1)
    cdf_BV = exact_BV.exp().cumsum(1)
    tokens_B, drawn_B = draw(s_BV, torch.arange(64), uniforms_B)
    token_B1 = tokens_B[:, None]
    tolerance = 2 * torch.finfo(dtype).eps * float(s_BV[s_BV.isfinite()].abs().max())
    upper_B, mass_B = cdf_BV.gather(1, token_B1)[:, 0], exact_BV.gather(1, token_B1).exp()[:, 0]
    assert bool((mass_B > 0).all())
    assert bool((uniforms_B <= upper_B + tolerance).all())
    assert bool((uniforms_B >= upper_B - mass_B - tolerance).all())
    torch.testing.assert_close(drawn_B, exact_BV.gather(1, token_B1)[:, 0], rtol=0, atol=tolerance)


@pytest.mark.parametrize("config", [MistralConfig, Gemma3TextConfig])
def test_caches_with_a_window_give_the_log_probabilities_of_a_plain_pass(config):
    layers = None if config is MistralConfig else ["sliding_attention", "full_attention"]
    model = small_llama(kind=config, head_dim=32, sliding_window=4, layer_types=layers, initializer_range=0.02)
    samples = sampler(model).generate(PROMPTS, Sampling(4, 12, stop_token_ids=(0, 1)), torch.Generator().manual_seed(0))
    for prompt, group, logprobs in zip(PROMPTS, samples.response_ids, samples.logprobs, strict=True):
        for response, found in zip(group, logprobs, strict=True):
            ids = torch.tensor([prompt + response])
            logits_TV = model(input_ids=ids).logits[0, len(prompt) - 1 : -1]
            expected_T = logits_TV.log_softmax(-1).gather(1, torch.tensor(response)[:, None])[:, 0]
            assert torch.allclose(torch.tensor(found), expected_T.detach(), atol=1e-5)


def test_truncation_keeps_the_head_of_the_distribution_and_renormalises():
    logits_BV = torch.tensor([[0.4, 0.3, 0.2, 0.1]], dtype=torch.float64).log()
    top_k = policy_logits(logits_BV, Sampling(1, 1, top_k=2)).softmax(1)
    assert torch.allclose(top_k, torch.tensor([[4 / 7, 3 / 7, 0, 0]], dtype=torch.float64))
    top_p = policy_logits(logits_BV, Sampling(1, 1, top_p=0.65)).softmax(1)
    assert torch.allclose(top_p, torch.tensor([[4 / 7, 3 / 7, 0, 0]], dtype=torch.float64))


def test_greedy_takes_the_most_likely_token():
    model = small_gpt2()
    samples = sampler(model).generate([PROMPTS[0]], Sampling(1, 1, greedy=True), torch.Generator().manual_seed(0))
    assert samples.response_ids[0][0][0] == int(model(input_ids=torch.tensor([PROMPTS[0]])).logits[0, -1].argmax())


@pytest.mark.parametrize("shape", [LlamaConfig, Qwen2Config])  # without and with biases
def test_packed_weights_are_those_of_the_moment_and_leave_no_trace(shape, monkeypatch, generator):
    packed, slow = set(), []
    plain = decoding.sdpa_attention_forward
    monkeypatch.setattr(
        decoding, "sdpa_attention_forward", lambda *args, **rest: slow.append(args[1].shape[2]) or plain(*args, **rest)
    )
    wide = {"hidden_size": 512, "intermediate_size": 512, "num_attention_heads": 4, "num_key_value_heads": 2}
    model = small_llama(vocabulary=256, kind=shape, initializer_range=0.05, **wide)  # large enough to be packed
    for module in model.modules():
        if isinstance(module, torch.nn.Linear):
            module.register_forward_pre_hook(lambda layer, _: packed.add(layer) if "forward" in vars(layer) else None)
    made = sampler(model)
    for _ in range(2):
        packed.clear()
        samples = made.generate(PROMPTS, Sampling(4, 12), torch.Generator().manual_seed(1))
        assert model.config._attn_implementation == "sdpa"
        assert not any("forward" in vars(module) for module in model.modules())
        rollouts = Rollouts.from_lists(PROMPTS, samples.response_ids, torch.zeros(3, 4), samples.logprobs)
        measured = Policy(model, None).measure(rollouts, [0, 1, 2])  # type: ignore[arg-type]
        assert rollouts.logprobs_NT is not None
        assert (measured.logprobs_NT - rollouts.logprobs_NT).norm() < 1e-5 * measured.logprobs_NT.norm()
        assert len(packed) == (2 * 7 + 1 if decoding.ONEDNN else 0)  # seven a layer and the head
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.01 * torch.randn(parameter.shape, generator=generator))
    assert set(slow) == {5}  # the prompts, and nothing of one token
    model.train()
    with pytest.raises(IndexError):
        made.generate([[10_000]], Sampling(1, 1), torch.Generator())
    assert model.training
    assert not any("forward" in vars(module) for module in model.modules())


def test_a_group_is_one_row_until_its_responses_part():
    model, rows = small_gpt2(), []
    model.register_forward_pre_hook(lambda _, args, kwargs: rows.append(len(kwargs["input_ids"])), with_kwargs=True)
    sampler(model).generate(PROMPTS, Sampling(8, 5, greedy=True), torch.Generator())
    assert rows == [3] * 5
    rows.clear()
    samples = sampler(model).generate(PROMPTS, Sampling(8, 5), torch.Generator().manual_seed(0))
    beginnings = [len({(p, *r[:t]) for p, g in enumerate(samples.response_ids) for r in g}) for t in range(5)]
    assert rows == beginnings


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_logits_that_are_no_numbers_draw_a_token_and_no_number(value):
    """The batch is refused afterwards, with its prompt's name; here nothing may be read past the end."""
    logits_RV = torch.zeros(1, 300)
    logits_RV[0, 7] = value
    token_S, logprobs_S = draw(logits_RV, torch.zeros(3, dtype=torch.int64), torch.tensor([0.0, 0.5, 0.999]))
    assert bool(((token_S >= 0) & (token_S < 300)).all())
    assert bool(logprobs_S.isnan().all())
