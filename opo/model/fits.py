"""Do the files of a model's folder fit each other: what config.json says, the weights, and the small files beside them."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from opo.config.model_source import json_of

BESIDE = ("generation_config.json", "tokenizer_config.json", "special_tokens_map.json", "tokenizer.json")
LAYER = re.compile(r"(?P<stack>(?:.*\.)?(?:layers|layer|h|blocks|block))\.(?P<number>\d+)\.(?P<rest>.+)")


def no_objects(folder: Path, where: str) -> Iterator[str]:
    """One line for each file beside config.json that is there and holds no JSON object."""
    for name in BESIDE:
        if (folder / name).exists() and not isinstance(json_of(folder / name), dict):
            yield f"{where}: {name} holds no JSON object; allowed is the file that save_pretrained wrote"


def unknown_value(source: str, error: Exception) -> str | None:
    """The key of config.json whose value transformers looked up in vain, None where the error is another."""
    if not isinstance(error, KeyError) or not error.args:
        return None
    config = json_of(Path(source) / "config.json")
    key = next((key for key, value in _leaves(config, "") if value == error.args[0]), None)
    return key and f"config.json: {key}={error.args[0]!r} is none that transformers knows"


def complaints_of_loaded(model: Any, report: Mapping[str, Any]) -> Iterator[str]:
    """What keeps a loaded model from being the one of its files, by the report of `from_pretrained`."""
    for name, stored, own in sorted(report["mismatched_keys"]):
        yield f"{name} has the shape {list(stored)} in its weights, and by config.json {list(own)}"
    if missing := sorted(report["missing_keys"]):
        yield f"its weights lack {len(missing)} tensors of the model, the first {missing[0]}"
    if beyond := sorted(_beyond(model, report["unexpected_keys"])):
        yield f"its weights hold {len(beyond)} tensors of layers that config.json leaves out, the first {beyond[0]}"
    ends = getattr(model.generation_config, "eos_token_id", None)
    for end in ends if isinstance(ends, list | tuple) else [ends]:
        if end is not None and type(end) is not int:
            yield f"generation_config.json: eos_token_id={ends!r}; allowed are a token's number and a list of such"


def _beyond(model: Any, unexpected: Any) -> Iterator[str]:
    """Unexpected tensors that are those of one more layer of a stack that the model has.

    Layers that predict further tokens (`num_nextn_predict_layers`) are stored behind the others and are not used here.
    """
    numbers: dict[str, set[int]] = {}
    parts: dict[str, set[str]] = {}
    for match in filter(None, (LAYER.fullmatch(name) for name, _ in model.named_parameters())):
        for stack in (match["stack"], match["stack"].removeprefix(f"{model.base_model_prefix}.")):
            numbers.setdefault(stack, set()).add(int(match["number"]))
            parts.setdefault(stack, set()).add(match["rest"])
    ahead = getattr(model.config, "num_nextn_predict_layers", None) or 0
    for match in filter(None, map(LAYER.fullmatch, unexpected)):
        stack, number = match["stack"], int(match["number"])
        if stack in numbers and number > max(numbers[stack]) + ahead and match["rest"] in parts[stack]:
            yield match.string


def _leaves(value: Any, key: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _leaves(inner, f"{key}.{name}" if key else name)
    else:
        yield key, value
