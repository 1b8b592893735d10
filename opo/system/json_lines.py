"""JSONL: one JSON object a line, and one line of refusal for what is none."""

import json
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

from opo.errors import UserError

BOM = b"\xef\xbb\xbf"
NO_TEXT = {
    b"\x1f\x8b": "gzip",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"\xff\xfe\x00\x00": "UTF-32",  # before UTF-16, which begins alike
    b"\xff\xfe": "UTF-16",
    b"\xfe\xff": "UTF-16",
    b"PAR1": "parquet",
}  # by first bytes


def json_lines(content: bytes, file: str, line: Callable[[int], str]) -> Iterator[tuple[int, dict[str, Any]]]:
    """The objects of a file with their line numbers from 1, blank lines counted.

    UTF-8; a byte-order mark, CRLF and bare NaN are legal. Lines end at a line feed alone, so U+2028 and U+0085 are part of the
    text. Raises UserError, which begins with `file` or with `line(number)`.
    """
    for first, name in NO_TEXT.items():
        if content.startswith(first):
            raise UserError(f"{file}: is {name}; needs plain UTF-8 text, one JSON object a line")
    for number, text in enumerate(content.removeprefix(BOM).split(b"\n"), start=1):
        if not text.strip():
            continue
        try:
            row = json.loads(text.decode("utf-8"), object_pairs_hook=_once)
            if b"\\ud" in text.lower():  # may be half of a character, which no file and no tokenizer can hold
                json.dumps(row, ensure_ascii=False).encode("utf-8")
        except UserError as error:
            raise UserError(f"{line(number)} {error}") from error
        except (ValueError, RecursionError) as error:
            raise UserError(f"{line(number)} {_fault(error)}") from error
        if not isinstance(row, dict):
            raise UserError(f"{line(number)} is a {type(row).__name__}; needs one JSON object, {{...}}, a line")
        yield number, row


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The object. Raises UserError where a key occurs twice: of two values one would be lost."""
    found = dict(pairs)
    if len(found) < len(pairs):
        key, _ = Counter(key for key, _ in pairs).most_common(1)[0]
        raise UserError(f"has the key {key} twice; needs it once")
    return found


def _fault(error: ValueError | RecursionError) -> str:
    """Why a line cannot be read."""
    if isinstance(error, UnicodeEncodeError):
        return "has half of a surrogate pair; needs whole characters"
    if isinstance(error, UnicodeDecodeError):
        return "is not UTF-8; needs one JSON object a line"
    if isinstance(error, json.JSONDecodeError | RecursionError):
        return "is not JSON; needs one JSON object a line"
    return f"has an integer of more than {sys.get_int_max_str_digits()} digits; needs it as text, in quotes"
