"""One response as some trainer wrote it down, and the table it stands in."""

import json
import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any

from opo.errors import UserError, near

Messages = list[dict[str, Any]]
Content = str | list[int] | Messages  # text, token ids, or a conversation
LARGEST = 1e12  # of rewards and their weights, far within what float64 squares and sums exactly enough
LARGEST_STEP = 2**63 - 1


@dataclass(frozen=True)
class Table:
    """The rows of one file, with the number of each, from 1."""

    file: Path
    rows: list[dict[str, Any]]
    numbers: list[int]

    @property
    def columns(self) -> list[str]:
        """Every column, in the order in which it is first seen."""
        return list(dict.fromkeys(name for row in self.rows for name in row))

    def where(self, n: int) -> str:
        """How row n is called in a message."""
        return f"{self.file}: row {self.numbers[n]}"


@dataclass(frozen=True)
class Record:
    """One response. What a format does not say is None."""

    where: str
    group: Hashable | None  # of the prompt among those of its step; None: responses to equal prompts are one group
    prompt: Content | None
    response: Content | None
    reward: Any  # the format's own reward, before `reward.column` is asked
    numbers: Mapping[str, Any] = field(default_factory=dict)  # what else could be the reward, by name
    logprobs: Any = None
    produced: Any = None  # of a response in token ids: which of them the policy sampled; None: all
    answer: str | None = None
    truncated: bool | None = None  # cut at a limit, so that no end of text was sampled
    step: int | None = None  # of training, or the version of the policy that sampled
    temperature: Any = None
    tools: Any = None  # definitions that the prompt's template was given
    left_out: str | None = None  # why it does not count


@dataclass(frozen=True)
class RewardChoice:
    """Which columns are the reward: one, or a weighted sum of several; neither: the format's own."""

    column: str | None = None
    columns: Mapping[str, float] | None = None

    @property
    def weights(self) -> dict[str, float]:
        return {self.column: 1.0} if self.column is not None else dict(self.columns or {})

    def check(self, file: Path, known: Sequence[str]) -> None:
        """Raise UserError where a column is named that no row of the file has, or with a weight that is none."""
        for name, weight in self.weights.items():
            if not abs(weight) <= LARGEST:
                raise UserError(
                    f"reward.columns: {name} has the weight {weight:g}; a number up to {LARGEST:g} is needed"
                )
            if name not in known:
                key = "reward.column" if self.column is not None else "reward.columns"
                raise UserError(
                    f"{key}: {file} has no column {name}{near(name, known)}; it has {', '.join(map(str, known))}"
                )

    def of(self, record: Record) -> float:
        """The reward of one response: sum of weight times value over the columns, NaN where one of them is null."""
        if not self.weights:
            return number(record.reward, record.where, "reward")
        values = {name: number(record.numbers.get(name), record.where, name) for name in self.weights}
        total = math.fsum(self.weights[name] * value for name, value in values.items())
        return number(total, record.where, f"a weighted sum of {' and '.join(values)} of")


def number(value: Any, where: str, name: str, or_null: str = "or null for unscored") -> float:
    """A finite number, or NaN for null and NaN; true is 1, text that reads as a number is that number."""
    if value is None:
        return math.nan
    if isinstance(value, str):
        try:
            value = {"true": 1.0, "false": 0.0}[value.strip().lower()]
        except KeyError:
            try:
                value = float(value if "_" not in value else "")  # Python's 1_0 is no number of a file
            except ValueError:
                raise UserError(f"{where} has {name} {value[:40]!r}; a number is needed, {or_null}") from None
    if isinstance(value, Mapping):
        parts = ", ".join(map(str, value))
        raise UserError(f"{where} has {name} in parts ({parts}); one number is needed, so write their sum as a column")
    if isinstance(value, list) or not isinstance(value, int | float):
        raise UserError(f"{where} has a {name} that is a {type(value).__name__}; a number is needed, {or_null}")
    if abs(value) > LARGEST:
        raise UserError(
            f"{where} has {name} {Decimal(value):.3g}; a finite number is needed (up to {LARGEST:g}), {or_null}"
        )
    return float(value)


def own_tokens(record: Record) -> list[bool]:
    """Which tokens of a response in token ids the policy produced. Raises UserError where the mask does not fit them."""
    mask, ids, what = (
        record.produced,
        record.response,
        f"{record.where} has a mask of the tokens that the policy produced",
    )
    if not isinstance(ids, list) or (ids and isinstance(ids[0], dict)):
        raise UserError(f"{what} beside a response that is no token ids; the two go together")
    if not isinstance(mask, list) or len(mask) != len(ids) or not all(m in (0, 1) for m in mask) or not any(mask):
        raise UserError(f"{what} that is no list of {len(ids)} zeros and ones, one for each token, with a one in it")
    return [bool(m) for m in mask]


def numeric_columns(table: Table, but: Sequence[str]) -> list[str]:
    """Columns that hold numbers or null alone, at least one number among them."""

    def numeric(name: str) -> bool:
        values = [row.get(name) for row in table.rows]
        known = [value for value in values if value is not None]
        return bool(known) and all(isinstance(value, int | float) for value in known)

    return [name for name in table.columns if name not in but and numeric(name)]


def whole(value: Any, where: str, name: str) -> int | None:
    """A whole number that fits into 64 bits, or None."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, bool) or not (isinstance(value, int) or (isinstance(value, float) and value.is_integer())):
        raise UserError(f"{where} has {name} {value!r}; a whole number is needed")
    if abs(value) > LARGEST_STEP:
        raise UserError(f"{where} has {name} {str(int(value))[:12]}...; a whole number up to {LARGEST_STEP} is needed")
    return int(value)


def hashable(value: Any) -> Hashable:
    """An id as something that can be compared: lists and dicts by their JSON."""
    if isinstance(value, tuple):
        return tuple(hashable(part) for part in value)
    return json.dumps(value, sort_keys=True, default=str) if isinstance(value, list | dict) else value


def text_of(value: Any) -> str | None:
    """A gold answer as text."""
    return value if value is None or isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def part_of(value: Any, where: str, name: str) -> Mapping[str, Any]:
    """An object by name, empty where it is null."""
    if value is not None and not isinstance(value, Mapping):
        raise UserError(f"{where} has {name} that is a {type(value).__name__}; an object is needed, or null")
    return value or {}


def flag(value: Any, where: str, name: str) -> bool | None:
    """True, false or None, also as 0, 1 and text, and as the floats that pandas makes of a column with gaps."""
    known = {"true": True, "1": True, "1.0": True, "false": False, "0": False, "0.0": False}
    known |= {"none": None, "null": None, "nan": None, "": None}
    text = str(value).strip().lower()
    if text not in known:
        raise UserError(f"{where} has {name} {text[:40]!r}; true, false or null is needed")
    return known[text]
