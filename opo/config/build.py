"""From plain dicts to typed dataclasses: unknown keys, wrong types and values outside a Literal are refused by name."""

import math
import types
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from opo.errors import UserError, near

T = TypeVar("T")
WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}


def build(kind: type[T], values: Any, key: str = "") -> T:
    """An instance of the dataclass `kind` from nested dicts; parts that are instances already stay as they are.

    Raises UserError of one line: the dotted key, what was given, what is allowed, and a near name where one is.
    """
    expected = {field.name: field for field in fields(kind)}  # pyright: ignore[reportArgumentType]
    if not isinstance(values, Mapping):
        raise UserError(f"{key or 'config'}={values}: a group of keys is needed, {', '.join(expected)}")
    hints = get_type_hints(kind)
    arguments: dict[str, Any] = {}
    for name, value in values.items():
        dotted = f"{key}.{name}".lstrip(".")
        if name not in expected:
            raise unknown_key(dotted, name, expected)
        arguments[name] = convert(hints[name], value, dotted)
    for name, field in expected.items():
        if name not in arguments and field.default is MISSING and field.default_factory is MISSING:
            raise UserError(f"{key}.{name}".lstrip(".") + ": missing, and it has no default")
    return kind(**arguments)


def unknown_key(key: str, name: str, allowed: Iterable[str]) -> UserError:
    """The refusal of a key that nothing reads."""
    allowed = sorted(allowed)
    return UserError(f"{key}: unknown key{near(name, allowed)}; allowed are {', '.join(allowed) or 'none'}")


def convert(kind: Any, value: Any, key: str) -> Any:
    """`value` as `kind`: nothing is rounded, parsed from text or made up. NaN and infinities are refused everywhere."""
    refuse_nonfinite(value, key)
    if kind is Any:
        return value
    if is_dataclass(kind) and isinstance(kind, type):
        return value if isinstance(value, kind) else build(kind, value, key)
    origin, choices = get_origin(kind), get_args(kind)
    if origin is Literal:
        if value in choices and not isinstance(value, bool):
            return value
        names = [str(choice) for choice in choices]
        raise UserError(f"{key}={value}: not one of {', '.join(names)}{near(str(value), names)}")
    if origin in (Union, types.UnionType):
        if value is None and type(None) in choices:
            return None
        inner = [choice for choice in choices if choice is not type(None)]
        fitting = [choice for choice in inner if isinstance(value, get_origin(choice) or choice)]
        return convert((fitting or inner)[0], value, key)
    if origin in (list, tuple):
        if not isinstance(value, list | tuple):
            raise UserError(f"{key}={value}: a list is needed, as in {key}=[...]")
        return origin(convert(choices[0], item, f"{key}[{i}]") for i, item in enumerate(value))
    if origin is dict or kind is dict:
        if not isinstance(value, Mapping):
            raise UserError(f"{key}={value}: a group of keys is needed")
        return dict(value)
    if kind is float and type(value) is int:
        return float(value)
    if type(value) is not kind:  # not isinstance: True is no number
        given = "null" if value is None else value
        raise UserError(f"{key}={given}: {WORDS.get(kind, str(kind))} is needed")
    return value


def refuse_nonfinite(value: Any, key: str) -> None:
    """Raise UserError where a NaN or an infinity hides in `value`, however deep."""
    if isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"{key}={value}: a finite number is needed")
    if isinstance(value, Mapping):
        for name, inner in value.items():
            refuse_nonfinite(inner, f"{key}.{name}")
    elif isinstance(value, list | tuple):
        for i, inner in enumerate(value):
            refuse_nonfinite(inner, f"{key}[{i}]")
