"""The one-pass Gram against one backward pass per response, and against autograd written out here."""

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
import transformers as tf
from architectures import CONFIGS, GPT2, SHAPE, build
from scores import batch, relative
from small import small_gpt2, small_llama
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from analysis.score_gram.buffers import Buffers
from analysis.score_gram.core import passes, score_gram


def written_out(model: nn.Module, n: int, temperature: float, **inputs: Tensor) -> Tensor:
    """The score of response n without its padding, token by token, straight from the definition."""
    kept = inputs["attention_mask"][n].bool()
    ids, mask, weight = (inputs[key][n][kept] for key in ("input_ids", "response_mask", "token_weights"))
    logits = model(input_ids=ids[None]).logits[0].double() / temperature
    total = torch.zeros((), dtype=torch.float64)
    for t in range(1, len(ids)):
        if mask[t]:
            total = total + weight[t] * logits[t - 1].log_softmax(0)[ids[t]]
    trainable = [p for p in model.parameters() if p.requires_grad]
    grads = torch.autograd.grad(total, trainable, allow_unused=True, materialize_grads=True)
    return torch.cat([g.flatten().double() for g in grads])


@pytest.mark.parametrize("name", CONFIGS)
def test_one_pass_equals_one_backward_per_response(name: str):
    model, inputs = build(name), batch()
    gram = score_gram(model, **inputs, temperature=0.7)
    assert gram.dtype == torch.float64
    assert gram.shape == (6, 6)
    assert relative(gram, score_gram(model, **inputs, temperature=0.7, method="loop")) < 1e-8


@pytest.mark.parametrize("method", ["hooks", "loop"])
@pytest.mark.parametrize("name", ["gpt2", "bloom"])  # Bloom itself makes NaN of padding on the left
def test_both_ways_follow_the_definition(name: str, method: Any):
    model, inputs = build(name).eval(), batch()
    scores = torch.stack([written_out(model, n, 0.7, **inputs) for n in range(6) if n != 3])
    gram = score_gram(model, **inputs, temperature=0.7, method=method)
    others = [0, 1, 2, 4, 5]
    assert relative(gram[others][:, others], scores @ scores.T) < 1e-10
    assert (gram[3] == 0).all()
    assert (gram[:, 3] == 0).all()


def test_float32_and_bfloat16_come_near_float64():
    model, inputs = small_llama(), batch()
    exact = score_gram(copy.deepcopy(model).double(), **inputs, method="loop")
    assert relative(score_gram(model, **inputs), exact) < 1e-4
    # bfloat16 keeps 8 bits; what counts is that all of the score is there, in a float64 result.
    rounded = score_gram(copy.deepcopy(model).bfloat16(), **inputs)
    assert rounded.dtype == torch.float64
    assert relative(rounded, exact) < 0.05


def test_padding_and_order_do_not_matter():
    model, inputs = small_gpt2(), batch()
    gram = score_gram(model, **inputs)
    for before, after in ((3, 0), (0, 3), (2, 2)):
        padded: dict[str, Any] = {key: nn.functional.pad(x, (before, after)) for key, x in inputs.items()}
        assert relative(score_gram(model, **padded), gram) < 1e-10
    order = torch.tensor([4, 2, 0, 5, 1, 3])
    permuted: dict[str, Any] = {key: x[order] for key, x in inputs.items()}
    assert relative(score_gram(model, **permuted), gram[order][:, order]) < 1e-10


def test_a_token_with_nothing_before_it_has_no_term():
    model, inputs = small_gpt2(), batch()
    marked = inputs["response_mask"].clone()
    marked[torch.arange(6), inputs["attention_mask"].argmax(1)] = 1
    assert torch.equal(score_gram(model, **{**inputs, "response_mask": marked}), score_gram(model, **inputs))


def test_the_score_is_linear_in_the_token_weights():
    model, inputs = small_gpt2(), batch()
    factors = torch.tensor([1.0, -2.0, 0.5, 1.0, 0.0, 3.0], dtype=torch.float64)
    scaled: dict[str, Any] = {**inputs, "token_weights": inputs["token_weights"] * factors[:, None]}
    assert relative(score_gram(model, **scaled), score_gram(model, **inputs) * torch.outer(factors, factors)) < 1e-10
    unweighted: dict[str, Any] = {key: x for key, x in inputs.items() if key != "token_weights"}
    ones: dict[str, Any] = {**inputs, "token_weights": torch.ones(6, 11)}
    assert torch.equal(score_gram(model, **unweighted), score_gram(model, **ones))


