"""What the schema says of a key: its range, its choices, its default and the comment beside it."""

import inspect
import math
import re
import types
from collections.abc import Iterator
from dataclasses import MISSING, dataclass, fields, is_dataclass
from functools import cache
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from annotated_types import Ge, Gt, Le, Lt
from pydantic.fields import FieldInfo

from opo.keys import HUGE, LARGEST

WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}


@dataclass(frozen=True)
class Interval:
    """Numbers from `low` to `high`, each end included unless it is open."""

    low: float = -math.inf
    high: float = math.inf
    open_low: bool = False
    open_high: bool = False

    def __str__(self) -> str:
        low = f"{'above' if self.open_low else 'at least'} {number(self.low)}" if self.low > -math.inf else ""
        high = f"{'below' if self.open_high else 'at most'} {number(self.high)}" if self.high < math.inf else ""
        return " and ".join(end for end in (low, high) if end)

    def __contains__(self, value: float) -> bool:
        above = value > self.low if self.open_low else value >= self.low
        return above and (value < self.high if self.open_high else value <= self.high)

    @property
    def sensible(self) -> "Interval":
        """Without an end that stands there only so that nothing overflows."""
        low = -math.inf if self.low <= -HUGE else self.low
        high = math.inf if self.high in (HUGE, LARGEST, 2**63 - 1) else self.high
        return Interval(low, high, self.open_low, self.open_high)


def number(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:g}"


def types_of(hint: Any) -> list[Any]:
    """The types that a key may have, each with its annotations, without null and the list around them."""
    origin, parts = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return [inner for part in parts if part is not type(None) for inner in types_of(part)]
    if origin is list or (origin is Annotated and get_origin(parts[0]) is list):
        return types_of(parts[0])
    return [hint]


def interval(hint: Any) -> Interval | None:
    """The range of a number."""
    ends: dict[str, Any] = {}
    for kind in types_of(hint):
        for bound in _metadata(kind):
            match bound:
                case Ge(ge=low) | Gt(gt=low):
                    ends |= {"low": low, "open_low": isinstance(bound, Gt)}
                case Le(le=high) | Lt(lt=high):
                    ends |= {"high": high, "open_high": isinstance(bound, Lt)}
    return Interval(**ends) if ends else None


def choices(hint: Any) -> list[str]:
    """The names that a key may have, none where it is free."""
    return [str(choice) for kind in bare(hint) if get_origin(kind) is Literal for choice in get_args(kind)]


def bare(hint: Any) -> list[Any]:
    """The types of a key without annotations."""
    return [get_args(kind)[0] if get_origin(kind) is Annotated else kind for kind in types_of(hint)]


def allowed(hint: Any) -> str:
    """What a key may be, in words: its description, its choices, its range or its type."""
    for kind in types_of(hint):
        for part in get_args(kind)[1:]:
            if isinstance(part, FieldInfo) and part.description:
                return part.description
    if names := choices(hint):
        return ", ".join(names)
    ends = interval(hint)
    words = " or ".join(dict.fromkeys(WORDS.get(kind, "anything") for kind in bare(hint)))
    return (str(ends.sensible) if ends else "") or words


def _metadata(kind: Any) -> list[Any]:
    return [bound for part in get_args(kind)[1:] if isinstance(part, FieldInfo) for bound in part.metadata]


@dataclass(frozen=True)
class Key:
    """One key of the schema."""

    name: str  # with dots
    hint: Any
    default: Any  # MISSING where there is none
    comment: str


def keys_of(kind: type, prefix: str = "") -> Iterator[Key]:
    """Every key of a schema, groups opened."""
    hints = get_type_hints(kind, include_extras=True)
    for field in fields(kind):  # pyright: ignore[reportArgumentType]
        hint = hints[field.name]
        group = next((part for part in types_of(hint) if is_dataclass(part) and isinstance(part, type)), None)
        if group is not None and get_origin(hint) is not list:
            yield from keys_of(group, f"{prefix}{field.name}.")
            continue
        made = field.default_factory() if field.default_factory is not MISSING else field.default
        yield Key(f"{prefix}{field.name}", hint, made, comments(kind).get(field.name, ""))


@cache
def comments(kind: type) -> dict[str, str]:
    """The comment at the end of each field's line, those of the classes it inherits from included."""
    comments_by_key: dict[str, str] = {}
    for ancestor in reversed(kind.__mro__):
        try:
            lines = inspect.getsource(ancestor).splitlines() if is_dataclass(ancestor) else []
        except OSError:  # made, not written: an algorithm's hyperparameters, whose comments stand in conf/algo/
            continue
        comments_by_key |= {
            match[1]: match[2] for line in lines if (match := re.match(r"    (\w+): .*?  # (.+)", line))
        }
    return comments_by_key
