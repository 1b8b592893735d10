"""Rows of a JSONL or parquet file, numbered from 1, and the order in which a task walks through them."""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from random import Random
from typing import Any

from opo.errors import UserError
from opo.system.json_lines import json_lines
from opo.tasks.base import held_out

Row = tuple[int, dict[str, Any]]  # its line (JSONL, blank ones counted) or row (parquet) from 1, and its columns


def read_rows(path: str, key: str) -> list[Row]:
    """The rows of `path`, which stands in the config under `key`.

    Raises UserError, naming the file and the line, where it cannot be read.
    """
    file = Path(path)
    if not path or not file.is_file():
        raise UserError(f"{key}={path}: no such file; give a .jsonl or .parquet file")
    try:
        if file.suffix.lower() == ".parquet":
            return _parquet(file)
        rows = list(json_lines(file.read_bytes(), str(file), lambda number: f"{file}:{number}:"))
    except OSError as error:
        raise UserError(f"{key}={path}: cannot be read ({error.strerror or error})") from error
    if not rows:
        raise UserError(f"{key}={path}: holds no rows")
    return rows


def _parquet(file: Path) -> list[Row]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.ParquetFile(file).read()  # not read_table, which makes columns of a folder's name
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{file}: is no parquet file that can be read ({str(error).splitlines()[0]})") from error
    names = table.column_names
    if twice := [name for name in names if names.count(name) > 1]:
        raise UserError(f"{file}: has the column {twice[0]} twice; needs it once")
    if not table.num_rows:
        raise UserError(f"{file}: holds no rows")
    columns = [_values(file, name, table.column(name)) for name in names]
    return [
        (number, dict(zip(names, row, strict=True))) for number, row in enumerate(zip(*columns, strict=True), start=1)
    ]


def _values(file: Path, name: str, values: Any) -> list[Any]:
    """A column as Python's own values, which do not hold every date that parquet does."""
    try:
        return values.to_pylist()
    except (ValueError, ArithmeticError, LookupError) as error:  # Arrow's own errors are of these kinds too
        raise UserError(
            f"{file}: the column {name} cannot be read ({' '.join(str(error).split())}); leave it out"
        ) from error


def column(row: Mapping[str, Any], name: str) -> Any:
    """A column by its name, or by a dotted path into nested ones (`reward_model.ground_truth`); None where it is missing."""
    if name in row:
        return row[name]
    value: Any = row
    for part in name.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def column_name(row: Mapping[str, Any], key: str, given: str | None, usual: Sequence[str], where: str) -> str:
    """`given`, else the first of the usual names that the row has, where null and NaN (as pandas writes a null) are nothing.

    Raises UserError naming the config `key` and the columns.
    """
    for name in [given] if given else usual:
        value = column(row, name)
        if value is not None and not (isinstance(value, float) and math.isnan(value)):
            return name
    looked_for = given or " or ".join(usual)
    raise UserError(f"{where}: has no {looked_for}; its columns are {', '.join(row)}, say which with {key}=NAME")


class Laps:
    """Rows as streams of numbered prompts.

    Train: every pass over the rows is a new permutation, drawn from the seed. Eval: the rows of a file of their own, else about an
    eighth of the rows, by the content of the question; each is asked once.
    """

    def __init__(self, path: str, eval_path: str | None, seed: int, read: Callable[[str, str], list[tuple[str, Any]]]):
        self._path, self._seed = path, seed
        rows = read(path, "task.path")
        evaluated = read(eval_path, "task.eval_path") if eval_path else None
        asked = {question for question, _ in evaluated or []}
        self._rows = {
            "train": [row for question, row in rows if not (question in asked if evaluated else held_out(question))],
            "eval": [row for question, row in (evaluated or rows) if evaluated or held_out(question)],
        }

    def row(self, index: int, split: str) -> Any:
        """Row number `index` of a stream. Raises UserError where the split has none, or the eval split not so many."""
        rows = self._rows[split]
        if not rows:
            raise UserError(
                f"task.path={self._path}: none of its questions falls into the {split} split; by their content about one in eight is "
                "for eval and the others for train; give more, or a file for eval in task.eval_path"
            )
        if split == "eval" and index >= len(rows):
            raise UserError(
                f"task.path={self._path}: the eval split has {len(rows)} questions and question {index + 1} was asked for; ask for "
                "fewer prompts, or give more in task.eval_path"
            )
        lap, position = divmod(index, len(rows))
        return rows[_permutation(self._seed, split, lap, len(rows))[position]]


@lru_cache(maxsize=8)
def _permutation(seed: int, split: str, lap: int, count: int) -> list[int]:
    """The order in which one pass over a split visits its questions."""
    return Random(f"{seed}/{split}/{lap}").sample(range(count), count)
