"""`opo algorithms [NAME]`: the algorithms and presets of conf/algo, or one of them in full. Without torch, so at once."""

import ast
from collections.abc import Sequence
from importlib import import_module
from itertools import takewhile
from pathlib import Path

from opo.catalogue import FOLDER, catalogue
from opo.errors import UserError, near


def gallery(arguments: Sequence[str]) -> str:
    """The table, or the account of one algorithm. Raises UserError for a name that does not exist."""
    files = {file.stem: file for file in sorted(Path(import_module("conf").__path__[0], "algo").glob("*.yaml"))}
    if not arguments:
        return _table(files)
    name = arguments[0]
    if len(arguments) > 1 or name not in files:
        wrong = name if len(arguments) == 1 else " ".join(arguments)
        raise UserError(
            f"opo algorithms {wrong}: no such algorithm{near(name, files)}; choose one of {', '.join(files)}"
        )
    return _account(name, files[name])


def _table(files: dict[str, Path]) -> str:
    width = max(map(len, files))
    lines = [
        f"  {name:<{width}}  {_comments(file)[0].partition(': ')[2] or _comments(file)[0]}"
        for name, file in files.items()
    ]
    return "\n".join(
        [
            *lines,
            "",
            "  opo algorithms NAME   formula, source, bias and hyperparameters",
            "  opo train algo=NAME   train with it",
        ]
    )


def _account(name: str, file: Path) -> str:
    """What it is, its properties and its defaults; for a preset the algorithm that it is built around, too."""
    body = [line for line in file.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    base = next(line.partition(": ")[2].split()[0] for line in body if line.startswith("name:"))
    text = ast.get_docstring(ast.parse((FOLDER / f"{base}.py").read_text(encoding="utf-8"))) or ""
    entry = catalogue()[base]
    properties = [
        "one update per rollout batch only"
        if entry.on_policy_only
        else "has an importance ratio: several updates per batch",
        "a prompt's weights depend on the other prompts" if entry.couples_prompts else "each prompt by itself",
        "weights differ between tokens" if entry.token_level else "one weight a response",
    ]
    if entry.needs:
        properties.append(f"needs {', '.join(entry.needs)}")
    head = "\n".join([f"{name}", *_comments(file), "", *([f"built around {base}:", ""] if base != name else [])])
    return f"{head}{text}\n\n{'; '.join(properties)}\n\nconf/algo/{name}.yaml:\n" + "\n".join(body)


def _comments(file: Path) -> list[str]:
    lines = takewhile(lambda line: line.startswith("#"), file.read_text(encoding="utf-8").splitlines())
    return [line.removeprefix("#").strip() for line in lines]
