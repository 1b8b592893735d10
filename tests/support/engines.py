"""What the tests of the vLLM engine share."""

from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from opo.batch import Rollouts
from opo.rollout.base import Samples, Sampling

CONFIG: dict[str, Any] = {
    "vocab_size": 60,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 128,
    "tie_word_embeddings": True,
    "initializer_range": 0.2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


SAMPLING = Sampling(group_size=4, max_new_tokens=24, temperature=0.7, stop_token_ids=(3, 4))


PROMPTS = [[5, 6, 7, 8], [9, 10, 11] * 25, [12], [9, 10, 11] * 25 + [13]]  # the long ones share two blocks of 32


def make_model(seed: int = 0) -> Any:
    torch.manual_seed(seed)
    return LlamaForCausalLM(LlamaConfig(**CONFIG)).eval()


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def as_rollouts(samples: Samples) -> Rollouts:
    rewards = torch.zeros(len(PROMPTS), SAMPLING.group_size)
    return Rollouts.from_lists(PROMPTS, samples.response_ids, rewards, samples.logprobs, versions=samples.versions)
