"""What a study was made from, by content: weights, tokenizer, rollouts and task data, so that pools of other inputs are never taken for these."""

import hashlib
from collections.abc import Iterator
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

from analysis.study.config import VarianceConfig
from opo.model.load import model_source
from opo.run.policies import EvaluatedPolicy
from opo.tasks.own import is_reference, source_file

READ = (".safetensors", ".bin", ".json", ".jinja", ".model", ".txt")  # of a model folder


def contents(config: VarianceConfig, stage: EvaluatedPolicy) -> dict[str, str]:
    """File -> digest of everything that the pools of a stage depend on; a hub id stands for its commit."""
    files = list(config.rollout_files)
    digests: dict[str, str] = {}
    for weights in stage.weights:
        for source in dict.fromkeys((model_source(weights.model), str(weights.folder or ""))):
            if source and Path(source).is_dir():
                files += sorted(file for file in Path(source).iterdir() if file.suffix in READ)
            elif source:
                digests[source] = _commit(source)
    task = config.task if config.task is not None else (stage.weights[0].run or {}).get("task")
    if not config.rollouts:
        files += [Path(text) for text in _texts(task) if _is_file(text)]
        own = stage.weights[0].reward_functions(config.reward) or {}
        files += [source_file(text, "task") for text in (*_texts(task), *own) if is_reference(text)]
    return digests | {str(file): digest(file) for file in files}


def digest(file: Path) -> str:
    """A hash of a file's bytes."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "blake2b").hexdigest()[:32]


def _commit(name: str) -> str:
    """The commit of a hub model as it lies in the cache, empty where that is not known."""
    from transformers import AutoConfig

    return str(getattr(AutoConfig.from_pretrained(name, trust_remote_code=False), "_commit_hash", None) or "")


def _texts(value: Any) -> Iterator[str]:
    if is_dataclass(value) and not isinstance(value, type):
        value = asdict(value)
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for inner in value.values():
            yield from _texts(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _texts(inner)


def _is_file(text: str) -> bool:
    try:
        return Path(text).is_file()
    except (OSError, ValueError):
        return False
