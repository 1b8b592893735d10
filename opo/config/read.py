"""From plain dicts to the schema's dataclasses; what does not fit is refused in one line that names the key."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, TypeVar, get_args, get_type_hints

from pydantic import ValidationError

from opo.config.describe import allowed, choices, interval, types_of
from opo.errors import UserError, near

T = TypeVar("T")
LONGEST = 200  # characters of a value in a refusal
WANTED = {  # pydantic's type of an error -> what is needed
    "int_type": "a whole number is needed",
    "float_type": "a number is needed",
    "bool_type": "true or false is needed",
    "string_type": "text is needed",
    "finite_number": "a finite number is needed",
    "list_type": "a list is needed, as in {key}=[...]",
    "too_short": "too few; at least {least} are needed",
    "dict_type": "a group of keys is needed",
    "dataclass_exact_type": "a group of keys is needed",
}


def read(kind: type[T], values: Any, key: str = "") -> T:
    """An instance of the dataclass `kind` from nested dicts; parts that are instances already stay as they are.

    Raises UserError of one line: the dotted key, what was given, what is allowed, and a near name where one is.
    """
    hints = get_type_hints(kind, include_extras=True)
    if not isinstance(values, Mapping):
        raise UserError(f"{key or 'config'}={shown(values)}: a group of keys is needed, {', '.join(hints)}")
    for name in values:
        if name not in hints:
            raise unknown_key(dotted(key, name), str(name), hints)
    refuse_nonfinite(values, key)
    arguments = {name: _groups(hints[name], value, dotted(key, name)) for name, value in values.items()}
    for field in fields(kind):  # pyright: ignore[reportArgumentType]
        if field.name not in arguments and field.default is MISSING and field.default_factory is MISSING:
            raise UserError(f"{dotted(key, field.name)}: missing, and it has no default")
    try:
        return kind(**arguments)
    except ValidationError as error:
        raise _refusal(error, hints, key) from error


def _groups(hint: Any, value: Any, key: str) -> Any:
    """A value in which groups of keys are instances of their dataclass."""
    group = next((part for part in types_of(hint) if is_dataclass(part) and isinstance(part, type)), None)
    if group is None:
        return value
    if isinstance(value, Mapping):
        return read(group, value, key)
    if isinstance(value, list):
        return [_groups(group, item, f"{key}[{i}]") for i, item in enumerate(value)]
    return value


def _refusal(error: ValidationError, hints: Mapping[str, Any], key: str) -> UserError:
    """The first thing that is wrong, in one line."""
    first = error.errors(include_url=False)[0]
    name, *inside = first["loc"]
    hint, value = hints[str(name)], first["input"]
    at = dotted(key, name) + "".join(f"[{part}]" for part in inside if isinstance(part, int))
    if first["type"] == "literal_error":
        names = choices(hint)
        allowed_names = [*names, "null"] if type(None) in get_args(hint) else names
        return UserError(f"{at}={shown(value)}: not one of {', '.join(allowed_names)}{near(str(value), names)}")
    wanted = WANTED.get(first["type"], f"allowed is {allowed(hint)}")
    ends = interval(hint)
    if isinstance(value, int | float) and ends and value in ends.sensible and value not in ends:
        wanted = f"allowed is {ends}"  # an end that stands there only so that nothing overflows
    return UserError(f"{at}={shown(value)}: {wanted.format(key=at, least=first.get('ctx', {}).get('min_length'))}")


def dotted(key: str, name: Any) -> str:
    """The name of a key inside a group."""
    return f"{key}.{shown(name)}".lstrip(".")


def shown(value: Any) -> str:
    """A value in a refusal: cut where it is long."""
    text = "null" if value is None else str(value)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."


def unknown_key(key: str, name: str, allowed: Iterable[str]) -> UserError:
    """The refusal of a key that nothing reads."""
    allowed = sorted(allowed)
    return UserError(f"{key}: unknown key{near(name, allowed)}; allowed are {', '.join(allowed) or 'none'}")


def refuse_nonfinite(value: Any, key: str) -> None:
    """Raise UserError where a NaN or an infinity hides in `value`, however deep."""
    if isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"{key}={value}: a finite number is needed")
    if isinstance(value, Mapping):
        for name, inner in value.items():
            refuse_nonfinite(inner, dotted(key, name))
    elif isinstance(value, list | tuple):
        for i, inner in enumerate(value):
            refuse_nonfinite(inner, f"{key}[{i}]")
