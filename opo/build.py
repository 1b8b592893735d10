"""From plain dicts to typed dataclasses: unknown keys, wrong types and values outside a Literal are refused by name."""

import difflib
import math
import types
from collections.abc import Iterable, Mapping
from dataclasses import fields, is_dataclass
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from opo.errors import UserError

T = TypeVar("T")


def build(kind: type[T], values: Any, key: str = "") -> T:
    """An instance of the dataclass `kind` from nested dicts.

    Raises UserError of one line: the dotted key, what was given, what is allowed, and a near name where one is.
    """
    if not isinstance(values, Mapping):
        raise UserError(
            f"{key or 'config'}={values!r}: a group of keys is needed, {', '.join(f.name for f in fields(kind))}"
        )  # type: ignore[arg-type]
    hints = get_type_hints(kind)
    names = [f.name for f in fields(kind)]  # type: ignore[arg-type]
    for name in values:
        if name not in names:
            raise unknown_key(f"{key}.{name}".lstrip("."), name, names)
    try:
        return kind(
            **{name: convert(hints[name], value, f"{key}.{name}".lstrip(".")) for name, value in values.items()}
        )
    except TypeError as error:
        raise UserError(f"{key or 'config'}: {error}") from error


def unknown_key(key: str, name: str, allowed: Iterable[str]) -> UserError:
    """The refusal of a key that nothing reads."""
    allowed = sorted(allowed)
    return UserError(f"{key}: unknown key{near(name, allowed)}; allowed are {', '.join(allowed) or 'none'}")


def near(name: str, allowed: Iterable[str]) -> str:
    """`, did you mean X?` where something is near, else nothing."""
    close = difflib.get_close_matches(name, list(allowed), n=1, cutoff=0.6)
    return f" (did you mean {close[0]}?)" if close else ""


def convert(kind: Any, value: Any, key: str) -> Any:
    """`value` as `kind`: nothing is rounded, parsed from text or made up. NaN and infinities are refused everywhere."""
    if isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"{key}={value}: a finite number is needed")
    if kind is Any:
        return value
    if is_dataclass(kind) and isinstance(kind, type):
        return build(kind, value, key)
    origin, choices = get_origin(kind), get_args(kind)
    if origin is Literal:
        if value in choices and not isinstance(value, bool):
            return value
        raise UserError(
            f"{key}={value}: choose one of {', '.join(map(str, choices))}{near(str(value), map(str, choices))}"
        )
    if origin in (Union, types.UnionType):
        if value is None and type(None) in choices:
            return None
        (inner,) = [c for c in choices if c is not type(None)]
        return convert(inner, value, key)
    if origin in (list, tuple):
        if not isinstance(value, list | tuple):
            raise UserError(f"{key}={value!r}: a list is needed")
        return origin(convert(choices[0], item, f"{key}[{i}]") for i, item in enumerate(value))
    if origin is dict or kind is dict:
        if not isinstance(value, Mapping):
            raise UserError(f"{key}={value!r}: a group of keys is needed")
        return dict(value)
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise UserError(f"{key}={value!r}: {words.get(kind, kind.__name__)} is needed")
    return value
