"""What a task is: numbered prompts, and a score for every response to them."""

import re
import zlib
from dataclasses import dataclass, field
from typing import Any, Protocol

SPLITS = ("train", "eval")
NUMBER = re.compile(r"(?<![\d.])-?\d+(?:,\d{3})*(?:\.\d+)?")


@dataclass(frozen=True)
class Prompt:
    """One numbered question. The same task, split and index give the same prompt for ever."""

    index: int  # position in its stream
    text: str  # what the policy is conditioned on; with `chat`, the user's message before the chat template
    answer: str  # the gold answer, "" where the scorer needs the metadata alone
    metadata: dict[str, Any] = field(default_factory=dict)
    chat: bool = False  # wrap the text in the tokenizer's chat template


class Task(Protocol):
    """Prompts with a verifiable reward.

    An instance must pickle: scores are computed by a copy in a process of its own (`opo.rewards.runner`), whose start-up
    includes the constructor. Import there, not in `score`, what is slow to import.
    """

    name: str
    stop: tuple[str, ...]  # strings that end a response; empty where the end-of-text token does

    def prompt(self, index: int, split: str = "train") -> Prompt:
        """Prompt number `index` >= 0 of a stream: a pure function of (config, split, index). No question is in both."""
        ...

    def score(self, prompt: Prompt, response: str) -> float:
        """Reward of one response. May raise, hang or return NaN: each makes the response unscored."""
        ...

    def extract(self, response: str) -> str | None:
        """The answer given by a response, as votes are counted (maj@k); None where it gives none."""
        ...


def held_out(question: str) -> bool:
    """True for the eighth of all questions that belongs to the eval stream, by content.

    Streams with different seeds still meet in the same question when a task has few of them; a split by content cannot.
    """
    return zlib.crc32(question.encode()) % 8 == 0


def render(prompt: Prompt, tokenizer) -> str:
    """The text to encode: `prompt.text`, in the tokenizer's chat template where `prompt.chat`."""
    if not prompt.chat:
        return prompt.text
    message = [{"role": "user", "content": prompt.text}]
    return tokenizer.apply_chat_template(message, add_generation_prompt=True, tokenize=False)


def last_number(text: str) -> str | None:
    """The last number of a text, without thousands separators; a minus after a digit is an operator, not a sign."""
    numbers = NUMBER.findall(text)
    return numbers[-1].replace(",", "") if numbers else None
