"""What a run is made from beside its config, by content: data files, and the source of tasks and rewards of the user's own."""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

from opo.errors import UserError
from opo.tasks.own import is_reference, source_file


def inputs_of(task: Any, functions: Any = ()) -> list[Path]:
    """The files that a task's config names, and the modules of the task and of reward functions."""
    named, rewards = list(texts(task)), list(texts(functions))
    files = [Path(text) for text in named if is_file(text)]
    return files + [source_file(text, "task") for text in (*named, *rewards) if is_reference(text)]


def digests_of(config: Mapping[str, Any]) -> dict[str, str]:
    """File -> digest of everything that a training's prompts and rewards depend on."""
    files = inputs_of(config.get("task"), (config.get("reward") or {}).get("function"))
    return {str(file): digest(file) for file in dict.fromkeys(files)}


def refuse_changed_inputs(recorded: Any, found: Mapping[str, str], path: Path) -> None:
    """Raise UserError that names the first file which is not what it was when the run in `path` began."""
    for file, before in recorded.items() if isinstance(recorded, dict) else ():
        if file in found and found[file] != before:
            raise UserError(
                f"{file}: has changed since the run in {path} began; put the old one back, or give another folder"
            )


def digest(file: Path) -> str:
    """A hash of a file's bytes."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "blake2b").hexdigest()[:32]


def texts(value: Any) -> Iterator[str]:
    """Every text in a config, however deep."""
    if is_dataclass(value) and not isinstance(value, type):
        value = asdict(value)
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for inner in value.values():
            yield from texts(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from texts(inner)


def is_file(text: str) -> bool:
    """False too for what no file system takes as a name."""
    try:
        return Path(text).is_file()
    except (OSError, ValueError):
        return False
