"""What a Gram pass gives besides: the weighted sum of scores is autograd's, the hidden states are those that predict each term."""

from typing import Any

import pytest
import torch
from architectures import CONFIGS, build, rounding
from scores import batch_of_one_prompt
from torch import Tensor

from analysis.score_gram.buffers import Buffers
from analysis.score_gram.byproducts import Byproducts
from analysis.score_gram.core import score_gram
from analysis.score_gram.inputs import Batch, causal_model, log_probability


def byproducts_of(model: Any, coefficients_N: Tensor, **options: Any) -> tuple[dict[str, Tensor], list[Tensor]]:
    sums: dict[str, Tensor] = {}

    def receive(name: str, part: Tensor) -> None:
        sums[name] = sums[name] + part if name in sums else part.clone()

    found = Byproducts(coefficients_N, receive)
    score_gram(model, **batch_of_one_prompt(), temperature=0.7, byproducts=found, **options)
    return sums, found.hidden_N


def check(model: Any, name: str, **options: Any) -> None:
    inputs = batch_of_one_prompt()
    batch = Batch.of(**inputs, temperature=0.7)
    c_N = torch.linspace(-1.0, 2.0, len(batch), dtype=torch.float64)
    sums, hidden_N = byproducts_of(model, c_N, **options)
    model.eval()  # as the Gram does for itself
    total = torch.stack([c * log_probability(causal_model(model), batch.alone(n)) for n, c in enumerate(c_N)]).sum()
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    expected = torch.autograd.grad(total, list(parameters.values()), allow_unused=True, materialize_grads=True)
    scale = max(float(g.norm()) for g in expected)
    for (parameter, p), gradient in zip(parameters.items(), expected, strict=True):
        found = sums.get(parameter, torch.zeros_like(p))
        # one parameter may round worse than the sum of all that the bound is for
        assert float((found - gradient).norm()) < 10 * rounding(name) * scale, parameter
    assert [len(hidden) for hidden in hidden_N] == (batch.weights_NL[:, 1:] != 0).sum(1).tolist()


@pytest.mark.parametrize("name", CONFIGS)
def test_the_sum_is_that_of_autograd(name: str):
    check(build(name), name)


@pytest.mark.parametrize("options", [{"recompute": True}, {"responses_per_pass": 3}, {"verify": False}])
def test_every_option(options: dict[str, Any]):
    check(build("llama-tied"), "llama-tied", **options)


def test_a_head_that_is_made_again_slice_by_slice():
    check(build("llama"), "llama", buffers=Buffers(kept_logits=1))


def test_hidden_states_give_the_log_probabilities_again():
    model: Any = build("llama")
    inputs = batch_of_one_prompt()
    batch = Batch.of(**inputs)
    _, hidden_N = byproducts_of(model, torch.ones(len(batch)))
    for n, hidden_SD in enumerate(hidden_N):
        alone = batch.alone(n)
        is_term = alone.weights_NL[0, 1:] != 0
        logprobs_SV = (hidden_SD @ model.get_output_embeddings().weight.T).log_softmax(-1)
        found = logprobs_SV.gather(1, alone.input_ids[0, 1:][is_term][:, None])[:, 0]
        full = model(alone.input_ids).logits[0, :-1].log_softmax(-1)
        expected = full.gather(1, alone.input_ids[0, 1:, None])[:, 0][is_term]
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
