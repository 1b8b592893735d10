"""Do the files of a model's folder fit each other: what config.json says, the weights, and the small files beside them."""

import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from opo.config.model_source import json_of
from opo.errors import UserError

BESIDE = ("generation_config.json", "tokenizer_config.json", "special_tokens_map.json", "tokenizer.json")
AHEAD = re.compile(r"(?:.*\.)?layers\.(\d+)\..+")
BUFFERS = re.compile(
    r"(?:.*\.)?(?:inv_freq|masked_bias|(?:attn|attention)\.bias)"
)  # that older versions of transformers stored


def no_objects(folder: Path, where: str) -> Iterator[str]:
    """One line for each file beside config.json that is there and holds no JSON object, or that is a pipe or a device."""
    for path in sorted(folder.iterdir()):
        if path.exists() and not (path.is_file() or path.is_dir()):  # to read it may take for ever
            yield f"{where}: {path.name} is no file; allowed is a folder that transformers' save_pretrained wrote"
    for name in BESIDE:
        if (folder / name).exists() and not isinstance(json_of(folder / name), dict):
            yield f"{where}: {name} holds no JSON object; allowed is the file that save_pretrained wrote"


@contextmanager
def naming(files: str, where: str, source: str) -> Iterator[None]:
    """Whatever transformers raises over someone's files becomes a UserError of one line that names them."""
    try:
        yield
    except (UserError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        if value := _unknown_value(source, error):
            said = value
        elif not Path(source).is_dir():  # of the hub: what it says names the file
            said = first_line(error)
        else:
            said = (
                f"{'its weights' if isinstance(error, SafetensorError) else files} cannot be used: {first_line(error)}"
            )
        raise UserError(f"{where}: {said}") from error


def first_line(error: Exception) -> str:
    """An exception of anyone's in one line, with its type where the words alone may say little."""
    text = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    if text.endswith(":"):  # a list follows
        text = " ".join(str(error).split())
    return text if isinstance(error, OSError | ValueError) and text else f"{type(error).__name__}: {text}"


def _unknown_value(source: str, error: Exception) -> str | None:
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
    yield from _numbers(model)
    yield from _ends(model)


def _beyond(model: Any, unexpected: Iterable[str]) -> Iterator[str]:
    """Unexpected tensors in a part that the model has: it would compute something else without them.

    Parts that it does not have (another head, a vision tower) may be beside it. Layers that predict further tokens
    (`num_nextn_predict_layers`) are stored behind the others and are not used here.
    """
    prefix = f"{model.base_model_prefix}."
    parts = {name for module in (model, model.base_model) for name, _ in module.named_children()} - {prefix[:-1]}
    config = model.config.get_text_config()
    ahead, layers = (getattr(config, key, None) or 0 for key in ("num_nextn_predict_layers", "num_hidden_layers"))
    for name in unexpected:
        layer = AHEAD.fullmatch(name)
        is_ahead = layer is not None and layers <= int(layer[1]) < layers + ahead
        if name.removeprefix(prefix).partition(".")[0] in parts and not is_ahead and not BUFFERS.fullmatch(name):
            yield name


def _numbers(model: Any) -> Iterator[str]:
    """Weights and buffers that no model computes with."""
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if not bool(tensor.isfinite().all()):
            yield f"{name} holds a weight that is no finite number"
        elif name.endswith("inv_freq") and bool((tensor < 0).any()):
            yield f"config.json: its rotary positions turn backwards ({name} is negative); allowed are positive factors"


def _ends(model: Any) -> Iterator[str]:
    """Tokens that end a text and are no tokens of the model, where the files name them: a kind's own default may be larger."""
    rows, usual = len(model.get_input_embeddings().weight), getattr(type(model.config), "eos_token_id", None)
    for file, config in (("generation_config.json", model.generation_config), ("config.json", model.config)):
        named = getattr(config, "eos_token_id", None)
        for end in named if isinstance(named, list | tuple) else [named]:
            if end is not None and type(end) is not int:
                yield f"{file}: eos_token_id={named!r}; allowed are a token's number and a list of such"
            elif end is not None and end != usual and not 0 <= end < rows:
                yield f"{file}: eos_token_id={named!r}; allowed are numbers of the model's {rows} tokens"


def _leaves(value: Any, key: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _leaves(inner, f"{key}.{name}" if key else name)
    else:
        yield key, value
