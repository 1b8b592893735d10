"""What each algorithm is, read from its source: properties and hyperparameters are known without importing torch.

`opo/algorithms/NAME.py` holds one function NAME under `@algorithm(...)`, whose arguments are literals; its keyword arguments are its
hyperparameters, with types of `opo.keys`. The registry `opo.algorithms.ALGORITHMS` says the same and holds the losses.
"""

import ast
import typing
from collections.abc import Mapping
from dataclasses import dataclass, make_dataclass
from functools import cache
from pathlib import Path
from types import MappingProxyType

from pydantic.dataclasses import dataclass as strict_dataclass

from opo import keys

FOLDER = Path(__file__).parent / "algorithms"
NAMES = {**vars(typing), **vars(keys)}  # what the type of a hyperparameter may mention


@dataclass(frozen=True)
class Entry:
    """An algorithm without its loss; the properties are those of `opo.algorithms.Algorithm`."""

    name: str
    hyperparameters: type  # a strict dataclass of the loss's keyword arguments
    needs: tuple[str, ...] = ()
    on_policy_only: bool = False
    couples_prompts: bool = False
    token_level: bool = False
    unbiased_for: str = ""
    kl_reward: bool = True


@cache
def baseline_names() -> tuple[str, ...]:
    """The keys of `opo.baselines.BASELINES`."""
    for node in ast.parse((FOLDER.parent / "baselines.py").read_text(encoding="utf-8")).body:
        if isinstance(node, ast.AnnAssign) and ast.unparse(node.target) == "BASELINES":
            table = next(part for part in ast.walk(node) if isinstance(part, ast.Dict))
            return tuple(ast.literal_eval(key) for key in table.keys if key is not None)
    raise ValueError("opo/baselines.py: no BASELINES")


@cache
def catalogue() -> Mapping[str, Entry]:
    """Every algorithm by its name, the name of its file."""
    files = sorted(file for file in FOLDER.glob("*.py") if not file.stem.startswith("_"))
    return MappingProxyType({file.stem: _entry(file) for file in files})


def _entry(file: Path) -> Entry:
    """Raises ValueError where the file does not hold its algorithm in the form above."""
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef) and node.name == file.stem:
            for call in node.decorator_list:
                if isinstance(call, ast.Call) and ast.unparse(call.func) == "algorithm":
                    given = {str(word.arg): ast.literal_eval(word.value) for word in call.keywords}
                    known = {name: given[name] for name in Entry.__dataclass_fields__ if name in given}
                    return Entry(file.stem, _hyperparameters(node), **known)
    raise ValueError(f"{file}: no function {file.stem} under @algorithm(...)")


def _hyperparameters(function: ast.FunctionDef) -> type:
    """The keyword arguments as a dataclass: their types are evaluated, for they may use names of `typing` and `opo.keys` alone."""
    fields = []
    for argument, default in zip(function.args.kwonlyargs, function.args.kw_defaults, strict=True):
        assert argument.annotation is not None, f"{function.name}: {argument.arg} needs a type"
        assert default is not None, f"{function.name}: {argument.arg} needs a default"
        hint = eval(ast.unparse(argument.annotation), dict(NAMES))
        fields.append((argument.arg, hint, ast.literal_eval(default)))
    return strict_dataclass(make_dataclass(f"{function.name}_hyperparameters", fields), config=keys.STRICT)
