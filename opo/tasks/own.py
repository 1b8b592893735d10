"""Tasks and reward functions of the user's own, by name: `my_module:MyTask`, from the current folder or an installed package."""

import asyncio
import os
import re
import site
import sys
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import MISSING, Field, fields, is_dataclass, make_dataclass
from decimal import Decimal
from functools import cache
from importlib import import_module
from inspect import iscoroutine, signature
from pathlib import Path
from typing import Any, get_type_hints

from pydantic import TypeAdapter
from pydantic.dataclasses import dataclass
from pydantic.errors import PydanticUndefinedAnnotation, PydanticUserError

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
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        advice = "; a program belongs under `if __name__ == '__main__'`" if isinstance(error, SystemExit) else ""
        raise UserError(f"{key}={reference}: importing {module_name} raised {said(error)}{advice}") from error
    try:
        return getattr(module, name)
    except AttributeError as error:
        raise UserError(f"{key}={reference}: {module.__file__} has no {name}{near(name, vars(module))}") from error
    except Exception as error:  # of a module's own __getattr__
        raise UserError(f"{key}={reference}: asking {module_name} for {name} raised {said(error)}") from error


def _current_folder_before_packages() -> None:
    """The current folder on the path: it hides installed packages, as a script's folder does, but not the standard library."""
    folder = os.getcwd()
    if folder in sys.path or "" in sys.path:
        return
    packages = {*site.getsitepackages(), site.getusersitepackages()}
    first = next((i for i, path in enumerate(sys.path) if path in packages), len(sys.path))
    sys.path.insert(first, folder)


def brief(error: BaseException) -> str:
    """An exception in one line: type and message."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def said(error: BaseException) -> str:
    """An exception of the user's code in one line: type, message, file and line."""
    where, trace = "", error.__traceback__
    while trace is not None:
        where, trace = f" ({trace.tb_frame.f_code.co_filename}:{trace.tb_lineno})", trace.tb_next
    return f"{brief(error)}{where}"


def source_file(reference: str, key: str) -> Path:
    """The file of the module that `reference` names: what depends on it is not what another version would give."""
    load_object(reference, key)
    return Path(sys.modules[reference.partition(":")[0]].__file__ or "")


def options_of(reference: str) -> type | None:
    """The dataclass of a task's options: the type of its constructor's first argument; None where it takes none."""
    task = load_object(reference, "task")
    if not isinstance(task, type):
        raise UserError(f"task={reference}: a class is needed, with prompt(index, split) and score(prompt, response)")
    try:
        parameters = list(signature(task).parameters)
    except (TypeError, ValueError) as error:  # of a class that is not written in Python
        raise UserError(
            f"task={reference}: a class written in Python is needed; {' '.join(str(error).split())}"
        ) from error
    if not parameters:
        return None
    kind = _hints(task.__init__, reference).get(parameters[0])
    if not (isinstance(kind, type) and is_dataclass(kind)):
        raise UserError(
            f"task={reference}: its constructor must take one argument whose annotation is a dataclass of options, or none"
        )
    return kind


@cache
def config_kind(reference: str) -> type:
    """A dataclass with the task's options and its `name`, which is the reference."""
    options = options_of(reference)
    hints = {} if options is None else _hints(options, reference)
    own = [] if options is None else [(f.name, hints[f.name], f) for f in fields(options) if f.init]
    for name, hint, _ in own:
        _refuse_type(reference, name, hint)
    return dataclass(config=STRICT)(
        make_dataclass("OwnTaskConfig", [("name", str), *(part for part in own if part[0] != "name")], kw_only=True)
    )


def _hints(annotated: Any, reference: str) -> dict[str, Any]:
    """The annotations of a class or function of the user's, evaluated."""
    try:
        return get_type_hints(annotated)
    except Exception as error:  # an annotation is an expression, which may raise anything
        raise UserError(
            f"task={reference}: the annotations of {annotated.__qualname__} cannot be read ({brief(error)}); "
            "what they name must be imported when the module runs, not under TYPE_CHECKING alone"
        ) from error


def _refuse_type(reference: str, name: str, hint: Any) -> None:
    """Raise UserError for an option of a type that no YAML file holds."""
    try:
        TypeAdapter(hint)
    except (PydanticUserError, PydanticUndefinedAnnotation) as error:
        raise UserError(
            f"task={reference}: option {name} is of the type {getattr(hint, '__name__', hint)}, which a config cannot hold; allowed are "
            "numbers, true or false, text, lists, dicts and dataclasses of these"
        ) from error


