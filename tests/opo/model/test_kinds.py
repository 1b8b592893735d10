"""Models of many kinds: loaded as they are, or named in one sentence."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf
from small import small_llama

from opo.batch import Rollouts
from opo.config.model_source import unreachable
from opo.config.schema import ModelConfig
from opo.errors import UserError
from opo.model.lengths import max_length
from opo.model.load import load_policy, save_model
from opo.model.policy import Policy
from opo.model.tiny import character_tokenizer

SIZE = len(character_tokenizer())
SHAPE: dict[str, Any] = {
    "vocab_size": SIZE,
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
}


def write(folder: Path, model: Any = None, tokenizer: Any = None) -> Path:
    save_model(
        Policy(small_llama(vocabulary=SIZE) if model is None else model, tokenizer or character_tokenizer()), folder
    )
    return folder


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (
            lambda: tf.MambaForCausalLM(tf.MambaConfig(vocab_size=SIZE, hidden_size=16, num_hidden_layers=1)),
            "a mamba model keeps a state",
        ),
        (
            lambda: tf.T5ForConditionalGeneration(
                tf.T5Config(vocab_size=SIZE, d_model=16, d_ff=16, d_kv=8, num_layers=1, num_heads=2)
            ),
            "a t5 model; allowed are causal language models",
        ),
        (
            lambda: tf.BertLMHeadModel(
                tf.BertConfig(
                    vocab_size=SIZE,
                    hidden_size=16,
                    intermediate_size=16,
                    num_hidden_layers=1,
                    num_attention_heads=2,
                    initializer_range=0.5,
                )
            ),
            "looks ahead",
        ),
        (
            lambda: tf.Lfm2ForCausalLM(
                tf.Lfm2Config(**SHAPE, num_hidden_layers=2, layer_types=["conv", "full_attention"])
            ),
            "a lfm2 model cannot be trained here: ",
        ),
        (
            lambda: tf.BartForCausalLM(
                tf.BartConfig(
                    vocab_size=SIZE,
                    d_model=16,
                    decoder_layers=2,
                    encoder_layers=1,
                    decoder_ffn_dim=16,
                    encoder_ffn_dim=16,
                )
            ),
            "a bart model cannot be trained here: ",
        ),
    ],
)
def test_architectures_that_cannot_be_trained_here_are_named(
    model: Callable[[], Any], said: str, tmp_path: Path
) -> None:
    write(tmp_path / "model", model())
    with pytest.raises(UserError, match=said):
        load_policy(ModelConfig(name="pretrained", path=str(tmp_path / "model")))


def test_text_that_has_no_row_in_the_embedding_is_refused(tmp_path: Path) -> None:
    folder = write(tmp_path / "model", small_llama(vocabulary=SIZE - 3))
    with pytest.raises(UserError, match=f"3 tokens beyond the {SIZE - 3} rows of its embedding"):
        load_policy(ModelConfig(name="pretrained", path=str(folder)))


def test_more_rows_than_tokens_and_added_tokens_past_them_are_usual(tmp_path: Path) -> None:
    padded = write(tmp_path / "padded", small_llama(vocabulary=SIZE + 64))
    load_policy(ModelConfig(name="pretrained", path=str(padded)))
    tokenizer = character_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    assert len(tokenizer) == SIZE + 1
    load_policy(ModelConfig(name="pretrained", path=str(write(tmp_path / "added", None, tokenizer))))


@pytest.mark.parametrize("targets", [["no_such"], ["q_proj", "no_such"]])
def test_a_lora_target_that_no_layer_has_is_named(targets: list[str], tmp_path: Path) -> None:
    folder = write(tmp_path / "model")
    with pytest.raises(UserError, match=r"model\.lora_targets=.*no_such"):
        load_policy(ModelConfig(name="pretrained", path=str(folder), lora_rank=2, lora_targets=targets))


def test_adapters_alone_are_no_model(tmp_path: Path) -> None:
    folder = write(tmp_path / "model")
    policy = load_policy(ModelConfig(name="pretrained", path=str(folder), lora_rank=2))
    save_model(policy, tmp_path / "adapters")
    (said,) = unreachable(str(tmp_path / "adapters"), "model.path")
    assert "holds adapters alone" in said


def test_a_mixture_of_experts_goes_to_float64(tmp_path: Path) -> None:
    shape: dict[str, Any] = {
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
    }
    mixture = tf.MixtralForCausalLM(tf.MixtralConfig(vocab_size=SIZE, num_local_experts=4, **shape))
    folder = write(tmp_path / "model", mixture)
    single, double = (
        load_policy(ModelConfig(name="pretrained", path=str(folder), dtype=dtype)).model(torch.arange(8)[None]).logits
        for dtype in ("float32", "float64")
    )
    torch.testing.assert_close(single.double(), double, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    "model",
    [
        lambda: tf.MixtralForCausalLM(
            tf.MixtralConfig(**SHAPE, num_hidden_layers=1, num_local_experts=4, output_router_logits=True)
        ),
        lambda: tf.OlmoForCausalLM(
            tf.OlmoConfig(**SHAPE, num_hidden_layers=1, clip_qkv=1.0)
        ),  # changes its products in place
        lambda: tf.Llama4ForCausalLM(  # a decoder that goes by another name
            tf.Llama4TextConfig(
                **SHAPE,
                num_hidden_layers=1,
                head_dim=16,
                num_local_experts=2,
                num_experts_per_tok=1,
                intermediate_size_mlp=32,
            )
        ),
    ],
)
def test_architectures_with_ways_of_their_own_are_scored_as_transformers_does(
    model: Callable[[], Any], tmp_path: Path
) -> None:
    torch.manual_seed(0)
    policy = load_policy(ModelConfig(name="pretrained", path=str(write(tmp_path / "model", model()))))
    rollouts = Rollouts.from_lists([[1, 2, 3]], [[[4, 5, 6], [4, 7]]], [[0.0, 1.0]])
    scores = policy.measure(rollouts, [0]).logprobs_NT
    plain = policy.model(torch.tensor([[1, 2, 3, 4, 5, 6]])).logits[0, 2:-1].double().log_softmax(-1)
    torch.testing.assert_close(scores[0], plain.gather(1, torch.tensor([[4], [5], [6]]))[:, 0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("rope", "steady"),
    [
        (
            {
                "rope_type": "longrope",
                "original_max_position_embeddings": 8,
                "short_factor": [1.0] * 8,
                "long_factor": [4.0] * 8,
            },
            8,
        ),
        ({"rope_type": "dynamic", "factor": 4.0}, 16),
        ({"rope_type": "linear", "factor": 4.0}, None),
    ],
)
def test_rotary_factors_that_a_long_response_changes_are_refused(rope: dict[str, Any], steady: int | None) -> None:
    kind = {"max_position_embeddings": 16, "rope_parameters": {"rope_theta": 1e4, **rope}}
    policy = Policy(small_llama(vocabulary=SIZE, num_attention_heads=4, **kind), character_tokenizer())
    assert max_length(policy.model) == (steady or 16)
    prompt, shorter = [1, 2, 3], (steady or 16) - 3
    fits, longer = (Rollouts.from_lists([prompt], [[[4] * (shorter + more)]], [[0.0]]) for more in (0, 1))
    policy.measure(fits, [0])
    if steady is None:
        policy.measure(longer, [0])
        return
    with pytest.raises(UserError, match=f"other factors from {steady + 1} tokens on, and a sequence has {steady + 1}"):
        policy.measure(longer, [0])
