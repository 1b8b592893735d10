"""A user's module: a task with options, and reward functions under the signatures of others."""

from dataclasses import dataclass

from opo.tasks.base import Prompt


@dataclass
class CountConfig:
    seed: int = 0
    largest: int = 9


class Count:
    """Say the next number."""

    def __init__(self, config: CountConfig):
        self.config = config

    def prompt(self, index, split="train"):
        number = (index + self.config.seed + (1000 if split == "eval" else 0)) % self.config.largest
        return Prompt(index, f"{number}+1=", str(number + 1))

    def score(self, prompt, response):
        return float(response.strip() == prompt.answer)


class Scoreless:
    def prompt(self, index, split="train"):
        return Prompt(index, "?", "")


def plain(prompt, response):
    return float(response == str(prompt.metadata["target"]))


def plain_answer(prompt, response):
    return float(response.strip() == prompt.answer)


def brief(prompt, response):
    """None where there is nothing to judge."""
    return float(len(response) < 4) if response else None


def trl(completions, target, **kwargs):
    return [float(c == str(t)) for c, t in zip(completions, target, strict=True)]


async def trl_async(prompts, completions, target):
    return trl(completions, target)


def verl(data_source, solution_str, ground_truth, extra_info=None):
    return {"score": float(solution_str == ground_truth), "acc": 1.0}


def verl_batched(data_sources, solution_strs, ground_truths, extra_infos):
    return [float(s == g) for s, g in zip(solution_strs, ground_truths, strict=True)]


def wants_more(completions, nowhere):
    return [0.0]


def alone(response):
    return 0.0


def raises(prompt, response):
    return prompt.metadata["weight"]


def none(prompt, response):
    return None


def raises_now_and_then(prompt, response):
    return prompt.metadata["weight"] if len(response) % 2 else None


def even_digits(prompt, response):
    """1 for responses with an even number of digits: a policy that knows nothing earns it now and then."""
    return float(sum(character.isdigit() for character in response) % 2 == 0)
