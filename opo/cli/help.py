"""What `opo COMMAND --help` prints: its groups with their choices, and every key with its value, what is allowed and what it means."""

import re
import shutil
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from opo.catalogue import catalogue
from opo.cli.compose import compose_job, composing, plain
from opo.config.describe import Key, allowed, keys_of
from opo.tasks import TASKS

FOOTER = """-m a=1,2 runs every combination; --cfg job prints the config and stops; --info defaults shows where it comes from;
`opo -sc install=bash` prints a script for completion on TAB. --hydra-help lists the rest."""


def help_of(root: str, overrides: Sequence[str], conf: Path, schema: type) -> str:
    """The help of a command under these overrides. Raises UserError where they cannot be."""
    with composing():
        config = compose_job(root, overrides)
        choices = {str(k): v for k, v in config.hydra.runtime.choices.items() if not str(k).startswith("hydra/")}
        shown = dict(_leaves(plain(config, root, whole=False)))
    keys = {key.name: key for key in _schema_keys(schema, choices, shown)}
    comments = {name: key.comment for name, key in keys.items()} | _comments_of_files(root, choices, conf)
    blocks = [first_comment(conf / f"{root}.yaml")]
    if choices:
        blocks.append("Groups (group=choice):\n\n" + "\n".join(_groups(choices, conf)))
    blocks.append("Keys (a.b=value) with these choices:\n\n" + "\n".join(_keys(shown, keys, comments)))
    return "\n\n".join([*blocks, FOOTER])


def first_comment(file: Path) -> str:
    """The comment that opens a config file, without the number signs and Hydra's directives."""
    comment_lines = []
    for line in file.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            if comment_lines:
                break
            continue
        if not line.startswith("# @"):
            comment_lines.append(line.removeprefix("#").strip())
    return "\n".join(comment_lines)


def _groups(choices: dict[str, Any], conf: Path) -> Iterator[str]:
    for group, choice in reversed(choices.items()):
        if "@" in group:  # defaults of another group's keys, nothing to choose
            continue
        yield f"  {group}={'null' if choice is None else choice}"
        files = sorted((conf / group.partition("@")[0]).glob("*.yaml"))
        width = max(len(file.stem) for file in files)
        for file in files:
            yield _wrapped(f"      {file.stem:<{width}}  ", first_comment(file).partition("\n")[0])


def _keys(shown: dict[str, Any], keys: dict[str, Key], comments: dict[str, str]) -> Iterator[str]:
    for name, value in shown.items():
        left = f"  {name}={_written(value)}"
        meaning = [comments.get(name, ""), f"[{allowed(keys[name].hint)}]" if name in keys else ""]
        text = " ".join(part for part in meaning if part)
        if len(left) > 44:
            yield left
            left = ""
        yield _wrapped(f"{left:<44}  ", text)


def _wrapped(start: str, text: str) -> str:
    width = max(80, min(shutil.get_terminal_size((120, 24)).columns, 140))
    return (
        textwrap.fill(text, width, initial_indent=start, subsequent_indent=" " * len(start)) if text else start.rstrip()
    )


def _written(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    return f"[{','.join(map(_written, value))}]" if isinstance(value, list) else str(value).replace("\n", "\\n")


def _schema_keys(schema: type, choices: dict[str, Any], shown: dict[str, Any]) -> Iterator[Key]:
    """The keys of the command, of the chosen algorithm and of the chosen task."""
    yield from keys_of(schema)
    if choices.get("algo") in catalogue():
        yield from keys_of(catalogue()[choices["algo"]].hyperparameters, "algo.")
    if shown.get("task.name") in TASKS:
        yield from keys_of(TASKS[shown["task.name"]][0], "task.")


def _leaves(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, dict) and value:
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _comments_of_files(root: str, choices: dict[str, Any], conf: Path) -> dict[str, str]:
    """The comments beside the keys in the root config and in the files of the chosen options."""
    comments = _comments(conf / f"{root}.yaml", "")
    for group, choice in choices.items():
        path, _, package = group.partition("@")
        file = conf / path / f"{choice}.yaml"
        if choice is not None and file.is_file():
            everywhere = "# @package _global_" in file.read_text(encoding="utf-8")
            comments |= _comments(file, "" if everywhere else f"{package or group}.")
    return comments


def _comments(file: Path, prefix: str) -> dict[str, str]:
    comments: dict[str, str] = {}
    parents: list[tuple[int, str]] = []
    for line in file.read_text(encoding="utf-8").splitlines():
        if not (match := re.match(r"( *)([\w.]+):(.*)", line)):
            continue
        indent, name, rest = len(match[1]), match[2], match[3]
        parents = [parent for parent in parents if parent[0] < indent]
        if comment := re.search(r" # (.+)$", rest):
            comments[prefix + ".".join([*(parent for _, parent in parents), name])] = comment[1]
        parents.append((indent, name))
    return comments
