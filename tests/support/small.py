"""Small random models and rollouts that several tests share."""

import random
from typing import Any

import torch
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, PreTrainedConfig, PreTrainedModel

from opo.batch import Rollouts

VOCABULARY = 29


def random_model(kind: type[PreTrainedConfig], seed: int = 0, **shape: Any) -> PreTrainedModel:
    """A causal model of this kind and shape with random weights, float32, in evaluation mode."""
    torch.manual_seed(seed)
    return AutoModelForCausalLM.from_config(kind(**shape)).eval()


def small_gpt2(seed: int = 0, vocabulary: int = VOCABULARY) -> PreTrainedModel:
    """GPT-2 in float64: its LayerNorm stays in float64, where Llama's RMSNorm rounds to float32 inside."""
    shape = {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 64, "resid_pdrop": 0.0, "initializer_range": 0.3}
    return random_model(GPT2Config, seed, vocab_size=vocabulary, **shape).double()


def small_llama(
    seed: int = 0, vocabulary: int = VOCABULARY, kind: type[PreTrainedConfig] = LlamaConfig, **changes: Any
) -> PreTrainedModel:
    """A Llama, or a kind with the same keys, with grouped key-value heads and tied embeddings, float32."""
    shape = {
        "vocab_size": vocabulary,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": 64,
        "tie_word_embeddings": True,
        "initializer_range": 0.2,
    }
    return random_model(kind, seed, **shape | changes)


def random_rollouts(
    prompts: int = 4, group: int = 3, seed: int = 0, lengths: tuple[int, ...] = (1, 2, 5, 11)
) -> Rollouts:
    """Prompts of 1 to 7 tokens, responses of the given lengths, rewards 0 or 1, log-probabilities that are not the model's."""
    rng = random.Random(seed)

    def ids(count: int) -> list[int]:
        return [rng.randrange(VOCABULARY) for _ in range(count)]

    prompt_ids = [ids(rng.randint(1, 7)) for _ in range(prompts)]
    responses = [[ids(rng.choice(lengths)) for _ in range(group)] for _ in range(prompts)]
    logprobs = [[[-rng.random() for _ in response] for response in groups] for groups in responses]
    rewards = [[float(rng.random() < 0.5) for _ in range(group)] for _ in range(prompts)]
    return Rollouts.from_lists(prompt_ids, responses, rewards, logprobs)
