"""Files of a run or a study, read whole: JSON, YAML and tables that may be cut, emptied, overwritten or changed."""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from opo.errors import UserError

if TYPE_CHECKING:
    import polars as pl

SEAL = "sha256"  # the key of the seal


def read_json(file: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises UserError that names the file where it is missing or holds no object."""
    try:
        content = json.loads(_text(file))
    except ValueError:
        content = None
    return _record(file, content, "JSON object")


def sealed(content: Mapping[str, Any]) -> dict[str, Any]:
    """The content as JSON reads it back, with its own SHA-256, so that `read_sealed` sees what was changed since."""
    plain = json.loads(json.dumps(content))
    return {**plain, SEAL: _digest(plain)}


def read_sealed(file: Path) -> dict[str, Any]:
    """The object in a JSON file of `sealed` content, without the seal. Raises UserError where one number of it is another."""
    content = read_json(file)
    if content.pop(SEAL, None) != _digest(content):
        raise UserError(
            f"{file}: damaged, it holds something else than was written; restore it from a copy, or make it again"
        )
    return content


def read_yaml(file: Path) -> dict[str, Any]:
    """The group of keys in a YAML file. Raises UserError that names the file where it is missing or holds none."""
    try:
        content = yaml.safe_load(_text(file))
    except yaml.YAMLError:
        content = None
    return _record(file, content, "YAML mapping")


def read_table(file: Path) -> "pl.DataFrame":
    """The table in a parquet file. Raises UserError that names the file where it is missing or cannot be read."""
    import polars as pl  # not for what reads no table

    _refuse_missing(file)
    try:
        return pl.read_parquet(file)
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError) as error:
        reason = (str(error).splitlines() or [""])[0]
        raise UserError(f"{file}: damaged, it holds no readable table ({reason}); restore it from a copy") from error


def refuse_no_file(file: Path) -> None:
    """Raise UserError where something stands at this name that is no file; that nothing does is fine."""
    if os.path.lexists(file) and not file.is_file():
        what = "a folder" if file.is_dir() else "a link to nothing, or no plain file"
        raise UserError(f"{file}: damaged, it is {what}; restore it from a copy")


def _digest(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _refuse_missing(file: Path) -> None:
    refuse_no_file(file)
    if not file.is_file():
        raise UserError(f"{file}: missing; restore it from a copy")


def _text(file: Path) -> str:
    _refuse_missing(file)
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return ""


def _record(file: Path, content: Any, kind: str) -> dict[str, Any]:
    if not isinstance(content, dict) or not content:
        raise UserError(f"{file}: damaged, it holds no {kind}; restore it from a copy")
    return content