def test_lora_counts_the_adapters_alone():
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(
        r=4, target_modules=["q_proj", "down_proj", "lm_head"], lora_dropout=0.5, init_lora_weights=False
    )
    model, inputs = peft.get_peft_model(build("llama"), config).train(), batch()
    parts = score_gram(model, **inputs, split="parameter")
    assert set(parts) == {name for name, p in model.named_parameters() if p.requires_grad}
    assert relative(torch.stack(list(parts.values())).sum(0), score_gram(model, **inputs, method="loop")) < 1e-8
    config = peft.LoraConfig(r=4, target_modules=["embed_tokens"], modules_to_save=["lm_head"], init_lora_weights=False)
    model = peft.get_peft_model(build("llama"), config)
    assert relative(score_gram(model, **inputs), score_gram(model, **inputs, method="loop")) < 1e-8


def test_an_adapter_with_a_backward_of_its_own():
    peft = pytest.importorskip("peft")
    config = peft.LoHaConfig(r=4, target_modules=["q_proj", "down_proj"], init_weights=False)
    model, inputs = peft.get_peft_model(build("llama"), config), batch()
    assert relative(score_gram(model, **inputs), score_gram(model, **inputs, method="loop")) < 1e-8


def test_a_prompt_learning_adapter_is_refused():
    peft = pytest.importorskip("peft")
    config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    with pytest.raises(ValueError, match="prompt learning"):
        score_gram(peft.get_peft_model(build("llama"), config), **batch())


@pytest.mark.parametrize("name", ["llama", "llama-tied", "gemma2", "cohere"])
def test_a_vocabulary_too_wide_to_keep_is_computed_again_by_slices(name: str):
    model, inputs = build(name), batch()
    whole = score_gram(model, **inputs, temperature=0.7)
    few = Buffers(logits=3 * 29)  # three positions at a time: parts of one response
    fewer = replace(few, kept_logits=0, gradients=6 * 32 * 4)  # four words at a time
    for buffers in (few, fewer):
        assert relative(score_gram(model, **inputs, temperature=0.7, buffers=buffers), whole) < 1e-12


