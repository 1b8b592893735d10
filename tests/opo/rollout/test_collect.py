"""Where a response ends, what a prompt's ids are, and prompts that do not fit, before a run begins."""

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from small import small_gpt2
from tokenizers import processors
from transformers import GenerationConfig

from opo.config.schema import ModelConfig, RewardConfig, RolloutConfig
from opo.errors import UserError
from opo.model.policy import Policy
from opo.model.tiny import character_tokenizer
from opo.rollout.collect import encode_prompt, open_collector, stop_token_ids
from opo.system.seeding import generator_for
from opo.tasks.arithmetic import Arithmetic, ArithmeticConfig


def with_bos() -> Any:
    tokenizer = character_tokenizer()
    tokenizer.bos_token = "<eos>"
    adds: Any = processors.TemplateProcessing(single="<eos> $A <eos>", special_tokens=[("<eos>", 1)])
    tokenizer.backend_tokenizer.post_processor = adds
    return tokenizer


def test_every_end_that_the_generation_config_names_ends_a_response() -> None:
    model: Any = small_gpt2()
    model.generation_config = GenerationConfig(eos_token_id=[7, 11])
    assert stop_token_ids(Policy(model, character_tokenizer()), ()) == (1, 7, 11)
    model.generation_config = GenerationConfig(eos_token_id=7)
    assert stop_token_ids(Policy(model, character_tokenizer()), ()) == (1, 7)
    model.generation_config = GenerationConfig()
    equals = character_tokenizer().convert_tokens_to_ids("=")
    assert stop_token_ids(Policy(model, character_tokenizer()), ("=",)) == (1, equals)


def test_the_beginning_of_text_comes_once_and_no_end_before_the_response() -> None:
    tokenizer = with_bos()
    three = tokenizer.convert_tokens_to_ids("3")
    assert tokenizer.encode("<eos>3") == [1, 1, three, 1]  # as the tokenizer has it
    assert encode_prompt(tokenizer, "3") == encode_prompt(tokenizer, "<eos>3") == [1, three]
    assert encode_prompt(tokenizer, "<eos>3", chat=True) == [1, three]
    assert encode_prompt(character_tokenizer(), "3") == [three]


@dataclass
class LongAtLast(Arithmetic):
    """Prompt number 9 is longer than the model's positions."""

    def __init__(self) -> None:
        super().__init__(ArithmeticConfig())

    def prompt(self, index: int, split: str = "train") -> Any:
        prompt = super().prompt(index, split)
        return type(prompt)(index, "1+" * 60 + "1=", "", {}) if index == 9 else prompt


def test_a_prompt_that_does_not_fit_is_found_before_the_first_step() -> None:
    model: Any = small_gpt2()
    model.resize_token_embeddings(len(character_tokenizer()))
    policy = Policy(model, character_tokenizer())
    rollout = RolloutConfig(max_new_tokens=4, group_size=2)
    with open_collector(policy, LongAtLast(), ModelConfig(), rollout, RewardConfig()) as collector:
        collector.look_ahead(0, 9)
        with pytest.raises(
            UserError, match="prompt 9 of the train stream has 122 tokens and the model holds 64 in all"
        ):
            collector.look_ahead(0, 10)
        batch = collector.collect(0, 3, generator_for(0, "rollout", 0))
        again = collector.sampler.generate(
            batch.rollouts.prompt_ids, collector.sampling, generator_for(0, "rollout", 0), [2, 0]
        )
    assert again.response_ids == [batch.samples.response_ids[p] for p in (2, 0)]
    assert torch.tensor(batch.samples.finished).shape == (3, 2)
