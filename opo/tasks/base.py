"""What a task is: numbered prompts, and a score for every response to them."""

import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Protocol

from opo.errors import UserError

SPLITS = ("train", "eval")
DATE = datetime(
    2024, 7, 26
)  # "today" of every chat template that asks: the date that Llama's own template falls back on

Message = Mapping[str, Any]  # role and content


@dataclass(frozen=True)
class Prompt:
    """One numbered question. The same task, split and index give the same prompt for ever."""

    index: int  # position in its stream
    text: str  # what the policy is conditioned on; with `chat`, the user's message before the chat template
    answer: str  # the gold answer, "" where the scorer needs the metadata alone
    metadata: dict[str, Any] = field(default_factory=dict)
    chat: bool = False  # wrap the text in the tokenizer's chat template
    messages: tuple[
        Message, ...
    ] = ()  # with `chat`: the conversation so far, in place of the text as one user's message


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
        """Reward of one response. May raise, hang or return NaN: each makes the response unscored. A wrong answer is 0."""
        ...

    def extract(self, response: str) -> str | None:
        """The answer given by a response, as votes are counted (maj@k): equal answers as equal text. None where it gives none."""
        ...


def held_out(question: str) -> bool:
    """True for the eighth of all questions that belongs to the eval stream, by content.

    Streams with different seeds still meet in the same question when a task has few of them; a split by content cannot.
    """
    return zlib.crc32(question.encode()) % 8 == 0


def render(prompt: Prompt, tokenizer) -> str:
    """The text to encode: `prompt.text`, in the tokenizer's chat template where `prompt.chat`.

    A template that writes today's date (Llama 3.2's) writes `DATE`: a prompt is the same for ever, also when a run goes on tomorrow.
    Raises UserError where there is no template, or where it refuses the messages or is broken.
    """
    if not prompt.chat:
        return prompt.text
    messages = list(prompt.messages) or [{"role": "user", "content": prompt.text}]
    if not tokenizer.chat_template and prompt.messages:
        raise UserError(
            f"prompt {prompt.index} is a list of messages, and the tokenizer of this model has no chat template; choose a model with one"
        )
    if not tokenizer.chat_template:
        raise UserError("task.template=chat: the tokenizer of this model has no chat template; plain needs none")
    try:
        return tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, tokenize=False, strftime_now=DATE.strftime
        )
    except Exception as error:  # the template is a program of whoever made the model: it may refuse, or be broken
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"the tokenizer's chat template cannot render prompt {prompt.index}: {reason}") from error


def is_messages(value: Any) -> bool:
    """True for a conversation: a list, not empty, of objects with a role and a content of text."""
    return (
        isinstance(value, list)
        and bool(value)
        and all(
            isinstance(m, Mapping) and isinstance(m.get("role"), str) and isinstance(m.get("content"), str)
            for m in value
        )
    )


def shown(messages: Iterable[Message]) -> str:
    """A conversation as text for tables and for the split into train and eval."""
    return "\n".join(f"{message['role']}: {message['content']}" for message in messages)
