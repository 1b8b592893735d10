"""Conversations that a column holds as JSON text: all of the column or none, so that text which looks like JSON stays text."""

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

from analysis.study.external.record import Messages, Record
from opo.errors import UserError

_LIST = re.compile(r"\s*\[\s*[{\]]")
_PYTHON = re.compile(r"\s*\[\s*\{\s*'(role|content)'\s*:")


def with_messages(records: Sequence[Record]) -> list[Record]:
    """The records of a file, its JSON conversations parsed.

    Raises UserError where most texts of a column are conversations and one is not, or where they are written as Python writes them.
    """
    prompts, responses = _column(records, "prompt"), _column(records, "response")
    return [replace(r, prompt=p, response=a) for r, p, a in zip(records, prompts, responses, strict=True)]


def _column(records: Sequence[Record], what: Literal["prompt", "response"]) -> list[Any]:
    contents = [getattr(record, what) for record in records]
    texts = {
        n: text for n, text in enumerate(contents) if isinstance(text, str) and text.strip() and not records[n].left_out
    }
    python = [n for n, text in texts.items() if _PYTHON.match(text)]
    if 2 * len(python) > len(texts):
        raise UserError(
            f"{records[python[0]].where} has a {what} that is messages as Python writes them ({contents[python[0]][:12]}...); "
            "messages are lists, or JSON (json.dumps)"
        )
    parsed = {n: _messages(text) for n, text in texts.items()}
    if 2 * sum(map(bool, parsed.values())) <= len(texts):
        return contents
    if other := [n for n, messages in parsed.items() if messages is None]:
        raise UserError(
            f"{records[other[0]].where} has a {what} that is no JSON of messages, and most rows have that; all need it, or none"
        )
    return [parsed.get(n, content) for n, content in enumerate(contents)]


def _messages(text: str) -> Messages | None:
    """The messages that the text is the JSON of (there may be none), or None."""
    try:
        found = json.loads(text) if _LIST.match(text) else None
    except (ValueError, RecursionError):
        return None
    known = isinstance(found, list) and all(isinstance(m, dict) and {"role", "content"} <= {*m} for m in found)
    return found if known else None