def defaults_of(reference: str) -> dict[str, Any]:
    """The task's config group as a YAML file would hold it; ??? for an option without a default."""
    values: dict[str, Any] = {"name": reference}
    for field in fields(config_kind(reference)):
        if field.name != "name":
            values[field.name] = _default(field, reference)
    return values


def _default(field: Field[Any], reference: str) -> Any:
    """The default of an option. Raises UserError where its factory raises, or for a value that no YAML file holds."""
    from omegaconf import OmegaConf  # which the processes of rewards do not need

    try:
        made = field.default_factory() if field.default_factory is not MISSING else field.default
        OmegaConf.create({"value": None if made is MISSING else made})
    except Exception as error:  # a factory is the user's own code
        raise UserError(f"task={reference}: the default of option {field.name} is none: {brief(error)}") from error
    return "???" if made is MISSING else made


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
        task = OwnTask(kind(*arguments), reference)
    except (UserError, KeyboardInterrupt):
        raise
    except BaseException as error:
        raise UserError(f"task={reference}: {said(error)}") from error
    first, again = task.prompt(0), task.prompt(0)
    if (first.text, first.answer) != (again.text, again.answer):
        raise UserError(
            f"task={reference}: prompt(0) gave two different prompts; the same index must give the same one for ever, as from "
            "random.Random(index)"
        )
    return task


class OwnTask:
    """A task of the user's with what it may leave out. A prompt, a vote or a stop string that is none is refused in one line."""

    def __init__(self, task: Any, reference: str):
        self._task, self._reference = task, reference
        (self.name,) = _texts([getattr(task, "name", reference)], f"task={reference}: its name")
        self.stop = _texts(getattr(task, "stop", ()), f"task={reference}: its stop")
        self.warnings = _texts(getattr(task, "warnings", ()), f"task={reference}: its warnings")

    def __reduce__(self):
        return OwnTask, (self._task, self._reference)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._task, name)  # whatever else the user's task has

    def prompt(self, index: int, split: str = "train") -> Prompt:
        at = f"task={self._reference}: prompt({index}, {split!r})"
        try:
            prompt = self._task.prompt(index, split)
        except UserError:
            raise
        except (Exception, SystemExit) as error:
            raise UserError(f"{at} raised {said(error)}") from error
        if not isinstance(prompt, Prompt) or prompt.index != index or not isinstance(prompt.text, str):
            raise UserError(f"{at} must return an opo.tasks.Prompt with index {index} and a text")
        if not prompt.text and not prompt.chat:
            raise UserError(f"task={self._reference}: prompt {index} of the {split} stream is empty")
        return prompt

    def score(self, prompt: Prompt, response: str) -> float:
        return value_of(self._task.score(deepcopy(prompt), response))  # what it changes is not the next response's

    def extract(self, response: str) -> str | None:
        try:
            vote = getattr(self._task, "extract", stripped)(response)
        except (Exception, SystemExit) as error:
            raise UserError(f"task={self._reference}: extract raised {said(error)}") from error
        if vote is not None and not isinstance(vote, str):
            raise UserError(f"task={self._reference}: extract must return a text or None, not a {type(vote).__name__}")
        return vote


def _texts(values: Any, what: str) -> tuple[str, ...]:
    """A tuple of texts. Raises UserError where it is something else, or one is empty."""
    if not isinstance(values, list | tuple) or not all(isinstance(text, str) and text for text in values):
        raise UserError(f"{what} is {values!s:.60}; needs texts that are not empty, several as a tuple or list")
    return tuple(values)


def value_of(result: Any) -> Any:
    """The number in what a reward function or a task of the user's returned: out of a coroutine, a list of one, a dict with `score`, a scalar of numpy or torch."""
    if iscoroutine(result):
        result = asyncio.run(result)
    if isinstance(result, list | tuple) and len(result) == 1:
        result = result[0]
    if isinstance(result, Mapping) and "score" in result:
        result = result["score"]
    if isinstance(result, Decimal):
        return float(result)
    item = getattr(result, "item", None)
    return item() if callable(item) else result


def stripped(response: str) -> str | None:
    """The whole response as a vote."""
    return response.strip() or None
