"""Conversations: as messages, and as text that a template left behind without its markers."""

import re
from typing import Any

from analysis.study.external.record import Messages
from opo.errors import UserError

ROLES = ("system", "user", "assistant", "model", "tool", "developer")
THOUGHT = ("reasoning_content", "reasoning")  # which a template may render, and a policy samples before the content
NEEDS_IDS = (
    "messages do not say which tokens the policy sampled, so such a response is read as token ids with a response_mask"
)
_TURN = re.compile(rf"(?:^|(?<=\n))({'|'.join(ROLES)})\n+")
_OPEN = re.compile(r"(?:assistant|model)\s*(?:<think>\s*)?$")


def as_messages(content: Any, where: str, what: str) -> Messages | None:
    """The messages, or None where the content is text or ids. Raises UserError on messages that are no role and text."""
    if not isinstance(content, list) or not content or not isinstance(content[0], dict):
        return None
    return [_message(item, where, what) for item in content]


def _message(item: Any, where: str, what: str) -> dict[str, Any]:
    if not isinstance(item, dict) or not isinstance(item.get("role"), str):
        raise UserError(f"{where} has a {what} with a message without a role; messages are {{role, content}}")
    content = item.get("content")
    if isinstance(content, list):
        if not all(isinstance(part, dict) and part.get("type") == "text" for part in content):
            raise UserError(f"{where} has a {what} with a message that is not text alone; text is read")
        content = "".join(str(part.get("text") or "") for part in content)
    if item.get("tool_calls"):
        raise UserError(f"{where} has a {what} with a tool call; {NEEDS_IDS}")
    if not isinstance(content, str):
        raise UserError(f"{where} has a {what} with a message without text; messages are {{role, content}}")
    thought = {name: item[name] for name in THOUGHT if item.get(name)}
    if thought and what == "response":
        raise UserError(f"{where} has a {what} with {next(iter(thought))} beside its content; {NEEDS_IDS}")
    return {"role": item["role"], "content": content} | thought


def said_by_assistant(messages: Messages, where: str) -> str:
    """The text of a response of one message. Raises UserError on several turns, and on one that is not the assistant's."""
    roles = ", ".join(message["role"] for message in messages)
    if len(messages) > 1:
        raise UserError(f"{where} has a response of several turns ({roles}); {NEEDS_IDS}")
    if roles != "assistant":
        raise UserError(f"{where} has a response whose message has the role {roles!r}; assistant is needed")
    return messages[0]["content"]


def turn_end(tokenizer: Any, messages: Messages) -> int | None:
    """The token that the template writes after what the assistant says, None where it writes none."""
    reply = "opo"
    try:
        text = tokenizer.apply_chat_template([*messages, {"role": "assistant", "content": reply}], tokenize=False)
    except Exception:  # a template may raise anything, and then says nothing about its ends
        return None
    after = str(text).rpartition(reply)[2]
    ids = tokenizer.encode(after, add_special_tokens=False)
    return next(
        (i for i in ids[:1] if i in tokenizer.all_special_ids or i in tokenizer.get_added_vocab().values()), None
    )


def special_tokens(tokenizer: Any) -> dict[str, int]:
    """Tokens that `skip_special_tokens` leaves out of text, with their ids."""
    return {
        token: i
        for token, i in tokenizer.get_added_vocab().items()
        if not tokenizer.decode([i], skip_special_tokens=True)
    }


def without_markers(text: str, tokenizer: Any) -> bool:
    """Whether the text ends in a role name after a user turn, without the tokenizer's own markers."""
    marked = any(token in text for token in special_tokens(tokenizer))
    return not marked and bool(_OPEN.search(text)) and bool(re.search(r"(?:^|\n)?user\n", text))


def restored(text: str, tokenizer: Any) -> Messages | None:
    """The messages whose template, decoded without special tokens, is this very text; None where there are none."""
    if not tokenizer.chat_template:
        return None
    parts = _TURN.split(text)
    if parts[0].strip() or len(parts) < 3:
        return None
    turns = [(role, content) for role, content in zip(parts[1::2], parts[2::2], strict=True)]
    for trim in (lambda content: content.removesuffix("\n"), str.strip):
        messages = [{"role": _role(role), "content": trim(content)} for role, content in turns]
        if messages and messages[-1]["role"] == "assistant":
            messages.pop()
        for candidate in (messages, messages[1:] if messages and messages[0]["role"] == "system" else []):
            if candidate and _stripped(candidate, tokenizer) == text:
                return candidate
    return None


def _role(name: str) -> str:
    return "assistant" if name == "model" else name


def _stripped(messages: Messages, tokenizer: Any) -> str | None:
    try:
        text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    except Exception:  # a template may raise anything; it does not take these messages
        return None
    ids = tokenizer.encode(str(text), add_special_tokens=False)
    return str(tokenizer.decode(ids, skip_special_tokens=True))
