"""Equal responses and equal prompts are computed once, and nothing changes."""

import copy
from typing import Any

import pytest
import torch
import transformers as tf
from architectures import CONFIGS, build, rounding
from scores import batch, batch_of_one_prompt, relative
from small import small_gpt2, small_llama
from torch import Tensor, nn

from analysis.score_gram.core import score_gram
from analysis.score_gram.inputs import Batch
from analysis.score_gram.shared_prefix import common_prefix
from analysis.score_gram.sketch import sketch_gram


def rows_in_the_model(model: Any, **inputs: Any) -> set[tuple[int, ...]]:
    """Shapes of the token ids that its embedding sees."""
    shapes: set[tuple[int, ...]] = set()
    handle = model.get_input_embeddings().register_forward_hook(
        lambda m, args, output: shapes.add(tuple(args[0].shape))
    )
    try:
        score_gram(model, **inputs, verify=False)
    finally:
        handle.remove()
    return shapes


def test_responses_that_are_multiples_of_each_other_go_through_the_model_once():
    rows, of_N, factor_N = Batch.of(**batch_of_one_prompt()).distinct()
    assert of_N.tolist() == [0, 0, 0, 0, 1, 2, 3, 4]
    assert factor_N[:3].tolist() == [1.0, 1.0, 1.0]
    assert float(factor_N[3]) == pytest.approx(3.0, rel=1e-15)
    assert rows.number_N.tolist() == [0, 4, 5, 6, 7]
    assert common_prefix(rows) == 7
    assert rows_in_the_model(small_gpt2(), **batch_of_one_prompt()) == {
        (1, 7),
        (5, 13),
    }  # the prompt alone, then five responses


def test_responses_of_other_prompts_share_nothing():
    rows, of_N, _ = Batch.of(**batch()).distinct()
    assert of_N.tolist() == list(range(6))
    assert common_prefix(rows) == 0


@pytest.mark.parametrize("name", CONFIGS)
def test_one_pass_equals_one_backward_per_response(name: str):
    model, inputs = build(name), batch_of_one_prompt()
    gram = score_gram(model, **inputs, temperature=0.7)
    assert relative(gram, score_gram(model, **inputs, temperature=0.7, method="loop")) < rounding(name)
    assert torch.equal(gram[0], gram[1])
    assert torch.equal(gram[:, 0], gram[:, 2])


@pytest.mark.parametrize("name", ["llama-tied", "gpt2", "mixtral"])
@pytest.mark.parametrize(
    "options", [{"split": "parameter"}, {"recompute": True}, {"responses_per_pass": 3}, {"metric": 0.5}]
)
def test_every_option(name: str, options: dict[str, Any]):
    model, inputs = build(name), batch_of_one_prompt()
    if "metric" in options:
        options = {"metric": {name: torch.full_like(p, 0.5).cumsum(0) for name, p in model.named_parameters()}}
    slow = {key: value for key, value in options.items() if key in ("split", "metric")}
    found, expected = score_gram(model, **inputs, **options), score_gram(model, **inputs, **slow, method="loop")
    if isinstance(found, Tensor):
        assert relative(found, expected) < rounding(name)
    else:
        assert found.keys() == expected.keys()
        assert all(
            relative(found[part], expected[part]) < rounding(name) for part in found if expected[part].norm() > 0
        )


def test_a_sketch_repeats_rows_too():
    model, inputs = small_gpt2(), batch_of_one_prompt()
    sketch = sketch_gram(model, **inputs, dim=64, seed=3)
    exact = score_gram(model, **inputs)
    assert relative(sketch.squared_norms_N, exact.diagonal()) < 1e-10
    assert torch.equal(sketch.gram_NN[0], sketch.gram_NN[1])
    assert float(sketch.gram_NN[3, 4]) == pytest.approx(3 * float(sketch.gram_NN[0, 4]), rel=1e-12)


def test_adapters_on_a_shared_prompt():
    peft = pytest.importorskip("peft")
    for config in (
        peft.LoraConfig(r=4, target_modules=["q_proj", "down_proj", "lm_head"], init_lora_weights=False),
        peft.LoHaConfig(r=4, target_modules=["q_proj", "down_proj"], init_weights=False),  # weights that are computed
    ):
        model, inputs = peft.get_peft_model(build("llama"), config), batch_of_one_prompt()
        assert relative(score_gram(model, **inputs), score_gram(model, **inputs, method="loop")) < rounding("llama")


def test_a_product_that_is_overwritten_in_place_is_computed_again():
    class Shifted(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x).add_(1.0)

    model, inputs = build("llama"), batch_of_one_prompt()
    mlp: Any = model.model.layers[0].mlp
    mlp.up_proj = Shifted(mlp.up_proj)
    assert relative(score_gram(model, **inputs), score_gram(model, **inputs, method="loop")) < rounding("llama")


def test_a_model_that_looks_ahead_is_refused():
    """Its prompt depends on the response, so that nothing can be shared."""

    class Backwards(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + 0.5 * x.flip(1).cumsum(1).flip(1)

    model, inputs = build("llama"), batch_of_one_prompt()
    layer: Any = model.model.layers[0]
    layer.input_layernorm = nn.Sequential(layer.input_layernorm, Backwards())
    with pytest.raises(ValueError, match="this model needs method='loop'"):
        score_gram(model, **inputs)


def test_float32_comes_near_float64():
    model, inputs = small_llama(), batch_of_one_prompt()
    exact = score_gram(copy.deepcopy(model).double(), **inputs, method="loop")
    assert relative(score_gram(model, **inputs), exact) < 1e-4


def test_a_score_that_is_not_finite_names_the_response_of_the_caller():
    model, inputs = build("llama"), batch_of_one_prompt()
    assert isinstance(model, tf.LlamaForCausalLM)
    inputs["input_ids"][inputs["input_ids"] == 28] = 27
    inputs["input_ids"][6, 7] = 28
    with torch.no_grad():
        model.model.embed_tokens.weight[28] = torch.inf
    with pytest.raises(ValueError, match="response 6"):
        score_gram(model, **inputs)
