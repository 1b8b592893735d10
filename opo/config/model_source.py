"""Can this folder be loaded as a policy: what its files say before any weight is read. No torch is needed.

Nothing in a model's folder is run: no pickle is opened and no code that a config names (`auto_map`) is imported.
"""

import json
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from opo.system.manifest import refuse_damaged

PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt")
HEADER = 8  # bytes: the length of a safetensors header, little-endian
LONGEST_HEADER = 100_000_000  # bytes, the format's own limit


def unreachable(path: str, key: str) -> Iterator[str]:
    """Why `key=path` is neither a folder that can be loaded nor a model of the hub; nothing where it is one."""
    folder, where = Path(path).expanduser(), f"{key}={path}"
    if (folder / "config.json").is_file():
        yield from complaints(folder, where)
    elif (folder / "adapter_config.json").is_file():
        yield f"{where}: holds adapters alone; allowed is a whole model (peft's merge_and_unload, then save_pretrained)"
    elif (folder / "policy" / "config.json").is_file():
        yield f"{where}: a checkpoint of a run; its model is model={path}/policy"
    elif folder.exists():
        yield f"{where}: has no config.json; allowed is a folder that transformers' save_pretrained wrote"
    elif not re.fullmatch(r"[\w.-]+/[\w.-]+", path) or path.startswith("."):
        yield f"{where}: no such folder; allowed is a model folder, or a hub id such as org/name"
    elif refusal := _hub_refusal(path):
        yield f"{where}: no such folder, and as a hub id {refusal}"


@cache
def _hub_refusal(repository: str) -> str | None:
    """Why the hub does not give this model, None where it does or where its files are in the local cache."""
    from huggingface_hub import HfApi, try_to_load_from_cache
    from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError

    http_error: type[Exception] = HfHubHTTPError.__bases__[0]  # type: ignore  # of httpx or httpx2, whichever this version of the hub's client speaks with
    if isinstance(try_to_load_from_cache(repository, "config.json"), str):
        return None
    try:
        HfApi().model_info(repository, timeout=10)
    except RepositoryNotFoundError:
        return "unknown or private there"
    except (OSError, http_error) as error:
        return f"out of reach ({str(error).splitlines()[0]})"
    return None


def complaints(folder: Path, where: str) -> Iterator[str]:
    """One line for each thing that keeps the folder from being loaded; `where` is how the user named it (model.path=...)."""
    adapter = folder / "adapter_config.json"
    name = "config.json" if (folder / "config.json").is_file() or not adapter.is_file() else adapter.name
    config = json_of(folder / name)
    if not isinstance(config, dict):
        yield f"{where}: {name} cannot be read as JSON; allowed is a folder that transformers' save_pretrained wrote"
        return
    yield from _code(config, where)
    yield from _weights(folder, "adapter_model" if name == adapter.name else "model", where)


def refuse_changed(folder: Path) -> None:
    """Raises UserError where the folder is the policy of a checkpoint and a file of it is not as it was written."""
    if folder.name == "policy" and folder.parent.name.startswith("step-"):
        refuse_damaged(folder.parent, only=folder)


def json_of(file: Path) -> Any:
    """What a JSON file holds, None where it is missing, no file or damaged."""
    try:
        return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None
    except (OSError, ValueError, RecursionError):
        return None


def _code(config: dict[str, Any], where: str) -> Iterator[str]:
    """A model that exists only as code in its folder; one that transformers knows by itself is loaded as transformers has it."""
    if "auto_map" not in config:
        return
    from transformers import CONFIG_MAPPING

    if config.get("model_type") not in CONFIG_MAPPING:
        yield (
            f"{where}: config.json names code of its own (auto_map), which is never run (trust_remote_code=False); allowed is an "
            "architecture that transformers has"
        )


def _weights(folder: Path, stem: str, where: str) -> Iterator[str]:
    """The safetensors are there and as long as their headers say."""
    index = folder / f"{stem}.safetensors.index.json"
    single = folder / f"{stem}.safetensors"
    if index.is_file() and not single.is_file():
        table = json_of(index)
        names = table.get("weight_map") if isinstance(table, dict) else None
        if not isinstance(names, dict) or not names or not all(isinstance(name, str) for name in names.values()):
            yield f"{where}: {index.name} cannot be read; allowed is the index that save_pretrained wrote"
            return
        files = [folder / str(name) for name in sorted(set(names.values()))]
    elif single.is_file():
        files = [single]
    elif any(file for pattern in PICKLED for file in folder.glob(pattern) if file.name != "training_args.bin"):
        yield (
            f"{where}: its weights are pickled, and a pickle can run code, so it is not opened; allowed are safetensors "
            "(load it once where you trust it and call save_pretrained)"
        )
        return
    else:
        yield f"{where}: has no {single.name}; allowed is a folder that transformers' save_pretrained wrote"
        return
    for file in files:
        if reason := _damage(file):
            yield f"{where}: {file.name} {reason}"


def _damage(file: Path) -> str | None:
    """What is wrong with a safetensors file by its header and size alone; None where nothing is."""
    if not file.is_file():
        return "is missing, though the index names it"
    size = file.stat().st_size
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(HEADER), "little")
        if size < HEADER or length > min(size - HEADER, LONGEST_HEADER):
            return f"is cut short or no safetensors file: {size} bytes hold no whole header"
        try:
            header = json.loads(stream.read(length))
            ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
        except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError):
            return "has no readable header; it is no safetensors file"
    expected = HEADER + length + max(ends, default=0)
    return None if size == expected else f"is damaged: {size} bytes, and its header says {expected}"