class Normalised(tf.LlamaForCausalLM):
    """Its logits depend on each other."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        output: Any = super().forward(*args, **kwargs)
        output.logits = output.logits.log_softmax(-1)
        return output


def test_logits_that_cannot_be_sliced_are_refused():
    torch.manual_seed(0)
    model, inputs = Normalised(tf.LlamaConfig(**SHAPE)).double(), batch()
    assert relative(score_gram(model, **inputs), score_gram(model, **inputs, method="loop")) < 1e-8
    with pytest.raises(ValueError, match="no elementwise function"):
        score_gram(model, **inputs, buffers=Buffers(kept_logits=0, gradients=6 * 32 * 4))


def test_passes_bring_every_pair_together():
    for n, at_most in ((7, 2), (7, 3), (7, 4), (12, 5), (5, 5)):
        sets = [set(rows) for rows in passes(n, at_most)]
        assert max(map(len, sets)) <= at_most
        assert all(any({i, j} <= rows for rows in sets) for i in range(n) for j in range(n))


def test_blocks_equal_one_pass():
    model, inputs = build("llama-tied"), batch()
    whole = score_gram(model, **inputs, split="kind")
    for at_most in (2, 3, 4):
        blocks = score_gram(model, **inputs, split="kind", responses_per_pass=at_most)
        assert blocks.keys() == whole.keys()
        assert all(relative(blocks[kind], whole[kind]) < 1e-10 for kind in whole)


@pytest.mark.parametrize(
    "name", ["llama-tied", "gpt2", "gpt-neox", "opt", "gemma2", "mixtral", "granite-moe", "gpt-oss"]
)
def test_recomputed_layers_give_the_same(name: str):
    model, inputs = build(name), batch()
    whole = score_gram(model, **inputs)
    assert relative(score_gram(model, **inputs, recompute=True), whole) < 1e-12
    model.get_input_embeddings().requires_grad_(False)  # now the first layer's input needs no gradient
    assert relative(score_gram(model, **inputs, recompute=True), score_gram(model, **inputs)) < 1e-12


def test_a_recomputed_layer_used_twice_keeps_its_cross_terms():
    model, inputs = build("llama-tied"), batch()
    model.model.layers[1] = model.model.layers[0]
    assert relative(score_gram(model, **inputs, recompute=True), score_gram(model, **inputs, method="loop")) < 1e-8


def test_the_metric_scales_every_coordinate():
    model, inputs = build("llama-tied"), batch()
    rng = torch.Generator().manual_seed(2)
    moments = {name: torch.rand(p.shape, generator=rng, dtype=torch.float64) for name, p in model.named_parameters()}
    gram = score_gram(model, **inputs, metric=moments, metric_eps=1e-3)
    assert relative(gram, score_gram(model, **inputs, metric=moments, metric_eps=1e-3, method="loop")) < 1e-8
    factors = torch.cat([1 / (moments[name].sqrt() + 1e-3).sqrt().flatten() for name, _ in model.named_parameters()])
    score = written_out(model, 2, 1.0, **inputs) * factors
    assert float(gram[2, 2]) == pytest.approx(float(score @ score), rel=1e-6)
    ones = {name: torch.ones_like(v) for name, v in moments.items()}
    assert relative(score_gram(model, **inputs, metric=ones, metric_eps=0.0), score_gram(model, **inputs)) < 1e-10


def test_parts_sum_to_the_whole_and_bear_their_names():
    for name, head in (("llama", {"head"}), ("llama-tied", set()), ("gpt2", set())):
        model, inputs = build(name), batch()
        whole = score_gram(model, **inputs)
        kinds = score_gram(model, **inputs, split="kind")
        assert set(kinds) == {"embedding", "attention", "mlp", "norm"} | head
        layers = score_gram(model, **inputs, split="layer")
        assert set(layers) == {"layer 0", "layer 1", "embedding", "norm"} | head
        for parts in (kinds, layers):
            assert relative(torch.stack(list(parts.values())).sum(0), whole) < 1e-12


def test_only_trainable_parameters_count():
    model, inputs = build("llama"), batch()
    for name, p in model.named_parameters():
        p.requires_grad_("layers.1.mlp" in name or name == "model.norm.weight")
    parts = score_gram(model, **inputs, split="parameter")
    assert len(parts) == 4
    assert relative(torch.stack(list(parts.values())).sum(0), score_gram(model, **inputs, method="loop")) < 1e-8
    model.requires_grad_(False)
    with pytest.raises(ValueError, match="no parameter with requires_grad"):
        score_gram(model, **inputs)


def test_layers_used_twice_count_once_with_their_cross_terms():
    model, inputs = build("llama-tied"), batch()
    model.model.layers[1] = model.model.layers[0]
    assert relative(score_gram(model, **inputs), score_gram(model, **inputs, method="loop")) < 1e-8


class Gated(nn.Linear):
    """A layer that no rule knows, though it is a Linear by class: its weight enters in two ways."""

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        return nn.functional.linear(x, self.weight) * self.weight.norm().sigmoid()


def test_an_unknown_layer_is_replayed():
    model, inputs = build("llama"), batch()
    old = model.model.layers[0].mlp.up_proj
    model.model.layers[0].mlp.up_proj = Gated(old.in_features, old.out_features, bias=False).double()
    assert relative(score_gram(model, **inputs), score_gram(model, **inputs, method="loop")) < 1e-8


class PerHead(nn.Module):
    """Two layers over heads that are folded into the first dimension, one of which no rule knows, with a gate beside its input."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mix = nn.Linear(width, width).double()
        self.norm = Normed(width)

    def forward(self, x: Tensor) -> Tensor:
        heads = x.reshape(-1, self.mix.in_features)
        return self.norm(self.mix(heads), heads).view(x.shape)


class Normed(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.linspace(0.5, 1.5, width, dtype=torch.float64))

    def forward(self, x: Tensor, gate: Tensor) -> Tensor:
        return self.weight * x / x.norm(dim=-1, keepdim=True) * gate.sigmoid()


def test_heads_folded_into_the_first_dimension():
    model, inputs = build("llama"), batch()
    mlp = model.model.layers[0].mlp
    mlp.up_proj = nn.Sequential(mlp.up_proj, PerHead(8))
    assert relative(score_gram(model, **inputs), score_gram(model, **inputs, method="loop")) < 1e-8


