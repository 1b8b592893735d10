"""Tasks and reward functions of the user's own, by name: `my_module:MyTask`, from the current folder or an installed package."""

import os
import re
import site
import sys
from dataclasses import MISSING, fields, is_dataclass, make_dataclass
from functools import cache
from importlib import import_module
from inspect import signature
from pathlib import Path
from typing import Any, get_type_hints

from pydantic.dataclasses import dataclass

from opo.errors import UserError, near
from opo.keys import STRICT
from opo.tasks.base import Prompt, Task

REFERENCE = re.compile(r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")


def is_reference(name: Any) -> bool:
    """True for `module:name`."""
    return isinstance(name, str) and REFERENCE.fullmatch(name) is not None


@cache
def load_object(reference: str, key: str) -> Any:
    """What `module:name` names. Raises UserError, which begins with the config `key`, where it cannot be imported."""
    if not is_reference(reference):
        raise UserError(f"{key}={reference}: must read module:name, as in my_module:score for score in my_module.py")
    module_name, _, name = reference.partition(":")
    _current_folder_before_packages()
    try:
        module = import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name and (module_name == error.name or module_name.startswith(f"{error.name}.")):
            raise UserError(
                f"{key}={reference}: no module {error.name} in {os.getcwd()} nor among the installed"
            ) from error
        raise UserError(f"{key}={reference}: {module_name} imports {error.name}, which is not installed") from error
    except Exception as error:
        raise UserError(f"{key}={reference}: importing {module_name} raised {said(error)}") from error
    if not hasattr(module, name):
        raise UserError(f"{key}={reference}: {module.__file__} has no {name}{near(name, vars(module))}")
    return getattr(module, name)


def _current_folder_before_packages() -> None:
    """The current folder on the path: it hides installed packages, as a script's folder does, but not the standard library."""
    folder = os.getcwd()
    if folder in sys.path or "" in sys.path:
        return
    packages = {*site.getsitepackages(), site.getusersitepackages()}
    first = next((i for i, path in enumerate(sys.path) if path in packages), len(sys.path))
    sys.path.insert(first, folder)


def said(error: BaseException) -> str:
    """An exception of the user's code in one line: type, message, file and line."""
    where, trace = "", error.__traceback__
    while trace is not None:
        where, trace = f" ({trace.tb_frame.f_code.co_filename}:{trace.tb_lineno})", trace.tb_next
    return f"{type(error).__name__}: {' '.join(str(error).split())}{where}"


def source_file(reference: str, key: str) -> Path:
    """The file of the module that `reference` names: what depends on it is not what another version would give."""
    load_object(reference, key)
    return Path(sys.modules[reference.partition(":")[0]].__file__ or "")


def options_of(reference: str) -> type | None:
    """The dataclass of a task's options: the type of its constructor's first argument; None where it takes none."""
    task = load_object(reference, "task")
    if not isinstance(task, type):
        raise UserError(f"task={reference}: a class is needed, with prompt(index, split) and score(prompt, response)")
    parameters = list(signature(task).parameters)
    if not parameters:
        return None
    kind = get_type_hints(task.__init__).get(parameters[0])
    if not (isinstance(kind, type) and is_dataclass(kind)):
        raise UserError(
            f"task={reference}: its constructor must take one argument whose annotation is a dataclass of options, or none"
        )
    return kind


@cache
def config_kind(reference: str) -> type:
    """A dataclass with the task's options and its `name`, which is the reference."""
    options = options_of(reference)
    own = [] if options is None else [(f.name, get_type_hints(options)[f.name], f) for f in fields(options) if f.init]
    return dataclass(config=STRICT)(
        make_dataclass("OwnTaskConfig", [("name", str), *(part for part in own if part[0] != "name")], kw_only=True)
    )


def defaults_of(reference: str) -> dict[str, Any]:
    """The task's config group as a YAML file would hold it; ??? for an option without a default."""
    values: dict[str, Any] = {"name": reference}
    for field in fields(config_kind(reference)):
        if field.name != "name":
            made = field.default_factory() if field.default_factory is not MISSING else field.default
            values[field.name] = "???" if made is MISSING else made
    return values


def make_own_task(config: Any) -> Task:
    """The task itself. Raises UserError where its constructor raises or a method is missing."""
    reference = config.name
    kind, options = load_object(reference, "task"), options_of(reference)
    for method in ("prompt", "score"):
        if not callable(getattr(kind, method, None)):
            raise UserError(
                f"task={reference}: the class has no method {method}; it needs prompt(index, split) and score(prompt, response)"
            )
    try:
        arguments = (
            [] if options is None else [options(**{f.name: getattr(config, f.name) for f in fields(options) if f.init})]
        )
        task = kind(*arguments)
        first = task.prompt(0, "train")
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"task={reference}: {said(error)}") from error
    if not isinstance(first, Prompt) or first.index != 0 or not isinstance(first.text, str):
        raise UserError(f"task={reference}: prompt(0, 'train') must return an opo.tasks.Prompt with index 0 and a text")
    for name, value in (("name", reference), ("stop", ()), ("extract", stripped)):
        if not hasattr(task, name):
            setattr(task, name, value)
    return task


def stripped(response: str) -> str | None:
    """The whole response as a vote."""
    return response.strip() or None
