"""What every record must be, whichever format it is of, whether or not a model is asked."""

import json
import math
from dataclasses import replace
from typing import Any

from analysis.study.external.messages import as_messages
from analysis.study.external.record import Record, hashable, number
from opo.errors import UserError


def checked(record: Record) -> Record:
    """The record with an id that can be compared and a temperature that is a number. Raises UserError naming the row."""
    left_out, where = record.left_out, record.where
    if left_out is None:
        _content(record.prompt, where, "prompt")
        _content(record.response, where, "response")
        if record.prompt is None and record.group is None:
            left_out = "without a prompt"
    temperature = number(record.temperature, where, "temperature", "or null")
    if temperature < 0:
        raise UserError(f"{where} has temperature {temperature:g}; a number from 0 is needed, or null")
    return replace(
        record,
        group=hashable(record.group),
        temperature=None if math.isnan(temperature) else temperature,
        left_out=left_out,
    )


def _content(content: Any, where: str, what: str) -> None:
    if content is None or isinstance(content, str) or as_messages(content, where, what) is not None:
        return
    if not isinstance(content, list):
        raise UserError(
            f"{where} has a {what} that is a {type(content).__name__}; text, token ids or messages are needed"
        )
    for token in content:
        if isinstance(token, bool) or not (isinstance(token, int) or (isinstance(token, float) and token.is_integer())):
            raise UserError(
                f"{where} has token {json.dumps(token, default=str)[:40]} in its {what}; token ids are whole numbers"
            )