def test_a_layer_that_is_not_laid_out_by_response_is_refused_by_name():
    model, inputs = build("llama"), batch()

    class Turned(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
            return nn.functional.linear(x, self.weight) * self.weight.norm()

    class Turning(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x.transpose(0, 1).contiguous()).transpose(0, 1)

    old = model.model.layers[0].mlp.up_proj
    for layer in (old, Turned(old.in_features, old.out_features, bias=False).double()):
        model.model.layers[0].mlp.up_proj = Turning(layer)
        with pytest.raises(ValueError, match=r"up_proj\.inner: .* is not laid out by response"):
            score_gram(model, **inputs)


def test_a_weight_used_behind_its_layer_is_refused_by_name():
    model, inputs = build("llama"), batch()
    mlp = model.model.layers[0].mlp
    mlp.up_proj.forward = lambda x, w=mlp.down_proj.weight: nn.functional.linear(x, w.T)
    with pytest.raises(ValueError, match=r"layers\.0\.mlp\.(down|up)_proj\.weight"):
        score_gram(model, **inputs)
    score_gram(model, **inputs, method="loop")


def test_a_layer_that_remembers_its_batch_is_refused_by_name():
    class Routed(nn.Linear):  # as JetMoe's experts
        def forward(self, x: Tensor) -> Tensor:
            self.sizes = getattr(self, "sizes", [len(x)])
            return torch.cat([nn.functional.linear(part, self.weight) for part in x.split(self.sizes)])

    model, inputs = build("llama"), batch()
    old = model.model.layers[0].mlp.up_proj
    model.model.layers[0].mlp.up_proj = Routed(old.in_features, old.out_features, bias=False).double()
    with pytest.raises(ValueError, match=r"layers\.0\.mlp\.up_proj: it does not run for one response alone") as error:
        score_gram(model, **inputs)
    assert "\n" not in str(error.value)


def test_an_input_overwritten_in_place_is_refused_by_name():
    model, inputs = build("llama"), batch()
    mlp = model.model.layers[0].mlp

    class Spoiling(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, x: Tensor) -> Tensor:
            y = x * 1.0
            out = self.inner(y)
            y.add_(1.0)
            return out

    mlp.up_proj = Spoiling(mlp.up_proj)
    with pytest.raises(ValueError, match=r"up_proj.*overwritten in place"):
        score_gram(model, **inputs)


def snapshot(model: nn.Module) -> tuple[Any, ...]:
    hooks = [(len(m._forward_hooks), len(m._forward_pre_hooks), "forward" in vars(m)) for m in model.modules()]
    state = [(p.requires_grad, None if p.grad is None else p.grad.clone().tolist()) for p in model.parameters()]
    return [m.training for m in model.modules()], hooks, state, model.config.to_dict()  # type: ignore[attr-defined]


def test_the_model_comes_back_as_it_was_even_after_an_error():
    inputs = batch()
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(tf.GPT2Config(**GPT2, resid_pdrop=0.5, embd_pdrop=0.5)).double().train()
    model.transformer.h[1].eval()
    model.transformer.wpe.weight.requires_grad_(False)
    model.transformer.wte.weight.grad = torch.ones_like(model.transformer.wte.weight)
    before, draws = snapshot(model), torch.get_rng_state()
    gram = score_gram(model, **inputs)
    assert snapshot(model) == before
    assert torch.equal(torch.get_rng_state(), draws)  # dropout did not run
    assert relative(gram, score_gram(copy.deepcopy(model).eval(), **inputs)) < 1e-12
    with torch.no_grad():
        model.transformer.wte.weight[int(inputs["input_ids"][2, 5])] = torch.nan
    with pytest.raises(ValueError, match="not finite"):
        score_gram(model, **inputs)
    after = snapshot(model)
    assert after[:2] == before[:2]
    with torch.no_grad(), torch.inference_mode(False):
        assert score_gram(copy.deepcopy(small_gpt2()), **inputs).isfinite().all()  # whatever the caller's grad mode


def test_a_score_that_is_not_finite_names_the_response():
    model, inputs = build("llama"), batch()
    inputs["input_ids"][inputs["input_ids"] == 7] = 8
    inputs["input_ids"][2, 5] = 7
    with torch.no_grad():
        model.model.embed_tokens.weight[7] = torch.inf
    for method in ("hooks", "loop"):
        with pytest.raises(ValueError, match="response 2"):
            score_gram(model, **inputs, method=method)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"attention_mask": torch.ones(6, 10)}, r"attention_mask has shape \(6, 10\), input_ids \(6, 11\)"),
        ({"response_mask": torch.full((6, 11), 2)}, "response_mask may hold only zeros and ones"),
        ({"response_mask": torch.ones(6, 11)}, r"response_mask marks padding at \(n, t\) = \(0, 0\)"),
        ({"token_weights": torch.full((6, 11), torch.nan)}, "token_weights is not finite"),
        ({"input_ids": torch.full((6, 11), 0.5)}, "input_ids must be"),
        ({"temperature": 0.0}, "temperature is 0.0"),
        ({"method": "fast"}, "method='fast': allowed are 'hooks' and 'loop'"),
        ({"split": "head"}, "split='head': allowed are 'layer', 'kind', 'parameter' and None"),
        ({"responses_per_pass": 1}, "responses_per_pass=1"),
        ({"metric": {}}, "metric has no second moments for the trainable parameter transformer.wte.weight"),
    ],
)
def test_bad_input_is_one_clear_line(change: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message) as error:
        score_gram(small_gpt2(), **{**batch(), **change})
    assert "\n" not in str(error.value)


def test_a_hole_before_a_response_token_is_refused():
    inputs = batch()
    inputs["attention_mask"][2, 6] = inputs["response_mask"][2, 6] = 0
    with pytest.raises(ValueError, match=r"hole just before the response token \(n, t\) = \(2, 7\)"):
        score_gram(small_gpt2(), **inputs)
